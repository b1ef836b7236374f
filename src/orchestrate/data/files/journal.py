"""A file of JSON lines that only grows, and survives the end of its writer at any moment.

An entry is whole when its line is: a line that a killed writer left unfinished is cut off when the file is
opened again. Each entry is on the disk before `append` returns.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Generic, TypeVar

import msgspec

from orchestrate.errors import DataError
from orchestrate.files import opener
from orchestrate.types import decoding

E = TypeVar("E")


class Journal(Generic[E]):
    """`entries` are those of the file, then those that were appended, in order."""

    def __init__(self, path: Path, entry: Any) -> None:
        """`entry` is the type of the lines: a struct, or a union of tagged ones. The file need not exist.
        Raises `DataError` when a whole line is no such entry."""
        self.path = path
        self.entries: list[E] = []
        decoder = decoding.decoder(entry)
        data = path.read_bytes() if path.exists() else b""
        self._whole = data.rfind(b"\n") + 1
        self._torn = self._whole < len(data)
        for number, line in enumerate(data[: self._whole].splitlines(), start=1):
            try:
                self.entries.append(decoder.decode(line))
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                raise DataError(
                    f"{path}: line {number}: {error}", fix="restore the file, or move it away to begin again"
                ) from error

    def append(self, entry: E) -> None:
        with open(self.path, "ab", opener=opener) as file:
            if self._torn:
                file.truncate(self._whole)
                self._torn = False
            file.write(msgspec.json.encode(entry) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        self.entries.append(entry)
