"""The losses of training sessions, with the formulas that Tinker publishes for its API (documentation pages
"Losses" and "GSPO", read 2026-11-29). All losses are sums over tokens, never means. Imports torch."""

# torch has incomplete type annotations.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from orchestrate.errors import UsageError
from orchestrate.local.job import CLIP_HIGH, CLIP_LOW, DRO_BETA
from orchestrate.local.model.loaded import OutputHead

Inputs = Mapping[str, Tensor]
Config = Mapping[str, Any]
Loss = Callable[[Tensor, Inputs, Config], Tensor]
UNPUBLISHED = "stable_reinforce"


def _ratio(log_p: Tensor, inputs: Inputs) -> Tensor:
    return (log_p - inputs["logprobs"]).exp()


def _bounds(config: Config) -> tuple[float, float]:
    low = float(config.get("clip_low_threshold", CLIP_LOW))
    return low, float(config.get("clip_high_threshold", CLIP_HIGH))


def cross_entropy(log_p: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """Compute -sum(w * log p). Weights may be negative, because callers implement their own losses by passing
    weights."""
    del config
    weights = inputs.get("weights")
    return -(log_p if weights is None else log_p * weights).sum()


def importance_sampling(log_p: Tensor, inputs: Inputs, config: Config) -> Tensor:
    del config
    return -(_ratio(log_p, inputs) * inputs["advantages"]).sum()


def _clipped(ratio: Tensor, inputs: Inputs, config: Config) -> Tensor:
    low, high = _bounds(config)
    gains = inputs["advantages"]
    return -torch.minimum(ratio * gains, ratio.clamp(low, high) * gains).sum()


def ppo(log_p: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """Compute the PPO loss (Schulman et al. 2017, eq. 7)."""
    return _clipped(_ratio(log_p, inputs), inputs, config)


def cispo(log_p: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """Compute the CISPO loss (MiniMax-M1 2025). The clipped ratio weights the policy gradient and has no
    gradient itself."""
    low, high = _bounds(config)
    ratio = _ratio(log_p, inputs).clamp(low, high).detach()
    return -(ratio * log_p * inputs["advantages"]).sum()


def dro(log_p: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """Compute the DRO loss (Richemond et al. 2024), which has a quadratic penalty for moving away from the
    sampling policy."""
    beta = float(config.get("beta", DRO_BETA))
    apart = log_p - inputs["logprobs"]
    return -(log_p * inputs["advantages"] - 0.5 * beta * apart**2).sum()


def gspo(log_p: Tensor, inputs: Inputs, config: Config) -> Tensor:
    """Compute the token-level GSPO loss (Zheng et al. 2025), which clips the ratio of the entire sequence but
    has a gradient for each token."""
    mask = inputs.get("sequence_ratio_mask")
    counted = torch.ones_like(log_p, dtype=torch.bool) if mask is None else mask != 0
    if not bool(counted.any()):
        return (log_p * 0).sum()
    whole = (log_p.detach() - inputs["logprobs"])[counted].mean()
    return _clipped((whole + log_p - log_p.detach()).exp(), inputs, config)


_POLICY = ("logprobs", "advantages")
_CLIPS = ("clip_low_threshold", "clip_high_threshold")
LOSSES: dict[str, tuple[Loss, tuple[str, ...], tuple[str, ...]]] = {
    "cross_entropy": (cross_entropy, (), ()),
    "importance_sampling": (importance_sampling, _POLICY, ()),
    "ppo": (ppo, _POLICY, _CLIPS),
    "cispo": (cispo, _POLICY, _CLIPS),
    "dro": (dro, _POLICY, ("beta",)),
    "gspo": (gspo, _POLICY, _CLIPS),
}
"""Maps each name to the loss, its required inputs other than `target_tokens`, and its settings."""


def loss_of(name: str, config: Config | None = None) -> tuple[Loss, tuple[str, ...]]:
    """Return the loss and the names of its required inputs. Raises `UsageError` for an unknown loss or
    setting."""
    if name == UNPUBLISHED:
        raise UsageError(
            f"{UNPUBLISHED} has no published formula, so this server cannot compute it",
            fix="pass loss_fn=importance_sampling, ppo, cispo or gspo",
        )
    if name not in LOSSES:
        raise UsageError(f"unknown loss {name!r}", fix=f"set loss_fn to one of {', '.join(LOSSES)}")
    loss, needs, takes = LOSSES[name]
    if strange := [key for key in config or {} if key not in takes]:
        known = ", ".join(takes) or "none"
        raise UsageError(
            f"the loss {name} has no setting called {strange[0]!r}", fix=f"loss_fn_config: {known}"
        )
    low, high = _bounds(config or {})
    if low > high:
        raise UsageError(f"clip_low_threshold {low} is above clip_high_threshold {high}")
    return loss, needs


def _block(hidden: Tensor, targets: Tensor, head: OutputHead) -> Tensor:
    logits = head.logits(hidden)
    return logits.gather(1, targets) - logits.logsumexp(dim=1, keepdim=True)


def log_probabilities(hidden: Tensor, targets: Tensor, head: OutputHead) -> Tensor:
    """Compute the log-probability of each target: [n, hidden], [n, k] -> [n, k]. Only the logits of one block
    of tokens are in memory at a time. They are recomputed in the backward pass."""
    if not len(hidden):
        return hidden.new_zeros(targets.shape, dtype=torch.float32)
    parts = (slice(start, start + head.block) for start in range(0, len(hidden), head.block))
    if not torch.is_grad_enabled():
        return torch.cat([_block(hidden[part], targets[part], head) for part in parts])
    return torch.cat(
        [checkpoint(_block, hidden[part], targets[part], head, use_reentrant=False) for part in parts]  # type: ignore[misc]
    )
