"""Convert CSV, JSON, text, Parquet and Arrow files to JSON Lines in bounded memory."""

from __future__ import annotations

import ast
import csv
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import IO, Any, cast

import msgspec

from orchestrate.core import needed
from orchestrate.data import rows
from orchestrate.data.shapes.known import SHAPES
from orchestrate.errors import DataError

LONGEST_RECORD = 512 << 20
"""Maximum size of a JSON array element or a cell (in characters) and of a line (in bytes)."""
PYTHON_CELLS = "python-cells"
"""Problem code for cells that were parsed as Python literals."""

_encode = rows.encode
_STRUCTURED = frozenset(
    {
        "messages",
        "conversations",
        "tools",
        "functions",
        "prompt",
        "completion",
        "chosen",
        "rejected",
        "history",
        "input",
        "preferred_output",
        "non_preferred_output",
    }
)
"""Table columns that may contain JSON."""
_NAMES = frozenset(
    {
        "answer", "assistant", "content", "context", "conversation", "instruction", "label", "output",
        "problem", "question", "query", "reference", "response", "solution", "source", "system", "target",
        "text", "user",
    }
)  # fmt: skip
"""Other common column names in training tables."""
_LABELS = {"true": True, "false": False}
"""Labels of unpaired preferences as written in table cells."""
_LONGEST_NAME = 64
"""Maximum length of a column name in characters."""
_LONGEST_LITERAL = 4 << 20
"""Maximum length of a Python literal in characters. The parser needs many times as much memory."""


def csv_lines(file: Path, python_cells: Counter[str] | None = None) -> Iterator[bytes]:
    """Yield the records of a table with a header. Cells of list columns may be JSON or Python literals.
    Python literals are counted in `python_cells`."""
    csv.field_size_limit(LONGEST_RECORD)
    with file.open(encoding="utf-8-sig", newline="") as opened:
        sample = opened.read(64 << 10)
        opened.seek(0)
        tabs = file.suffix.lower() in (".tsv", ".tab")
        delimiter = "\t" if tabs else _separator(sample.split("\n", 1)[0])
        reader = csv.DictReader(
            _lines(opened, file), delimiter=delimiter, restkey="(more cells)", strict=True
        )
        try:
            columns = reader.fieldnames or ()
            labelled = {"prompt", "completion", "label"} <= set(columns)
            if twice := [name for name, times in Counter(columns).items() if name and times > 1]:
                raise DataError(
                    f"{file.name}: the header contains the column {twice[0]} twice",
                    fix="rename one of the columns",
                )
            for record in reader:
                row = {
                    key: cell(key, value, python_cells) for key, value in record.items() if value is not None
                }
                if labelled and (label := _LABELS.get(str(row.get("label")).lower())) is not None:
                    row["label"] = label
                yield _encode(row)
        except csv.Error as error:
            raise DataError(
                f"{file.name}: line {reader.reader.line_num}: {error}",
                fix="close all quotes, and double each quote inside a cell",
            ) from error


def is_table(head: bytes) -> bool:
    """Return whether the first bytes of a file look like a table: a header with at least one known column
    name, followed by a record with the same number of cells. Used for files without a known suffix."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        text = head[: error.start].decode("utf-8-sig")  # the end may cut a character
    first, _, rest = text.partition("\n")
    if not rest:
        return False
    reader = csv.reader([first + "\n", *rest.splitlines(keepends=True)], delimiter=_separator(first))
    try:
        header, record = next(reader), next(reader)
    except (csv.Error, StopIteration):
        return False
    names = {name.strip().lower() for name in header}
    return (
        len(header) == len(names) == len(record) >= 2
        and all(0 < len(name) <= _LONGEST_NAME for name in names)
        and bool(names & (_STRUCTURED | _NAMES))
    )


def _lines(opened: IO[str], file: Path) -> Iterator[str]:
    while line := opened.readline(LONGEST_RECORD):
        if len(line) == LONGEST_RECORD and not line.endswith("\n"):
            raise DataError(
                f"{file.name}: a line is longer than {LONGEST_RECORD >> 20} MiB",
                fix="close all quotes, or convert the file to JSON Lines",
            )
        yield line


def _separator(header: str) -> str:
    return max(",;\t", key=header.count)


def cell(column: str, value: Any, python_cells: Counter[str] | None = None) -> Any:
    """Return the value of a cell. Lists in list columns are parsed from JSON or Python literals. Other cells
    are returned unchanged."""
    if column not in _STRUCTURED or not isinstance(value, str) or value[:1] not in ("[", "{"):
        return value
    try:
        held = rows.decode(value)
    except (msgspec.DecodeError, RecursionError):
        held, code = _literal(value), PYTHON_CELLS
    else:
        code = None
    if held is None or not _is_meant(column, held):
        return value
    if code is not None and python_cells is not None:
        python_cells[code] += 1
    return held


def _literal(text: str) -> Any:
    """Parse a list or an object written with Python's `repr`, as in pandas' `to_csv`. Returns `None` for
    any other text, and for values that JSON can't represent."""
    if len(text) > _LONGEST_LITERAL:
        return None
    try:
        with warnings.catch_warnings(action="ignore"):
            held = ast.literal_eval(text)
        if not _is_json(held):
            return None
        _encode(held)  # an unpaired surrogate cannot be encoded
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return held


def _is_json(value: Any) -> bool:
    if isinstance(value, dict):
        items = cast("dict[Any, Any]", value).items()
        return all(isinstance(key, str) and _is_json(item) for key, item in items)
    if isinstance(value, list):
        return all(map(_is_json, cast("list[Any]", value)))
    if isinstance(value, float):
        return isfinite(value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**64
    return value is None or isinstance(value, str)


def _is_meant(column: str, held: Any) -> bool:
    """Return whether a parsed cell is meant as structured data. A prompt, an answer, or Alpaca's `input`
    may be text that happens to be JSON."""
    if column == "input":
        return isinstance(held, dict) and "messages" in held
    if column in ("prompt", "completion"):
        items = cast("list[Any]", held) if isinstance(held, list) else []
        return bool(items) and all(map(_is_message, items))
    if column in ("chosen", "rejected"):
        items = cast("list[Any]", held if isinstance(held, list) else [held])
        return bool(items) and all(isinstance(i, dict) and {"role", "from"} & i.keys() for i in items)
    return True


def _is_message(item: Any) -> bool:
    return isinstance(item, dict) and "role" in item and ("content" in item or "tool_calls" in item)


BLOCK = 1 << 20

_USED = frozenset[str]().union(*(shape.fields for shape in SHAPES))
_BETWEEN = re.compile(r"[\s,]*")
_SPACE = re.compile(r"[\s\ufeff]*")


def json_lines(file: Path, python_cells: object = None) -> Iterator[bytes]:
    """Yield the elements of a JSON array, or consecutive JSON objects that span several lines.

    Raises `DataError` for invalid JSON. Unlike in JSONL, nothing after the error can be read."""
    decode = json.JSONDecoder(parse_float=rows.number).raw_decode
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
                        f"{file.name}: unexpected {text[at : at + 20]!r} after the array (after "
                        f"record {number})",
                        fix="use a file with only one array, or write JSON Lines: one object per line",
                    )
                at += 1
                continue
            try:
                value, end = decode(text, at)
                if end == len(text) and not isinstance(value, dict | list):
                    raise ValueError("a number may continue in the next block")
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
                    f"{file.name}: invalid JSON after record {number}: {why}",
                    fix="fix the file, or write JSON Lines: one object per line",
                ) from error
            yield text[at:end].replace("\n", " ").replace("\r", " ").encode()
            number += 1
            at = end


def _skipped(opened: IO[str], text: str, at: int) -> tuple[str, int]:
    """Skip whitespace. Returns the block and the position of the next text, or an empty block at the end
    of the file."""
    while (at := _SPACE.match(text, at).end()) == len(text):  # type: ignore[union-attr]  # as above
        if not (text := opened.read(BLOCK)):
            break
        at = 0
    return text, at


def text_lines(file: Path, python_cells: object = None) -> Iterator[bytes]:
    """Yield each non-blank line as a text row. White space in a line is part of the text."""
    with file.open(encoding="utf-8-sig", newline="\n") as opened:
        for line in opened:
            if line.strip():
                yield _encode({"text": line.removesuffix("\n").removesuffix("\r")})


def parquet_lines(file: Path, python_cells: Counter[str] | None = None) -> Iterator[bytes]:
    arrow = _pyarrow("parquet")
    try:
        with arrow.ParquetFile(str(file)) as opened:
            for batch in opened.iter_batches(batch_size=256):
                yield from _batch_lines(file, batch, python_cells)
    except _arrow_errors() as error:
        raise DataError(f"{file.name} is not a complete Parquet file: {error}") from error


def arrow_lines(file: Path, python_cells: Counter[str] | None = None) -> Iterator[bytes]:
    """Yield the rows of an Arrow file or stream, as `datasets` saves them."""
    ipc = _pyarrow("ipc")
    try:
        with file.open("rb") as opened:
            streamed = opened.read(6) != b"ARROW1"
        if streamed:
            with ipc.open_stream(str(file)) as stream:
                for batch in stream:
                    yield from _batch_lines(file, batch, python_cells)
        else:
            with ipc.open_file(str(file)) as table:
                for i in range(table.num_record_batches):
                    yield from _batch_lines(file, table.get_batch(i), python_cells)
    except _arrow_errors() as error:
        raise DataError(f"{file.name} is not a complete Arrow file: {error}") from error


def _batch_lines(file: Path, batch: Any, python_cells: Counter[str] | None) -> Iterator[bytes]:
    names: list[str] = batch.schema.names
    if twice := [name for name, times in Counter(names).items() if times > 1]:
        raise DataError(f"{file.name} has two columns named {twice[0]}", fix="rename one of the columns")
    for start in range(0, batch.num_rows, 256):
        for record in batch.slice(start, 256).to_pylist():
            row: dict[str, Any] = {}
            for name, value in record.items():
                if value is not None:
                    try:
                        row[name] = cell(name, _filled(value, name in _USED), python_cells)
                    except UnicodeDecodeError as error:
                        raise DataError(
                            f"{file.name}: the column {name} contains bytes that are not UTF-8 text",
                            fix="save the column as text, or remove it",
                        ) from error
            yield _encode(row)


def _filled(value: Any, used: bool) -> Any:
    """Remove null fields, which columnar files add to each struct, and decode bytes as UTF-8. Other bytes
    are encoded as base64 if the column is not `used`, because they may be images."""
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
