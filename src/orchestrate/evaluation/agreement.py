"""How far those who rate agree: several people by Krippendorff's alpha, two (a judge and people) by Cohen's
kappa and Spearman's rank correlation."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import pairwise
from typing import Literal, TypeVar

from orchestrate.types import Score

Value = float | str
Level = Literal["nominal", "ordinal", "interval"]
_Coincidences = Mapping[tuple[Value, Value], float]
_RESAMPLES = 500
_Z = 1.959963984540054
T = TypeVar("T")


def alpha(units: Sequence[Sequence[Value]], level: Level = "nominal") -> Score | None:
    """Krippendorff's alpha with its bootstrap interval over units; 1 is agreement, 0 that of chance.

    A unit has the values that its raters gave, as many as there were; those with fewer than two tell
    nothing, and `n` counts the others. `None` where nothing can be told: no unit has two values, or all
    values are the same. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011).
    """
    rated = [_coincidences(values) for values in units if len(values) > 1]
    found = _alpha(rated, level)
    return None if found is None else _resampled(rated, lambda drawn: _alpha(drawn, level), found)


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
    # The share of values that lie between two: each counts half to either side of itself.
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
    """Cohen's kappa of two raters with its bootstrap interval. `squared`: a disagreement about numbers
    weighs by the square of its distance. `groups`: pairs that belong together are drawn together. `None`
    where both always say the same one value, which tells nothing."""

    def weight(a: Value, b: Value) -> float:
        return (float(a) - float(b)) ** 2 if squared else float(a != b)

    def of(drawn: Sequence[Sequence[tuple[Value, Value]]]) -> float | None:
        flat = [pair for group in drawn for pair in group]
        first, second = Counter(a for a, _ in flat), Counter(b for _, b in flat)
        expected = sum(n * m * weight(a, b) for a, n in first.items() for b, m in second.items()) / len(flat)
        return None if expected <= 0 else 1 - sum(weight(a, b) for a, b in flat) / expected

    if not pairs:
        return None
    together: defaultdict[Hashable, list[tuple[Value, Value]]] = defaultdict(list)
    for place, pair in enumerate(pairs):
        together[place if groups is None else groups[place]].append(pair)
    found = of(list(together.values()))
    return None if found is None else _resampled(list(together.values()), of, found, n=len(pairs))


def spearman(pairs: Sequence[tuple[float, float]]) -> Score | None:
    """Rank correlation with the interval of Bonett and Wright (2000). `None` with fewer than four pairs, or
    where one side is always the same."""
    if len(pairs) < 4:
        return None
    first, second = (_ranks([pair[side] for pair in pairs]) for side in (0, 1))
    middle = (len(pairs) + 1) / 2
    up = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    spread = math.sqrt(sum((a - middle) ** 2 for a in first) * sum((b - middle) ** 2 for b in second))
    if spread <= 0:
        return None
    value = max(-1.0, min(1.0, up / spread))
    turned = math.atanh(max(-0.999999, min(0.999999, value)))
    half = _Z * math.sqrt((1 + value**2 / 2) / (len(pairs) - 3))
    low, high = math.tanh(turned - half), math.tanh(turned + half)
    return Score(value=value, low=min(value, low), high=max(value, high), n=len(pairs))


def _ranks(values: Sequence[float]) -> list[float]:
    """From 1; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    edges = [0, *(i for i, (a, b) in enumerate(pairwise(order), 1) if values[a] != values[b]), len(order)]
    ranks = [0.0] * len(values)
    for start, end in pairwise(edges):
        for place in order[start:end]:
            ranks[place] = (start + 1 + end) / 2
    return ranks


def _resampled(
    groups: Sequence[T], of: Callable[[Sequence[T]], float | None], value: float, n: int | None = None
) -> Score:
    """The percentile interval. A draw in which nothing can be told agrees: all its values are one."""
    draw = random.Random(0)  # noqa: S311  resampling, not cryptography
    drawn = [of(draw.choices(groups, k=len(groups))) for _ in range(_RESAMPLES)]
    found = sorted(1.0 if one is None else one for one in drawn)
    low, high = found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES) - 1]
    return Score(value=value, low=min(value, low), high=max(value, high), n=len(groups) if n is None else n)
