"""Which backends there are: the built-in ones and those that other packages register.

A package adds a backend by an entry point in the group `orchestrate.providers`; its name is the backend's
name. A configured host (`[hosts.NAME]` with `type = "openai"` in orchestrate.toml) is a further instance of
a class.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING

from orchestrate.errors import SetupError, UsageError

if TYPE_CHECKING:
    from orchestrate.config import Settings
    from orchestrate.providers.base import Provider

BUILT_IN: dict[str, str] = {
    "openai": "orchestrate.providers.openai:OpenAIProvider",
    "together": "orchestrate.providers.together:TogetherProvider",
    "fireworks": "orchestrate.providers.fireworks:FireworksProvider",
    "local": "orchestrate.providers.local:LocalProvider",
}
GROUP = "orchestrate.providers"


@cache
def _plug_ins() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}


def names(settings: Settings) -> list[str]:
    """All backends, built-in first, then configured hosts, then plug-ins."""
    return list(dict.fromkeys([*BUILT_IN, *settings.extra_hosts, *sorted(_plug_ins())]))


def provider_class(kind: str) -> type[Provider]:
    """The class behind a backend's name. Raises `UsageError` for an unknown one, `SetupError` for a broken
    plug-in."""
    if kind in BUILT_IN:
        module, _, attribute = BUILT_IN[kind].partition(":")
        return getattr(import_module(module), attribute)
    if kind in _plug_ins():
        point = _plug_ins()[kind]
        try:
            return point.load()
        except Exception as error:
            where = f"{point.dist.name} {point.dist.version}" if point.dist else point.value
            raise SetupError(
                f"the backend {kind!r} from {where} could not be loaded: {error}",
                fix="update or uninstall that package",
            ) from error
    known = ", ".join([*BUILT_IN, *sorted(_plug_ins())])
    raise UsageError(f"no backend is called {kind!r}; known: {known}", fix="orchestrate providers")


def make(name: str, settings: Settings) -> Provider:
    """A backend ready to use; nothing is sent yet."""
    host = settings.host(name)
    return provider_class(host.type or name)(host)
