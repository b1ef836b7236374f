"""Convert a job and its run to the API's representation."""

from __future__ import annotations

import base64
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrate.errors import SpecError
from orchestrate.gateway.calls import with_file_names
from orchestrate.gateway.terms import MappedModel
from orchestrate.http.wire import HostError, openai
from orchestrate.http.wire.openai.tuning import (
    CreateJob,
    Dpo,
    ReinforcementHyperparameters,
    SupervisedHyperparameters,
)
from orchestrate.spec import JobSpec
from orchestrate.types import Checkpoint, Event, GatewayJob, JobStatus, MetricPoint, Run, SubmitPhase

_METHODS = {"sft": "supervised", "dpo": "dpo", "rft": "reinforcement"}
_LONGEST_SUFFIX = 40


@dataclass(frozen=True)
class JobForm:
    """The spec built from a job request, and notes about the translation."""

    spec: JobSpec
    notes: tuple[str, ...]


def job_form(
    asked: CreateJob, target: MappedModel, train: str, validation: str | None, continued: str | None = None
) -> JobForm:
    """Build a spec from a job request. `train` and `validation` are paths. `continued` is the run to continue
    from. Raises `HostError` 422 for anything that a spec cannot express."""
    hyper, notes = hyperparameters(asked), list[str]()
    fields: dict[str, Any] = {
        "model": target.model,
        "train": train,
        "validation": validation,
        "method": _method(asked, hyper),
        "epochs": _number(hyper.n_epochs),
        "batch_size": _number(hyper.batch_size),
        "seed": asked.seed,
        "suffix": _suffix(asked.suffix, notes),
        "continue_from": continued,
        "tags": dict(asked.metadata or {}) or None,
        "wandb": _wandb(asked),
        **_rate(_number(hyper.learning_rate_multiplier), target, notes),
        **target.settings,
    }
    if (
        isinstance(hyper, ReinforcementHyperparameters)
        and (steps := _number(hyper.eval_interval)) is not None
    ):
        fields["eval_steps"] = steps
    notes.insert(0, f"{asked.model} is mapped to {target.model} on {target.backend}")
    try:
        spec = JobSpec.parse({name: value for name, value in fields.items() if value is not None})
    except SpecError as error:
        raise HostError(422, error.message, code="invalid_request") from error
    return JobForm(spec, tuple(notes))


def hyperparameters(asked: CreateJob) -> SupervisedHyperparameters:
    """Return the hyperparameters of the method. Missing values are taken from the deprecated field
    `hyperparameters`."""
    hyper = asked.hyper()
    if asked.method is None or asked.hyperparameters is None:
        return hyper
    older = asked.hyperparameters.model_dump(exclude_unset=True)
    return hyper.model_copy(
        update={name: value for name, value in older.items() if name not in hyper.model_fields_set}
    )


def shown(asked: CreateJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return `hyperparameters` and `method` in the format of the API's jobs."""
    hyper = hyperparameters(asked)
    kind = _METHODS[asked.kind()]
    values = hyper.model_dump()
    inner: dict[str, Any] = {"hyperparameters": values}
    if asked.kind() == "rft" and asked.method and asked.method.reinforcement:
        inner["grader"] = asked.method.reinforcement.grader
    three = {name: values[name] for name in ("n_epochs", "batch_size", "learning_rate_multiplier")}
    return three, {"type": kind, kind: inner}


def _method(asked: CreateJob, hyper: SupervisedHyperparameters) -> dict[str, Any]:
    kind = asked.kind()
    found: dict[str, Any] = {"type": kind}
    if isinstance(hyper, Dpo):
        found["beta"] = _number(hyper.beta)
    if kind == "rft":
        reinforcement = asked.method.reinforcement if asked.method else None
        if reinforcement is None:
            raise HostError(422, "reinforcement needs a grader", param="method.reinforcement.grader")
        if reinforcement.response_format is not None:
            raise HostError(
                422,
                "response_format is not supported: sampled answers are not constrained to a format",
                param="method.reinforcement.response_format",
                code="unsupported_parameter",
            )
        found["grader"] = reinforcement.grader
    if isinstance(hyper, ReinforcementHyperparameters):
        if _number(hyper.eval_samples) is not None:
            raise HostError(
                422,
                "eval_samples is not supported: each row of the validation file is sampled once",
                param="method.reinforcement.hyperparameters.eval_samples",
                code="unsupported_parameter",
            )
        found["compute_multiplier"] = _number(hyper.compute_multiplier)
        found["reasoning_effort"] = None if hyper.reasoning_effort == "default" else hyper.reasoning_effort
    return {name: value for name, value in found.items() if value is not None}


def _rate(multiplier: float | None, target: MappedModel, notes: list[str]) -> Mapping[str, float]:
    if multiplier is None:
        return {}
    base = target.base_learning_rate
    if base is None:
        return {"learning_rate_multiplier": multiplier}
    rate = multiplier * base
    notes.append(
        f"learning_rate_multiplier {multiplier:g} gives a learning rate of {rate:g} "
        f"({multiplier:g} x {base:g})"
    )
    return {"learning_rate": rate}


def _suffix(given: str | None, notes: list[str]) -> str | None:
    """Shorten a suffix, because backends allow fewer characters than the API."""
    if given is None:
        return None
    kept = re.sub(r"[^A-Za-z0-9_.-]+", "-", given).strip("-_.")[:_LONGEST_SUFFIX]
    if kept != given:
        notes.append(f"the suffix {given!r} becomes {kept!r} on the backend")
    return kept or None


def _wandb(asked: CreateJob) -> dict[str, Any] | None:
    wanted = [one.wandb for one in asked.integrations or ()]
    if len(wanted) > 1:
        raise HostError(422, "at most one W&B integration is supported", param="integrations")
    return wanted[0].model_dump(exclude_none=True) if wanted else None


def _number(value: Any) -> Any:
    return None if value == "auto" else value


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
"""Statuses of the API. Clients know only these six."""
_LEVELS = {"warning": "warn", "error": "error"}
_CREATED = "Created fine-tuning job"


TERMINAL = ("succeeded", "failed", "cancelled")


def status_of(job: GatewayJob, run: Run | None) -> str:
    """Return the status to show to clients. A terminal status never changes, because clients stop polling
    once they have seen it. It is therefore stored before it is shown."""
    if job.ended_as is not None:
        return job.ended_as
    status = outcome(job, run)
    if status not in TERMINAL or job.error is not None or job.ended_at is not None:
        return status
    sent = run is not None and run.phase is SubmitPhase.SUBMITTED
    return WORDS[JobStatus.RUNNING if sent else JobStatus.SUBMITTING]


def outcome(job: GatewayJob, run: Run | None) -> str:
    """Derive the job's status from its run."""
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
    hyper, method = shown(asked)
    integrations = [one.model_dump(exclude_none=True) for one in asked.integrations or ()]
    return openai.job(
        job.id,
        model=asked.model,
        created_at=seconds(job.created_at),
        finished_at=None if at is None else seconds(at),
        estimated_finish=None,
        status=status,
        error=_error(job, run) if status == "failed" else openai.error("", "", None),
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
    """Return the error of a job. Without an error, all fields are empty, because clients read the fields
    without checking for null."""
    error = job.error or (run.error if run else None)
    if error is None:
        return openai.error("job_failed", "the backend gave no reason", None)
    return openai.error(error.code or "job_failed", named(job, error.message), error.param)


def named(job: GatewayJob, message: str) -> str:
    """Replace file paths and hashes in a message with the clients' file names."""
    return with_file_names(message, dict(zip(job.files, job.file_names, strict=False)))


# -- events and results ------------------------------------------------------------------------------------


def events(
    job: GatewayJob, run: Run | None, host_events: Sequence[Event], points: Sequence[MetricPoint]
) -> list[dict[str, Any]]:
    """List a job's events, newest first."""
    found: list[tuple[datetime, str, str, str, dict[str, Any], str]] = []
    start = job.created_at
    found.append((start, "info", f"{_CREATED}: {job.id}", "message", {}, "created"))
    found += [(start, "info", note, "message", {}, note) for note in job.notes]
    for event in host_events:
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
        error_message = _error(job, run)["message"]
        found.append((_ended_at(job, run), "error", error_message, "message", {}, "failed"))
    elif status == "cancelled":
        found.append((_ended_at(job, run), "info", "The job has been cancelled", "message", {}, "cancelled"))
        if run is not None and run.status is JobStatus.SUCCEEDED:
            late = (
                f"{run.provider} finished the job before it was cancelled. The model belongs to run {run.id}"
            )
            found.append((_ended_at(job, run), "warn", late, "message", {}, "late"))
    found.sort(key=lambda item: item[0])
    return [
        openai.event(job.id, at.timestamp(), level, message, type=type, data=data, key=key)
        for at, level, message, type, data, key in reversed(found)
    ]


def _metric_events(
    run: Run | None, points: Sequence[MetricPoint]
) -> list[tuple[datetime, str, str, str, dict[str, Any], str]]:
    if run is None:
        return []
    at = run.started_at or run.created_at
    found: list[tuple[datetime, str, str, str, dict[str, Any], str]] = []
    for point, row in zip(points, openai.metric_rows(points), strict=True):
        at = max(at, point.at) if point.at else at
        loss = f"training loss={row['train_loss']:.2f}" if "train_loss" in row else "evaluated"
        message = f"Step {point.step}/{run.total_steps or '?'}: {loss}"
        found.append((at, "info", message, "metrics", row, str(point.step)))
    return found


def checkpoints(
    job: GatewayJob, run: Run, stored: Sequence[Checkpoint], points: Sequence[MetricPoint]
) -> list[dict[str, Any]]:
    """List a job's checkpoints, newest first. There is one per step, even if the host stores both an adapter
    and a merged model for that step. The checkpoint of the last step is the tuned model itself."""
    rows = {row["step"]: row for row in openai.metric_rows(points)}
    known = {point.step: point for point in stored if point.step is not None}
    last = max(known, default=None)
    done = run.status is JobStatus.SUCCEEDED
    found: list[dict[str, Any]] = []
    if done and not known:
        step = run.total_steps or max(rows, default=1)
        known, last = {step: Checkpoint(id="", step=step)}, step
    for step, point in sorted(known.items(), reverse=True):
        name = job.tuned if done and step == last else openai.step_model(job.tuned, step)
        at = point.created_at or run.finished_at or run.updated_at
        metrics = {"step": step, **rows.get(step, {})}
        numbers = {key: value for key, value in metrics.items() if isinstance(value, int | float)}
        found.append(openai.checkpoint(job.id, step, at.timestamp(), name, numbers))
    return found


def result_id(job: GatewayJob) -> str:
    """Return the id of the file with the job's metrics."""
    return f"file-result{job.id.removeprefix('ftjob-')}"


def job_of_result(file_id: str) -> str | None:
    bare = file_id.removeprefix("file-result")
    return None if bare == file_id else f"ftjob-{bare}"


def result_content(points: Sequence[MetricPoint]) -> bytes:
    """Encode the job's metrics as base64 of a CSV file, as the API does."""
    return base64.b64encode(openai.metrics_csv(openai.metric_rows(points)))


def seconds(at: datetime) -> int:
    """Convert a time to seconds since 1970, the API's format."""
    return int(at.timestamp())
