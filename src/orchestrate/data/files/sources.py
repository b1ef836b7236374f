"""Any file, folder or URL -> one JSONL file on this machine, a record in each line.

Plain JSONL is used where it lies. Everything else is written once to a temporary folder of this process, in
bounded memory, so that one fast path reads all inputs; line N of that file is record N of the input.
"""

from __future__ import annotations

import gzip
import stat
import tempfile
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast

from orchestrate.core.files import scratch_folder
from orchestrate.core.underway import BYTES, work
from orchestrate.data.files.fetching import fetch, spooled
from orchestrate.data.files.outputs import DATA_SUFFIXES, data_files
from orchestrate.data.files.records import (
    LONGEST_RECORD,
    PYTHON_CELLS,
    arrow_lines,
    csv_lines,
    is_table,
    json_lines,
    parquet_lines,
    text_lines,
)
from orchestrate.errors import DataError
from orchestrate.settings.keys import remember

BLOCK = 1 << 20
_HEAD = 4096

Reader = Callable[[Path, Counter[str]], Iterator[bytes]]

_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_FOREIGN = {
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"\xfd7zXZ\x00": "an xz archive",
    b"BZh": "a bzip2 archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"%PDF-": "a PDF",
    b"SQLite format 3": "a SQLite database",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"GIF8": "a picture",
}
"""First bytes of files that people give, and what they are."""
_MEDIA_SUFFIXES = {
    "text/csv": ".csv",
    "application/csv": ".csv",
    "text/x-csv": ".csv",
    "text/tab-separated-values": ".tsv",
}
"""Of tables, whose first bytes do not tell them for certain."""
_MOST_LAYERS = 4
"""An archive may hold itself."""
_ROWS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class Source:
    """`lines` is the JSONL file; `container` says what the input was, for example `jsonl`, `csv.gz`."""

    path: str
    lines: str
    container: str
    bytes: int
    """Size of the input as it lies."""
    line_bytes: int
    python_cells: int = 0
    """Cells that held lists as Python writes them."""


def source(path: str) -> Source:
    """Raises `DataError` when the input cannot be read, `MissingExtra` when its format needs a package
    that is not installed. An unchanged input is prepared once in a process; `-` is standard input."""
    if "://" in path:
        remember(path)
        return _prepared(path, 0, 0)
    path = "/dev/stdin" if path == "-" else path
    try:
        found = Path(path).stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"cannot read {path}: {reason}", fix="check the path") from error
    if stat.S_ISCHR(found.st_mode) or stat.S_ISBLK(found.st_mode):
        raise DataError(
            f"{path} is a device or a terminal, not a file", fix="pipe rows into it, or give a file"
        )
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return _prepared(path, 0, 0)  # a pipe, which can be read once
    return _prepared(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)
def _prepared(path: str, changed_ns: int, size: int) -> Source:
    try:
        return _prepare(path)
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except UnicodeDecodeError as error:
        fix = (
            "iconv -f windows-1252 -t utf-8 FILE > NEW" if error.encoding == "utf-8" else "it is cut or mixed"
        )
        raise DataError(
            f"{path} is not {error.encoding.upper()} (byte {error.start + 1} of a block)",
            fix=f"save it as UTF-8: {fix}",
        ) from error


def name_of(path: str) -> str:
    """Of a file wherever it lies; what follows an address may be a secret."""
    return path.rpartition("/")[2].partition("?")[0]


def _prepare(path: str) -> Source:
    if "://" in path:
        local = _fetch(path)
        return _unfold(path, local, "", local.stat().st_size)
    given = Path(path)
    if given.is_dir():
        files = data_files(given)
        told = Counter[str]()
        size = sum(f.stat().st_size for f in files)
        return _staged(path, arrow_or_parts(files, told), "folder", size, told)
    if not given.is_file():
        given = _copied(given)
    return _unfold(path, given, "", given.stat().st_size)


def _copied(pipe: Path) -> Path:
    target = _new_file("")
    with pipe.open("rb") as opened, spooled(target, "standard input") as file:
        while block := opened.read(BLOCK):
            file.write(block)
    return target


def _unfold(path: str, file: Path, outer: str, size: int) -> Source:
    """Undoes compression, then reads the container."""
    if outer.count(".") > _MOST_LAYERS:
        raise DataError(f"{path} is packed more than {_MOST_LAYERS} times", fix="unpack it")
    with file.open("rb") as opened:
        head = opened.read(_HEAD)
    if head[:2] == b"\x1f\x8b":
        return _unfold(path, _unpacked(path, file, ".gz", _gzip), ".gz" + outer, size)
    if head[:4] == b"\x28\xb5\x2f\xfd":
        return _unfold(path, _unpacked(path, file, ".zst", _zstd), ".zst" + outer, size)
    if head[:2] in _UTF16:
        return _unfold(path, _recoded(path, file), ".utf-16" + outer, size)
    container, reader = _container(file, head)
    if reader is None:
        return Source(path, str(file), container + outer, size, file.stat().st_size)
    told = Counter[str]()
    return _staged(path, reader(file, told), container + outer, size, told)


def _container(file: Path, head: bytes) -> tuple[str, Reader | None]:
    """What the file is, by its first bytes and, for tables of text, by its name."""
    suffix = file.suffix.lower()
    if head[:4] == b"PAR1":
        return "parquet", parquet_lines
    if head[:6] == b"ARROW1" or head[:4] == b"\xff\xff\xff\xff":
        return "arrow", arrow_lines
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if suffix in (".csv", ".tsv", ".tab") and start[:1] != b"{":
        return suffix[1:], csv_lines
    tabbed = b"\t" in start.split(b"\n", 1)[0] and is_table(head)  # as Excel saves "Unicode text"
    if suffix == ".txt" and start[:1] != b"{" and not tabbed:
        return "txt", text_lines
    if foreign := next((name for magic, name in _FOREIGN.items() if head.startswith(magic)), None):
        raise DataError(
            f"{file.name} is {foreign}, not rows", fix="unpack it, or save it as JSON Lines or CSV"
        )
    if start[:9].lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{file.name} is a web page, not data", fix="give the address of the raw file")
    if start[:1] == b"[" or start.split(b"\n", 1)[0].strip() == b"{":
        return "json", json_lines
    if suffix not in _ROWS and start[:1] != b"{" and is_table(head):
        return "csv", csv_lines
    return "jsonl", None


def _staged(path: str, rows: Iterator[bytes], container: str, size: int, told: Counter[str]) -> Source:
    target = _new_file(".jsonl")
    with spooled(target, f"{path}, as rows,") as file, work(f"reading the rows of {name_of(path)}") as so_far:
        for number, row in enumerate(rows, 1):
            file.write(row + b"\n")
            if number % 1000 == 0:
                so_far(number)
    return Source(path, str(target), container, size, target.stat().st_size, told[PYTHON_CELLS])


def _recoded(path: str, file: Path) -> Path:
    """UTF-8, in which first bytes tell what a file is."""
    target = _new_file(file.suffix)
    with file.open(encoding="utf-16", newline="") as wide, spooled(target, f"{path}, as UTF-8,") as plain:
        while text := wide.read(BLOCK):
            plain.write(text.encode())
    return target


def _unpacked(path: str, file: Path, suffix: str, open_packed: Callable[[Path], Any]) -> Path:
    target = _new_file(Path(file.name.removesuffix(suffix)).suffix)
    with (
        open_packed(file) as packed,
        spooled(target, f"{path}, unpacked,") as plain,
        work(f"unpacking {name_of(path)}", BYTES) as told,
    ):
        done = 0
        for block in _blocks(path, packed, target):
            plain.write(block)
            told(done := done + len(block))
    return target


def _blocks(path: str, packed: IO[bytes], target: Path) -> Iterator[bytes]:
    """Raises `DataError` at a line that no row can be: a megabyte may unpack to a gigabyte of zeros."""
    block, line = packed.read(BLOCK), 0
    in_lines = _in_lines(target, block[:_HEAD])
    while block:
        end = block.rfind(b"\n") + 1
        line = len(block) - end if end else line + len(block)
        if in_lines and line > LONGEST_RECORD:
            raise DataError(
                f"{path} unpacks to a line of over {LONGEST_RECORD >> 20} MiB",
                fix="write one row to a line (JSONL)",
            )
        yield block
        block = packed.read(BLOCK)


def _in_lines(file: Path, head: bytes) -> bool:
    """Whether no record of such a file is longer than one line may be."""
    return _container(file, head)[0] in ("jsonl", "csv", "tsv", "tab", "txt")


def _gzip(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file, "rb"))


def _zstd(file: Path) -> Any:
    from orchestrate.core.zstd import zstd

    class Checked:
        """Turns the package's own error into one that the caller knows."""

        def __enter__(self) -> Checked:
            self._stream = zstd.ZstdFile(file)
            return self

        def __exit__(self, *_: object) -> None:
            self._stream.close()

        def read(self, size: int) -> bytes:
            try:
                return self._stream.read(size)
            except zstd.ZstdError as error:
                raise EOFError(str(error)) from error

    return Checked()


def _fetch(url: str) -> Path:
    suffixes = Path(url.split("?", 1)[0]).suffixes[-2:]  # two, as of rows.csv.gz
    known = any(suffix.lower() in DATA_SUFFIXES for suffix in suffixes)
    target = _new_file("".join(suffixes) if known else "")
    suffix = _MEDIA_SUFFIXES.get(fetch(url, target), "")
    return target.rename(target.with_suffix(suffix)) if suffix else target


def arrow_or_parts(files: list[Path], told: Counter[str]) -> Iterator[bytes]:
    """The rows of each file in turn."""
    for file in files:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
        if head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or head[:2] in _UTF16:
            unfolded = _unfold(str(file), file, "", 0)
            told[PYTHON_CELLS] += unfolded.python_cells
            part, reader = Path(unfolded.lines), None
        else:
            part = file
            _, reader = _container(file, head)
        if reader is not None:
            yield from reader(part, told)
            continue
        with part.open("rb") as opened:
            if opened.peek(3)[:3] == BOM_UTF8:
                opened.read(3)
            for line in opened:
                yield line.rstrip(b"\r\n")


@lru_cache(maxsize=1)
def _folder() -> tempfile.TemporaryDirectory[str]:
    return scratch_folder("orchestrate-data")


def _new_file(suffix: str) -> Path:
    with tempfile.NamedTemporaryFile(dir=_folder().name, suffix=suffix, delete=False) as file:
        return Path(file.name)
