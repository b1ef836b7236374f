"""The commands `keys`, `doctor`, `providers` and `plugins`."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from json import dumps as json_line
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypedDict

import typer
from rich.text import Text

from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import (
    confirm,
    note,
    orchestrator,
    out,
    print_text,
    prompting,
    settings_of,
    table,
)
from orchestrate.commands.terminal.options import default_command
from orchestrate.core import days
from orchestrate.errors import MissingKey, OrchestrateError, SetupError, UsageError
from orchestrate.profile import unknown_backend
from orchestrate.settings import (
    config,
    forget_in_keyring,
    key_file,
    masked,
    pin_file,
    read_keys,
    read_toml,
    write_keyring,
)
from orchestrate.settings.hosts import Pins, origin
from orchestrate.text import meant
from orchestrate.types import Feature

if TYPE_CHECKING:
    from datetime import date

    from orchestrate.setup.backends import BackendReadiness, Plugin
    from orchestrate.setup.doctor import Check

_HOSTNAME = re.compile(r"[a-z0-9-]+(\.[a-z0-9-]+)+")
"""Matches host names. The API key of a server that generates data is stored under the server's host name."""

_MARKS: dict[bool | None, tuple[str, str]] = {
    True: ("ok", "green"),
    False: ("wrong", "red"),
    None: ("absent", "dim"),
}


keys = typer.Typer(
    cls=default_command("list"),
    help="Set, list and remove API keys, and choose the hosts they may be sent to.",
)


@keys.command("set")
def keys_set(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Backend, such as together.")],
    value: Annotated[list[str] | None, typer.Argument(hidden=True, metavar="")] = None,
    value_option: Annotated[str | None, typer.Option("--value", hidden=True)] = None,
    keyring: Annotated[
        bool, typer.Option("--keyring", help="Store the key in the system keyring instead of a file.")
    ] = False,
) -> None:
    """Store an API key in a file that only you can read. With --keyring, store it in the system keyring.
    Prompts for the key, or reads it from a pipe. The environment takes precedence over both."""
    from orchestrate.setup import backends

    if value or value_option is not None:
        raise UsageError(
            "the key was not stored. A key on the command line is visible to every program on this "
            "machine and stays in the shell history, so treat it as leaked",
            fix="to enter a key: orchestrate keys set NAME. To read a key from a file: "
            "orchestrate keys set NAME < FILE",
        )
    settings = settings_of(context)
    also = [*backends.described_only(settings), *backends.places_only(settings)]
    known = [*backends.with_keys(settings, also), *config.other_secrets()]
    if name not in known and not _HOSTNAME.fullmatch(name):
        raise UsageError(
            f"unknown key name (not shown, because it may itself be a key){meant(name, known)}; "
            f"known: {', '.join(known)}"
        )
    with prompting():
        given = typer.prompt("Key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    if not (key := given.strip()):
        raise UsageError("the key is empty. Nothing was written")
    if not key.isascii():
        raise UsageError(
            "the key contains characters that are not ASCII, which no request can carry. Nothing was written"
        )
    host = settings.hosts.get(name)
    _require_a_host_of_its_own(name, key, host)
    path = key_file()
    if keyring:
        place = write_keyring(name, key)
        if name in read_keys(path):  # it would take precedence over the keyring
            config.write_key(path, name, None)
    else:
        config.write_key(path, name, key)
        place = str(path)
    note(f"{name}: {config.Secret(key)} stored in {place}")
    if host is None or host.base_url is None or _is_sandbox(host, key):
        return
    if host.url_from_file:
        note(f"{host.base_url} comes from {settings.config_file}")
        note(f"if you trust this URL: orchestrate keys trust {name}")
    elif not Pins(pin_file()).hosts(key):
        _tie(key, host.base_url)
        note(f"the key is only sent to {origin(host.base_url)}")


def _require_a_host_of_its_own(name: str, key: str, host: config.HostConfig | None) -> None:
    """Ask before tying a real key to this machine, for example because a sandbox's variables are still set.
    Raises `UsageError` if the user declines or there is no terminal."""
    if host is None or not host.near or _is_sandbox(host, key):
        return
    url = host.base_url
    warning = (
        f"the base URL of {name} is {url} on this machine (a sandbox?), so the key would only be sent there"
    )
    if not sys.stdin.isatty():
        raise UsageError(
            f"{warning}; nothing was written",
            fix=f"unset {name.upper().replace('-', '_')}_BASE_URL. To store the key anyway, run the command "
            "in a terminal",
        )
    if not confirm(f"{warning}. Store it anyway?", yes=False):
        raise UsageError("nothing was written")


def _is_sandbox(host: config.HostConfig, key: str) -> bool:
    return host.changed(api_key=config.Secret(key)).sandbox


class Key(TypedDict):
    backend: str
    key: str | None
    source: str | None
    variable: str
    hosts: list[str]


@keys.command("list")
@command
def keys_list(context: typer.Context) -> Output[list[Key]]:
    """List your keys (masked), their sources and their hosts."""
    from orchestrate.setup import backends

    settings = settings_of(context)
    stored = read_keys(key_file())
    rows: list[Key] = []
    for name, host in backends.with_keys(settings).items():
        variable = host.key_variable or ""
        source = variable if os.environ.get(variable) else ("key file" if name in stored else "keyring")
        masked = str(host.api_key) if host.api_key else None
        found = source if masked else None
        rows.append(Key(backend=name, key=masked, source=found, variable=variable, hosts=_tied(host)))
    return Output(rows, _show_keys)


def _show_keys(rows: list[Key]) -> None:
    shown = table("backend", "key", "source", "tied to")
    for row in rows:
        shown.add_row(
            row["backend"],
            row["key"] or Text("none", "dim"),
            row["source"] or Text(f"set {row['variable']}", "dim"),
            ", ".join(row["hosts"]) or Text("not used yet" if row["key"] else "", "dim"),
        )
    out.print(shown)


def _tied(host: config.HostConfig) -> list[str]:
    if host.api_key is None:
        return []
    if host.sandbox:
        return ["any sandbox"]
    return list(Pins(pin_file()).hosts(host.api_key.reveal()))


@keys.command("trust")
def keys_trust(
    context: typer.Context,
    name: Annotated[str | None, typer.Argument(help="Backend of the key.")] = None,
    host: Annotated[
        str | None,
        typer.Argument(help="Host such as https://llm.example.com. Default: the configured base URL."),
    ] = None,
    project: Annotated[
        bool,
        typer.Option(
            "--project", help="Trust this folder's orchestrate.toml and rates.yaml as they are now."
        ),
    ] = False,
) -> None:
    """Allow a key to be sent to another host. Each key is tied to the host it was first used with.

    With --project, trust this project's config files to set programs, addresses, the store, prices and the
    budget, and list what they set. If a config file changes, you must trust the project again."""
    if project:
        given: dict[str, Any] = context.find_root().obj or {}
        _trust_project(given.get("config"))
        return
    settings = settings_of(context)
    if name is None:
        raise UsageError(
            "name a backend, or pass --project", fix="orchestrate keys trust NAME [https://HOST]"
        )
    known = settings.host(name)
    if name not in settings.hosts:
        raise unknown_backend(name, settings.hosts)
    if known.api_key is None:
        raise MissingKey(name, known.key_variable or "")
    url = host or known.base_url
    if url is None:
        raise UsageError(f"{name} has no base URL", fix=f"orchestrate keys trust {name} https://HOST")
    config.require_safe_url(url, name)
    _tie(known.api_key.reveal(), url)
    note(f"{name}: {known.api_key} may be sent to {', '.join(_tied(known))}")


def _trust_project(given: Path | None) -> None:
    from orchestrate.settings import trust

    if (named := config.named_file(given)) is not None:
        note(f"{named} is already trusted, because you passed it explicitly")
        return
    path = config.project_file()
    project = None if path is None else trust.Project(path, read_toml(path))
    if project is None or not project.files:
        note("no project file here contains a setting that needs trust")
        return
    listed = trust.trusted_in()
    try:
        listed.add(project.files)
    except OSError as error:
        raise SetupError(
            f"{listed.path} cannot be written: {error}",
            fix="check the permissions of its folder, or set ORCHESTRATE_KEYS to a file elsewhere",
        ) from error
    note(f"trusted until changed: {', '.join(map(str, project.files))}")
    for name, value in sorted({**project.closed, **project.figures}.items()):
        note(f"  {name} = {json_line(masked(value, name), default=str)}")


def _tie(key: str, url: str) -> None:
    try:
        Pins(pin_file()).allow(key, url)
    except OSError as error:
        raise SetupError(
            f"{pin_file()} cannot be written: {error}",
            fix="check the permissions of its folder, or set ORCHESTRATE_KEYS to a file elsewhere",
        ) from error


@keys.command("remove")
def keys_remove(name: Annotated[str, typer.Argument(help="Backend.")]) -> None:
    """Remove a key from the key file and the keyring."""
    path = key_file()
    stored = name in read_keys(path)
    if stored:
        config.write_key(path, name, None)
    if forget_in_keyring(name) or stored:
        note(f"{name}: removed")
    else:
        note(f"neither {path} nor the keyring has a key called {name}")


@command
def doctor(
    context: typer.Context,
    online: Annotated[
        bool, typer.Option("--online", help="Also check that the hosts accept your keys (free).")
    ] = False,
) -> Output[list[Check]]:
    """Check this machine, your keys and the store. Exit code 3 if a check fails."""
    from orchestrate.setup import doctor as surgery

    checks = list(surgery.machine())
    try:
        with orchestrator(context) as ft:
            for check in surgery.settings(ft, online=online):
                checks.append(check)
    except OrchestrateError as error:
        name = "settings and store"
        checks.append(surgery.Check(check=name, ok=False, detail=error.message, fix=error.fix))
    return Output(checks, _show_checks, 3 if any(c.ok is False for c in checks) else 0)


def _show_checks(checks: list[Check]) -> None:
    shown = table("", "check", "detail", fold=("detail",))
    for c in checks:
        shown.add_row(Text(*_MARKS[c.ok]), c.check, c.detail + (f": {c.fix}" if c.fix else ""))
    out.print(shown)


providers = typer.Typer(cls=default_command("list"), help="List backends and what each one supports.")


class BackendRow(TypedDict):
    name: str
    title: str
    host: str
    sandbox: bool
    features: list[str]
    missing: dict[str, str]
    ended: dict[str, str]
    usable: bool
    """True if this machine has everything needed to submit to the backend."""
    needs: str | None
    """Missing requirements, and how to meet them."""


@providers.command("list")
@command
def list_providers(
    context: typer.Context,
    template: Annotated[
        bool, typer.Option("--template", help="Print a template for describing a host.")
    ] = False,
) -> Output[list[BackendRow]] | None:
    """List every backend that -p accepts, with its features. Also shows why a feature is missing, and what
    the backend needs on this machine."""
    from orchestrate.setup import backends as known

    if template:
        print_text(known.template().rstrip())
        return None
    today = days.today()
    with orchestrator(context) as ft:
        asked = ft.backends()
        found = [_backend(known.readiness(ft, name), today) for name in known.all_names(ft.settings)]
    return Output(found, partial(_show_backends, wide=asked))


def _backend(one: BackendReadiness, today: date) -> BackendRow:
    from orchestrate.providers.offline import ended_methods

    made = one.provider
    return BackendRow(
        name=one.name,
        title=one.title,
        host="" if made is None else made.host,
        sandbox=made is not None and made.config.sandbox,
        features=[] if made is None else sorted(made.features),
        missing={} if made is None else {f.value: reason for f, reason in made.missing.items()},
        ended={} if made is None else {f.value: reason for f, reason in ended_methods(made, today).items()},
        usable=one.needs is None,
        needs=one.needs,
    )


def _show_backends(found: list[BackendRow], wide: Sequence[str]) -> None:
    """Show the features of the backends in `wide`, and the missing requirements of all."""
    first = [one for one in found if one["name"] in wide]
    shown = table("feature", *(one["name"] for one in first))
    for feature in Feature:
        shown.add_row(feature.value.replace("_", " "), *(_has(one, feature.value) for one in first))
    out.print(shown)
    out.print()
    rows = table("-p", "backend", "setup", fold=("setup",))
    for one in found:
        rows.add_row(
            one["name"], one["title"], Text("ready", "green") if one["usable"] else one["needs"] or ""
        )
    out.print(rows)
    for one in first:
        for feature, reason in one["missing"].items():
            note(f"{one['name']} has no {feature.replace('_', ' ')}: {reason}")
        for feature, reason in one["ended"].items():
            note(f"{one['name']} no longer offers {feature}: {reason}")


def _has(backend: BackendRow, feature: str) -> Text:
    if feature in backend["ended"]:
        return Text("ended", "yellow")
    return Text("yes", "green") if feature in backend["features"] else Text("-", "dim")


@command
def plugins() -> Output[list[Plugin]]:
    """List backends that other packages add, with package and version. Exit code 3 if one is broken."""
    from orchestrate.setup import backends

    rows = backends.plugins()
    return Output(rows, _show_plugins, 3 if any(row.error for row in rows) else 0)


def _show_plugins(rows: list[Plugin]) -> None:
    if not rows:
        note("no installed package adds a backend. To write one, see docs/plugins.md")
        return
    shown = table("backend", "package", "version", "profile", "options", "")
    for row in rows:
        error = Text(row.error or "loaded", "red" if row.error else "green")
        taken = "any (unchecked)" if row.options is None else f"{len(row.options)} named"
        options = "-" if row.error else taken
        shown.add_row(row.kind, row.package or "-", row.version or "-", row.profile, options, error)
    out.print(shown)
