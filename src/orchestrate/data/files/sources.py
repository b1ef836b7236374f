"""Convert any file, folder or URL to one local JSONL file with one record per line.

Plain JSONL is used in place. Everything else is converted once, in bounded memory, in a temporary folder of
this process. Line N of that file is record N of the input.
"""

from __future__ import annotations

import gzip
import shutil
import socket
import stat
import tempfile
from codecs import BOM_UTF8
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, cast
from urllib.parse import urlsplit

from orchestrate.core import needed
from orchestrate.core.files import FULL, scratch_folder
from orchestrate.core.underway import BYTES, work
from orchestrate.data.files import DATA_SUFFIXES, data_files
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
from orchestrate.errors import DataError, OrchestrateError, SetupError, UsageError
from orchestrate.settings import download_limit, remember

# Download a file from any fsspec URL, or raise an error with a fix.


_CHECK_INTERVAL = 16 << 20
"""Maximum number of bytes written between two checks of the free disk space."""
_FREE_BYTES = 512 << 20
_FREE_SHARE = 20
"""Sets how much disk space must remain free: 1/`_FREE_SHARE` of the disk, but at most `_FREE_BYTES`."""


class Spool:
    """An open output file that enforces the size and disk limits of `spooled`."""

    def __init__(
        self, file: IO[bytes], folder: Path, what: str, keep_bytes: int | None, most_bytes: int | None
    ) -> None:
        self._file, self._folder, self._what = file, folder, what
        self._most, self._written = most_bytes, 0
        share = min(_FREE_BYTES, shutil.disk_usage(folder).total // _FREE_SHARE)
        self._keep = share if keep_bytes is None else keep_bytes
        self._step = min(_CHECK_INTERVAL, self._keep)
        self._left = self._step

    def write(self, piece: bytes) -> None:
        """Write the bytes. Raises `DataError` if the disk is nearly full or the size limit is exceeded."""
        self._left -= len(piece)
        self._written += len(piece)
        if self._most is not None and self._written > self._most:
            raise too_large(self._what, self._most)
        if self._left < 0:
            self._file.flush()
            self._check_disk()
        self._file.write(piece)

    def require_room(self, size: int) -> None:
        """Check the expected size before writing. Raises `DataError` if it exceeds a limit."""
        if self._most is not None and size > self._most:
            raise too_large(self._what, self._most)
        if shutil.disk_usage(self._folder).free < self._keep + size:
            raise _no_room(self._what, self._folder)

    def _check_disk(self) -> None:
        self._left = self._step
        self.require_room(0)


def too_large(what: str, most_bytes: int) -> DataError:
    return DataError(
        f"{what} is larger than {most_bytes / 10**9:g} GB, the download limit. Nothing was saved",
        fix="check the URL, or raise the limit: ORCHESTRATE_MAX_DOWNLOAD_GB=100",
    )


def _no_room(what: str, folder: Path) -> DataError:
    return DataError(
        f"not enough disk space for {what} in {folder}. Nothing was saved",
        fix="free up some disk space, or set TMPDIR to a folder on a larger disk",
    )


@contextmanager
def spooled(
    path: Path, what: str, keep_bytes: int | None = None, *, most_bytes: int | None = None
) -> Generator[Spool]:
    """Open a file for writing. Raises `DataError` if more than `most_bytes` are written or if less than
    `keep_bytes` of the disk would remain free. If the block raises an exception, the file is removed. `what`
    names the file's content in error messages."""
    try:
        with path.open("wb") as file:
            yield Spool(file, path.parent, what, keep_bytes, most_bytes)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:  # buffered data
            raise _no_room(what, path.parent) from error
        raise


FETCH_BLOCK = 1 << 20
MOST_BYTES = 10 * 10**9
"""Default download limit in bytes. ORCHESTRATE_MAX_DOWNLOAD_GB overrides it."""
_USUAL = "http, https, s3, gs, az, hf, sftp, file, memory"
_TAKEN = frozenset(
    {
        "abfs", "abfss", "adl", "az", "blockcache", "data", "dropbox", "file", "filecache", "ftp", "gcs",
        "gdrive", "gs", "hf", "http", "https", "libarchive", "local", "memory", "oci", "oss", "s3", "s3a",
        "sftp", "simplecache", "smb", "ssh", "tar", "tos", "webdav", "webhdfs", "zip"
    }
)  # fmt: skip
"""Allowed protocols. Specs are untrusted, so protocols that follow references in a file, run programs or
query notebook servers are excluded."""
_HOSTED = frozenset({"http", "https", "ftp", "sftp", "webdav"})
"""Protocols whose URLs start with a host name."""
_CREDENTIALS = frozenset({"NoCredentialsError", "DefaultCredentialsError", "ClientAuthenticationError"})
_BROKEN = frozenset({"ClientPayloadError", "RemoteProtocolError", "IncompleteRead", "ProtocolError"})
"""Errors that HTTP clients raise for a response that ended early."""
_MEDIA_TYPE = ("mimetype", "ContentType", "contentType", "content_type")
"""Names of the content-type field in the file information that the HTTP, S3, Google and Azure file systems
return."""
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


def fetch(url: str, target: Path) -> str:
    """Download `url` to `target`, in bounded memory and with a size limit.

    Returns the host's content type, such as `text/csv`, if the file name has no known suffix, otherwise an
    empty string.

    Raises `UsageError` for an unknown or disallowed protocol, `SetupError` if the protocol's package or the
    credentials are missing, and `DataError` for other failures, with `retryable` set if a retry can help.
    """
    with needed("data", f"reading {shown(url)}", "fsspec"):
        import fsspec  # pyright: ignore[reportMissingTypeStubs]
    protocol = url.split("://", 1)[0].split("::")[-1]
    known = _TAKEN & set[str](cast("Any", fsspec).available_protocols())
    chain = {part.partition("://")[0] for part in url.split("::") if "://" in part or part.isalpha()}
    if unknown := chain - known:
        raise UsageError(
            f"cannot read {shown(url)}: unknown protocol {min(unknown)}",
            fix=f"supported protocols include {_USUAL}",
        )
    try:
        opened = cast("Any", fsspec).open(url, "rb")
        most = download_limit() or MOST_BYTES
        with opened as remote, spooled(target, shown(url), most_bytes=most) as local:
            # Not all hosts announce the size, and not all announce it correctly.
            local.require_room(getattr(remote, "size", None) or 0)
            while block := remote.read(FETCH_BLOCK):
                local.write(block)
        return "" if target.suffix else _media_type(opened)
    except DataError:
        raise
    except Exception as error:  # each protocol raises the errors of its client
        raise _explained(url, protocol, error) from error


def _media_type(opened: Any) -> str:
    info: dict[str, Any] = {}
    with suppress(Exception):  # the file is local, and its first bytes may identify the type
        info = opened.fs.info(opened.path)
    found = next((info[name] for name in _MEDIA_TYPE if info.get(name)), "")
    return str(found).partition(";")[0].strip().lower()


def shown(url: str) -> str:
    """Return the URL without parts that may be secret, such as a password or a signature in the query."""
    parts = urlsplit(url)
    host = parts.netloc.rsplit("@", 1)[-1]
    return parts._replace(netloc=host, query="...&" * bool(parts.query), fragment="").geturl().rstrip("&")


def _explained(url: str, protocol: str, error: Exception) -> OrchestrateError:
    """Turn an fsspec error into one with a cause and a fix. fsspec often raises a `FileNotFoundError` with
    only the URL, so the reason is found in the chain of causes."""
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, ImportError):
            package = one.name or protocol
            if one.name is None and one is not chain[-1]:
                continue  # fsspec's message, followed by the failed import
            return SetupError(
                f"reading {shown(url)} needs the package {package!r}, which is not installed",
                fix=f"pip install {package}",
            )
    place = (urlsplit(url).hostname if protocol in _HOSTED else None) or f"the host of {protocol}"
    status = next((s for one in chain if isinstance(s := getattr(one, "status", None), int)), None)
    if status is not None:
        return _by_status(url, place, status)
    if any(isinstance(one, PermissionError) or _is(one, _CREDENTIALS) for one in chain):
        return _by_status(url, place, 403)
    if any(isinstance(one, socket.gaierror) for one in chain):
        return _again(
            f"cannot read {shown(url)}: cannot resolve {place}, or there is no network",
            "check the URL, then try again",
        )
    if any(isinstance(one, ConnectionRefusedError) for one in chain):
        return _again(
            f"cannot read {shown(url)}: {place} refused the connection", "check the URL, then try again"
        )
    if any(isinstance(one, ConnectionError | TimeoutError) or _is(one, _BROKEN) for one in chain):
        return _again(f"cannot read {shown(url)}: lost the connection to {place}", "try again")
    if isinstance(error, FileNotFoundError):
        return _by_status(url, place, 404)
    if isinstance(error, OSError):
        reason = error.strerror or type(chain[-1]).__name__
        return _again(f"cannot read {shown(url)}: {reason}", "try again, or copy the file to this machine")
    # The message may contain the URL with its secrets.
    return DataError(
        f"cannot read {shown(url)}: {protocol} failed with {type(error).__name__}",
        fix="copy the file to this machine and pass its path",
    )


def _chain(error: BaseException) -> Iterator[BaseException]:
    one: BaseException | None = error
    while one is not None:
        yield one
        one = one.__cause__ or one.__context__


def _is(error: BaseException, names: frozenset[str]) -> bool:
    """Return whether an error is of a named type. Types are compared by name because their packages may
    not be installed."""
    return any(base.__name__ in names for base in type(error).__mro__)


def _again(message: str, fix: str) -> DataError:
    error = DataError(message, fix=fix)
    error.retryable = True
    return error


def _by_status(url: str, place: str, status: int) -> OrchestrateError:
    what = f"cannot read {shown(url)}: "
    if status == 404:
        return DataError(f"{what}file not found", fix="check the URL. Retrying will not help")
    if status in (401, 403):
        return SetupError(
            f"{what}{place} denied access",
            fix="set the environment variables for this host's credentials, or use a signed URL",
        )
    if status in _BUSY:
        return _again(f"{what}{place} answered {status}", "wait a moment, then try again")
    return DataError(f"{what}{place} answered {status}", fix="check the URL")


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
"""Magic bytes of unsupported file types."""
_MEDIA_SUFFIXES = {
    "text/csv": ".csv",
    "application/csv": ".csv",
    "text/x-csv": ".csv",
    "text/tab-separated-values": ".tsv",
}
"""Table suffixes by content type, because the first bytes of a table are ambiguous."""
_MOST_LAYERS = 4
"""Maximum number of nested compression layers. Without a limit, unpacking an archive that contains itself
would never end."""
_ROWS = (".jsonl", ".ndjson", ".json")


@dataclass(frozen=True)
class RowSource:
    """An input that is ready for reading. `lines` is the path of its JSONL file, and `container` is the
    input's type, such as `jsonl` or `csv.gz`."""

    path: str
    lines: str
    container: str
    bytes: int
    """Size of the input as stored, in bytes."""
    line_bytes: int
    python_cells: int = 0
    """Number of cells with Python list literals."""


def source(path: str) -> RowSource:
    """Prepare an input for reading. Later calls in the same process reuse the result if the input is
    unchanged. `-` is standard input. Raises `DataError` when the input cannot be read and `MissingExtra` when
    its format needs a package that is not installed."""
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
            f"{path} is a device or a terminal, not a file",
            fix="pipe rows into standard input, or pass a file",
        )
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return _prepared(path, 0, 0)  # a pipe, which can be read once
    return _prepared(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)
def _prepared(path: str, changed_ns: int, size: int) -> RowSource:
    try:
        return _prepare(path)
    except (OSError, EOFError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    except UnicodeDecodeError as error:
        fix = (
            "save it as UTF-8: iconv -f windows-1252 -t utf-8 FILE > NEW"
            if error.encoding == "utf-8"
            else "check whether the file is truncated or mixes encodings, then save it as UTF-8"
        )
        raise DataError(
            f"{path} is not valid {error.encoding.upper()} ({error.reason})",
            fix=fix,
        ) from error


def name_of(path: str) -> str:
    """Return the name of a local or remote file, without a URL's query, which may contain a secret."""
    return path.rpartition("/")[2].partition("?")[0]


def _prepare(path: str) -> RowSource:
    if "://" in path:
        local = _fetch(path)
        return _unfold(path, local, "", local.stat().st_size)
    given = Path(path)
    if given.is_dir():
        files = data_files(given)
        python_cells = Counter[str]()
        size = sum(f.stat().st_size for f in files)
        return _staged(path, arrow_or_parts(files, python_cells), "folder", size, python_cells)
    if not given.is_file():
        given = _copied(given)
    return _unfold(path, given, "", given.stat().st_size)


def _copied(pipe: Path) -> Path:
    target = _new_file("")
    with pipe.open("rb") as opened, spooled(target, "standard input") as file:
        while block := opened.read(BLOCK):
            file.write(block)
    return target


def _unfold(path: str, file: Path, outer: str, size: int) -> RowSource:
    """Decompress a file and read its container."""
    if outer.count(".") > _MOST_LAYERS:
        raise DataError(f"{path} has more than {_MOST_LAYERS} layers of compression", fix="unpack it")
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
        return RowSource(path, str(file), container + outer, size, file.stat().st_size)
    python_cells = Counter[str]()
    return _staged(path, reader(file, python_cells), container + outer, size, python_cells)


def _container(file: Path, head: bytes) -> tuple[str, Reader | None]:
    """Return the container type and its reader, based on the first bytes and, for text tables, the file
    name."""
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
            f"{file.name} is {foreign}, not rows",
            fix="unpack the file, or save its rows as JSON Lines or CSV",
        )
    if start[:9].lower().startswith((b"<!doctype", b"<html")):
        raise DataError(f"{file.name} is a web page, not a data file", fix="use the URL of the raw file")
    if start[:1] == b"[" or start.split(b"\n", 1)[0].strip() == b"{":
        return "json", json_lines
    if suffix not in _ROWS and start[:1] != b"{" and is_table(head):
        return "csv", csv_lines
    return "jsonl", None


def _staged(
    path: str, rows: Iterator[bytes], container: str, size: int, python_cells: Counter[str]
) -> RowSource:
    target = _new_file(".jsonl")
    with spooled(target, f"{path}, as rows,") as file, work(f"reading the rows of {name_of(path)}") as so_far:
        for number, row in enumerate(rows, 1):
            file.write(row + b"\n")
            if number % 1000 == 0:
                so_far(number)
    return RowSource(path, str(target), container, size, target.stat().st_size, python_cells[PYTHON_CELLS])


def _recoded(path: str, file: Path) -> Path:
    """Convert UTF-16 to UTF-8, so that the first bytes identify the file type."""
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
        work(f"unpacking {name_of(path)}", BYTES) as report,
    ):
        done = 0
        for block in _blocks(path, packed, target):
            plain.write(block)
            report(done := done + len(block))
    return target


def _blocks(path: str, packed: IO[bytes], target: Path) -> Iterator[bytes]:
    """Yield blocks of the decompressed file. Raises `DataError` for a line that is too long for a row,
    because a megabyte can decompress to a gigabyte of zeros."""
    block, line = packed.read(BLOCK), 0
    in_lines = _container(target, block[:_HEAD])[0] in ("jsonl", "csv", "tsv", "tab", "txt")
    while block:
        end = block.rfind(b"\n") + 1
        line = len(block) - end if end else line + len(block)
        if in_lines and line > LONGEST_RECORD:
            raise DataError(
                f"{path} decompresses to a line longer than {LONGEST_RECORD >> 20} MiB",
                fix="write one row per line (JSONL)",
            )
        yield block
        block = packed.read(BLOCK)


def _gzip(file: Path) -> IO[bytes]:
    return cast("IO[bytes]", gzip.open(file, "rb"))


def _zstd(file: Path) -> Any:
    from orchestrate.core.zstd import zstd

    class Checked:
        """Convert the package's own error to one that the caller handles."""

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
    suffixes = Path(url.split("?", 1)[0]).suffixes[-2:]  # two, as in rows.csv.gz
    known = any(suffix.lower() in DATA_SUFFIXES for suffix in suffixes)
    target = _new_file("".join(suffixes) if known else "")
    suffix = _MEDIA_SUFFIXES.get(fetch(url, target), "")
    return target.rename(target.with_suffix(suffix)) if suffix else target


def arrow_or_parts(files: list[Path], python_cells: Counter[str]) -> Iterator[bytes]:
    """Yield the rows of all files, one file after another."""
    for file in files:
        with file.open("rb") as opened:
            head = opened.read(_HEAD)
        if head[:2] == b"\x1f\x8b" or head[:4] == b"\x28\xb5\x2f\xfd" or head[:2] in _UTF16:
            unfolded = _unfold(str(file), file, "", 0)
            python_cells[PYTHON_CELLS] += unfolded.python_cells
            part, reader = Path(unfolded.lines), None
        else:
            part = file
            _, reader = _container(file, head)
        if reader is not None:
            yield from reader(part, python_cells)
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
