"""Advice: prompting, few-shot, retrieval or tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from orchestrate.data import Dataset
from orchestrate.errors import UsageError
from orchestrate.reports import facts
from orchestrate.reports.advice import Advice as Advice
from orchestrate.reports.advice import Needs as Needs
from orchestrate.reports.advice import advise as weigh

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrate.quoting import Ownership
    from orchestrate.service.orchestrator import Orchestrator
    from orchestrate.types import Score


def advise(file: str | Path, needs: Needs, totals: Sequence[Ownership] = ()) -> Advice:
    """As `Orchestrator.advise`."""
    return weigh(facts.measure(Dataset.open(file)), needs, totals)


def base_score(ft: Orchestrator, run: str) -> Score:
    """The newest score of the model that a run was tuned from. Raises `UsageError` where there is none."""
    record = ft.run(run).record
    scored = [(e.created_at, e.base) for e in ft.evaluations(record.id) if e.base is not None]
    if not scored:
        raise UsageError(
            f"run {record.id} has no score of its base model", fix=f"orchestrate eval {record.id} --test FILE"
        )
    return max(scored, key=lambda pair: pair[0])[1]
