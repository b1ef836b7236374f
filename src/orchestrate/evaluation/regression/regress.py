"""Runs probes over a tuned model and its base, and says of each ability whether it was kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

from orchestrate.evaluation import scoring
from orchestrate.evaluation.contenders import Candidate, in_precision
from orchestrate.evaluation.evaluate import with_likelihood
from orchestrate.evaluation.items import Answer, digest_of
from orchestrate.evaluation.regression.harness import Sample
from orchestrate.evaluation.regression.judging import ProbeResult, advice, judged
from orchestrate.evaluation.regression.probes import Probe
from orchestrate.evaluation.scoring import Side, paired
from orchestrate.evaluation.statistics import mean, wilson
from orchestrate.paid.asking import Asking
from orchestrate.types import Contender, MetricUsed, Record, Score


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
    digest = digest_of(probe.items)
    return judged(
        probe.name,
        probe.title,
        probe.metric.used,
        by_name[theirs],
        by_name[mine],
        apart,
        probe.margin,
        digest,
    )


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
