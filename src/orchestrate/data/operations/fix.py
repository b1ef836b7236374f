"""`orchestrate data check --fix`: write a repaired copy, and a log with one line per change.

Only unambiguous problems are repaired: role aliases, numbers as content, weights on inputs, messages after
the last answer, invalid bytes, NUL characters, and text decoded with the wrong encoding. A row that still has
an error or repeats another row is left out of the copy and logged.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

from orchestrate.data.dataset_reader import first_lines, sniff
from orchestrate.data.dialects import canonical_line
from orchestrate.data.files import log_beside, require_writable, writing
from orchestrate.data.files.sources import source
from orchestrate.data.passes.scan import pieces, ranges
from orchestrate.data.rows import CODES, ChatExample, ChatMessage, Example, encode
from orchestrate.data.rows.content import holds_both, is_about_encodings, is_damaged
from orchestrate.data.rows.content import repaired as decoded_anew
from orchestrate.data.rows.traits import Trait, examine
from orchestrate.data.rules import RowTarget
from orchestrate.data.shapes import known as shapes
from orchestrate.data.shapes.chat import alias
from orchestrate.data.shapes.preferences import TAGS
from orchestrate.data.shapes.row_reader import ReadRow, canonical, parse, renamed, repeated_keys, row_of
from orchestrate.data.shapes.unread import kept_for, verdict_of
from orchestrate.errors import DataError
from orchestrate.text import encodable, map_texts
from orchestrate.types import Record, Severity

_MESSAGE_LISTS = (
    "messages",
    "preferred_output",
    "non_preferred_output",
    "prompt",
    "completion",
    "chosen",
    "rejected",
)
_TURN_LISTS = ("conversations", "conversation")


class RowFix(Record, frozen=True, kw_only=True):
    """One change to a row. `action` is `left out` if the row is not in the copy. Otherwise it is `repaired`,
    `not repaired`, or `dropped` if a field was removed. `code` is the problem's code."""

    row: int
    code: str
    action: str
    detail: str


class FixReport(Record, frozen=True, kw_only=True):
    """The result of `data check --fix`. `log` is the file that lists every change."""

    path: str
    output: str
    log: str
    lines: int
    written: int
    repaired: dict[str, int]
    """The number of repairs by problem code."""
    left_out: dict[str, int]
    dropped: dict[str, int]
    """Number of rows and messages with fields that no training format uses. The copy does not contain these
    fields."""
    not_repaired: dict[str, int]


def fix(
    path: str,
    output: Path,
    *,
    hosts: Sequence[RowTarget] = (),
    columns: Mapping[str, str] | None = None,
) -> FixReport:
    """Write the repaired copy to `output`, as canonical JSONL, and the log next to it.

    Adjacent messages with the same role are merged if one of the `hosts` requires alternating turns. Raises
    `DataError` if the file has no known format, if the copy would be empty, or if a column marks rows as test
    or validation data, because the copy would lose that column."""
    require_writable(output, path)
    log = log_beside(output, "changes", path)
    lines = source(path)
    renaming = tuple(sorted((columns or {}).items()))
    shape = sniff(path, first_lines(lines.lines), renaming)
    join = any(Trait.NOT_ALTERNATING in host.rules.traits for host in hosts)
    line_of = canonical_line
    done = {action: Counter[str]() for action in ("repaired", "left out", "dropped", "not repaired")}
    seen: dict[bytes, int] = {}
    number = written = kept_out = 0
    with writing(output) as copy, writing(log) as record:
        for start, end in ranges(lines.lines, lines.line_bytes):
            for line in chain.from_iterable(pieces(lines.lines, start, end)):
                number += 1
                mend = _Mend(number)
                example = mend.row(line.removesuffix(b"\n"), shape, renaming, join)
                if example is not None:
                    digest = hashlib.sha256(canonical(example)).digest()[:16]
                    if seen.setdefault(digest, number) != number:
                        mend.leave("duplicate", f"identical to row {seen[digest]}")
                        example = None
                if example is not None:
                    copy.write(line_of(example) + b"\n")
                    written += 1
                    kept_out += mend.is_held_out
                for change in mend.changes:
                    record.write(change.to_json() + b"\n")
                    done[change.action][change.code] += 1
        _require_copy(path, written, kept_out, done["left out"])
    return FixReport(
        path=path,
        output=str(output),
        log=str(log),
        lines=number,
        written=written,
        repaired=dict(done["repaired"]),
        left_out=dict(done["left out"]),
        dropped=dict(done["dropped"]),
        not_repaired=dict(done["not repaired"]),
    )


def _require_copy(path: str, written: int, kept_out: int, left_out: Mapping[str, int]) -> None:
    if 0 < kept_out < written:
        raise DataError(
            f"{path}: {kept_out:,} of {written:,} rows are held out for test or validation, and the copy "
            "would lose this information",
            fix=CODES["held-out"].fix,
        )
    if not written:
        why = ", ".join(f"{code} {n:,}" for code, n in Counter(left_out).most_common(4))
        raise DataError(
            f"{path}: no row could be repaired ({why}), so no copy was written",
            fix=f"to see what is wrong with each row: orchestrate data check {path}",
        )


class _Mend:
    """Repairs of one line."""

    is_held_out = False

    def __init__(self, number: int) -> None:
        self.changes: list[RowFix] = []
        self._number = number

    def did(self, code: str, detail: str, action: str = "repaired") -> None:
        self.changes.append(RowFix(row=self._number, code=code, action=action, detail=detail))

    def leave(self, code: str, detail: str) -> None:
        self.did(code, detail, "left out")

    def row(
        self, line: bytes, shape: shapes.RowFormat, columns: tuple[tuple[str, str], ...], join: bool
    ) -> Example | None:
        if not line.strip():
            self.leave("blank-line", "the line is blank")
            return None
        value = self._parsed(line)
        if not isinstance(value, dict):
            if not self.changes or self.changes[-1].action == "repaired":
                self.leave("not-an-object", "the row is not a JSON object")
            return None
        row = self._clean(renamed(cast("dict[str, Any]", value), columns))
        other = None if shape.fits(row) else shapes.recognize(row)
        if other is not None and other.kind == shape.kind:
            self.did("mixed-format", f"read as {other.name}")
            shape = other
        self._messages(row)
        if shape.kind == "unpaired":
            self._label(row)
        read = row_of(row, shape)
        for p in read.problems:
            if p.code == "extra-fields" and read.example is not None:
                self.did(p.code, f"{p.field}: {p.message}" if p.field else p.message, "dropped")
        self.is_held_out = any(kept_for(name, value) for name, value in read.unread.items())
        if read.unread and read.example is not None:
            self.did("unread-column", f"unused: {', '.join(sorted(read.unread))}", "dropped")
        if read.example is not None and join and read.traits & Trait.NOT_ALTERNATING:
            read = self._joined(read.example)
        if read.example is None:
            wrong = next(p for p in read.problems if p.severity is Severity.ERROR)
            self.leave(wrong.code, f"{wrong.field}: {wrong.message}" if wrong.field else wrong.message)
        return read.example

    def _parsed(self, line: bytes) -> Any:
        value, wrong = parse(line)
        if wrong is not None and wrong.code == "encoding":
            self.did("encoding", f"{wrong.message}. Invalid bytes were replaced with U+FFFD")
            value, wrong = parse(line.decode("utf-8", "replace").encode())
        if wrong is not None and wrong.code == "lone-surrogate":
            self.did("lone-surrogate", "lone surrogates replaced with U+FFFD")
            value, wrong = encodable(json.loads(line)), None
        if wrong is not None:
            self.leave(wrong.code, wrong.message)
        for repeated in repeated_keys(line):
            self.did(repeated.code, repeated.message)
        return value

    def _clean(self, row: dict[str, Any]) -> dict[str, Any]:
        """Remove NUL characters and repair wrongly decoded text."""
        text = encode(row).decode()
        if "\\u0000" not in text and "\xc3" not in text and "\xe2" not in text:
            return row
        done: set[str] = set()
        is_about = is_about_encodings(text) or holds_both(text)
        cleaned = map_texts(row, lambda s: _repaired_text(s, done, decoded=not is_about))
        for code in sorted(done):
            self.did(
                code,
                "NUL removed"
                if code == "control-character"
                else "text decoded again with the right encoding",
            )
        if is_damaged(encode(cleaned).decode()):
            why = (
                "the row discusses encoding errors, so they may be intentional"
                if is_about
                else "part of the damage cannot be repaired"
            )
            self.did("mojibake", why, "not repaired")
        return cleaned

    def _messages(self, row: dict[str, Any]) -> None:
        given: Any = row.get("input")
        holders = [row, cast("dict[str, Any]", given)] if isinstance(given, dict) else [row]
        for holder in holders:
            for name in _MESSAGE_LISTS:
                items: Any = holder.get(name)
                if isinstance(items, list):
                    for i, item in enumerate(cast("list[Any]", items)):
                        if isinstance(item, dict):
                            self._message(cast("dict[str, Any]", item), f"{name}[{i}]")
            for name in _TURN_LISTS:
                turns: Any = holder.get(name)
                for i, turn in enumerate(cast("list[Any]", turns) if isinstance(turns, list) else ()):
                    if isinstance(turn, dict):
                        self._turn(cast("dict[str, Any]", turn), f"{name}[{i}]")
        messages: Any = row.get("messages")
        if isinstance(messages, list) and "preferred_output" not in row:
            self._cut(cast("list[Any]", messages), row)

    def _turn(self, item: dict[str, Any], place: str) -> None:
        """Repair a turn of a ShareGPT conversation."""
        role = alias(item.get("from", item.get("role")))
        if item.get("weight") is not None and role is not None and role != "assistant":
            del item["weight"]
            self.did("weight-on-input", f"{place}: weight removed")

    def _label(self, row: dict[str, Any]) -> None:
        """Convert labels such as 0 and 1 to booleans. Grades and scores are unchanged because their
        threshold is unknown."""
        for name in row.keys() & TAGS:
            value = row[name]
            meant = verdict_of(value)
            if meant is not None and not isinstance(value, bool):
                row[name] = meant
                self.did("bad-label", f"{name}: {value!r} became {str(meant).lower()}")

    def _message(self, item: dict[str, Any], place: str) -> None:
        role = item.get("role")
        known = alias(role)
        if known is not None and known != role:
            item["role"] = known
            self.did("bad-role", f"{place}: {role} became {known}")
        content = item.get("content")
        if isinstance(content, list):
            self._parts(cast("list[Any]", content), place)
        if isinstance(content, bool | int | float):
            item["content"] = encode(content).decode()
            self.did("bad-content", f"{place}: {content!r} became text")
        weight = item.get("weight")
        if weight is not None and item.get("role") != "assistant":
            del item["weight"]
            self.did("weight-on-input", f"{place}: weight removed")
        elif isinstance(weight, bool):
            item["weight"] = int(weight)
            self.did("bad-weight", f"{place}: {weight} became {int(weight)}")

    def _parts(self, parts: list[Any], place: str) -> None:
        """Convert image URLs to image parts, and OpenAI's newer text part types to `text`."""
        for j, item in enumerate(parts):
            part = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
            kind, image = part.get("type"), part.get("image_url")
            if kind in ("input_text", "output_text"):
                part["type"] = "text"
                self.did("bad-content", f"{place}.content[{j}]: {kind} converted to text")
            elif kind == "image_url" and isinstance(image, str):
                part["image_url"] = {"url": image}
                self.did("bad-content", f"{place}.content[{j}]: image_url converted to an object")

    def _cut(self, messages: list[Any], row: dict[str, Any]) -> None:
        """Remove messages after the last answer, because they teach nothing. Skips RFT prompts."""
        if shapes.BY_NAME["rft"].fits(row):
            return
        roles = [cast("dict[str, Any]", m).get("role") if isinstance(m, dict) else None for m in messages]
        if "assistant" not in roles or roles[-1] == "assistant":
            return
        last = len(roles) - 1 - roles[::-1].index("assistant")
        self.did("last-not-assistant", f"removed {len(roles) - 1 - last} messages after the last answer")
        del messages[last + 1 :]

    def _joined(self, example: Example) -> ReadRow:
        if not isinstance(example, ChatExample):
            return ReadRow(example, *examine(example))
        joined: list[ChatMessage] = []
        for m in example.messages:
            before = joined[-1] if joined else None
            if before is not None and _alike(before, m):
                before.content = f"{before.content}\n\n{m.content}"
                self.did("not-alternating", f"adjacent {m.role} messages merged")
            else:
                joined.append(m)
        example.messages = joined
        return ReadRow(example, *examine(example))


def _alike(a: ChatMessage, b: ChatMessage) -> bool:
    """Return whether two messages can be merged: plain text from the same speaker with the same weight."""
    plain = all(isinstance(m.content, str) and not m.tool_calls and m.reasoning is None for m in (a, b))
    same = (a.role, a.name, a.weight == 0) == (b.role, b.name, b.weight == 0)
    return plain and same and a.role in ("user", "assistant")


def _repaired_text(text: str, done: set[str], *, decoded: bool) -> str:
    if "\x00" in text:
        text = text.replace("\x00", "")
        done.add("control-character")
    better = decoded_anew(text) if decoded else text
    if better != text:
        done.add("mojibake")
    return better
