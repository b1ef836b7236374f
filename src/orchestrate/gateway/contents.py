"""What files hold, by the sha256 of it: there for as long as a file, a part or a job needs it."""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from orchestrate.files import opener, private_folder, sync
from orchestrate.tracking import Store
from orchestrate.wire.bodies import HostError

_DRAFT_LIFE_S = 86_400
"""A kill leaves what was coming in."""
_UNKNOWN_LIFE_S = 7 * 86_400
"""A content that the store knows nothing of may be of one that was restored from an older backup."""
_ENDING = ".jsonl"


class Draft:
    """A content that has come in, and is kept with its record only."""

    def __init__(self, path: Path, target: Path, sha256: str, bytes: int) -> None:
        self._path, self._target = path, target
        self.sha256, self.bytes = sha256, bytes

    def keep(self) -> None:
        with room():
            self._path.replace(self._target)
            sync(self._target.parent)


class Contents:
    def __init__(self, folder: Path, store: Store) -> None:
        self.folder, self._objects = folder, store.gateway_objects

    def path(self, sha256: str) -> Path:
        return self.folder / f"{sha256}{_ENDING}"

    @contextmanager
    def draft(self, sources: Sequence[IO[bytes]], most: int) -> Generator[Draft]:
        """One after the other; what is not kept by the end of the block is gone. Raises `HostError` 413,
        503."""
        path = private_folder(self.folder) / f".{secrets.token_hex(8)}"
        digest, size = hashlib.sha256(), 0
        try:
            with room():
                with open(path, "xb", opener=opener) as out:
                    for source in sources:
                        while block := source.read(1 << 20):
                            size += len(block)
                            if size > most:
                                raise HostError(413, f"at most {most:,} bytes are taken", param="file")
                            digest.update(block)
                            out.write(block)
                sync(path)
            sha256 = digest.hexdigest()
            yield Draft(path, self.path(sha256), sha256, size)
        finally:
            path.unlink(missing_ok=True)

    def release(self, sha256: str) -> None:
        """Gone unless something needs it."""
        path = self.path(sha256)
        self._objects.unless_needed(sha256, lambda: path.unlink(missing_ok=True))

    def sweep(self) -> None:
        """What a kill left, and what nothing has needed for long."""
        now = time.time()
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another gateway sweeps too
                age = now - path.stat().st_mtime
                if path.suffix == _ENDING and age > _UNKNOWN_LIFE_S:
                    self.release(path.stem)
                elif path.name.startswith(".") and age > _DRAFT_LIFE_S:
                    path.unlink()


@contextmanager
def room() -> Generator[None]:
    """Raises `HostError` 503 for a disk that takes nothing more."""
    try:
        yield
    except OSError as error:
        told = f"the file cannot be kept here now: {error.strerror or error}"
        headers = {"retry-after": "60"}
        raise HostError(503, told, code="no_room", type="server_error", headers=headers) from error
