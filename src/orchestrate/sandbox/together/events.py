"""Events and metrics of a job in Together's form."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from orchestrate.sandbox.host import iso
from orchestrate.sandbox.jobs import Job, Phase
from orchestrate.sandbox.training.trainer import Trainer

_NAMES = {
    "train_loss": "train/loss",
    "grad_norm": "train/grad_norm",
    "learning_rate": "train/learning_rate",
    "train_accuracy": "train/accuracy",
    "valid_loss": "eval/loss",
    "valid_accuracy": "eval/accuracy",
}


def events_of(job: Job, now: float, trainer: Trainer) -> list[dict[str, Any]]:
    """Oldest first, up to `now`."""
    found: list[dict[str, Any]] = []

    def say(at: float | None, type: str, message: str, level: str = "info", **more: Any) -> None:
        if at is not None and at <= now:
            found.append(_event(job, at, type, message, level, **more))

    say(job.created_at, "job_pending", "Fine-tune request created")
    say(job.created_at, "warning", f"Sandbox: {trainer.describe(job)}", "warning")
    say(job.started_at, "job_start", "Job started at the sandbox")
    say(job.started_at, "model_downloading", f"Downloading model {job.base}")
    say(job.started_at, "model_download_complete", "Model downloaded", param_count=None)
    say(job.started_at, "training_data_downloading", f"Downloading {job.training_file}")
    say(
        job.started_at,
        "training_data_download_complete",
        "Training data downloaded",
        token_count=job.tokens,
    )
    say(job.started_at, "training_start", "Training started", total_steps=job.total_steps)
    if job.started_at is not None and now >= job.started_at:
        _progress(job, now, trainer, say)
    if job.trained_at is not None and job.cancel_at is None and job.failed_at is None:
        end, finished = job.trained_at, job.finished_at or now
        middle = (end + finished) / 2
        say(end, "training_complete", "Training completed", step=job.total_steps)
        if job.early_stopped:
            say(end, "early_stopped", "The validation loss stopped improving")
        say(end, "model_compressing", "Compressing output model")
        say(middle, "model_compression_complete", "Output model compressed")
        say(middle, "model_uploading", "Uploading output model")
        say(
            job.finished_at,
            "model_upload_complete",
            "Output model uploaded",
            model_path=f"sandbox://{job.output}",
        )
        say(job.finished_at, "job_complete", f"Job finished, model {job.output}")
    say(job.cancel_at, "cancel_requested", "Cancel requested")
    if job.cancel_at is not None:
        say(job.cancelled_at, "job_stopped", "Job stopped")
    if job.trouble is not None:
        say(job.failed_at, "job_error", job.trouble.message, "error")
    return sorted(found, key=lambda event: event["created_at"])


def _progress(job: Job, now: float, trainer: Trainer, say: Any) -> None:
    start, until = job.started_at or now, min(now, job.trained_at or now)
    fraction = job.fraction(now)
    for epoch in range(1, int(fraction * job.epochs) + 1):
        at = start + (until - start) * (epoch / job.epochs) / max(fraction, 1e-9)
        step = job.total_steps * epoch // job.epochs
        say(min(at, until), "epoch_complete", f"Epoch completed, at step {step}", step=step)
    for checkpoint in trainer.checkpoints(job, now):
        at = max(start, min(checkpoint.at, until))
        path = f"sandbox://{job.output}/{checkpoint.step}"
        say(
            at,
            "checkpoint_save",
            f"Checkpoint saved, at step {checkpoint.step}",
            step=checkpoint.step,
            checkpoint_path=path,
        )


def _event(job: Job, at: float, type: str, message: str, level: str, **more: Any) -> dict[str, Any]:
    return {
        "object": "fine-tune-event",
        "created_at": iso(at),
        "type": type,
        "message": message,
        "level": level,
        "hash": hashlib.sha256(f"{job.id}\n{type}\n{message}".encode()).hexdigest()[:16],
        "step": 0,
        "total_steps": 0,
        "token_count": 0,
        "param_count": 0,
        "checkpoint_path": "",
        "model_path": "",
        "wandb_url": "",
        "training_offset": 0,
        **{name: value for name, value in more.items() if value is not None},
    }


def metrics_of(job: Job, now: float, trainer: Trainer, query: Mapping[str, str]) -> list[dict[str, float]]:
    """Rows with `train/...` values and rows with `eval/...` values, in order of time."""
    if job.phase(now) in (Phase.VALIDATING, Phase.QUEUED):
        return []
    rows: list[dict[str, float]] = []
    for point in trainer.metrics(job, now):
        at = point.at.timestamp() if point.at else now
        for group in ("train", "eval"):
            values = {
                _NAMES.get(name, f"train/{name}"): value
                for name, value in point.values.items()
                if _NAMES.get(name, "train/").startswith(group)
            }
            if values:
                step = {"timestamp": at * 1e9, f"{group}/global_step": float(point.step)}
                if point.epoch is not None:
                    step[f"{group}/epoch"] = point.epoch
                rows.append({**step, **values})
    return _sampled([row for row in rows if _wanted(row, query)], query)


def _wanted(row: dict[str, float], query: Mapping[str, str]) -> bool:
    step = row.get("train/global_step", row.get("eval/global_step", 0.0))
    at = row["timestamp"] / 1e9
    return (
        step >= float(query.get("global_step_from", "-inf"))
        and step <= float(query.get("global_step_to", "inf"))
        and at >= _moment(query.get("logged_at_from"), float("-inf"))
        and at <= _moment(query.get("logged_at_to"), float("inf"))
    )


def _moment(text: str | None, default: float) -> float:
    return datetime.fromisoformat(text).timestamp() if text else default


def _sampled(rows: list[dict[str, float]], query: Mapping[str, str]) -> list[dict[str, float]]:
    """At most `resolution` training rows, evenly chosen; evaluation rows all stay."""
    wanted = int(query.get("resolution") or 0)
    train = [n for n, row in enumerate(rows) if "train/global_step" in row]
    if not 0 < wanted < len(train):
        return rows
    kept = {train[n * len(train) // wanted] for n in range(wanted)}
    return [row for n, row in enumerate(rows) if n in kept or "eval/global_step" in row]
