"""Canonical model names and what they are on each backend, from `models.yaml`.

find(name) -> Model
    Canonical name, alias, hub id or any host's id; `UsageError` with suggestions.
resolve(name, provider, today=None) -> ModelOnHost
    What to send to `provider`: `.id`, `.model` (None when not in the catalog), `.host`, `.warnings`,
    `.params_b`, `.tokenizer`, `.hub`, `.folder`, `.context(method)`. Unknown names that look like an id of
    that backend pass through with a warning; folders pass through on backends that train from disk.
    `SpecError`.
search(query="", provider=None) -> list[Model]
shutdown_warning(model, provider, today) -> str | None
    Within 90 days of the end, or after it; offers the nearest open model.
alternatives(model, provider=None) -> list[Model]
    Open models to move to, nearest first.
    The sentence, once the backend takes no new jobs at all.
differences(provider, seen: Iterable[HostModel]) -> list[Change]
    What a host says now (its `base_models()`) against the catalog.
all_models() -> tuple[Model, ...]; known_hosts() -> frozenset[str]
comparison() -> Model
    What prompting is compared with unless another model is named.
"""

from orchestrate.catalog.differences import Change, differences
from orchestrate.catalog.models import (
    HostModel,
    Model,
    all_models,
    alternatives,
    comparison,
    find,
    known_hosts,
    search,
    shutdown_warning,
)
from orchestrate.catalog.resolve import ModelOnHost, resolve

__all__ = [
    "Change",
    "differences",
    "known_hosts",
    "HostModel",
    "Model",
    "ModelOnHost",
    "all_models",
    "alternatives",
    "comparison",
    "find",
    "resolve",
    "search",
    "shutdown_warning",
]
