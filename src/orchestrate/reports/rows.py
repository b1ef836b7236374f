"""Table rows that every output format of a comparison shares."""

from __future__ import annotations

from orchestrate import text
from orchestrate.reports.records import (
    BILLED,
    WOULD_BILL,
    Compared,
    ComparedRuns,
    RunScore,
    bill_error,
    billed,
    price_basis,
    quoted,
)
from orchestrate.types import Contender, Difference, Evaluation, Measure, MetricUsed, Score

RUN, MODEL, STATUS = "run", "model", "status"
VERDICT, FORGOT = "verdict", "forgot"
QUOTED, COST_PER_ANSWER, SERVING = "quoted", "cost per answer", "serving"
CREATION_TO_END = "time from creation to end"
TRAIN_LOSS, VALID_LOSS, REWARD = "train loss", "valid loss", "reward"
PROOF = "served as trained"
"""Name of the row that shows the proof badge."""
DECIDING = frozenset(
    {RUN, MODEL, STATUS, VERDICT, FORGOT, QUOTED, BILLED, WOULD_BILL, COST_PER_ANSWER, SERVING}
    | {CREATION_TO_END, TRAIN_LOSS, VALID_LOSS, REWARD, PROOF}
)
"""Names of the rows, other than scores, that help to choose a run. The other rows describe how the runs were
made."""
_RIVAL, _TUNED, _DIFFERENCE = "compared with", "tuned", "difference"
SCORE_HEAD = ("metric", "contender", "score (95%)", "n", "against", "difference (95%)", "gained", "lost", "p")
CONTENDER_HEAD = (
    "contender",
    "answered by",
    "answers",
    "failed",
    "tokens in + out",
    "$ per answer",
    "seconds",
)


def value(metric: MetricUsed, number: float) -> str:
    """Format a score: `0.875`, or a number with its unit if the metric is an amount."""
    return f"{number:.4g} {metric.unit}".strip() if metric.kind == "amount" else f"{number:.3f}"


def interval(metric: MetricUsed, score: Score, *, signed: bool = False) -> str:
    """Format a score with its confidence interval: `0.875 (0.801 to 0.927)`."""
    if metric.kind == "amount":
        low, middle, high = (
            f"{n:+.4g}" if signed else f"{n:.4g}" for n in (score.low, score.value, score.high)
        )
        return f"{middle} ({low} to {high}) {metric.unit}".strip()
    form = "+.3f" if signed else ".3f"
    return f"{score.value:{form}} ({score.low:{form}} to {score.high:{form}})"


def probability(difference: Difference) -> str:
    """Format the p-value that is corrected for multiple tests or, if there is none, the uncorrected
    p-value."""
    p = difference.p_corrected if difference.p_corrected is not None else difference.p_value
    return text.NOTHING if p is None else "<0.0001" if p < 0.0001 else f"{p:.4f}"


def score_rows(evaluation: Evaluation, *, sliced: bool = False) -> list[tuple[str, ...]]:
    """Return the table rows for `SCORE_HEAD`, one per contender and metric. With `sliced`, returns the rows
    for slices instead."""
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
    """Return the table rows for `CONTENDER_HEAD`."""
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
    """Format the cost of an answer, such as `$0.0012`. For models billed hourly, adds the assumed traffic and
    the hourly price."""
    if c.usd_per_hour is None:
        return text.money(c.usd_per_answer)
    if c.usd_per_answer is None:
        return f"unknown: {text.money(c.usd_per_hour)} per hour"
    basis = "the given traffic" if c.answers_per_hour else "this pace"
    return f"{text.money(c.usd_per_answer)} at {basis}, {text.money(c.usd_per_hour)} per hour"


def evaluation_basis(evaluation: Evaluation) -> str:
    """Describe the basis of an evaluation: `200 items of test.jsonl (3f9a12...), greedy`."""
    digest = (evaluation.items_digest or evaluation.dataset_digest)[:12]
    basis = f"{text.count(evaluation.items, 'item')} of {evaluation.dataset} ({digest})"
    if evaluation.cluster:
        basis += f", in {text.count(evaluation.clusters or 0, 'group')} by {evaluation.cluster}"
    way = evaluation.sampling
    how = "greedy" if not way.temperature else f"temperature {way.temperature:g}"
    how += "" if way.response_format is None else f", held to {way.response_format['type']}"
    times = f", {way.samples} samples each" if way.samples > 1 else ""
    return f"{basis}, {how}{times}, {evaluation.created_at:%Y-%m-%d %H:%M} UTC"


NOT_COMPARABLE = "These runs are not fully comparable"


def status(compared: Compared) -> str:
    early = " (stopped early)" if compared.run.early_stopped else ""
    return f"{compared.run.status.value}{early}"


def facts(comparison: ComparedRuns) -> list[tuple[str, list[str]]]:
    """Return the properties of the runs as (name, [one value per run]), in display order. Omits properties
    that no run has."""
    found = [*_identity(comparison), *_measured(comparison), *money(comparison), *_trained(comparison)]
    return _shown([*found, (PROOF, [c.proof or text.NOTHING for c in comparison.runs])])


Facts = list[tuple[str, list[str]]]


def _shown(found: Facts) -> Facts:
    return [(name, values) for name, values in found if any(v != text.NOTHING for v in values)]


def _identity(comparison: ComparedRuns) -> Facts:
    runs = comparison.runs
    return [
        (RUN, [c.run.id for c in runs]),
        ("backend", [c.run.provider for c in runs]),
        (MODEL, [c.run.model for c in runs]),
        (STATUS, [status(c) for c in runs]),
        ("data", [c.run.dataset_digest[:12] for c in runs]),
    ]


def money(comparison: ComparedRuns) -> Facts:
    """Return the costs of training and of answers. The simulated bill of a sandbox is labeled `would
    bill`."""
    runs = comparison.runs
    newest = [newest_score(c) for c in runs]
    found: Facts = [(QUOTED, [text.money(quoted(c)) for c in runs])]
    for word in (BILLED, WOULD_BILL):
        mine = [text.money(billed(c)) if price_basis(c) == word else text.NOTHING for c in runs]
        found.append((word, mine))
    found += [
        ("bill from", [c.run.bill.origin if c.run.bill else text.NOTHING for c in runs]),
        ("quote error", [bill_error(c) for c in runs]),
        ("billed tokens", [text.count(c.billed_tokens) for c in runs]),
        (COST_PER_ANSWER, [cost_of_answer(r.contender) if r else text.NOTHING for r in newest]),
        (SERVING, [c.serving or text.NOTHING for c in runs]),
    ]
    return _shown(found)


def _trained(comparison: ComparedRuns) -> Facts:
    runs = comparison.runs
    return [
        (CREATION_TO_END, [text.duration(c.seconds) for c in runs]),
        ("trained tokens", [text.count(c.trained_tokens) for c in runs]),
        ("tokens/s", [text.count(c.tokens_per_second) for c in runs]),
        (TRAIN_LOSS, [text.loss(c.train_loss) for c in runs]),
        (VALID_LOSS, [text.loss(c.valid_loss) for c in runs]),
        (REWARD, [text.loss(c.reward) for c in runs]),
    ]


def _measured(comparison: ComparedRuns) -> Facts:
    runs = comparison.runs
    found: Facts = []
    for name in metrics(comparison):
        results = [result(c, name) for c in runs]
        found += [
            (f"{name}, {_RIVAL}", [_rival(r) for r in results]),
            (f"{name}, {_TUNED}", [text.score(r.score) if r else text.NOTHING for r in results]),
            (f"{name}, {_DIFFERENCE}", [_difference(r) for r in results]),
            (f"{name}, rows", [_scored_rows(r) for r in results]),
        ]
    newest = [newest_score(c) for c in runs]
    return [
        *found,
        (VERDICT, [verdict(r) for r in newest]),
        (FORGOT, [_forgot(c) for c in runs]),
        ("answered by", [r.contender.answered_by if r else text.NOTHING for r in newest]),
        ("time per answer", [text.duration(r.contender.seconds) if r else text.NOTHING for r in newest]),
    ]


def deciding(comparison: ComparedRuns) -> set[str]:
    """Return the names of the table rows that help to choose a run, including the score rows."""
    scores = (f"{name}, {of}" for name in metrics(comparison) for of in (_RIVAL, _TUNED, _DIFFERENCE))
    return {*DECIDING, *scores}


def newest_score(compared: Compared) -> RunScore | None:
    """Return the newest score on the deciding metric, or `None` if it was not measured."""
    newest = max(compared.scores, key=lambda s: s.evaluation.created_at, default=None)
    if newest is None:
        return None
    return result(compared, newest.evaluation.metrics[0].name) or newest


def metrics(comparison: ComparedRuns) -> list[str]:
    return sorted({e.metric.name for c in comparison.runs for e in c.scores})


def result(compared: Compared, metric: str) -> RunScore | None:
    """Return the newest score on one metric, or `None` if it was not measured."""
    found = [e for e in compared.scores if e.metric.name == metric]
    return max(found, key=lambda e: e.evaluation.created_at) if found else None


def _rival(found: RunScore | None) -> str:
    if found is None or found.difference is None:
        return text.NOTHING
    return f"{found.difference.against} {text.score(found.rival_score)}"


def _difference(found: RunScore | None) -> str:
    if found is None or found.difference is None:
        return text.NOTHING
    gap = interval(found.metric, found.difference.score, signed=True)
    return f"{gap}, p {probability(found.difference)}"


def _scored_rows(found: RunScore | None) -> str:
    if found is None:
        return text.NOTHING
    digest, count = found.rows
    return f"{count:,} ({digest[:12]})"


def _forgot(compared: Compared) -> str:
    """Describe forgotten abilities, such as `languages`, or count the retained and inconclusive ones."""
    probed = compared.regression
    if probed is None:
        return text.NOTHING
    if probed.forgotten:
        return text.joined([r.probe for r in probed.forgotten])
    kept = sum(r.decision == "kept" for r in probed.results)
    open_ = sum(r.decision == "inconclusive" for r in probed.results)
    return f"no forgetting shown: {kept} retained, {open_} inconclusive"


def verdict(found: RunScore | None) -> str:
    if found is None:
        return text.NOTHING
    given = [v for v in found.evaluation.verdicts if v.contender == found.contender.name]
    return given[0].decision if given else text.NOTHING


def settings(comparison: ComparedRuns) -> list[tuple[str, list[str], bool]]:
    """Return the settings as (name, [one value per run], chosen), with chosen settings first. `chosen` is
    True if the runs' values differ and a user explicitly set at least one of them. It is False if only the
    hosts' defaults differ."""
    chosen = {name for c in comparison.runs for name in c.chosen}
    rows = [
        (name, [c.settings.get(name, text.NOTHING) for c in comparison.runs])
        for name in comparison.setting_names
    ]
    marked = [(name, values, name in chosen and len(set(values)) > 1) for name, values in rows]
    return sorted(marked, key=lambda row: (not row[2], row[0]))
