"""Uploaded files as the three hosts share them: bytes on disk, a record, and what was found in the rows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.core.files import whole
from orchestrate.sandbox import uploads
from orchestrate.sandbox.host import Host, HostError
from orchestrate.types import decoding


class StoredFile(msgspec.Struct, kw_only=True):
    """One file. `checked_at` is when the host has looked at it."""

    id: str
    name: str
    purpose: str
    bytes: int
    created_at: float
    checked_at: float
    report: uploads.Report | None = None
    extra: dict[str, Any] = {}


class Files:
    """The files of one host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def path(self, id: str) -> Path:
        return self.host.state.files / id

    def add(self, id: str, name: str, purpose: str, size: int, **extra: Any) -> StoredFile:
        """Records bytes that lie at `path(id)` and looks at their rows when they are for training."""
        now = self.host.clock.now()
        file = StoredFile(
            id=id,
            name=name,
            purpose=purpose,
            bytes=size,
            created_at=now,
            checked_at=now + self.host.wait("file"),
            extra=extra,
        )
        if purpose in ("fine-tune", "eval") and not name.endswith(".parquet"):
            file.report = uploads.examine(self.path(id), self.host.taken)
        self.save(file)
        return file

    def save(self, file: StoredFile) -> None:
        self.host.state.put(self.host.name, "file", file.id, msgspec.to_builtins(file))

    def get(self, id: str) -> StoredFile | None:
        values = self.host.state.get(self.host.name, "file", id)
        return decoding.convert(values, StoredFile) if values else None

    def all(self, *, after: str | None = None) -> Iterable[StoredFile]:
        for values in self.host.state.all(self.host.name, "file", after=after):
            yield decoding.convert(values, StoredFile)

    def remove(self, id: str) -> bool:
        self.path(id).unlink(missing_ok=True)
        return self.host.state.delete(self.host.name, "file", id)

    def ready(self, file: StoredFile) -> bool:
        return self.host.clock.now() >= file.checked_at

    def tokens(self, file: StoredFile, tokenizer: str) -> int:
        """Tokens of all its rows, counted once for each tokenizer."""
        if file.report is None or file.report.error is not None:
            return 0
        if tokenizer not in file.report.tokens:
            file.report.tokens[tokenizer] = uploads.tokens(self.path(file.id), self.host.taken, tokenizer)
            self.save(file)
        return file.report.tokens[tokenizer]


async def store_stream(path: Path, chunks: AsyncIterator[bytes], most: int | None = None) -> int:
    """Writes a request's body to `path` in one step. Raises `HostError` 413 above `most` bytes."""
    size = 0
    with whole(path) as draft, draft.open("wb") as out:
        async for chunk in chunks:
            size += len(chunk)
            if most is not None and size > most:
                raise HostError(413, f"the upload is larger than {most} bytes")
            out.write(chunk)
    return size
