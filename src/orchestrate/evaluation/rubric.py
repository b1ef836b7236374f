"""Rubrics in YAML files.

name: support
question: Which answer would you rather send to the customer?
guide: A wrong order number outweighs everything else.
criteria:
  - name: correct
    question: Is all that it says right?
    scale: [wrong, partly right, right]   # the worst first; or a number of points
  - name: tone
    scale: 5
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from orchestrate.core.expansion import require_bounded
from orchestrate.errors import UsageError
from orchestrate.types import Criterion, Rubric, decoding

DEFAULT = Rubric(name="preference")
MOST_POINTS = 9
"""One key each."""


def read(path: Path | None) -> Rubric:
    """A rubric's file, or the plainest one without. Raises `UsageError` with what is wrong in it."""
    if path is None:
        return DEFAULT
    try:
        text = path.read_text(encoding="utf-8")
        require_bounded(yaml.compose(text, Loader=yaml.SafeLoader))
        given: Any = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the rubric {path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    if isinstance(given, dict):
        given = {"name": path.stem, **cast("dict[str, Any]", given)}
    try:
        rubric = decoding.convert(given, Rubric)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path} is no rubric: {error}", fix="name, question, guide, criteria: name, question, scale"
        ) from error
    if wrong := _wrong(rubric):
        raise UsageError(f"{path}: {wrong}")
    return rubric


def _wrong(rubric: Rubric) -> str | None:
    names = [criterion.name for criterion in rubric.criteria]
    if not names:
        return "criteria: at least one is needed"
    if len(set(names)) < len(names):
        return f"criteria: {max(names, key=names.count)!r} is there twice"
    return next(filter(None, map(_wrong_scale, rubric.criteria)), None)


def _wrong_scale(criterion: Criterion) -> str | None:
    if not criterion.name.strip():
        return "criteria: each needs a name"
    if not 2 <= criterion.points <= MOST_POINTS:
        return f"{criterion.name}: a scale has 2 to {MOST_POINTS} points, not {criterion.points}"
    if len(set(criterion.labels)) < criterion.points:
        return f"{criterion.name}: two points of its scale have the same name"
    return None
