"""The shapes a row can have: how each is recognised and how it becomes a canonical example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from orchestrate.data.chat import messages_from, tools_from
from orchestrate.data.examples import (
    ChatExample,
    CompletionExample,
    Example,
    Kind,
    PreferenceExample,
    TextExample,
)
from orchestrate.data.problems import problem
from orchestrate.types import Problem

Row = dict[str, Any]
Read = tuple[Example | None, list[Problem]]
"""The example, `None` when the row is unusable, and the row's problems."""


@dataclass(frozen=True)
class Shape:
    """`fits` looks at the names and types of the fields only; `read` reports everything else."""

    name: str
    kind: Kind
    fields: frozenset[str]
    """Fields that `read` uses; others are reported as extra."""
    fits: Callable[[Row], bool]
    read: Callable[[Row], Read]


def _optional(row: Row, found: list[Problem]) -> dict[str, Any]:
    """Fields of a chat row beside its messages."""
    tools, wrong = tools_from(row)
    found += wrong
    parallel, weight = row.get("parallel_tool_calls"), row.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
        found.append(problem("bad-weight", "the row's weight is not a number", field="weight"))
        weight = None
    return {
        "tools": tools,
        "parallel_tool_calls": parallel if isinstance(parallel, bool) else None,
        "weight": weight,
    }


def _openai_chat(row: Row) -> Read:
    messages, found = messages_from(row["messages"], "messages")
    return ChatExample(messages=messages, **_optional(row, found)), found


def _openai_preference(row: Row) -> Read:
    given = cast("Row", row["input"])
    prompt, found = messages_from(given.get("messages"), "input.messages")
    preferred, wrong = messages_from(row["preferred_output"], "preferred_output")
    rejected, more = messages_from(row["non_preferred_output"], "non_preferred_output")
    found += [*wrong, *more]
    extra = _optional(given, found)
    del extra["weight"]
    return PreferenceExample(prompt=prompt, preferred=preferred, rejected=rejected, **extra), found


def _prompt_completion(row: Row) -> Read:
    return CompletionExample(prompt=row["prompt"], completion=row["completion"]), []


def _text(row: Row) -> Read:
    return TextExample(text=row["text"]), []


def _are_text(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(name), str) for name in names)


SHAPES: tuple[Shape, ...] = (
    Shape(
        "openai-preference",
        "preference",
        frozenset({"input", "preferred_output", "non_preferred_output"}),
        lambda row: (
            isinstance(row.get("input"), dict) and {"preferred_output", "non_preferred_output"} <= row.keys()
        ),
        _openai_preference,
    ),
    Shape(
        "openai-chat",
        "chat",
        frozenset({"messages", "tools", "functions", "parallel_tool_calls", "weight"}),
        lambda row: "messages" in row,
        _openai_chat,
    ),
    Shape(
        "prompt-completion",
        "completion",
        frozenset({"prompt", "completion"}),
        _are_text("prompt", "completion"),
        _prompt_completion,
    ),
    Shape("text", "text", frozenset({"text"}), _are_text("text"), _text),
)
BY_NAME = {shape.name: shape for shape in SHAPES}


def recognise(row: Row) -> Shape | None:
    """The first shape that the row fits; they are ordered from the most to the least specific."""
    return next((shape for shape in SHAPES if shape.fits(row)), None)


def read(row: Row, shape: Shape) -> Read:
    """The canonical example and the problems of one row, unused fields included."""
    if not shape.fits(row):
        other = recognise(row)
        if other is None:
            names = ", ".join(sorted(row)[:8])
            return None, [problem("unknown-format", f"the fields {names or '(none)'} fit no known format")]
        return None, [problem("mixed-format", f"the row is {other.name}, the file is {shape.name}")]
    example, found = shape.read(row)
    if extra := sorted(row.keys() - shape.fields):
        found.append(problem("extra-fields", f"unused: {', '.join(extra[:8])}"))
    return example, found
