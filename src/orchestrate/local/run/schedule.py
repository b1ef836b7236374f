"""Compute at which steps a run evaluates and saves, and the learning rate of each step. Torch-free."""

from __future__ import annotations

import math

from orchestrate.local.job import Hyper


def spread(count: int | None, total: int, every: int) -> set[int]:
    """Choose `count` evenly spaced steps, including the last step. If `count` is `None`, choose every
    `every`-th step and the last step."""
    if count is None:
        return {*range(every, total + 1, every), total}
    return {round(total * k / count) for k in range(1, count + 1)} - {0}


def warmup(total: int, hyper: Hyper) -> int:
    """Return the number of warm-up steps in a run of `total` steps."""
    return round(total * hyper.warmup_ratio) if hyper.warmup_steps is None else hyper.warmup_steps


def learning_rate(step: int, total: int, hyper: Hyper) -> float:
    """Compute the learning rate of optimizer step `step` (0-based) out of `total`. It rises linearly during
    the warm-up and then follows the schedule, down to `min_lr_ratio` times the peak.

    In warm-up step k of w, counted from 1, the rate is k/(w + 1) times the peak. transformers uses (k - 1)/w,
    so its first step has a rate of 0 and trains nothing. After the warm-up, both give the same rates."""
    warm = warmup(total, hyper)
    if step < warm:
        return hyper.learning_rate * (step + 1) / (warm + 1)
    return hyper.learning_rate * (
        hyper.min_lr_ratio + (1 - hyper.min_lr_ratio) * _left(step, warm, total, hyper)
    )


def _left(step: int, warm: int, total: int, hyper: Hyper) -> float:
    """Return the fraction of the decay that remains at a step after warm-up."""
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
