"""The `gateway` commands: OpenAI's fine-tuning API over any backend."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer
from msgspec import structs

from orchestrate import text
from orchestrate.commands.terminal.command import Output, command
from orchestrate.commands.terminal.console import (
    ended_by_signal,
    note,
    orchestrator,
    out,
    print_text,
    table,
    warn,
)
from orchestrate.commands.terminal.options import OPTIONAL_COMMAND, AliasGroup
from orchestrate.core.amounts import amount
from orchestrate.types import AuditEntry, GatewayKey

if TYPE_CHECKING:
    from orchestrate.gateway.terms import MappedModel

app = typer.Typer(
    invoke_without_command=True,
    subcommand_metavar=OPTIONAL_COMMAND,
    add_completion=False,
    no_args_is_help=False,
    help="Serve one fine-tuning API over any backend. Clients only change their base URL.",
)
keys = typer.Typer(
    cls=AliasGroup,
    add_completion=False,
    no_args_is_help=True,
    help="Manage the gateway's client keys and their permissions.",
)
app.add_typer(keys, name="keys")


class GatewayShown(TypedDict):
    url: str
    models: dict[str, str]
    """Maps each model name to a description of its target, such as `MODEL on BACKEND`."""


class KeyMade(TypedDict):
    name: str
    key: str


class KeyShown(GatewayKey, frozen=True, kw_only=True):
    used_usd: Decimal
    open_jobs: int


@dataclass(frozen=True, kw_only=True)
class GatewayAddress:
    """Options for the address of the gateway."""

    port: Annotated[int, typer.Option(min=0, max=65535, help="Port. 0 picks a free one.")] = 8000
    host: Annotated[
        str, typer.Option(help="Address to serve on. Addresses other than loopback need keys and TLS.")
    ] = "127.0.0.1"
    names: Annotated[
        list[str] | None, typer.Option("--name", help="Also accept requests for this host name; repeatable.")
    ] = None
    behind_proxy: Annotated[
        bool,
        typer.Option("--behind-proxy", help="Expect a reverse proxy that terminates TLS. Clients need keys."),
    ] = False
    certificate: Annotated[
        Path | None, typer.Option("--tls-certificate", help="PEM certificate for serving TLS directly.")
    ] = None
    certificate_key: Annotated[
        Path | None, typer.Option("--tls-key", help="PEM file with the certificate's key.")
    ] = None


@app.callback()
@command
def gateway(context: typer.Context, *, where: GatewayAddress) -> Iterator[Output[GatewayShown]]:
    """Serve OpenAI's HTTP API for fine-tuning (files, jobs, models, chat) until interrupted. The table
    `gateway` in orchestrate.toml maps each model name to a model on a backend."""
    if context.invoked_subcommand is not None:
        return
    from orchestrate.gateway import launch as service
    from orchestrate.runs import watch as watching

    with orchestrator(context) as ft, ended_by_signal() as ended:
        settings = service.read(
            ft,
            host=where.host,
            port=where.port,
            names=tuple(where.names or ()),
            behind_proxy=where.behind_proxy,
            certificate=service.certificate(where.certificate, where.certificate_key),
        )
        with service.serve(ft, settings, watching.watcher(ft)) as up:
            models = {name: _target(target) for name, target in settings.models.items()}
            yield Output(GatewayShown(url=up.url, models=models), _show)
            if not models:
                warn("no model names are mapped, so clients cannot fine-tune (docs/gateway.md)")
            note("Ctrl-C finishes open requests, then stops. Jobs continue and reappear after a restart")
            ended.wait()


def _show(gateway: GatewayShown) -> None:
    print_text(gateway["url"])
    for name, target in gateway["models"].items():
        print_text(f"  {name}  is  {target}")


def _target(target: MappedModel) -> str:
    return f"{target.model} on {target.backend}" if target.run is None else f"the model of {target.run}"


@dataclass(frozen=True, kw_only=True)
class KeyScope:
    """Options for the key's permissions."""

    project: Annotated[
        str, typer.Option(help="Project of the key. Keys of the same project share files, jobs and models.")
    ] = "default"
    backends: Annotated[
        list[str] | None, typer.Option("--backend", help="Restrict the key to this backend; repeatable.")
    ] = None
    models: Annotated[
        list[str] | None, typer.Option("--model", help="Restrict the key to this model name; repeatable.")
    ] = None
    map: Annotated[
        list[str] | None,
        typer.Option(
            "--map", metavar="NAME=BACKEND:MODEL", help="Model name that only this key can use; repeatable."
        ),
    ] = None
    budget: Annotated[
        str | None,
        typer.Option(
            "--budget", metavar="USD", help="Total cost limit for all jobs submitted with this key."
        ),
    ] = None
    per_minute: Annotated[int | None, typer.Option(min=1, help="Maximum requests per minute.")] = None
    concurrent: Annotated[int | None, typer.Option(min=1, help="Maximum number of open jobs.")] = None
    expires: Annotated[
        datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Expiry date (YYYY-MM-DD, UTC).")
    ] = None


@keys.command("add")
@command
def add(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the key's owner.")],
    *,
    scope: KeyScope,
) -> Output[KeyMade]:
    """Create a client key and print it once. Only its hash is stored. Once a key exists, every request needs
    one."""
    from orchestrate.gateway import launch as service

    with orchestrator(context) as ft:
        made, key = service.add_key(
            ft,
            name,
            project=scope.project,
            backends=scope.backends or (),
            models=scope.models or (),
            map=scope.map or (),
            budget_usd=amount(scope.budget, "--budget"),
            per_minute=scope.per_minute,
            concurrent=scope.concurrent,
            expires_at=scope.expires.replace(tzinfo=UTC) if scope.expires else None,
        )
    return Output(KeyMade(name=key.name, key=made), _show_key)


def _show_key(made: KeyMade) -> None:
    print_text(made["key"])
    note(
        "only the key's hash is stored, so the key cannot be shown again. Gateways that use this store "
        "accept the key now"
    )


@keys.command("list")
@command
def ls(context: typer.Context) -> Output[list[KeyShown]]:
    """List all keys with their models, costs and budgets."""
    from orchestrate.gateway import launch as service

    with orchestrator(context) as ft:
        found = service.keys(ft)
    keys = [KeyShown(**structs.asdict(key), used_usd=usd, open_jobs=jobs) for key, usd, jobs in found]
    return Output(keys, _show_keys)


def _show_keys(found: list[KeyShown]) -> None:
    shown = table("name", "server", "project", "state", "used", "open jobs", "permissions")
    for key in found:
        state = "revoked" if key.revoked_at else f"until {key.expires_at:%Y-%m-%d}" if key.expires_at else "-"
        used = text.money(key.used_usd)
        if key.budget_usd is not None:
            used += f" of {text.money(key.budget_usd)}"
        limits = [*key.backends, *key.models, *(f"{name}={target}" for name, target in key.map.items())]
        limits += [f"{key.per_minute} requests per minute"] if key.per_minute else []
        limits += [f"{key.concurrent} open jobs"] if key.concurrent else []
        may, open_jobs, project = ", ".join(limits) or "all", str(key.open_jobs), key.project
        if key.opens == "serve":
            project = used = open_jobs = "-"
            may = "query the models that `serve` and `ab serve` run"
        shown.add_row(key.name, key.opens, project, state, used, open_jobs, may)
    out.print(shown)


@keys.command("revoke")
def revoke(context: typer.Context, name: Annotated[str, typer.Argument(help="Name of the key.")]) -> None:
    """Revoke a key. Requests with it are rejected from now on. Jobs that it started continue."""
    from orchestrate.gateway import launch as service

    with orchestrator(context) as ft:
        key = service.revoke_key(ft, name)
    jobs = "" if key.opens == "serve" else ". Its jobs continue. To list them: orchestrate runs"
    note(f"the key {name} was revoked{jobs}")


@app.command("log")
@command
def log(
    context: typer.Context,
    key: Annotated[str | None, typer.Option(help="Show only this key.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of most recent entries.")] = 50,
) -> Output[list[AuditEntry]]:
    """Show the audit log, oldest first. Lists requests that changed something or were rejected, and changes
    to keys."""
    from orchestrate.gateway import launch as service

    with orchestrator(context) as ft:
        found = service.entries(ft, key=key, limit=limit)
    return Output(found, _show_log)


def _show_log(found: list[AuditEntry]) -> None:
    shown = table("time", "key", "request", "status", "details")
    for entry in found:
        at, request = f"{entry.at:%Y-%m-%d %H:%M:%S}", f"{entry.method} {entry.path}"
        times = f" ({entry.times} times)" if entry.times > 1 else ""
        what = entry.subject or entry.code or (f"by {entry.by}" if entry.by else "-")
        status = f"{entry.status}{times}" if entry.status else "-"
        shown.add_row(at, entry.key or "-", request, status, what)
    out.print(shown)
