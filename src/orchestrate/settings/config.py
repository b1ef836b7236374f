"""Load settings.

Only this module and `orchestrate.settings` read the environment. Sources, in order of increasing precedence:
defaults, the nearest `orchestrate.toml` from the working folder upwards (`orchestrate.settings.trust` limits
what it may set), the environment, flags. Keys come from the environment, then from the private file that
`orchestrate keys set` writes, then from the system keyring if the package `keyring` is installed. They never
come from `orchestrate.toml`, which users commit.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar, Protocol
from urllib.parse import quote, unquote

import msgspec
from msgspec import Struct

from orchestrate.core.amounts import amount
from orchestrate.core.files import is_private, private_folder
from orchestrate.errors import ConfigError, UsageError
from orchestrate.profile import Profile, built_in, places, session_hosts, this_machine
from orchestrate.settings import SANDBOX_KEY_PREFIX as SANDBOX_KEY_PREFIX
from orchestrate.settings import Secret as Secret
from orchestrate.settings import download_limit, pin_file, read_toml, user_and_machine
from orchestrate.settings import read_keys as read_keys
from orchestrate.settings import secret as secret
from orchestrate.settings import write_key as write_key
from orchestrate.settings.hosts import HostConfig as HostConfig
from orchestrate.settings.hosts import HostRegistry, options, reject_unknown, table
from orchestrate.settings.hosts import is_loopback as is_loopback
from orchestrate.settings.hosts import require_safe_url as require_safe_url

CONFIG_NAME = "orchestrate.toml"
NOTIFY_SECRET = "notify-webhook"  # noqa: S105  the name of one
"""Name of the secret in the key file."""
GATEWAY_SECRET = "gateway-webhook"  # noqa: S105  the name of one
NOTIFY_VARIABLES = {
    "command": "ORCHESTRATE_NOTIFY_COMMAND",
    "url": "ORCHESTRATE_NOTIFY_URL",
    "desktop": "ORCHESTRATE_NOTIFY_DESKTOP",
}
STALLED_VARIABLE = "ORCHESTRATE_STALLED_MINUTES"
OWN_HOSTS = "ORCHESTRATE_OWN_HOSTS"
PRIVATE_FOLDERS = ("counts", "data", "evaluations", "gateway", "local", "models", "sandbox", "watchers")
"""Subfolders of the home folder that only its owner may access."""
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
TOP_LEVEL: Mapping[str, str] = {
    "home": "Folder for the store, local runs, data files and downloads, absolute or relative to this file.",
    "store": "URL of the run store: `sqlite:///FILE`, with FILE absolute or relative to this file, or "
    "`postgresql://USER:PASSWORD@HOST/DATABASE`.",
    "budget_usd": "Spending limit in US dollars for everything in this store.",
    "log_level": f"Log level: {', '.join(_LOG_LEVELS)}.",
    "hosts": "One table per backend, `[hosts.NAME]`.",
    "local": "Options of the backend `local`.",
    "gateway": "Settings of `orchestrate gateway`.",
    "queue": "Maximum number of open runs per backend: `NAME = 2`.",
}
"""The keys of `orchestrate.toml`, with descriptions."""


class Notify(Struct, frozen=True):
    """The channels to notify when a run ends. They come from the environment and from flags, never from a
    project's file, because that file could run a command you have not seen."""

    command: str | None = None
    url: Secret | None = None
    """Address of the webhook. It is secret, because many webhook hosts put a token into it."""
    desktop: bool = False

    @property
    def description(self) -> str:
        """The notification channels in words, such as `by command and webhook`."""
        ways = {"command": self.command, "webhook": self.url, "desktop": self.desktop}
        used = [name for name, way in ways.items() if way]
        return f"by {' and '.join(used)}" if used else "in this terminal only"


class BillingBackend(Protocol):
    """The properties that determine whether a backend may bill."""

    profile: ClassVar[Profile]
    config: HostConfig


class Settings(Struct, frozen=True):
    """All settings, resolved once. Create them with `load`."""

    home: Path
    """Folder for the store, local runs, written data files and downloads."""
    store_url: str
    hosts: HostRegistry
    pins: Path
    """File that lists the hosts to which each key may be sent. The list of trusted files is next to it."""
    budget_usd: Decimal | None = None
    """Spending limit for all backends and runs of this store."""
    log_level: str = "WARNING"
    config_file: Path | None = None
    config_named: bool = False
    """True if the user named the file, False if Orchestrate found it in a project folder."""
    local: Mapping[str, Any] = msgspec.field(default_factory=dict[str, Any])
    gateway: Mapping[str, Any] = msgspec.field(default_factory=dict[str, Any])
    """The gateway's table in the configuration. `orchestrate.gateway` parses it."""
    queue: Mapping[str, int] = msgspec.field(default_factory=dict[str, int])
    """Maximum number of open runs, as {backend: number}. The queue submits nothing to a backend that has
    reached its maximum."""
    notify: Notify = msgspec.field(default_factory=Notify)
    stalled_after_s: float | None = None
    """Seconds without progress after which a run counts as stalled. `None` means a limit based on earlier
    runs."""
    made_by: str = ""
    """The creator to record for each run. Default: `user@machine`."""
    allow_grader_code: bool = False
    """True if Python graders may run on this machine. Only a flag or the environment can set this. A
    project's file or a spec cannot, so that the author of the code can't approve it."""

    own_hosts: frozenset[str] = frozenset()
    """Backends that the user declares as their own machines. Private specs may be sent to these. Only the
    environment can set this, not a project's file, because that file comes with the spec."""
    max_download_bytes: int | None = None
    """Maximum download size of one model, in bytes. See `HostConfig`."""

    def make_home(self) -> Path:
        """Return the home folder, and create it if needed. A new folder is private to its owner, because it
        contains copies of training data and answers. An existing folder keeps its mode, but its subfolders
        with such data are made private, because earlier versions created them with wider permissions."""
        with suppress(OSError):  # whoever needs a file in it will say so
            private_folder(self.home)
        for name in PRIVATE_FOLDERS:
            with suppress(OSError):
                if (folder := self.home / name).is_dir() and not is_private(folder):
                    folder.chmod(0o700)
        return self.home

    def require_to_spend(self, *backends: BillingBackend) -> None:
        """Raise `ProjectNotTrusted` if one of these backends may bill and the project is not trusted.
        Sandboxes and this machine require no trust. Call this before sending anything that may be billed."""
        if any(not (backend.config.sandbox or backend.profile.near) for backend in backends):
            self.require_trusted()

    def require_trusted(self) -> None:
        """Raise `ProjectNotTrusted` if the settings include a project's file that may not decide what is
        spent."""
        path = self.config_file
        if path is not None and not self.config_named:
            from orchestrate.settings import trust

            trust.Project(path, read_toml(path)).require_to_spend(trust.trusted_in(self.pins))

    @property
    def extra_hosts(self) -> list[str]:
        """Names of configured hosts that use another backend's class."""
        return list(self.hosts.types)

    def host(self, name: str) -> HostConfig:
        host = self.hosts.get(name) or HostConfig(name=name)
        options: dict[str, Any] = {"home": str(self.home)}
        if host.kind == this_machine().kind:
            # `allow_grader_code` comes last, so no configuration file can override it.
            options |= {**self.local, **host.options, "allow_grader_code": self.allow_grader_code}
        else:
            options |= host.options
            if host.kind in (*places(), *session_hosts()):
                options |= {"allow_grader_code": self.allow_grader_code}
        own = name in self.own_hosts
        return host.changed(options=options, own=own, max_download_bytes=self.max_download_bytes)

    # -- settings for child processes -----------------------------------------------------------------------

    @property
    def store_address(self) -> str:
        """The store's URL. The path of a file is absolute, so the URL is valid in every folder."""
        file = sqlite_path(self.store_url)
        return self.store_url if file is None else sqlite_url(file.expanduser().resolve())

    @property
    def child_folder(self) -> Path | None:
        """Working folder for child processes, where they find the project's file and check whether it is
        trusted."""
        return None if self.config_file is None or self.config_named else self.config_file.parent

    def child_environment(self) -> dict[str, str]:
        """Return the settings from the command line as environment variables for child processes. Unlike
        arguments, environment variables don't expose passwords."""
        given = {"ORCHESTRATE_HOME": str(self.home), "ORCHESTRATE_STORE": self.store_address}
        if self.config_file is not None and self.config_named:
            given["ORCHESTRATE_CONFIG"] = str(self.config_file.resolve())
        given[NOTIFY_VARIABLES["command"]] = self.notify.command or ""
        given[NOTIFY_VARIABLES["url"]] = self.notify.url.reveal() if self.notify.url else ""
        given[NOTIFY_VARIABLES["desktop"]] = "1" if self.notify.desktop else ""
        if self.stalled_after_s is not None:
            given[STALLED_VARIABLE] = str(self.stalled_after_s / 60)
        return {**os.environ, **given}


def load(
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    config_file: Path | None = None,
    home: Path | None = None,
    store_url: str | None = None,
    made_by: str | None = None,
    allow_grader_code: bool = False,
) -> Settings:
    """Load the settings from all sources. Raises `ConfigError` for an invalid value, naming the file, the
    field and the allowed values, and `ProjectNotTrusted` if a project's file contains settings that require
    trust."""
    env = os.environ if env is None else env
    named = named_file(config_file, env)
    path = named or project_file(cwd)
    values = read_toml(path) if path else {}
    reject_unknown(values, TOP_LEVEL, str(path), "")
    base = path.parent if path else Path.cwd()
    home_dir = (
        home or _given(env.get("ORCHESTRATE_HOME")) or _given(values.get("home"), base) or _default_home()
    )
    home_dir = home_dir.expanduser().resolve()
    store = (
        store_url
        or env.get("ORCHESTRATE_STORE")
        or _store(values.get("store"), base)
        or sqlite_url(home_dir / "runs.sqlite3")
    )
    settings = Settings(
        home=home_dir,
        store_url=str(store),
        budget_usd=_money(env.get("ORCHESTRATE_BUDGET_USD", values.get("budget_usd")), path),
        log_level=_level(env.get("ORCHESTRATE_LOG_LEVEL") or values.get("log_level") or "WARNING"),
        config_file=path,
        config_named=named is not None,
        hosts=HostRegistry(values.get("hosts", {}), env, path),
        pins=pin_file(env),
        local=options(values["local"], this_machine(), path, "local") if "local" in values else {},
        gateway=table(values.get("gateway", {}), path, "gateway"),
        queue=_slots(table(values.get("queue", {}), path, "queue"), path),
        notify=_notify(env),
        stalled_after_s=_stalled(env.get(STALLED_VARIABLE)),
        made_by=made_by or env.get("ORCHESTRATE_BY") or user_and_machine(),
        max_download_bytes=download_limit(env),
        own_hosts=frozenset(name.strip() for name in env.get(OWN_HOSTS, "").split(",") if name.strip()),
        allow_grader_code=allow_grader_code or _yes(env.get("ORCHESTRATE_ALLOW_GRADER_CODE")),
    )
    if path is not None and named is None:
        from orchestrate.settings import trust  # late: most folders have no such file

        trust.Project(path, values).require(trust.trusted_in(settings.pins))
    return settings


def named_file(given: Path | None = None, env: Mapping[str, str] | None = None) -> Path | None:
    """Return the configuration file that the user named, or `None`. Such a file needs no trust."""
    return given or _given((os.environ if env is None else env).get("ORCHESTRATE_CONFIG"))


def project_file(cwd: Path | None = None) -> Path | None:
    """Find the nearest `orchestrate.toml` from this folder upwards."""
    cwd = cwd or Path.cwd()
    return next((p / CONFIG_NAME for p in (cwd, *cwd.parents) if (p / CONFIG_NAME).is_file()), None)


def sqlite_url(path: Path) -> str:
    """Return the store URL for a file. `?` and `%`, which have a special meaning in URLs, are escaped."""
    return f"sqlite:///{quote(str(path))}"


def sqlite_path(url: str) -> Path | None:
    """Return the file path in a SQLite store URL, or `None` for another database. Raises `ConfigError` if the
    URL could mean more than one path."""
    kind, _, place = url.partition("://")
    if kind.partition("+")[0] != "sqlite":
        return None
    if (place and not place.startswith("/")) or "?" in place:
        raise ConfigError(
            "the URL of a file store must be sqlite:/// followed by the path, without host or parameters",
            fix="write a ? in the path as %3F, and a % as %25",
        )
    return Path(unquote(place[1:]))


def _yes(value: str | None) -> bool:
    return (value or "").lower() in ("1", "true", "yes")


def _notify(env: Mapping[str, str]) -> Notify:
    url = env.get(NOTIFY_VARIABLES["url"])
    return Notify(
        command=env.get(NOTIFY_VARIABLES["command"]) or None,
        url=Secret(url) if url else None,
        desktop=_yes(env.get(NOTIFY_VARIABLES["desktop"])),
    )


def _stalled(minutes: str | None) -> float | None:
    if not minutes:
        return None
    try:
        seconds = float(minutes) * 60
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise ConfigError(f"{STALLED_VARIABLE} must be a number of minutes above 0, got {minutes!r}")
    return seconds


def other_secrets() -> tuple[str, ...]:
    """Return the names in the key file that belong to no backend."""
    return (
        NOTIFY_SECRET,
        GATEWAY_SECRET,
        *(f"{one.kind}-webhook" for one in built_in().values() if one.webhook_variable),
    )


# -- reading files -----------------------------------------------------------------------------------------


def _slots(values: Mapping[str, Any], path: Path | None) -> dict[str, int]:
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ConfigError(f"{path}: queue.{name} must be a number of concurrent runs, got {value!r}")
    return dict(values)


def _money(value: Any, path: Path | None) -> Decimal | None:
    try:
        return amount(value, "budget_usd")
    except UsageError as error:
        raise ConfigError(f"{path or 'ORCHESTRATE_BUDGET_USD'}: {error.message}") from error


def _level(value: Any) -> str:
    level = str(value).upper()
    if level not in _LOG_LEVELS:
        raise ConfigError(f"unknown log level {value!r}; allowed: {', '.join(_LOG_LEVELS)}")
    return level


def _store(url: Any, base: Path) -> str | None:
    """Return the store that a configuration file sets. The path of a file is relative to the configuration
    file's folder, so that commands in every folder of a project use one store."""
    file = sqlite_path(str(url)) if url else None
    if file is None or not file.name:
        return str(url) if url else None
    return sqlite_url((base / file.expanduser()).absolute())


def _given(value: Any, base: Path = Path()) -> Path | None:
    return base / str(value) if value else None


def _default_home() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("orchestrate"))
