"""What is asked and what was answered, as it lies in the files of an evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from orchestrate.paid.journal import Answer as Answer
from orchestrate.types import Message, Record


class Item(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A held-out row: the conversation up to the last assistant message, and that message."""

    id: str
    """Of its prompt, tools and expected answer: the same row has the same id in every file."""
    prompt: tuple[Message, ...]
    expected: str = ""
    """Empty where a grader or a judge needs none."""
    expected_calls: tuple[dict[str, Any], ...] = ()
    """Tool calls of the expected answer, as the chat completions API has them."""
    tools: tuple[dict[str, Any], ...] = ()
    fields: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])
    """The row's further columns, which graders read as `item.NAME`."""
    cluster: str = ""
    """Items of one cluster belong together, as those of one user do; by default each stands for itself."""
    slices: tuple[str, ...] = ()
    """`tag:refund`, `label:yes`, `length:long` ..."""


class Mark(msgspec.Struct, frozen=True):
    """What a metric gives one answer."""

    value: float | None
    """`None` where it cannot be told, which leaves the item out of this metric."""
    note: str = ""
    """Why: a judge's reason, a grader's error."""


class Answered(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A line of the items file: an item with what each contender answered."""

    item: Item
    answers: dict[str, tuple[Answer, ...]]
    """By contender, one for each sample."""
    marks: dict[str, dict[str, tuple[Mark, ...]]] = msgspec.field(
        default_factory=dict[str, dict[str, tuple[Mark, ...]]]
    )
    """By contender and metric, one for each sample."""


NO_ANSWER = "(no answer)"


def in_words(text: str, calls: Sequence[dict[str, Any]]) -> str:
    """A turn as one text, its calls of tools too."""
    written = [msgspec.json.encode(call.get("function")).decode() for call in calls]
    return "\n".join(filter(None, [text, *written]))


def item_id(prompt: Sequence[Message], tools: Sequence[dict[str, Any]], expected: str, calls: Any) -> str:
    parts = msgspec.json.encode([prompt, tools, expected, calls], order="deterministic")
    return hashlib.sha256(parts).hexdigest()[:16]


def digest_of(items: Iterable[Item]) -> str:
    """Equal for the same items in any order."""
    return hashlib.sha256("\n".join(sorted(item.id for item in items)).encode()).hexdigest()
