"""Temporary files of unknown size: written until the disk is nearly full, never until it is."""

from __future__ import annotations

import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from orchestrate.errors import DataError
from orchestrate.files import FULL

_LOOKED_AT_BYTES = 16 << 20
"""The disk is looked at whenever so much was written, or as much as is kept."""
_KEPT_BYTES = 512 << 20
_KEPT_SHARE = 20
"""A twentieth of the disk, at most `_KEPT_BYTES`, is left to others."""


class Spool:
    """An opened file that is written to, and how much room there is. See `spooled`."""

    def __init__(
        self, file: IO[bytes], folder: Path, what: str, keep_bytes: int | None, most_bytes: int | None
    ) -> None:
        self._file, self._folder, self._what = file, folder, what
        self._most, self._written = most_bytes, 0
        share = min(_KEPT_BYTES, shutil.disk_usage(folder).total // _KEPT_SHARE)
        self._keep = share if keep_bytes is None else keep_bytes
        self._step = min(_LOOKED_AT_BYTES, self._keep)
        self._left = self._step

    def write(self, piece: bytes) -> None:
        """Raise `DataError` when the disk would be nearly full, or this is more than may come."""
        self._left -= len(piece)
        self._written += len(piece)
        if self._most is not None and self._written > self._most:
            raise too_large(self._what, self._most)
        if self._left < 0:
            self._file.flush()
            self._look()
        self._file.write(piece)

    def require_room(self, size: int) -> None:
        """Raise `DataError` for content of a size that was announced, before any of it is written."""
        if self._most is not None and size > self._most:
            raise too_large(self._what, self._most)
        if shutil.disk_usage(self._folder).free < self._keep + size:
            raise _no_room(self._what, self._folder)

    def _look(self) -> None:
        self._left = self._step
        self.require_room(0)


def too_large(what: str, most_bytes: int) -> DataError:
    return DataError(
        f"{what} is larger than {most_bytes / 10**9:g} GB, the most that is downloaded; nothing was kept",
        fix="check the address, or allow more: ORCHESTRATE_MAX_DOWNLOAD_GB=100",
    )


def _no_room(what: str, folder: Path) -> DataError:
    return DataError(
        f"{what} needs more room than there is in {folder}; nothing was kept",
        fix="free some disk space, or set TMPDIR to a folder on a larger disk",
    )


@contextmanager
def spooled(
    path: Path, what: str, keep_bytes: int | None = None, *, most_bytes: int | None = None
) -> Generator[Spool]:
    """Open a file to write to, until `keep_bytes` of the disk are free or it has `most_bytes`. After an error
    it is removed. Raises `DataError`, which says that `what` needs more room, or is too large."""
    try:
        with path.open("wb") as file:
            yield Spool(file, path.parent, what, keep_bytes, most_bytes)
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in FULL:  # what was still to be written out
            raise _no_room(what, path.parent) from error
        raise
