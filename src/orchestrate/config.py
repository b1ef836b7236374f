"""Settings; with `orchestrate.keys` the only reader of the environment.

Order, later wins: defaults, `orchestrate.toml` (nearest one from the working folder upwards), environment,
flags. Keys come from the environment, then from the 0600 file that `orchestrate keys set` writes, then from
the system keyring when the package `keyring` is installed; never from `orchestrate.toml`, which is committed.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from orchestrate.errors import ConfigError, MissingKey, OrchestrateError
from orchestrate.files import is_private, private_folder
from orchestrate.keys import SANDBOX_KEY_PREFIX as SANDBOX_KEY_PREFIX
from orchestrate.keys import Secret as Secret
from orchestrate.keys import from_keyring, key_file, pin_file, read_keys, read_toml, user_and_machine
from orchestrate.keys import secret as secret
from orchestrate.keys import write_key as write_key
from orchestrate.profile import Profile, built_in, plug_ins, profile, this_machine

CONFIG_NAME = "orchestrate.toml"
NOTIFY_SECRET = "notify-webhook"  # noqa: S105  the name of one
"""Its name in the key file."""
NOTIFY_VARIABLES = {
    "command": "ORCHESTRATE_NOTIFY_COMMAND",
    "url": "ORCHESTRATE_NOTIFY_URL",
    "desktop": "ORCHESTRATE_NOTIFY_DESKTOP",
}
PRIVATE_FOLDERS = ("counts", "data", "evaluations", "local", "models", "sandbox", "watchers")
"""Of the home folder."""
_log = logging.getLogger(__name__)
_LOG_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")
_TOP_LEVEL = {"home", "store", "budget_usd", "log_level", "hosts", "local", "defaults"}
_HOST_FIELDS = {
    "type",
    "base_url",
    "key_variable",
    "account_id",
    "organization",
    "project",
    "timeout_s",
    "options",
}


@dataclass(frozen=True)
class HostConfig:
    """How to reach one backend."""

    name: str
    type: str | None = None
    """The class to use, when it is not the name itself: an OpenAI-compatible host has `openai`."""
    base_url: str | None = None
    api_key: Secret | None = None
    key_variable: str | None = None
    account_id: str | None = None
    organization: str | None = None
    project: str | None = None
    timeout_s: float = 60.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What only this backend understands. `home` is always there in a host of `Settings`: the folder for
    data files and runs."""
    pins: Path | None = None
    """The file that ties keys to hosts; `None` ties nothing."""
    max_download_bytes: int | None = None
    """Of one model; `None` is what its base model is expected to take. From the environment only."""
    url_from_file: bool = False
    """The base URL is one of an `orchestrate.toml`, which may be another's."""

    @property
    def kind(self) -> str:
        return self.type or self.name

    @property
    def sandbox(self) -> bool:
        return self.api_key is not None and self.api_key.reveal().startswith(SANDBOX_KEY_PREFIX)

    def require_key(self) -> Secret:
        """The key, to be sent to `base_url` and nowhere else. Raises `MissingKey` with the variable to set,
        `KeyElsewhere` when it is tied to another host."""
        if self.api_key is None:
            raise MissingKey(self.name, self.key_variable or f"{self.name.upper()}_API_KEY")
        if self.pins is not None and self.base_url is not None and not self.sandbox:
            from orchestrate.pins import Pins  # late: most commands send nothing

            key, loopback = self.api_key.reveal(), is_loopback(urlsplit(self.base_url).hostname or "")
            # A project's file chooses both, the address and the variable whose value is sent there.
            ask = self.url_from_file and not loopback
            family = mine.origins if (mine := _known(self.kind)) else frozenset[str]()
            if Pins(self.pins).require(key, self.name, self.base_url, ask=ask, family=family):
                _log.warning(
                    "first use of the API key %s of %s: it goes to %s, and to no other host from now on",
                    self.api_key,
                    self.name,
                    self.base_url,
                )
        return self.api_key


@dataclass(frozen=True)
class Notify:
    """Where the end of each run is told. From the environment and from flags, never from a project's file,
    which could run a command that the user has not seen."""

    command: str | None = None
    url: Secret | None = None
    """A secret, since many hosts of webhooks put their token into the address."""
    desktop: bool = False


@dataclass(frozen=True)
class Settings:
    """Everything that is configured, resolved once. Build with `load`."""

    home: Path
    """Where the store, local runs, written data files and downloads live."""
    store_url: str
    budget_usd: Decimal | None = None
    """Over all backends and runs of this store."""
    log_level: str = "WARNING"
    config_file: Path | None = None
    config_named: bool = False
    """By the user, not found beside the work."""
    hosts: Mapping[str, HostConfig] = field(default_factory=dict[str, HostConfig])
    local: Mapping[str, Any] = field(default_factory=dict[str, Any])
    notify: Notify = field(default_factory=Notify)
    made_by: str = ""
    """Kept with each run: who made it, as `user@machine` unless it is given."""
    allow_grader_code: bool = False
    """Whether graders that are Python code may run on this machine. From a flag or the environment, never
    from a project's file or a spec: whoever brings the code must not be who allows it."""

    max_download_bytes: int | None = None
    """See `HostConfig`."""

    def make_home(self) -> Path:
        """The home folder, made for its owner alone when it is new: copies of training data and what was
        answered lie in it. The mode of one that is there is its owner's choice; the folders in it that hold
        these are closed to others, also those that an earlier version made."""
        with suppress(OSError):  # whoever needs a file in it will say so
            private_folder(self.home)
        for name in PRIVATE_FOLDERS:
            with suppress(OSError):
                if (folder := self.home / name).is_dir() and not is_private(folder):
                    folder.chmod(0o700)
        return self.home

    @property
    def extra_hosts(self) -> list[str]:
        """Names of configured hosts that are instances of another backend's class."""
        return [name for name, host in self.hosts.items() if host.type not in (None, name)]

    def host(self, name: str) -> HostConfig:
        host = self.hosts.get(name) or HostConfig(name=name)
        options: dict[str, Any] = {"home": str(self.home)}
        if host.kind == this_machine().kind:
            # Last, so that no file says it.
            options |= {**self.local, **host.options, "allow_grader_code": self.allow_grader_code}
        else:
            options |= host.options
        return replace(host, options=options, max_download_bytes=self.max_download_bytes)


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
    """Reads all sources. Raises `ConfigError` that names file, field and what is allowed."""
    env = os.environ if env is None else env
    named = config_file or _given(env.get("ORCHESTRATE_CONFIG"))
    path = named or _nearest(cwd or Path.cwd())
    values = read_toml(path) if path else {}
    _reject_unknown(values, _TOP_LEVEL, str(path), "")
    base = path.parent if path else Path.cwd()
    home_dir = (
        home or _given(env.get("ORCHESTRATE_HOME")) or _given(values.get("home"), base) or _default_home()
    )
    home_dir = home_dir.expanduser().resolve()
    store = (
        store_url
        or env.get("ORCHESTRATE_STORE")
        or values.get("store")
        or sqlite_url(home_dir / "runs.sqlite3")
    )
    return Settings(
        home=home_dir,
        store_url=str(store),
        budget_usd=_money(env.get("ORCHESTRATE_BUDGET_USD", values.get("budget_usd")), path),
        log_level=_level(env.get("ORCHESTRATE_LOG_LEVEL") or values.get("log_level") or "WARNING"),
        config_file=path,
        config_named=named is not None,
        hosts=_hosts(values.get("hosts", {}), env, path),
        local=_table(values.get("local", {}), path, "local"),
        notify=_notify(env),
        made_by=made_by or env.get("ORCHESTRATE_BY") or user_and_machine(),
        max_download_bytes=_gigabytes(env.get("ORCHESTRATE_MAX_DOWNLOAD_GB")),
        allow_grader_code=allow_grader_code or _yes(env.get("ORCHESTRATE_ALLOW_GRADER_CODE")),
    )


def sqlite_url(path: Path) -> str:
    """The store's URL of a file; a path may hold `?` and `%`, which mean something else in a URL."""
    return f"sqlite:///{quote(str(path))}"


def sqlite_path(url: str) -> Path | None:
    """The file of a store's URL, `None` when it is no SQLite. Raises `ConfigError` for what would put the
    store somewhere else than it says."""
    kind, _, place = url.partition("://")
    if kind.partition("+")[0] != "sqlite":
        return None
    if (place and not place.startswith("/")) or "?" in place:
        raise ConfigError(
            "a run store in a file is sqlite:/// and the path, without a host and parameters",
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


def _hosts(configured: Any, env: Mapping[str, str], path: Path | None) -> dict[str, HostConfig]:
    tables = _table(configured, path, "hosts")
    stored = read_keys(key_file(env))
    names = dict.fromkeys([*built_in(), *tables, *plug_ins()])
    return {
        name: _host(name, _table(tables.get(name, {}), path, f"hosts.{name}"), env, stored, path)
        for name in names
    }


def _host(
    name: str, table: dict[str, Any], env: Mapping[str, str], stored: Mapping[str, str], path: Path | None
) -> HostConfig:
    _reject_unknown(table, _HOST_FIELDS, str(path), f"hosts.{name}.")
    known = _known(table.get("type") or name)
    # A further instance is another's server: it shares what the host understands, not its address and keys.
    mine = known if known is not None and known.kind == name else None
    variable = table.get("key_variable") or (mine and mine.key_variable) or f"{_word(name)}_API_KEY"
    keyless = known is not None and known.keyless
    given = None if keyless else env.get(f"{_word(name)}_BASE_URL")
    own = mine and mine.url
    url = given or table.get("base_url") or own
    if url is not None:
        require_safe_url(url, name)
    wandb = {"wandb_api_key": Secret(env["WANDB_API_KEY"])} if env.get("WANDB_API_KEY") else {}
    key = None if keyless else (env.get(variable) or stored.get(name) or from_keyring(name))
    return HostConfig(
        name=name,
        type=table.get("type"),
        base_url=url.rstrip("/") if url else None,
        api_key=Secret(key) if key else None,
        key_variable=variable,
        account_id=env.get((mine and mine.account_variable) or "") or table.get("account_id"),
        organization=table.get("organization") or env.get((mine and mine.organization_variable) or ""),
        project=table.get("project") or env.get((mine and mine.project_variable) or ""),
        timeout_s=_seconds(table.get("timeout_s", 60.0), path, f"hosts.{name}.timeout_s"),
        options={**wandb, **_table(table.get("options", {}), path, f"hosts.{name}.options")},
        pins=pin_file(env),
        url_from_file=not given and url != own,
    )


def _known(kind: str) -> Profile | None:
    """`None` for a kind that there is not, or that is broken: it says so when it is used."""
    with suppress(OrchestrateError):
        return profile(kind)
    return None


def other_secrets() -> tuple[str, ...]:
    """Names in the key file that are no backend's."""
    return NOTIFY_SECRET, *(f"{one.kind}-webhook" for one in built_in().values() if one.webhook_variable)


def _word(name: str) -> str:
    """A host's name as its variables begin."""
    return name.upper().replace("-", "_")


def require_safe_url(url: str, name: str) -> None:
    """Raises `ConfigError` unless it is https, or http on this machine, and holds nothing secret."""
    try:
        parts = urlsplit(url)
        bare = parts.username is None and not parts.query and not parts.fragment and parts.port != 0
    except ValueError as error:
        raise ConfigError(f"the base URL of {name}, {url}, is no URL: {error}") from error
    if not bare or not parts.hostname:
        raise ConfigError(
            f"the base URL of {name} must be scheme, host and path alone, without a user, password or query",
            fix="keys belong into the environment, or: orchestrate keys set NAME",
        )
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return
    raise ConfigError(
        f"the base URL of {name}, {url}, would carry the API key unencrypted",
        fix="use https, or a loopback address (127.0.0.1, localhost) for a server on this machine",
    )


def is_loopback(hostname: str) -> bool:
    if hostname == "localhost":
        return True
    try:
        return ip_address(hostname).is_loopback
    except ValueError:
        return False


# -- reading files -----------------------------------------------------------------------------------------


def _nearest(folder: Path) -> Path | None:
    return next((p / CONFIG_NAME for p in (folder, *folder.parents) if (p / CONFIG_NAME).is_file()), None)


def _reject_unknown(values: Mapping[str, Any], allowed: set[str], path: str, prefix: str) -> None:
    if unknown := sorted(set(values) - allowed):
        raise ConfigError(
            f"{path}: unknown field {prefix}{unknown[0]}; allowed: {', '.join(sorted(allowed))}"
        )


def _table(value: Any, path: Path | None, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name} must be a table")
    return value  # pyright: ignore[reportUnknownVariableType]  # TOML tables have string keys


def _money(value: Any, path: Path | None) -> Decimal | None:
    if value is None:
        return None
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("nan")
    if not amount.is_finite() or amount < 0:
        raise ConfigError(
            f"{path or 'ORCHESTRATE_BUDGET_USD'}: budget_usd must be a number of US dollars, got {value!r}"
        )
    return amount


def _gigabytes(value: str | None) -> int | None:
    """In bytes. `float` reads more than digits, and what is no number of them is refused."""
    try:
        size = float(value) if value else None
    except ValueError:
        size = -1.0
    if size is not None and not 0 < size < float("inf"):
        raise ConfigError(f"ORCHESTRATE_MAX_DOWNLOAD_GB must be a number of gigabytes, got {value!r}")
    return None if size is None else int(size * 10**9)


def _level(value: Any) -> str:
    level = str(value).upper()
    if level not in _LOG_LEVELS:
        raise ConfigError(f"no log level is called {value!r}; allowed: {', '.join(_LOG_LEVELS)}")
    return level


def _seconds(value: Any, path: Path | None, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{path}: {name} must be a number of seconds above 0, got {value!r}")
    return float(value)


def _given(value: Any, base: Path = Path()) -> Path | None:
    return base / str(value) if value else None


def _default_home() -> Path:
    import platformdirs

    return Path(platformdirs.user_data_dir("orchestrate"))
