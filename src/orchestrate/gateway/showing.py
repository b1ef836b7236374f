"""Jobs of the gateway as the API shows them: the projection of a job and its run."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from orchestrate.gateway import asking
from orchestrate.gateway.refusals import with_file_names
from orchestrate.types import Checkpoint, Event, GatewayJob, JobStatus, MetricPoint, Run, SubmitPhase
from orchestrate.wire.openai import objects
from orchestrate.wire.openai.tuning import CreateJob

WORDS = {
    JobStatus.SUBMITTING: "validating_files",
    JobStatus.VALIDATING: "validating_files",
    JobStatus.QUEUED: "queued",
    JobStatus.RUNNING: "running",
    JobStatus.PAUSED: "queued",
    JobStatus.FINALIZING: "running",
    JobStatus.CANCELLING: "running",
    JobStatus.SUCCEEDED: "succeeded",
    JobStatus.FAILED: "failed",
    JobStatus.CANCELLED: "cancelled",
    JobStatus.UNKNOWN: "running",
}
"""The API has six words, and its clients know no others."""
_LEVELS = {"warning": "warn", "error": "error"}
_CREATED = "Created fine-tuning job"


TERMINAL = ("succeeded", "failed", "cancelled")


def status_of(job: GatewayJob, run: Run | None) -> str:
    """A terminal status is given out once it is recorded, and stays: clients stop asking then."""
    if job.ended_as is not None:
        return job.ended_as
    status = outcome(job, run)
    if status not in TERMINAL or job.error is not None or job.ended_at is not None:
        return status
    sent = run is not None and run.phase is SubmitPhase.SUBMITTED
    return WORDS[JobStatus.RUNNING if sent else JobStatus.SUBMITTING]


def outcome(job: GatewayJob, run: Run | None) -> str:
    """What its run says."""
    if job.error is not None:
        return "failed"
    if run is None or (run.phase is SubmitPhase.REFUSED and job.again_at is not None):
        return "cancelled" if job.cancel_asked else WORDS[JobStatus.SUBMITTING]
    return WORDS[run.status]


def job_body(job: GatewayJob, run: Run | None, organization: str) -> dict[str, Any]:
    asked = CreateJob.model_validate(job.asked)
    status = status_of(job, run)
    ended = status in TERMINAL
    done = status == "succeeded"
    at = _ended_at(job, run) if ended else None
    hyper, method = asking.shown(asked)
    integrations = [one.model_dump(exclude_none=True) for one in asked.integrations or ()]
    return objects.job(
        job.id,
        model=asked.model,
        created_at=seconds(job.created_at),
        finished_at=None if at is None else seconds(at),
        estimated_finish=None,
        status=status,
        error=_error(job, run) if status == "failed" else objects.error("", "", None),
        fine_tuned_model=job.tuned if done else None,
        organization_id=organization,
        training_file=asked.training_file,
        validation_file=asked.validation_file,
        result_files=[result_id(job)] if done and not job.outside else [],
        trained_tokens=run.trained_tokens if ended and run else None,
        hyperparameters=hyper,
        method=method,
        seed=zlib.crc32(job.id.encode()) >> 1 if asked.seed is None else asked.seed,
        integrations=integrations,
        metadata=asked.metadata,
        user_provided_suffix=asked.suffix,
    )


def _ended_at(job: GatewayJob, run: Run | None) -> datetime:
    if run is not None and run.finished_at is not None:
        return run.finished_at
    return job.ended_at or (job.created_at if run is None else run.updated_at)


def _error(job: GatewayJob, run: Run | None) -> dict[str, Any]:
    """An object without a word in it stands for none: clients read its fields without looking."""
    error = job.error or (run.error if run else None)
    if error is None:
        return objects.error("job_failed", "the backend gave no reason", None)
    return objects.error(error.code or "job_failed", named(job, error.message), error.param)


def named(job: GatewayJob, message: str) -> str:
    """With its files by their clients' names."""
    return with_file_names(message, dict(zip(job.files, job.file_names, strict=False)))


# -- what happened -----------------------------------------------------------------------------------------


def events(
    job: GatewayJob, run: Run | None, told: Sequence[Event], points: Sequence[MetricPoint]
) -> list[dict[str, Any]]:
    """Newest first."""
    found: list[tuple[datetime, str, str, str, dict[str, Any], str]] = []
    start = job.created_at
    found.append((start, "info", f"{_CREATED}: {job.id}", "message", {}, "created"))
    found += [(start, "info", note, "message", {}, note) for note in job.notes]
    for event in told:
        if event.type != "metrics":
            level = _LEVELS.get(event.level, "info")
            found.append((event.at, level, named(job, event.message), "message", event.data, event.id))
    found += _metric_events(run, points)
    status = status_of(job, run)
    if status == "succeeded":
        at = _ended_at(job, run)
        made = f"New fine-tuned model created: {job.tuned}"
        found.append((at, "info", made, "message", {}, "model"))
        found.append((at, "info", "The job has successfully completed", "message", {}, "done"))
    elif status == "failed":
        told_error = _error(job, run)["message"]
        found.append((_ended_at(job, run), "error", told_error, "message", {}, "failed"))
    elif status == "cancelled":
        found.append((_ended_at(job, run), "info", "The job has been cancelled", "message", {}, "cancelled"))
        if run is not None and run.status is JobStatus.SUCCEEDED:
            late = f"{run.provider} finished before the cancel took effect: its model is run {run.id}"
            found.append((_ended_at(job, run), "warn", late, "message", {}, "late"))
    found.sort(key=lambda item: item[0])
    return [
        objects.event(job.id, at.timestamp(), level, message, type=type, data=data, key=key)
        for at, level, message, type, data, key in reversed(found)
    ]


def _metric_events(
    run: Run | None, points: Sequence[MetricPoint]
) -> list[tuple[datetime, str, str, str, dict[str, Any], str]]:
    if run is None:
        return []
    at = run.started_at or run.created_at
    found: list[tuple[datetime, str, str, str, dict[str, Any], str]] = []
    for point, row in zip(points, objects.metric_rows(points), strict=True):
        at = max(at, point.at) if point.at else at
        loss = f"training loss={row['train_loss']:.2f}" if "train_loss" in row else "evaluated"
        told = f"Step {point.step}/{run.total_steps or '?'}: {loss}"
        found.append((at, "info", told, "metrics", row, str(point.step)))
    return found


def checkpoints(
    job: GatewayJob, run: Run, told: Sequence[Checkpoint], points: Sequence[MetricPoint]
) -> list[dict[str, Any]]:
    """Newest first. The last one is the model itself."""
    rows = {row["step"]: row for row in objects.metric_rows(points)}
    known = [(point.step, point) for point in told if point.step is not None]
    last = max((step for step, _ in known), default=None)
    done = run.status is JobStatus.SUCCEEDED
    found: list[dict[str, Any]] = []
    if done and not known:
        step = run.total_steps or max(rows, default=1)
        known, last = [(step, Checkpoint(id="", step=step))], step
    for step, point in reversed(known):
        name = job.tuned if done and step == last else objects.step_model(job.tuned, step)
        at = point.created_at or run.finished_at or run.updated_at
        metrics = {"step": step, **rows.get(step, {})}
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        found.append(objects.checkpoint(job.id, step, at.timestamp(), name, numbers))
    return found


def result_id(job: GatewayJob) -> str:
    """Of the file of the job's metrics."""
    return f"file-result{job.id.removeprefix('ftjob-')}"


def job_of_result(file_id: str) -> str | None:
    bare = file_id.removeprefix("file-result")
    return None if bare == file_id else f"ftjob-{bare}"


def result_content(points: Sequence[MetricPoint]) -> bytes:
    """In base64, as the API has it."""
    return base64.b64encode(objects.metrics_csv(objects.metric_rows(points)))


def seconds(at: datetime) -> int:
    """As the API has times."""
    return int(at.timestamp())
