"""Open a data file: detect its format, read its rows in one pass, and cache token counts by digest."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from shlex import quote
from typing import IO, Any, cast

import msgspec
from xxhash import xxh3_128

from orchestrate.core.underway import BYTES, work
from orchestrate.data.dialects import canonical_line
from orchestrate.data.facts import Content, Facts, TokenCount, changed, require_same
from orchestrate.data.files.records import PYTHON_CELLS
from orchestrate.data.files.sources import RowSource, name_of, source
from orchestrate.data.passes import ordered
from orchestrate.data.passes.scan import (
    LEAST_BYTES,
    PIECE,
    ScannedRange,
    ScanTask,
    Total,
    ranges,
    ready,
    rows_file,
    sampled_once,
    scan,
)
from orchestrate.data.rows import problem
from orchestrate.data.rows.traits import Trait
from orchestrate.data.shapes import known, unread
from orchestrate.data.shapes.known import advice, guessed
from orchestrate.data.shapes.row_reader import parse, renamed
from orchestrate.data.tokens import Lengths, counters
from orchestrate.data.tokens.counters import counter
from orchestrate.errors import DataError, OrchestrateError, UsageError
from orchestrate.text import count
from orchestrate.types import Problem, TokensFrom

PARALLEL_BYTES = 24 << 20
"""Minimum file size, in bytes, for starting workers. For smaller files, starting workers takes longer than
reading."""
SAMPLE_ROWS = 200
"""Number of rows used to recognize the format."""


Progress = Callable[[int, int], None]
"""A callback that receives (bytes read, total bytes)."""


@dataclass(frozen=True)
class OpenedFile:
    facts: Facts
    total: Total
    source: RowSource
    begins: tuple[tuple[int, str], ...] = ()
    """Position of each joined file in the dataset, as (number of lines before the file, path) pairs."""
    mix: OpenedFile | None = None
    """The mixed training rows, if the files were joined according to their weights."""
    mixed: str | None = None
    """Description of the mix."""

    def place(self, number: int) -> tuple[str, int]:
        """Return the source file of a row and its row number in that file."""
        before, path = max((b for b in self.begins if b[0] < number), default=(0, self.facts.path))
        return path, number - before

    def named(self, number: int) -> str:
        """Return a row's number as shown in messages. If files are joined, the name of the file is
        included."""
        path, row = self.place(number)
        return f"{row} of {path}" if self.begins else str(row)


@dataclass
class JoinedFiles:
    """Reader that joins several files into one dataset. It reads each file once, collects statistics of its
    rows, and writes each valid row in canonical form."""

    write: Callable[[bytes], object]
    total: Total = field(default_factory=Total)


def open_dataset(  # noqa: PLR0913  independent options
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    tokenizers: Sequence[str] = (),
    memory: Path | None = None,
    compare: bool = False,
    content: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
    join: JoinedFiles | None = None,
) -> OpenedFile:
    """Open a dataset as `Dataset.open` does. The same pass counts tokens with `tokenizers`, runs the checks
    of `ScanTask`, and adds the rows to `join` if given."""
    lines = source(path)
    renaming = tuple(sorted((columns or {}).items()))
    shape = sniff(path, first_lines(lines.lines), renaming)
    kept_in = None if memory is None else str(memory)
    task = ScanTask(lines.lines, 0, 0, shape.name, renaming, tuple(tokenizers), compare, content, kept_in)
    with nullcontext(progress) if progress else work(f"reading {name_of(path)}", BYTES) as report:
        total = run(task, lines.line_bytes, workers, report, join)
    problems = (*total.reported(path), *_file_problems(lines, renaming, total))
    facts = Facts(
        path=path,
        format=shape.name,
        kind=shape.kind,
        rows=total.rows,
        bytes=lines.bytes,
        digest=total.sha256.hexdigest(),
        content=_content(total),
        problems=problems,
        container=lines.container,
        canonical_bytes=total.canonical_bytes,
        masks=dict(total.masks),
        rowless=total.rowless,
        first_rows={bit: tuple(rows) for bit, rows in total.first_rows.items()},
        pictures=dict(total.pictures),
        columns=renaming,
    )
    for name, lengths in total.lengths.items():
        counters.keep(facts.digest, counters.base(name), lengths, None)
    return OpenedFile(facts, total, lines)


def open_counted(
    path: str,
    *,
    columns: Mapping[str, str] | None = None,
    tokenizers: Sequence[str] = (),
    memory: Path | None = None,
    compare: bool = False,
    content: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> OpenedFile:
    """Open a dataset as `Dataset.open` does, and run the checks of `ScanTask` in the same pass. Skips
    counting tokens if the file's size and modification time are unchanged and the counts for its last known
    digest are cached. If the content did change, the new digest has no cached counts, so `count_tokens`
    counts again."""
    before = counters.seen(path, columns, memory)
    due = [
        name
        for name in dict.fromkeys(map(counters.base, tokenizers))
        if (before is None or counters.find(before, name, memory) is None) and _loads(name)
    ]
    opened = open_dataset(
        path,
        columns=columns,
        tokenizers=due,
        memory=memory,
        compare=compare,
        content=content,
        workers=workers,
        progress=progress,
    )
    facts = replace(opened.facts, memory=memory)
    for name, lengths in opened.total.lengths.items():
        counters.keep(facts.digest, name, lengths, memory)
    if facts.digest != before:
        counters.keep_seen(path, columns, facts.digest, memory)
    return replace(opened, facts=facts)


def require_rows(data: Facts) -> None:
    """Check that rows can be written. Raises `DataError` if every row has errors, or if a column marks rows
    as test or validation data, because the output would lose that column."""
    for found in data.problems:
        if found.code == "held-out":
            raise DataError(f"{data.path}: {found.message}", problems=data.problems, fix=found.fix)
    if not data.rows:
        raise DataError(
            f"{data.path} has no valid rows",
            problems=data.problems,
            fix=f"orchestrate data check {data.path}",
        )


def _loads(tokenizer: str) -> bool:
    """Return whether a tokenizer can be loaded. The error is reported later, where its count is needed."""
    try:
        counter(tokenizer)
    except OrchestrateError:
        return False
    return True


def run(
    task: ScanTask,
    size: int,
    workers: int | None = None,
    progress: Progress | None = None,
    join: JoinedFiles | None = None,
) -> Total:
    """Read the entire file in ranges, with the settings of `task`. The number of workers depends on
    the file's size."""
    tasks = [replace(task, start=start, end=end) for start, end in ranges(task.path, size)]
    for name in task.tokenizers:
        counter(name)  # a tokenizer that cannot be loaded is reported once, from here
    known = _CountedRanges(tasks) if task.memory and task.tokenizers and len(tasks) > 1 else None
    if known is not None:
        tasks = known.due()
    total = Total()
    first_due = next((one for one in tasks if one.tokenizers), task)
    # Workers import the module of the function that they call. The one of `scan` imports the least.
    read = scan if join is None else _scanned_with_lines
    found = ordered(read, tasks, worker_count(workers, size), partial(ready, first_due))
    for done, result in zip(tasks, found, strict=True):
        part, rows = (result, b"") if isinstance(result, ScannedRange) else result
        if known is not None:
            known.complete(done, part)
        total.add(part)
        if join is not None:
            join.total.add(part)
            join.write(rows)
        if progress is not None:
            progress(done.end, size)
    if known is not None:
        known.keep()
    return total


class _CountedRanges:
    """Token counts of a file's ranges, cached by content. After an edit, only the changed ranges are
    counted again."""

    def __init__(self, tasks: Sequence[ScanTask]) -> None:
        self._task = task = tasks[0]
        self._folder, self._read_as = Path(cast("str", task.memory)), (task.format, task.columns)
        self._stat = self._state()
        self._tasks = tasks
        self._known = {
            name: counters.find_ranges(task.path, self._read_as, name, self._folder)
            for name in task.tokenizers
        }
        self._keys: dict[int, str] = {}
        if any(self._known.values()):
            with rows_file(task.path) as file:
                self._keys = {one.start: _hash_of(file, one) for one in tasks}
        self._found: dict[str, counters.Ranges] = {name: {} for name in task.tokenizers}

    def due(self) -> list[ScanTask]:
        """Return the tasks, each with only the tokenizers that its range was not counted with."""
        return [
            replace(
                task,
                tokenizers=tuple(
                    n for n in task.tokenizers if self._keys.get(task.start) not in self._known[n]
                ),
            )
            for task in self._tasks
        ]

    def complete(self, task: ScanTask, part: ScannedRange) -> None:
        """Add the counts that are known to what was found in a range, and remember the others."""
        key = self._keys.get(task.start) or part.content
        for name, found in self._found.items():
            if name in task.tokenizers:
                found[key] = counters.StoredRange.of(part.lengths[name])
            else:
                found[key] = self._known[name][key]
                part.lengths[name] = found[key].lengths()

    def keep(self) -> None:
        """Store the counts. Raises `DataError` when the file changed after its content was hashed."""
        if self._state() != self._stat:
            raise DataError(f"{self._task.path} changed while it was being read", fix="run the command again")
        for name, found in self._found.items():
            if found.keys() != self._known[name].keys():
                counters.keep_ranges(self._task.path, self._read_as, name, found, self._folder)

    def _state(self) -> tuple[int, int]:
        with rows_file(self._task.path) as file:
            stat = os.fstat(file.fileno())
        return stat.st_size, stat.st_mtime_ns


def _hash_of(file: IO[bytes], task: ScanTask) -> str:
    file.seek(task.start)
    content = xxh3_128()
    left = task.end - task.start
    while left > 0 and (block := file.read(min(PIECE, left))):
        content.update(block)
        left -= len(block)
    return content.hexdigest()


def _scanned_with_lines(task: ScanTask) -> tuple[ScannedRange, bytes]:
    lines: list[bytes] = []
    part = scan(task, lambda examples: lines.extend(canonical_line(example) + b"\n" for example in examples))
    return part, b"".join(lines)


def worker_count(workers: int | None, size: int) -> int | None:
    """Return the number of workers for a file of `size` bytes. A small file is read by one worker unless
    `workers` is above 1. Otherwise, returns `workers`, where `None` means one worker per core."""
    return workers if size >= PARALLEL_BYTES or (workers or 0) > 1 else 1


_SNIFFED = 64 << 20
"""Maximum length, in bytes, of lines used to detect the format."""


def first_lines(path: str) -> Iterator[bytes]:
    """Yield the lines of a file, skipping those longer than `_SNIFFED` bytes. Raises `DataError` if all lines
    are longer than that."""
    any_short = any_long = False
    with rows_file(path) as file:
        if file.read(3) != b"\xef\xbb\xbf":
            file.seek(0)
        while line := file.readline(_SNIFFED):
            if len(line) < _SNIFFED or line.endswith(b"\n"):
                any_short = True
                yield line
                continue
            any_long = True
            while line and not line.endswith(b"\n"):
                line = file.readline(_SNIFFED)
    if any_long and not any_short:
        raise DataError(
            f"cannot recognize the format of {path}: every line is longer than {_SNIFFED >> 20} MiB",
            fix="write one row per line (JSONL), and no row longer than the model's context",
        )


def sniff(path: str, of: Iterator[bytes], columns: tuple[tuple[str, str], ...]) -> known.RowFormat:
    """Detect the most common format among the first rows. Raises `DataError` if no row matches a known
    format, and `UsageError` if a mapped column is missing from all of these rows."""
    votes: Counter[str] = Counter()
    given: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    unreadable: list[str] = []
    example: dict[str, Any] = {}
    for line in islice((line for line in of if line.strip()), SAMPLE_ROWS):
        value, wrong = parse(line.rstrip())
        if not isinstance(value, dict):
            unreadable.append(wrong.message if wrong else "the row is not an object")
            continue
        given.update(cast("dict[str, Any]", value).keys())
        row = renamed(cast("dict[str, Any]", value), columns)
        fields.update(row.keys())
        example = example or row
        if (shape := known.recognize(row)) is not None:
            votes[shape.name] += 1
    if given and (absent := [f"{w}={c}" for w, c in columns if (c or w) not in given]):
        how = f"--ignore {quote(absent[0][:-1])}" if absent[0].endswith("=") else f"--map {quote(absent[0])}"
        raise UsageError(
            f"{how}: no such column in the first rows of {path}",
            fix=f"its columns: {_listed(given)}",
        )
    if votes:
        return known.BY_NAME[votes.most_common(1)[0][0]]
    if fields:
        more = "".join(
            f". {count(len(unreadable), 'more row')} could not be read: {one}" for one in unreadable[:1]
        )
        raise DataError(
            f"{path}: no known training format has the fields {_listed(fields)}{more}",
            fix=advice(path, example),
        )
    raise DataError(
        f"{path}: no row could be read: {unreadable[0] if unreadable else 'the file is empty'}",
        fix="fix the first row" if unreadable else "add at least one row, or pass another file",
    )


def applicable_columns(path: str, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return the part of a spec's column mapping that applies to one of its files. Leaves out ignored columns
    that the file doesn't contain."""
    given = dict(columns or {})
    if all(given.values()):
        return given
    names = _names_in(path)
    return {field: column for field, column in given.items() if column or field in names}


def columns_if_matching(path: str, columns: Mapping[str, str] | None) -> dict[str, str]:
    """Return the column mapping for a file that the spec doesn't name, as `applicable_columns` does for the
    spec's files. Returns an empty mapping if any mapped column is missing from the file."""
    if not columns or not {column for column in columns.values() if column} <= _names_in(path):
        return {}
    return applicable_columns(path, columns)


def _names_in(path: str) -> set[str]:
    names: set[str] = set()
    for line in islice(first_lines(source(path).lines), SAMPLE_ROWS):
        if isinstance(row := parse(line)[0], dict):
            names |= cast("dict[str, Any]", row).keys()
    return names


def columns_of(path: str) -> dict[str, str]:
    """Guess the column mapping of a file. Returns an empty mapping if the file can be read without one. If
    rows consist of a text and a label, the text is read as the question and the label as the answer. Raises
    `DataError` if the column names are ambiguous."""
    lines = source(path)
    rows = (parse(line)[0] for line in first_lines(lines.lines))
    objects = (cast("dict[str, Any]", row) for row in rows if isinstance(row, dict))
    first = next(objects, dict[str, Any]())
    mapping = guessed(first)
    try:
        shape = sniff(path, first_lines(lines.lines), ())
    except DataError:
        if mapping is None:
            raise
        return mapping
    return mapping if shape.kind == "text" and mapping and "answer" in mapping else {}


def _listed(names: Counter[str]) -> str:
    return ", ".join(name for name, _ in names.most_common(12))


def _file_problems(lines: RowSource, columns: tuple[tuple[str, str], ...], total: Total) -> Iterator[Problem]:
    yield from _python_cells(lines, total)
    yield from _hidden(lines, columns, total)
    yield from _held_out(lines, total)
    for found in unread.unused_column_warnings(total.unread, total.written):
        total.counts[found.code] += 1
        yield msgspec.structs.replace(found, source=lines.path)


def _hidden(lines: RowSource, columns: tuple[tuple[str, str], ...], total: Total) -> Iterator[Problem]:
    """Report columns that are ignored because another column is mapped to their name."""
    if not columns:
        return
    taken = {column or wanted for wanted, column in columns}
    rows = [parse(line)[0] for line in islice(first_lines(lines.lines), SAMPLE_ROWS)]
    there = {name for row in rows if isinstance(row, dict) for name in cast("dict[str, Any]", row)}
    for wanted, column in columns:
        if column and wanted in there - taken:
            total.counts["hidden-column"] += 1
            text = f"the column {wanted} is ignored because {column} is mapped to that name"
            yield msgspec.structs.replace(problem("hidden-column", text), source=lines.path)


def _held_out(lines: RowSource, total: Total) -> Iterator[Problem]:
    """Report rows for test or validation in a file that also has other rows. A file with only such rows
    may be intended."""
    column, counts = unread.held_out_rows(total.unread) or ("", Counter[str]())
    if 0 < counts.total() < total.written:
        total.counts["held-out"] += 1
        shown = " and ".join(f"{n:,} for {split}" for split, n in counts.most_common())
        text = (
            f"the column {column} marks rows as held out ({shown}, of {total.written:,} rows), but they "
            "are used like all other rows"
        )
        yield msgspec.structs.replace(problem("held-out", text, field=column), source=lines.path)


def _python_cells(lines: RowSource, total: Total) -> Iterator[Problem]:
    if lines.python_cells:
        total.counts[PYTHON_CELLS] = lines.python_cells
        text = f"{lines.python_cells:,} cells contain Python lists and were parsed as lists"
        yield msgspec.structs.replace(problem(PYTHON_CELLS, text), source=lines.path)


def _content(total: Total) -> Content:
    roles = tuple(sorted(total.roles))
    turns = total.roles["user"] / total.rows if total.rows and total.roles["user"] else 1.0
    return Content(
        tools=total.rows_with(Trait.TOOLS) > 0,
        weights=total.rows_with(Trait.MESSAGE_WEIGHTS) > 0,
        row_weights=total.rows_with(Trait.ROW_WEIGHT) > 0,
        reasoning=total.rows_with(Trait.REASONING) > 0,
        images=total.rows_with(Trait.IMAGES) > 0,
        roles=roles,
        average_turns=turns,
    )


def count_tokens(facts: Facts, tokenizer: str) -> TokenCount:
    """Count tokens like `Dataset.tokens`. A cached full count takes precedence over a sample."""
    if facts.tokens_from is TokensFrom.NONE:
        raise UsageError(
            f"the tokens of {facts.path} have not been counted", fix="add --tokens exact or --tokens sampled"
        )
    name = counters.base(tokenizer)
    kept = counters.find(facts.digest, name, facts.memory)
    if kept is None and facts.tokens_from is TokensFrom.SAMPLED and facts.bytes >= LEAST_BYTES:
        return _sampled(facts, tokenizer)
    if kept is None:
        lines = source(facts.path)
        kept_in = None if facts.memory is None else str(facts.memory)
        task = ScanTask(lines.lines, 0, 0, facts.format, facts.columns, (name,), memory=kept_in)
        total = run(task, lines.line_bytes)
        require_same(
            total.sha256.hexdigest(), facts
        )  # otherwise, other rows would be counted under its digest
        kept = counters.keep(facts.digest, name, total.lengths.get(name, Lengths()), facts.memory)
    sequences = kept.sequences()
    tokens = sum(sequences)
    band = _band(facts, tokenizer, len(sequences), tokens)
    return TokenCount(
        tokens=tokens,
        trained_tokens=kept.trained,
        rows=facts.rows,
        longest=max(sequences, default=0),
        tokenizer=counters.display_name(tokenizer),
        exact=band == 0,
        error_band=band,
        lengths=sequences,
        remarks=kept.remarks,
    )


def _band(facts: Facts, tokenizer: str, sequences: float, tokens: float) -> float:
    """Return the error band for a count of all rows."""
    band = counters.error_band(tokenizer)
    if not tokenizer.startswith("hf:") and (facts.content.tools or facts.content.images):
        band = max(band, counters.TOOL_BAND)
    if facts.kind not in ("completion", "text") and tokens:
        band = max(band, counters.row_doubt(tokenizer) * sequences / tokens)
    return band


def _sampled(facts: Facts, tokenizer: str) -> TokenCount:
    lines = source(facts.path)
    if lines.bytes != facts.bytes:
        raise changed(facts)
    task = ScanTask(lines.lines, 0, lines.line_bytes, facts.format, facts.columns)
    sample = sampled_once(task, counters.base(tokenizer), facts.digest)
    band = _band(facts, tokenizer, sum(sample.weights), sample.tokens)
    doubt = sample.half_width / sample.tokens if sample.tokens else 0.0
    return TokenCount(
        tokens=round(sample.tokens),
        trained_tokens=round(sample.trained),
        rows=facts.rows,
        longest=max(sample.lengths, default=0),
        tokenizer=counters.display_name(tokenizer),
        exact=False,
        error_band=(1 + band) * (1 + doubt) - 1,
        tokens_from=TokensFrom.SAMPLED,
        weights=sample.weights,
        lengths=sample.lengths,
        remarks=sample.remarks,
    )
