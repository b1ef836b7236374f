"""Canonical examples, and the problems that checks report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast, get_args
from urllib.parse import urlsplit

import msgspec

from orchestrate.data import goals
from orchestrate.types import Problem, Severity

# Canonical examples, which every reader returns and every writer accepts.


Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
ROLES: tuple[str, ...] = get_args(Role)


class _Canonical(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Base class of canonical structs. `gc=False` is safe because no example refers to itself, and halves
    decoding time."""


class ImageUrl(_Canonical):
    url: str
    """An https URL or a base64 data URL."""
    detail: Literal["auto", "low", "high"] | None = None


class Part(_Canonical):
    """One piece of a message's content: text, or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class FunctionCall(_Canonical):
    name: str
    arguments: str
    """A JSON object as a string."""


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(_Canonical):
    role: Role
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    weight: int | float | None = None
    """Loss weight. 0 excludes an assistant message from the loss. `None` means 1."""
    reasoning: str | None = None
    """The reasoning that precedes the answer, if the row has any."""
    loss_spans: list[tuple[int, int]] | None = None
    """Character ranges of `text` that contribute to the loss, as ordered, disjoint pairs of (start, end), end
    exclusive. `None` means the entire answer, unless `weight` excludes it."""

    @property
    def text(self) -> str:
        """The text of the content, without image parts."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class ChatExample(_Canonical):
    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    weight: int | float | None = None
    """Loss weight of the entire row, for hosts that support row weights."""


class PreferenceExample(_Canonical):
    """A `prompt` with a preferred and a rejected answer."""

    prompt: list[ChatMessage]
    preferred: list[ChatMessage]
    rejected: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class UnpairedExample(_Canonical):
    """A `prompt` with one answer, and a `label` that is true if the answer is desirable."""

    prompt: list[ChatMessage]
    completion: list[ChatMessage]
    label: bool
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class CompletionExample(_Canonical):
    prompt: str
    completion: str


class TextExample(_Canonical):
    text: str
    loss_spans: list[tuple[int, int]] | None = None
    """Character ranges that contribute to the loss, as in `ChatMessage`. `None` means the entire text."""


class RLExample(_Canonical):
    """A prompt for sampling answers, and the fields that a grader uses."""

    messages: list[ChatMessage]
    fields: dict[str, Any] = {}
    tools: list[dict[str, Any]] | None = None


Example = ChatExample | PreferenceExample | UnpairedExample | CompletionExample | TextExample | RLExample
Kind = Literal["chat", "preference", "unpaired", "completion", "text", "rl"]

KINDS: dict[type[Any], Kind] = {
    ChatExample: "chat",
    PreferenceExample: "preference",
    UnpairedExample: "unpaired",
    CompletionExample: "completion",
    TextExample: "text",
    RLExample: "rl",
}


def kind_of(example: Example) -> Kind:
    return KINDS[type(example)]


def messages_of(example: Example) -> list[ChatMessage]:
    """Return all messages of the row, or an empty list for plain text."""
    match example:
        case ChatExample() | RLExample():
            return example.messages
        case PreferenceExample():
            return [*example.prompt, *example.preferred, *example.rejected]
        case UnpairedExample():
            return [*example.prompt, *example.completion]
        case _:
            return []


# All problem codes with severity and fix.


MOST_DEEP = 200
"""Maximum number of levels of lists and objects in a row. Python's own limit differs between its versions, so
the same file would be valid on one machine only."""
KEPT_PER_CODE = 100
"""Maximum number of problems stored per code, to limit memory use. One additional problem states how many
more rows are affected."""


@dataclass(frozen=True)
class Code:
    severity: Severity
    title: str
    fix: str


_E, _W, _I = Severity.ERROR, Severity.WARNING, Severity.INFO

CODES: dict[str, Code] = {
    # -- files and lines
    "invalid-json": Code(_E, "the line is not valid JSON", "make each line one valid JSON object"),
    "not-an-object": Code(_E, "the row is not a JSON object", "make each row an object"),
    "too-deep": Code(_E, "the JSON is nested too deeply", "flatten the row"),
    "duplicate-key": Code(
        _W,
        "an object contains a field twice, so the last one is used",
        "remove the duplicate fields (--fix keeps the last)",
    ),
    "encoding": Code(_E, "the line is not UTF-8", "save the file as UTF-8 (--fix replaces the broken bytes)"),
    "lone-surrogate": Code(
        _E,
        "the text has an unpaired surrogate, which UTF-8 cannot encode",
        "remove the surrogate (--fix writes U+FFFD)",
    ),
    "blank-line": Code(_I, "the line is blank", "remove the line (--fix does)"),
    "unknown-format": Code(
        _E, "the row's fields match no known format", "name the columns with --map, or rewrite the row"
    ),
    "mixed-format": Code(_E, "the row's format differs from the rest of the file", "use one format per file"),
    "python-cells": Code(
        _I,
        "cells contain Python list literals",
        "no action needed, but pandas' to_json and Parquet preserve lists",
    ),
    "hidden-column": Code(
        _I,
        "a column is ignored because another column is mapped to its name",
        "to use the original column, remove this --map option",
    ),
    "extra-fields": Code(
        _W,
        "a message or the prompt has unused fields",
        "move the fields' content into the text, or remove the fields",
    ),
    "unread-column": Code(
        _W,
        "a column is not used",
        "map the column (--map FIELD=COLUMN) or ignore it (--ignore COLUMN)",
    ),
    "lost-meaning": Code(
        _E,
        "training would ignore part of the row",
        "remove the part that would be ignored. To train without a column: --ignore COLUMN",
    ),
    "held-out": Code(
        _E,
        "a column marks rows for test or validation",
        "write these rows to separate files for test and validation, or ignore the column (--ignore COLUMN)",
    ),
    "bad-image": Code(_E, "an image cannot be read", "use a path, a URL or a data: URL for each image"),
    "unused-prompt": Code(
        _E,
        "a column that may belong to the prompt is not used",
        "add the column to the prompt, map it (--map context=COLUMN), or ignore it (--ignore COLUMN)",
    ),
    # -- messages
    "no-messages": Code(_E, "the row has no messages", "add at least a user and an assistant message"),
    "bad-message": Code(_E, "a message has an invalid field", "correct the field"),
    "cut-answer": Code(
        _E,
        "the answer was cut off at the token limit",
        "generate the answer again with a higher token limit, or remove the row",
    ),
    "refused-answer": Code(
        _E, "the model refused to answer", "remove the row, or use the refusal as the answer"
    ),
    "bad-role": Code(
        _E,
        "unknown role",
        "use system, developer, user, assistant or tool (--fix maps known aliases)",
    ),
    "bad-content": Code(_E, "the content is neither text nor a list of parts", "use a string as the content"),
    "empty-content": Code(_E, "the message has no content", "add content, or remove the row"),
    "empty-input": Code(_W, "a user or system message is empty", "add content, or remove the message"),
    "last-not-assistant": Code(
        _E,
        "the last message is not from the assistant",
        "end the row with an assistant message (--fix removes later messages)",
    ),
    "no-assistant": Code(
        _E, "no message is from the assistant", "add the answer that the model should learn"
    ),
    "bad-weight": Code(_E, "the weight is neither 0 nor 1", "use 0 or 1"),
    "weight-on-input": Code(
        _E, "only assistant messages can have a weight", "remove the weight (--fix does)"
    ),
    "nothing-trained": Code(
        _E, "the row or all of its answers have weight 0", "remove the row, or set a weight to 1"
    ),
    "legacy-functions": Code(
        _I, "functions and function_call are treated as tools and tool_calls", "nothing to do"
    ),
    # -- tools
    "python-types": Code(
        _I, "tool schemas use Python type names, which are treated as JSON Schema types", "nothing to do"
    ),
    "bad-tool-call": Code(_E, "a tool call is malformed", "set id, type and function {name, arguments}"),
    "bad-arguments": Code(_E, "a tool call's arguments are not a JSON object", "write valid JSON"),
    "unanswered-call": Code(
        _E, "a tool call has no result", "add a tool message with the call's tool_call_id after the call"
    ),
    "orphan-answer": Code(
        _E, "a tool message matches no call", "set tool_call_id to the id of an earlier call"
    ),
    "undeclared-tool": Code(_W, "a called tool is missing from tools", "add the tool's schema to tools"),
    "bad-tools": Code(
        _E, "a tool's schema is invalid", "use {type: function, function: {name, description, parameters}}"
    ),
    "odd-tool": Code(
        _W,
        "some backends may reject this tool",
        "use only letters, digits, _ and - in names, and JSON Schema types",
    ),
    # -- other kinds of rows
    "empty-completion": Code(
        _E, "nothing to learn: the completion is empty", "add a completion, or remove the row"
    ),
    "empty-text": Code(_E, "the text is empty", "remove the row"),
    "empty-prompt": Code(_W, "the prompt is empty", "to train on plain text, use the text format"),
    "same-answers": Code(_E, "both answers are the same", "remove the row (--fix does)"),
    "side-not-assistant": Code(
        _E, "an answer of a pair is not an assistant message", "use assistant messages only"
    ),
    "bad-label": Code(
        _E,
        "the label is neither true nor false",
        "use true or false (--fix converts values such as 0 and 1, or good and bad)",
    ),
    "one-label": Code(
        _W,
        "all answers have the same label",
        "add answers with the other label: KTO learns from their difference",
    ),
    "labels-unbalanced": Code(
        _W,
        "one label is much more frequent than the other",
        "raise the rarer label's weight: set desirable_weight or undesirable_weight in method",
    ),
    # -- text
    "secret": Code(
        _W, "an API key or token", "revoke the key and remove it: a model can repeat its training data"
    ),
    "personal-data": Code(_W, "personal data", "replace real data with invented data"),
    "replacement-character": Code(
        _W,
        "U+FFFD characters: an earlier conversion lost text",
        "export the source again with the right encoding",
    ),
    "mojibake": Code(
        _W, "text was decoded with the wrong encoding", "repair the text (--fix does if possible)"
    ),
    "control-character": Code(_W, "a NUL character", "remove the character (--fix does)"),
    "refusal": Code(_W, "an answer is a refusal", "remove the row unless you want to teach refusals"),
    "placeholder": Code(_W, "a placeholder was not filled in", "fill in the placeholder, or remove the row"),
    # -- comparisons between rows
    "duplicate": Code(_W, "an earlier row is identical", "remove the row (--fix does)"),
    "conflict": Code(_W, "the same prompt has different answers", "keep one answer"),
    "near-duplicate": Code(
        _W,
        "the row is a near-duplicate of an earlier one",
        "to remove near-duplicates: orchestrate data dedupe --near",
    ),
    "leakage": Code(
        _E,
        "the row is also in another split",
        "remove the row from one of the splits, or split again with orchestrate data split",
    ),
    "near-leakage": Code(
        _W, "a near-duplicate of the row is in another split", "remove the row from one of the splits"
    ),
    "prompt-leakage": Code(
        _W, "the prompt is also in another split", "remove the row from one of the splits"
    ),
    "label-imbalance": Code(_W, "some answers are much more frequent than others", "balance the labels"),
    "label-spelling": Code(
        _W, "labels differ only in case, spaces or a period", "spell each label the same way everywhere"
    ),
    "unreviewed": Code(
        _W,
        "generated rows were not reviewed",
        "orchestrate data review FILE, then export the rows with --export OUT",
    ),
    "few-rows": Code(_I, "the file may have too few rows for this goal", goals.volume_summary()),
    "rl-ends-with-answer": Code(
        _E, "the prompt ends with an assistant message", "end the prompt with a user message"
    ),
}


_MORE = " more like this"


def more_of(code: str, count: int) -> Problem:
    """Create one problem that summarizes `count` more rows with the same code."""
    return problem(code, f"{count:,}{_MORE}")


def rows_of(found: Problem) -> int:
    """Return the number of rows that a problem represents."""
    if found.row is None and found.message.endswith(_MORE):
        return int(found.message.removesuffix(_MORE).replace(",", ""))
    return 1


def problem(
    code: str, message: str | None = None, *, row: int | None = None, field: str | None = None
) -> Problem:
    """Create a problem with this code. Raises `KeyError` for a code that is not in `CODES`."""
    known = CODES[code]
    return Problem(
        code=code,
        message=message or known.title,
        severity=known.severity,
        row=row,
        field=field,
        fix=known.fix,
    )


def file_of(problem: Problem) -> str:
    """Return the name of a problem's file, or an empty string if it has none. The query of a URL is left out
    because it may be secret."""
    source = problem.source or ""
    return Path(urlsplit(source).path if "://" in source else source).name


# JSON that preserves all digits of numbers, so that free fields, schemas and arguments are never rounded.


class Digits(float):
    """A number that a double cannot represent exactly. `text` keeps the original digits."""

    text: str

    def __new__(cls, text: str) -> Digits:
        number = super().__new__(cls, text)
        number.text = text
        return number

    def __reduce__(self) -> tuple[type[Digits], tuple[str]]:
        return Digits, (self.text,)


def number(text: str) -> float:
    """Parse a number literal with a decimal point or an exponent. Returns `Digits` if a float would lose
    digits."""
    rounded = float(text)
    return rounded if Decimal(repr(rounded)) == Decimal(text) else Digits(text)


def _written(value: Any) -> Any:
    if isinstance(value, Digits):
        return msgspec.Raw(value.text.encode())
    raise NotImplementedError(f"{type(value).__name__} is not a JSON type")


def digits_of(value: Any) -> str:
    """Return the text of a `Digits` value, for encoders of other formats."""
    if isinstance(value, Digits):
        return value.text
    raise NotImplementedError(f"{type(value).__name__} is not a JSON type")


_decode = msgspec.json.Decoder(float_hook=number).decode


def decode(text: str | bytes) -> Any:
    """Decode JSON. Raises `msgspec.DecodeError`, and `RecursionError` if it is nested deeper than
    `MOST_DEEP`."""
    value = _decode(text)
    if is_deep(value):
        raise RecursionError
    return value


def is_deep(value: object, most: int = MOST_DEEP) -> bool:
    """Return whether a decoded value has more than `most` levels of lists and objects."""
    level: list[Any] = [[value]]  # the lists and objects of one level
    for _ in range(most + 1):
        inner = chain.from_iterable(
            cast("dict[str, Any]", one).values() if isinstance(one, dict) else one for one in level
        )
        level = [one for one in inner if isinstance(one, dict | list)]
        if not level:
            return False
    return True


encode = msgspec.json.Encoder(enc_hook=_written).encode
encode_sorted = msgspec.json.Encoder(enc_hook=_written, order="deterministic").encode


def spaced(value: Any) -> str:
    """Encode a value as JSON with a space after commas and colons, like Python's `json`."""
    return encode(value).decode() if _holds_digits(value) else json.dumps(value, ensure_ascii=False)


def _holds_digits(value: Any) -> bool:
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if isinstance(one, Digits):
            return True
        if isinstance(one, dict | list):
            left += cast("dict[str, Any]", one).values() if isinstance(one, dict) else cast("list[Any]", one)
    return False
