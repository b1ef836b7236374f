"""Comparison: runs side by side, with all that the store has of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from orchestrate import reports
from orchestrate.errors import OrchestrateError
from orchestrate.handle import RunHandle
from orchestrate.spec import JobSpec
from orchestrate.types import Run, Translation

if TYPE_CHECKING:
    from orchestrate.service.orchestrator import Orchestrator


def compare(ft: Orchestrator, runs: Iterable[RunHandle | Run | str]) -> reports.Comparison:
    """As `Orchestrator.compare`."""
    records = [_record(ft, run) for run in runs]
    metrics = {r.id: ft.store.history.metrics(r.id) for r in records}
    evaluations = {r.id: ft.evaluations(r.id) for r in records}
    sent = {r.id: found for r in records if (found := _sent(ft, r)) is not None}
    return reports.compare(records, metrics, evaluations, translations=sent)


def _record(ft: Orchestrator, run: RunHandle | Run | str) -> Run:
    if isinstance(run, RunHandle):
        return run.record
    return ft.store.runs.get(run) if isinstance(run, str) else run


def _sent(ft: Orchestrator, run: Run) -> Translation | None:
    """What a run's settings became; `None` when its backend can no longer be made or tell."""
    try:
        return ft.provider(run.provider).translate(JobSpec.parse(run.spec))
    except OrchestrateError:
        return None
