"""The rule that was written down before, applied to what is seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from orchestrate.types import (
    Evidence,
    ExperimentDecision,
    ExperimentPhase,
    ExperimentPlan,
)

BROKEN_SPLIT = 0.001
"""Below this chance the users cannot have been split as planned."""


def alphas(plan: ExperimentPlan) -> dict[str, float]:
    """By metric: all of it for the primary one, and as much again for all guardrails together; each `told`
    metric stands alone."""
    guards = sum(metric.role == "guardrail" for metric in plan.metrics)
    alpha = plan.rule.alpha
    return {m.name: alpha / guards if m.role == "guardrail" else alpha for m in plan.metrics}


def decide(
    plan: ExperimentPlan,
    phase: ExperimentPhase,
    evidence: Sequence[Evidence],
    *,
    now: datetime,
    in_phase: Mapping[str, int],
    users: int,
    ratio_p: float,
) -> ExperimentDecision:
    """What is to be done now. `in_phase`: users seen in this phase, by arm; `users`: in all phases and arms
    together; `ratio_p`: of the split."""

    def held(why: str) -> ExperimentDecision:
        return ExperimentDecision(verb="hold", share=phase.share, why=why)

    if phase.over:
        return held(f"it has ended: {phase.why}")
    if ratio_p < BROKEN_SPLIT:
        p = f"{ratio_p:.1g}"
        return held(f"users are not split as planned (p = {p}): nothing here can be believed; find out why")
    deciding = [one for one in evidence if one.role in ("primary", "guardrail")]
    for one in deciding:
        if harm := _harm(plan, one):
            return ExperimentDecision(verb="roll back", share=0.0, why=harm)
    if broken := [one for one in deciding if one.counted_ratio_p < BROKEN_SPLIT]:
        return held("; ".join(_uneven(plan, one) for one in broken))
    primary = next(e for e in evidence if e.role == "primary")
    reached = _reached(plan, primary)
    most = plan.rule.most_users
    if most is not None and users >= most and reached is None:
        why = f"{primary.metric} was not shown to be {plan.rule.goal} by {users:,} users, of {most:,} at most"
        return ExperimentDecision(verb="roll back", share=0.0, why=why)
    stages = [share / 100 for share in plan.rule.stages]
    following = next(share for share in stages if share > phase.share + 1e-9)
    if waiting := _waiting(plan, phase, in_phase, now):
        return held(waiting)
    if silent := [one for one in deciding if not all(one.users.values())]:
        return held("; ".join(_nothing_counted(plan, one) for one in silent))
    if following < 1:
        why = f"no harm is shown at {phase.share:.0%}, with users and hours enough"
        return ExperimentDecision(verb="ramp", share=following, why=why)
    if reached is None:
        return held(f"{primary.metric} is not shown to be {plan.rule.goal} yet; all else is done")
    return ExperimentDecision(verb="ship", share=1.0, why=reached)


def _nothing_counted(plan: ExperimentPlan, one: Evidence) -> str:
    """Why nothing is decided while a metric that decides has counted no user of an arm."""
    arms = " or ".join(arm for arm, users in one.users.items() if not users)
    planned = plan.metric(one.metric)
    if planned is not None and planned.absent is not None:
        return (
            f"no user of {arms} has been counted for {one.metric} yet: its window is {planned.window_h:g} h"
        )
    return (
        f"no outcome of {one.metric} was recorded for {arms}: check that your application records it, "
        "and for every user"
    )


def _uneven(plan: ExperimentPlan, one: Evidence) -> str:
    """Why nothing is decided while users with outcomes don't come from both arms as users do."""
    planned = plan.metric(one.metric)
    sometimes = planned is not None and planned.absent is None
    guess = (
        f"either one arm loses them, or {one.metric} is recorded only when it happens "
        "(then start a new experiment with absent and window_h)"
        if sometimes
        else "one arm loses them"
    )
    return (
        f"outcomes of {one.metric} do not come from both arms alike (p = {one.counted_ratio_p:.1g}): {guess}"
    )


def _harm(plan: ExperimentPlan, one: Evidence) -> str | None:
    """Why the tuned model is to be taken back. Outcomes that don't come from both arms alike show nothing."""
    if one.counted_ratio_p < BROKEN_SPLIT:
        return None
    if not one.margin:
        shown = one.decision == "worse"
        return f"{one.metric} is worse: {_interval(one)}" if shown else None
    worst = _best(one)
    if worst is not None and worst < -one.margin:
        return f"{one.metric} is worse by more than {one.margin:g}: {_interval(one)}"
    return None


def _reached(plan: ExperimentPlan, primary: Evidence) -> str | None:
    """How the goal was reached."""
    if primary.decision == "better":
        return f"{primary.metric} is better: {_interval(primary)}"
    least = _least(primary)
    if plan.rule.goal == "not worse" and least is not None and least > -primary.margin:
        return f"{primary.metric} is not worse by {primary.margin:g}: {_interval(primary)}"
    return None


def _least(one: Evidence) -> float | None:
    """The end of the interval that is worst for the tuned model, as a gain."""
    if one.better == "higher":
        return one.low
    return None if one.high is None else -one.high


def _best(one: Evidence) -> float | None:
    """The other end."""
    if one.better == "higher":
        return one.high
    return None if one.low is None else -one.low


def _interval(one: Evidence) -> str:
    e = f"e = 10^{one.log10_e:.1f}"
    if one.low is None or one.high is None or one.difference is None:
        return e
    return f"{one.difference:+.4g} ({one.low:+.4g} to {one.high:+.4g}), {e}"


def _waiting(
    plan: ExperimentPlan, phase: ExperimentPhase, in_phase: Mapping[str, int], now: datetime
) -> str | None:
    rule = plan.rule
    fewest = min(in_phase.get("base", 0), in_phase.get("tuned", 0))
    if fewest < rule.min_users:
        return f"{fewest:,} of {rule.min_users:,} users of each arm were seen at {phase.share:.0%}"
    hours = (now - phase.at).total_seconds() / 3600
    if hours < 0:
        return f"the clock of this machine ({now:%Y-%m-%d %H:%M} UTC) lies before the beginning of this phase"
    if hours < rule.min_hours:
        return f"{hours:.1f} of {rule.min_hours:g} hours at {phase.share:.0%} are over"
    return None
