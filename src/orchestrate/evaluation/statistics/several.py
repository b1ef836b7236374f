"""More than one question at a time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import NormalDist

from msgspec import structs

from orchestrate.evaluation.statistics.proportions import Z, paired_interval, wilson
from orchestrate.types import Difference, Score


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected so that the chance of any false one among them stays at the level (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def wider(score: Score, intervals: int) -> Score:
    """A 95% interval widened so that all of so many hold together with 95% (Bonferroni)."""
    if intervals <= 1:
        return score
    z = _z(intervals)
    right = round(score.value * score.n)
    if wilson(right, score.n) == score:
        return wilson(right, score.n, z)
    return _scaled(score, z / Z)


def wider_difference(difference: Difference, intervals: int) -> Score:
    """As `wider`, for a difference of two contenders."""
    score = difference.score
    if intervals <= 1:
        return score
    z = _z(intervals)
    counts = difference.gained, difference.lost, score.n
    return paired_interval(*counts, z) if paired_interval(*counts) == score else _scaled(score, z / Z)


def _z(intervals: int) -> float:
    return NormalDist().inv_cdf(1 - 0.025 / intervals)


def _scaled(score: Score, by: float) -> Score:
    """For intervals of means and of resampling, whose ends lie a number of standard errors away."""
    low, high = (score.value + by * (end - score.value) for end in (score.low, score.high))
    return structs.replace(score, low=low, high=high)
