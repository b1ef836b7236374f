"""Convert canonical examples to the rows that a host accepts.

Hosts share OpenAI's field names but differ in roles, in the name of the reasoning field and in the features
they support. `orchestrate.data.rules` reports each row trait that a format can't represent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
    encode,
)
from orchestrate.data.rules import RowTarget
from orchestrate.errors import UsageError
from orchestrate.profile import Profile


@dataclass(frozen=True)
class Dialect:
    """Format of one host's chat rows."""

    developer: str = "developer"
    """The host's role name for developer messages."""
    reasoning: str | None = None
    """Name of the field for an assistant's reasoning. `None` omits the reasoning."""
    names: bool = True
    parallel: bool = True
    row_weight: bool = True
    loss_spans: bool = False


CANONICAL = Dialect(reasoning="reasoning", loss_spans=True)
"""Format for local training. It omits nothing."""


def canonical_line(example: Example) -> bytes:
    """Encode an example as a line of canonical JSON, without the line ending."""
    return encode(fields(example, CANONICAL))


def fields(example: Example, dialect: Dialect) -> dict[str, Any]:
    match example:
        case ChatExample():
            row: dict[str, Any] = {"messages": _messages(example.messages, dialect)}
            _add(row, example, dialect)
            if example.weight is not None and dialect.row_weight:
                row["weight"] = example.weight
            return row
        case PreferenceExample():
            given: dict[str, Any] = {"messages": _messages(example.prompt, dialect)}
            _add(given, example, dialect)
            return {
                "input": given,
                "preferred_output": _messages(example.preferred, dialect),
                "non_preferred_output": _messages(example.rejected, dialect),
            }
        case UnpairedExample():
            row = {
                "prompt": _messages(example.prompt, dialect),
                "completion": _messages(example.completion, dialect),
                "label": example.label,
            }
            _add(row, example, dialect)
            return row
        case RLExample():
            row = {"messages": _messages(example.messages, dialect)}
            if example.tools:
                row["tools"] = example.tools
            return row | example.fields
        case CompletionExample():
            return {"prompt": example.prompt, "completion": example.completion}
        case _:
            spans = example.loss_spans if dialect.loss_spans else None
            return {"text": example.text} | ({"loss_spans": spans} if spans else {})


def _add(
    row: dict[str, Any], example: ChatExample | PreferenceExample | UnpairedExample, dialect: Dialect
) -> None:
    if example.tools:
        row["tools"] = example.tools
    if example.parallel_tool_calls is not None and dialect.parallel:
        row["parallel_tool_calls"] = example.parallel_tool_calls


def _messages(messages: Sequence[ChatMessage], dialect: Dialect) -> list[dict[str, Any]]:
    return [_message(m, dialect) for m in messages]


def _message(m: ChatMessage, dialect: Dialect) -> dict[str, Any]:
    role = dialect.developer if m.role == "developer" else m.role
    item: dict[str, Any] = {"role": role}
    if m.content is not None or not m.tool_calls:
        item["content"] = m.content if m.content is not None else ""
    if m.reasoning is not None and dialect.reasoning:
        item[dialect.reasoning] = m.reasoning
    if m.tool_calls:
        item["tool_calls"] = m.tool_calls
    if m.tool_call_id is not None:
        item["tool_call_id"] = m.tool_call_id
    if m.name is not None and (dialect.names or m.role == "function"):
        item["name"] = m.name
    if m.weight is not None:
        item["weight"] = int(m.weight)
    if m.loss_spans is not None and dialect.loss_spans:
        item["loss_spans"] = m.loss_spans
    return item


def target(name: str, profile: Profile) -> RowTarget:
    """Return the row format of the backend `name` as a conversion target. Raises `UsageError` if the
    backend's profile has no data rules."""
    if profile.rules is None:
        raise UsageError(f"{name} declares no row format, so rows cannot be checked or written for it")
    return RowTarget(name, profile.rules, partial(fields, dialect=profile.dialect or CANONICAL))
