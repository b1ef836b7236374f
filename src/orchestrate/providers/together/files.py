"""Uploads training data to Together: one file for each dataset, named by its digest."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from orchestrate.core.files import new_folder
from orchestrate.data import Dataset
from orchestrate.data.rules import RowTarget
from orchestrate.errors import ArtifactRefused
from orchestrate.providers import files as transfer
from orchestrate.providers.base import Progress
from orchestrate.providers.calls import plain, table, text
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.hosted import awaited, refused
from orchestrate.types import ArtifactFile

if TYPE_CHECKING:
    from together import Together

BAD = ("FAILED", "INVALID_FORMAT")
DONE = ("COMPLETED", None)
"""Statuses of a ready file. `None` for files from before Together validated uploads."""
WAIT_S = 1800.0


class TogetherUploads:
    def __init__(
        self,
        client: Callable[[], Together],
        wire: Wire,
        target: RowTarget,
        *,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._wire = wire
        self._target = target
        self._sleep = sleep

    def bring(self, dataset: Dataset, folder: Path, progress: Progress | None) -> dict[str, Any]:
        """Upload the file and return the host's record once the file is ready for training.

        Reuses a file with the digest in its name. Raises `DataError` with the host's own report if it rejects
        the file."""
        path = dataset.write(self._target, folder)
        found = self._known(path) or self._send(path, progress)
        return self._ready(found, dataset)

    def get(self, file_id: str) -> dict[str, Any]:
        return plain(self._wire.read(lambda: self._client().files.retrieve(file_id)))

    def _known(self, path: Path) -> dict[str, Any] | None:
        listed = self._wire.entries(lambda: self._client().files.list(), "data")
        same = (
            f
            for f in listed
            if f.get("filename") == path.name
            and f.get("bytes") == path.stat().st_size
            and f.get("processing_status") not in BAD
        )
        return next(same, None)

    def _send(self, path: Path, progress: Progress | None) -> dict[str, Any]:
        def told(event: Any) -> None:
            if progress is not None:
                progress(event.uploaded_bytes, event.total_bytes)

        # The rows were checked when they were read: the SDK's own check would only read them once more. A
        # file sent twice is told by its checksum (409), and the SDK then answers with the first.
        def send() -> Any:
            return self._client().files.upload(path, purpose="fine-tune", check=False, progress_callback=told)

        return plain(self._wire.read(send))

    def _ready(self, file: dict[str, Any], dataset: Dataset) -> dict[str, Any]:
        file_id = str(file["id"])

        def look() -> tuple[dict[str, Any] | None, object]:
            found = self.get(file_id)
            status, report = text(found.get("processing_status")), table(found.get("validation_report"))
            if status in BAD or (status in DONE and report.get("valid") is False):
                reason = text(report.get("error")) or f"validation ended with {status}"
                code = report.get("error_type") or status or "INVALID_FORMAT"
                raise refused("together", "Together", dataset, reason, code, text(found.get("id")))
            return (found if status in DONE else None), f"being validated ({status})"

        return awaited(
            look,
            provider="together",
            what=file_id,
            sleep=self._sleep,
            within_s=WAIT_S,
            fix="submit again later. Orchestrate reuses the uploaded file",
        )


# -- the files of a tuned model, which come as one archive -------------------------------------------------
# The files of a tuned model, which Together sends as one archive.


def fetch_weights(
    wire: Wire,
    content: Callable[..., object],
    job_id: str,
    query: Mapping[str, Any],
    dest: Path,
    *,
    limit_bytes: int,
    progress: Progress | None,
) -> tuple[ArtifactFile, ...]:
    """Download a job's weights with the SDK's `content` and unpack them into `dest`. `query` selects the
    checkpoint. A partial archive is stored next to `dest`, and a later call continues it."""

    def opened(headers: dict[str, str]) -> AbstractContextManager[transfer.DownloadStream]:
        stream = content(ft_id=job_id, extra_headers=headers, **query)
        return cast("AbstractContextManager[transfer.DownloadStream]", stream)

    words = "-".join(str(v) for v in query.values())
    waiting = new_folder(dest.parent) / f".{dest.name}.{job_id}-{words}.download"
    archive = waiting / "archive"
    transfer.fetch(wire, opened, archive, limit_bytes=limit_bytes, progress=progress)
    try:
        files = transfer.unpack(archive, dest, limits=transfer.DownloadLimits(total_bytes=limit_bytes))
    except ArtifactRefused:
        shutil.rmtree(waiting)  # kept only where the fault is on this side, such as a full disk
        raise
    shutil.rmtree(waiting)
    return files
