"""`Provider` classes for training on other machines, one for each supported cluster or GPU cloud. Each class
is created on first access."""

from __future__ import annotations

from functools import cache

from orchestrate.profile import places, profile
from orchestrate.providers.local.away import AwayProvider


def __getattr__(kind: str) -> type[AwayProvider]:
    if kind not in places():
        raise AttributeError(kind)
    return _made(kind)


@cache
def _made(kind: str) -> type[AwayProvider]:
    found = profile(kind)
    own = {
        "__doc__": f"{found.title}: runs Orchestrate's training engine on one of its machines.",
        "profile": found,
    }
    return type(AwayProvider.__name__, (AwayProvider,), own)
