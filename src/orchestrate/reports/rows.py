"""The rows that every format of a comparison shows."""

from __future__ import annotations

from orchestrate import text
from orchestrate.reports import scores
from orchestrate.reports.records import (
    Compared,
    ComparedRuns,
    RunScore,
    bill_error,
    bill_word,
    billed,
    quoted,
)

PROOF = "served as trained"
"""The row of the badge."""
NOT_COMPARABLE = "These runs are not comparable in every respect"


def status(compared: Compared) -> str:
    early = " (stopped early)" if compared.run.early_stopped else ""
    return f"{compared.run.status.value}{early}"


def facts(comparison: ComparedRuns) -> list[tuple[str, list[str]]]:
    """(name, one value for each run), in the order in which they are read; of what no run has there is no
    row."""
    found = [*_identity(comparison), *_measured(comparison), *money(comparison), *_trained(comparison)]
    return _told([*found, (PROOF, [c.proof or text.NOTHING for c in comparison.runs])])


Facts = list[tuple[str, list[str]]]


def _told(found: Facts) -> Facts:
    return [(name, values) for name, values in found if any(v != text.NOTHING for v in values)]


def _identity(comparison: ComparedRuns) -> Facts:
    runs = comparison.runs
    return [
        ("run", [c.run.id for c in runs]),
        ("backend", [c.run.provider for c in runs]),
        ("model", [c.run.model for c in runs]),
        ("status", [status(c) for c in runs]),
        ("data", [c.run.dataset_digest[:12] for c in runs]),
    ]


def money(comparison: ComparedRuns) -> Facts:
    """What training and answers cost. What a sandbox would bill is never called billed."""
    runs = comparison.runs
    newest = [newest_score(c) for c in runs]
    found: Facts = [("quoted", [text.money(quoted(c)) for c in runs])]
    for word in ("billed", "would bill"):
        mine = [text.money(billed(c)) if bill_word(c) == word else text.NOTHING for c in runs]
        found.append((word, mine))
    found += [
        ("bill from", [c.run.bill.origin if c.run.bill else text.NOTHING for c in runs]),
        ("quote error", [bill_error(c) for c in runs]),
        ("billed tokens", [text.count(c.billed_tokens) for c in runs]),
        ("cost an answer", [scores.cost_of_answer(r.contender) if r else text.NOTHING for r in newest]),
        ("serving", [c.serving or text.NOTHING for c in runs]),
    ]
    return _told(found)


def _trained(comparison: ComparedRuns) -> Facts:
    runs = comparison.runs
    return [
        ("time, created to end", [text.duration(c.seconds) for c in runs]),
        ("trained tokens", [text.count(c.trained_tokens) for c in runs]),
        ("tokens/s", [text.count(c.tokens_per_second) for c in runs]),
        ("train loss", [text.loss(c.train_loss) for c in runs]),
        ("valid loss", [text.loss(c.valid_loss) for c in runs]),
        ("reward", [text.loss(c.reward) for c in runs]),
    ]


def _measured(comparison: ComparedRuns) -> Facts:
    runs = comparison.runs
    found: Facts = []
    for name in metrics(comparison):
        results = [result(c, name) for c in runs]
        found += [
            (f"{name}, compared with", [_rival(r) for r in results]),
            (f"{name}, tuned", [text.score(r.score) if r else text.NOTHING for r in results]),
            (f"{name}, difference", [_difference(r) for r in results]),
            (f"{name}, rows", [_asked(r) for r in results]),
        ]
    newest = [newest_score(c) for c in runs]
    return [
        *found,
        ("verdict", [verdict(r) for r in newest]),
        ("forgot", [_forgot(c) for c in runs]),
        ("answered by", [r.contender.answered_by if r else text.NOTHING for r in newest]),
        ("time an answer", [text.duration(r.contender.seconds) if r else text.NOTHING for r in newest]),
    ]


def newest_score(compared: Compared) -> RunScore | None:
    """In the metric that decides, where it was measured."""
    newest = max(compared.scores, key=lambda s: s.evaluation.created_at, default=None)
    if newest is None:
        return None
    return result(compared, newest.evaluation.metrics[0].name) or newest


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


def verdict(found: RunScore | None) -> str:
    if found is None:
        return text.NOTHING
    given = [v for v in found.evaluation.verdicts if v.contender == found.contender.name]
    return given[0].decision if given else text.NOTHING


def settings(comparison: ComparedRuns) -> list[tuple[str, list[str], bool]]:
    """(setting, one value for each run, whether they differ because somebody chose so); those come first.
    What differs only as each host has a default of its own is nobody's choice."""
    chosen = {name for c in comparison.runs for name in c.chosen}
    rows = [
        (name, [c.settings.get(name, text.NOTHING) for c in comparison.runs])
        for name in comparison.setting_names
    ]
    marked = [(name, values, name in chosen and len(set(values)) > 1) for name, values in rows]
    return sorted(marked, key=lambda row: (not row[2], row[0]))
