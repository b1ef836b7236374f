"""Connection settings of each backend, loaded on first use from a file, the environment and the keyring."""

from __future__ import annotations

import hashlib
import hmac
import logging
import secrets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import msgspec

from orchestrate.core.files import locked, write_whole
from orchestrate.errors import ConfigError, KeyElsewhere, MissingKey, OrchestrateError
from orchestrate.profile import (
    AWAY,
    BY_SDK,
    DESCRIBED,
    OPTIONS,
    OWN_DESCRIPTIONS,
    Profile,
    built_in,
    built_in_folders,
    describe_from,
    described,
    places,
    plug_ins,
    profile,
    session_hosts,
)
from orchestrate.settings import Secret, from_keyring, is_sandbox_key, key_file, pin_file, read_keys
from orchestrate.text import meant
from orchestrate.types import decoding

_log = logging.getLogger(__name__)
HOST_FIELDS: Mapping[str, str] = {
    "type": "Backend type. Required for a custom name. Use `openai-compatible` for a host described by a "
    "YAML file.",
    "profile": "Name of the host's YAML file. Default: the host's name.",
    "base_url": "Address of the API. No key is sent to it until you run `orchestrate keys trust`.",
    "key_variable": "Environment variable that holds the key. Default: `NAME_API_KEY`.",
    "account_id": "Account id, for hosts that need one.",
    "organization": "Organization id.",
    "project": "Project id.",
    "timeout_s": "Seconds before a request times out. Default: 60.",
    "options": "Options of this backend, `[hosts.NAME.options]`.",
}
"""The keys of `[hosts.NAME]`, with descriptions."""

_BELOW = dict.fromkeys(OPTIONS | BY_SDK | AWAY, "set it in [hosts.NAME.options]")
_ABOVE = {
    **dict.fromkeys(HOST_FIELDS.keys() - {"options"}, "set it directly in [hosts.NAME]"),
    "wandb_api_key": "keep keys out of files: export WANDB_API_KEY=...",
    "wandb_base_url": "the W&B key is sent to this address, so only the environment may set it: export "
    "WANDB_BASE_URL=...",
    "allow_grader_code": "allow it yourself: --allow-grader-code, or ORCHESTRATE_ALLOW_GRADER_CODE=1",
}


class _KeyField:
    """A field that contains a key or a function that finds it, because the keyring loads slowly and most
    commands send nothing."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, owner: type | None = None) -> Secret | None:
        if instance is None:
            return None  # the field's default
        kept: dict[str, Secret | Callable[[], Secret | None] | None] = vars(instance)
        found = kept[self._name]
        if callable(found):
            found = kept[self._name] = found()
        return found

    def __set__(self, instance: object, value: Secret | Callable[[], Secret | None] | None) -> None:
        vars(instance)[self._name] = value


@dataclass(frozen=True)
class HostConfig:
    """The settings for connecting to one backend."""

    name: str
    type: str | None = None
    """Name of the backend whose class is used, if it differs from this host's name. `openai-compatible` means
    that a YAML file describes the host."""
    profile: str | None = None
    """Name of the YAML file. Default: the host's name."""
    base_url: str | None = None
    api_key: _KeyField = _KeyField()
    key_variable: str | None = None
    account_id: str | None = None
    organization: str | None = None
    project: str | None = None
    timeout_s: float = 60.0
    options: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Options of this backend. `Settings.host` always adds the option `home`, the folder for data files and
    runs."""
    pins: Path | None = None
    """File that lists the hosts to which each key may be sent. `None` allows all hosts."""
    max_download_bytes: int | None = None
    """Download limit for one model, in bytes. `None` means the expected size of its base model. Only the
    environment can set this."""
    url_from_file: bool = False
    """True if the base URL comes from an `orchestrate.toml`, which may be someone else's file."""
    own: bool = False
    """True if the user declared the backend's machines as their own. Only the environment can set this."""
    management_token: Secret | None = None
    """Token for the deployment API, if that needs its own. Only the environment can set this."""
    management_url: str | None = None
    """Address of the deployment API, overriding the one in the host's profile. Only the environment can set
    this."""

    def changed(self, **changes: Any) -> Self:
        """Return a modified copy. Unlike `dataclasses.replace`, it doesn't look up the key."""
        return replace(self, **{"api_key": vars(self)["api_key"], **changes})

    @property
    def kind(self) -> str:
        if self.type == DESCRIBED:
            return self.profile or self.name
        return self.type or self.name

    @property
    def near(self) -> bool:
        """True if the host's address is on this machine."""
        return self.base_url is not None and is_loopback(urlsplit(self.base_url).hostname or "")

    @property
    def sandbox(self) -> bool:
        """True if the host is a sandbox: its address is on this machine, and its key is a sandbox key. Both
        are required, because requests with a sandbox key to another address might still be billed. The
        keyring is not checked, because it contains no sandbox keys."""
        known = vars(self)["api_key"]
        return self.near and isinstance(known, Secret) and is_sandbox_key(known.reveal())

    def require_key(self) -> Secret:
        """Return the key, which must only be sent to `base_url`. Raises `MissingKey` with the variable to
        set, and `KeyElsewhere` if the key is tied to another host."""
        if self.api_key is None:
            raise MissingKey(self.name, self.key_variable or f"{self.name.upper()}_API_KEY")
        if self.pins is not None and self.base_url is not None and not self.sandbox:
            key, loopback = self.api_key.reveal(), is_loopback(urlsplit(self.base_url).hostname or "")
            # A project's file sets both the address and the name of the variable whose value is sent to it.
            ask = self.url_from_file and not loopback
            family = mine.origins if (mine := known_profile(self.kind)) else frozenset[str]()
            if Pins(self.pins).require(key, self.name, self.base_url, ask=ask, family=family):
                _log.info(
                    "first use of API key %s (%s). From now on, the key is only sent to %s",
                    self.api_key,
                    self.name,
                    self.base_url,
                )
        return self.api_key


class HostRegistry(Mapping[str, HostConfig]):
    """Connection settings of all backends, keyed by name. A backend's profile is loaded on first access, and
    the keyring is only read when its key is needed. Values from a project's file are validated
    immediately."""

    def __init__(self, configured: Any, env: Mapping[str, str], path: Path | None) -> None:
        """Build the registry. Raises `ConfigError` that names file, field and allowed values."""
        self._tables = {
            name: table(value, path, f"hosts.{name}")
            for name, value in table(configured, path, "hosts").items()
        }
        self._configured, self._env, self._path = configured, dict(env), path
        describe_from(key_file(env).with_name(OWN_DESCRIPTIONS))
        self._stored = read_keys(key_file(env))
        self._found: dict[str, HostConfig] = {}
        given = [name for name in built_in_folders() if f"{_variable_prefix(name)}_BASE_URL" in env]
        for name in (*self._tables, *given):
            self._described(name)

    def under(self, env: Mapping[str, str]) -> HostRegistry:
        """Return a registry of the same backends, configured as if these environment variables were also
        set."""
        return HostRegistry(self._configured, {**self._env, **env}, self._path)

    @property
    def sandboxed(self) -> bool:
        """True if the environment contains sandbox keys. Commands then use the sandbox's runs."""
        exported = any(map(is_sandbox_key, self._env.values()))
        return exported and any(
            (host := self[name]).sandbox and host.key_variable in self._env
            for name in (*self, *session_hosts())
        )

    @property
    def types(self) -> dict[str, str]:
        """Configured hosts whose implementation has a different name, as {host: name of the backend or YAML
        file that implements it}."""
        types = {name: table.get("type") for name, table in self._tables.items()}
        kinds = {
            name: self._tables[name].get("profile") or name for name in types if types[name] == DESCRIBED
        }
        return {name: kinds.get(name, type) for name, type in types.items() if type not in (None, name)}

    @property
    def described(self) -> list[str]:
        """Hosts that a YAML file defines and that are usable without a table in the configuration.

        A host is usable if the environment sets its base URL. If its YAML file contains an address, a key is
        sufficient.
        """
        return [name for name in described() if name not in self._tables and self._in_use(name)]

    def _in_use(self, name: str) -> bool:
        if f"{_variable_prefix(name)}_BASE_URL" in self._env:
            return True
        if name not in self._stored and f"{_variable_prefix(name)}_API_KEY" not in self._env:
            return False
        known = known_profile(name)
        return known is None or known.url is not None

    @property
    def placed(self) -> list[str]:
        """Names of the remote machines and clusters that have a table in the configuration."""
        return [name for name in places() if name in self._tables]

    def address(self, name: str) -> str | None:
        """Return a host's base URL, without reading its key."""
        return self._described(name).base_url

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*built_in(), *self._tables, *self.described, *plug_ins()]))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        known = name in self._tables or name in built_in_folders() or name in plug_ins()
        return known or name in described() or name in places() or name in session_hosts()

    def __getitem__(self, name: str) -> HostConfig:
        if name not in self._found:
            if name not in self:
                raise KeyError(name)
            self._found[name] = self._with_key(self._described(name))
        return self._found[name]

    def _described(self, name: str) -> HostConfig:
        """Return a host's settings without its key."""
        own, env, path = self._tables.get(name, {}), self._env, self._path
        reject_unknown(own, HOST_FIELDS, str(path), f"hosts.{name}.", _BELOW)
        known = known_profile(self.types.get(name) or own.get("type") or name)
        if own.get("profile") is not None and own.get("type") != DESCRIBED:
            raise ConfigError(f'{path}: hosts.{name}.profile requires  type = "{DESCRIBED}"')
        # Another instance of a host is a different server: the same API, but its own address and keys.
        mine = known if known is not None and known.kind == name else None
        given = None if known is not None and known.keyless else env.get(f"{_variable_prefix(name)}_BASE_URL")
        url = given or own.get("base_url") or (mine and mine.url)
        if url is not None:
            require_safe_url(url, name)
        wandb: dict[str, Any] = {"wandb_api_key": Secret(key)} if (key := env.get("WANDB_API_KEY")) else {}
        wandb |= {"wandb_base_url": url_of} if (url_of := env.get("WANDB_BASE_URL")) else {}
        return HostConfig(
            name=name,
            type=own.get("type"),
            profile=own.get("profile"),
            base_url=url.rstrip("/") if url else None,
            key_variable=own.get("key_variable")
            or (mine and mine.key_variable)
            or f"{_variable_prefix(name)}_API_KEY",
            account_id=env.get((mine and mine.account_variable) or "") or own.get("account_id"),
            organization=own.get("organization") or env.get((mine and mine.organization_variable) or ""),
            project=own.get("project") or env.get((mine and mine.project_variable) or ""),
            timeout_s=seconds(own.get("timeout_s", 60.0), path, f"hosts.{name}.timeout_s"),
            options={**wandb, **options(own.get("options", {}), known, path, f"hosts.{name}.options")},
            pins=pin_file(env),
            url_from_file=not given and url != (mine and mine.url),
            **self._management(name, known),
        )

    def _management(self, name: str, known: Profile | None) -> dict[str, Any]:
        """Return the key and the address of the deployment API. They never come from a file, because it may
        be someone else's."""
        if known is None or not known.management_login:
            return {}
        token, url = (
            self._env.get(f"{_variable_prefix(name)}_MANAGEMENT_{word}") for word in ("TOKEN", "URL")
        )
        if url is not None:
            require_safe_url(url, name)
        return {"management_token": Secret(token) if token else None, "management_url": url}

    def _with_key(self, host: HostConfig) -> HostConfig:
        """Add the key to a host's settings. The keyring is not queried for a backend that needs no key, or
        whose profile is unknown."""
        known = known_profile(host.kind)
        if known is not None and known.keyless:
            return host
        key = self._env.get(host.key_variable or "") or self._stored.get(host.name)
        if key or known is None:
            return replace(host, api_key=Secret(key) if key else None)
        return replace(host, api_key=partial(_in_keyring, host.name))


def _in_keyring(name: str) -> Secret | None:
    key = from_keyring(name)
    return Secret(key) if key and not is_sandbox_key(key) else None


def known_profile(kind: str) -> Profile | None:
    """Return the profile of a kind of host, or `None` if the kind is unknown or its profile is broken. Errors
    in a profile are reported when it is used."""
    with suppress(OrchestrateError):
        return profile(kind)
    return None


def _variable_prefix(name: str) -> str:
    """Return the prefix of a host's environment variables."""
    return name.upper().replace("-", "_")


def require_safe_url(url: str, name: str) -> None:
    """Raise `ConfigError` unless the URL uses https, or http on this machine, and contains no secret."""
    try:
        parts = urlsplit(url)
        bare = parts.username is None and not parts.query and not parts.fragment and parts.port != 0
    except ValueError as error:
        raise ConfigError(f"the base URL of {name}, {url}, is not a valid URL: {error}") from error
    if not bare or not parts.hostname:
        raise ConfigError(
            f"the base URL of {name} must consist of scheme, host and path, without user, password or query",
            fix="put keys into the environment, or run: orchestrate keys set NAME",
        )
    if parts.scheme == "https" or (parts.scheme == "http" and is_loopback(parts.hostname or "")):
        return
    raise ConfigError(
        f"the base URL of {name}, {url}, would send the API key unencrypted",
        fix="use https, or a loopback address (127.0.0.1, localhost) for a server on this machine",
    )


def is_loopback(hostname: str) -> bool:
    if hostname == "localhost":
        return True
    try:
        return ip_address(hostname).is_loopback
    except ValueError:
        return False


def reject_unknown(
    values: Mapping[str, Any],
    allowed: Iterable[str],
    path: str,
    prefix: str,
    elsewhere: Mapping[str, str] | None = None,
) -> None:
    """Raise `ConfigError` if `values` has an unknown field. `elsewhere` is {field: hint} for fields that
    belong somewhere else, and the hint tells the user where."""
    names = sorted(allowed)
    if unknown := sorted(set(values).difference(names)):
        wrong = unknown[0]
        raise ConfigError(
            f"{path}: unknown field {prefix}{wrong}{meant(wrong, names)}; allowed: {', '.join(names)}",
            fix=(elsewhere or {}).get(wrong),
        )


def options(values: Any, known: Profile | None, path: Path | None, name: str) -> dict[str, Any]:
    """Return the options table of a host. Raises `ConfigError` for an option that the backend does not
    declare. Backends without a declaration accept any option."""
    given = table(values, path, name)
    if known is not None and known.options is not None:
        reject_unknown(given, OPTIONS | known.options, str(path), f"{name}.", _ABOVE)
    return given


def table(value: Any, path: Path | None, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ConfigError(f"{path}: {name} must be a table")
    return value  # pyright: ignore[reportUnknownVariableType]  # TOML tables have string keys


def seconds(value: Any, path: Path | None, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(f"{path}: {name} must be a number of seconds above 0, got {value!r}")
    return float(value)


# The hosts that each API key may be sent to: a key is tied to the host where it was first used.


class _PinFile(msgspec.Struct):
    salt: str
    pins: dict[str, list[str]] = {}
    """Hosts that each key may be sent to, keyed by the key's fingerprint."""


class Pins:
    """File that lists the hosts to which each key may be sent. Several processes can use it at the same time.
    If the file is deleted, the list is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def hosts(self, key: str) -> tuple[str, ...]:
        """Return the hosts to which the key may be sent. Empty for a key that has not been used yet."""
        kept = self._read()
        return tuple(kept.pins.get(_fingerprint(kept, key), ())) if kept else ()

    def require(
        self, key: str, provider: str, url: str, *, ask: bool = False, family: Set[str] = frozenset()
    ) -> bool:
        """Require that the key may be sent to the URL's host, and return whether this is the key's first use.

        The first use ties the key to that host. With `ask`, a first use is rejected instead, because the URL
        comes from a project's file. Hosts in `family` have the same owner and may share a key. Raises
        `KeyElsewhere` if the key is rejected.
        """
        host, known = origin(url), self.hosts(key)
        if not known and not ask:
            known = self._tie(key, host)
            if not known:
                return True
        if host not in known and not (host in family and family & {*known}):
            raise KeyElsewhere(provider, host, known)
        return False

    def allow(self, key: str, url: str) -> None:
        """Allow the key to be sent to the URL's host. Raises `OSError` if the file cannot be written."""
        with self._locked():
            kept = self._read() or _PinFile(salt=secrets.token_hex(32))
            mark = _fingerprint(kept, key)
            kept.pins[mark] = sorted({*kept.pins.get(mark, ()), origin(url)})
            self._write(kept)

    def _tie(self, key: str, host: str) -> tuple[str, ...]:
        """Tie a key to its first host, and return the key's hosts if another process was faster. If nothing
        can be written, as in a read-only container, every use counts as the first."""
        try:
            with self._locked():
                kept = self._read() or _PinFile(salt=secrets.token_hex(32))
                mark = _fingerprint(kept, key)
                if known := kept.pins.get(mark):
                    return tuple(known)
                kept.pins[mark] = [host]
                self._write(kept)
        except OSError:
            pass
        return ()

    def _read(self) -> _PinFile | None:
        try:
            kept = decoding.decode(self.path.read_bytes(), type=_PinFile)
            bytes.fromhex(kept.salt)
            return kept
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:  # msgspec's errors are ValueErrors
            raise ConfigError(
                f"could not read {self.path}, the file that ties keys to hosts: {error}",
                fix=f"rm {self.path}   (the next use of each key ties it to its host again)",
            ) from error

    def _write(self, kept: _PinFile) -> None:
        write_whole(self.path, msgspec.json.format(msgspec.json.encode(kept)), private=True)

    @contextmanager
    def _locked(self) -> Generator[None]:
        self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with locked(self.path.with_suffix(".lock"), wait_s=None):
            yield


def origin(url: str) -> str:
    """Return the scheme, host and port of a URL, such as `https://api.openai.com`."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port not in (None, 443 if parts.scheme == "https" else 80) else ""
    name = parts.hostname or ""
    return f"{parts.scheme}://{f'[{name}]' if ':' in name else name}{port}"


def _fingerprint(kept: _PinFile, key: str) -> str:
    return hmac.new(bytes.fromhex(kept.salt), key.encode(), hashlib.sha256).hexdigest()[:32]
