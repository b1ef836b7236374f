"""Backends: those that need a key, those that other packages add, and those that a file describes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrate.errors import SetupError
from orchestrate.profile import OPTIONS, described, place_plug_ins, places, plug_ins, profile
from orchestrate.profile import template as template
from orchestrate.providers import registry
from orchestrate.providers.registry import chosen as chosen
from orchestrate.providers.registry import with_keys as with_keys
from orchestrate.settings.hosts import known_profile
from orchestrate.types import Record

if TYPE_CHECKING:
    from orchestrate.settings.config import Settings


class Plugin(Record, frozen=True, kw_only=True):
    """A backend of another package."""

    kind: str
    package: str | None
    version: str | None
    profile: str
    """Where its profile lies, as `package.module:NAME`."""
    options: tuple[str, ...] | None
    """What `[hosts.NAME.options]` may say; `None`: the package does not name them, and anything is taken."""
    error: str | None
    """Why it cannot be used; `None`: it can."""


def described_only(settings: Settings) -> list[str]:
    """Hosts that a YAML file describes and that nothing here uses yet."""
    return [name for name in described() if name not in registry.names(settings)]


def places_only(settings: Settings) -> list[str]:
    """The same of places, those that cannot be loaded left out."""
    there = registry.names(settings)
    return [name for name in places() if name not in there and known_profile(name) is not None]


def plugins() -> list[Plugin]:
    """Each is loaded, so that a broken one is known."""
    found: list[Plugin] = []
    for kind, point in {**place_plug_ins(), **plug_ins()}.items():
        error, options = None, None
        try:
            registry.provider_class(kind)
            options = profile(kind).options
        except SetupError as broken:
            error = broken.message
        package, version = (point.dist.name, point.dist.version) if point.dist else (None, None)
        found.append(
            Plugin(
                kind=kind,
                package=package,
                version=version,
                profile=point.value,
                options=None if options is None else tuple(sorted(OPTIONS | options)),
                error=error,
            )
        )
    return found
