"""A run's progress for the terminal and the web pages: stage, completed share, remaining time, cost so
far."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal

from orchestrate.types import JobStatus, MetricPoint, Run, SubmitPhase

STAGES = {
    SubmitPhase.INTENT: "not sent",
    SubmitPhase.UPLOADED: "not sent",
    SubmitPhase.SUBMITTING: "outcome unknown",
    SubmitPhase.OUTCOME_UNKNOWN: "outcome unknown",
    SubmitPhase.SUBMITTED: "submitted",
    SubmitPhase.REFUSED: "refused",
}
"""Names of the stages of a submission, shown until the host reports a status."""


def stage(run: Run) -> str:
    """Return the last known status, or the stage of the submission if the host has not reported a status
    yet."""
    return STAGES[run.phase] if run.status is JobStatus.SUBMITTING else run.status.value


def step_of(run: Run, metrics: Sequence[MetricPoint] = ()) -> int:
    """Return the step that the host reports, or else the last step with metrics."""
    return run.step or (metrics[-1].step if metrics else 0)


def share_done(run: Run, metrics: Sequence[MetricPoint] = ()) -> float:
    """Return the completed share of the work, from 0 to 1. It is based on the steps that the host reports,
    otherwise on the host's percentage, otherwise on the expected number of steps."""
    if run.status is JobStatus.SUCCEEDED:
        return 1.0
    total = run.total_steps or (run.expected_steps if run.percent is None else None)
    return min(1.0, step_of(run, metrics) / total if total else (run.percent or 0.0) / 100)


def seconds_left(run: Run, now: datetime, metrics: Sequence[MetricPoint] = ()) -> float | None:
    """Estimate the remaining seconds from the share completed since the start. Returns `None` if nothing is
    completed yet."""
    done = share_done(run, metrics)
    if run.status is not JobStatus.RUNNING or run.started_at is None or not done:
        return None
    return (now - run.started_at).total_seconds() * (1 - done) / done


def seconds_taken(run: Run, now: datetime) -> float | None:
    """Return the seconds from the run's creation to its end, or to now if it has not ended."""
    if run.status.terminal and run.finished_at is None:
        return None
    return ((run.finished_at or now) - run.created_at).total_seconds()


def cost_so_far(run: Run, metrics: Sequence[MetricPoint] = ()) -> Decimal | None:
    """Return the billed amount. If there is no bill yet, estimates the cost as the quoted price times the
    completed share of the work."""
    if run.bill is not None:
        return run.bill.usd
    expected = None if run.quote is None else run.quote.expected_usd
    if expected is None or not (run.total_steps or run.expected_steps or run.percent):
        return None
    return expected * Decimal(str(share_done(run, metrics)))
