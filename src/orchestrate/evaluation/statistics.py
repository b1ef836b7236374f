"""Intervals and tests for scores; 95% throughout, and the same input gives the same numbers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean

from orchestrate.types import Score

_Z = 1.959963984540054
_RESAMPLES = 2000


def wilson(right: int, n: int) -> Score:
    """Wilson's interval of a proportion; keeps inside 0..1 and has a width even at 0 of n and n of n."""
    if n == 0:
        return Score(value=0.0, low=0.0, high=1.0, n=0)
    p = right / n
    centre = (p + _Z**2 / (2 * n)) / (1 + _Z**2 / n)
    half = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2)) / (1 + _Z**2 / n)
    return Score(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)


def mean_interval(values: Sequence[float]) -> Score:
    """Mean with a percentile bootstrap interval; resampled by row, with a fixed seed."""
    if not values:
        return Score(value=0.0, low=0.0, high=0.0, n=0)
    draw = random.Random(0)  # noqa: S311  resampling, not cryptography
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    low, high = means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]
    return Score(value=fmean(values), low=low, high=high, n=len(values))


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided exact p-value that gains and losses are equally likely."""
    flips = gained + lost
    if flips == 0:
        return 1.0
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    return min(1.0, 2 * tail)
