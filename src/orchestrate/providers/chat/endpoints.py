"""Models that answer somewhere, by what a user writes: `MODEL`, `HOST=MODEL` or `https://ADDRESS=MODEL`."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from orchestrate.errors import ConfigError, MissingKey, UsageError
from orchestrate.profile import built_in, this_machine
from orchestrate.settings import config

if TYPE_CHECKING:
    from orchestrate.settings.config import HostConfig, Settings


@dataclass(frozen=True)
class ModelAt:
    """A model and where it is asked."""

    model: str
    host: HostConfig

    @property
    def address(self) -> str:
        return self.host.base_url or self.host.name


def model_at(settings: Settings, written: str, key_variable: str | None = None) -> ModelAt:
    """Without a host the first built-in one. `key_variable` has the key for an address. Raises as
    `configured` and `addressed` do, and `UsageError` for a model without a host that is elsewhere."""
    if written.startswith(("http://", "https://")):
        address, equals, model = written.partition("=")
        if not equals or not model:
            raise UsageError(f"{written} names no model", fix="https://ADDRESS/v1=MODEL")
        return ModelAt(model, addressed(address, key_variable))
    name, equals, model = written.partition("=")
    if equals:
        return ModelAt(model, configured(settings, name))
    host = configured(settings, next(iter(built_in())))
    _require_there(host, written)
    return ModelAt(written, host)


def _require_there(host: HostConfig, name: str) -> None:
    """Whoever names a model of this machine or of another host is not to be asked for the key of this one.
    A server of one's own at this host's address may have any model."""
    from orchestrate.catalog import lookup

    known, here = lookup(name), this_machine().kind
    elsewhere = Path(name).is_dir() if known is None else known.on(host.name) is None
    if not elsewhere or (host.base_url != built_in()[host.name].url and not host.sandbox):
        return
    ids = (
        {here: name} if known is None else {one: name if one == here else id for one, id in known.ids.items()}
    )
    raise UsageError(
        f"{name} is no model of {host.name}, which is asked where no host is named",
        fix="name the host: " + " or ".join(f"{one}={id}" for one, id in sorted(ids.items())),
    )


def configured(settings: Settings, name: str) -> HostConfig:
    """A host of the configuration. Raises `UsageError` for an unknown one."""
    host = settings.host(name)
    if host.base_url is None:
        raise UsageError(f"no host {name!r} is configured", fix="orchestrate providers, or an https address")
    return host


def addressed(address: str, key_variable: str | None = None) -> HostConfig:
    """Any OpenAI-compatible API, with the key of `key_variable` or with none: an address never gets the key
    of another host. Raises `UsageError`, `MissingKey`, `ConfigError`."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"{address} is not an http or https address")
    key = config.Secret("none")
    if key_variable is not None:
        found = config.secret(url.hostname, key_variable)
        if found is None:
            raise MissingKey(url.hostname, key_variable)
        if url.scheme == "http" and not config.is_loopback(url.hostname):
            raise ConfigError(f"{address} would carry the key unencrypted", fix="use https")
        key = found
    return replace(config.HostConfig(name=url.hostname), base_url=address.rstrip("/"), api_key=key)
