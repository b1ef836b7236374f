"""Read experiment plans from YAML files, check them, and decide by their rules.

name: support-bot
base: http://127.0.0.1:8001/v1=qwen3-8b     # or HOST=MODEL, or a run (for its base model)
tuned: run-1qrn0nq0kvxa                     # or an address
metrics:
  - {name: resolved, role: primary}
  - {name: escalated, role: guardrail, better: lower, of_user: any, window_h: 24, absent: 0}
  - {name: latency_s, role: guardrail, kind: number, better: lower, of_user: mean, window_h: 24, margin: 0.5}
  - {name: failed, role: guardrail, better: lower, of_user: any, window_h: 1}
rule: {stages: [10, 25, 50, 100], goal: better, min_users: 200, min_hours: 24}

The proxy records `failed`, `latency_s` and `cost_usd` automatically.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from itertools import pairwise
from pathlib import Path

from orchestrate.core.expansion import read_record
from orchestrate.errors import UsageError
from orchestrate.types import (
    DecisionRule,
    Evidence,
    ExperimentDecision,
    ExperimentPhase,
    ExperimentPlan,
    PlannedMetric,
)

BROKEN_SPLIT = 0.001
"""Threshold for the p-value of the split. A lower p-value means that users were not split as planned."""


def alphas(plan: ExperimentPlan) -> dict[str, float]:
    """Return each metric's significance level, as `{metric: alpha}`. The primary metric and each
    secondary metric get the full alpha. The guardrails share one additional alpha equally."""
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
    """Apply the rule to the evidence and return the decision. `in_phase` is the number of users per arm in
    this phase, `users` is the total number of users, and `ratio_p` is the p-value of the split."""

    def held(why: str) -> ExperimentDecision:
        return ExperimentDecision(verb="hold", share=phase.share, why=why)

    if phase.over:
        return held(f"the experiment has ended: {phase.why}")
    if ratio_p < BROKEN_SPLIT:
        p = f"{ratio_p:.1g}"
        return held(f"users are not split as planned (p = {p}): find out why before you trust these results")
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
        why = f"{primary.metric} was not shown to be {plan.rule.goal} after {users:,} users (limit: {most:,})"
        return ExperimentDecision(verb="roll back", share=0.0, why=why)
    stages = [share / 100 for share in plan.rule.stages]
    following = next(share for share in stages if share > phase.share + 1e-9)
    if waiting := _waiting(plan, phase, in_phase, now):
        return held(waiting)
    if silent := [one for one in deciding if not all(one.users.values())]:
        return held("; ".join(_nothing_counted(plan, one) for one in silent))
    if following < 1:
        why = f"no harm found in the {phase.share:.0%} stage, after enough users and hours"
        return ExperimentDecision(verb="ramp", share=following, why=why)
    if reached is None:
        return held(f"{primary.metric} is not yet shown to be {plan.rule.goal}. All other conditions are met")
    return ExperimentDecision(verb="ship", share=1.0, why=reached)


def _nothing_counted(plan: ExperimentPlan, one: Evidence) -> str:
    """Return the reason to wait while a deciding metric has no counted user in one of the arms."""
    arms = " or ".join(arm for arm, users in one.users.items() if not users)
    planned = plan.metric(one.metric)
    if planned is not None and planned.absent is not None:
        return (
            f"no user of the {arms} model counts toward {one.metric} yet: users count {planned.window_h:g} h "
            "after their first request"
        )
    return (
        f"no {one.metric} outcome was recorded for {arms}: check that your application records it "
        "for every user"
    )


def _uneven(plan: ExperimentPlan, one: Evidence) -> str:
    """Return the reason to wait while the arms record outcomes at different rates."""
    planned = plan.metric(one.metric)
    sometimes = planned is not None and planned.absent is None
    guess = (
        f"either some outcomes of one arm were lost, or your application only records {one.metric} for some "
        "users. If it does, set absent and window_h in the plan of a new experiment"
        if sometimes
        else "some outcomes of one arm were lost"
    )
    return f"the two arms record {one.metric} at different rates (p = {one.counted_ratio_p:.1g}): {guess}"


def _harm(plan: ExperimentPlan, one: Evidence) -> str | None:
    """Return the reason to roll back the tuned model, or `None`. If the arms record outcomes at different
    rates, the metric proves nothing."""
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
    """Return how the goal was reached, or `None`."""
    if primary.decision == "better":
        return f"{primary.metric} is better: {_interval(primary)}"
    least = _least(primary)
    if plan.rule.goal == "not worse" and least is not None and least > -primary.margin:
        return f"{primary.metric} is non-inferior (margin {primary.margin:g}): {_interval(primary)}"
    return None


def _least(one: Evidence) -> float | None:
    """Return the end of the interval that is worse for the tuned model, as a gain."""
    if one.better == "higher":
        return one.low
    return None if one.high is None else -one.high


def _best(one: Evidence) -> float | None:
    """Return the end of the interval that is better for the tuned model, as a gain."""
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
        needed = f"{rule.min_users:,} users in the {phase.share:.0%} stage"
        return f"each arm needs {needed} (fewest so far: {fewest:,})"
    hours = (now - phase.at).total_seconds() / 3600
    if hours < 0:
        return f"this machine's clock ({now:%Y-%m-%d %H:%M} UTC) shows a time before the start of this phase"
    if hours < rule.min_hours:
        return (
            f"{hours:.1f} of the {rule.min_hours:g} required hours in the {phase.share:.0%} stage have passed"
        )
    return None


_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,62}")
_FOLDS = {"right-or-wrong": ("first", "any", "all"), "number": ("first", "mean", "sum")}
FAILED, LATENCY, COST = "failed", "latency_s", "cost_usd"
"""Metrics that are recorded automatically for each answer, if the plan includes them."""
FAILOVERS = "the base answered in place of the tuned model"
"""Name of the event that counts failovers to the base model."""
ALPHAS = (0.0001, 0.5)


def read_plan(path: Path) -> ExperimentPlan:
    """Read a plan from a YAML file. Raises `UsageError` if the plan is invalid."""
    fields = (
        "set name, base, tuned, metrics (name, role, kind, better) and rule (stages, goal): see docs/ab.md"
    )
    plan = read_record(path, ExperimentPlan, "experiment plan", fields)
    return required(plan, str(path))


def required(plan: ExperimentPlan, where: str = "the plan") -> ExperimentPlan:
    """Return the plan if it is valid. Raises `UsageError` for the first error."""
    for wrong in (*_wrong_names(plan), *_wrong_rule(plan.rule), *_wrong_metrics(plan)):
        raise UsageError(f"{where}: {wrong}")
    return plan


def _wrong_names(plan: ExperimentPlan) -> Iterable[str]:
    if not _NAME.fullmatch(plan.name):
        yield f"name: {plan.name!r} must consist of at most 63 lowercase letters, digits, '.', '-' and '_'"
    if not plan.base.strip() or not plan.tuned.strip():
        yield "base and tuned: each must name a model"
    for field in ("key_variables", "usd_per_mtok"):
        for arm in sorted(set(getattr(plan, field)) - {"base", "tuned"}):
            yield f"{field}: must be base or tuned, got {arm!r}"
    for arm, prices in plan.usd_per_mtok.items():
        if not all(price.is_finite() and price >= 0 for price in prices):
            yield f"usd_per_mtok.{arm}: must be 0 or above"


def _wrong_rule(rule: DecisionRule) -> Iterable[str]:
    rising = all(low < high for low, high in pairwise((0.0, *rule.stages)))
    if len(rule.stages) < 2 or not rising or rule.stages[-1] != 100:
        yield (
            "rule.stages: must be increasing percentages up to 100, such as 10, 25, 50, 100 "
            f"(got {rule.stages})"
        )
    if not ALPHAS[0] <= rule.alpha <= ALPHAS[1]:
        yield f"rule.alpha must be between {ALPHAS[0]} and {ALPHAS[1]}, got {rule.alpha}"
    if rule.min_users < 1 or not 0 <= rule.min_hours < math.inf:
        yield "rule.min_users must be at least 1 and rule.min_hours at least 0"
    if rule.most_users is not None and rule.most_users < 2 * rule.min_users:
        yield f"rule.most_users must be at least twice rule.min_users (2 x {rule.min_users})"


def _wrong_metrics(plan: ExperimentPlan) -> Iterable[str]:
    names = [metric.name for metric in plan.metrics]
    if len(set(names)) < len(names):
        yield f"metrics: {max(names, key=names.count)!r} occurs twice"
    if sum(metric.role == "primary" for metric in plan.metrics) != 1:
        yield "metrics: exactly one must have role: primary. The others must have role guardrail or secondary"
        return
    for metric in plan.metrics:
        yield from (f"metrics.{metric.name}: {wrong}" for wrong in _wrong_metric(metric))
    if plan.rule.goal == "not worse" and not plan.primary.margin:
        yield f"metrics.{plan.primary.name}: the goal 'not worse' requires a margin (the accepted drop)"
    if plan.rule.goal == "better" and plan.primary.margin:
        yield f"metrics.{plan.primary.name}: a margin only applies to the goal 'not worse'"


def _wrong_metric(metric: PlannedMetric) -> Iterable[str]:
    if not _METRIC.fullmatch(metric.name):
        yield "a name must consist of at most 63 letters, digits, '_', '-', '.' and spaces"
    if metric.of_user not in _FOLDS[metric.kind]:
        yield f"for a {metric.kind} metric, of_user must be one of {', '.join(_FOLDS[metric.kind])}"
    if metric.window_h is None and metric.of_user != "first":
        yield f"of_user: {metric.of_user} requires window_h, the time in which a user's outcomes count"
    if metric.window_h is None and metric.absent is not None:
        yield "absent requires window_h, the time to wait for an outcome"
    if metric.window_h is not None and not 0 < metric.window_h <= 24 * 366:
        yield "window_h must be above 0 and at most one year"
    if not 0 <= metric.margin < math.inf:
        yield "margin must be 0 or above"
    elif metric.kind == "right-or-wrong" and metric.margin >= 1:  # no drop can be larger
        yield f"margin must be below 1, got {metric.margin:g}: for 5 percentage points, set 0.05"
    if metric.absent is not None and (problem := wrong_value(metric, metric.absent)):
        yield f"absent: {problem}"


def recorded_sometimes(plan: ExperimentPlan) -> list[str]:
    """List the right-or-wrong metrics that affect the decision but don't set `absent`, the value for users
    without a recorded outcome. These users are left out of the analysis, which biases the result if the
    application records an outcome only when an event happens. `failed` is not listed, because the proxy
    records it for every response."""
    return [
        metric.name
        for metric in plan.metrics
        if metric.role != "secondary"
        and metric.kind == "right-or-wrong"
        and metric.absent is None
        and metric.name != FAILED  # the proxy records it of every answer
    ]


def wrong_value(metric: PlannedMetric, value: float) -> str | None:
    """Return the reason why a value is invalid for this metric, or `None` if it is valid."""
    if not math.isfinite(value) or abs(value) > 1e15:
        return f"{metric.name} must be a finite number between -1e15 and 1e15 (got {value:g})"
    if metric.kind == "right-or-wrong" and value not in (0, 1):
        return f"{metric.name} must be true or false, 1 or 0 (got {value:g})"
    return None
