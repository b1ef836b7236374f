"""The rows that every format of a comparison shows."""

from __future__ import annotations

from orchestrate import text
from orchestrate.reports import scores
from orchestrate.reports.records import Compared, ComparedRuns, RunScore, bill_error, billed, quoted

PROOF = "served as trained"
"""The row of the badge."""
NOT_COMPARABLE = "These runs are not comparable in every respect"


def status(compared: Compared) -> str:
    early = " (stopped early)" if compared.run.early_stopped else ""
    return f"{compared.run.status.value}{early}"


def facts(comparison: ComparedRuns) -> list[tuple[str, list[str]]]:
    """(name, one value for each run), in the order in which they are read."""
    runs = comparison.runs
    found: list[tuple[str, list[str]]] = [
        ("run", [c.run.id for c in runs]),
        ("backend", [c.run.provider for c in runs]),
        ("model", [c.run.model for c in runs]),
        ("status", [status(c) for c in runs]),
        ("data", [c.run.dataset_digest[:12] for c in runs]),
        ("quoted", [text.money(quoted(c)) for c in runs]),
        ("billed", [text.money(billed(c)) for c in runs]),
        ("bill from", [c.run.bill.origin if c.run.bill else text.NOTHING for c in runs]),
        ("quote error", [bill_error(c) for c in runs]),
        ("time", [text.duration(c.seconds) for c in runs]),
        ("tokens", [text.count(c.tokens) for c in runs]),
        ("tokens/s", [text.count(c.tokens_per_second) for c in runs]),
        ("train loss", [text.loss(c.train_loss) for c in runs]),
        ("valid loss", [text.loss(c.valid_loss) for c in runs]),
        ("reward", [text.loss(c.reward) for c in runs]),
    ]
    for name in metrics(comparison):
        results = [result(c, name) for c in runs]
        found += [
            (f"{name}, compared with", [_rival(r) for r in results]),
            (f"{name}, tuned", [text.score(r.score) if r else text.NOTHING for r in results]),
            (f"{name}, difference", [_difference(r) for r in results]),
            (f"{name}, rows", [_asked(r) for r in results]),
        ]
    newest = [max(c.scores, key=lambda r: r.evaluation.created_at, default=None) for c in runs]
    found += [
        ("verdict", [_verdict(r) for r in newest]),
        ("forgot", [_forgot(c) for c in runs]),
        ("answered by", [r.contender.answered_by if r else text.NOTHING for r in newest]),
        ("cost an answer", [scores.cost_of_answer(r.contender) if r else text.NOTHING for r in newest]),
        ("time an answer", [text.duration(r.contender.seconds) if r else text.NOTHING for r in newest]),
    ]
    found.append((PROOF, [c.proof or text.NOTHING for c in runs]))
    found.append(("serving", [c.serving or text.NOTHING for c in runs]))
    return [(name, values) for name, values in found if any(v != text.NOTHING for v in values)]


def metrics(comparison: ComparedRuns) -> list[str]:
    return sorted({e.metric.name for c in comparison.runs for e in c.scores})


def result(compared: Compared, metric: str) -> RunScore | None:
    """The newest result of one metric."""
    found = [e for e in compared.scores if e.metric.name == metric]
    return max(found, key=lambda e: e.evaluation.created_at) if found else None


def _rival(found: RunScore | None) -> str:
    if found is None or found.difference is None:
        return text.NOTHING
    return f"{found.difference.against} {text.score(found.rival_score)}"


def _difference(found: RunScore | None) -> str:
    if found is None or found.difference is None:
        return text.NOTHING
    said = scores.interval(found.metric, found.difference.score, signed=True)
    return f"{said}, p {scores.probability(found.difference)}"


def _asked(found: RunScore | None) -> str:
    if found is None:
        return text.NOTHING
    digest, count = found.rows
    return f"{count:,} ({digest[:12]})"


def _forgot(compared: Compared) -> str:
    """`languages`, or how many abilities were kept and how many are open."""
    probed = compared.regression
    if probed is None:
        return text.NOTHING
    if probed.forgotten:
        return text.joined([r.probe for r in probed.forgotten])
    kept = sum(r.decision == "kept" for r in probed.results)
    open_ = sum(r.decision == "inconclusive" for r in probed.results)
    return f"nothing shown: {kept} kept, {open_} inconclusive"


def _verdict(found: RunScore | None) -> str:
    if found is None:
        return text.NOTHING
    given = [v for v in found.evaluation.verdicts if v.contender == found.contender.name]
    return given[0].decision if given else text.NOTHING


def settings(comparison: ComparedRuns) -> list[tuple[str, list[str], bool]]:
    """(setting, one value for each run, whether they differ); those that differ come first."""
    rows = [
        (name, [c.settings.get(name, text.NOTHING) for c in comparison.runs])
        for name in comparison.setting_names
    ]
    marked = [(name, values, len(set(values)) > 1) for name, values in rows]
    return sorted(marked, key=lambda row: (not row[2], row[0]))
