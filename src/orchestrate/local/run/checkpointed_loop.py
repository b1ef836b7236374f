"""Save and restore a training loop's checkpoints."""

# torch has incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import load_file, save_file

from orchestrate.errors import RunFailed
from orchestrate.local.job import Hyper, LocalJob
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.run import RunDir, checkpoints
from orchestrate.local.run.checkpoints import Progress
from orchestrate.local.run.optimizers import (
    evaluation_parameters,
    random_state,
    restore_state,
    set_random_state,
    state_tensors,
)
from orchestrate.local.run.sharding import Sharded, placed
from orchestrate.text import size

Weights = dict[str, torch.Tensor]


class CheckpointedLoop:
    """The part of the training loop that saves and restores checkpoints."""

    dir: RunDir
    job: LocalJob
    hyper: Hyper
    loaded: Loaded
    parameters: dict[str, torch.nn.Parameter]
    optimizer: Any
    progress: Progress
    max_tokens: int
    best: Weights | None
    early_stopped: bool
    sharded: Sharded | None
    write_weights: Callable[[Path, Weights | None], None]
    _saved_at: float

    def restore(self) -> None:
        """Restore the newest complete checkpoint, if there is one. Raises `RunFailed` if the checkpoint
        belongs to another run."""
        first = self.sharded is None or self.sharded.first
        whole = self._newest() if first else None
        if self.sharded is not None:
            whole = self.sharded.agreed(whole)
        if whole is None:
            torch.manual_seed(self.job.seed)
            self.dir.repair(0)
            return
        if whole.progress.total_steps != self.progress.total_steps:
            raise RunFailed(
                f"{whole.path} belongs to a different run, which has {whole.progress.total_steps} steps"
            )
        # The run directory's path may differ between processes, so use this process's own path.
        tensors = load_file(self.dir.checkpoints / whole.path.name / "state.safetensors")
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(placed(tensors[f"parameter.{name}"], parameter))
        restore_state(self.optimizer, self.parameters, tensors)
        set_random_state(tensors)
        named = self.parameters.items()
        best = {n: placed(tensors[f"best.{n}"], p) for n, p in named if f"best.{n}" in tensors}
        self.best = best or None
        self.progress = whole.progress
        patience = self.hyper.early_stopping_patience
        self.early_stopped = patience is not None and whole.progress.worse >= patience
        self.max_tokens = whole.progress.max_tokens or self.max_tokens
        self.dir.repair(whole.progress.step)
        self.dir.add_event(
            f"continuing from step {self.progress.step} of {self.progress.total_steps}",
            type="resumed",
            step=self.progress.step,
            tokens_at_once=self.max_tokens,
        )

    def _newest(self) -> checkpoints.CompleteCheckpoint | None:
        whole, damaged = checkpoints.newest_complete(self.dir.checkpoints)
        for name in damaged:
            self.dir.add_event(f"skipped the damaged checkpoint {name}", level="warning", type="checkpoint")
            shutil.rmtree(self.dir.checkpoints / name, ignore_errors=True)
        checkpoints.prune(self.dir.checkpoints, self.hyper.save_total_limit)
        return whole

    def weights(self) -> Weights | None:
        """Return the complete trained weights if they are sharded, otherwise `None`."""
        if self.sharded is None:
            return None
        full = self.job.adapter.full  # under each name that its file has for it
        return self.sharded.whole(self.loaded.inner.state_dict() if full else self.parameters)

    def _state(self) -> Weights:
        state = state_tensors(self.optimizer, self.parameters)
        state.update({f"parameter.{n}": p.detach() for n, p in self.parameters.items()})
        state.update({f"best.{n}": t for n, t in (self.best or {}).items()})
        return state if self.sharded is None else self.sharded.whole(state)

    def save(self, *, kept: bool) -> None:
        """Save a checkpoint. If the disk is full, the run continues without this checkpoint."""
        gathered = None
        if self.sharded is not None:  # before anything can fail at one of them
            gathered = self._state(), self.weights()
            if not self.sharded.first:
                return
        progress = msgspec.structs.replace(self.progress, kept=kept, max_tokens=self.max_tokens)

        def fill(folder: Path) -> None:
            state, weights = gathered or (self._state(), None)
            state.update(random_state(self.loaded.device))
            need = sum(t.numel() * t.element_size() for t in state.values())
            if shutil.disk_usage(folder).free < 1.5 * need:
                raise OSError(f"free at least {size(need)} of disk space")
            save_file({k: v.detach().contiguous() for k, v in state.items()}, folder / "state.safetensors")
            if kept:
                with evaluation_parameters(self.optimizer, self.parameters):
                    self.write_weights(folder / ("full" if self.job.adapter.full else "adapter"), weights)

        try:
            checkpoints.save(self.dir.checkpoints, progress, fill)
        except Exception as error:
            if not _disk_is_full(error):
                raise
            self.dir.add_event(
                f"could not save a checkpoint at step {progress.step}: the disk is full "
                f"({error}). Training continues",
                level="warning",
                type="checkpoint",
                step=progress.step,
            )
        else:
            checkpoints.prune(self.dir.checkpoints, self.hyper.save_total_limit)
            if kept:
                self.dir.add_event(
                    f"checkpoint at step {progress.step}", type="checkpoint", step=progress.step
                )
        self._saved_at = time.monotonic()


def _disk_is_full(error: BaseException) -> bool:
    # safetensors wraps the system's error in its own class.
    return isinstance(error, OSError) or type(error).__name__ == "SafetensorError"
