"""The bootstrap, for numbers that are no mean of marks: F1 of counts, BLEU of n-grams."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

from orchestrate.evaluation.statistics.means import Range, student_quantile, unseen
from orchestrate.packages import needed
from orchestrate.types import Score

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[Any, np.dtype[np.float64]]

Parts = Sequence[Sequence[float]]
"""For each item what adds up."""
Total = Callable[[Sequence[float]], float]
"""The number that added parts make."""
RESAMPLES = 1000
_ALIKE = 1e-12


def ratio(
    parts: Parts, total: Total, clusters: Sequence[Hashable] | None = None, within: Range | None = None
) -> Score:
    """The number with its percentile interval, whole clusters drawn. `within` is where it can lie at all.
    Raises `MissingExtra` without numpy."""
    sums, drawn = _resampled([parts], clusters)
    value = total(sums[0].sum(axis=0).tolist())
    low, high = _interval(value, sorted(total(row) for row in drawn[0]), len(sums[0]), within)
    return Score(value=value, low=low, high=high, n=len(parts))


def ratio_difference(
    parts: Parts,
    against: Parts,
    total: Total,
    clusters: Sequence[Hashable] | None = None,
    within: Range | None = None,
) -> tuple[Score, float]:
    """First minus second, the same items drawn for both, with the two-sided p-value that it is 0. `within`
    is where the difference can lie at all."""
    sums, drawn = _resampled([parts, against], clusters)
    values = sorted(total(a) - total(b) for a, b in zip(*drawn, strict=True))
    value = total(sums[0].sum(axis=0).tolist()) - total(sums[1].sum(axis=0).tolist())
    low, high = _interval(value, values, len(sums[0]), within)
    beyond = min(sum(v <= 0 for v in values), sum(v >= 0 for v in values))
    p = min(1.0, 2 * (beyond + 1) / (len(values) + 1))
    if low <= 0 <= high:
        p = max(p, 0.05 + 1e-9)  # the interval is a little wider than the percentiles: both say the same
    return Score(value=value, low=low, high=high, n=len(parts)), p


def _interval(
    value: float, values: Sequence[float], clusters: int, within: Range | None
) -> tuple[float, float]:
    """Of sorted draws; where they are all alike, as of one cluster or where all is right, they tell nothing
    of what was not seen, and the interval is as wide as that of a mean of values alike."""
    if clusters < 2 or values[-1] - values[0] <= _ALIKE:
        half = unseen(value, clusters, within)
        low, high = value - half, value + half
    else:
        low, high = _ends(values, clusters)
    least, most = within or (-math.inf, math.inf)
    return max(least, min(value, low)), min(most, max(value, high))


def _resampled(
    sides: Sequence[Parts], clusters: Sequence[Hashable] | None
) -> tuple[list[Matrix], list[list[list[float]]]]:
    """For each side its parts added up by cluster, and the sums over the clusters of each draw."""
    with needed("eval", "a score with a bootstrap interval", "numpy"):
        import numpy
    names = list(clusters) if clusters is not None else list(range(len(sides[0])))
    places = {name: i for i, name in enumerate(dict.fromkeys(names))}
    index = [places[name] for name in names]
    generator = numpy.random.default_rng(0)
    count = len(places)
    weights = generator.multinomial(count, [1 / count] * count, size=RESAMPLES).astype(float)
    sums: list[Matrix] = []
    for side in sides:
        added = numpy.zeros((count, len(side[0])))
        numpy.add.at(added, index, numpy.array(side, dtype=float))
        sums.append(added)
    return sums, [(weights @ added).tolist() for added in sums]


def _ends(values: Sequence[float], clusters: int) -> tuple[float, float]:
    """Percentiles a little further out than 2.5 and 97.5, by as much as Student's interval of so many is
    wider than the normal one: the plain ones are too narrow for few (Hesterberg 2015)."""
    reach = math.sqrt(clusters / (clusters - 1)) * student_quantile(clusters - 1)
    tail = NormalDist().cdf(-reach)
    last = len(values) - 1
    return values[math.floor(tail * last)], values[math.ceil((1 - tail) * last)]
