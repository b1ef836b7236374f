"""Training on unpaired answers, each with a label (KTO).

The loss compares with how far the model is from the reference, estimated by the answers of the batch after
prompts that are not theirs: each prompt with the answer of the row before it in the batch, the first one with
that of the last, as TRL does. Which row that is follows from the seed, so the reference of all of them
is made before the first step too.
"""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrate.local.encoding.encoded import Rows, micro_batches
from orchestrate.local.job import Preferences
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.objectives.base import MOST_ROWS, Batch, Sums, add, means
from orchestrate.local.objectives.dpo import JudgedObjective, open_kept, reference_of
from orchestrate.local.objectives.losses import Desirability


@dataclass(frozen=True)
class Mismatch:
    """Which answer follows which prompt in the estimate of the divergence."""

    batch_size: int
    seed: int
    limit: int | None = None
    """Tokens at which a row is cut."""

    def batches(self, rows: Rows, epoch: int) -> Sequence[list[int]]:
        """Those that the loop will take."""
        return rows.batches(self.batch_size, self.seed, epoch)

    def before(self, rows: Rows, batch: Sequence[int]) -> list[int]:
        """Whose answer each prompt gets. A batch of one row takes that of the row before it in the file."""
        return [*batch[-1:], *batch[:-1]] if len(batch) > 1 else [(batch[0] - 1) % rows.examples]

    def rows(self, rows: Rows, batch: Sequence[int]) -> Rows:
        ids: list[npt.NDArray[np.int32]] = []
        weights: list[npt.NDArray[np.float32]] = []
        for asked, answered in zip(batch, self.before(rows, batch), strict=True):
            (prompt, mask), (other, trained) = rows.row(asked), rows.row(answered)
            end, start = _answer(mask), _answer(trained)
            ids.append(np.concatenate([prompt[:end], other[start:]])[: self.limit])
            weights.append(np.concatenate([mask[:end], trained[start:]])[: self.limit])
        offsets = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int64)
        return Rows(np.concatenate(ids), np.concatenate(weights), offsets)


def _answer(weights: npt.NDArray[np.float32]) -> int:
    """Where the answer begins; the first token of a row is never predicted."""
    return int(np.flatnonzero(weights[1:])[0]) + 1


class UnpairedObjective(JudgedObjective):
    """KTO's loss. Rewards are shown as means over the answers of their label."""

    divisible: ClassVar[bool] = False

    def __init__(
        self,
        loaded: Loaded,
        pad: int,
        desirability: Desirability,
        mismatch: Mismatch,
        *,
        packing: bool = False,
    ) -> None:
        super().__init__(loaded, pad, packing=packing)
        self.desirability = desirability
        self.mismatch = mismatch
        self.divergence = 0.0
        """Of the current batch, whose loss may be computed in parts."""

    def loss(
        self, rows: Rows, numbers: Sequence[int], batch: Batch
    ) -> tuple[Tensor, Tensor, dict[str, float] | None]:
        policy, _, correct = self.log_probabilities(batch)
        labels = torch.from_numpy(_labels(rows, numbers)).to(policy.device)
        ratios = policy - reference_of(rows, numbers).to(policy.device)
        losses = self.desirability.loss(ratios, labels, self.divergence)
        rewards = self.desirability.beta * ratios.detach()
        shown = {
            "preferred_reward": rewards[labels].sum().item(),
            "rejected_reward": rewards[~labels].sum().item(),
            "kl": self.divergence * len(numbers),
        }
        return losses.sum(), correct, shown

    def gradients(self, rows: Rows, batch: Sequence[int], max_tokens: int, max_rows: int) -> Sums:
        self.divergence = self.estimate(rows, batch, max_tokens, max_rows)
        sums = super().gradients(rows, batch, max_tokens, max_rows)
        return _by_label(sums, _labels(rows, batch))

    def evaluate(self, rows: Rows, max_tokens: int) -> dict[str, float]:
        """As in training, batch by batch: the loss depends on what is in a batch."""
        sums = Sums()
        with self.loaded.judging():
            for batch in self.mismatch.batches(rows, 0):
                self.divergence = self.estimate(rows, batch, max_tokens, MOST_ROWS)
                for part in micro_batches(batch, rows.lengths, max_tokens, MOST_ROWS):
                    add(sums, self.run(rows, part, 1.0, backward=False))
        return {
            f"valid_{k}": v for k, v in means(_by_label(sums, _labels(rows, range(rows.examples)))).items()
        }

    def estimate(self, rows: Rows, batch: Sequence[int], max_tokens: int, max_rows: int) -> float:
        """How far the model is from the reference, by the answers of this batch; not below 0."""
        policy = self.mismatched(rows, batch, max_tokens, max_rows)
        return max(0.0, float((policy - self._reference(rows, batch)).mean()))

    def mismatched(
        self, rows: Rows, batch: Sequence[int], max_tokens: int, max_rows: int
    ) -> npt.NDArray[np.float32]:
        """[rows of the batch] The model's log-probability of another's answer after each prompt; 0 where the
        prompt leaves no room for any of it."""
        others = self.mismatch.rows(rows, batch)
        values = np.zeros(len(batch), dtype=np.float32)
        some = [i for i in range(len(batch)) if others.row(i)[1][1:].any()]
        with self.loaded.judging(), torch.no_grad(), self.precision():
            for part in micro_batches(some, others.lengths, max_tokens, max_rows) if some else ():
                found, _, _ = self.log_probabilities(self.collate(others, part))
                values[part] = found.float().cpu().numpy()
        return values

    def _reference(self, rows: Rows, batch: Sequence[int]) -> npt.NDArray[np.float32]:
        """Of the epoch in which the batch came up. Raises `ValueError` when it was never made."""
        if rows.before is not None and rows.mismatched is not None:
            wanted = self.mismatch.before(rows, batch)
            for before, values in zip(rows.before, rows.mismatched, strict=True):
                if np.array_equal(before[batch], wanted):
                    return values[batch]
        raise ValueError("these rows have no reference of mismatched answers")


def _labels(rows: Rows, numbers: Sequence[int]) -> npt.NDArray[np.bool_]:
    if rows.labels is None:
        raise ValueError("these rows have no labels")
    return rows.labels[np.asarray(numbers)]


def _by_label(sums: Sums, labels: npt.NDArray[np.bool_]) -> Sums:
    """The shown rewards such that dividing by all rows gives the mean of their own; none without a row."""
    shown = dict(sums.shown or {})
    good = int(labels.sum())
    for name, count in (("preferred_reward", good), ("rejected_reward", len(labels) - good)):
        total = shown.pop(name)
        if count:
            shown[name] = total * sums.weight / count
    if {"preferred_reward", "rejected_reward"} <= shown.keys():
        shown["reward_margin"] = shown["preferred_reward"] - shown["rejected_reward"]
    return replace(sums, shown=shown)


def with_mismatched(
    objective: UnpairedObjective,
    rows: Rows,
    folder: Path,
    epochs: int,
    max_tokens: int,
    look_up: Callable[[], None],
) -> Rows:
    """The rows with the log-probabilities of mismatched answers in each epoch as the model gives them now,
    from `folder/mismatched.npy` as far as an earlier worker got. `look_up` runs between the batches and may
    raise."""
    path = folder / "mismatched.npy"
    kept = open_kept(path, (epochs, rows.examples))
    # Both may be larger than memory. Which answer it is follows from the seed and is written anew each time.
    before = np.lib.format.open_memmap(folder / "before.npy", mode="w+", dtype=np.int32, shape=kept.shape)
    for epoch in range(epochs):
        for batch in objective.mismatch.batches(rows, epoch):
            before[epoch, batch] = objective.mismatch.before(rows, batch)
            # A batch is all or nothing: what is computed beside what changes the last bits.
            if np.isnan(kept[epoch, batch]).any():
                look_up()
                kept[epoch, batch] = objective.mismatched(rows, batch, max_tokens, MOST_ROWS)
        kept.flush()
        before.flush()
    return replace(
        rows, before=np.load(folder / "before.npy", mmap_mode="r"), mismatched=np.load(path, mmap_mode="r")
    )


def desirability_of(method: Preferences) -> Desirability:
    return Desirability(
        beta=method.beta or 0.1,
        desirable_weight=method.desirable_weight or 1.0,
        undesirable_weight=method.undesirable_weight or 1.0,
    )
