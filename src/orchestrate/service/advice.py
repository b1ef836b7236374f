"""Advice: prompting, few-shot, retrieval or tuning."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate.data import Dataset
from orchestrate.errors import UsageError
from orchestrate.reports import facts
from orchestrate.reports.advice import Advice as Advice
from orchestrate.reports.advice import Needs as Needs
from orchestrate.reports.advice import advise as weigh
from orchestrate.types import Feature

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrate.providers.base import Provider
    from orchestrate.quoting import Ownership
    from orchestrate.service.orchestrator import Orchestrator
    from orchestrate.types import Score


def advise(
    file: str | Path, needs: Needs, totals: Sequence[Ownership] = (), backends: Sequence[Provider] = ()
) -> Advice:
    """As `Orchestrator.advise`. Of prompts for RFT it is told which of the `backends` have it no more."""
    dataset = Dataset.open(file)
    found = weigh(facts.measure(dataset), needs, totals)
    if dataset.kind != "rl":
        return found
    reasons = {b.name: b.ended(date.today()).get(Feature.RFT) for b in backends}
    ended = (f"{name} has no RFT any more: {reason}" for name, reason in reasons.items() if reason)
    return replace(found, warnings=(*found.warnings, *ended))


def base_score(ft: Orchestrator, run: str) -> Score:
    """The newest score of the model that a run was tuned from. Raises `UsageError` where there is none."""
    record = ft.run(run).record
    scored = [(e.created_at, e.base) for e in ft.evaluations(record.id) if e.base is not None]
    if not scored:
        raise UsageError(
            f"run {record.id} has no score of its base model", fix=f"orchestrate eval {record.id} --test FILE"
        )
    return max(scored, key=lambda pair: pair[0])[1]
