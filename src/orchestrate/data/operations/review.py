"""`orchestrate data review`: record a person's decision on each row of a file.

Decisions are stored by row content in an append-only journal next to the file (`FILE.review`). The file
itself is never changed. A review resumes where it stopped, even if rows were added or moved.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import msgspec
from xxhash import xxh3_128_hexdigest

from orchestrate.core.files import Journal
from orchestrate.data.dataset_reader import first_lines, sniff
from orchestrate.data.files import require_writable, writing
from orchestrate.data.files.sources import source
from orchestrate.data.rows import decode, encode
from orchestrate.data.shapes.row_reader import reading
from orchestrate.errors import DataError, UsageError
from orchestrate.types import Problem, Record

Decision = Literal["accepted", "edited", "rejected"]
State = Literal["pending", "accepted", "edited", "rejected"]


class Required(msgspec.Struct, tag="required"):
    """Journal entry that marks the file as needing review, because its rows weren't written by a person."""

    at: datetime


class Decided(msgspec.Struct, tag="decided", omit_defaults=True):
    key: str
    decision: Decision
    at: datetime
    row: str | None = None
    """The edited row, as one line of JSON."""


class Undone(msgspec.Struct, tag="undone"):
    """Undoes the last decision."""

    at: datetime


Entry = Required | Decided | Undone


class ReviewCounts(Record, frozen=True, kw_only=True):
    rows: int
    pending: int
    accepted: int
    edited: int
    rejected: int


class ReviewRow(Record, frozen=True, kw_only=True):
    """A row as shown on the page. `index` starts at 0. `text` is the row's line, including any edits, and
    `pretty` is the same JSON with indentation."""

    index: int
    state: State
    text: str
    pretty: str
    problems: tuple[Problem, ...]


class ExportReport(Record, frozen=True, kw_only=True):
    """The result of `data review --export`."""

    path: str
    output: str
    written: int
    counts: ReviewCounts


@dataclass
class Decisions:
    """The current decisions, keyed by row, and a stack for undoing them."""

    stack: list[Decided] = field(default_factory=list[Decided])
    by_key: dict[str, list[Decided]] = field(default_factory=dict[str, list[Decided]])
    required: bool = False

    def add(self, entry: Entry) -> None:
        match entry:
            case Required():
                self.required = True
            case Decided():
                self.stack.append(entry)
                self.by_key.setdefault(entry.key, []).append(entry)
            case Undone():
                if self.stack:
                    self.by_key[self.stack.pop().key].pop()

    def of(self, key: str) -> Decided | None:
        decisions = self.by_key.get(key)
        return decisions[-1] if decisions else None


def beside(path: Path) -> Path:
    """Return the path of a file's review journal."""
    return path.with_name(path.name + ".review")


def require(path: Path) -> None:
    """Mark a file's rows as waiting for review. Repeated calls have no effect."""
    journal: Journal[Entry] = Journal(beside(path), Entry)
    if not any(isinstance(entry, Required) for entry in journal.entries):
        journal.append(Required(datetime.now(UTC)))


def unreviewed(path: str) -> int:
    """Return the number of undecided rows in a file marked by `require`, and 0 for other files."""
    if "://" in path or not beside(Path(path)).is_file():
        return 0
    review = RowReview(path)
    return review.counts().pending if review.required else 0


class RowReview:
    """A file under review. Only the offsets of its lines are in memory."""

    def __init__(self, path: str) -> None:
        """Open the review. Raises `DataError` if the file, or the journal next to it, cannot be read."""
        if "://" in path or (Path(path).exists() and not Path(path).is_file()):
            raise UsageError(
                f"{path} is not a file on this machine",
                fix="copy the file to this machine: orchestrate data convert FILE",
            )
        lines = source(path)
        self.path = path
        self._lines = Path(lines.lines)
        self._reading = reading(sniff(path, first_lines(lines.lines), ()).name)
        self._keys: list[str] = []
        self._starts = array("Q")
        seen: Counter[str] = Counter()
        at = 0
        with self._lines.open("rb") as file:
            for line in file:
                if text := line.strip().removeprefix(b"\xef\xbb\xbf"):
                    digest = xxh3_128_hexdigest(text)
                    seen[digest] += 1
                    self._keys.append(digest if seen[digest] == 1 else f"{digest}-{seen[digest]}")
                    self._starts.append(at)
                at += len(line)
        self._journal: Journal[Entry] = Journal(beside(Path(path)), Entry)
        self._decisions = Decisions()
        for entry in self._journal.entries:
            self._decisions.add(entry)
        self._places = {key: index for index, key in enumerate(self._keys)}

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def required(self) -> bool:
        return self._decisions.required

    def counts(self) -> ReviewCounts:
        decisions = self._decisions.by_key.items()
        found = Counter(found[-1].decision for key, found in decisions if found and key in self._places)
        return ReviewCounts(
            rows=len(self),
            pending=len(self) - found.total(),
            accepted=found["accepted"],
            edited=found["edited"],
            rejected=found["rejected"],
        )

    def first_pending(self) -> int:
        """Return the index of the first row without a decision, or 0 if every row has one."""
        return next((i for i, key in enumerate(self._keys) if self._state(key) == "pending"), 0)

    def row(self, index: int) -> ReviewRow:
        """Return a row for the page. Raises `UsageError` when the row does not exist."""
        key = self._key(index)
        decided = self._decisions.of(key)
        line = self._line(index)
        if decided is not None and decided.row is not None:
            line = decided.row.encode()
        text = line.decode("utf-8", "replace")
        try:
            pretty = msgspec.json.format(text, indent=2)
        except (msgspec.DecodeError, RecursionError):
            pretty = text
        problems = tuple(self._reading.read(line).problems)
        return ReviewRow(index=index, state=self._state(key), text=text, pretty=pretty, problems=problems)

    def decide(self, index: int, decision: Decision, text: str | None = None) -> None:
        """Record a decision. `text` is the edited row. Raises `DataError` with the problems if the row cannot
        be accepted, and `UsageError` if it does not exist."""
        key, row = self._key(index), None
        if decision == "edited":
            line = " ".join((text or "").splitlines()).encode("utf-8", "surrogatepass")
            self._must_be_good(line)
            row = encode(decode(line)).decode()
        elif decision == "accepted":
            latest = self._decisions.of(key)
            if latest is not None and latest.row is not None:
                decision, row = "edited", latest.row
            else:
                self._must_be_good(self._line(index))
        self._record(Decided(key, decision, datetime.now(UTC), row))

    def undo(self) -> int | None:
        """Undo the last decision and return the index of its row, or `None` when there is nothing to undo."""
        if not self._decisions.stack:
            return None
        key = self._decisions.stack[-1].key
        self._record(Undone(datetime.now(UTC)))
        return self._places.get(key, 0)

    def export(self, output: Path) -> ExportReport:
        """Write the accepted and edited rows as JSON Lines, in order and in the file's own format."""
        if output.resolve() in (Path(self.path).resolve(), self._journal.path.resolve()):
            raise UsageError("the reviewed file is never overwritten", fix="export to a different file")
        require_writable(output, self.path)
        written = 0
        with writing(output) as file:
            for line in self._kept():
                file.write(line + b"\n")
                written += 1
        return ExportReport(path=self.path, output=str(output), written=written, counts=self.counts())

    def _kept(self) -> Iterator[bytes]:
        for index, key in enumerate(self._keys):
            decided = self._decisions.of(key)
            if decided is not None and decided.decision != "rejected":
                yield decided.row.encode() if decided.row is not None else self._line(index)

    def _record(self, entry: Entry) -> None:
        self._journal.append(entry)
        self._decisions.add(entry)

    def _state(self, key: str) -> State:
        decided = self._decisions.of(key)
        return decided.decision if decided is not None else "pending"

    def _key(self, index: int) -> str:
        if not 0 <= index < len(self):
            raise UsageError(f"row {index + 1} does not exist: the file has {len(self):,} rows")
        return self._keys[index]

    def _line(self, index: int) -> bytes:
        with self._lines.open("rb") as file:
            file.seek(self._starts[index])
            return file.readline().strip().removeprefix(b"\xef\xbb\xbf")

    def _must_be_good(self, line: bytes) -> None:
        row = self._reading.read(line)
        if row.example is None:
            message = "; ".join(p.message for p in row.problems)
            raise DataError(f"the row cannot be used: {message}", problems=row.problems, fix="edit it")
