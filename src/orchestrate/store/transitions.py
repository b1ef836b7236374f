"""Transitions of a run: pure functions that take a run and an event, and return the next state of the run.

A run has two states. The *phase* is its position in the submit protocol:

    INTENT -> UPLOADED -> SUBMITTING -> SUBMITTED
                 ^           |  \\
                 |           |   +-> REFUSED           it is certain that no job exists
                 +-----------+-> OUTCOME_UNKNOWN -> SUBMITTED | UPLOADED

The *status* is the job's state on its host. If nothing changes, a function returns the same object that it
was given. An impossible step raises `ImpossibleTransition`."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from decimal import Decimal

import msgspec

from orchestrate.errors import OrchestrateError
from orchestrate.types import Allowance, Bill, Job, JobError, JobHandle, JobStatus, Run, SubmitPhase

UNSENT = frozenset({SubmitPhase.INTENT, SubmitPhase.UPLOADED})
"""Phases in which the host is known not to have a job for this run."""
PAUSED, _DIED = "paused", "interrupted"
"""Two raw statuses of Orchestrate's own engine. `interrupted` means that the worker died, and will be
restarted."""
UNSETTLED = frozenset({SubmitPhase.SUBMITTING, SubmitPhase.OUTCOME_UNKNOWN})
"""Phases in which it is unknown whether the host has a job."""

_EARLY = frozenset({JobStatus.SUBMITTING, JobStatus.VALIDATING})
_FACTS = (
    "started_at",
    "finished_at",
    "tuned_model",
    "trained_tokens",
    "step",
    "total_steps",
    "epoch",
    "percent",
    "error",
)


class ImpossibleTransition(OrchestrateError):
    """Raised if the run's state does not allow this transition."""


class Withdrawn(ImpossibleTransition):
    """Raised if the run was canceled before anything was sent."""

    def __init__(self, run: Run) -> None:
        super().__init__(f"run {run.id} was canceled before anything was sent")


def uploaded(run: Run, at: datetime) -> Run:
    """Record that the data is on the host."""
    if run.phase is SubmitPhase.UPLOADED:
        return run
    _require(run, SubmitPhase.UPLOADED, SubmitPhase.INTENT)
    return _with(run, at, phase=SubmitPhase.UPLOADED)


def submitting(run: Run, at: datetime) -> Run:
    """Record that a create request is about to be sent. From now on, a job may exist."""
    _require(run, SubmitPhase.SUBMITTING, SubmitPhase.UPLOADED)
    if run.released:
        raise ImpossibleTransition(f"run {run.id} has no reserved budget, so it cannot be submitted")
    return _with(run, at, phase=SubmitPhase.SUBMITTING)


def submitted(run: Run, handle: JobHandle, at: datetime) -> Run:
    """Record that the host has the job, according to its response or a search for the run's ref.

    Allowed in every phase, because the host's list takes precedence over the stored state. A run that was
    closed as rejected, withdrawn or abandoned is reopened, because its job is billed. A second, different job
    raises `ImpossibleTransition`.
    """
    if run.job_id is not None:
        if run.job_id == handle.job_id:
            return run
        raise ImpossibleTransition(
            f"run {run.id} already has job {run.job_id}, so job {handle.job_id} cannot be added"
        )
    return _with(
        run,
        at,
        phase=SubmitPhase.SUBMITTED,
        status=JobStatus.SUBMITTING,
        job_id=handle.job_id,
        job_kind=handle.kind,
        finished_at=None,
        error=None,
        abandoned=None,
    )


def outcome_unknown(run: Run, at: datetime) -> Run:
    """Record that the response to the create request was lost."""
    if run.phase is SubmitPhase.OUTCOME_UNKNOWN:
        return run
    _require(run, SubmitPhase.OUTCOME_UNKNOWN, SubmitPhase.SUBMITTING)
    return _with(run, at, phase=SubmitPhase.OUTCOME_UNKNOWN)


def released(run: Run, at: datetime) -> Run:
    """Release the run's reserved budget. Only allowed if nothing was sent for the run and no process is
    working on it."""
    _require(run, run.phase, *UNSENT)
    return run if run.released else _with(run, at, released=True)


def held(run: Run, at: datetime) -> Run:
    """Reserve the run's budget again, because the run will be sent after all."""
    return _with(run, at, released=False) if run.released else run


def not_made(run: Run, at: datetime) -> Run:
    """Record that no job exists: the request was not sent, or the host has no job with this ref after the
    settle time."""
    _require(run, SubmitPhase.UPLOADED, *UNSETTLED)
    return _with(run, at, phase=SubmitPhase.UPLOADED)


def refused(run: Run, error: JobError, at: datetime) -> Run:
    """Record that the host, or a check before sending, rejected the run."""
    _require(run, SubmitPhase.REFUSED, *UNSENT, SubmitPhase.SUBMITTING)
    return _with(run, at, phase=SubmitPhase.REFUSED, status=JobStatus.FAILED, error=error, finished_at=at)


def withdrawn(run: Run, at: datetime) -> Run:
    """Record that the user canceled before anything was sent."""
    _require(run, SubmitPhase.REFUSED, *UNSENT)
    return _with(run, at, phase=SubmitPhase.REFUSED, status=JobStatus.CANCELLED, finished_at=at)


def cancelling(run: Run, at: datetime) -> Run:
    """Record that cancellation was requested from the host."""
    if run.status.terminal or run.status is JobStatus.CANCELLING:
        return run
    _require(run, SubmitPhase.SUBMITTED, SubmitPhase.SUBMITTED)
    return _with(run, at, status=JobStatus.CANCELLING)


def abandoned(run: Run, reason: str, at: datetime) -> Run:
    """Record that the user abandons the run, even if its job continues on the host. The run ends as canceled,
    unless it had already ended."""
    if run.status.terminal:
        return _with(run, at, abandoned=reason)
    return _with(run, at, status=JobStatus.CANCELLED, abandoned=reason, finished_at=at)


def left(run: Run) -> str | None:
    """Return why Orchestrate's own engine paused a run. Reasons include a limit that was reached and a worker
    that was stopped from outside. Returns `None` for a run that isn't paused, that the user paused, or that
    will resume automatically."""
    paused = run.status is JobStatus.PAUSED and run.raw_status == PAUSED
    return run.error.message if paused and run.error else None


def at_rest(run: Run) -> bool:
    """Return True if the run is paused until the user resumes it. While paused, it uses none of its backend's
    resources."""
    return run.status is JobStatus.PAUSED and run.raw_status != _DIED


def observed(run: Run, job: Job, at: datetime) -> Run:
    """Update the run from a response about its job. Responses may be late, repeated or out of order.

    - An ended run keeps its final status. A response with the same status may add missing facts (the model's
      name, the trained tokens). A response with another status is ignored.
    - An unknown status is stored as received, as `UNKNOWN`, and does not end the run.
    - A running job may go back to queued or paused, because hosts requeue and pause jobs. But a job can't go
      back to submitting or validating, a finalizing job can only be canceled or end, and a job that is being
      canceled can only end. A response that contradicts this is outdated and is ignored entirely.
    """
    if run.job_id != job.handle.job_id:
        raise ImpossibleTransition(f"run {run.id} has job {run.job_id}, not {job.handle.job_id}")
    if run.status.terminal:
        return _filled(run, job, at) if job.status is run.status else run
    if not _believable(run.status, job.status):
        return run
    new = {name: value for name in _FACTS if (value := getattr(job, name)) is not None}
    new |= {"status": job.status, "raw_status": job.raw_status}
    if job.early_stopped:
        new["early_stopped"] = True
    if run.status is JobStatus.PAUSED and job.status is not JobStatus.PAUSED and job.error is None:
        new["error"] = None  # why it was paused is over
    if (expected := _expected_steps(run, job)) is not None:
        new["expected_steps"] = expected
    if job.status.terminal and job.finished_at is None:
        new["finished_at"] = at
    if all(getattr(run, name) == value for name, value in new.items()):
        return run
    return _with(run, at, **new)


def billed(bill: Bill) -> Callable[[Run], Run]:
    return lambda run: run if run.bill == bill else msgspec.structs.replace(run, bill=bill)


def estimated(usd: Decimal) -> Callable[[Run], Run]:
    """Return a function that stores the host's cost estimate in a run. The host made this estimate before the
    job was created."""
    return lambda run: msgspec.structs.replace(run, estimate_usd=usd)


def given(run: Run, at: datetime, limits: Allowance, most_usd: Decimal | None) -> Run:
    """Record the limits that the user set. `most_usd` is the run's maximum cost within these limits."""
    return _with(run, at, max_cost_usd=limits.max_usd, max_hours=limits.max_hours, allowed_usd=most_usd)


def reopened(run: Run, at: datetime, limits: Allowance) -> Run:
    """Record that a program resumed a training session with these limits."""
    limited = given(run, at, limits, limits.max_usd)
    return _with(limited, at, status=JobStatus.RUNNING, bill=None, error=None)


def _believable(old: JobStatus, new: JobStatus) -> bool:
    if new.terminal or new is JobStatus.UNKNOWN or old is JobStatus.UNKNOWN or old in _EARLY:
        return True
    if old is JobStatus.CANCELLING:
        return new is JobStatus.CANCELLING
    if old is JobStatus.FINALIZING:
        return new in (JobStatus.FINALIZING, JobStatus.CANCELLING)
    return new not in _EARLY


def _filled(run: Run, job: Job, at: datetime) -> Run:
    missing = {
        name: value
        for name in _FACTS
        if getattr(run, name) is None and (value := getattr(job, name)) is not None
    }
    if job.early_stopped and not run.early_stopped:
        missing["early_stopped"] = True
    return _with(run, at, **missing) if missing else run


def _expected_steps(run: Run, job: Job) -> int | None:
    """Return the expected number of steps from the host's report, or else from the quote. Returns `None` if
    the host reports the total, or if too little is known."""
    quote = run.quote
    if quote is None or not quote.rows or job.total_steps is not None:
        return None
    epochs, batch = job.epochs or quote.epochs, job.batch_size or quote.batch_size
    return epochs * -(-quote.rows // batch) if epochs and batch else None


def _require(run: Run, to: SubmitPhase, *phases: SubmitPhase) -> None:
    if run.phase is SubmitPhase.REFUSED and run.status is JobStatus.CANCELLED:
        raise Withdrawn(run)
    if run.phase not in phases or (run.status.terminal and to is not SubmitPhase.SUBMITTED):
        raise ImpossibleTransition(
            f"run {run.id} cannot move to phase {to}: it is in phase {run.phase} with status {run.status}",
            fix=f"orchestrate show {run.id}",
        )


def _with(run: Run, at: datetime, **changes: object) -> Run:
    return msgspec.structs.replace(run, updated_at=at, **changes)
