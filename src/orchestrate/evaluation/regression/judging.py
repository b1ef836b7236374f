"""Kept, forgotten, or not known: each probe by an interval and a margin, never by the absence of proof."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from orchestrate.evaluation import statistics
from orchestrate.evaluation.verdict import MOST_ROWS, points, round_up, shown
from orchestrate.types import Difference, MetricUsed, Record, Score

ABLE = 0.1
"""A base that is right less often than this has nothing to forget there."""

CATASTROPHIC_NATS = 0.7
"""Half as likely, for each token."""

Decision = Literal["kept", "forgot", "inconclusive", "not measurable"]


class ProbeResult(Record, frozen=True, kw_only=True):
    """What became of one ability."""

    probe: str
    title: str
    metric: MetricUsed
    base: Score
    tuned: Score
    difference: Difference
    margin: float
    """In the metric's unit: how much worse is no forgetting."""
    decision: Decision
    reason: str
    rows_needed: int | None = None
    """About how many items would decide an inconclusive one."""
    items_digest: str = ""

    @property
    def catastrophic(self) -> bool:
        """Forgotten, and half of what the base could or more."""
        if self.decision != "forgot":
            return False
        if self.metric.kind == "amount":
            return abs(self.difference.score.value) >= CATASTROPHIC_NATS
        return self.tuned.value <= self.base.value / 2


def judged(
    probe: str,
    title: str,
    metric: MetricUsed,
    base: Score,
    tuned: Score,
    difference: Difference,
    margin: float,
    items_digest: str = "",
) -> ProbeResult:
    """Non-inferiority: the whole interval above the margin is kept, the whole interval below it forgotten."""
    score = difference.score
    sign = -1 if metric.better == "lower" else 1
    low, high = sorted((sign * score.low, sign * score.high))
    said = f"{points(metric, score.value)} ({points(metric, score.low)} to {points(metric, score.high)})"
    allowed = f"{shown(metric, margin) if metric.kind == 'amount' else f'{100 * margin:g} points'}"
    rows: int | None = None
    decision: Decision
    if metric.unfit is not None:
        decision, reason = "inconclusive", f"nothing may be decided by {metric.name}: {metric.unfit}"
    elif not score.n:
        decision, reason = "inconclusive", "there is no answer of both to compare"
    elif metric.kind != "amount" and base.value < ABLE and tuned.value < ABLE:
        decision, reason = "not measurable", f"the base itself reaches only {shown(metric, base.value)}"
    elif low > -margin:
        decision, reason = "kept", f"{said}, not worse by {allowed} or more"
    elif high < -margin:
        decision, reason = "forgot", f"{said}, worse by more than {allowed}"
    else:
        rows = _rows(score, sign, margin)
        worse = "it is worse, but by how much is open" if high < 0 else "it may be worse by more, or not"
        more = f"; about {round_up(rows):,} items would decide" if rows else ""
        decision, reason = "inconclusive", f"{said} against {allowed} allowed: {worse}{more}"
    return ProbeResult(
        probe=probe,
        title=title,
        metric=metric,
        base=base,
        tuned=tuned,
        difference=difference,
        margin=margin,
        decision=decision,
        reason=reason,
        rows_needed=rows,
        items_digest=items_digest,
    )


def _rows(score: Score, sign: int, margin: float) -> int | None:
    apart = abs(sign * score.value + margin)
    if not apart or not score.n:
        return None
    rows = round(score.n * (statistics.REACH * statistics.standard_error(score) / apart) ** 2)
    return rows if score.n < rows <= MOST_ROWS else None


def advice(spec: Mapping[str, Any]) -> list[str]:
    """What to do about what was forgotten, by the run's own settings."""
    epochs, rate = spec.get("epochs"), spec.get("learning_rate")
    fewer = f" (this run: {epochs:g})" if isinstance(epochs, int | float) else ""
    smaller = f" (this run: {rate:g})" if isinstance(rate, int | float) else ""
    adapter: Any = spec.get("adapter")
    full = adapter == "full" or adapter == {"type": "full"}
    return [
        "mix general rows into the training data, one in ten to one in five, of the abilities that were lost",
        f"train for fewer epochs{fewer}, or take an earlier checkpoint: orchestrate checkpoints RUN",
        f"take a smaller learning rate{smaller}",
        *(["train an adapter instead of all weights: it changes less"] if full else []),
    ]
