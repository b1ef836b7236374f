"""Compute the evidence for each metric from the users' assignments and outcomes.

The statistical unit is one user in one phase. Each unit counts once, and its value never changes, so existing
evidence is never withdrawn. Users are only compared within a stratum, in which all users had the same
probability of getting the tuned model. A phase's new users form one stratum. Users who had the base model in
an earlier phase form another, because only some of them switch when the new phase raises the tuned model's
traffic share.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple

from orchestrate.store.experiments import StoredOutcome
from orchestrate.types import Evidence, EvidencePoint, Exposure, PlannedMetric

# The evidence is anytime-valid: it can be checked as often as you like.
#
# `LabelEvidence` is exact. It bets on each user's arm, whose probability is known, to test whether outcomes
# depend on the arm (Turner, Ly and Grünwald, arXiv 2106.02693). If they do not, the probability that the
# evidence ever exceeds 1 / alpha is at most alpha, however rare an outcome is. `Means` uses the normal
# mixture for means (Robbins 1970; Waudby-Smith et al., arXiv 2103.06476). It is only valid for many users, so
# a gate checks their number first.
#
# Both are stratified: users are only compared with users who had the same probability of getting the tuned
# model in the same phase.

PRIOR = 60.0
"""Prior sample size of the e-process. With this value, evidence grows fastest when the smaller arm has about
500 users. The evidence is valid for any number of users."""
LEAST_OF_EACH = 10
"""Minimum number of users with each outcome (right or wrong) in each arm. With fewer, the confidence interval
of a proportion is not valid."""
LEAST_USERS, LEAST_BY_SKEW = 50, 25.0
"""Constants in the minimum number of users per arm, max(50, 28 + 25 skewness^2) (Sugden, Smith and Jones
2000). With fewer users, the confidence interval of a mean is not valid."""
POWER_80 = 0.8416


class LabelEvidence:
    """E-process against the null hypothesis that a user's outcome does not depend on the arm. Without
    outcomes, it tests whether users are split as planned. Updated once per user."""

    def __init__(self) -> None:
        self._seen: dict[Hashable, tuple[int, int]] = {}
        self.log_e = 0.0
        self.highest = 0.0
        """The highest `log_e` so far."""

    def add(self, stratum: Hashable, chance: float, tuned: bool, outcome: Hashable = None) -> None:
        """Add a user. `chance` is the probability that the user was assigned the tuned model."""
        of_tuned, users = self._seen.get((stratum, outcome), (0, 0))
        bet = (PRIOR * chance + of_tuned) / (PRIOR + users)
        self.log_e += math.log(bet / chance) if tuned else math.log((1 - bet) / (1 - chance))
        self.highest = max(self.highest, self.log_e)
        self._seen[stratum, outcome] = (of_tuned + tuned, users + 1)


@dataclass
class _Cell:
    """Values of one arm in one stratum: their mean and sums of powers of deviations."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0
    cubes: float = 0.0

    def add(self, value: float) -> None:
        self.n += 1
        gap = value - self.mean
        step = gap / self.n
        term = gap * step * (self.n - 1)
        self.cubes += term * step * (self.n - 2) - 3 * step * self.squares
        self.squares += term
        self.mean += step


@dataclass(frozen=True)
class Mixture:
    """The current difference between the means of the two arms. `information` is the effective sample size
    (n1 n0 / (n1 + n0), summed over the strata), and `deviation` is the standard error of the difference,
    multiplied by sqrt(`information`)."""

    difference: float
    information: float
    deviation: float

    @property
    def log_e(self) -> float:
        """The log evidence against the null hypothesis of no difference."""
        known, prior = self.information, PRIOR
        signal = (self.difference * known / self.deviation) ** 2
        return signal / (2 * (known + prior)) - 0.5 * math.log1p(known / prior)

    def half_width(self, alpha: float) -> float:
        return self.deviation * _bound(self.information, alpha) / self.information

    def detectable(self, alpha: float) -> float:
        """Return the smallest difference that can be detected with 80% power at the current number of
        users."""
        return detectable(self.information, self.deviation, alpha)


def detectable(information: float, deviation: float, alpha: float) -> float:
    return deviation * (_bound(information, alpha) + POWER_80 * math.sqrt(information)) / information


def users_for(difference: float, deviation: float, share: float, alpha: float) -> int:
    """Return the total number of users in both arms needed to detect `difference` with 80% power if the tuned
    model's traffic share stays at `share`."""
    low, high = 1.0, 1e15
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        seen = detectable(middle * share * (1 - share), deviation, alpha) <= abs(difference)
        low, high = (low, middle) if seen else (middle, high)
    return math.ceil(high)


def _bound(information: float, alpha: float) -> float:
    """Return the bound on |difference| x information / deviation that holds at all times with a probability
    of 1 - alpha."""
    return math.sqrt((information + PRIOR) * (math.log1p(information / PRIOR) - 2 * math.log(alpha)))


@dataclass
class Means:
    """Values of both arms, grouped by stratum."""

    cells: dict[tuple[Hashable, bool], _Cell] = field(default_factory=dict[tuple[Hashable, bool], _Cell])

    def add(self, stratum: Hashable, tuned: bool, value: float) -> None:
        self.cells.setdefault((stratum, tuned), _Cell()).add(value)

    def users(self, tuned: bool) -> int:
        return sum(cell.n for (_, arm), cell in self.cells.items() if arm == tuned)

    def total(self, tuned: bool) -> float:
        return sum(cell.n * cell.mean for (_, arm), cell in self.cells.items() if arm == tuned)

    @property
    def skewness(self) -> float:
        """Return the skewness of the values after subtracting the mean of their arm and stratum."""
        users = self.users(True) + self.users(False)
        squares = sum(cell.squares for cell in self.cells.values()) / users
        cubes = sum(cell.cubes for cell in self.cells.values()) / users
        return cubes / squares**1.5 if squares > 0 else 0.0

    def mixture(self) -> Mixture | None:
        """Combine all strata into one difference between the arms. Returns `None` if there is nothing to
        compare yet, or if all values are equal."""
        spread = {arm: self._variance(arm) for arm in (True, False)}
        score = information = variance = 0.0
        for (stratum, arm), tuned in self.cells.items():
            base = self.cells.get((stratum, False))
            if not arm or base is None:
                continue
            known = tuned.n * base.n / (tuned.n + base.n)
            score += known * (tuned.mean - base.mean)
            information += known
            variance += known**2 * (spread[True] / tuned.n + spread[False] / base.n)
        if information == 0 or variance <= 0:
            return None
        return Mixture(score / information, information, math.sqrt(variance / information))

    def _variance(self, arm: bool) -> float:
        cells = [cell for (_, tuned), cell in self.cells.items() if tuned == arm]
        freedom = sum(cell.n - 1 for cell in cells)
        return sum(cell.squares for cell in cells) / freedom if freedom > 0 else 0.0


def gate_of_share(means: Means) -> str | None:
    """Return the reason why the confidence interval of a right-or-wrong metric is not valid yet. Returns
    `None` if it is valid."""
    least = min(min(total := means.total(arm), means.users(arm) - total) for arm in (True, False))
    if least >= LEAST_OF_EACH - 1e-6:
        return None
    return f"each arm needs at least {LEAST_OF_EACH} users with each outcome (fewest so far: {round(least)})"


def gate_of_mean(means: Means) -> str | None:
    """Return the reason why the confidence interval of a numeric metric is not valid yet. Returns `None` if
    it is valid."""
    fewest = min(means.users(True), means.users(False))
    if fewest < 2:
        return "an arm has fewer than 2 users"
    needed = max(LEAST_USERS, math.ceil(28 + LEAST_BY_SKEW * means.skewness**2))
    if fewest >= needed:
        return None
    why = (
        ""
        if needed == LEAST_USERS
        else f" (raised from {LEAST_USERS} because the values have a skewness of {means.skewness:+.1f})"
    )
    return f"only {fewest:,} of the {needed:,} required users per arm{why}"


_LN10 = math.log(10)
_LOOKS, _POINTS = 1000, 200
"""Approximate upper limits per metric: `_LOOKS` for how many times the evidence for a numeric metric is
evaluated, `_POINTS` for the points on a metric's evidence curve."""


class EvidenceUnit(NamedTuple):
    phase: int
    chance: float
    tuned: bool
    value: float


def units(
    metric: PlannedMetric, exposures: Sequence[Exposure], outcomes: Iterable[StoredOutcome], now: datetime
) -> list[EvidenceUnit]:
    """List the units of a metric in the order in which they enter the evidence. `exposures` must be sorted by
    time and `outcomes` by recording time. Excludes users whose arm was certain in advance (probability 0 or
    1), because they carry no information."""
    there = {(e.user, e.phase): e for e in exposures if 0 < e.chance < 1}
    if metric.window_h is None:
        first: dict[tuple[str, int], float] = {}
        for one in outcomes:
            first.setdefault((one.person, one.phase), one.value)
        return [_unit(there[key], value) for key, value in first.items() if key in there]
    of_user: dict[tuple[str, int], list[StoredOutcome]] = defaultdict(list)
    for one in outcomes:
        of_user[one.person, one.phase].append(one)
    ends = _ends(exposures, timedelta(hours=metric.window_h))
    counted: list[tuple[datetime, EvidenceUnit]] = []
    for key, exposure in there.items():
        if (end := ends[key]) > now:
            continue
        values = [one.value for one in of_user.get(key, ()) if one.at <= end]
        value = _folded(metric.of_user, values) if values else metric.absent
        if value is not None:
            counted.append((end, _unit(exposure, value)))
    return [unit for _, unit in sorted(counted, key=lambda pair: pair[0])]


def _unit(exposure: Exposure, value: float) -> EvidenceUnit:
    return EvidenceUnit(exposure.phase, exposure.chance, exposure.arm == "tuned", value)


def _ends(exposures: Sequence[Exposure], window: timedelta) -> Mapping[tuple[str, int], datetime]:
    """Return the end of each user's window in each phase. A window ends early when the user is assigned in
    the next phase."""
    ends: dict[tuple[str, int], datetime] = {}
    last: dict[str, int] = {}
    for one in exposures:
        before = (one.user, last.get(one.user, -1))
        if before in ends:
            ends[before] = min(ends[before], one.at)
        ends[one.user, one.phase] = one.at + window
        last[one.user] = one.phase
    return ends


def _folded(how: str, values: Sequence[float]) -> float:
    if how == "first":
        return values[0]
    if how in ("any", "all"):
        return max(values) if how == "any" else min(values)
    return math.fsum(values) / (len(values) if how == "mean" else 1)


def ratio_p(exposures: Iterable[Exposure]) -> float:
    """Return the anytime-valid p-value for the null hypothesis that users were split between the arms as
    planned."""
    labels = LabelEvidence()
    for one in exposures:
        if 0 < one.chance < 1:
            labels.add((one.phase, one.chance), one.chance, one.arm == "tuned")
    return math.exp(-labels.highest)


def evidence(metric: PlannedMetric, found: Sequence[EvidenceUnit], alpha: float) -> Evidence:
    """Compute a metric's evidence from its units, which must be in the order that `units` returns. `alpha` is
    the metric's significance level."""
    walk = _Walk(metric, alpha)
    every, drawn = max(1, len(found) // _LOOKS), max(1, len(found) // _POINTS)
    for number, unit in enumerate(found, 1):
        walk.add(unit)
        last = number == len(found)
        if walk.exact or number % every == 0 or last:
            walk.evaluate()
        if number % drawn == 0 or last:
            walk.curve.append(EvidencePoint(users=number, log10_e=round(walk.log_e / _LN10, 4)))
    return walk.result()


class _Walk:
    """The evidence of a metric as units are added."""

    def __init__(self, metric: PlannedMetric, alpha: float) -> None:
        self.metric, self.alpha = metric, alpha
        self.exact = metric.kind == "right-or-wrong"
        self.labels, self.ratio, self.means = LabelEvidence(), LabelEvidence(), Means()
        self.log_e = self.highest = 0.0
        self.shown: bool | None = None
        """The direction of the last significant difference: True if the tuned model had the higher value.
        `None` if there was none."""
        self.curve: list[EvidencePoint] = []

    def add(self, unit: EvidenceUnit) -> None:
        stratum = (unit.phase, unit.chance)
        self.ratio.add(stratum, unit.chance, unit.tuned)
        self.means.add(stratum, unit.tuned, unit.value)
        if self.exact:
            self.labels.add(stratum, unit.chance, unit.tuned, unit.value)

    @property
    def gate(self) -> str | None:
        return gate_of_share(self.means) if self.exact else gate_of_mean(self.means)

    def evaluate(self) -> None:
        if self.exact:
            # The arms can have different numbers of outcomes, for example if one arm's outcomes arrive later.
            # These numbers alone are not evidence of a difference, so subtract what they contribute.
            self.log_e = self.labels.log_e - max(0.0, self.ratio.log_e)
        elif self.gate is None:
            mixture = self.means.mixture()
            self.log_e = mixture.log_e if mixture else 0.0
        self.highest = max(self.highest, self.log_e)
        if self.log_e >= -math.log(self.alpha) and (mixture := self.means.mixture()):
            self.shown = mixture.difference > 0

    def result(self) -> Evidence:
        means, metric = self.means, self.metric
        arms = {"base": False, "tuned": True}
        users = {name: means.users(arm) for name, arm in arms.items()}
        mixture = means.mixture()
        gate = self.gate
        if mixture is None and gate is None:
            gate = "all values are the same so far"
        half = mixture.half_width(self.alpha) if mixture and not gate else None
        bounded = 1.0 if self.exact else math.inf
        decision = "open"
        if self.shown is not None:
            decision = "better" if self.shown == (metric.better == "higher") else "worse"
        return Evidence(
            metric=metric.name,
            role=metric.role,
            better=metric.better,
            margin=metric.margin,
            alpha=self.alpha,
            users=users,
            values={
                name: means.total(arm) / users[name] if users[name] else None for name, arm in arms.items()
            },
            difference=mixture.difference if mixture else None,
            low=max(-bounded, mixture.difference - half) if mixture and half is not None else None,
            high=min(bounded, mixture.difference + half) if mixture and half is not None else None,
            gate=gate,
            log10_e=self.highest / _LN10,
            p_value=math.exp(-self.highest),
            decision=decision,
            detectable=mixture.detectable(self.alpha) if mixture else None,
            counted_ratio_p=math.exp(-max(0.0, self.ratio.log_e)),
            curve=tuple(self.curve),
        )
