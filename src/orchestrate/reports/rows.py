"""The rows that every format of a comparison shows."""

from __future__ import annotations

from orchestrate import text
from orchestrate.reports.records import Compared, ComparedRuns, bill_error, billed, quoted
from orchestrate.types import EvaluationResult

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
    found += [(f"{name}, base", [_score(c, name, base=True) for c in runs]) for name in metrics(comparison)]
    found += [(f"{name}, tuned", [_score(c, name) for c in runs]) for name in metrics(comparison)]
    found.append(("serving", [c.serving or text.NOTHING for c in runs]))
    return [(name, values) for name, values in found if any(v != text.NOTHING for v in values)]


def metrics(comparison: ComparedRuns) -> list[str]:
    return sorted({e.metric for c in comparison.runs for e in c.evaluations})


def result(compared: Compared, metric: str) -> EvaluationResult | None:
    """The newest result of one metric."""
    found = [e for e in compared.evaluations if e.metric == metric]
    return max(found, key=lambda e: e.created_at) if found else None


def _score(compared: Compared, metric: str, *, base: bool = False) -> str:
    found = result(compared, metric)
    return text.NOTHING if found is None else text.score(found.base if base else found.tuned)


def settings(comparison: ComparedRuns) -> list[tuple[str, list[str], bool]]:
    """(setting, one value for each run, whether they differ); those that differ come first."""
    rows = [
        (name, [c.settings.get(name, text.NOTHING) for c in comparison.runs])
        for name in comparison.setting_names
    ]
    marked = [(name, values, len(set(values)) > 1) for name, values in rows]
    return sorted(marked, key=lambda row: (not row[2], row[0]))
