"""What the OpenAI host says of a job as it goes on."""

from __future__ import annotations

from typing import Any

from orchestrate.http.wire.openai import objects
from orchestrate.sandbox.jobs import Job, Phase
from orchestrate.sandbox.training.trainer import Trainer


def events_of(job: Job, now: float, trainer: Trainer) -> list[dict[str, Any]]:
    """Oldest first, up to `now`. The ids stay the same from one reading to the next."""
    found: list[tuple[float, str, str, str, dict[str, Any]]] = []

    def say(
        at: float | None, message: str, *, level: str = "info", type: str = "message", **data: Any
    ) -> None:
        if at is not None and at <= now:
            found.append((at, level, type, message, data))

    say(job.created_at, f"Created fine-tuning job: {job.id}")
    say(job.created_at, f"Sandbox: {trainer.describe(job)}", level="warn")
    say(job.created_at, f"Validating training file: {job.training_file}")
    if job.validation_file:
        say(job.created_at, f"Validating validation file: {job.validation_file}")
    if job.trouble is None or (job.failed_at or 0) > job.validated_at:
        say(job.validated_at, "Files validated, moving job to queued state")
    say(job.started_at, "Fine-tuning job started")
    for row in objects.metric_rows(trainer.metrics(job, now)) if job.started_at else []:
        step = row["step"]
        at = min(now, _time_of(job, step, now))
        say(
            at,
            f"Step {step}/{job.total_steps}: training loss={row.get('train_loss', 0):.2f}",
            type="metrics",
            **row,
        )
    if job.paused_at is not None:
        say(job.paused_at, "Fine-tuning job paused")
    if job.finished_at is not None and job.phase(now) is Phase.SUCCEEDED:
        for checkpoint in trainer.checkpoints(job, now)[:-1]:
            name = objects.step_model(job.output, checkpoint.step)
            say(
                job.finished_at,
                f"Checkpoint created at step {checkpoint.step}",
                step=checkpoint.step,
                model=name,
            )
        say(job.finished_at, f"New fine-tuned model created: {job.output}")
        say(job.finished_at, "The job has successfully completed")
    if job.cancel_at is not None:
        say(job.cancel_at, "The job has been cancelled")
    if job.trouble is not None:
        say(job.failed_at, job.trouble.message, level="error")
    found.sort(key=lambda item: item[0])
    return [_event(job, *item) for item in found]


def _time_of(job: Job, step: int, now: float) -> float:
    start = job.started_at or job.created_at
    end = job.trained_at or now
    return start + (end - start) * min(1.0, step / max(1, job.total_steps))


def _event(job: Job, at: float, level: str, type: str, message: str, data: dict[str, Any]) -> dict[str, Any]:
    key = message if type == "message" else str(data.get("step"))
    return objects.event(job.id, at, level, message, type=type, data=data, key=key)
