"""One pass over the rows of a JSONL file: a pure function of a byte range, and the fold of its results.

`scan` reads a range of lines and returns only counts, arrays and a bounded number of problems, so that ranges
can be read by many processes, on one machine or on several; `Total.add` puts the parts together in order.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from orchestrate.data.examples import ChatExample, Example, PreferenceExample, RLExample
from orchestrate.data.problems import KEPT_PER_CODE, problem
from orchestrate.data.rows import Reading, Row, canonical, reading
from orchestrate.data.tokens import Lengths, counter
from orchestrate.data.traits import Trait
from orchestrate.types import Problem, Severity

FIRST_ROWS = 20
"""Row numbers kept for each trait."""


@dataclass(frozen=True)
class Task:
    """Lines of `path` from byte `start` up to `end`; both lie at beginnings of lines."""

    path: str
    start: int
    end: int
    format: str
    columns: tuple[tuple[str, str], ...] = ()
    tokenizers: tuple[str, ...] = ()


@dataclass
class Part:
    """What one range holds. Row numbers count the lines of the range from 1."""

    lines: int = 0
    rows: int = 0
    canonical_bytes: int = 0
    digests: bytearray = field(default_factory=bytearray)
    """32 bytes for each good row: the sha256 of its canonical form."""
    numbers: array[int] = field(default_factory=lambda: array("I"))
    """The row number of each good row."""
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    """64-bit hash of what comes before the answer, for each good row."""
    masks: Counter[int] = field(default_factory=Counter[int])
    first_rows: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    roles: Counter[str] = field(default_factory=Counter[str])
    """Messages of each role."""
    lengths: dict[str, Lengths] = field(default_factory=dict[str, Lengths])
    problems: list[Problem] = field(default_factory=list[Problem])
    """At most `KEPT_PER_CODE` of each code."""
    counts: Counter[str] = field(default_factory=Counter[str])
    """Problems of each code, those not kept included."""

    def report(self, found: list[Problem], row: int) -> None:
        for p in found:
            self.counts[p.code] += 1
            if self.counts[p.code] <= KEPT_PER_CODE:
                self.problems.append(msgspec.structs.replace(p, row=row))

    def notice(self, mask: int, row: int) -> None:
        self.masks[mask] += 1
        if self.masks[mask] > FIRST_ROWS:
            return
        for bit in bits(mask):
            rows = self.first_rows.setdefault(bit, [])
            if len(rows) < FIRST_ROWS:
                rows.append(row)


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low
        mask ^= low


def lines(path: str, start: int, end: int) -> Iterator[bytes]:
    """The lines of a range, without their ends; a byte-order mark at the file's beginning is skipped."""
    with Path(path).open("rb") as file:
        file.seek(start)
        left = end - start
        if start == 0 and file.peek(3)[:3] == b"\xef\xbb\xbf":
            left -= len(file.read(3))
        while left > 0:
            line = file.readline()
            if not line:
                return
            left -= len(line)
            yield line.rstrip(b"\r\n")


def read_rows(task: Task) -> Iterator[tuple[int, bytes, Row]]:
    """Line number within the range, the line and its row; blank lines have a row with that problem only."""
    how: Reading = reading(task.format, task.columns)
    for number, line in enumerate(lines(task.path, task.start, task.end), start=1):
        if line and not line.isspace():
            yield number, line, how.read(line)
        else:
            yield number, line, Row(None, 0, [problem("blank-line")])


def scan(task: Task) -> Part:
    part = Part()
    examples: list[Example] = []
    counting = [(name, counter(name)) for name in task.tokenizers]
    part.lengths = {name: Lengths() for name in task.tokenizers}
    weight = 0

    def count() -> None:
        for name, by in counting:
            part.lengths[name].extend(by.count(examples))
        examples.clear()

    for number, line, row in read_rows(task):
        part.lines = number
        if row.problems:
            part.report(row.problems, number)
        if row.example is None:
            continue
        _note(part, row.example, row.traits, number)
        if counting:
            examples.append(row.example)
            weight += len(line)
            if weight > BATCH_BYTES:
                count()
                weight = 0
    count()
    return part


BATCH_BYTES = 1 << 20
"""Text given to the counter in one call."""


def _note(part: Part, example: Example, traits: int, number: int) -> None:
    whole = canonical(example)
    part.rows += 1
    part.canonical_bytes += len(whole) + 1
    part.digests += hashlib.sha256(whole).digest()
    part.numbers.append(number)
    part.notice(traits, number)
    match example:
        case ChatExample() | RLExample():
            part.roles.update([m.role for m in example.messages])
        case PreferenceExample():
            part.roles.update([m.role for m in (*example.prompt, *example.preferred, *example.rejected)])
        case _:
            pass


@dataclass
class Total:
    """Parts, folded in order."""

    lines: int = 0
    rows: int = 0
    canonical_bytes: int = 0
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)  # pyright: ignore[reportPrivateUsage]
    masks: Counter[int] = field(default_factory=Counter[int])
    first_rows: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    roles: Counter[str] = field(default_factory=Counter[str])
    lengths: dict[str, Lengths] = field(default_factory=dict[str, Lengths])
    problems: list[Problem] = field(default_factory=list[Problem])
    counts: Counter[str] = field(default_factory=Counter[str])

    def add(self, part: Part) -> None:
        for p in part.problems:
            self.counts[p.code] += 1
            if self.counts[p.code] <= KEPT_PER_CODE:
                self.problems.append(msgspec.structs.replace(p, row=(p.row or 0) + self.lines))
        kept = Counter(p.code for p in part.problems)
        self.counts.update(part.counts - kept)
        for bit, rows in part.first_rows.items():
            mine = self.first_rows.setdefault(bit, [])
            mine.extend(row + self.lines for row in rows[: FIRST_ROWS - len(mine)])
        for name, lengths in part.lengths.items():
            self.lengths.setdefault(name, Lengths()).extend(lengths)
        self.sha256.update(part.digests)
        self.masks.update(part.masks)
        self.roles.update(part.roles)
        self.canonical_bytes += part.canonical_bytes
        self.rows += part.rows
        self.lines += part.lines

    def reported(self, source: str) -> tuple[Problem, ...]:
        """All kept problems, and for each code with more rows one that tells how many are not shown."""
        found = [msgspec.structs.replace(p, source=source) for p in self.problems]
        shown = Counter(p.code for p in self.problems)
        for code, count in self.counts.items():
            if count > shown[code]:
                message = f"{count - shown[code]:,} more like this"
                found.append(msgspec.structs.replace(problem(code, message), source=source))
        return tuple(found)

    def errors(self) -> int:
        return sum(n for code, n in self.counts.items() if problem(code).severity is Severity.ERROR)

    def rows_with(self, trait: Trait) -> int:
        return sum(n for mask, n in self.masks.items() if mask & trait)
