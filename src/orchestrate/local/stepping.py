"""One optimiser step and one evaluation. What is summed over micro-batches is divided once, by the whole batch's weight,
so that the split has no influence on the result but rounding."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from orchestrate.local.loading import Loaded
from orchestrate.local.losses import Preference, token_losses, weighted_loss
from orchestrate.local.rows import Rows, micro_batches

SHORT_ROW = 512
"""On a CPU, rows up to this long are attended by plain matrix products: the flash kernel's backward pass is several
times slower there."""


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right. Under a causal mask no real token sees the padding, so no attention mask is needed."""

    ids: Tensor
    """[rows, tokens]"""
    places: Tensor
    """[trained] flat places whose next token is trained."""
    targets: Tensor
    weights: Tensor
    row: Tensor
    """[trained] row of each trained token."""
    tokens: int
    """Without padding."""
    inputs: dict[str, Tensor]
    """Position ids and attention mask, for packed rows only."""


def collate(rows: Rows, numbers: Sequence[int], pad: int, device: torch.device) -> Batch:
    parts = [rows.row(i) for i in numbers]
    longest = max(len(ids) for ids, _ in parts)
    ids = np.full((len(parts), longest), pad, dtype=np.int64)
    weights = np.zeros((len(parts), longest), dtype=np.float32)
    for r, (row_ids, row_weights) in enumerate(parts):
        ids[r, : len(row_ids)] = row_ids
        weights[r, : len(row_ids) - 1] = row_weights[1:]
    places = np.flatnonzero(weights)
    return Batch(
        ids=torch.from_numpy(ids).to(device, non_blocking=True),
        places=torch.from_numpy(places).to(device, non_blocking=True),
        targets=torch.from_numpy(ids.reshape(-1)[places + 1]).to(device, non_blocking=True),
        weights=torch.from_numpy(weights.reshape(-1)[places]).to(device, non_blocking=True),
        row=torch.from_numpy(places // longest).to(device, non_blocking=True),
        tokens=sum(len(row_ids) for row_ids, _ in parts),
        inputs={},
    )


@dataclass
class Sums:
    """Over the micro-batches of one step or the batches of one evaluation."""

    loss: float = 0.0
    correct: float = 0.0
    trained: int = 0
    weight: float = 0.0
    tokens: int = 0
    shown: dict[str, float] | None = None


class Objective:
    """SFT, or with `preference` a loss over pairs."""

    def __init__(self, loaded: Loaded, pad: int, preference: Preference | None) -> None:
        self.loaded = loaded
        self.pad = pad
        self.preference = preference

    def attention(self, length: int) -> AbstractContextManager[Any]:
        if self.loaded.device.type != "cpu" or length > SHORT_ROW:
            return nullcontext()
        from torch.nn.attention import SDPBackend, sdpa_kernel

        return sdpa_kernel(SDPBackend.MATH)

    def precision(self) -> AbstractContextManager[Any]:
        if self.loaded.device.type == "cuda" and self.loaded.inner.dtype == torch.float32:
            return torch.autocast("cuda", torch.bfloat16)
        return nullcontext()

    def trained_hidden(self, batch: Batch) -> Tensor:
        """[trained, hidden]"""
        hidden = self.loaded.hidden(batch.ids, **batch.inputs)
        return hidden.reshape(-1, hidden.shape[-1])[batch.places]

    def weight_of(self, rows: Rows, examples: Sequence[int]) -> float:
        """What the summed loss of these examples is divided by: trained weight, or for pairs their number."""
        if self.preference is not None:
            return float(len(examples))
        return float(sum(rows.row(i)[1][1:].sum() for i in examples))

    def run(self, rows: Rows, examples: Sequence[int], total: float, *, backward: bool) -> Sums:
        """Loss of some examples; with `backward` its gradient, divided by `total`, is added to the parameters'."""
        batch = collate(rows, rows.rows_of(examples), self.pad, self.loaded.device)
        with torch.set_grad_enabled(backward), self.attention(batch.ids.shape[1]), self.precision():
            if self.preference is None:
                loss, correct = weighted_loss(
                    self.trained_hidden(batch), batch.targets, batch.weights, self.loaded.head
                )
                shown = None
            else:
                loss, correct, shown = self._pairs(batch, self.preference)
            if backward:
                (loss / total).backward()
        return Sums(
            loss=loss.item(),
            correct=correct.item(),
            trained=len(batch.targets),
            weight=self.weight_of(rows, examples),
            tokens=batch.tokens,
            shown=shown,
        )

    def _pairs(self, batch: Batch, preference: Preference) -> tuple[Tensor, Tensor, dict[str, float]]:
        count = batch.ids.shape[0]
        lengths = torch.zeros(count, device=batch.ids.device).index_add_(0, batch.row, batch.weights)
        reference = None
        if preference.needs_reference:
            with torch.no_grad(), self.loaded.model.disable_adapter():
                training = self.loaded.model.training
                self.loaded.model.eval()
                reference, _ = self._log_probabilities(batch, count)
                self.loaded.model.train(training)
        policy, correct = self._log_probabilities(batch, count)
        losses, shown = preference.loss(policy, reference, lengths)
        return losses.sum(), correct, {k: v.sum().item() for k, v in shown.items()}

    def _log_probabilities(self, batch: Batch, count: int) -> tuple[Tensor, Tensor]:
        losses, correct = token_losses(self.trained_hidden(batch), batch.targets, self.loaded.head)
        rows = torch.zeros(count, device=losses.device, dtype=losses.dtype)
        return rows.index_add(0, batch.row, -losses * batch.weights), correct

    def evaluate(self, rows: Rows, max_tokens: int) -> dict[str, float]:
        """Mean loss and token accuracy over all rows; the model and every random state stay as they were."""
        training = self.loaded.model.training
        self.loaded.model.eval()
        sums = Sums()
        try:
            for part in micro_batches(range(rows.examples), rows.lengths, max_tokens, 1 << 20):
                add(sums, self.run(rows, part, 1.0, backward=False))
        finally:
            self.loaded.model.train(training)
        return {f"valid_{k}": v for k, v in means(sums).items()}


def add(sums: Sums, more: Sums) -> None:
    sums.loss += more.loss
    sums.correct += more.correct
    sums.trained += more.trained
    sums.weight += more.weight
    sums.tokens += more.tokens
    if more.shown is not None:
        sums.shown = {k: (sums.shown or {}).get(k, 0.0) + v for k, v in more.shown.items()}


def means(sums: Sums) -> dict[str, float]:
    out = {"loss": sums.loss / max(sums.weight, 1e-9), "accuracy": sums.correct / max(sums.trained, 1)}
    out.update({k: v / max(sums.weight, 1e-9) for k, v in (sums.shown or {}).items()})
    return out


def learning_rate(step: int, total: int, peak: float, warmup_ratio: float, schedule: str) -> float:
    """Of optimiser step `step` (0-based) out of `total`: linear warm-up, then constant, or down to 0."""
    import math

    warm = round(total * warmup_ratio)
    if step < warm:
        return peak * (step + 1) / (warm + 1)
    done = (step - warm) / max(1, total - warm)
    if schedule == "constant":
        return peak
    return peak * ((1 - done) if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done)))
