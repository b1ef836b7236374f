"""What a spec has to go without on one backend, so that one word stays enough to change the backend."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrate.errors import SpecError
from orchestrate.spec import JobSpec
from orchestrate.types import Setting, Translation

ESSENTIAL = ("model", "method", "method.type", "method.loss", "method.grader", "continue_from")
"""Settings without which it would be another run."""
_TURNS = 8
"""What is left out can make another setting refused, such as one that needed it."""


def overrides(
    spec: JobSpec, translation: Translation, translate: Callable[[JobSpec], Translation]
) -> dict[str, Any] | None:
    """Fields of `overrides:` with which this backend refuses nothing of `spec`, which is the spec as it gets
    it; each is left out (`None`) or the nearest that is taken. `None` where nothing is refused, or where the
    run would be another without what is."""
    found: dict[str, Any] = {}
    values = spec.asked()
    for _ in range(_TURNS):
        if not translation.refused:
            return found or None
        for row in translation.refused:
            name, *below = row.name.split(".")
            if row.name in ESSENTIAL or name not in values or name == "provider_options":
                return None
            values[name] = found[name] = _without(values[name], below, row) if below else row.instead
        try:
            translation = translate(JobSpec.parse(values))
        except SpecError:
            return None
    return None


def _without(part: Any, below: list[str], row: Setting) -> Any:
    """A table of the spec without one of its settings, or with the nearest value in its place."""
    if not isinstance(part, dict):
        return None
    name, *rest = below
    kept: dict[str, Any] = dict(part)  # pyright: ignore[reportUnknownArgumentType]
    if rest:
        kept[name] = _without(kept.get(name), rest, row)
    elif row.instead is not None:
        kept[name] = row.instead
    else:
        kept.pop(name, None)
    return kept or None
