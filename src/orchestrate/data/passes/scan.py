"""Scan the rows of a JSONL file in one pass: apply a pure function to byte ranges and combine the results.

`scan` reads a range of lines and returns only counts, arrays and a bounded number of problems, so many
processes can read ranges, on one or several machines. `Total.add` combines the results in order.
"""

from __future__ import annotations

import hashlib
import math
import os
import random
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from io import BytesIO
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import IO

import msgspec
from msgspec.structs import replace
from xxhash import xxh3_64_intdigest, xxh3_128

from orchestrate.data.files.records import LONGEST_RECORD
from orchestrate.data.rows import (
    KEPT_PER_CODE,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
    messages_of,
    more_of,
    problem,
)
from orchestrate.data.rows.content import candidates, confirmed, sifted
from orchestrate.data.rows.traits import IMAGES, TEXT_PARTS, TOOLS, Picture, Trait, pictures
from orchestrate.data.rows.traits import add as add_pictures
from orchestrate.data.shapes.row_reader import (
    ReadRow,
    answers,
    canonical,
    canonical_answered,
    canonical_prompt,
    json_bytes,
    last_answer,
    reading,
    visible,
)
from orchestrate.data.shapes.unread import UnreadColumn, note
from orchestrate.data.tokens import COVERAGE, Lengths, Remark
from orchestrate.data.tokens.counters import counter
from orchestrate.errors import DataError
from orchestrate.types import Problem, Severity

_JUDGED = (UnpairedExample, PreferenceExample, RLExample)
_PARTS = IMAGES | TEXT_PARTS
CHUNK = 8 << 20
"""Size of one task in bytes."""
PIECE = 256 << 10
"""Number of bytes that a task processes at a time: large enough for batched calls, small enough for a core's
cache."""
SIZED = 16
"""Sampling interval for measuring the JSON size: one in every `SIZED` rows is measured."""
FIRST_ROWS = 20
"""Maximum number of row numbers stored for each trait."""
LONGEST_LABEL = 60
"""Maximum length, in characters, of an answer that can count as a label."""
MOST_LABELS = 200
"""Maximum number of distinct short answers for them to count as labels."""

DESIRABLE, UNDESIRABLE = "desirable", "undesirable"
"""Labels of unpaired rows, as named in KTO."""


@dataclass(frozen=True)
class ScanTask:
    """Task to scan the lines of `path` from byte `start` (inclusive) to byte `end` (exclusive). Both are line
    boundaries."""

    path: str
    start: int
    end: int
    format: str
    columns: tuple[tuple[str, str], ...] = ()
    tokenizers: tuple[str, ...] = ()
    compare: bool = False
    """True to collect the data for comparing rows: hashes of rows and prompts, and short answers."""
    content: bool = False
    """True to search for secrets, personal data, damage, refusals and placeholders."""
    memory: str | None = None
    """Cache folder for compiled patterns."""


@dataclass
class Tally:
    """Counts for a range or for an entire file."""

    lines: int = 0
    rows: int = 0
    canonical_bytes: int = 0
    """Total size in bytes of the sampled rows (one in every `SIZED`), serialized as JSON lines."""
    numbers: array[int] = field(default_factory=lambda: array("I"))
    """The row number of each valid row."""
    prompts: array[int] = field(default_factory=lambda: array("Q"))
    """A 64-bit hash of the text before the answer, for each valid row."""
    answered: array[int] = field(default_factory=lambda: array("Q"))
    """A 64-bit hash of `canonical_answered`, for each valid row that has one."""
    labels: Counter[str] = field(default_factory=Counter[str])
    """Labels of unpaired rows, or short answers of other rows. Short answers count as labels only if there
    are at most `MOST_LABELS` distinct ones."""
    turns: Counter[int] = field(default_factory=Counter[int])
    """Number of rows, keyed by number of user messages."""
    tools: Counter[str] = field(default_factory=Counter[str])
    """Number of tool calls, keyed by tool name."""
    formats: Counter[str] = field(default_factory=Counter[str])
    """Number of rows in each format that differs from the file's format."""
    masks: Counter[int] = field(default_factory=Counter[int])
    first_rows: dict[int, list[int]] = field(default_factory=dict[int, list[int]])
    roles: Counter[str] = field(default_factory=Counter[str])
    """Number of messages by role."""
    lengths: dict[str, Lengths] = field(default_factory=dict[str, Lengths])
    problems: list[Problem] = field(default_factory=list[Problem])
    """Stored problems, at most `KEPT_PER_CODE` per code."""
    counts: Counter[str] = field(default_factory=Counter[str])
    """Number of problems by code, including those not stored."""
    pictures: Counter[Picture] = field(default_factory=Counter[Picture])
    """Number of images by size and detail."""
    unread: dict[str, UnreadColumn] = field(default_factory=dict[str, UnreadColumn])
    """Unused columns, with statistics of their values."""


@dataclass
class ScannedRange(Tally):
    """The result for one range. Row numbers are line numbers within the range, starting at 1."""

    digests: bytearray = field(default_factory=bytearray)
    """32 bytes for each valid row, the sha256 of its canonical form."""
    content: str = ""
    """The hash of the range's bytes, if its token counts can be cached."""

    def report(self, found: Sequence[Problem], row: int) -> None:
        for p in found:
            self.counts[p.code] += 1
            if self.counts[p.code] <= KEPT_PER_CODE:
                self.problems.append(msgspec.structs.replace(p, row=row))

    def notice(self, marked: list[tuple[int, int]]) -> None:
        """Add rows to the trait counts. `marked` contains (trait bits, row number) for each row, in row
        order."""
        for mask, number in marked:
            self.masks[mask] += 1
            if mask and self.masks[mask] <= FIRST_ROWS:
                for bit in bits(mask):
                    rows = self.first_rows.setdefault(bit, [])
                    if len(rows) < FIRST_ROWS:
                        rows.append(number)


def bits(mask: int) -> Iterator[int]:
    while mask:
        low = mask & -mask
        yield low
        mask ^= low


@contextmanager
def rows_file(path: str, buffering: int = -1) -> Generator[IO[bytes]]:
    """Open a file of rows for one pass. Raises `DataError` if it can no longer be read."""
    try:
        with Path(path).open("rb", buffering=buffering) as file:
            yield file
    except OSError as error:
        message = f"cannot read {path}: {error.strerror or error}"
        raise DataError(
            message, fix="check whether the file was deleted or its disk removed, then run the command again"
        ) from error


def pieces(path: str, start: int, end: int, content: xxh3_128 | None = None) -> Iterator[list[bytes]]:
    """Yield the lines of a byte range with their line endings, about `PIECE` bytes at a time. A byte-order
    mark is removed. `content` is updated with all bytes of the range."""
    begun: list[bytes] = []  # pieces of an unfinished line
    with rows_file(path, buffering=0) as file:
        file.seek(start)
        left = end - start
        while left > 0 and (block := file.read(min(PIECE, left))):
            if content is not None:
                content.update(block)
            if left == end:  # the first block
                block = block.removeprefix(b"\xef\xbb\xbf")
            left = end - file.tell()
            lines = BytesIO(block).readlines()  # a third of the time of `bytes.split`
            rest = b"" if block.endswith(b"\n") or not lines else lines.pop()
            if lines:
                lines[0] = b"".join((*begun, lines[0]))
                begun = [rest]
                yield lines
            else:
                begun.append(rest)
    if last := b"".join(begun):
        yield [last]


def ranges(path: str, size: int, step: int = CHUNK) -> Iterator[tuple[int, int]]:
    """Yield byte ranges of slightly more than `step` bytes that end at line endings. Line contents determine
    the boundaries, so an edit doesn't shift later ranges. Raises `DataError` if a line exceeds the size
    limit, without reading the rest of the line."""
    if size <= step:
        yield from [(0, size)] if size else []
        return
    with rows_file(path) as file:
        start = 0
        while start < size:
            end = _range_end(file, min(start + step, size), size, step)
            if end - start > step + LONGEST_RECORD:
                raise DataError(
                    f"{Path(path).name}: a line after byte {start:,} is longer than "
                    f"{LONGEST_RECORD >> 20} MiB",
                    fix="write one row per line (JSONL), or check whether the end of the file is damaged",
                )
            yield start, end
            start = end


def _range_end(file: IO[bytes], at: int, size: int, step: int) -> int:
    """Return the end of the line with the smallest hash among the lines that end within `step` / 16 bytes
    after `at`, or the end of the first line if there is none."""
    file.seek(at)
    lines = file.read(min(step // 16, size - at)).split(b"\n")[:-1]
    if lines:
        hashes = [xxh3_64_intdigest(line) for line in lines[1:]]  # the first may be the end of a line
        last = 1 + hashes.index(min(hashes)) if hashes else 0
        return at + sum(map(len, lines[: last + 1])) + last + 1
    file.seek(at)
    while piece := file.readline(step):  # a line may not fit into memory
        if piece.endswith(b"\n"):
            break
    return min(file.tell(), size)


def read_rows(task: ScanTask) -> Iterator[tuple[int, ReadRow]]:
    """Yield each row with its line number within the range. A blank line yields a row that contains only a
    problem."""
    number = 0
    for lines in pieces(task.path, task.start, task.end):
        for row in _rows(task, lines):
            number += 1
            yield number, row


def _rows(task: ScanTask, lines: list[bytes]) -> list[ReadRow]:
    read = reading(task.format, task.columns).read
    return [
        ReadRow(None, 0, [problem("blank-line")]) if not line or line.isspace() else read(line)
        for line in lines
    ]


def ready(task: ScanTask) -> None:
    """Load the data that `scan` needs and that worker processes can share."""
    for name in task.tokenizers:
        if not name.startswith("hf:"):  # tokenizers may start threads
            counter(name).count([])
    if task.content:
        candidates(b"", [0], _folder(task))


def _folder(task: ScanTask) -> Path | None:
    return None if task.memory is None else Path(task.memory)


def scan(task: ScanTask, keep: Callable[[list[Example]], object] | None = None) -> ScannedRange:
    """Scan the rows of one range. The result is the same on every machine. `keep` is called with the valid
    rows."""
    part = ScannedRange()
    counting = [(part.lengths.setdefault(name, Lengths()), counter(name)) for name in task.tokenizers]
    hashed = xxh3_128() if task.memory and task.tokenizers else None
    for lines in pieces(task.path, task.start, task.end, hashed):
        rows = _rows(task, lines)
        forms = [
            line if row.example is None else canonical(row.example)
            for line, row in zip(lines, rows, strict=True)
        ]
        content = _content(forms, rows, _folder(task)) if task.content else {}
        for index, row in enumerate(rows):
            if row.problems or row.unread or index in content:
                _report(part, part.lines + index + 1, row, content.get(index, []))
        _note(part, rows, forms, task)
        good = [(number, row.example) for number, row in enumerate(rows, part.lines + 1) if row.example]
        if keep is not None:
            keep([example for _, example in good])
        for lengths, by in counting:
            lengths.extend(by.count([example for _, example in good]), lambda place: good[place][0])  # noqa: B023
        part.lines += len(lines)
    if hashed is not None:
        part.content = hashed.hexdigest()
    return part


def _content(forms: list[bytes], rows: list[ReadRow], folder: Path | None) -> dict[int, list[Problem]]:
    """Return the problems found in the content, by row index. `forms` are the rows' canonical forms, which
    contain each text unchanged. They are searched first, and only the texts of rows that may match are
    joined. Two kinds of rows are searched as joined text: those with content in parts, which a match may
    span, and those whose form is JSON, which escapes text."""
    texts = [
        visible(row.example).encode() if row.example and (row.traits & _PARTS or form[:1] == b"{") else form
        for form, row in zip(forms, rows, strict=True)
    ]
    patterns: dict[int, list[int]] = {}
    starts = list(accumulate((len(text) + 1 for text in texts), initial=0))
    for index, pattern in sorted(sifted(b"\n".join(texts), starts[:-1], folder)):
        patterns.setdefault(index, []).append(pattern)
    found: dict[int, list[Problem]] = {}
    for index, numbers in patterns.items():
        example = rows[index].example
        if example is None:
            found[index] = confirmed(forms[index], numbers)
        else:
            found[index] = confirmed(visible(example).encode(), numbers, answers(example).encode())
    return found


def _report(part: ScannedRange, number: int, row: ReadRow, content: list[Problem]) -> None:
    part.report(row.problems, number)
    if row.other is not None:
        part.formats[row.other] += 1
    part.report(content, number)
    if row.unread:
        note(part.unread, row.unread, "" if row.example is None else visible(row.example))


def _note(part: ScannedRange, rows: list[ReadRow], forms: list[bytes], task: ScanTask) -> None:
    """Add the counts of more rows. The first row has the number `part.lines` + 1."""
    first = part.lines + 1
    good = [(number, row.example, row.traits) for number, row in enumerate(rows, first) if row.example]
    part.rows += len(good)
    part.numbers.extend([number for number, _, _ in good])
    part.canonical_bytes += SIZED * sum(json_bytes(e) for n, e, _ in good if n % SIZED == 1)
    part.digests += b"".join(
        [sha256(form).digest() for form, row in zip(forms, rows, strict=True) if row.example]
    )
    for _, example, traits in good:
        if traits & IMAGES:
            add_pictures(part.pictures, pictures(messages_of(example), Path(task.path).parent))
    part.notice([(traits, number) for number, _, traits in good])
    sequences = Counter([tuple([m.role for m in messages_of(example)]) for _, example, _ in good])
    for roles, count in sequences.items():
        for role in roles:
            part.roles[role] += count
        if task.compare:
            part.turns[roles.count("user")] += count
    if task.compare:
        for _, example, traits in good:
            if traits & TOOLS:
                part.tools.update(c.function.name for m in messages_of(example) for c in m.tool_calls or ())
        _compare(part, [example for _, example, _ in good])


def _compare(part: ScannedRange, examples: list[Example]) -> None:
    part.prompts.extend([xxh3_64_intdigest(canonical_prompt(example)) for example in examples])
    part.answered.extend(
        [
            xxh3_64_intdigest(canonical_answered(example))
            for example in examples
            if isinstance(example, _JUDGED)
        ]
    )
    for example in examples:
        if isinstance(example, UnpairedExample):
            part.labels[DESIRABLE if example.label else UNDESIRABLE] += 1
        elif len(answer := last_answer(example)) <= LONGEST_LABEL and len(part.labels) <= MOST_LABELS:
            part.labels[answer] += 1


@dataclass
class Total(Tally):
    """Combined results of all ranges, in order. `numbers`, `prompts` and `answered` are kept only if rows are
    compared."""

    hashes: array[int] = field(default_factory=lambda: array("Q"))
    """The first 64 bits of each valid row's sha256."""
    rowless: array[int] = field(default_factory=lambda: array("I"))
    """Numbers of the lines that contain no valid row."""
    sha256: hashlib._Hash = field(default_factory=hashlib.sha256)  # pyright: ignore[reportPrivateUsage]

    def add(self, part: ScannedRange) -> None:
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
            self.lengths.setdefault(name, Lengths()).extend(lengths, self.lines.__add__)
        self.sha256.update(part.digests)
        if part.rows < part.lines:
            missing = sorted(set(range(1, part.lines + 1)).difference(part.numbers))
            self.rowless.extend(number + self.lines for number in missing)
        if part.prompts:
            self.hashes.extend(array("Q", part.digests)[::4])
            self.numbers.extend(number + self.lines for number in part.numbers)
            self.prompts.extend(part.prompts)
            self.answered.extend(part.answered)
        add_pictures(self.pictures, part.pictures)
        for name, column in part.unread.items():
            self.unread.setdefault(name, UnreadColumn()).add(column)
        if len(self.labels) <= MOST_LABELS:
            self.labels.update(part.labels)
        self.turns.update(part.turns)
        self.tools.update(part.tools)
        self.formats.update(part.formats)
        self.masks.update(part.masks)
        self.roles.update(part.roles)
        self.canonical_bytes += part.canonical_bytes
        self.rows += part.rows
        self.lines += part.lines

    def reported(self, source: str) -> tuple[Problem, ...]:
        """Return all stored problems. If a code has more problems than are stored, adds one problem that
        states how many were left out."""
        found = [msgspec.structs.replace(p, source=source) for p in self.problems]
        shown = Counter(p.code for p in self.problems)
        for code, count in self.counts.items():
            if count > shown[code]:
                found.append(msgspec.structs.replace(more_of(code, count - shown[code]), source=source))
        return tuple(found)

    @property
    def written(self) -> int:
        """Number of non-blank lines."""
        return self.lines - self.counts["blank-line"]

    @property
    def fields_left_out(self) -> int:
        """Number of unused column values and message fields."""
        return self.counts["extra-fields"] + sum(column.rows for column in self.unread.values())

    def errors(self) -> int:
        return sum(n for code, n in self.counts.items() if problem(code).severity is Severity.ERROR)

    def rows_with(self, trait: Trait) -> int:
        return sum(n for mask, n in self.masks.items() if mask & trait)


# Estimate the tokens of a large file, with an interval, from a sample of its rows.
#
# The file is divided into stretches of equal size. In each, the row at a random byte is tokenized. The
# average number of tokens per byte of these rows is the estimate for the file. Rows are sampled in
# proportion to their length, so a few long rows among many short ones are not missed. Rows with errors
# count as zero tokens, as in a full count. The interval includes a margin for unsampled rows with few bytes
# but many tokens.

PLACES = 2000
"""Number of positions in the file at which rows are sampled. A row sampled twice has double weight."""
LEAST_BYTES = 8 << 20
"""Size, in bytes, below which a file is counted completely, because sampling would not be faster."""
_QUANTILE = 2.576
"""Quantile of the normal distribution that corresponds to `COVERAGE`. The estimate assumes random positions.
Because the sample is stratified, the actual error is smaller."""
_UNMET = math.log(2 / (1 - COVERAGE / 100))
"""Numerator of the upper bound on the fraction of the file that is unlike every sampled row. With confidence
`COVERAGE`, this fraction is at most `_UNMET` / (number of positions). The normal approximation does not
account for such text."""
_DENSEST = 1.0
"""Maximum number of tokens per byte in unsampled text. A token is rarely shorter than a byte."""
_BLOCK = 16 << 10


@dataclass
class Sample:
    """Token counts of a file, estimated from a sample of its rows."""

    tokens: float = 0.0
    half_width: float = 0.0
    """Half-width of the confidence interval around `tokens`, in tokens."""
    trained: float = 0.0
    lengths: array[int] = field(default_factory=lambda: array("I"))
    """Number of tokens in each sequence of the sampled rows."""
    weights: array[float] = field(default_factory=lambda: array("d"))
    """Number of sequences in the file that each entry of `lengths` represents."""
    remarks: tuple[Remark, ...] = ()
    """Remarks on the chat template, each with the estimated number of affected rows in the file."""


def sampled(task: ScanTask, name: str, *, places: int = PLACES, seed: int = 0) -> Sample:
    """Estimate the token counts of a file from a sample of its rows. `task` must extend to the end of the
    file, and `name` is the name of the token counter. The same file and seed give the same sample."""
    read = reading(task.format, task.columns).read
    by = counter(name)
    counted: dict[int, tuple[int, Lengths | None]] = {}
    met: list[int] = []
    start = end = 0
    # The file isn't memory-mapped, because this process would crash if it were truncated during the scan.
    with rows_file(task.path) as file:
        for place in _places(task.end, places, seed):
            if place >= end:
                start, line = _line_at(file, place, task.end)
                end = start + len(line)
                line = line.rstrip(b"\n")
                if start == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                example = read(line).example if line.strip() else None
                counted[start] = end - start, by.count([example]) if example is not None else None
            met.append(start)
        if os.fstat(file.fileno()).st_size < task.end:
            raise DataError(
                f"{Path(task.path).name} changed while it was being read", fix="run the command again"
            )
    return _estimated(task.end, counted, met)


def _line_at(file: IO[bytes], place: int, size: int) -> tuple[int, bytes]:
    """Return the start of the line that contains a byte, and the line with its ending."""
    before: list[bytes] = []
    start = place
    while start > 0:
        low = max(0, start - _BLOCK)
        file.seek(low)
        block = file.read(start - low)
        begin = block.rfind(b"\n") + 1
        before.append(block[begin:])
        start = low + begin
        if begin:
            break
    file.seek(place)
    return start, b"".join((*reversed(before), file.readline(size - place)))


@lru_cache(maxsize=16)
def sampled_once(task: ScanTask, name: str, digest: str) -> Sample:
    """Return the cached result of `sampled`, or compute it. The cache key includes the `digest` of the rows,
    because the file may change."""
    return sampled(task, name)


def _places(size: int, number: int, seed: int) -> list[int]:
    chance = random.Random(seed)  # noqa: S311  samples rows, no secrets
    number = min(number, size)
    return [
        chance.randrange(low, high) for low, high in pairwise(size * i // number for i in range(number + 1))
    ]


def _estimated(size: int, counted: dict[int, tuple[int, Lengths | None]], met: list[int]) -> Sample:
    sample, per_byte = Sample(), list[float]()
    remarks, rows = dict[str, Remark](), defaultdict[str, float](float)
    for start in met:
        width, lengths = counted[start]
        share = size / len(met) / width
        if lengths is None:
            per_byte.append(0.0)
            continue
        for remark in lengths.remarks.values():
            remarks[remark.text] = remark
            rows[remark.text] += share
        sequences = lengths.tokens + lengths.further
        per_byte.append(sum(sequences) / width)
        sample.trained += share * sum(lengths.trained)
        sample.lengths.extend(sequences)
        sample.weights.extend([share] * len(sequences))
    # The row numbers of sampled rows are unknown.
    sample.remarks = tuple(
        replace(one, count=max(1, round(rows[text])), first=()) for text, one in remarks.items()
    )
    sample.tokens = size * fmean(per_byte)
    unmet = min(_UNMET / len(met), 1 - sum(width for width, _ in counted.values()) / size)
    sample.half_width = size * unmet * _DENSEST
    if len(met) > 1:
        sample.half_width += _QUANTILE * size * stdev(per_byte) / len(met) ** 0.5
    return sample
