"""Confidence intervals, tests and power, all at the 95% level. The results are deterministic."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import chain, pairwise
from statistics import NormalDist, fmean
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from msgspec import structs

from orchestrate.core import needed
from orchestrate.types import Difference, Score

if TYPE_CHECKING:
    import numpy as np

    Matrix = np.ndarray[Any, np.dtype[np.float64]]

Range = tuple[float, float]
"""Smallest and largest possible value."""
UNKNOWN = 1e9
"""Absolute value of both bounds of an interval whose width is unknown."""


def mean(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, within: Range | None = None
) -> Score:
    """Return the mean with its confidence interval from Student's t distribution. The standard error is
    cluster-robust: deviations are summed within each cluster before they are squared (Liang and Zeger 1986).
    The degrees of freedom are the number of clusters minus one. `within` is the range of possible values."""
    return mean_test(values, clusters, within)[0]


def mean_test(
    values: Sequence[float], clusters: Sequence[Hashable] | None = None, within: Range | None = None
) -> tuple[Score, float]:
    """Return the result of `mean` and the two-sided p-value for the null hypothesis of a zero mean."""
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
        p = _p_of_identical(value, count, within)
    else:
        half = student_quantile(count - 1) * math.sqrt(variance)
        p = student_p(value / math.sqrt(variance), count - 1)
    return Score(value=value, low=max(low, value - half), high=min(high, value + half), n=n), p


def _p_of_identical(value: float, count: int, within: Range | None) -> float:
    """Return the p-value for a zero mean if all `count` values are identical: the level at which the interval
    of `unseen` ends at 0. If the range is unknown, it is the probability that all values have the same sign
    by chance."""
    if value == 0:
        return 1.0
    if within is None:
        return p if (p := 0.5 ** (count - 1)) <= 0.05 else 1.0
    return min(1.0, 2 * (1 - abs(value) / max(within[1] - value, value - within[0])) ** count)


def unseen(value: float, count: int, within: Range | None) -> float:
    """Return how far the true mean may be from the measured `value` if all `count` values are identical.

    If the range of values (`within`) is known, this is the largest possible deviation, times the highest
    plausible probability of an outcome that did not occur in `count` trials. If the range is unknown, this is
    0 if `count` identical values can be significant at 5%, and the absolute `value` otherwise. A single value
    gives `UNKNOWN`."""
    if count < 2:
        return UNKNOWN
    if within is None:
        return 0.0 if 0.5 ** (count - 1) <= 0.05 else abs(value)
    return (1 - 0.025 ** (1 / count)) * max(within[1] - value, value - within[0])


def _deviations(values: Sequence[float], clusters: Sequence[Hashable] | None, value: float) -> list[float]:
    """Return the sum of the deviations in each cluster."""
    if clusters is None:
        return [v - value for v in values]
    found: dict[Hashable, float] = {}
    for v, cluster in zip(values, clusters, strict=True):
        found[cluster] = found.get(cluster, 0.0) + v - value
    return list(found.values())


def student_p(t: float, degrees: int) -> float:
    """Return the two-sided tail probability of Student's distribution."""
    return _beta(degrees / (degrees + t * t), degrees / 2, 0.5)


def student_quantile(degrees: int) -> float:
    """Return the two-sided 5% critical value of Student's distribution."""
    low, high = 1.9, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, degrees) > 0.05 else (low, middle)
    return low


def _beta(x: float, a: float, b: float) -> float:
    """Compute the regularized incomplete beta function by its continued fraction (Lentz's method)."""
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


Z = 1.959963984540054


def wilson(right: int, n: int, z: float = Z) -> Score:
    """Return the Wilson interval for a proportion. It stays within 0..1 and has a positive width even at 0 of
    n and n of n."""
    if n == 0:
        return Score(value=0.0, low=0.0, high=1.0, n=0)
    p = right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Score(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)


def paired_interval(gained: int, lost: int, n: int, z: float = Z) -> Score:
    """Return Tango's score interval (1998) for the difference of two proportions over the same `n` items. The
    interval has the nominal coverage even if a model only loses items. In that case, Wald's interval would be
    too narrow."""
    if n == 0:
        return Score(value=0.0, low=-1.0, high=1.0, n=0)
    value = (gained - lost) / n

    def end(least: float, most: float, at: float) -> float:
        """Find where the statistic, which falls from `least` to `most`, equals `at`."""
        for _ in range(_HALVINGS):
            middle = (least + most) / 2
            least, most = (middle, most) if _tango(middle, gained, lost, n) > at else (least, middle)
        return (least + most) / 2

    return Score(value=value, low=end(-1.0, value, z), high=end(value, 1.0, -z), n=n)


_HALVINGS = 50


def _tango(difference: float, gained: int, lost: int, n: int) -> float:
    """Return how many standard errors the observed difference is above a hypothetical one, which constrains
    the errors."""
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    above = gained - lost - n * difference
    variance = n * (2 * share + difference * (1 - difference))
    return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)


def mcnemar(gained: int, lost: int) -> float:
    """Return McNemar's two-sided mid-p value for the hypothesis that gains and losses are equally likely.

    The mid-p value counts half of the observed outcome's probability, while the exact test counts all of it.
    The mid-p test's level is close to 5%, while the exact test's level is far below (Fagerland, Lydersen and
    Laake 2013)."""
    flips = gained + lost
    if flips == 0:
        return 1.0
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    seen = math.comb(flips, gained) / 2**flips
    return min(1.0, 2 * tail - seen)


REACH = 2.8
"""Effect size in standard errors that is significant at 5% with a power of 80%: 1.96 + 0.84."""
DISCORDANT = 0.16
"""Assumed share of items for which exactly one of two models is right, until the share is measured. 16% is
typical of a tuned model and its base."""


def detectable(n: int, discordant: float = DISCORDANT) -> float:
    """Return the smallest difference that `n` items can detect with 80% power. For scores between 0 and 1,
    `discordant` is the mean squared difference per item."""
    return min(1.0, REACH * math.sqrt(discordant / n)) if n else 1.0


def rows_for(difference: float, discordant: float = DISCORDANT) -> int:
    """Return the number of items needed to detect this difference with a power of 80%."""
    return math.ceil(REACH**2 * discordant / difference**2)


def standard_error(score: Score) -> float:
    """Compute the standard error of a score from the width of its interval."""
    return (score.high - score.low) / (2 * Z)


Parts = Sequence[Sequence[float]]
"""Values of `Metric.parts`, as [items, parts]."""
Total = Callable[[Sequence[float]], float]
"""Function that computes a metric's value from the sums of the parts."""
RESAMPLES = 1000
_ALIKE = 1e-12


def ratio(
    parts: Parts, total: Total, clusters: Sequence[Hashable] | None = None, within: Range | None = None
) -> Score:
    """Return the metric's value, computed from the sums of `parts`, with its bootstrap percentile interval.
    Entire clusters are resampled. `within` is the range of possible values. Raises `MissingExtra` if numpy is
    not installed."""
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
    """Return the difference between two metric values (that of `parts` minus that of `against`), and the
    two-sided p-value for the null hypothesis of no difference. Each resample uses the same items for both
    values. `within` is the range of possible differences."""
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
    """Return the interval of sorted draws. If all draws are equal, as for one cluster or if everything is
    right, they reveal nothing about unseen values, and the interval is as wide as that of a mean of identical
    values."""
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
    """Return each side's parts summed by cluster, and the sums over the clusters of each draw."""
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
    """Return percentiles slightly beyond 2.5 and 97.5, by the ratio of Student's interval to the normal one.
    The plain percentiles are too narrow for few clusters (Hesterberg 2015)."""
    reach = math.sqrt(clusters / (clusters - 1)) * student_quantile(clusters - 1)
    tail = NormalDist().cdf(-reach)
    last = len(values) - 1
    return values[math.floor(tail * last)], values[math.ceil((1 - tail) * last)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values to control the family-wise error rate (Holm 1979)."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    corrected, worst = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = worst
    return corrected


def exact(right: int, n: int, tail: float) -> Score:
    """Return the Clopper-Pearson interval for a proportion. The true value is beyond either end with a
    probability of at most `tail`."""
    if n == 0:
        return Score(value=0.0, low=0.0, high=1.0, n=0)
    low = _quantile(tail, right, n - right + 1) if right else 0.0
    high = 1 - _quantile(tail, n - right, right + 1) if right < n else 1.0
    return Score(value=right / n, low=low, high=high, n=n)


def _quantile(p: float, a: float, b: float) -> float:
    """Return a quantile of the beta distribution."""
    low, high = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _beta(middle, a, b) < p else (low, middle)
    return low


def decisive(score: Score, intervals: int) -> Score:
    """Return the confidence interval of a score to use for a decision. If the decision uses several
    `intervals`, the interval is widened so that all of them hold simultaneously with 95% confidence
    (Bonferroni). A proportion gets an exact interval, because Wilson's interval has too little coverage near
    0 and 1."""
    right = round(score.value * score.n)
    if wilson(right, score.n) == score:
        return exact(right, score.n, 0.025 / max(1, intervals))
    return score if intervals <= 1 else _scaled(score, _z(intervals) / Z)


def wider_difference(difference: Difference, intervals: int) -> Score:
    """Return the confidence interval of a difference to use for a decision. If the decision uses several
    `intervals`, the interval is widened so that all of them hold simultaneously with 95% confidence
    (Bonferroni)."""
    score = difference.score
    if intervals <= 1:
        return score
    z = _z(intervals)
    counts = difference.gained, difference.lost, score.n
    return paired_interval(*counts, z) if paired_interval(*counts) == score else _scaled(score, z / Z)


def _z(intervals: int) -> float:
    return NormalDist().inv_cdf(1 - 0.025 / intervals)


def _scaled(score: Score, by: float) -> Score:
    """Scale the interval of a mean or of resampling, whose ends are a number of standard errors away."""
    low, high = (score.value + by * (end - score.value) for end in (score.low, score.high))
    return structs.replace(score, low=low, high=high)


# Agreement between raters: Krippendorff's alpha for several raters, Cohen's kappa and Spearman's rank
# correlation for a judge and human raters.


Value = float | str
Level = Literal["nominal", "ordinal", "interval"]
_Coincidences = Mapping[tuple[Value, Value], float]
_RESAMPLES = 500
_Z = 1.959963984540054
T = TypeVar("T")


def alpha(units: Sequence[Sequence[Value]], level: Level = "nominal") -> Score | None:
    """Return Krippendorff's alpha with its bootstrap interval over units. 1 is perfect agreement, 0 is
    agreement by chance. A unit contains any number of ratings. Units with fewer than two are ignored
    and not counted in `n`. Returns `None` if alpha is undefined because no unit has two values or all values
    are the same. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011)."""
    rated = [_coincidences(values) for values in units if len(values) > 1]
    found = _alpha(rated, level)
    return None if found is None else _resampled_units(rated, lambda drawn: _alpha(drawn, level), found)


def _coincidences(values: Sequence[Value]) -> _Coincidences:
    counts = Counter(values)
    among = len(values) - 1
    return {(a, b): n * (counts[b] - (a == b)) / among for a, n in counts.items() for b in counts}


def _alpha(units: Sequence[_Coincidences], level: Level) -> float | None:
    observed: defaultdict[tuple[Value, Value], float] = defaultdict(float)
    for unit in units:
        for pair, count in unit.items():
            observed[pair] += count
    margins: defaultdict[Value, float] = defaultdict(float)
    for (value, _), count in observed.items():
        margins[value] += count
    distance, total = _distance(margins, level), sum(margins.values())
    expected = sum(margins[a] * margins[b] * distance(a, b) for a in margins for b in margins)
    if expected <= 0:
        return None
    return 1 - (total - 1) * sum(n * distance(a, b) for (a, b), n in observed.items()) / expected


def _distance(margins: Mapping[Value, float], level: Level) -> Callable[[Value, Value], float]:
    if level == "nominal":
        return lambda a, b: float(a != b)
    if level == "interval":
        return lambda a, b: (float(a) - float(b)) ** 2
    # The position of a value counts all smaller values, and half of the values equal to it.
    places: dict[Value, float] = {}
    below = 0.0
    for value in sorted(margins, key=float):
        places[value] = below + margins[value] / 2
        below += margins[value]
    return lambda a, b: (places[a] - places[b]) ** 2


def kappa(
    pairs: Sequence[tuple[Value, Value]],
    *,
    squared: bool = False,
    groups: Sequence[Hashable] | None = None,
) -> Score | None:
    """Return Cohen's kappa of two raters with its bootstrap interval. With `squared`, disagreements between
    numbers are weighted by the square of their distance. Pairs in the same group (see `groups`) are resampled
    together. Returns `None` if all ratings have the same value."""

    def weight(a: Value, b: Value) -> float:
        return (float(a) - float(b)) ** 2 if squared else float(a != b)

    def of(drawn: Sequence[Sequence[tuple[Value, Value]]]) -> float | None:
        flat = list(chain(*drawn))
        first, second = Counter(a for a, _ in flat), Counter(b for _, b in flat)
        expected = sum(n * m * weight(a, b) for a, n in first.items() for b, m in second.items()) / len(flat)
        return None if expected <= 0 else 1 - sum(weight(a, b) for a, b in flat) / expected

    if not pairs:
        return None
    grouped = _grouped(pairs, groups)
    found = of(grouped)
    return None if found is None else _resampled_units(grouped, of, found, n=len(pairs))


def spearman(
    pairs: Sequence[tuple[float, float]], *, groups: Sequence[Hashable] | None = None
) -> Score | None:
    """Return the rank correlation with the interval of Bonett and Wright (2000), or if several pairs are in
    the same group (see `groups`), with the bootstrap interval over groups. Returns `None` if there are fewer
    than four pairs or one side is constant."""
    value = _rank_correlation(pairs) if len(pairs) >= 4 else None
    if value is None:
        return None
    grouped = _grouped(pairs, groups)
    if len(grouped) < len(pairs):
        return _resampled_units(
            grouped, lambda drawn: _rank_correlation(list(chain(*drawn))), value, n=len(pairs)
        )
    turned = math.atanh(max(-0.999999, min(0.999999, value)))
    half = _Z * math.sqrt((1 + value**2 / 2) / (len(pairs) - 3))
    low, high = math.tanh(turned - half), math.tanh(turned + half)
    return Score(value=value, low=min(value, low), high=max(value, high), n=len(pairs))


def _grouped(pairs: Sequence[tuple[T, T]], groups: Sequence[Hashable] | None) -> list[Sequence[tuple[T, T]]]:
    """Return the pairs of each group. Without groups, each pair is its own."""
    found: defaultdict[Hashable, list[tuple[T, T]]] = defaultdict(list)
    for place, pair in enumerate(pairs):
        found[place if groups is None else groups[place]].append(pair)
    return list(found.values())


def _rank_correlation(pairs: Sequence[tuple[float, float]]) -> float | None:
    first, second = (_ranks([pair[side] for pair in pairs]) for side in (0, 1))
    middle = (len(pairs) + 1) / 2
    up = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = math.sqrt(sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second))
    return None if spread <= 0 else max(-1.0, min(1.0, up / spread))


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank the values from 1. Equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    edges = [0, *(i for i, (a, b) in enumerate(pairwise(order), 1) if values[a] != values[b]), len(order)]
    ranks = [0.0] * len(values)
    for start, end in pairwise(edges):
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
    return ranks


def _resampled_units(
    groups: Sequence[T], of: Callable[[Sequence[T]], float | None], value: float, n: int | None = None
) -> Score:
    """Return the percentile interval. A draw in which all values are the same has no defined statistic, and
    counts as agreement."""
    draw = random.Random(0)  # noqa: S311  resampling, not cryptography
    drawn = [of(draw.choices(groups, k=len(groups))) for _ in range(_RESAMPLES)]
    found = sorted(1.0 if one is None else one for one in drawn)
    low, high = found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1]
    return Score(value=value, low=min(value, low), high=max(value, high), n=len(groups) if n is None else n)
