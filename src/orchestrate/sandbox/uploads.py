"""Parse an uploaded training file as the host would, or explain why the host rejects it.

The hosts' rules are deliberately implemented a second time here. A sandbox that used the client's code could
not detect errors in the client's checks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    TextExample,
)
from orchestrate.types import decoding

_MESSAGE_FIELDS = {"role", "content", "name", "tool_calls", "tool_call_id", "weight", "refusal"}


@dataclass(frozen=True, kw_only=True)
class AcceptedRows:
    """The kinds of rows that a host accepts in addition to the usual ones."""

    roles: frozenset[str] = frozenset({"system", "user", "assistant", "tool"})
    message_fields: frozenset[str]
    text: bool = False
    mixed_fields: bool = True
    """True if a row may contain fields of more than one format, such as `messages` and `prompt`."""
    any_first_role: bool = True
    """True if a conversation may start with any role. Otherwise it must start with a system or user
    message."""


class RowError(Exception):
    """The first row that the host rejects. `line` is 1-based."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"Line {line}: {reason}")
        self.line = line
        self.reason = reason


class UploadReport(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The result of a host's file validation."""

    format: str | None = None
    """Format of the rows: chat, preference, completion or text."""
    examples: int = 0
    error: str | None = None
    tools: bool = False
    parallel_tools: bool = False
    reasoning: bool = False
    message_weights: bool = False
    row_weights: bool = False
    images: bool = False
    turns: int = 0
    """Number of user messages in all rows."""
    tokens: dict[str, int] = {}
    """Number of tokens in the file, as {tokenizer: count}. Counted when first needed."""


def examine(path: Path, taken: AcceptedRows) -> UploadReport:
    """Validate an entire JSONL file. Stops at the first invalid row and sets `error`."""
    report = UploadReport()
    try:
        for example, row in read(path, taken):
            _note(report, example, row)
    except RowError as error:
        report.error = str(error)
    else:
        if report.examples == 0:
            report.error = "The file has no rows"
    return report


def read(path: Path, taken: AcceptedRows) -> Iterator[tuple[Example, dict[str, Any]]]:
    """Yield a pair for each row: the canonical example, and the row as uploaded. Raises `RowError` for the
    first invalid row."""
    seen: str | None = None
    with path.open("rb") as file:
        for line, raw in enumerate(file, 1):
            if not raw.strip():
                raise RowError(line, "is empty")
            try:
                row = json.loads(raw.decode("utf-8"))
            except (UnicodeDecodeError, ValueError) as error:
                raise RowError(line, f"is not valid JSON in UTF-8: {error}") from error
            if not isinstance(row, dict):
                raise RowError(line, "is not a JSON object")
            example = _example(line, cast("dict[str, Any]", row), taken)
            shape = type(example).__name__
            if seen is not None and shape != seen:
                raise RowError(line, "has a different format from the previous rows")
            seen = shape
            yield example, cast("dict[str, Any]", row)


def write_canonical(path: Path, taken: AcceptedRows, target: Path, *, rl: bool = False) -> int:
    """Write the rows in the local engine's format, one canonical example per line. Return their number."""
    count = 0
    with target.open("wb") as out:
        for example, row in read(path, taken):
            if rl and isinstance(example, ChatExample):
                fields = {k: v for k, v in row.items() if k not in ("messages", "tools")}
                example = RLExample(messages=example.messages, tools=example.tools, fields=fields)
            out.write(msgspec.json.encode(example) + b"\n")
            count += 1
    return count


def tokens(path: Path, taken: AcceptedRows, tokenizer: str) -> int:
    """Count the tokens of all rows with the named tokenizer, including the chat template's tokens."""
    from orchestrate.data.tokens.counters import counter

    examples = [example for example, _ in read(path, taken)]
    return sum(counter(tokenizer).count(examples).tokens)


def _example(line: int, row: dict[str, Any], taken: AcceptedRows) -> Example:
    shapes = [
        name
        for name, keys in (
            ("chat", {"messages"}),
            ("preference", {"input", "preferred_output", "non_preferred_output"}),
            ("completion", {"prompt", "completion"}),
            ("text", {"text"}),
        )
        if keys <= row.keys()
    ]
    if not shapes:
        raise RowError(
            line, f"fields {', '.join(sorted(row)) or '(none)'} do not match a known training format"
        )
    if len(shapes) > 1 and not taken.mixed_fields:
        raise RowError(line, f"matches two formats: {' and '.join(shapes)}")
    match shapes[0]:
        case "chat":
            messages = _messages(line, row["messages"], taken, "messages")
            return ChatExample(messages=messages, tools=row.get("tools"), weight=_weight(line, row))
        case "preference":
            return _preference(line, row, taken)
        case "completion":
            if not isinstance(row["prompt"], str) or not isinstance(row["completion"], str):
                raise RowError(line, "prompt and completion must be strings")
            return CompletionExample(prompt=row["prompt"], completion=row["completion"])
        case _:
            if not taken.text or not isinstance(row["text"], str):
                raise RowError(line, "text rows are not supported here")
            return TextExample(text=row["text"])


def _preference(line: int, row: dict[str, Any], taken: AcceptedRows) -> PreferenceExample:
    given = row["input"]
    if not isinstance(given, dict) or "messages" not in given:
        raise RowError(line, "input must be an object with messages")
    given = cast("dict[str, Any]", given)
    answers: list[list[ChatMessage]] = []
    for name in ("preferred_output", "non_preferred_output"):
        answer = _messages(line, row[name], taken, name)
        if len(answer) != 1 or answer[0].role != "assistant":
            raise RowError(line, f"{name} must be a single assistant message")
        answers.append(answer)
    prompt = _messages(line, given["messages"], taken, "input.messages")
    return PreferenceExample(
        prompt=prompt, preferred=answers[0], rejected=answers[1], tools=given.get("tools")
    )


def _messages(line: int, values: Any, taken: AcceptedRows, where: str) -> list[ChatMessage]:
    if not isinstance(values, list) or not values:
        raise RowError(line, f"{where} must be a non-empty list")
    found: list[ChatMessage] = []
    for number, value in enumerate(cast("list[Any]", values), 1):
        place = f"{where}, message {number}"
        if not isinstance(value, dict):
            raise RowError(line, f"{place} is not an object")
        message = cast("dict[str, Any]", value)
        if message.get("role") not in taken.roles:
            raise RowError(line, f"{place}: role {message.get('role')!r} is not one of {sorted(taken.roles)}")
        if unknown := sorted(message.keys() - _MESSAGE_FIELDS - taken.message_fields):
            raise RowError(line, f"{place}: unexpected key {unknown[0]!r}")
        if message.get("content") is None and not (message.get("tool_calls") or message.get("function_call")):
            raise RowError(line, f"{place} has no content")
        if message.get("weight") not in (None, 0, 1) or (
            "weight" in message and message["role"] != "assistant"
        ):
            raise RowError(line, f"{place}: weight must be 0 or 1 and is only allowed on assistant messages")
        fields = {k: v for k, v in message.items() if k in ChatMessage.__struct_fields__}
        if "reasoning_content" in message:
            fields["reasoning"] = message["reasoning_content"]
        try:
            found.append(decoding.convert(fields, ChatMessage))
        except msgspec.ValidationError as error:
            raise RowError(line, f"{place}: {error}") from error
    if not taken.any_first_role and where.endswith("messages") and found[0].role not in ("system", "user"):
        raise RowError(line, f"the first role in {where} must be system or user, not {found[0].role}")
    return found


def _weight(line: int, row: dict[str, Any]) -> float | None:
    weight = row.get("weight")
    if weight is None:
        return None
    if isinstance(weight, bool) or not isinstance(weight, int | float) or weight < 0:
        raise RowError(line, "weight must be a non-negative number")
    return float(weight)


def _note(report: UploadReport, example: Example, row: dict[str, Any]) -> None:
    report.examples += 1
    messages: list[ChatMessage] = []
    match example:
        case ChatExample():
            report.format, messages = "chat", example.messages
            report.tools |= bool(example.tools)
            report.row_weights |= example.weight is not None
        case PreferenceExample():
            report.format, messages = "preference", example.prompt
            report.tools |= bool(example.tools)
        case CompletionExample():
            report.format = "completion"
        case _:
            report.format = "text"
    for message in messages:
        report.turns += message.role == "user"
        report.message_weights |= message.weight is not None
        report.reasoning |= message.reasoning is not None
        report.tools |= bool(message.tool_calls)
        report.parallel_tools |= len(message.tool_calls or ()) > 1
        if isinstance(message.content, list):
            report.images |= any(part.type == "image_url" for part in message.content)
