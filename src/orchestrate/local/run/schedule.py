"""When something happens in a run, the learning rate of each step, and the random state at a moment."""

# torch describes its types in part only.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math

import torch

from orchestrate.local.job import Hyper

FIRST_SCALE, LONG_ENOUGH = 2.0**16, 2000
"""Of the loss under fp16, and the steps without an overflow after which it is doubled."""


def spread(count: int | None, total: int, every: int) -> set[int]:
    """Steps after which something happens `count` times, evenly, the last step included; `None` is after
    `every` so many steps, and after the last."""
    if count is None:
        return {*range(every, total + 1, every), total}
    return {round(total * k / count) for k in range(1, count + 1)} - {0}


def rescaled(scale: float, steps: int, *, whole: bool) -> tuple[float, int]:
    """(The scale of the loss for the next step under fp16, the steps since it was changed), as
    torch.amp.GradScaler has them. `whole`: all gradients were finite."""
    if not whole:
        return scale / 2, 0
    return (scale * 2, 0) if steps + 1 >= LONG_ENOUGH else (scale, steps + 1)


def random_state(device: torch.device) -> dict[str, torch.Tensor]:
    cuda = {"random.cuda": torch.cuda.get_rng_state()} if device.type == "cuda" else {}
    return {"random.cpu": torch.get_rng_state(), **cuda}


def set_random_state(tensors: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])


def warmup(total: int, hyper: Hyper) -> int:
    """Steps of warm-up in a run of `total`."""
    return round(total * hyper.warmup_ratio) if hyper.warmup_steps is None else hyper.warmup_steps


def learning_rate(step: int, total: int, hyper: Hyper) -> float:
    """Of optimiser step `step` (0-based) out of `total`: linear warm-up, then as the schedule says, down to
    `min_lr_ratio` of the peak.

    The k-th of w warm-up steps, k from 1, has k/(w + 1) of the peak: each trains. transformers' schedules,
    which begin with a step at rate 0, give it (k - 1)/w; after the warm-up both are the same."""
    warm = warmup(total, hyper)
    if step < warm:
        return hyper.learning_rate * (step + 1) / (warm + 1)
    return hyper.learning_rate * (
        hyper.min_lr_ratio + (1 - hyper.min_lr_ratio) * _left(step, warm, total, hyper)
    )


def _left(step: int, warm: int, total: int, hyper: Hyper) -> float:
    """Share of what the schedule takes from the rate that is left at a step behind the warm-up."""
    done = (step - warm) / max(1, total - warm)
    match hyper.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1 - done
        case "polynomial":
            return (1 - done) ** hyper.schedule_power
        case "warmup_stable_decay":
            falling = min(max(1, round(total * hyper.decay_ratio)), total - warm)
            done = max(0.0, (step - total + falling) / max(1, falling))
        case _:
            pass
    return 0.5 * (1 + math.cos(math.pi * done))
