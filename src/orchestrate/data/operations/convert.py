"""`orchestrate data convert`: convert rows to the format of a host or another tool, and report what the
format can't represent."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import cast

from msgspec.structs import replace

from orchestrate.data import rows as numbers
from orchestrate.data import rules
from orchestrate.data.dataset_reader import OpenedFile, first_lines, open_dataset
from orchestrate.data.dataset_writer import refuse, target_for, write_rows
from orchestrate.data.facts import Facts
from orchestrate.data.files import PACKED_SUFFIXES, require_writable, writing
from orchestrate.data.files.sources import source
from orchestrate.data.rows import CODES
from orchestrate.data.rules import RowTarget
from orchestrate.data.shapes import Row
from orchestrate.data.shapes.exports import BATCH_REQUESTS, batch_request
from orchestrate.data.shapes.row_reader import parse
from orchestrate.errors import DataError, UsageError
from orchestrate.types import Problem, Record, Severity


class ConvertReport(Record, frozen=True, kw_only=True):
    """The result of `data convert`. `losses` lists the content that was dropped from rows, and the rows that
    were left out. `rows` is the number of rows in the file, including those with errors. `written` is the
    number of written rows, two for each preference pair if the target is unpaired."""

    path: str
    output: str
    source_format: str
    target: str
    rows: int
    written: int
    left_out: int
    losses: tuple[Problem, ...]


def convert(
    path: str,
    target: RowTarget,
    output: Path,
    *,
    allow_loss: bool = False,
    columns: Mapping[str, str] | None = None,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ConvertReport:
    """Write the valid rows of `path` to `output`.

    Raises `DataError` with the reasons if the target cannot represent this kind of row, or if rows would lose
    content or be left out and `allow_loss` is not set. Raises `UsageError` if `require_writable` rejects
    `output`."""
    require_writable(output, path, stream=True)
    if target.name == "parquet" and output.suffix.lower() in PACKED_SUFFIXES:
        raise UsageError("Parquet files are already compressed", fix=f"-o {output.with_suffix('')}")
    opened = open_dataset(path, columns=columns, workers=workers, progress=progress)
    data, rows = opened.facts, opened.total.written
    target = target_for(data, target)
    dropped = _dropped(opened, target)
    if not allow_loss:
        refuse(data, target, [p for p in dropped if p.severity is Severity.ERROR])
        refuse(data, target, _lost(data, target))
    written, losses = write_rows(data, target, output, allow_loss=allow_loss, as_chat=True, workers=workers)
    return ConvertReport(
        path=path,
        output=str(output),
        source_format=data.format,
        target=target.name,
        rows=rows,
        written=written,
        left_out=rows - written // (2 if target.name == "unpaired" and data.kind == "preference" else 1),
        losses=(*dropped, *losses),
    )


def _dropped(opened: OpenedFile, target: RowTarget) -> list[Problem]:
    """Return problems for content that reading the file already dropped: rows with errors, and fields that
    no format has."""
    data, counts = opened.facts, opened.total.counts
    rows = opened.total.written
    found: list[Problem] = []

    def add(code: str, severity: Severity, message: str, fix: str) -> None:
        found.append(
            Problem(
                code=code,
                severity=severity,
                message=message,
                fix=fix,
                source=data.path,
                providers=(target.name,),
            )
        )

    if broken := rows - data.rows:
        why = ", ".join(
            f"{code} {n:,}" for code, n in counts.most_common() if CODES[code].severity is Severity.ERROR
        )
        add(
            "rows-left-out",
            Severity.ERROR,
            f"{broken:,} of {rows:,} rows have errors ({why}) and would be dropped",
            f"to drop the rows: --allow-loss. To repair them: orchestrate data check {data.path} --fix",
        )
    for code in ("held-out", "hidden-column", "unread-column"):
        found += [replace(p, providers=(target.name,)) for p in data.problems if p.code == code]
    if extra := counts["extra-fields"]:
        add(
            "extra-fields",
            Severity.WARNING,
            f"unknown message fields are dropped ({extra:,} times)",
            "keep the original file if you need these fields later",
        )
    if target.name == "alpaca" and data.format == "alpaca":
        joined = "each row's input is added to its instruction"
        add("input-joined", Severity.WARNING, joined, "no action needed: the prompt is the same")
    return found


def _lost(data: Facts, target: RowTarget) -> list[Problem]:
    """Return problems for content that the target cannot represent. They stop a conversion, while a submit
    only reports them."""
    lossy = {rule.code for rule in target.rules.traits.values() if rule.lossy}
    found = [p for p in rules.losses(data, target) if p.code in lossy]
    return [replace(p, fix="to write the rows without it: --allow-loss") for p in found]


# Join batch results with their requests by `custom_id`, so that each answer has its prompt.


class BatchReport(Record, frozen=True, kw_only=True):
    """The result of joining a batch's requests and results."""

    joined: int
    unasked: int
    """Number of results without a matching request. Each becomes a row with an error."""
    unanswered: int
    """Number of requests without a result."""


def join_batch(results: str, requests: str, output: Path) -> BatchReport:
    """Write each batch result to `output`, together with its request. A result without a request is written
    alone. Raises `DataError` if a line has no `custom_id` or if two requests have the same one."""
    by_id: dict[str, Row] = {}
    for n, id, row in _lines(requests):
        request = batch_request(row)
        if not request:
            raise DataError(
                f"{requests}: line {n} contains no request (body or params)",
                fix="pass the batch's input file to --requests",
            )
        if by_id.setdefault(id, request) is not request:
            raise DataError(
                f"{requests}: line {n} repeats the custom_id {id!r}, so its answers cannot be matched"
            )
    joined = unasked = 0
    answered: set[str] = set()
    with writing(output) as file:
        for _, id, row in _lines(results):
            request = by_id.get(id)
            joined, unasked = joined + (request is not None), unasked + (request is None)
            answered.add(id)
            file.write(numbers.encode(row | ({BATCH_REQUESTS: request} if request else {})) + b"\n")
    return BatchReport(joined=joined, unasked=unasked, unanswered=len(by_id.keys() - answered))


def _lines(path: str) -> Iterator[tuple[int, str, Row]]:
    for n, line in enumerate(first_lines(source(path).lines), 1):
        if line.strip():
            value, wrong = parse(line)
            row = cast("Row", value) if isinstance(value, dict) else {}
            if not isinstance(id := row.get("custom_id"), str):
                raise DataError(f"{path}: line {n}: {wrong.message if wrong else 'no custom_id'}")
            yield n, id, row
