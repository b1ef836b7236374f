"""Train on preference pairs. Most losses need a reference model, which is the run's initial model: the base,
or the adapter of `continue_from`. The reference log-probabilities are computed once, before the first step,
and stored with the rows. Full fine-tuning therefore needs no second copy of the model, and later epochs don't
repeat the computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from orchestrate.local.encoding.encoded import EncodedRows, micro_batches
from orchestrate.local.job import Preferences
from orchestrate.local.model.loaded import Loaded
from orchestrate.local.objectives.base import (
    MOST_ROWS,
    Desirability,
    Objective,
    Preference,
    Sums,
    TrainingBatch,
    add,
    means,
    token_losses,
)

# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


class JudgedObjective(Objective):
    """A loss computed from the log-probabilities of entire answers."""

    steady: ClassVar[bool] = True

    def weight_of(self, rows: EncodedRows, examples: Sequence[int]) -> float:
        return float(len(examples))

    def judged(self, rows: EncodedRows, numbers: Sequence[int]) -> Tensor:
        """Compute the summed log-probability of each row's trained tokens, as [rows]."""
        return self.log_probabilities(self.collate(rows, numbers))[0]

    def log_probabilities(self, batch: TrainingBatch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the log-probability of each row in a batch. Returns three values: the weighted sum of each
        row's token log-probabilities [rows], the sum of each row's token weights [rows], and the number of
        correctly predicted tokens."""
        losses, correct = token_losses(self.trained_hidden(batch), batch.targets, self.loaded.head)
        nothing = torch.zeros(batch.rows, device=losses.device, dtype=losses.dtype)
        lengths = nothing.index_add(0, batch.row, batch.weights.to(losses.dtype))
        return nothing.index_add(0, batch.row, -losses * batch.weights), lengths, correct


class PairObjective(JudgedObjective):
    """A loss computed from a preferred and a rejected answer to the same prompt."""

    def __init__(self, loaded: Loaded, pad: int, preference: Preference, *, packing: bool = False) -> None:
        super().__init__(loaded, pad, packing=packing)
        self.preference = preference

    def loss(
        self, rows: EncodedRows, numbers: Sequence[int], batch: TrainingBatch
    ) -> tuple[Tensor, Tensor, dict[str, float] | None]:
        policy, lengths, correct = self.log_probabilities(batch)
        reference = None
        if self.preference.needs_reference:
            reference = reference_of(rows, numbers).to(policy.device)
        losses, shown = self.preference.loss(policy, reference, lengths)
        return losses.sum(), correct, {k: v.sum().item() for k, v in shown.items()}


def reference_of(rows: EncodedRows, numbers: Sequence[int]) -> Tensor:
    """Return the reference log-probabilities [rows]. Raises `ValueError` if they have not been computed."""
    if rows.reference is None:
        raise ValueError("these rows have no reference log-probabilities")
    return torch.from_numpy(rows.reference[np.asarray(numbers)])


def with_reference(
    objective: JudgedObjective,
    rows: EncodedRows,
    folder: Path,
    max_tokens: int,
    check_requests: Callable[[], None],
    agreed: Callable[[bool], bool] = bool,
    keeps: bool = True,
) -> EncodedRows:
    """Compute the current model's log-probability of each row, and return the rows with these values as the
    reference. Values that an earlier worker stored in `folder/reference.npy` are reused. `check_requests` is
    called before each micro-batch and may raise.

    With a sharded model, all processes must compute the same micro-batches. `agreed` takes this process's
    decision and returns the first process's decision. Results are stored only if `keeps` is True."""
    path = folder / "reference.npy"
    kept = open_kept(path, (len(rows.offsets) - 1,)) if keeps else None
    with objective.loaded.evaluation_mode(), torch.no_grad(), objective.precision():
        for part in micro_batches(range(rows.examples), rows.lengths, max_tokens, MOST_ROWS):
            numbers = rows.rows_of(part)
            # If any value is missing, compute the entire micro-batch: its composition affects rounding.
            if agreed(kept is not None and bool(np.isnan(kept[numbers]).any())):
                check_requests()
                values = objective.loaded.computed(partial(objective.judged, rows, numbers))
                if kept is not None:
                    kept[numbers] = values.float().cpu().numpy()
                    kept.flush()
        agreed(True)
    return replace(rows, reference=np.load(path, mmap_mode="r"))


def open_kept(path: Path, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float32]]:
    """Open an array file that is filled gradually, or create it. Values that have not been computed yet are
    NaN."""
    if path.exists():
        try:
            kept = np.lib.format.open_memmap(path, mode="r+")
            if kept.shape == shape:
                return kept
        except (OSError, ValueError):
            pass  # it was damaged
    # Fill the file with NaN under a temporary name first. A new file contains zeros, which look like results.
    part = path.with_suffix(".part")
    kept = np.lib.format.open_memmap(part, mode="w+", dtype=np.float32, shape=shape)
    kept[:] = np.nan
    kept.flush()
    part.replace(path)
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


# KTO: training on unpaired, labeled answers.


# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


@dataclass(frozen=True)
class Mismatch:
    """Pairs prompts with the answers of other rows. KTO estimates the KL divergence from these pairs."""

    batch_size: int
    seed: int
    limit: int | None = None
    """Maximum length of a row in tokens. Longer rows are truncated."""

    def batches(self, rows: EncodedRows, epoch: int) -> Sequence[list[int]]:
        """Return this epoch's batches, which are the same as in the training loop."""
        return rows.batches(self.batch_size, self.seed, epoch)

    def before(self, rows: EncodedRows, batch: Sequence[int]) -> list[int]:
        """Return the number of the row whose answer each prompt is paired with, as [batch]. Each prompt gets
        the answer of the previous row in the batch. In a batch of one row, it gets the answer of the previous
        row in the file."""
        return [*batch[-1:], *batch[:-1]] if len(batch) > 1 else [(batch[0] - 1) % rows.examples]

    def rows(self, rows: EncodedRows, batch: Sequence[int]) -> EncodedRows:
        ids: list[npt.NDArray[np.int32]] = []
        weights: list[npt.NDArray[np.float32]] = []
        for asked, answered in zip(batch, self.before(rows, batch), strict=True):
            (prompt, mask), (other, trained) = rows.row(asked), rows.row(answered)
            end, start = _answer(mask), _answer(trained)
            ids.append(np.concatenate([prompt[:end], other[start:]])[: self.limit])
            weights.append(np.concatenate([mask[:end], trained[start:]])[: self.limit])
        offsets = np.cumsum([0, *(len(row) for row in ids)], dtype=np.int64)
        return EncodedRows(np.concatenate(ids), np.concatenate(weights), offsets)


def _answer(weights: npt.NDArray[np.float32]) -> int:
    """Return where the answer begins. The first token of a row is never predicted."""
    return int(np.flatnonzero(weights[1:])[0]) + 1


class UnpairedObjective(JudgedObjective):
    """The KTO loss. Reports the mean reward of each label."""

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
        """Estimated KL divergence for the current batch. Stored because all micro-batches of the batch use
        the same estimate."""

    def loss(
        self, rows: EncodedRows, numbers: Sequence[int], batch: TrainingBatch
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

    def gradients(self, rows: EncodedRows, batch: Sequence[int], max_tokens: int, max_rows: int) -> Sums:
        self.divergence = self.estimate(rows, batch, max_tokens, max_rows)
        sums = super().gradients(rows, batch, max_tokens, max_rows)
        return _by_label(sums, _labels(rows, batch))

    def evaluate(self, rows: EncodedRows, max_tokens: int) -> dict[str, float]:
        """Compute the mean loss and rewards. Rows are batched as in training, because the loss depends on
        which rows are in a batch."""
        sums = Sums()
        with self.loaded.evaluation_mode():
            for batch in self.mismatch.batches(rows, 0):
                self.divergence = self.estimate(rows, batch, max_tokens, MOST_ROWS)
                for part in micro_batches(batch, rows.lengths, max_tokens, MOST_ROWS):
                    add(sums, self.run(rows, part, 1.0, backward=False))
        return {
            f"valid_{k}": v for k, v in means(_by_label(sums, _labels(rows, range(rows.examples)))).items()
        }

    def estimate(self, rows: EncodedRows, batch: Sequence[int], max_tokens: int, max_rows: int) -> float:
        """Estimate the model's KL divergence from the reference with this batch's mismatched answers. The
        estimate is at least 0."""
        policy = self.mismatched(rows, batch, max_tokens, max_rows)
        return max(0.0, float((policy - self._reference(rows, batch)).mean()))

    def mismatched(
        self, rows: EncodedRows, batch: Sequence[int], max_tokens: int, max_rows: int
    ) -> npt.NDArray[np.float32]:
        """Compute the log-probability of each prompt's mismatched answer, as [batch]. A value is 0 if the
        prompt is so long that no token of the answer fits."""
        others = self.mismatch.rows(rows, batch)
        values = np.zeros(len(batch), dtype=np.float32)
        some = [i for i in range(len(batch)) if others.row(i)[1][1:].any()]
        with self.loaded.evaluation_mode(), torch.no_grad(), self.precision():
            for part in micro_batches(some, others.lengths, max_tokens, max_rows) if some else ():
                found, _, _ = self.log_probabilities(self.collate(others, part))
                values[part] = found.float().cpu().numpy()
        return values

    def _reference(self, rows: EncodedRows, batch: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return the reference of the epoch in which the batch occurred. Raises `ValueError` if it was never
        computed."""
        if rows.before is not None and rows.mismatched is not None:
            wanted = self.mismatch.before(rows, batch)
            for before, values in zip(rows.before, rows.mismatched, strict=True):
                if np.array_equal(before[batch], wanted):
                    return values[batch]
        raise ValueError("these rows have no reference log-probabilities for mismatched answers")


def _labels(rows: EncodedRows, numbers: Sequence[int]) -> npt.NDArray[np.bool_]:
    if rows.labels is None:
        raise ValueError("these rows have no labels")
    return rows.labels[np.asarray(numbers)]


def _by_label(sums: Sums, labels: npt.NDArray[np.bool_]) -> Sums:
    """Rescale the reported rewards, so that dividing by all rows gives the mean over the rows with each
    label. Labels without rows are left out."""
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
    rows: EncodedRows,
    folder: Path,
    epochs: int,
    max_tokens: int,
    check_requests: Callable[[], None],
) -> EncodedRows:
    """Compute the current model's log-probabilities of each epoch's mismatched answers. Returns the rows with
    these values added. Values that an earlier worker stored in `folder/mismatched.npy` are reused.
    `check_requests` is called before each batch and may raise."""
    path = folder / "mismatched.npy"
    kept = open_kept(path, (epochs, rows.examples))
    # Both arrays may be larger than memory. `before` is recomputed each time, because the seed determines it.
    before = np.lib.format.open_memmap(folder / "before.npy", mode="w+", dtype=np.int32, shape=kept.shape)
    for epoch in range(epochs):
        for batch in objective.mismatch.batches(rows, epoch):
            before[epoch, batch] = objective.mismatch.before(rows, batch)
            # If any value is missing, compute the entire batch: its composition affects rounding.
            if np.isnan(kept[epoch, batch]).any():
                check_requests()
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
