"""Compute the gradient of an optimizer step, or evaluate the model. Losses are summed over micro-batches and
divided by the entire batch's weight, so the split into micro-batches only changes rounding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from orchestrate.local.encoding.encoded import EncodedRows, micro_batches
from orchestrate.local.model.loaded import Loaded, OutputHead
from orchestrate.local.model.shortcuts.kernels import common_start, even, even_below, line_up
from orchestrate.local.plan.memory import LOGITS_AT_ONCE, MOST_AT_ONCE

# To save memory, these losses never hold the logits of all tokens. The head is applied only to trained
# tokens, one block at a time.


# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


def _padded(rows: Tensor) -> Tensor:
    """Add rows of zeros on a CPU, so that their number is `even`."""
    more = even(len(rows)) - len(rows) if rows.device.type == "cpu" else 0
    return F.pad(rows, (0, 0, 0, more)) if more else rows


def _rows_at_once(logits: Tensor) -> int:
    threads = torch.get_num_threads() if logits.device.type == "cpu" else MOST_AT_ONCE
    return max(1, LOGITS_AT_ONCE * min(threads, MOST_AT_ONCE) // logits.shape[1])


def _to_slopes(logits: Tensor, right: Tensor, losses: Tensor, head: OutputHead, *, wanted: bool) -> Tensor:
    """Write the cross-entropies of logits [n, vocabulary] to `losses` [n], and return the number of correct
    predictions. If `wanted`, the logits are replaced by the slopes of their cross-entropies, without the
    head's multiplier."""
    scores = logits.float()  # in fp32, these are the logits themselves
    if head.multiplier != 1.0:
        scores.mul_(head.multiplier)
    if head.softcap is not None:
        scores.div_(head.softcap).tanh_().mul_(head.softcap)
    correct = (scores.argmax(dim=1) == right).sum()
    place = right[:, None]
    slopes = scores.log_softmax(dim=1)
    losses.copy_(slopes.gather(1, place).squeeze(1).neg_())
    # Torch's log-softmax adds in few partial sums, where small terms beside a large one are lost.
    total = slopes.exp_().sum(dim=1, keepdim=True)
    losses += total.log().squeeze(1)
    if not wanted:
        return correct
    slopes.div_(total).scatter_add_(1, place, slopes.new_full(place.shape, -1))
    if head.softcap is not None:
        slopes.mul_(scores.div_(head.softcap).square_().neg_().add_(1))
    logits.copy_(slopes)
    return correct


def _block_slopes(
    hidden: Tensor, weight: Tensor, targets: Tensor, losses: Tensor, head: OutputHead, *, wanted: bool
) -> tuple[Tensor, Tensor]:
    """Write the cross-entropies of a block to `losses`. Returns the number of correct predictions, and if
    `wanted`, the slopes as [rows, vocabulary], with rows that were added to make the number even."""
    logits = _padded(hidden) @ weight.t()
    few = _rows_at_once(logits)
    correct = torch.zeros((), device=hidden.device)
    parts = logits[: len(targets)].split(few), targets.split(few), losses.split(few)
    for part in zip(*parts, strict=True):
        correct += _to_slopes(*part, head, wanted=wanted)
    return correct, logits


class _FrozenHeadLosses(torch.autograd.Function):
    """Cross-entropies over a frozen head. Their gradients are computed at once, while a block's logits are
    available, so logits are neither stored nor computed twice. There are no second derivatives."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, head: OutputHead
    ) -> tuple[Tensor, Tensor]:
        gradient = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        losses = torch.empty(len(hidden), device=hidden.device)
        correct = torch.zeros((), device=hidden.device)
        block = even_below(head.block)
        for start in range(0, len(hidden), block):
            part = slice(start, start + block)
            right, out = targets[part], losses[part]
            hits, slopes = _block_slopes(hidden[part], weight, right, out, head, wanted=gradient is not None)
            correct += hits
            if gradient is not None:
                gradient[part] = (slopes @ weight)[: len(right)]
            del slopes  # before the next block makes its own
        if gradient is not None:
            ctx.save_for_backward(gradient)
        ctx.multiplier = head.multiplier
        ctx.mark_non_differentiable(correct)
        return losses, correct

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  of the decorator
        ctx: Any, *grads: Any
    ) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        scale = (grads[0] * ctx.multiplier)[:, None]
        return (gradient * scale).to(gradient.dtype), None, None, None


def _block_losses(hidden: Tensor, targets: Tensor, head: OutputHead) -> tuple[Tensor, Tensor]:
    logits = head.logits(hidden)
    return F.cross_entropy(logits, targets, reduction="none"), (logits.argmax(dim=1) == targets).sum()


def token_losses(hidden: Tensor, targets: Tensor, head: OutputHead) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of each token [n] and the number of correctly predicted tokens. `hidden` is
    [n, hidden]. To save memory, logits are not stored. For a head that is trained, they are computed again in
    the backward pass."""
    if head.frozen:
        return _FrozenHeadLosses.apply(hidden, head.layer.weight, targets, head)  # type: ignore[no-any-return]
    losses: list[Tensor] = []
    correct = torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), head.block):
        part = slice(start, start + head.block)
        loss, right = checkpoint(_block_losses, hidden[part], targets[part], head, use_reentrant=False)  # type: ignore[misc]
        losses.append(loss)
        correct = correct + right
    return torch.cat(losses), correct


def _log_complement(log_p: Tensor) -> Tensor:
    """Compute log(1 - p), with a finite result even if p rounds to 1."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))


@dataclass(frozen=True)
class Preference:
    """DPO (Rafailov et al. 2023) and related losses, as defined in their papers.

    - `simpo_gamma`: the margin of SimPO (Meng et al. 2024)
    - `rpo_alpha`: RPO (Pang et al. 2024)
    - `orpo`: ORPO (Hong et al. 2024), where `beta` is called lambda
    - `ipo`: IPO (Azar et al. 2023, eq. 17), where `beta` is called tau. Log-ratios are means over tokens, as
      the authors confirmed to TRL's developers.
    - `label_smoothing`: the probability that a pair's labels are flipped (Mitchell 2023)
    """

    beta: float = 0.1
    normalize_by_length: bool = False
    rpo_alpha: float | None = None
    simpo_gamma: float | None = None
    orpo: bool = False
    ipo: bool = False
    label_smoothing: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """True if the loss needs a reference model. SimPO and ORPO compare only the policy's own
        likelihoods."""
        return self.simpo_gamma is None and not self.orpo

    def loss(
        self, policy: Tensor, reference: Tensor | None, lengths: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of preference pairs. `policy` and `reference` are summed log-probabilities [2n]: n
        preferred answers, then n rejected answers. `lengths` contains the number of trained tokens of each
        answer. Returns the loss of each pair [n], and metrics."""
        if not self.needs_reference or self.normalize_by_length or self.ipo:
            score = policy / lengths
            base = None if reference is None else reference / lengths
        else:
            score, base = policy, reference
        if self.needs_reference and base is not None:
            score = score - base
        preferred, rejected = score.chunk(2)
        margin = self.beta * (preferred - rejected)
        if self.orpo:
            log_odds = preferred - _log_complement(preferred) - (rejected - _log_complement(rejected))
            loss = -preferred - self.beta * F.logsigmoid(log_odds)
        elif self.ipo:
            loss = (preferred - rejected - 1 / (2 * self.beta)) ** 2
        else:
            logits = margin - (self.simpo_gamma or 0.0)
            loss = -F.logsigmoid(logits)
            if self.label_smoothing:
                loss = (1 - self.label_smoothing) * loss - self.label_smoothing * F.logsigmoid(-logits)
        if self.rpo_alpha:
            loss = loss + self.rpo_alpha * -(policy / lengths).chunk(2)[0]
        shown = {
            "reward_margin": margin.detach(),
            "reward_accuracy": (margin > 0).float().detach(),
            "preferred_reward": self.beta * preferred.detach(),
            "rejected_reward": self.beta * rejected.detach(),
        }
        return loss, shown


@dataclass(frozen=True)
class Desirability:
    """The KTO loss (Ethayarajh et al. 2024, eq. 7 and 8)."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def loss(self, ratios: Tensor, labels: Tensor, divergence: float) -> Tensor:
        """Compute the loss of labeled answers. `ratios` [n] are the policy's log-probabilities minus the
        reference's. `labels` [n] are True for desirable answers. `divergence` is the estimated KL divergence
        from the reference, at least 0. Returns the loss of each answer [n]."""
        gain = torch.where(labels, ratios - divergence, divergence - ratios)
        weights = torch.where(labels, self.desirable_weight, self.undesirable_weight)
        return weights * (1 - torch.sigmoid(self.beta * gain))


# torch, transformers and numpy have incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


MOST_ROWS = 1 << 20
LEAST_SHARED = 64
"""Prefixes are shared if that saves at least one token in this many. If nothing is shared, long rows use
torch's attention, which is faster for them."""
PACKED_LINE = 256
"""Minimum length in tokens of a packed sequence."""


@dataclass(frozen=True)
class TrainingBatch:
    """Rows combined into one model input. Each row ends at the last token that predicts a trained token.

    Unpacked rows are padded on the right and need no attention mask, because causal attention never reaches
    the padding. When rows are packed, position ids restart at 0 in each row. From these ids, transformers
    builds masks that keep rows from attending to one another. With a `layout`, all rows are in one sequence,
    and Orchestrate's attention keeps them apart."""

    ids: Tensor
    """Token ids, as [sequences, tokens]."""
    places: Tensor
    """Positions in the flattened `ids` that predict a trained token, as [trained]."""
    targets: Tensor
    weights: Tensor
    computed: Tensor
    """The `places`, and in a line others, so that their number is `even`."""
    row: Tensor
    """For each trained token, the index of its row in this batch, as [trained]."""
    tokens: int
    """Number of tokens in all rows, without padding."""
    real: Tensor
    """Number of rows that contain each token, as [sequences, tokens]: 0 for padding, more than 1 in shared
    prefixes."""
    rows: int
    inputs: dict[str, Any]
    """Additional model inputs: position ids and layout of packed rows."""


@dataclass(frozen=True)
class _TargetRow:
    """`ids` is what the model reads. The `places` in it predict `targets` with these `weights`."""

    ids: npt.NDArray[np.int32]
    places: npt.NDArray[np.int64]
    targets: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    @classmethod
    def of(cls, ids: npt.NDArray[np.int32], weights: npt.NDArray[np.float32]) -> _TargetRow:
        places = np.flatnonzero(weights[1:])
        read = int(places[-1]) + 1 if len(places) else len(ids)
        return cls(ids[:read], places, ids[places + 1], weights[places + 1])


@dataclass(frozen=True)
class Line:
    """How rows are put in one sequence."""

    share: bool = False
    """True to store prefixes that rows have in common only once."""
    steady: bool = False
    """True if neither sharing nor the attention's kernel may be chosen by the rows' lengths."""


def collate(
    rows: EncodedRows,
    numbers: Sequence[int],
    pad: int,
    device: torch.device,
    *,
    packing: bool = False,
    line: Line | None = None,
    layout_of: Callable[[npt.NDArray[np.int64]], dict[str, Any]] | None = None,
) -> TrainingBatch:
    """Combine the rows at these indices into one model input.

    By default, each row is a sequence of its own. With `packing`, a sequence may contain several rows. With
    `line`, all rows are in a single sequence. `layout_of` computes additional inputs for packed rows from
    their position ids."""
    whole = [rows.row(i) for i in numbers]
    parts = [_TargetRow.of(*row) for row in whole]
    if line:
        ids, starts, inputs, real = _in_line(parts, rows.pairs, line)
    else:
        ids, starts, inputs = _side_by_side(parts, pad, packing)
        if layout_of is not None:
            inputs |= layout_of(inputs["position_ids"])
        real = np.zeros(ids.shape, dtype=np.float32)
        for start, part in zip(starts, parts, strict=True):
            real.reshape(-1)[start : start + len(part.ids)] = 1

    def tensor(values: npt.NDArray[Any]) -> Tensor:
        return torch.from_numpy(values).to(device, non_blocking=True)

    places = np.concatenate([p.places + start for p, start in zip(parts, starts, strict=True)])
    others = np.setdiff1d(np.arange(ids.size), places) if line else places[:0]
    return TrainingBatch(
        ids=tensor(ids),
        places=tensor(places),
        targets=tensor(np.concatenate([p.targets for p in parts]).astype(np.int64)),
        weights=tensor(np.concatenate([p.weights for p in parts])),
        computed=tensor(np.concatenate([places, others[: even(len(places)) - len(places)]])),
        row=tensor(np.repeat(np.arange(len(parts)), [len(p.places) for p in parts])),
        tokens=sum(len(ids) for ids, _ in whole),
        real=tensor(real),
        rows=len(parts),
        inputs={k: tensor(v) if isinstance(v, np.ndarray) else v for k, v in inputs.items()},
    )


Collated = tuple[npt.NDArray[np.int64], list[int], dict[str, Any]]


def _side_by_side(parts: Sequence[_TargetRow], pad: int, packing: bool) -> Collated:
    """Put rows side by side. Returns the token ids [sequences, tokens], the position of each row's first
    token in the flattened input, and additional inputs."""
    lengths = [len(p.ids) for p in parts]
    seats = pack(lengths, max(max(lengths), PACKED_LINE)) if packing else [(r, 0) for r in range(len(parts))]
    width = max(start + n for (_, start), n in zip(seats, lengths, strict=True))
    ids = np.full((1 + max(line for line, _ in seats), width), pad, dtype=np.int64)
    positions = np.zeros(ids.shape, dtype=np.int64)
    for (line, start), part in zip(seats, parts, strict=True):
        ids[line, start : start + len(part.ids)] = part.ids
        positions[line, start : start + len(part.ids)] = np.arange(len(part.ids))
    starts = [line * width + start for line, start in seats]
    return ids, starts, {"position_ids": positions} if packing else {}


def _in_line(
    parts: Sequence[_TargetRow], pairs: bool, how: Line
) -> tuple[*Collated, npt.NDArray[np.float32]]:
    """Put rows in one sequence, and behind them one that predicts nothing, so that the length is `even`. Like
    `_side_by_side`, but also returns the number of rows that contain each token. For its trained positions, a
    row's first token counts as if its family's prefix stood directly before it."""
    rows, half = [p.ids for p in parts], len(parts) // 2
    families = [[r, r + half] for r in range(half)] if pairs else [list(range(len(parts)))]
    shared = [0] * len(families)
    for f, members in enumerate(families):
        if how.share and len(members) > 1:
            # Share no position that predicts a trained token, because the predicted tokens may differ between
            # rows.
            limit = min(int(parts[r].places[0]) if len(parts[r].places) else 0 for r in members)
            shared[f] = common_start([parts[r].ids for r in members], limit)
    saved = sum(n * (len(members) - 1) for n, members in zip(shared, families, strict=True))
    tokens = sum(map(len, rows))
    if saved * LEAST_SHARED < tokens and not how.steady:
        saved, shared = 0, [0] * len(families)
    tokens -= saved
    if padding := even(tokens) - tokens:
        filler = np.full(padding, rows[0][0])  # a token that surely has an embedding
        rows, families, shared = [*rows, filler], [*families, [len(rows)]], [*shared, 0]
    line = line_up(rows, families, shared, steady=how.steady)
    line.times[tokens:] = 0
    starts = [start - n for start, n in zip(line.starts, line.shared, strict=True)][: len(parts)]
    inputs = {"position_ids": line.positions[None], "layout": line.layout}
    return line.ids[None], starts, inputs, line.times[None]


def pack(lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """Assign each row to the first sequence with room for it, longest rows first. Returns (sequence, first
    token) for each row."""
    free: list[int] = []
    seats: list[tuple[int, int]] = [(0, 0)] * len(lengths)
    for r in sorted(range(len(lengths)), key=lambda r: -lengths[r]):
        line = next((i for i, room in enumerate(free) if room >= lengths[r]), len(free))
        if line == len(free):
            free.append(width)
        seats[r] = (line, width - free[line])
        free[line] -= lengths[r]
    return seats


@dataclass
class Sums:
    """Sums over the micro-batches of one step or the batches of one evaluation."""

    loss: float = 0.0
    correct: float = 0.0
    trained: int = 0
    weight: float = 0.0
    tokens: int = 0
    shown: dict[str, float] | None = None


class Objective:
    """The objective of supervised fine-tuning, and the base class for preference and reward objectives."""

    divisible: ClassVar[bool] = True
    """True if `run` can process a batch in parts."""
    steady: ClassVar[bool] = False
    """True if log-probabilities are compared with those of a reference, which were computed in other batches.
    Otherwise the kernels' rounding could differ between the two."""

    def __init__(self, loaded: Loaded, pad: int, *, packing: bool = False) -> None:
        self.loaded = loaded
        self.pad = pad
        self.packing = packing

    def close(self) -> None:
        """Stop processes that the objective started, such as graders."""

    def precision(self, *, step: bool = False) -> AbstractContextManager[Any]:
        """Return the context for matmuls while all weights are trained in fp32 on a GPU. `step` is True for a
        pass with gradients. Autocast keeps its 16-bit copies of weights until its context ends, after the
        backward pass, so in a step with checkpointing it makes a copy for each use and keeps none."""
        lower = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.loaded.precision.name)
        if self.loaded.device.type == "cuda" and lower and self.loaded.inner.dtype == torch.float32:
            kept = not (step and self.loaded.checkpointing)
            return torch.autocast("cuda", lower, cache_enabled=kept)
        return nullcontext()

    def trained_hidden(self, batch: TrainingBatch) -> Tensor:
        """Return the hidden states that predict the trained tokens: [trained, hidden]."""
        hidden = self.loaded.hidden(batch.ids, batch.computed, **batch.inputs)
        return hidden.reshape(-1, hidden.shape[-1])[batch.places]

    def weight_of(self, rows: EncodedRows, examples: Sequence[int]) -> float:
        """Return the total loss weight of these examples, by which their summed loss is divided."""
        return float(sum(rows.row(i)[1][1:].sum() for i in examples))

    def collate(self, rows: EncodedRows, numbers: Sequence[int]) -> TrainingBatch:
        line = max(len(rows.row(i)[0]) for i in numbers) <= self.loaded.line_limit
        packing = self.packing and self.loaded.packs
        return collate(
            rows,
            numbers,
            self.pad,
            self.loaded.device,
            packing=packing,
            line=Line(self.loaded.shares, self.steady) if line else None,
            layout_of=self.loaded.layout_of if packing else None,
        )

    def parts(
        self, rows: EncodedRows, examples: Sequence[int], max_tokens: int, max_rows: int
    ) -> Iterator[list[int]]:
        return micro_batches(examples, rows.lengths, max_tokens, max_rows, self.loaded.line_limit)

    def loss(
        self, rows: EncodedRows, numbers: Sequence[int], batch: TrainingBatch
    ) -> tuple[Tensor, Tensor, dict[str, float] | None]:
        """Compute the loss of a batch. Returns (loss summed over the batch, number of correctly predicted
        tokens, sums of other metrics)."""
        losses, correct = token_losses(self.trained_hidden(batch), batch.targets, self.loaded.head)
        return (losses * batch.weights).sum(), correct, None

    def longest(self, rows: EncodedRows, examples: Sequence[int]) -> int:
        """Return the length of the longest example in tokens. A micro-batch's token limit can't be lower than
        this."""
        return max(int(rows.lengths[i]) for i in examples)

    def to_lower(self, values: dict[str, float]) -> float:
        """Return the metric that early stopping minimizes."""
        return values["valid_loss"]

    def run(self, rows: EncodedRows, examples: Sequence[int], total: float, *, backward: bool) -> Sums:
        """Compute the loss of some examples. With `backward`, also compute the gradient of the loss, divide
        it by `total`, and add it to the parameters' gradients."""
        numbers = rows.rows_of(examples)
        batch = self.collate(rows, numbers)
        with torch.set_grad_enabled(backward), self.precision(step=backward):
            loss, correct, shown = self.loaded.computed(lambda: self.loss(rows, numbers, batch))
            weight = self.weight_of(rows, examples)
            if self.loaded.balancing:
                spread = balance(self.loaded, batch)
                shown = {**(shown or {}), "router_loss": spread.item() * weight}
                loss, alone = loss + self.loaded.balancing * weight * spread, loss
            else:
                alone = loss
            if backward:
                (loss / total * self.loaded.loss_scale).backward()
        return Sums(
            loss=alone.item(),
            correct=correct.item(),
            trained=len(batch.targets),
            weight=weight,
            tokens=batch.tokens,
            shown=shown,
        )

    def gradients(self, rows: EncodedRows, batch: Sequence[int], max_tokens: int, max_rows: int) -> Sums:
        """Compute the gradient of one optimizer step in micro-batches that fit in memory."""
        return self.part(rows, batch, self.weight_of(rows, batch), max_tokens, max_rows)

    def part(
        self, rows: EncodedRows, examples: Sequence[int], total: float, max_tokens: int, max_rows: int
    ) -> Sums:
        """Compute the part of a step's gradient that comes from these examples. `total` is the total weight
        of all examples in the step."""
        sums = Sums()
        for part in self.parts(rows, examples, max_tokens, max_rows):
            add(sums, self.run(rows, part, total, backward=True))
        return sums

    def evaluate(self, rows: EncodedRows, max_tokens: int) -> dict[str, float]:
        """Compute the mean loss and token accuracy over all rows. Doesn't change the model or any random
        state."""
        sums = Sums()
        with self.loaded.evaluation_mode():
            for part in self.parts(rows, range(rows.examples), max_tokens, MOST_ROWS):
                add(sums, self.run(rows, part, 1.0, backward=False))
        return {f"valid_{k}": v for k, v in means(sums).items()}


def balance(loaded: Loaded, batch: TrainingBatch) -> Tensor:
    """Compute the load-balancing loss of the routers for this batch (Fedus et al. 2021, eq. 4 to 6, over all
    layers, as in transformers)."""
    from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

    assert loaded.routed  # noqa: S101  looked at as the model was loaded
    router_logits: Any = loaded.routed
    used = loaded.inner.config.get_text_config().num_experts_per_tok
    found: Any = load_balancing_loss_func(router_logits, router_logits[0].shape[-1], used, batch.real)
    return found


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
