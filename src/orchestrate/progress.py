"""How far a run has come, as the terminal and the pages show it: a word, a share, the time left, the cost so
far."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal

from orchestrate.types import JobStatus, Run, SubmitPhase

_STAGES = {
    SubmitPhase.INTENT: "not sent",
    SubmitPhase.UPLOADED: "not sent",
    SubmitPhase.SUBMITTING: "outcome unknown",
    SubmitPhase.OUTCOME_UNKNOWN: "outcome unknown",
    SubmitPhase.SUBMITTED: "submitted",
    SubmitPhase.REFUSED: "refused",
}


def stage(run: Run) -> str:
    """The status as last seen; before the host was asked for it, how far the submit came."""
    return _STAGES[run.phase] if run.status is JobStatus.SUBMITTING else run.status.value


def share_done(run: Run) -> float:
    """0 to 1, by steps where they are known, else by the host's percentage."""
    if run.status is JobStatus.SUCCEEDED:
        return 1.0
    if run.total_steps:
        return min(1.0, (run.step or 0) / run.total_steps)
    return min(1.0, (run.percent or 0.0) / 100)


def seconds_left(run: Run, now: datetime) -> float | None:
    """From the share of steps done since the start; `None` until there is one."""
    if run.status is not JobStatus.RUNNING or run.started_at is None or not run.step or not run.total_steps:
        return None
    done = run.step / run.total_steps
    return (now - run.started_at).total_seconds() * (1 - done) / done if done < 1 else 0.0


def seconds_taken(run: Run, now: datetime) -> float | None:
    """From created to ended, or until now."""
    if run.status.terminal and run.finished_at is None:
        return None
    return ((run.finished_at or now) - run.created_at).total_seconds()


def cost_so_far(run: Run) -> Decimal | None:
    """The bill when there is one, else the quoted price times the share of the work done."""
    if run.bill is not None:
        return run.bill.usd
    expected = None if run.quote is None or run.quote.unavailable else run.quote.expected_usd
    if expected is None or not run.total_steps:
        return None
    return expected * Decimal(run.step or 0) / Decimal(run.total_steps)
