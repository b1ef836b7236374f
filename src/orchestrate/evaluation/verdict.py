"""Decide between ship, do not ship, and not enough evidence, with reasons and the number of rows needed to
decide."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from msgspec.structs import replace

from orchestrate.errors import UsageError
from orchestrate.evaluation.statistics import REACH, decisive, standard_error, wider_difference
from orchestrate.text import count
from orchestrate.types import Difference, Measure, MetricUsed, Score, Verdict

MOST_ROWS = 100_000
"""Maximum number of rows to recommend."""
Decision = Literal["ship", "do not ship", "not enough evidence"]


@dataclass(frozen=True)
class Demand:
    """The requirements for a contender on the first metric."""

    target: float | None = None
    """Minimum score."""
    margin: float = 0.0
    """Required lead over the rival. If negative, the contender may be worse by that much."""


def require_decidable(metric: MetricUsed, demand: Demand) -> None:
    """Check that the target and margin make sense for the metric. Raises `UsageError` if one of them is
    impossible. Also raises it if one is set although neither higher nor lower values of the metric are
    better."""
    target, margin = demand.target, demand.margin
    if metric.better == "neither" and (target is not None or margin):
        raise UsageError(
            f"{metric.name} cannot decide the verdict, because neither higher nor lower values are better",
            fix="put the deciding metric first in --metrics",
        )
    shares = metric.kind != "amount"
    for name, wanted, least in (("--target", target or 0.0, 0.0), ("--margin", margin, -1.0)):
        if shares and not least <= wanted <= 1:
            raise UsageError(
                f"{name} {wanted:g} is impossible: {metric.name} is always between 0 and 1",
                fix=f"{name} 0.02 for 2 points" if name == "--margin" else f"{name} 0.9 for 90%",
            )
        if not math.isfinite(wanted):
            raise UsageError(f"{name} must be a finite number, got {wanted:g}")


def verdicts(
    metric: MetricUsed,
    measures: Sequence[Measure],
    differences: Sequence[Difference],
    demand: Demand,
    contenders: Sequence[str],
    answered: Mapping[str, Difference] | None = None,
) -> list[Verdict]:
    """Decide the verdict for each contender that has a rival or a target. If a rival's host rejected some
    questions, `answered` contains the contender's difference from the rival on the remaining questions. This
    difference can prevent the verdict `ship` but cannot lead to it."""
    if metric.better == "neither":
        return []
    compared: dict[str, tuple[list[Measure], list[Difference]]] = {}
    for name in contenders:
        mine = [m for m in measures if (m.contender, m.metric, m.slice) == (name, metric.name, "")]
        apart = [d for d in differences if (d.contender, d.metric, d.slice) == (name, metric.name, "")]
        if apart or (mine and demand.target is not None):
            compared[name] = (mine, apart)
    found: list[Verdict] = []
    for name, (mine, apart) in compared.items():
        parts = [
            _of_target(metric, decisive(m.score, len(compared)), demand.target, len(compared))
            for m in mine
            if demand.target is not None
        ]
        for d in apart:
            part = _of_rival(metric, d, demand.margin, len(compared))
            if part.decision == "ship" and answered and name in answered:
                part = _without_refused(
                    part, d, _of_rival(metric, answered[name], demand.margin, len(compared))
                )
            parts.append(part)
        found.append(_joined(metric, name, parts))
    return found


@dataclass(frozen=True)
class VerdictReason:
    """A reason for a verdict."""

    decision: Decision
    reason: str
    rows: int | None = None


_WORST_FIRST: tuple[Decision, ...] = ("do not ship", "not enough evidence", "ship")


def with_parts(verdict: Verdict, parts: Sequence[VerdictReason]) -> Verdict:
    """Combine verdicts about the same model. The worst decision wins."""
    new = [part for part in parts if part.reason not in verdict.reasons]
    given = {verdict.decision, *(part.decision for part in new)}
    decision: Decision = next(one for one in _WORST_FIRST if one in given)
    rows = None if decision != verdict.decision else verdict.rows_needed
    return replace(
        verdict,
        decision=decision,
        reasons=(*verdict.reasons, *(part.reason for part in new)),
        rows_needed=rows,
    )


def _without_refused(part: VerdictReason, full: Difference, answered: VerdictReason) -> VerdictReason:
    """Return the part, or `not enough evidence` if it would only ship because of questions that the rival did
    not answer."""
    missing = f"{full.against} did not answer some of these questions"
    if answered.decision == "ship":
        return VerdictReason(
            "ship", f"{part.reason}. {missing}, and the result is the same without them: {answered.reason}"
        )
    why = f"{part.reason}, but {missing}, and the result is different without them: {answered.reason}"
    return VerdictReason("not enough evidence", why, answered.rows)


def _joined(metric: MetricUsed, name: str, parts: Sequence[VerdictReason]) -> Verdict:
    reasons = tuple(part.reason for part in parts)
    if metric.unfit is not None:
        why = f"{metric.name} cannot decide the verdict: {metric.unfit}"
        return Verdict(contender=name, decision="not enough evidence", reasons=(why, *reasons))
    given = {part.decision for part in parts}
    decision: Decision = next(one for one in _WORST_FIRST if one in given)
    needed = [part.rows for part in parts if part.decision == "not enough evidence"]
    known = decision == "not enough evidence" and all(n is not None for n in needed)
    rows = max((n for n in needed if n is not None), default=None) if known else None
    return Verdict(contender=name, decision=decision, reasons=reasons, rows_needed=rows)


def _of_target(metric: MetricUsed, score: Score, target: float | None, contenders: int) -> VerdictReason:
    wanted = target or 0.0
    rows_read = f"{count(score.n, 'row')}{_corrected_for(contenders)}"
    finding = f"{metric.name} {shown(metric, score.value)} ({_span(metric, score)}, {rows_read})"
    goal = f"the target {shown(metric, wanted)}"
    low, high = _good_side(metric, score, wanted)
    if low >= 0:
        return VerdictReason("ship", f"{finding} reaches {goal}")
    if high < 0:
        return VerdictReason("do not ship", f"{finding} does not reach {goal}")
    rows = rows_to_decide(score, wanted)
    return VerdictReason(
        "not enough evidence", f"{finding} is not clearly above or below {goal}{_more(rows)}", rows
    )


def _corrected_for(contenders: int) -> str:
    return f", corrected for {contenders} contenders" if contenders > 1 else ""


def _of_rival(metric: MetricUsed, difference: Difference, margin: float, contenders: int) -> VerdictReason:
    # Without a margin, the significance test decides. It already corrects for the number of contenders.
    held = wider_difference(difference, contenders)
    score = difference.score if margin == 0 else held
    corrected = "" if margin == 0 else _corrected_for(contenders)
    sign = -1 if metric.better == "lower" else 1
    finding = (
        f"{metric.name} {points(metric, score.value)} against {difference.against} "
        f"({points(metric, score.low)} to {points(metric, score.high)}, {count(score.n, 'row')}{corrected})"
    )
    if difference.gained or difference.lost:
        finding += f", {difference.gained} gained and {difference.lost} lost"
    low, high = _good_side(metric, score, sign * margin)
    better = difference.shown and score.value * sign > 0 if margin == 0 else low > 0
    worse = difference.shown and score.value * sign < 0 if margin == 0 else high < 0
    if better:
        return VerdictReason("ship", f"{finding}: it {_requirement(metric, margin)}")
    if worse:
        return VerdictReason("do not ship", f"{finding}: it {_missed(metric, margin)}")
    rows = rows_to_decide(held, sign * margin)
    return VerdictReason(
        "not enough evidence",
        f"{finding}: the data does not {_open(metric, margin)}{_more(rows)}",
        rows,
    )


def _requirement(metric: MetricUsed, margin: float) -> str:
    if margin == 0:
        return "is better"
    size = points(metric, abs(margin)).removeprefix("+")
    return f"is better by {size} or more" if margin > 0 else f"is not worse by more than {size}"


def _open(metric: MetricUsed, margin: float) -> str:
    if margin < 0:
        return f"rule out that it {_missed(metric, margin)}"
    return f"show that it {_requirement(metric, margin)}"


def _missed(metric: MetricUsed, margin: float) -> str:
    if margin == 0:
        return "is worse"
    size = points(metric, abs(margin)).removeprefix("+")
    return f"is better by less than {size}, or worse" if margin > 0 else f"is worse by more than {size}"


def _good_side(metric: MetricUsed, score: Score, goal: float) -> tuple[float, float]:
    """Return how far the ends of the interval lie on the good side of the goal."""
    if metric.better == "lower":
        return goal - score.high, goal - score.low
    return score.low - goal, score.high - goal


def rows_to_decide(score: Score, goal: float) -> int | None:
    """Estimate how many rows are needed to reach a verdict with 80% power, assuming that the measured value
    is the true one. The result is always larger than the current number of rows. Returns `None` if more than
    `MOST_ROWS` rows are needed."""
    apart = abs(score.value - goal)
    if apart <= 0 or score.n == 0:
        return None
    rows = math.ceil(score.n * (REACH * standard_error(score) / apart) ** 2)
    return max(rows, score.n + 1) if rows <= MOST_ROWS else None


def _more(rows: int | None) -> str:
    if rows is None:
        return ". More rows would not change this if the difference stays the same"
    return f". A verdict needs about {round_up(rows):,} rows if the difference stays the same"


def round_up(rows: int) -> int:
    """Round up to two significant digits."""
    size = 10 ** max(0, len(str(rows)) - 2)
    return -(-rows // size) * size


def points(metric: MetricUsed, value: float) -> str:
    """Format a difference in percentage points, such as `+3.5 points`, or in the metric's own unit."""
    if metric.kind == "amount":
        return f"{value:+.3g} {metric.unit}".strip()
    return f"{100 * value:+.1f} points"


def shown(metric: MetricUsed, value: float) -> str:
    """Format a score as a percentage, such as `87.5%`, or in the metric's own unit."""
    if metric.kind == "amount":
        return f"{value:.3g} {metric.unit}".strip()
    return f"{100 * value:.1f}%"


def _span(metric: MetricUsed, score: Score) -> str:
    return f"{shown(metric, score.low)} to {shown(metric, score.high)}"
