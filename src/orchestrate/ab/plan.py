"""Plans of experiments in YAML files.

name: support-bot
base: http://127.0.0.1:8001/v1=qwen3-8b     # or HOST=MODEL, or a run: then its base
tuned: run-1qrn0nq0kvxa                     # or an address
metrics:
  - {name: resolved, role: primary}
  - {name: escalated, role: guardrail, better: lower, of_user: any, window_h: 24, absent: 0}
  - {name: latency_s, role: guardrail, kind: number, better: lower, of_user: mean, window_h: 24, margin: 0.5}
  - {name: failed, role: guardrail, better: lower, of_user: any, window_h: 1}
rule: {stages: [10, 25, 50, 100], goal: better, min_users: 200, min_hours: 24}

`failed`, `latency_s` and `cost_usd` are recorded by the proxy itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import msgspec
import yaml

from orchestrate.errors import UsageError
from orchestrate.expansion import require_bounded
from orchestrate.types import DecisionRule, ExperimentPlan, PlannedMetric, decoding

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_METRIC = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_. -]{0,62}")
_FOLDS = {"right-or-wrong": ("first", "any", "all"), "number": ("first", "mean", "sum")}
FAILED, LATENCY, COST = "failed", "latency_s", "cost_usd"
"""Metrics that are recorded of each answer, where a plan has them."""
FAILOVERS = "the base answered in the tuned model's place"
"""As it is counted."""
ALPHAS = (0.0001, 0.5)


def read_plan(path: Path) -> ExperimentPlan:
    """Raises `UsageError` with what is wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
        require_bounded(yaml.compose(text, Loader=yaml.SafeLoader))
        given: Any = yaml.safe_load(text)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the plan {path} cannot be read: {error}") from error
    except (yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} is no YAML: {error}") from error
    if isinstance(given, dict):
        given = {"name": path.stem, **cast("dict[str, Any]", given)}
    try:
        plan = decoding.convert(given, ExperimentPlan)
    except msgspec.ValidationError as error:
        raise UsageError(
            f"{path} is no plan of an experiment: {error}",
            fix="name, base, tuned, metrics (name, role, kind, better), rule (stages, goal): docs/ab.md",
        ) from error
    return required(plan, str(path))


def required(plan: ExperimentPlan, where: str = "the plan") -> ExperimentPlan:
    """A plan that can be carried out. Raises `UsageError` with the first thing that is wrong in it."""
    for wrong in (*_wrong_names(plan), *_wrong_rule(plan.rule), *_wrong_metrics(plan)):
        raise UsageError(f"{where}: {wrong}")
    return plan


def _wrong_names(plan: ExperimentPlan) -> Iterable[str]:
    if not _NAME.fullmatch(plan.name):
        yield f"name: {plan.name!r} must be small letters, digits, '.', '-' and '_', at most 63"
    if not plan.base.strip() or not plan.tuned.strip():
        yield "base and tuned: each needs a model"
    for field in ("key_variables", "usd_per_mtok"):
        for arm in sorted(set(getattr(plan, field)) - {"base", "tuned"}):
            yield f"{field}: {arm!r} is neither base nor tuned"
    for arm, prices in plan.usd_per_mtok.items():
        if not all(price.is_finite() and price >= 0 for price in prices):
            yield f"usd_per_mtok.{arm}: prices are 0 or above"


def _wrong_rule(rule: DecisionRule) -> Iterable[str]:
    rising = all(low < high for low, high in pairwise((0.0, *rule.stages)))
    if len(rule.stages) < 2 or not rising or rule.stages[-1] != 100:
        yield f"rule.stages: shares in percent that rise to 100, as 10, 25, 50, 100; got {rule.stages}"
    if not ALPHAS[0] <= rule.alpha <= ALPHAS[1]:
        yield f"rule.alpha: {ALPHAS[0]} to {ALPHAS[1]}; got {rule.alpha}"
    if rule.min_users < 1 or not 0 <= rule.min_hours < math.inf:
        yield "rule.min_users is 1 or above, rule.min_hours 0 or above"
    if rule.most_users is not None and rule.most_users < 2 * rule.min_users:
        yield f"rule.most_users: less than min_users ({rule.min_users}) of both arms"


def _wrong_metrics(plan: ExperimentPlan) -> Iterable[str]:
    names = [metric.name for metric in plan.metrics]
    if len(set(names)) < len(names):
        yield f"metrics: {max(names, key=names.count)!r} is there twice"
    if sum(metric.role == "primary" for metric in plan.metrics) != 1:
        yield "metrics: one has  role: primary, which decides; the others are guardrails or told"
        return
    for metric in plan.metrics:
        yield from (f"metrics.{metric.name}: {wrong}" for wrong in _wrong_metric(metric))
    if plan.rule.goal == "not worse" and not plan.primary.margin:
        yield f"metrics.{plan.primary.name}: the goal  not worse  needs a margin: how much worse is borne"
    if plan.rule.goal == "better" and plan.primary.margin:
        yield f"metrics.{plan.primary.name}: a margin goes with the goal  not worse  only"


def _wrong_metric(metric: PlannedMetric) -> Iterable[str]:
    if not _METRIC.fullmatch(metric.name):
        yield "a name is letters, digits, '_', '-', '.' and spaces, at most 63"
    if metric.of_user not in _FOLDS[metric.kind]:
        yield f"of_user of a {metric.kind} metric is one of {', '.join(_FOLDS[metric.kind])}"
    if metric.window_h is None and metric.of_user != "first":
        yield f"of_user: {metric.of_user} needs window_h: until when outcomes of a user count"
    if metric.window_h is None and metric.absent is not None:
        yield "absent needs window_h: until when an outcome is waited for"
    if metric.window_h is not None and not 0 < metric.window_h <= 24 * 366:
        yield "window_h: above 0, at most a year"
    if not 0 <= metric.margin < math.inf:
        yield "margin: 0 or above"
    if metric.absent is not None and (told := wrong_value(metric, metric.absent)):
        yield f"absent: {told}"


def recorded_sometimes(plan: ExperimentPlan) -> list[str]:
    """Name the metrics that decide, are right or wrong, and count only users with an outcome. If such an
    outcome is recorded only when it happens, the users without it are missing from the evidence."""
    return [
        metric.name
        for metric in plan.metrics
        if metric.role != "told"
        and metric.kind == "right-or-wrong"
        and metric.absent is None
        and metric.name != FAILED  # the proxy records it of every answer
    ]


def wrong_value(metric: PlannedMetric, value: float) -> str | None:
    """Why it cannot be an outcome."""
    if not math.isfinite(value) or abs(value) > 1e15:
        return f"{metric.name}: {value} is no number that can be averaged"
    if metric.kind == "right-or-wrong" and value not in (0, 1):
        return f"{metric.name} is right or wrong: true or false, 1 or 0; got {value:g}"
    return None
