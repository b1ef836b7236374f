"""Files that appear whole or not at all, and never in place of what they are made from."""

from __future__ import annotations

import gzip
import os
import re
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from orchestrate import files
from orchestrate.data.files.folders import DATA_SUFFIXES, PACKED_SUFFIXES
from orchestrate.errors import UsageError

_STDOUT = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})


def is_stdout(output: Path) -> bool:
    return str(output) in _STDOUT


def is_stream(output: Path) -> bool:
    """Whether it keeps its place and takes the bytes: standard output, a pipe, a device."""
    return is_stdout(output) or (output.exists() and not output.is_file() and not output.is_dir())


def require_writable(output: Path, *sources: str, stream: bool = False) -> None:
    """Raises `UsageError` when `output` is one of the `sources` itself or a file of such a folder, when it is
    a folder, or in one that is not there, or not a file at all unless `stream`. To be asked before hours of
    work."""
    if is_stream(output):
        if not stream:
            raise UsageError(f"{output} is not a file", fix="give the name of a file with -o")
        return
    if output.is_dir():
        raise UsageError(f"{output} is a folder", fix="give the name of a file with -o")
    folder = _behind_links(output).parent if output.is_symlink() else output.parent
    if not folder.is_dir():
        raise UsageError(f"there is no folder {folder}", fix=f"mkdir -p {folder}")
    if any(_is_of(output, source) for source in sources):
        raise UsageError(f"{output} is the input, which is kept as it is", fix="give another name with -o")


def _is_of(output: Path, source: str) -> bool:
    given = Path("/dev/stdin" if source == "-" else source)
    if "://" in source or not output.exists() or not given.exists():
        return False
    return output.samefile(given) or (given.is_dir() and given.resolve() in _behind_links(output).parents)


def _behind_links(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _base(name: str) -> str:
    """The name of a file without how it is packed and what it holds: `rows.v1` of `rows.v1.jsonl.gz`."""
    for suffixes in (PACKED_SUFFIXES, DATA_SUFFIXES):
        if Path(name).suffix.lower() in suffixes:
            name = Path(name).stem
    return name


def beside(source: str, suffix: str) -> Path:
    """`data/train.v1.jsonl.gz` -> `data/train.v1.fixed.jsonl`; what comes from a URL or a pipe is written
    here."""
    if source == "-" or source.startswith("/dev/"):
        return Path(f"data.{suffix}")
    # What follows a name in an address may be secret.
    given = Path(re.split("[?#]", source.rsplit("/", 1)[-1])[0]) if "://" in source else Path(source)
    name = _base(given.name).strip(".")
    return given.with_name(f"{name}.{suffix}") if name else Path(f"data.{suffix}")


def log_beside(output: Path, what: str, *sources: str) -> Path:
    """`rows.changes.jsonl` for `rows.jsonl`. Raises `UsageError` as `require_writable` does."""
    log = output.with_name(f"{_base(output.name)}.{what}.jsonl")
    require_writable(log, *sources)
    return log


@contextmanager
def whole(path: Path) -> Generator[Path]:
    """A name to write to; what is there at the end of the block becomes `path`, or goes through it where it
    is a stream; after an error nothing."""
    if is_stream(path):
        with tempfile.TemporaryDirectory(prefix="orchestrate-") as folder:
            partial = Path(folder, "rows")
            yield partial
            with partial.open("rb") as made, _stream(path) as target:
                shutil.copyfileobj(made, target)
        return
    with files.whole(path) as partial:
        yield partial


def _stream(path: Path) -> IO[bytes]:
    return open(1, "wb", closefd=False) if is_stdout(path) else path.open("ab")


@contextmanager
def writing(path: Path) -> Generator[IO[bytes]]:
    """`whole`, opened; what is written is packed when the name ends in .gz or .zst."""
    with whole(path) as partial, partial.open("wb") as file, _packing(file, path.suffix.lower()) as packed:
        yield packed


def _packing(file: IO[bytes], suffix: str) -> Any:
    if suffix == ".gz":
        # Without a time, so that equal rows make an equal file.
        return gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0)
    if suffix == ".zst":
        from orchestrate.zstd import zstd

        return zstd.ZstdFile(file, "wb")
    return nullcontext(file)
