"""The tuned weights as files: Together's archives."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrate.core.files import whole
from orchestrate.core.zstd import zstd
from orchestrate.sandbox.host import HostError

if TYPE_CHECKING:
    from orchestrate.sandbox.host import Host
    from orchestrate.sandbox.jobs import Job

_SHIPPED = {".safetensors", ".json", ".jinja", ".txt", ".model"}


def weights(host: Host, job: Job, step: int | None = None) -> list[Path]:
    """Files of the adapter, without what only the trainer needs. Raises `HostError` 404."""
    try:
        folder = host.trainer.adapter(job, step)
    except FileNotFoundError as error:
        raise HostError(404, f"job {job.id} has no such weights", code="not_found") from error
    return sorted(p for p in folder.iterdir() if p.is_file() and p.suffix in _SHIPPED)


def pack(host: Host, job: Job, *, merged: bool, step: int | None) -> Path:
    """A .tar.zst of the adapter, or of the merged model; made once."""
    target = host.state.files / f"{job.id}-{'merged' if merged else 'adapter'}-{step or 'final'}.tar.zst"
    if target.exists():
        return target
    files = host.trainer.merged(job, step) if merged else weights(host, job, step)
    with (
        whole(target) as draft,
        zstd.ZstdFile(draft, "w", level=3) as out,
        tarfile.open(fileobj=out, mode="w|") as tar,
    ):
        for file in files:
            tar.add(file, arcname=file.name)
    return target
