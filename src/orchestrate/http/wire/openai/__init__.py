"""Objects and lists in the format of OpenAI's API, which many servers implement."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from orchestrate.http.wire import HostError
from orchestrate.types import MetricPoint

# Files, uploads, jobs, and their parts, events and metrics in the format of OpenAI's API.


def error_body(error: HostError) -> dict[str, Any]:
    fields = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": fields}


def page(data: Sequence[Any], *, more: bool) -> dict[str, Any]:
    return {"object": "list", "data": list(data), "has_more": more}


def page_with_ends(data: Sequence[Mapping[str, Any]], *, more: bool) -> dict[str, Any]:
    """Build a page of a list in the newer format, which includes the ids of the first and last entries."""
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {**page(data, more=more), **ends}


def page_of(request: Request, entries: Sequence[dict[str, Any]], *, default: int) -> dict[str, Any]:
    """Return the page of a list that the request's `limit` and `after` select. Raises `HostError` 400 for an
    invalid `limit`, and 404 if the `after` id is not in the list."""
    limit = number(request, "limit", default, 1, 100)
    after = request.query_params.get("after")
    if after:
        places = [n for n, item in enumerate(entries) if item["id"] == after]
        if not places:
            raise no_place(after)
        entries = entries[places[0] + 1 :]
    return page_with_ends(entries[:limit], more=len(entries) > limit)


def no_place(after: str) -> HostError:
    """Build the error for an `after` id that is not in the list. An empty page would make clients believe
    that there are no more entries."""
    return HostError(404, f"{after!r} is not in this list", param="after", code="not_found")


def metadata_filter(request: Request) -> dict[str, str]:
    """Parse the `metadata[name]=value` filters of a request that lists jobs."""
    found = request.query_params.items()
    return {n[9:-1]: value for n, value in found if n.startswith("metadata[") and n.endswith("]")}


def number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """Parse an integer query parameter. Raises `HostError` 400 for other values and for numbers out of
    range."""
    raw = request.query_params.get(name)
    if raw is None or raw == "":
        return default
    try:
        value = int(raw)
    except ValueError as error:
        raise HostError(400, f"Invalid value for '{name}': {raw!r} is not an integer", param=name) from error
    if not low <= value <= high:
        raise HostError(400, f"Invalid value for '{name}': must be from {low} to {high}", param=name)
    return value


VLLM = "vllm.entrypoints.openai.api_server"
"""Module of vLLM's server. Running the module works even if the `vllm` command is not on the PATH."""


PURPOSES = ("assistants", "batch", "fine-tune", "vision", "user_data", "evals")
RESULTS = "fine-tune-results"
UPLOAD_LIFE_S = 3600
MAX_FILE = 536_870_912
MAX_PART = 67_108_864
"""Maximum size of an upload part in bytes."""

_NAMES = {
    "train_loss": "train_loss",
    "train_accuracy": "train_mean_token_accuracy",
    "valid_loss": "valid_loss",
    "valid_accuracy": "valid_mean_token_accuracy",
}
_LONGEST_STEP = 10
_COLUMNS = ("step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy")


def file(id: str, filename: str, purpose: str, size: int, created_at: float, **more: Any) -> dict[str, Any]:
    return {
        "object": "file",
        "id": id,
        "purpose": purpose,
        "filename": filename,
        "bytes": size,
        "created_at": int(created_at),
        "status": "processed",
        **more,
    }


def upload(id: str, filename: str, purpose: str, size: int, created_at: float) -> dict[str, Any]:
    """Build an upload object without parts."""
    return {
        "id": id,
        "object": "upload",
        "bytes": size,
        "created_at": int(created_at),
        "filename": filename,
        "purpose": purpose,
        "status": "pending",
        "expires_at": int(created_at) + UPLOAD_LIFE_S,
        "file": None,
    }


def part(id: str, upload_id: str, created_at: float) -> dict[str, Any]:
    return {"id": id, "object": "upload.part", "created_at": int(created_at), "upload_id": upload_id}


def deleted(id: str, object: str) -> dict[str, Any]:
    return {"id": id, "object": object, "deleted": True}


def model(id: str, created: float, owned_by: str, shutdown_date: str | None) -> dict[str, Any]:
    """Build a model object. `shutdown_date` is a date such as 2027-01-14."""
    return {
        "id": id,
        "object": "model",
        "created": int(created),
        "owned_by": owned_by,
        "shutdown_date": shutdown_date,
    }


def permission(id: str, project: str, created_at: float) -> dict[str, Any]:
    return {
        "id": id,
        "object": "checkpoint.permission",
        "created_at": int(created_at),
        "project_id": project,
    }


def job(id: str, **fields: Any) -> dict[str, Any]:
    return {"object": "fine_tuning.job", "id": id, **fields}


def error(code: str | None, message: str, param: str | None) -> dict[str, Any]:
    """Build the error object of a job."""
    return {"code": code, "message": message, "param": param}


def event(
    job_id: str, at: float, level: str, message: str, *, type: str, data: Mapping[str, Any], key: str
) -> dict[str, Any]:
    """Build an event object of a job. `level` is info, warn or error, and `type` is message or metrics. The
    event's id is derived from `key`, so it is the same each time. `key` must be unique among the job's events
    of this type."""
    return {
        "object": "fine_tuning.job.event",
        "id": f"ftevent-{short_hash(job_id, type, key)}",
        "created_at": int(at),
        "level": level,
        "message": message,
        "type": type,
        "data": dict(data),
    }


def checkpoint(
    job_id: str, step: int, created_at: float, model: str, metrics: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "object": "fine_tuning.job.checkpoint",
        "id": f"ftckpt_{short_hash(job_id, str(step))}",
        "created_at": int(created_at),
        "fine_tuned_model_checkpoint": model,
        "step_number": step,
        "fine_tuning_job_id": job_id,
        "metrics": dict(metrics),
    }


def step_model(tuned: str, step: int) -> str:
    """Return the model name of a checkpoint."""
    return f"{tuned}:ckpt-step-{step}"


def split_step(name: str) -> tuple[str, int | None]:
    """Split a checkpoint's model name into the tuned model's name and the step. For other names, the step is
    `None`."""
    tuned, _, step = name.rpartition(":ckpt-step-")
    if tuned and step.isascii() and step.isdigit() and len(step) < _LONGEST_STEP:
        return tuned, int(step)
    return name, None  # a suffix may have the same words


def metric_rows(points: Sequence[MetricPoint]) -> list[dict[str, Any]]:
    """Build one object per step, with metrics renamed to OpenAI's names. Metrics that OpenAI lacks keep their
    names."""
    rows: dict[int, dict[str, Any]] = {}
    for point in points:
        row = rows.setdefault(point.step, {"step": point.step})
        row |= {_NAMES.get(name, name): value for name, value in point.values.items()}
    return [rows[step] for step in sorted(rows)]


def metrics_csv(points: Sequence[Mapping[str, Any]]) -> bytes:
    """Format `metric_rows` as OpenAI's CSV result file."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for point in points:
        row = {**point, "train_accuracy": point.get("train_mean_token_accuracy")}
        writer.writerow(["" if row.get(name) is None else row[name] for name in _COLUMNS])
    return out.getvalue().encode()


def short_hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]
