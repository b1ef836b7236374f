"""Backends: built in, added by other packages, or described in a file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, cast

from orchestrate import catalog
from orchestrate.catalog import CatalogChange as CatalogChange
from orchestrate.catalog import HostModel as HostModel
from orchestrate.catalog import Model as Model
from orchestrate.catalog import find as find
from orchestrate.catalog import search as search
from orchestrate.catalog import shutdown_warning as shutdown_warning
from orchestrate.errors import MissingExtra, OrchestrateError, SetupError, UsageError
from orchestrate.profile import OPTIONS, described, place_plug_ins, places, plug_ins, profile
from orchestrate.profile import template as template
from orchestrate.providers import registry
from orchestrate.providers.base import ListsModels, Provider, capability
from orchestrate.providers.registry import chosen as chosen
from orchestrate.providers.registry import with_keys as with_keys
from orchestrate.settings.hosts import known_profile
from orchestrate.types import Record

if TYPE_CHECKING:
    from orchestrate.settings.config import Settings
    from orchestrate.workspace import Backends, Workspace


@dataclass(frozen=True)
class BackendReadiness:
    """A backend, and what this machine still needs before it can use the backend."""

    name: str
    title: str
    provider: Provider | None
    """The backend, or `None` if it cannot be created with the current setup."""
    needs: str | None
    """Missing requirements and how to provide them, or `None` if there are none. Checked without contacting
    the host."""


def all_names(settings: Settings) -> list[str]:
    """List all names that `-p` accepts."""
    return registry.known(settings)


def readiness(ft: Workspace, name: str) -> BackendReadiness:
    """Check whether a backend is ready on this machine. Contacts no host."""
    made: Provider | None = None
    kind = ft.settings.hosts.types.get(name, name)
    title = name if (found := known_profile(kind)) is None else found.title
    try:
        made = ft.provider(name)
        ft.ready(name)
        if made.profile.place:
            cast("Any", made).place.require()
        elif made.profile.near and find_spec("torch") is None:
            raise MissingExtra("local", "training on this machine", "torch")
    except (SetupError, UsageError) as error:
        fix = f": {error.fix}" if error.fix else ""
        return BackendReadiness(name, title, made, f"{error.message}{fix}")
    return BackendReadiness(name, made.profile.title, made, None)


class Plugin(Record, frozen=True, kw_only=True):
    """A backend from another package."""

    kind: str
    package: str | None
    version: str | None
    profile: str
    """Location of the backend's profile, as `package.module:NAME`."""
    options: tuple[str, ...] | None
    """Allowed keys of `[hosts.NAME.options]`. `None` if the package does not declare them and accepts any
    key."""
    error: str | None
    """Why the backend cannot be used, or `None` if it can."""


def described_only(settings: Settings) -> list[str]:
    """List hosts that are described by a YAML file but not configured yet."""
    return [name for name in described() if name not in registry.names(settings)]


def places_only(settings: Settings) -> list[str]:
    """List the remote machines and clusters that could be used as backends but are not configured yet."""
    there = registry.names(settings)
    return [name for name in places() if name not in there and known_profile(name) is not None]


def plugins() -> list[Plugin]:
    """List the installed plug-ins. Each plug-in is loaded. If loading fails, `error` contains the reason."""
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


# Differences between the catalog's base models and what the hosts report now.


class ModelChanges(Record, frozen=True, kw_only=True):
    """The differences between the hosts' models and the catalog."""

    changes: tuple[CatalogChange, ...]
    skipped: dict[str, str]
    """Backends that could not be queried, as {backend: reason}."""


def changes(ft: Workspace, provider: Backends = "all") -> ModelChanges:
    """Compare the catalog with the models that the hosts currently offer for fine-tuning, and return the
    differences. Queries every selected host that is in the catalog."""
    found: list[CatalogChange] = []
    skipped: dict[str, str] = {}
    for name in ft.backends(provider):
        if name not in catalog.known_hosts():
            continue
        try:
            found += catalog.differences(name, capability(ft.provider(name), ListsModels).base_models())
        except OrchestrateError as error:
            skipped[name] = error.message
    return ModelChanges(changes=tuple(found), skipped=skipped)
