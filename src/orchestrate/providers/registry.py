"""Lists and loads backends: built-in backends, configured hosts, and plug-ins from other packages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING

from orchestrate import description
from orchestrate.errors import ConfigError, SetupError, UsageError
from orchestrate.profile import (
    built_in,
    described,
    not_loaded,
    places,
    plug_ins,
    profile,
    session_hosts,
    unknown_backend,
)
from orchestrate.text import meant

if TYPE_CHECKING:
    from orchestrate.data.rules import RowTarget
    from orchestrate.providers.base import Provider
    from orchestrate.settings.config import HostConfig, Settings


def names(settings: Settings) -> list[str]:
    """List all backends, built-in first, then configured hosts, then plug-ins."""
    configured = [*settings.extra_hosts, *settings.hosts.described, *settings.hosts.placed]
    return list(dict.fromkeys([*built_in(), *configured, *plug_ins()]))


def known(settings: Settings) -> list[str]:
    """List every name that users can select: the backends in `names`, hosts described by YAML files, clusters
    and GPU clouds, and hosts of training sessions."""
    return list(dict.fromkeys([*names(settings), *described(), *places(), *session_hosts()]))


def broken(settings: Settings) -> dict[str, SetupError]:
    """Return the backends that cannot be loaded, as {name: error}."""
    found: dict[str, SetupError] = {}
    for name in names(settings):
        kind = settings.hosts.types.get(name, name)
        try:
            if kind not in built_in():
                provider_class(kind)
            if kind in described() and settings.hosts.address(name) is None:
                raise no_address(name, kind)
        except SetupError as error:
            found[name] = error
    return found


def no_address(name: str, kind: str) -> ConfigError:
    """Build the error for a host whose address is different for each customer and has not been configured."""
    address = description.read(*described()[kind]).address
    like = f": it should look like {address}" if address else ""
    return ConfigError(
        f"the address of {name} is unknown{like}",
        fix=f"set  [hosts.{name}] base_url = ...  in orchestrate.toml, or the variable "
        f"{name.upper().replace('-', '_')}_BASE_URL",
    )


def usable(settings: Settings) -> list[str]:
    """List the backends in `names` that can be loaded."""
    unusable = broken(settings)
    return [name for name in names(settings) if name not in unusable]


def chosen(settings: Settings, wanted: str | Sequence[str]) -> list[str]:
    """Return the selected names from a comma-separated string or a list. `all` selects all usable backends.
    Raises `UsageError` if a name is unknown or none is given."""
    if wanted == "all":
        return usable(settings)
    there = known(settings)
    selected = [n.strip() for n in (wanted.split(",") if isinstance(wanted, str) else wanted) if n.strip()]
    if unknown := [name for name in selected if name not in there]:
        raise unknown_backend(unknown[0], there)
    if not selected:
        raise UsageError(f"specify a backend; known: {', '.join(there)}")
    return list(dict.fromkeys(selected))


def with_keys(settings: Settings, also: Sequence[str] = ()) -> dict[str, HostConfig]:
    """Return the configurations of all usable backends that need an API key, as {name: configuration}. `also`
    names additional backends to consider."""
    hosts = {name: settings.host(name) for name in [*usable(settings), *also]}
    return {name: host for name, host in hosts.items() if not profile(host.kind).keyless}


def provider_class(kind: str) -> type[Provider]:
    """Return the class that implements a kind of backend. Raises `UsageError` for an unknown kind and
    `SetupError` for a broken plug-in."""
    module, _, attribute = profile(kind).provider.partition(":")
    if kind in (*built_in(), *described(), *places(), *session_hosts()):
        return getattr(import_module(module), attribute)
    try:
        return getattr(import_module(module), attribute)
    except Exception as error:
        raise not_loaded(kind, error) from error


def make(name: str, settings: Settings) -> Provider:
    """Create a backend. Sends nothing."""
    from orchestrate.providers.base import Sessions

    host = settings.host(name)
    made = provider_class(host.kind)(host)
    if isinstance(made, Sessions):
        made.child = lambda: (settings.child_folder, settings.child_environment())
    return made


def targets(settings: Settings, wanted: str = "all") -> tuple[RowTarget, ...]:
    """Return the data rules of the backends with these comma-separated names. `all` selects all usable
    backends that have rules. Raises `UsageError` for an unknown name."""
    from orchestrate.data.dialects import target

    if wanted == "all":
        profiles = ((name, profile(settings.host(name).kind)) for name in usable(settings))
        return tuple(target(name, one) for name, one in profiles if one.rules is not None)
    given = [name.strip() for name in wanted.split(",") if name.strip()]
    return tuple(target(name, profile(settings.host(name).kind)) for name in given)


def format_of(settings: Settings, name: str) -> RowTarget:
    """Return the row format of the tool or backend with this name, for converting rows. Raises `UsageError`
    if Orchestrate can't write this format."""
    from orchestrate.data.shapes.known import BY_NAME
    from orchestrate.data.tools import FORMATS, tool

    if name in FORMATS:
        return tool(name)
    if name not in (backends := known(settings)):
        there = [*backends, *FORMATS]
        why = f"Orchestrate can read {name} but not write it" if name in BY_NAME else f"no format {name!r}"
        raise UsageError(f"{why}{meant(name, there)}. Available formats: {', '.join(there)}")
    return targets(settings, name)[0]
