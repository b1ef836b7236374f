"""Means of values, of which some may belong together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from statistics import fmean

from orchestrate.types import Score

Range = tuple[float, float]
"""The least and the greatest value that there can be."""
UNKNOWN = 1e9
"""How far off a value may be of which nothing is known."""


def mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, within: Range | None = None
) -> Score:
    """The mean with Student's interval, by as many degrees of freedom as there are clusters but one.

    Values of one cluster may hang together in any way: their deviations are added before they are squared
    (Liang and Zeger 1986). `within` is where values can lie at all.
    """
    return mean_test(values, clusters, within)[0]


def mean_test(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, within: Range | None = None
) -> tuple[Score, float]:
    """As `mean`, with the two-sided p-value that the true mean is 0."""
    n = len(values)
    low, high = within or (-math.inf, math.inf)
    if n == 0:
        return Score(value=0.0, low=max(low, -UNKNOWN), high=min(high, UNKNOWN), n=0), 1.0
    value = fmean(values)
    groups = _deviations(values, clusters, value)
    count = len(groups)
    if count < 2:
        return Score(value=value, low=max(low, -UNKNOWN), high=min(high, UNKNOWN), n=n), 1.0
    variance = count / (count - 1) * sum(d * d for d in groups) / n**2
    if variance <= 1e-24:
        half = unseen(value, count, within)
        # Without ends to the values: as seldom as so many with one sign are by chance.
        p = 1.0 if value == 0 or half >= abs(value) else 0.0 if within else 0.5 ** (count - 1)
    else:
        half = student_quantile(count - 1) * math.sqrt(variance)
        p = student_p(value / math.sqrt(variance), count - 1)
    return Score(value=value, low=max(low, value - half), high=min(high, value + half), n=n), p


def unseen(value: float, count: int, within: Range | None) -> float:
    """How far the mean may lie from `count` values that are all alike: what never happened in so many tries
    can still have a chance, at most this one. Without ends, 0 where 5% can be shown by so many."""
    if count < 2:
        return UNKNOWN
    if within is None:
        return 0.0 if 0.5 ** (count - 1) <= 0.05 else abs(value)
    return (1 - 0.025 ** (1 / count)) * max(within[1] - value, value - within[0])


def _deviations(values: Sequence[float], clusters: Sequence[Hashable] | None, value: float) -> list[float]:
    """The sum of the deviations in each cluster."""
    if clusters is None:
        return [v - value for v in values]
    found: dict[Hashable, float] = {}
    for v, cluster in zip(values, clusters, strict=True):
        found[cluster] = found.get(cluster, 0.0) + v - value
    return list(found.values())


def student_p(t: float, degrees: int) -> float:
    """Two-sided tail of Student's distribution."""
    return _beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def student_quantile(degrees: int) -> float:
    """What Student's t is beyond with a chance of 5%, on both sides together."""
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, degrees) > 0.05 else (low, middle)
    return low


def _beta(x: float, a: float, b: float) -> float:
    """The regularised incomplete beta function, by its continued fraction (Lentz's way)."""
    if x >= 1:
        return 1.0
    if x <= 0:
        return 0.0
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )
    if x > (a + 1) / (a + b + 2):
        return 1 - front * _fraction(1 - x, b, a) / b
    return front * _fraction(x, a, b) / a


def _fraction(x: float, a: float, b: float) -> float:
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 300):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for step in (even, odd):
            d = 1 / (1 + step * d)
            c = 1 + step / c
            value *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return value
