"""`orchestrate data dedupe`: keep the first row of each set of duplicates or near duplicates."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from orchestrate.data.dataset_reader import open_dataset, require_rows
from orchestrate.data.dialects import canonical_line
from orchestrate.data.files import log_beside, require_writable, writing
from orchestrate.data.passes import compare
from orchestrate.data.passes.scan import ScanTask
from orchestrate.data.shapes.known import WRITTEN
from orchestrate.types import Record


class Removed(Record, frozen=True, kw_only=True):
    row: int
    because_of: int
    """Row number of the earlier duplicate, which is kept."""
    near: bool


class DedupeReport(Record, frozen=True, kw_only=True):
    """The result of `data dedupe`. `removed` lists the first removed rows. `log` is the file that lists all
    of them."""

    path: str
    output: str | None
    log: str | None
    rows: int
    kept: int
    exact: int
    near: int
    left_out: int
    """Number of rows with errors. They are not part of the output."""
    source_format: str
    format: str
    """The format of the output."""
    fields_left_out: int
    """Number of rows and messages with fields that no training format uses. The output does not contain these
    fields."""
    removed: tuple[Removed, ...]


def dedupe(
    path: str,
    output: Path | None,
    *,
    near_duplicates: bool = False,
    threshold: float = 0.8,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> DedupeReport:
    """Write the rows to `output` without duplicates, and log each removed row in a file next to it. Without
    `output`, nothing is written. Raises `DataError` if the file can't be read or `require_rows` rejects it,
    and `MissingExtra` if `near_duplicates` is set but numpy or rensa is not installed."""
    log = None
    if output is not None:
        require_writable(output, path)
        log = log_beside(output, "removed", path)
    opened = open_dataset(path, columns=columns, compare=True, workers=workers, progress=progress)
    data, total = opened.facts, opened.total
    require_rows(data)
    again, first = compare.repeats(total.hashes)
    leaders = list(range(len(total.numbers)))
    for i, j in zip(again, first, strict=True):
        leaders[int(i)] = int(j)
    exact = {i for i, leader in enumerate(leaders) if leader != i}
    if near_duplicates:
        task = ScanTask(opened.source.lines, 0, 0, data.format, data.columns)
        groups = compare.clusters(compare.signatures(task, opened.source.line_bytes, workers), threshold)
        for i, leader in enumerate(groups):
            compare.join(leaders, i, leader)
        leaders = [compare.root(leaders, i) for i in range(len(leaders))]
    removed = [
        Removed(row=total.numbers[i], because_of=total.numbers[leader], near=i not in exact)
        for i, leader in enumerate(leaders)
        if leader != i
    ]
    if output is not None and log is not None:
        gone = {r.row for r in removed}
        line = canonical_line
        with writing(output) as file, writing(log) as record:
            for number, example in data.numbered():
                if number not in gone:
                    file.write(line(example) + b"\n")
            record.writelines(r.to_json() + b"\n" for r in removed)
    return DedupeReport(
        path=path,
        output=str(output) if output else None,
        log=str(log) if log else None,
        rows=data.rows,
        kept=data.rows - len(removed),
        exact=len(exact),
        near=len(removed) - len(exact),
        left_out=total.written - data.rows,
        source_format=data.format,
        format=WRITTEN[data.kind],
        fields_left_out=total.fields_left_out,
        removed=tuple(removed[:100]),
    )
