"""Checkpoints. Each is written to a draft folder and then renamed, so a folder with a checkpoint's name is
complete. Checkpoints contain no pickles.

step-00000120/
  adapter/          weights and configuration, loadable as a model
  state.safetensors trained weights, optimizer state, random state, best weights so far
  progress.json     step, position in the data, counters
  manifest.json     sha256 and size of every file; written last
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from orchestrate.core.files import recover_folders, sha256, sha256_once, whole_folder, write_whole
from orchestrate.types import ArtifactFile, Record, decoding

SAVE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Pattern for the names that users give to saved weights."""


class Progress(Record, frozen=True, kw_only=True):
    """The state of the training loop, except for tensors."""

    step: int
    total_steps: int
    trained_tokens: int = 0
    seen_tokens: int = 0
    seconds: float = 0.0
    best_loss: float | None = None
    worse: int = 0
    """Number of evaluations since the best result."""
    loss_mean: float | None = None
    max_tokens: int | None = None
    window: int = 16
    """Number of batches within which rows are sorted by length (see `EncodedRows.batches`). Fixed for the
    entire run. Runs whose checkpoints lack this field use the default."""
    metrics: dict[str, float] = {}  # noqa: RUF012  msgspec copies an empty default
    """Results of the latest evaluation."""
    best_step: int | None = None
    best_metrics: dict[str, float] = {}  # noqa: RUF012  msgspec copies an empty default
    """Results of the best evaluation, if its weights are stored."""
    loss_scale: float | None = None
    """Loss scale for fp16."""
    whole_steps: int = 0
    """Number of steps without an fp16 overflow since the scale last changed."""
    kept: bool = True
    """True for a regular checkpoint, False for a recovery checkpoint, which only serves to resume the run."""


@dataclass(frozen=True)
class CompleteCheckpoint:
    """A complete checkpoint."""

    path: Path
    progress: Progress

    @property
    def weights(self) -> Path:
        """Folder with the adapter or the full model. Recovery checkpoints don't have one."""
        return self.path / ("full" if (self.path / "full").is_dir() else "adapter")


def name(step: int) -> str:
    return f"step-{step:08d}"


def save(folder: Path, progress: Progress, fill: Callable[[Path], None]) -> Path:
    """Save a checkpoint as `folder/step-N`. `fill` writes weights and state to a draft folder. If `fill`
    fails, for example because the disk is full, the draft is removed."""
    folder.mkdir(exist_ok=True)
    final = folder / name(progress.step)
    with whole_folder(final) as draft:
        fill(draft)
        write_whole(draft / "progress.json", progress.to_json())
        write_whole(draft / "manifest.json", msgspec.json.encode(manifest(draft)))
    return final


def manifest(folder: Path) -> list[ArtifactFile]:
    """Build the manifest: every file below the folder, except the manifest itself."""
    return [
        ArtifactFile(path=str(p.relative_to(folder)), bytes=p.stat().st_size, sha256=sha256_once(p))
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "manifest.json"
    ]


def verify(folder: Path) -> CompleteCheckpoint | None:
    """Return the checkpoint if all files match its manifest, otherwise `None`."""
    try:
        files = decoding.decode((folder / "manifest.json").read_bytes(), type=list[ArtifactFile])
        progress = Progress.from_json((folder / "progress.json").read_bytes())
        for file in files:
            path = folder / file.path
            if path.stat().st_size != file.bytes or sha256(path) != file.sha256:
                return None
    except (OSError, msgspec.MsgspecError):
        return None
    return CompleteCheckpoint(folder, progress) if files else None


def newest_complete(folder: Path) -> tuple[CompleteCheckpoint | None, list[str]]:
    """Return the newest complete checkpoint, and the names of newer ones that are damaged."""
    damaged: list[str] = []
    recover_folders(folder)
    for path in sorted(_named(folder), reverse=True):
        if whole := verify(path):
            return whole, damaged
        damaged.append(path.name)
    return None, damaged


def listed(folder: Path) -> list[CompleteCheckpoint]:
    """List the regular checkpoints, oldest first. Skips checkpoints without a manifest, but doesn't verify
    files."""
    found: list[CompleteCheckpoint] = []
    for path in sorted(_named(folder)):
        try:
            progress = Progress.from_json((path / "progress.json").read_bytes())
        except (OSError, msgspec.MsgspecError):
            continue
        if progress.kept and (path / "manifest.json").is_file():
            found.append(CompleteCheckpoint(path, progress))
    return found


def newest(folder: Path) -> str:
    """Return the name of the newest checkpoint that has a manifest, or an empty string if there is none."""
    return max((path.name for path in _named(folder) if (path / "manifest.json").is_file()), default="")


def prune(folder: Path, limit: int | None = None) -> None:
    """Remove drafts, recovery checkpoints older than the newest checkpoint, and all regular checkpoints
    except the newest `limit`."""
    if not folder.is_dir():
        return
    for draft in folder.glob(".step-*"):
        shutil.rmtree(draft, ignore_errors=True)
    for path in sorted(_named(folder))[:-1]:
        try:
            kept = Progress.from_json((path / "progress.json").read_bytes()).kept
        except (OSError, msgspec.MsgspecError):
            kept = False
        if not kept:
            shutil.rmtree(path, ignore_errors=True)
    if limit is not None:
        for old in listed(folder)[:-limit]:
            shutil.rmtree(old.path, ignore_errors=True)


def _named(folder: Path) -> Iterator[Path]:
    return (p for p in folder.glob("step-*") if p.is_dir())
