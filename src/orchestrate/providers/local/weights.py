"""Weights on this machine: where those of a run lie, how many they are, and a copy of them."""

from __future__ import annotations

import shutil
from pathlib import Path

from orchestrate.core.files import new_folder, sha256, whole
from orchestrate.errors import ArtifactRefused, NotFound
from orchestrate.local.run import checkpoints
from orchestrate.local.run.rundir import RunDir
from orchestrate.providers.base import Progress
from orchestrate.types import ArtifactFile


def of(run: RunDir, checkpoint: str | None, provider: str) -> Path:
    """The folder of a checkpoint, by its name or step, or of the tuned model. Raises `NotFound`."""
    if checkpoint is not None:
        for kept in checkpoints.listed(run.checkpoints):
            if checkpoint in (kept.path.name, str(kept.progress.step)):
                return kept.weights
        raise NotFound(
            provider,
            f"{run.ref} has no checkpoint {checkpoint}",
            fix=f"orchestrate checkpoints {run.ref}",
        )
    state = run.state()
    if state.result is None:
        raise NotFound(
            provider,
            f"{run.ref} has no tuned model: it is {state.status}",
            fix=f"orchestrate checkpoints {run.ref}",
        )
    return run.path / state.result


def copied(source: Path, dest: Path, progress: Progress | None) -> tuple[ArtifactFile, ...]:
    """All files of `source` in `dest`; those that are there already, whole, stay. Raises `ArtifactRefused`
    where there are no weights."""
    files = checkpoints.manifest(source)
    if not any(f.path.endswith(".safetensors") for f in files):
        raise ArtifactRefused(f"{source} holds no safetensors weights")
    total, done = sum(f.bytes for f in files), 0
    for file in files:
        _copy(source / file.path, dest / file.path, file)
        done += file.bytes
        if progress is not None:
            progress(done, total)
    return tuple(files)


def parameters(model: str) -> float | None:
    """From the size of 16-bit weights, for a folder that the catalog does not know."""
    size = sum(p.stat().st_size for p in Path(model).glob("*.safetensors")) if Path(model).is_dir() else 0
    return size / 2 or None


def _copy(source: Path, target: Path, file: ArtifactFile) -> None:
    """Copies one file unless it is there already, whole; checks what arrived."""
    if target.is_file() and target.stat().st_size == file.bytes and sha256(target) == file.sha256:
        return
    new_folder(target.parent)
    with whole(target) as draft:
        shutil.copyfile(source, draft)
        if sha256(draft) != file.sha256:
            raise ArtifactRefused(f"{source} changed while it was copied", fix="try again")
