"""Read one line of JSON into a canonical example, its traits and its problems. Pure and deterministic."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import msgspec

from orchestrate.data import rows
from orchestrate.data.rows import (
    ChatExample,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    TextExample,
    UnpairedExample,
    messages_of,
    problem,
)
from orchestrate.data.rows.traits import TOOLS, Trait, examine
from orchestrate.data.shapes import known
from orchestrate.types import Problem, Severity, decoding

occurrences: Callable[[bytes, bytes], int] = bytes.count
with suppress(ImportError):  # optional, seven times as fast
    from stringzilla import count as occurrences  # pyright: ignore[reportUnknownVariableType]

_STRICT = {"openai-chat": decoding.decoder(ChatExample, float_hook=rows.number)}
"""Formats whose clean rows decode directly into the canonical struct."""

_MENDED = frozenset({"orphan-answer", "bad-tools", "odd-tool"})
"""Problems that the lenient reader may fix: tool calls written as plain text in an answer, and Python type
names such as `str` in a schema."""
_ENCODER = msgspec.msgpack.Encoder(order="deterministic", enc_hook=rows.digits_of)


_NONE: Mapping[str, Any] = {}


class ReadRow(msgspec.Struct, frozen=True, gc=False):
    """The result of reading one row. `example` is `None` if the row has an error, in which case the row is
    not written to any output."""

    example: Example | None
    traits: int = 0
    problems: Sequence[Problem] = ()
    other: str | None = None
    """Format of the row, if it differs from the file's."""
    unread: Mapping[str, Any] = _NONE
    """Unused columns and their values."""


@dataclass(frozen=True)
class RowReading:
    """Settings for reading the rows of a file: the format, and the column mapping (field name to column) to
    apply first."""

    format: str
    columns: tuple[tuple[str, str], ...] = ()

    @property
    def shape(self) -> known.RowFormat:
        return known.BY_NAME[self.format]

    def read(self, line: bytes) -> ReadRow:
        """Parse one line of JSON into a row. The trailing newline is optional. Never raises an exception for
        invalid content."""
        decoder = None if self.columns else _STRICT.get(self.format)
        if decoder is not None:
            try:
                example: ChatExample = decoder.decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                pass
            else:
                if example.tools and rows.is_deep(example.tools, rows.MOST_DEEP - 1):
                    return ReadRow(None, 0, [problem("too-deep")])
                traits, found = examine(example)
                if _may_repeat(line, example):
                    found = [*repeated_keys(line), *found]
                if not found and not (traits & TOOLS and _is_unnumbered(example)):
                    return ReadRow(example, traits)
                if found and _MENDED.isdisjoint(p.code for p in found):
                    return _row(example, traits, found)
        return self._patiently(line)

    def _patiently(self, line: bytes) -> ReadRow:
        value, wrong = parse(line.removesuffix(b"\n"))
        if wrong is not None:
            return ReadRow(None, 0, [wrong])
        if not isinstance(value, dict):
            return ReadRow(None, 0, [problem("not-an-object", f"the row is {_named(value)}")])
        row = row_of(renamed(cast("dict[str, Any]", value), self.columns), self.shape)
        if _names(line) > _fields(cast("dict[str, Any]", value)) and (repeated := repeated_keys(line)):
            row = msgspec.structs.replace(row, problems=(*repeated, *row.problems))
        return row


def _is_unnumbered(example: ChatExample) -> bool:
    return any(not call.id for m in example.messages for call in m.tool_calls or ())


def row_of(value: dict[str, Any], shape: known.RowFormat) -> ReadRow:
    """Build a row from a decoded object."""
    example, found, unread, other = known.read(value, shape)
    if example is None:
        return ReadRow(None, 0, found, other, unread)
    traits, more = examine(example)
    if unread or any(p.code == "extra-fields" for p in found):
        traits |= Trait.EXTRA_FIELDS
    return _row(example, traits, found + more, unread)


def _row(example: Example, traits: int, found: list[Problem], unread: Mapping[str, Any] = _NONE) -> ReadRow:
    broken = any(p.severity is Severity.ERROR for p in found)
    return ReadRow(None if broken else example, traits, found, None, unread)


def renamed(row: dict[str, Any], columns: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """Rename each mapped column to the field it is mapped to. Other columns keep their names. If a field is
    mapped to an empty column name, it is dropped."""
    if not columns:
        return row
    taken = {column or wanted for wanted, column in columns}
    kept = {key: value for key, value in row.items() if key not in taken}
    return kept | {wanted: row[column] for wanted, column in columns if column in row}


def parse(line: bytes) -> tuple[Any, Problem | None]:
    """Parse a line as JSON. Returns the value, or the problem if the line can't be parsed."""
    try:
        return rows.decode(line), None
    except RecursionError:
        return None, problem("too-deep")
    except UnicodeDecodeError as error:
        return None, problem("encoding", f"byte {error.start + 1} of a string is not valid UTF-8")
    except msgspec.DecodeError as error:
        return None, _why_not_json(line, str(error))


def _why_not_json(line: bytes, reason: str) -> Problem:
    """Explain why a line is not valid JSON. The standard parser is slower and more lenient, and reports
    the column of an error."""
    try:
        text = line.decode()
        value = json.loads(text, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        return problem("encoding", f"byte {error.start + 1} of the line is not valid UTF-8")
    except RecursionError:
        return problem("too-deep")
    except json.JSONDecodeError as error:
        return problem("invalid-json", f"{error.msg.removesuffix(' at')} at column {error.colno}")
    except ValueError as error:
        return problem("invalid-json", str(error))
    if _holds_surrogate(value):
        return problem("lone-surrogate")
    return problem("invalid-json", reason)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not valid JSON. Use a number or null")


def _names(line: bytes) -> int:
    """Count the field names in a line, including repeated ones. A quote inside a text is escaped and
    doesn't count."""
    named = occurrences(line, b'":') - occurrences(line, b'\\":')
    if _is_spaced(line):
        named += len(_SPACED.findall(line))
    return named


_SPACED = re.compile(rb'(?<!\\)"[ \t\r]+:')
"""The end of a field name that is not followed directly by its colon."""


def _is_spaced(line: bytes) -> bool:
    """Return whether a line has white space after a string, which few writers put there. A text contains no
    tab that isn't escaped."""
    spaces = occurrences(line, b'" ')
    return (spaces > 0 and spaces > occurrences(line, b'\\" ')) or b"\t" in line


def _may_repeat(line: bytes, example: ChatExample) -> bool:
    """Return whether a line may contain a field twice. For plain messages, the fields are counted. For
    others, the line is compared with the row after encoding it again."""
    count = len(example.messages)
    if occurrences(line, b'"content"') > count or occurrences(line, b'"role"') > count:
        return True
    named = _names(line)
    if named <= 2 * count + 1:
        return False
    written = rows.encode(example)  # includes the type of each call, which is optional
    return named > _names(written) or line.count(b'"type"') < written.count(b'"type"')


def _fields(row: dict[str, Any]) -> int:
    """Count the fields of a row and of the objects in its lists, without deeper levels."""
    count = len(row)
    for value in row.values():
        if isinstance(value, list):
            items = cast("list[Any]", value)
            count += sum(len(cast("dict[str, Any]", i)) for i in items if isinstance(i, dict))
    return count


def repeated_keys(line: bytes) -> list[Problem]:
    """Return a problem if an object in the line contains the same key twice. This check is slow, so call it
    only for suspicious lines."""
    names: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> None:
        names.extend(name for name, times in Counter(name for name, _ in items).items() if times > 1)

    try:
        json.loads(line, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return []
    return [problem("duplicate-key", f"{names[0]!r} appears twice, so the last one is used")] if names else []


def _holds_surrogate(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _named(value: object) -> str:
    if value is None:
        return "null"
    return {"list": "a list", "str": "text", "bool": "true or false"}.get(type(value).__name__, "a number")


def canonical(value: Any) -> bytes:
    """Return the canonical bytes of an example, from which the digest is computed, or of a part of it: all
    fields that are set, with the keys of free-form objects sorted."""
    try:
        return _ENCODER.encode(value)
    except OverflowError:  # an integer of more than 64 bits in a schema or a grader field
        return rows.encode_sorted(value)


def json_bytes(example: Example) -> int:
    """Return the size of the row in bytes, as a line of compact JSON."""
    return len(rows.encode_sorted(example)) + 1


def canonical_prompt(example: Example) -> bytes:
    """Return the canonical bytes of everything before the answer. Rows with equal prompts and different
    answers contradict each other."""
    match example:
        case ChatExample():
            return canonical((example.messages[:-1], example.tools))
        case PreferenceExample() | UnpairedExample():
            return canonical((example.prompt, example.tools))
        case RLExample():
            return canonical((example.messages, example.tools))
        case CompletionExample():
            return example.prompt.encode()
        case TextExample():
            return example.text.encode()


def canonical_answered(example: UnpairedExample | PreferenceExample | RLExample) -> bytes:
    """Return the canonical bytes of everything except the judgment (the label, or which answer is preferred).
    Rows contradict each other if only their judgments differ. For an RL row, this is the prompt with the
    values that a grader uses for comparison."""
    match example:
        case UnpairedExample():
            return canonical((example.prompt, example.completion, example.tools))
        case PreferenceExample():
            answers = sorted((canonical(example.preferred), canonical(example.rejected)))
            return canonical((example.prompt, answers, example.tools, example.parallel_tool_calls))
        case RLExample():
            return canonical((example.messages, known.reference(example.fields), example.tools))


def last_answer(example: Example) -> str:
    """Return the text of the answer to learn. If there are several messages, it's the text of the last
    one."""
    match example:
        case ChatExample():
            return example.messages[-1].text
        case PreferenceExample():
            return example.preferred[-1].text
        case UnpairedExample():
            return example.completion[-1].text
        case CompletionExample():
            return example.completion
        case TextExample():
            return example.text
        case RLExample():
            return ""


def answers(example: Example) -> str:
    """Return all text that the model should learn, joined by blank lines. For a pair, this is the preferred
    side. For an undesirable answer, the text is empty."""
    match example:
        case ChatExample():
            said = [m.text for m in example.messages if m.role == "assistant" and m.weight != 0]
        case PreferenceExample():
            said = [m.text for m in example.preferred]
        case UnpairedExample():
            said = [m.text for m in example.completion if example.label]
        case _:
            said = [last_answer(example)]
    return "\n\n".join(said)


def visible(example: Example) -> str:
    """Return all text that a model sees, including tool calls, joined by blank lines."""
    if isinstance(example, CompletionExample):
        return f"{example.prompt}\n\n{example.completion}"
    if isinstance(example, TextExample):
        return example.text
    pieces: list[str] = []
    for m in messages_of(example):
        content = m.content
        pieces.append(content if isinstance(content, str) else m.text)
        if m.reasoning:
            pieces.append(m.reasoning)
        if m.tool_calls:
            pieces += [call.function.arguments for call in m.tool_calls]
    return "\n\n".join(pieces)


@lru_cache(maxsize=64)
def reading(format: str, columns: tuple[tuple[str, str], ...] = ()) -> RowReading:
    return RowReading(format, columns)
