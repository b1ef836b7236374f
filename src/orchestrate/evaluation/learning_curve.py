"""Estimate the gain from additional rows by fitting a power law to the scores of models trained on fractions
of the data.

A score is converted to a loss, y = a + b (n/N)^-c: a is the irreducible loss, b the reducible loss at N rows,
and c the exponent. Hestness et al. (Deep Learning Scaling is Predictable, Empirically, 2017) find c between
0.07 and 0.35 over entire domains. A single task may have a steeper curve, so the range here is 0.05 to 1.5.
The result averages over all curves that are consistent with the points, so few or noisy points give wide
intervals.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import NamedTuple

from orchestrate.types import Record

LEVEL = 0.9
"""Confidence level of the intervals."""
_Z = 1.645
"""Half-width of an interval at this level, in standard errors."""
_POWERS = [0.05 * 1.06**k for k in range(59)]  # 0.05 to 1.5
_EACH = 200
"""Number of curves sampled for each exponent."""
_DRAWS = 4000


class Measured(NamedTuple):
    """Number of training rows and measured loss of one model, with the standard error of the loss (`None` if
    unknown)."""

    rows: int
    loss: float
    error: float | None


class Gain(Record, frozen=True, kw_only=True):
    """The improvement in score from one number of training rows to another. Positive is better."""

    rows_before: int
    rows_after: int
    value: float
    """Median over all curves that fit the points."""
    low: float | None = None
    high: float | None = None
    """High end of a 90% interval. `None` if no standard error is known."""


def measured_gain(before: Measured, after: Measured) -> Gain:
    """Return the gain from the `before` model to the `after` model, computed from their measured losses."""
    value, errors = before.loss - after.loss, (before.error, after.error)
    gain = Gain(rows_before=before.rows, rows_after=after.rows, value=value)
    if errors[0] is None or errors[1] is None:
        return gain
    width = _Z * math.hypot(errors[0], errors[1])
    return Gain(
        rows_before=before.rows, rows_after=after.rows, value=value, low=value - width, high=value + width
    )


def speeds_up(points: Sequence[Measured]) -> bool:
    """Return True if the gain per doubling of the rows is significantly larger in the last step than in the
    step before. A power law can't describe such a curve."""
    first, second, last = sorted(points)[-3:]
    earlier, later = (
        (a.loss - b.loss) / math.log2(b.rows / a.rows) for a, b in ((first, second), (second, last))
    )
    errors = math.hypot(*(point.error or 0.0 for point in (first, second, second, last)))
    return later > max(earlier, 0.0) * 1.2 + _Z * errors


class _Drawn(NamedTuple):
    scale: float
    power: float


class Law:
    """A sample of power-law curves that are consistent with the measured points."""

    def __init__(self, points: Sequence[Measured], *, seed: int = 0) -> None:
        """Fit the curves. Raises `ValueError` for fewer than three sizes."""
        if len({point.rows for point in points}) < 3:
            raise ValueError("a learning curve needs at least three data sizes")
        self.rows = max(point.rows for point in points)
        self._draws = _drawn(points, self.rows, random.Random(seed))  # noqa: S311  not for secrets

    def gain(self, before: int, after: int) -> Gain:
        """Predict the gain from increasing the number of training rows."""
        found = sorted(
            one.scale * ((before / self.rows) ** -one.power - (after / self.rows) ** -one.power)
            for one in self._draws
        )
        at = [found[round(share * (len(found) - 1))] for share in ((1 - LEVEL) / 2, 0.5, (1 + LEVEL) / 2)]
        return Gain(rows_before=before, rows_after=after, low=at[0], value=at[1], high=at[2])


def _drawn(points: Sequence[Measured], most: int, chance: random.Random) -> list[_Drawn]:
    """Draw curves in proportion to how well they fit. The prior is uniform over the powers, and over floors
    and scales from 0."""
    worst, best = max(point.loss for point in points), min(point.loss for point in points)
    # If standard errors are unknown, errors from 1% to 50% of the range of the losses are tried.
    spread = (worst - best) or abs(best) or 1.0
    all_known = all(point.error for point in points)
    errors = [0.0] if all_known else [spread * 0.01 * 50 ** (k / 7) for k in range(8)]
    found: list[tuple[float, _Drawn]] = []  # log weight
    for power in _POWERS:
        shapes = [(point.rows / most) ** -power for point in points]
        for error in errors:
            weights = [1 / (point.error or error) ** 2 for point in points]
            fit = _line(shapes, [point.loss for point in points], weights)
            evidence = (
                sum(map(math.log, weights)) / 2 - fit.missed / 2 + math.log(fit.floor_error * fit.scale_error)
            )
            for _ in range(_EACH // len(errors)):
                scale = chance.gauss(fit.scale, fit.scale_error)
                floor = chance.gauss(fit.level - scale * fit.center, fit.floor_error)
                if scale > 0 and floor > 0:  # no curve gets worse with more rows, or better than perfect
                    found.append((evidence, _Drawn(scale, power)))
    if not found:
        return [_Drawn(0.0, 1.0)]
    heaviest = max(weight for weight, _ in found)
    return [
        one
        for one in chance.choices([d for _, d in found], [math.exp(w - heaviest) for w, _ in found], k=_DRAWS)
    ]


class _FittedLine(NamedTuple):
    """A line through weighted points: level + scale (x - center). The errors of level and scale are
    independent."""

    level: float
    floor_error: float
    scale: float
    scale_error: float
    center: float
    missed: float


def _line(xs: Sequence[float], ys: Sequence[float], weights: Sequence[float]) -> _FittedLine:
    total = sum(weights)
    center = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
    level = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
    across = sum(w * (x - center) ** 2 for w, x in zip(weights, xs, strict=True))
    scale = sum(w * (x - center) * (y - level) for w, x, y in zip(weights, xs, ys, strict=True)) / across
    missed = sum(w * (y - level - scale * (x - center)) ** 2 for w, x, y in zip(weights, xs, ys, strict=True))
    return _FittedLine(level, total**-0.5, scale, across**-0.5, center, missed)
