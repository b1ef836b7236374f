"""Runs probes over a tuned model and its base, and says of each ability whether it was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from msgspec.structs import replace

from orchestrate.evaluation import scoring
from orchestrate.evaluation.contenders import Candidate, in_precision
from orchestrate.evaluation.evaluate import with_likelihood
from orchestrate.evaluation.items import Answer, digest_of
from orchestrate.evaluation.regression.harness import Sample
from orchestrate.evaluation.regression.probes import Probe
from orchestrate.evaluation.scoring import Side, paired
from orchestrate.evaluation.statistics import mean, wilson
from orchestrate.evaluation.verdict import points, round_up, rows_to_decide, shown
from orchestrate.paid.asking import Asking
from orchestrate.types import Contender, Difference, MetricUsed, Record, Score

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
    chance: float = 0.0,
) -> ProbeResult:
    """Non-inferiority: the whole interval above the margin is kept, the whole interval below it forgotten.

    Where neither is shown to do better than `chance`, there is no ability to keep.
    """
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
    elif metric.kind != "amount" and not (_able(base, chance) or _able(tuned, chance)) and high >= -margin:
        decision, reason = "not measurable", f"the base itself reaches only {shown(metric, base.value)}"
        if chance:
            reason += f", which is not clearly above the {shown(metric, chance)} of a model without it"
    elif low > -margin:
        decision, reason = "kept", f"{said}, not worse by {allowed} or more"
    elif high < -margin:
        decision, reason = "forgot", f"{said}, worse by more than {allowed}"
    else:
        rows = rows_to_decide(score, -sign * margin)
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
    )


def _able(score: Score, chance: float) -> bool:
    return score.value >= ABLE and score.low > chance


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


class Regression(Record, frozen=True, kw_only=True):
    """What a run kept and what it forgot. `tuned` and `base` say who answered."""

    run_id: str
    created_at: datetime
    tuned: Contender
    base: Contender
    results: tuple[ProbeResult, ...]
    advice: tuple[str, ...] = ()
    """What to do, where something was forgotten."""
    notes: tuple[str, ...] = ()
    usd: Decimal | None = None

    @property
    def forgotten(self) -> list[ProbeResult]:
        return [r for r in self.results if r.decision == "forgot"]

    @property
    def settled(self) -> bool:
        """Whether something was kept, nothing was forgotten and nothing is open."""
        found = {r.decision for r in self.results}
        return "kept" in found and found <= {"kept", "not measurable"}


def asked(candidate: Candidate, probes: Sequence[Probe], asking: Asking) -> list[Side]:
    """Asks a candidate all probes. Raises what `Asking.ask` does."""
    return [Side(candidate.contender.name, _answers(probe, candidate, asking)) for probe in probes]


def probed(probe: Probe, tuned: Side, base: Side) -> ProbeResult:
    """Compares the answers of both."""
    mine, theirs = tuned.name, base.name
    found = scoring.score(probe.items, [tuned, base], [probe.metric], {mine: theirs})
    by_name = {m.contender: m.score for m in found.measures if not m.slice}
    [apart] = [d for d in found.differences if not d.slice]
    result = judged(
        probe.name,
        probe.title,
        probe.metric.used,
        by_name[theirs],
        by_name[mine],
        apart,
        probe.margin,
        probe.chance,
    )
    return replace(result, items_digest=digest_of(probe.items))


def _answers(probe: Probe, candidate: Candidate, asking: Asking) -> list[tuple[Answer, ...]]:
    if probe.needs == "likelihood":
        return with_likelihood(probe.items, [(Answer(text=""),)] * len(probe.items), candidate)
    return [(answer,) for answer in asking.ask(candidate.respondent, candidate.questions(probe.items, 1))]


def compared(
    task: str, tuned: Sequence[Sample], base: Sequence[Sample], names: tuple[str, str], margin: float
) -> ProbeResult:
    """Samples of a task of lm-eval, paired by document; its first metric counts."""
    before = dict(base)
    pairs = [(id, scores, before[id]) for id, scores in tuned if id in before and scores]
    first = next(iter(pairs[0][1])) if pairs else "score"
    values = [(mine[first], theirs[first]) for _, mine, theirs in pairs if first in theirs]
    right = all(v in (0.0, 1.0) for pair in values for v in pair)
    metric = MetricUsed(name=first, kind="right-or-wrong" if right else "graded")
    apart = paired(metric, values, [id for id, _, _ in pairs], *names, alone=right)
    return judged(
        f"lm-eval:{task}",
        f"{len(values)} documents of lm-eval's task {task}",
        metric,
        _score([b for _, b in values], right),
        _score([a for a, _ in values], right),
        apart,
        margin,
    )


def _score(values: Sequence[float], right: bool) -> Score:
    return wilson(round(sum(values)), len(values)) if right else mean(values, None, (0.0, 1.0))


def regression(
    run_id: str,
    now: datetime,
    candidates: tuple[Candidate, Candidate],
    sides: Sequence[Sequence[Side]],
    results: Sequence[ProbeResult],
    asking: Asking,
    spec: Mapping[str, Any],
    notes: Sequence[str],
) -> Regression:
    tuned, base = (
        in_precision(c.contender, [answer for side in own for one in side.answers for answer in one])
        for c, own in zip(candidates, sides, strict=True)
    )
    lost = any(r.decision == "forgot" for r in results)
    priced = all(c.respondent.price is not None for c in candidates)
    return Regression(
        run_id=run_id,
        created_at=now,
        tuned=tuned,
        base=base,
        results=tuple(results),
        advice=tuple(advice(spec)) if lost else (),
        notes=(*notes, *([str(missing)] if (missing := asking.purse.lost()) else ())),
        usd=asking.purse.spent_usd if priced else None,
    )
