"""Looks for keys in all that a session of tests wrote: folders, logs, stores, reports, captured output.

The keys are those that the tests use: what the sandbox makes, and each literal in the tests' own source that
is given as a key. Two kinds of file may hold one: the user's key file, and the sandbox's own books.
"""

from __future__ import annotations

import gzip
import mmap
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

MADE = re.compile(rb"sandbox-[0-9a-f]{24}")
"""What `orchestrate.sandbox` gives out as a key."""
GIVEN = re.compile(
    r"""(?:Secret\(|api_key["']?\s*[=:]\s*(?:Secret\()?|[A-Z]+_(?:API_)?KEY["']?\s*[=:]\s*)["']([^"'\s]+)["']"""
)
"""A key as it stands in the source of a test."""
SHORTEST = 8
ALLOWED = re.compile(r"^(?:keys\.toml|sandbox\.sqlite3(?:-wal|-shm)?)$")
_INSIDE = 64 << 20
Search = Callable[[bytes | mmap.mmap], bytes | None]
"""The first key in a content."""


def keys_in_source(tests: Path) -> dict[str, Path]:
    """Each literal key and a file that has it."""
    found: dict[str, Path] = {}
    for file in sorted(tests.rglob("*.py")):
        for key in GIVEN.findall(file.read_text()):
            found.setdefault(key, file)
    return found


@dataclass
class Scan:
    """`find` adds to `hits`; the counts show that there was something to look at."""

    literals: frozenset[bytes]
    hits: list[str] = field(default_factory=list[str])
    files: int = 0
    bytes: int = 0
    kept: int = 0
    """Files in which a key was found and belongs."""

    def folder(self, folder: Path) -> None:
        for path in _files(folder):
            self.files += 1
            try:
                self._file(path)
            except (FileNotFoundError, PermissionError):
                continue  # a process that ends late may still clear up

    def text(self, where: str, content: str) -> None:
        if key := self._find(content.encode(errors="replace")):
            self.hits.append(f"{where}: {_masked(key)}")

    def _file(self, path: Path) -> None:
        with path.open("rb", buffering=0) as file:
            if not (size := os.fstat(file.fileno()).st_size):
                return
            self.bytes += size
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                key = self._find(content) or self._find(_unpacked(content))
        if key and ALLOWED.match(path.name):
            self.kept += 1
        elif key:
            self.hits.append(f"{path}: {_masked(key)}")

    def _find(self, content: bytes | mmap.mmap) -> bytes | None:
        return self._search(content) if content else None

    @cached_property
    def _search(self) -> Search:
        return _in_one_pass(self.literals) if find_spec("hyperscan") else _one_by_one(self.literals)


def _in_one_pass(literals: frozenset[bytes]) -> Search:
    """About 30 times as fast as one search for each key. hyperscan is there on Linux for x86-64 only."""
    import hyperscan

    keys = [MADE.pattern, *map(re.escape, sorted(literals))]
    database = hyperscan.Database(mode=hyperscan.HS_MODE_BLOCK)
    database.compile(expressions=keys, flags=[hyperscan.HS_FLAG_SOM_LEFTMOST] * len(keys))

    def search(content: bytes | mmap.mmap) -> bytes | None:
        spans: list[tuple[int, int]] = []
        database.scan(content, match_event_handler=lambda _, start, end, *__: spans.append((start, end)))
        return content[slice(*spans[0])] if spans else None

    return search


def _one_by_one(literals: frozenset[bytes]) -> Search:
    def search(content: bytes | mmap.mmap) -> bytes | None:
        if content.find(b"sandbox-") >= 0 and (found := MADE.search(content)):
            return found.group()
        return next((key for key in literals if content.find(key) >= 0), None)

    return search


def session_scan(tests: Path, folders: Iterable[Path]) -> Scan:
    literals = frozenset(key.encode() for key in keys_in_source(tests) if len(key) >= SHORTEST)
    scan = Scan(literals)
    for folder in folders:
        scan.folder(folder)
    return scan


def _files(folder: Path) -> Iterator[Path]:
    """Without links; a folder that goes meanwhile is left out."""
    folders = [str(folder)]
    while folders:
        with suppress(FileNotFoundError, PermissionError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_file(follow_symlinks=False):
                    yield Path(entry.path)


def _unpacked(content: mmap.mmap) -> bytes:
    """The inside of a gzip or Zstandard file, as far as it can be read."""
    head = content[:4]
    try:
        if head[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=content) as file:
                return file.read(_INSIDE)
        if head == b"\x28\xb5\x2f\xfd":
            from orchestrate.core.zstd import zstd

            return zstd.ZstdDecompressor().decompress(content[:], _INSIDE)
    except Exception:
        return b""
    return b""


def _masked(key: bytes) -> str:
    return f"{key[:10].decode(errors='replace')}... ({len(key)} bytes)"
