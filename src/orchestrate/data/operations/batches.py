"""The results of a batch, joined with its requests by `custom_id`: each answer gets its prompt."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import cast

from orchestrate.data.files.outputs import writing
from orchestrate.data.files.sources import source
from orchestrate.data.opening import first_lines
from orchestrate.data.rows import numbers
from orchestrate.data.shapes.exchanges import BATCH_REQUESTS, batch_request
from orchestrate.data.shapes.reading import parse
from orchestrate.data.shapes.shape import Row
from orchestrate.errors import DataError
from orchestrate.types import Record


class BatchReport(Record, frozen=True, kw_only=True):
    """What became of the lines of a batch."""

    joined: int
    unasked: int
    """Results without a request: they stay errors."""
    unanswered: int
    """Requests without a result."""


def join_batch(results: str, requests: str, output: Path) -> BatchReport:
    """Writes each result with its request. Raises `DataError` for lines without a `custom_id`, and for
    requests that share one."""
    asked: dict[str, Row] = {}
    for n, id, row in _lines(requests):
        request = batch_request(row)
        if not request:
            raise DataError(
                f"{requests}: line {n} holds no request (body or params)",
                fix="--requests takes the file that the batch was made of",
            )
        if asked.setdefault(id, request) is not request:
            raise DataError(
                f"{requests}: line {n} repeats the custom_id {id!r}, so answers cannot be told apart"
            )
    joined = unasked = 0
    answered: set[str] = set()
    with writing(output) as file:
        for _, id, row in _lines(results):
            request = asked.get(id)
            joined, unasked = joined + (request is not None), unasked + (request is None)
            answered.add(id)
            file.write(numbers.encode(row | ({BATCH_REQUESTS: request} if request else {})) + b"\n")
    return BatchReport(joined=joined, unasked=unasked, unanswered=len(asked.keys() - answered))


def _lines(path: str) -> Iterator[tuple[int, str, Row]]:
    for n, line in enumerate(first_lines(source(path).lines), 1):
        if line.strip():
            value, wrong = parse(line)
            row = cast("Row", value) if isinstance(value, dict) else {}
            if not isinstance(id := row.get("custom_id"), str):
                raise DataError(f"{path}: line {n}: {wrong.message if wrong else 'no custom_id'}")
            yield n, id, row
