"""Containers other than JSONL and tables -> lines of JSON, one for each record, in bounded memory."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from orchestrate.data.files.tables import LONGEST_RECORD as LONGEST_RECORD
from orchestrate.data.files.tables import cell
from orchestrate.data.shapes.known import SHAPES
from orchestrate.errors import DataError
from orchestrate.packages import needed

BLOCK = 1 << 20

_encode = msgspec.json.Encoder().encode
_USED = frozenset[str]().union(*(shape.fields for shape in SHAPES))
_BETWEEN = re.compile(r"[\s,]*")
_SPACE = re.compile(r"[\s\ufeff]*")


def json_lines(file: Path, told: object = None) -> Iterator[bytes]:
    """The elements of JSON arrays, or objects, written one after another over many lines.

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
                text, at = _skipped(opened, text, at + 1)
                if not text:
                    return
                if text[at] != "[":
                    raise DataError(
                        f"{file.name}: behind the array, after record {number}, comes {text[at : at + 20]!r}",
                        fix="keep one array in the file, or write JSON Lines: one object in each line",
                    )
                at += 1
                continue
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


def _skipped(opened: IO[str], text: str, at: int) -> tuple[str, int]:
    """Where the next text begins, perhaps in a later block; an empty text at the end of the file."""
    while (at := _SPACE.match(text, at).end()) == len(text):  # type: ignore[union-attr]  # as above
        if not (text := opened.read(BLOCK)):
            break
        at = 0
    return text, at


def text_lines(file: Path, told: object = None) -> Iterator[bytes]:
    """Each line that is not blank is a text."""
    with file.open(encoding="utf-8-sig") as opened:
        for line in opened:
            if line := line.strip():
                yield _encode({"text": line})


def parquet_lines(file: Path, told: Counter[str] | None = None) -> Iterator[bytes]:
    arrow = _pyarrow("parquet")
    try:
        with arrow.ParquetFile(str(file)) as opened:
            for batch in opened.iter_batches(batch_size=256):
                yield from _batch_lines(file, batch, told)
    except _arrow_errors() as error:
        raise DataError(f"{file.name} is not a whole Parquet file: {error}") from error


def arrow_lines(file: Path, told: Counter[str] | None = None) -> Iterator[bytes]:
    """An Arrow file or stream, as `datasets` saves them."""
    ipc = _pyarrow("ipc")
    try:
        with file.open("rb") as opened:
            streamed = opened.read(6) != b"ARROW1"
        if streamed:
            with ipc.open_stream(str(file)) as stream:
                for batch in stream:
                    yield from _batch_lines(file, batch, told)
        else:
            with ipc.open_file(str(file)) as table:
                for i in range(table.num_record_batches):
                    yield from _batch_lines(file, table.get_batch(i), told)
    except _arrow_errors() as error:
        raise DataError(f"{file.name} is not a whole Arrow file: {error}") from error


def _batch_lines(file: Path, batch: Any, told: Counter[str] | None) -> Iterator[bytes]:
    names: list[str] = batch.schema.names
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(f"{file.name} has two columns named {twice[0]}", fix="rename one of them")
    for start in range(0, batch.num_rows, 256):
        for record in batch.slice(start, 256).to_pylist():
            row: dict[str, Any] = {}
            for name, value in record.items():
                if value is not None:
                    try:
                        row[name] = cell(name, _filled(value, name in _USED), told)
                    except UnicodeDecodeError as error:
                        raise DataError(
                            f"{file.name}: the column {name} holds bytes that are not text in UTF-8",
                            fix="save it as text, or without that column",
                        ) from error
            yield _encode(row)


def _filled(value: Any, used: bool) -> Any:
    """Columnar files give each struct the fields of all; absent ones come as null and are left out again.
    Bytes are text, but in columns that are not `used` perhaps pictures, which are not to pass for text."""
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {key: _filled(item, used) for key, item in items if item is not None}
    if isinstance(value, list):
        return [_filled(item, used) for item in cast("list[Any]", value)]
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError:
            if used:
                raise
            return {"base64": value}
    return value


def _pyarrow(module: str) -> Any:
    import importlib

    with needed("data", "reading Parquet and Arrow files", "pyarrow"):
        return importlib.import_module(f"pyarrow.{module}")


def _arrow_errors() -> tuple[type[Exception], ...]:
    import pyarrow  # pyright: ignore[reportMissingTypeStubs]

    return (cast("Any", pyarrow).ArrowException, cast("Any", pyarrow).ArrowInvalid)
