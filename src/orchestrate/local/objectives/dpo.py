"""Training on preference pairs, and the reference that most of their losses compare with.

The reference is the model as the run began: the base, or what `continue_from` named. Its log-probabilities
are made once, before the first step, and kept beside the rows; so all weights can be trained without a second
copy of the model, and later epochs do not pay for them again.
"""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrate.local.encoding.encoded import Rows, micro_batches
from orchestrate.local.job import Preferences
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.objectives.base import MOST_ROWS, Batch, Objective
from orchestrate.local.objectives.losses import Preference, token_losses


class JudgedObjective(Objective):
    """A loss over the log-probabilities of whole answers."""

    def weight_of(self, rows: Rows, examples: Sequence[int]) -> float:
        return float(len(examples))

    def judged(self, rows: Rows, numbers: Sequence[int]) -> Tensor:
        """[rows]: of each, the sum of its log-probabilities."""
        return self.log_probabilities(self.collate(rows, numbers))[0]

    def log_probabilities(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Of each row: the sum over its trained tokens [rows] and their weight [rows]; then the number of
        tokens predicted right."""
        losses, correct = token_losses(self.trained_hidden(batch), batch.targets, self.loaded.head)
        nothing = torch.zeros(batch.rows, device=losses.device, dtype=losses.dtype)
        lengths = nothing.index_add(0, batch.row, batch.weights.to(losses.dtype))
        return nothing.index_add(0, batch.row, -losses * batch.weights), lengths, correct


class PairObjective(JudgedObjective):
    """A loss over a preferred and a rejected answer to the same prompt."""

    def __init__(self, loaded: Loaded, pad: int, preference: Preference, *, packing: bool = False) -> None:
        super().__init__(loaded, pad, packing=packing)
        self.preference = preference

    def loss(
        self, rows: Rows, numbers: Sequence[int], batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, float] | None]:
        policy, lengths, correct = self.log_probabilities(batch)
        reference = None
        if self.preference.needs_reference:
            reference = reference_of(rows, numbers).to(policy.device)
        losses, shown = self.preference.loss(policy, reference, lengths)
        return losses.sum(), correct, {k: v.sum().item() for k, v in shown.items()}


def reference_of(rows: Rows, numbers: Sequence[int]) -> Tensor:
    """[rows]; raises `ValueError` when it was never made."""
    if rows.reference is None:
        raise ValueError("these rows have no reference")
    return torch.from_numpy(rows.reference[np.asarray(numbers)])


def with_reference(
    objective: JudgedObjective,
    rows: Rows,
    folder: Path,
    max_tokens: int,
    look_up: Callable[[], None],
    agreed: Callable[[bool], bool] = bool,
    keeps: bool = True,
) -> Rows:
    """The rows with the log-probabilities that the model gives them now, from `folder/reference.npy` as far
    as an earlier worker got. `look_up` runs between the parts and may raise. Several processes with a model
    in shares all compute, what one of them has `agreed` to, which alone `keeps` it."""
    path = folder / "reference.npy"
    kept = open_kept(path, (len(rows.offsets) - 1,)) if keeps else None
    with objective.loaded.judging(), torch.no_grad(), objective.precision():
        for part in micro_batches(range(rows.examples), rows.lengths, max_tokens, MOST_ROWS):
            numbers = rows.rows_of(part)
            # A part is all or nothing: what is computed beside what changes the last bits.
            if agreed(kept is not None and bool(np.isnan(kept[numbers]).any())):
                look_up()
                values = objective.loaded.computed(partial(objective.judged, rows, numbers))
                if kept is not None:
                    kept[numbers] = values.float().cpu().numpy()
                    kept.flush()
        agreed(True)
    return replace(rows, reference=np.load(path, mmap_mode="r"))


def open_kept(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
    """Numbers that are made part by part, not a number where there is none yet."""
    if path.exists():
        try:
            kept = np.lib.format.open_memmap(path, mode="r+")
            if kept.shape == shape:
                return kept
        except (OSError, ValueError):
            pass  # torn while it was made
    kept = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    kept[:] = np.nan
    return kept


def preference_of(method: Preferences) -> Preference:
    return Preference(
        beta=method.beta or 0.1,
        normalize_by_length=bool(method.normalize_by_length),
        rpo_alpha=method.rpo_alpha,
        simpo_gamma=method.simpo_gamma,
        orpo=method.loss == "orpo",
        ipo=method.loss == "ipo",
        label_smoothing=method.label_smoothing or 0.0,
    )
