"""Scores, differences and contenders as cells, for every format that shows an evaluation."""

from __future__ import annotations

from orchestrate import text
from orchestrate.types import Contender, Difference, Evaluation, Measure, MetricUsed, Score

SCORE_HEAD = ("metric", "contender", "score (95%)", "n", "against", "difference (95%)", "gained", "lost", "p")
CONTENDER_HEAD = (
    "contender",
    "answered by",
    "answers",
    "failed",
    "tokens in + out",
    "$ an answer",
    "seconds",
)


def value(metric: MetricUsed, number: float) -> str:
    """`0.875`, or an amount with its unit."""
    return f"{number:.4g} {metric.unit}".strip() if metric.kind == "amount" else f"{number:.3f}"


def interval(metric: MetricUsed, score: Score, *, signed: bool = False) -> str:
    """`0.875 (0.801 to 0.927)`."""
    if metric.kind == "amount":
        low, middle, high = (
            f"{n:+.4g}" if signed else f"{n:.4g}" for n in (score.low, score.value, score.high)
        )
        return f"{middle} ({low} to {high}) {metric.unit}".strip()
    form = "+.3f" if signed else ".3f"
    return f"{score.value:{form}} ({score.low:{form}} to {score.high:{form}})"


def probability(difference: Difference) -> str:
    """The corrected p-value, where there is one."""
    p = difference.p_corrected if difference.p_corrected is not None else difference.p_value
    return text.NOTHING if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def score_rows(evaluation: Evaluation, *, sliced: bool = False) -> list[tuple[str, ...]]:
    """Under `SCORE_HEAD`: a row for each contender in each metric, of all items or of the slices."""
    used = {metric.name: metric for metric in evaluation.metrics}
    return [
        _score_row(evaluation, used[m.metric], m)
        for m in evaluation.measures
        if bool(m.slice) == sliced and m.metric in used
    ]


def _score_row(evaluation: Evaluation, metric: MetricUsed, m: Measure) -> tuple[str, ...]:
    name = f"{m.metric}, {m.slice}" if m.slice else m.metric
    cells = (name, m.contender, interval(metric, m.score), f"{m.score.n:,}")
    d = evaluation.difference(m.contender, m.metric, m.slice)
    if d is None:
        return (*cells, text.NOTHING, text.NOTHING, text.NOTHING, text.NOTHING, text.NOTHING)
    binary = metric.kind == "right-or-wrong"
    gained, lost = (str(n) if binary else text.NOTHING for n in (d.gained, d.lost))
    return (*cells, d.against, interval(metric, d.score, signed=True), gained, lost, probability(d))


def contender_rows(evaluation: Evaluation) -> list[tuple[str, ...]]:
    """Under `CONTENDER_HEAD`."""
    return [_contender_row(c) for c in evaluation.contenders]


def _contender_row(c: Contender) -> tuple[str, ...]:
    tokens = text.NOTHING
    if c.prompt_tokens is not None and c.completion_tokens is not None:
        tokens = f"{c.prompt_tokens:,} + {c.completion_tokens:,}"
    seconds = text.NOTHING
    if c.seconds is not None:
        seconds = f"{c.seconds:.2f}, 95% within {c.seconds_p95 or c.seconds:.2f}"
    return (
        c.name,
        c.answered_by,
        f"{c.answers:,}",
        f"{c.failed:,}",
        tokens,
        cost_of_answer(c),
        seconds,
    )


def cost_of_answer(c: Contender) -> str:
    """`$0.0012`, with what it goes by where an hour is billed and no token."""
    if c.usd_per_hour is None:
        return text.money(c.usd_per_answer)
    if c.usd_per_answer is None:
        return f"open: {text.money(c.usd_per_hour)} an hour"
    basis = "told traffic" if c.answers_per_hour else "this pace"
    return f"{text.money(c.usd_per_answer)} at {basis}, {text.money(c.usd_per_hour)} an hour"


def what_was_asked(evaluation: Evaluation) -> str:
    """`200 items of test.jsonl (3f9a12...), greedy`: what every number of an evaluation is over."""
    digest = (evaluation.items_digest or evaluation.dataset_digest)[:12]
    said = f"{text.count(evaluation.items, 'item')} of {evaluation.dataset} ({digest})"
    if evaluation.cluster:
        said += f", in {text.count(evaluation.clusters or 0, 'group')} by {evaluation.cluster}"
    way = evaluation.sampling
    how = "greedy" if not way.temperature else f"temperature {way.temperature:g}"
    times = f", {way.samples} samples each" if way.samples > 1 else ""
    return f"{said}, {how}{times}, {evaluation.created_at:%Y-%m-%d %H:%M} UTC"
