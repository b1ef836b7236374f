"""From who was given what, and what came of it, to what each metric shows.

The unit is a user in a phase, who counts once, with a value that is settled when it is counted: then evidence
that was there at any time is not taken back. Users are compared with those who had the same chance: those who
are new in a phase with the new ones, and those of the base who came back with those of the base who came
back, some of whom the larger share gave the tuned model.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import NamedTuple

from orchestrate.ab.sequential import Labels, Means, gate_of_mean, gate_of_share
from orchestrate.tracking.records.experiments import Recorded
from orchestrate.types import Evidence, EvidencePoint, Exposure, PlannedMetric

_LN10 = math.log(10)
_LOOKS, _POINTS = 1000, 200
"""At means, and points of a curve."""


class Unit(NamedTuple):
    phase: int
    chance: float
    tuned: bool
    value: float


def units(
    metric: PlannedMetric, exposures: Sequence[Exposure], outcomes: Iterable[Recorded], now: datetime
) -> list[Unit]:
    """In the order in which they are counted. `exposures` by time, `outcomes` as they were recorded. Who had
    no chance of the other arm tells nothing of it, and is left out."""
    there = {(e.user, e.phase): e for e in exposures if 0 < e.chance < 1}
    if metric.window_h is None:
        first: dict[tuple[str, int], float] = {}
        for one in outcomes:
            first.setdefault((one.person, one.phase), one.value)
        return [_unit(there[key], value) for key, value in first.items() if key in there]
    of_user: dict[tuple[str, int], list[Recorded]] = defaultdict(list)
    for one in outcomes:
        of_user[one.person, one.phase].append(one)
    ends = _ends(exposures, timedelta(hours=metric.window_h))
    counted: list[tuple[datetime, Unit]] = []
    for key, exposure in there.items():
        if (end := ends[key]) > now:
            continue
        values = [one.value for one in of_user.get(key, ()) if one.at <= end]
        value = _folded(metric.of_user, values) if values else metric.absent
        if value is not None:
            counted.append((end, _unit(exposure, value)))
    return [unit for _, unit in sorted(counted, key=lambda pair: pair[0])]


def _unit(exposure: Exposure, value: float) -> Unit:
    return Unit(exposure.phase, exposure.chance, exposure.arm == "tuned", value)


def _ends(exposures: Sequence[Exposure], window: timedelta) -> Mapping[tuple[str, int], datetime]:
    """Of the window of each user in each phase: the next phase that the user is seen in cuts it."""
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
    """Of the split of users as it was planned, valid at any time."""
    labels = Labels()
    for one in exposures:
        if 0 < one.chance < 1:
            labels.add((one.phase, one.chance), one.chance, one.arm == "tuned")
    return math.exp(-labels.highest)


def evidence(metric: PlannedMetric, found: Sequence[Unit], alpha: float) -> Evidence:
    """All that a metric shows of these units."""
    walk = _Walk(metric, alpha)
    every, drawn = max(1, len(found) // _LOOKS), max(1, len(found) // _POINTS)
    for number, unit in enumerate(found, 1):
        walk.add(unit)
        last = number == len(found)
        if walk.exact or number % every == 0 or last:
            walk.look()
        if number % drawn == 0 or last:
            walk.curve.append(EvidencePoint(users=number, log10_e=round(walk.log_e / _LN10, 4)))
    return walk.told()


class _Walk:
    """Evidence as it grows."""

    def __init__(self, metric: PlannedMetric, alpha: float) -> None:
        self.metric, self.alpha = metric, alpha
        self.exact = metric.kind == "right-or-wrong"
        self.labels, self.ratio, self.means = Labels(), Labels(), Means()
        self.log_e = self.highest = 0.0
        self.shown: bool | None = None
        """Whether the tuned model was higher when a difference was last shown."""
        self.curve: list[EvidencePoint] = []

    def add(self, unit: Unit) -> None:
        stratum = (unit.phase, unit.chance)
        self.ratio.add(stratum, unit.chance, unit.tuned)
        self.means.add(stratum, unit.tuned, unit.value)
        if self.exact:
            self.labels.add(stratum, unit.chance, unit.tuned, unit.value)

    @property
    def gate(self) -> str | None:
        return gate_of_share(self.means) if self.exact else gate_of_mean(self.means)

    def look(self) -> None:
        if self.exact:
            # What the arms' numbers alone say, as when one arm's outcomes come later, is no evidence.
            self.log_e = self.labels.log_e - max(0.0, self.ratio.log_e)
        elif self.gate is None:
            mixture = self.means.mixture()
            self.log_e = mixture.log_e if mixture else 0.0
        self.highest = max(self.highest, self.log_e)
        if self.log_e >= -math.log(self.alpha) and (mixture := self.means.mixture()):
            self.shown = mixture.difference > 0

    def told(self) -> Evidence:
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
