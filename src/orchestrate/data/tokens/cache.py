"""Token counts that are kept: in the process, and in a folder for the next one.

A count belongs to the digest of the rows, so that a changed file is counted anew whatever its name or time.
It is not taken over from another version of the counting code, of its libraries, or of a model's tokenizer.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Iterator
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import msgspec

from orchestrate.core.files import private_folder, sha256, write_whole
from orchestrate.core.packages import installed
from orchestrate.data.tokens import counting
from orchestrate.data.tokens.lengths import Lengths, Remark

MOST_FILES = 500
"""Of those in a folder, the oldest above this number are removed."""
_LIBRARIES = ("toktok-rs", "tiktoken", "tokenizers", "jinja2", "transformers")
_TOKENIZER_FILES = (
    "tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt",
    "*.model", "*.tiktoken", "additional_chat_templates/*", "config.json",
)  # fmt: skip

_counts: dict[tuple[str, str], Kept] = {}


class Kept(msgspec.Struct, frozen=True):
    """Counts of one dataset with one counter."""

    lengths: bytes
    """Tokens of each sequence, as an `array("I")`; further ones of rows are behind those of all rows."""
    trained: int
    remarks: tuple[Remark, ...] = ()

    def sequences(self) -> array[int]:
        return array("I", self.lengths)


def find(digest: str, counter: str, folder: Path | None) -> Kept | None:
    """What `keep` was given for these, here or by an earlier process."""
    found = _counts.get((digest, counter))
    if found is None and folder is not None:
        # A file that is damaged or has gone is counted again; so is one that cannot be read.
        with suppress(OSError, msgspec.MsgspecError):
            found = msgspec.msgpack.decode(_file(folder, digest, counter).read_bytes(), type=Kept)
            if len(found.lengths) % array("I").itemsize:
                return None
            _counts[digest, counter] = found
    return found


def keep(digest: str, counter: str, lengths: Lengths, folder: Path | None) -> Kept:
    kept = Kept(
        lengths=(lengths.tokens + lengths.further).tobytes(),
        trained=sum(lengths.trained),
        remarks=tuple(lengths.remarks.values()),
    )
    _counts[digest, counter] = kept
    if folder is not None:
        _write(_file(folder, digest, counter), msgspec.msgpack.encode(kept))
    return kept


def seen(path: str, columns: object, folder: Path | None) -> str | None:
    """The digest that a file had when it last had this size and time. It may have another one now: the rows
    decide, this only tells what need not be counted while they are read."""
    if folder is None:
        return None
    with suppress(OSError, ValueError):  # a name that can be none, too
        return _seen_file(folder, path, columns).read_text("ascii")
    return None


def keep_seen(path: str, columns: object, digest: str, folder: Path | None) -> None:
    with suppress(OSError):
        if folder is not None:
            _write(_seen_file(folder, path, columns), digest.encode())


def _seen_file(folder: Path, path: str, columns: object) -> Path:
    """Raises `OSError` for anything but a file of this machine."""
    stat = Path(path).stat()
    return folder / f"{_hash(os.path.realpath(path), repr(columns), stat.st_size, stat.st_mtime_ns)}.seen"


def _file(folder: Path, digest: str, counter: str) -> Path:
    return folder / f"{_hash(digest, counter, _version(counter))}.counts"


@lru_cache(maxsize=64)
def _version(counter: str) -> str:
    """Changes with all that a count depends on beside the rows."""
    parts = [sha256(file) for file in sorted(Path(__file__).parent.glob("*.py"))]
    for library in _LIBRARIES:
        with suppress(PackageNotFoundError):
            parts.append(f"{library} {installed(library)}")
    if counter.startswith("hf:"):
        parts += _contents(counting.folder_of(counter))
    return _hash(*parts)


def _contents(folder: Path) -> Iterator[str]:
    for pattern in _TOKENIZER_FILES:
        for file in sorted(folder.glob(pattern)):
            if file.is_file():
                yield f"{file.relative_to(folder)} {sha256(file)}"


def _hash(*parts: object) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:40]


def _write(file: Path, content: bytes) -> None:
    """Whole or not at all. A folder that cannot be written to costs time later, and nothing else."""
    with suppress(OSError):
        private_folder(file.parent)
        write_whole(file, content)
        _prune(file.parent)


def _prune(folder: Path) -> None:
    files = [entry for entry in os.scandir(folder) if entry.is_file()]
    if len(files) > MOST_FILES:
        files.sort(key=lambda entry: entry.stat().st_mtime)
        for entry in files[:-MOST_FILES]:
            Path(entry.path).unlink(missing_ok=True)
