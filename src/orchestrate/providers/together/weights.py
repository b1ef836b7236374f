"""The files of a tuned model, which Together sends as one archive."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

from orchestrate.errors import ArtifactRefused
from orchestrate.files import new_folder
from orchestrate.providers.base import Progress
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.files import archives, transfer
from orchestrate.types import ArtifactFile


def fetch(
    wire: Wire,
    content: Callable[..., object],
    job_id: str,
    query: Mapping[str, Any],
    dest: Path,
    *,
    limit_bytes: int,
    progress: Progress | None,
) -> tuple[ArtifactFile, ...]:
    """Unpacks into `dest` what the SDK's streaming `content` gives for a job and a `query`. An archive that
    came in part lies beside `dest`, where a later call goes on with it."""

    def opened(headers: dict[str, str]) -> AbstractContextManager[transfer.Stream]:
        stream = content(ft_id=job_id, extra_headers=headers, **query)
        return cast("AbstractContextManager[transfer.Stream]", stream)

    words = "-".join(str(v) for v in query.values())
    waiting = new_folder(dest.parent) / f".{dest.name}.{job_id}-{words}.download"
    archive = waiting / "archive"
    transfer.fetch(wire, opened, archive, limit_bytes=limit_bytes, progress=progress)
    try:
        files = archives.unpack(archive, dest, limits=archives.Limits(total_bytes=limit_bytes))
    except ArtifactRefused:
        shutil.rmtree(waiting)  # kept only where the fault is on this side, such as a full disk
        raise
    shutil.rmtree(waiting)
    return files
