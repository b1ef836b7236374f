"""Containers other than JSONL -> lines of JSON, one for each record, in bounded memory."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.errors import DataError, MissingExtra

BLOCK = 1 << 20
LONGEST_RECORD = 512 << 20
"""Characters of one element of a JSON array, bytes of one line."""

_encode = msgspec.json.Encoder().encode
_STRUCTURED = frozenset(
    {
        "messages",
        "conversations",
        "tools",
        "functions",
        "chosen",
        "rejected",
        "input",
        "preferred_output",
        "non_preferred_output",
    }
)
"""Columns whose cells may hold JSON."""

_LABELS = {"true": True, "false": False}
"""Of unpaired preferences; a cell is text."""


_BETWEEN = re.compile(r"[\s,]*")


def json_lines(file: Path) -> Iterator[bytes]:
    """The elements of a JSON array, or objects written one after another over many lines.

    Raises `DataError` where the JSON is broken: unlike a line, the rest of an array cannot be trusted then.
    """
    decode = json.JSONDecoder().raw_decode
    number = 0
    with file.open(encoding="utf-8-sig") as opened:
        text = opened.read(BLOCK).lstrip()
        in_array = text.startswith("[")
        at = int(in_array)
        while True:
            at = _BETWEEN.match(text, at).end()  # type: ignore[union-attr]  # it matches the empty string too
            if in_array and text.startswith("]", at):
                return
            try:
                value, end = decode(text, at)
                if end == len(text) and not isinstance(value, dict | list):
                    raise ValueError("a number may go on in the next block")
            except RecursionError as error:
                raise DataError(f"{file.name}: record {number + 1} is nested too deeply") from error
            except ValueError as error:
                rest = text[at:]
                more = opened.read(max(BLOCK, len(rest))) if len(rest) < LONGEST_RECORD else ""
                if more:
                    text, at = rest + more, 0
                    continue
                if not rest and not in_array:
                    return
                why = str(error) if rest else "the array is not closed"
                raise DataError(
                    f"{file.name}: broken JSON after record {number}: {why}",
                    fix="repair it, or write JSON Lines: one object in each line",
                ) from error
            yield text[at:end].replace("\n", " ").replace("\r", " ").encode()
            number += 1
            at = end


def csv_lines(file: Path) -> Iterator[bytes]:
    """Records under a header. Cells of columns that hold lists may be JSON."""
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        sample = opened.read(64 << 10)
        opened.seek(0)
        delimiter = _delimiter(file, sample)
        reader = csv.DictReader(opened, delimiter=delimiter, restkey="(more cells)", strict=True)
        labelled = {"prompt", "completion", "label"} <= set(reader.fieldnames or ())
        try:
            for record in reader:
                row = {key: _cell(key, value) for key, value in record.items() if value is not None}
                if labelled and (label := _LABELS.get(str(row.get("label")).lower())) is not None:
                    row["label"] = label
                yield _encode(row)
        except csv.Error as error:
            raise DataError(
                f"{file.name}: line {reader.reader.line_num}: {error}",
                fix="close each quote, and double those inside a cell",
            ) from error


def _delimiter(file: Path, sample: str) -> str:
    if file.suffix.lower() in (".tsv", ".tab"):
        return "\t"
    header = sample.split("\n", 1)[0]
    return max(",;\t", key=header.count)


def _cell(column: str, value: Any) -> Any:
    if column not in _STRUCTURED or not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        held = msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value
    return held if _is_meant(column, held) else value


def _is_meant(column: str, held: Any) -> bool:
    """An answer, or Alpaca's `input`, may be JSON and is a text all the same."""
    if column == "input":
        return isinstance(held, dict) and "messages" in held
    if column in ("chosen", "rejected"):
        items = cast("list[Any]", held if isinstance(held, list) else [held])
        return bool(items) and all(isinstance(i, dict) and {"role", "from"} & i.keys() for i in items)
    return True


def text_lines(file: Path) -> Iterator[bytes]:
    """Each line that is not blank is a text."""
    with file.open(encoding="utf-8-sig") as opened:
        for line in opened:
            if line := line.strip():
                yield _encode({"text": line})


def utf16_lines(file: Path) -> Iterator[bytes]:
    with file.open(encoding="utf-16") as opened:
        for line in opened:
            yield line.rstrip("\r\n").encode()


def parquet_lines(file: Path) -> Iterator[bytes]:
    arrow = _pyarrow("parquet")
    try:
        with arrow.ParquetFile(str(file)) as opened:
            for batch in opened.iter_batches(batch_size=256):
                yield from _batch_lines(batch)
    except _arrow_errors() as error:
        raise DataError(f"{file.name} is not a whole Parquet file: {error}") from error


def arrow_lines(file: Path) -> Iterator[bytes]:
    """An Arrow file or stream, as `datasets` saves them."""
    ipc = _pyarrow("ipc")
    try:
        with file.open("rb") as opened:
            streamed = opened.read(6) != b"ARROW1"
        if streamed:
            with ipc.open_stream(str(file)) as stream:
                for batch in stream:
                    yield from _batch_lines(batch)
        else:
            with ipc.open_file(str(file)) as table:
                for i in range(table.num_record_batches):
                    yield from _batch_lines(table.get_batch(i))
    except _arrow_errors() as error:
        raise DataError(f"{file.name} is not a whole Arrow file: {error}") from error


def _batch_lines(batch: Any) -> Iterator[bytes]:
    for start in range(0, batch.num_rows, 256):
        for record in batch.slice(start, 256).to_pylist():
            yield _encode({key: _cell(key, value) for key, value in _filled(record).items()})


def _filled(value: Any) -> Any:
    """Columnar files give each struct the fields of all; absent ones come as null and are left out again."""
    if isinstance(value, dict):
        return {key: _filled(item) for key, item in cast("dict[str, Any]", value).items() if item is not None}
    if isinstance(value, list):
        return [_filled(item) for item in cast("list[Any]", value)]
    return value


def _pyarrow(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise MissingExtra("data", "reading Parquet and Arrow files", "pyarrow") from error


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    return (cast("Any", pyarrow).ArrowException, cast("Any", pyarrow).ArrowInvalid)
