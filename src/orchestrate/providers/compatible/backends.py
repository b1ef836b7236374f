"""The `Provider` class of each host that a YAML file describes, made when it is looked up: `backends.azure`
is that of `azure.yaml`."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, cast

from orchestrate import description
from orchestrate.profile import described, profile
from orchestrate.providers.compatible.provider import CompatibleProvider, features_of, parts_of, statuses_of

if TYPE_CHECKING:
    from orchestrate.profile import Readable


def __getattr__(kind: str) -> type[CompatibleProvider]:
    entry = described().get(kind)
    if entry is None:
        raise AttributeError(kind)
    return _made(kind, *entry)


@cache
def _made(kind: str, file: Readable, name: str) -> type[CompatibleProvider]:
    """Raises `ConfigError` that names file and field."""
    told = description.read(file, name)
    features, missing = features_of(told, name)
    own = {
        "__doc__": f"{told.title}, as {name} describes it.",
        "profile": profile(kind),
        "told": told,
        "features": features,
        "missing": missing,
        "status_map": statuses_of(told, name),
        "sends_wandb_key": told.wandb_in_request,
        "ready_files": frozenset(told.files.ready),
        "refused_files": frozenset(told.files.refused),
        "most_listed": told.page,
    }
    made = type(CompatibleProvider.__name__, parts_of(told, features, name), own)
    return cast("type[CompatibleProvider]", made)
