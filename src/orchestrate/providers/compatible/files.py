"""Uploads of training data to a host: one file per dataset, named by its digest."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.core.files import write_whole
from orchestrate.data.rules import RowTarget
from orchestrate.errors import DataError, InvalidRequest, NotFound
from orchestrate.providers.base import Progress
from orchestrate.providers.calls import Unreadable, integer, plain, text
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.hosted import awaited
from orchestrate.types import Problem, Severity

if TYPE_CHECKING:
    from openai import OpenAI

    from orchestrate.data import Dataset

MULTIPART_BYTES = 512 << 20
"""File size in bytes above which the Uploads API is used. The Files API accepts up to 512 MB."""
PART_BYTES = 64 << 20
"""Maximum size of a part in bytes. An upload has at most 8 GB and expires after one hour."""
UPLOAD_LIFE_S = 3300.0
UPLOAD_TIMEOUT_S = 600.0
READY_WITHIN_S = 1800.0


class CompatibleFiles:
    """Uploads files through one client. `multipart_bytes` and `part_bytes` are the host's limits. A file is
    usable if its status is in `ready`, and rejected if its status is in `refused`."""

    def __init__(
        self,
        client: Callable[[], OpenAI],
        wire: Wire,
        target: RowTarget,
        *,
        multipart_bytes: int = MULTIPART_BYTES,
        part_bytes: int = PART_BYTES,
        ready: Collection[str] = ("processed",),
        refused: Collection[str] = ("error", "deleted"),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._wire = wire
        self._target = target
        self._multipart_bytes = multipart_bytes
        self._part_bytes = part_bytes
        self._ready_states = frozenset(ready)
        self._refused_states = frozenset(refused)
        self._sleep = sleep

    def bring(self, dataset: Dataset, folder: Path, progress: Progress | None) -> dict[str, Any]:
        """Upload the file and return the host's record once the file is ready for training.

        Reuses an earlier upload if its name contains the dataset's digest. An interrupted multipart upload
        resumes with the next part. Raises `DataError` if the host rejects the file."""
        path = dataset.write(self._target, folder)
        found = self._known(path)
        if found is None:
            send = self._in_parts if path.stat().st_size > self._multipart_bytes else self._in_one_request
            found = send(path, progress)
        return self._ready(found, dataset)

    def _known(self, path: Path) -> dict[str, Any] | None:
        size = path.stat().st_size
        for page in self._wire.pages(lambda: self._client().files.list(purpose="fine-tune", limit=1000)):
            for file in page.data:
                found = plain(file)
                same = found.get("filename") == path.name and integer(found.get("bytes")) == size
                if same and found.get("status") not in self._refused_states:
                    return found
        return None

    def _in_one_request(self, path: Path, progress: Progress | None) -> dict[str, Any]:
        first = True

        def send() -> Any:
            nonlocal first
            # An earlier attempt may have stored the file although its response was lost.
            if not first and (kept := self._known(path)):
                return kept
            first = False
            with _open_with_progress(path, progress) as file:
                return self._client().files.create(
                    file=(path.name, file), purpose="fine-tune", timeout=UPLOAD_TIMEOUT_S
                )

        return plain(self._wire.read(send))

    def _in_parts(self, path: Path, progress: Progress | None) -> dict[str, Any]:
        size = path.stat().st_size
        state = _Unfinished.of(path, self._part_bytes) or self._opened(path, size)
        try:
            with path.open("rb") as file:
                file.seek(len(state.parts) * self._part_bytes)
                while chunk := file.read(self._part_bytes):
                    state.add(self._part(state.upload_id, chunk))
                    if progress is not None:
                        progress(file.tell(), size)
            complete = self._client().uploads.complete
            done = plain(self._wire.read(lambda: complete(state.upload_id, part_ids=state.parts)))
        except (NotFound, InvalidRequest):
            # The host no longer has the upload or rejects its parts, so the next attempt starts over.
            state.forget()
            raise
        state.forget()
        file_id = text(plain(done.get("file")).get("id"))
        if file_id is None:
            raise self._wire.error(Unreadable("the host completed the upload without returning a file id"))
        return {**plain(done["file"]), "id": file_id}

    def _opened(self, path: Path, size: int) -> _Unfinished:
        opened = self._wire.read(
            lambda: self._client().uploads.create(
                bytes=size, filename=path.name, mime_type="text/jsonl", purpose="fine-tune"
            )
        )
        return _Unfinished(path, self._part_bytes, opened.id, [], time.time())

    def _part(self, upload_id: str, chunk: bytes) -> str:
        # A part whose response was lost can be sent again, because the file only consists of the parts listed
        # at the end.
        parts = self._client().uploads.parts
        return self._wire.read(lambda: parts.create(upload_id, data=chunk, timeout=UPLOAD_TIMEOUT_S)).id

    def _ready(self, file: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
        file_id, seen = str(file["id"]), [file]

        def query() -> tuple[dict[str, Any] | None, object]:
            """Return the response to the upload first, because it may already say that the file is ready."""
            retrieve = self._client().files.retrieve
            found = seen.pop() if seen else plain(self._wire.read(lambda: retrieve(file_id)))
            word = found.get("status")
            if word in self._refused_states:
                raise _refused(self._wire.provider, found, dataset)
            return (found if word is None or word in self._ready_states else None), word

        return awaited(
            query,
            provider=self._wire.provider,
            what=f"file {file_id}",
            sleep=self._sleep,
            within_s=READY_WITHIN_S,
            fix="submit again later. Orchestrate reuses the uploaded file",
        )


class _Unfinished:
    """The state of an upload in parts, stored beside the file for a later process to resume."""

    def __init__(
        self, path: Path, part_bytes: int, upload_id: str, parts: list[str], opened_at: float
    ) -> None:
        self._file = self._state_file(path)
        self._part_bytes = part_bytes
        self._opened_at = opened_at
        self.upload_id = upload_id
        self.parts = parts

    @classmethod
    def of(cls, path: Path, part_bytes: int) -> _Unfinished | None:
        """Return the earlier upload of this file if the host still has it."""
        try:
            known = json.loads(cls._state_file(path).read_bytes())
            if time.time() - known["opened_at"] > UPLOAD_LIFE_S or known["part_bytes"] != part_bytes:
                return None
            return cls(path, part_bytes, known["upload"], known["parts"], known["opened_at"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def add(self, part: str) -> None:
        self.parts.append(part)
        known = {
            "upload": self.upload_id,
            "parts": self.parts,
            "part_bytes": self._part_bytes,
            "opened_at": self._opened_at,
        }
        write_whole(self._file, json.dumps(known).encode())

    def forget(self) -> None:
        self._file.unlink(missing_ok=True)

    @staticmethod
    def _state_file(path: Path) -> Path:
        return path.with_name(f"{path.name}.upload.json")


class _ProgressReader(io.BufferedReader):
    """A file that reports how far it was read."""

    def __init__(self, path: Path, progress: Progress) -> None:
        super().__init__(io.FileIO(path))
        self._progress = progress
        self._size = path.stat().st_size

    def read(self, size: int | None = -1, /) -> bytes:
        found = super().read(size)
        self._progress(self.tell(), self._size)
        return found


@contextmanager
def _open_with_progress(path: Path, progress: Progress | None) -> Generator[io.BufferedReader]:
    with path.open("rb") if progress is None else _ProgressReader(path, progress) as file:
        yield file


def _refused(provider: str, file: dict[str, Any], dataset: Dataset) -> DataError:
    reason = text(file.get("status_details")) or "no reason given"
    problem = Problem(
        code="refused-by-host",
        message=reason,
        severity=Severity.ERROR,
        providers=(provider,),
        source=dataset.path,
    )
    return DataError(f"{provider} rejected {dataset.path}: {reason}", problems=[problem])
