"""Evaluate models on held-out rows: collect their answers, score them, and estimate which differences this
number of rows can detect."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.core.expansion import read_record
from orchestrate.errors import UsageError
from orchestrate.paid.journal import Answer as Answer
from orchestrate.types import Criterion, Message, Record, Rubric

# Questions and answers, as stored in the files of an evaluation.


class Item(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A held-out row: the conversation up to the last assistant message, and that message as the expected
    answer."""

    id: str
    """Digest of the prompt, tools and expected answer. The same row has the same id in every file."""
    prompt: tuple[Message, ...]
    expected: str = ""
    """Expected answer. Empty for metrics that don't need one, such as graders and judges."""
    expected_calls: tuple[dict[str, Any], ...] = ()
    """Tool calls of the expected answer, in the format of OpenAI's Chat Completions API."""
    tools: tuple[dict[str, Any], ...] = ()
    fields: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    """The row's other columns, which graders read as `item.NAME`."""
    cluster: str = ""
    """Name of a cluster of related items, such as the items of one user. By default, each item is its own
    cluster."""
    slices: tuple[str, ...] = ()
    """Slices that the item belongs to, such as `tag:refund`, `label:yes` or `length:long`."""


class Mark(msgspec.Struct, frozen=True):
    """One answer's score on one metric."""

    value: float | None
    """The score, or `None` if unknown. Answers without a score are excluded from the metric."""
    note: str = ""
    """Reason for the score: a judge's explanation, or a grader's error."""


class ScoredItem(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One line of the items file: an item with each contender's answer."""

    item: Item
    answers: dict[str, tuple[Answer, ...]]
    """Each contender's answers, one per sample."""
    marks: dict[str, dict[str, tuple[Mark, ...]]] = msgspec.field(
        default_factory=dict[str, dict[str, tuple[Mark, ...]]]
    )
    """Scores as `{contender: {metric: [score of each sample]}}`."""


NO_ANSWER = "(no answer)"


def message_text(text: str, calls: Sequence[dict[str, Any]]) -> str:
    """Return a message as text, including its tool calls."""
    written = [msgspec.json.encode(call.get("function")).decode() for call in calls]
    return "\n".join(filter(None, [text, *written]))


def item_id(prompt: Sequence[Message], tools: Sequence[dict[str, Any]], expected: str, calls: Any) -> str:
    parts = msgspec.json.encode([prompt, tools, expected, calls], order="deterministic")
    return hashlib.sha256(parts).hexdigest()[:16]


def digest_of(items: Iterable[Item]) -> str:
    """Return a digest of the items that does not depend on their order."""
    return hashlib.sha256("\n".join(sorted(item.id for item in items)).encode()).hexdigest()


# Rubrics in YAML files.


DEFAULT = Rubric(name="preference")
MOST_POINTS = 9
"""Maximum number of points on a scale. Raters choose a point by pressing a digit key."""


def read(path: Path | None) -> Rubric:
    """Read a rubric file, or return the default rubric if no file is given. Raises `UsageError` if the file
    is invalid."""
    if path is None:
        return DEFAULT
    rubric = read_record(path, Rubric, "rubric", "name, question, guide, criteria (name, question, scale)")
    if wrong := _wrong(rubric):
        raise UsageError(f"{path}: {wrong}")
    return rubric


def _wrong(rubric: Rubric) -> str | None:
    names = [criterion.name for criterion in rubric.criteria]
    if not names:
        return "criteria: at least one criterion is required"
    if len(set(names)) < len(names):
        return f"criteria: {max(names, key=names.count)!r} occurs twice"
    return next(filter(None, map(_wrong_scale, rubric.criteria)), None)


def _wrong_scale(criterion: Criterion) -> str | None:
    if not criterion.name.strip():
        return "criteria: each criterion needs a name"
    if not 2 <= criterion.points <= MOST_POINTS:
        return f"{criterion.name}: a scale must have 2 to {MOST_POINTS} points, not {criterion.points}"
    if len(set(criterion.labels)) < criterion.points:
        return f"{criterion.name}: two points on the scale have the same name"
    return None
