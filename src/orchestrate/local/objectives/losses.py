"""Losses that never hold the logits of all tokens: the head is applied to trained tokens only, a block at a
time."""

# torch, transformers and numpy describe their types in part only.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from orchestrate.local.model.head import Head


class _FrozenHeadLoss(torch.autograd.Function):
    """Weighted sum of cross-entropies over a frozen head. The gradient is made beside the loss, while a
    block's logits are available; they are neither kept nor computed twice."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, weights: Tensor, head: Head
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=hidden.device)
        correct = torch.zeros((), device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if wanted else None
        for start in range(0, len(hidden), head.block):
            part = slice(start, start + head.block)
            logits = (hidden[part] @ weight.t()).float()
            if head.multiplier != 1.0:
                logits *= head.multiplier
            if head.softcap is not None:
                logits = torch.tanh(logits / head.softcap) * head.softcap
            right = targets[part, None]
            correct += (logits.argmax(dim=1) == targets[part]).sum()
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            total += ((log_sum - logits.gather(1, right)).squeeze(1) * weights[part]).sum()
            if gradient is None:
                continue
            slope = None if head.softcap is None else 1 - (logits / head.softcap) ** 2
            grad = logits.sub_(log_sum).exp_()
            grad.scatter_add_(1, right, torch.full_like(right, -1, dtype=grad.dtype))
            grad *= weights[part, None] * head.multiplier
            if slope is not None:
                grad *= slope
            torch.mm(grad.to(weight.dtype), weight, out=gradient[part])
            del logits, grad  # before the next block makes its own
        ctx.gradient = gradient
        ctx.mark_non_differentiable(correct)
        return total, correct

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None, None, None]:
        return ctx.gradient * grads[0].to(ctx.gradient.dtype), None, None, None, None


def _block_losses(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    logits = head.logits(hidden)
    return F.cross_entropy(logits, targets, reduction="none"), (logits.argmax(dim=1) == targets).sum()


def token_losses(hidden: Tensor, targets: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each token [n], and the number predicted right. Logits are computed again for the
    gradient."""
    losses: list[Tensor] = []
    correct = torch.zeros((), device=hidden.device)
    for start in range(0, len(hidden), head.block):
        part = slice(start, start + head.block)
        loss, right = checkpoint(_block_losses, hidden[part], targets[part], head, use_reentrant=False)  # type: ignore[misc]
        losses.append(loss)
        correct = correct + right
    return torch.cat(losses), correct


def weighted_loss(hidden: Tensor, targets: Tensor, weights: Tensor, head: Head) -> tuple[Tensor, Tensor]:
    """Sum over tokens of weight x cross-entropy, and the number of tokens predicted right. `hidden` is [n,
    hidden]."""
    if head.frozen:
        return _FrozenHeadLoss.apply(hidden, head.layer.weight, targets, weights, head)  # type: ignore[no-any-return]
    losses, correct = token_losses(hidden, targets, head)
    return (losses * weights).sum(), correct


def _log_complement(log_p: Tensor) -> Tensor:
    """log(1 - p); finite also where p rounds to 1."""
    return torch.log(-torch.expm1(log_p.clamp(max=-1e-6)))


@dataclass(frozen=True)
class Preference:
    """DPO and its neighbours, by the formulas of their papers (Rafailov et al. 2023; Meng et al. 2024 for the
    margin; Pang et al. 2024 for `rpo_alpha`; Hong et al. 2024 for `orpo`, where `beta` is their lambda;
    Mitchell 2023 for `label_smoothing`, the chance that a pair is the wrong way round; Azar et al. 2023, eq.
    17, for `ipo`, where `beta` is their tau and log-ratios are means over the tokens, as its authors told
    TRL's)."""

    beta: float = 0.1
    normalize_by_length: bool = False
    rpo_alpha: float | None = None
    simpo_gamma: float | None = None
    orpo: bool = False
    ipo: bool = False
    label_smoothing: float = 0.0

    @property
    def needs_reference(self) -> bool:
        """SimPO and ORPO compare length-normalised likelihoods and have no reference model."""
        return self.simpo_gamma is None and not self.orpo

    def loss(
        self, policy: Tensor, reference: Tensor | None, lengths: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """`policy` and `reference` are summed log-probabilities [2n]: n preferred answers, then their n
        rejected ones; `lengths` their trained tokens. Returns the loss of each pair [n] and what is worth
        showing."""
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
    """KTO (Ethayarajh et al. 2024, eq. 7 and 8)."""

    beta: float = 0.1
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0

    def loss(self, ratios: Tensor, labels: Tensor, divergence: float) -> Tensor:
        """`ratios` [n]: log-probability over that of the reference; `labels` [n]: which answers are
        desirable; `divergence`: the estimate of how far the model is from the reference, not below 0. Returns
        the loss of each answer [n]."""
        gain = torch.where(labels, ratios - divergence, divergence - ratios)
        weights = torch.where(labels, self.desirable_weight, self.undesirable_weight)
        return weights * (1 - torch.sigmoid(self.beta * gain))
