"""Whether an adapter's names are those of the model: seen before a worker starts, by building the model
without weights from its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.errors import OrchestrateError
from orchestrate.local.job import Adapter
from orchestrate.local.model.adapters.names import ALL_LINEAR, Misnamed, ModuleNames, misnamed, no_pattern
from orchestrate.local.model.files import models
from orchestrate.local.weights import asking
from orchestrate.spec.methods import LoRA

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec

FIELDS = (
    "targets",
    "target_parameters",
    "exclude_modules",
    "layers_to_transform",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
)


def named(asked: LoRA) -> list[str]:
    """The settings that name modules or parameters."""
    given = [field for field in FIELDS if getattr(asked, field) is not None]
    return [field for field in given if getattr(asked, field) != ALL_LINEAR]


def looked_at(spec: JobSpec, model: str) -> tuple[list[Misnamed], str | None]:
    """Names that fit nothing, and why they could not be looked at. `model`: as `models.config_of` finds
    it."""
    asked = spec.adapter
    adapter = Adapter.from_dict(asked.model_dump(mode="json"))
    if not isinstance(asked, LoRA) or not named(asked) or no_pattern(adapter):
        return [], None
    config = models.config_of(model)
    if config is None:
        return [], "the model's configuration is not on this machine"
    names = _names(msgspec.json.encode(config, order="sorted"))
    if isinstance(names, str):
        return [], names
    return misnamed(names, adapter), None


@lru_cache(maxsize=32)
def _names(config: bytes) -> ModuleNames | str:
    """Or why they are not known."""
    given: Mapping[str, Any] = msgspec.json.decode(config)
    try:
        return ModuleNames.from_dict(asking.ask("names", module="naming", config=given))
    except OrchestrateError as error:
        return error.message
