"""Parsing of the API's responses into Orchestrate's records."""

from __future__ import annotations

import base64
import binascii
import csv
import io
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from math import isfinite
from typing import Any

from orchestrate.catalog import HostModel
from orchestrate.providers.calls import integer, metric, number, plain, ref_in, suffix_of, table, text, when
from orchestrate.providers.calls.hosted import payload
from orchestrate.types import (
    Checkpoint,
    Event,
    Job,
    JobError,
    JobHandle,
    JobRecovery,
    JobStatus,
    MetricPoint,
    ReportedSettings,
)

REF_KEY = "orchestrate_ref"
"""Metadata key for a job's ref, on hosts that store metadata."""
LEVELS = {"warn": "warning"}
NAMES = {
    "train_mean_token_accuracy": "train_accuracy",
    "valid_mean_token_accuracy": "valid_accuracy",
}
"""Maps the API's metric names to Orchestrate's names. Other metrics keep their names."""


def job_of(answer: object, provider: str, status: Callable[[str | None], JobStatus]) -> Job:
    values = plain(answer)
    raw = text(values.get("status")) or ""
    ref = text(table(values.get("metadata")).get(REF_KEY))
    if ref is None:
        ref = ref_in(*(values.get(name) for name in ("suffix", "user_provided_suffix", "fine_tuned_model")))
    hyper = table(values.get("hyperparameters"))
    return Job(
        handle=JobHandle(provider=provider, job_id=str(values.get("id")), ref=ref),
        status=status(raw),
        raw_status=raw,
        model=text(values.get("model")),
        created_at=when(values.get("created_at")),
        finished_at=when(values.get("finished_at")),
        estimated_finish=when(values.get("estimated_finish")),
        tuned_model=text(values.get("fine_tuned_model")),
        trained_tokens=integer(values.get("trained_tokens")),
        step=integer(values.get("trained_steps")),
        total_steps=integer(values.get("total_steps")),
        epochs=integer(hyper.get("n_epochs")),
        batch_size=integer(hyper.get("batch_size")),
        error=_error(table(values.get("error"))),
        payload=payload(values),
    )


def _error(error: Mapping[str, Any]) -> JobError | None:
    """A job without an error has `null` or `{}`, or an object of nulls."""
    message, code = text(error.get("message")), text(error.get("code"))
    if message is None and code is None:
        return None
    return JobError(message=message or code or "", code=code, param=text(error.get("param")))


def event_of(answer: object) -> Event:
    values = plain(answer)
    level = text(values.get("level")) or "info"
    data = table(payload(values).get("data"))
    return Event(
        id=str(values.get("id")),
        at=when(values.get("created_at")) or datetime.fromtimestamp(0, UTC),
        level=LEVELS.get(level, level),
        message=text(values.get("message")) or "",
        type=text(values.get("type")) or "message",
        step=integer(data.get("step")),
        data=data,
    )


def checkpoint_of(answer: object) -> Checkpoint:
    values = plain(answer)
    return Checkpoint(
        id=str(values.get("id")),
        step=integer(values.get("step_number")),
        created_at=when(values.get("created_at")),
        model=text(values.get("fine_tuned_model_checkpoint")),
        metrics=_finite(table(values.get("metrics"))),
    )


def model_of(answer: object, known: Mapping[str | None, HostModel | None]) -> HostModel:
    values = plain(answer)
    id = str(values.get("id"))
    ours = known.get(id)
    ends = when(values.get("shutdown_date"))
    return HostModel(
        id=id, tunable=ours.tunable if ours else "unconfirmed", shutdown=ends.date() if ends else None
    )


def points_of_events(events: Iterable[Event]) -> list[MetricPoint]:
    """Parse the metric events of a job that is still running."""
    return [
        MetricPoint(step=event.step, at=event.at, values=values)
        for event in events
        if event.type == "metrics" and event.step is not None and (values := _metrics(event.data))
    ]


def points_of_file(content: bytes) -> list[MetricPoint]:
    """Parse the result file, which hosts send as plain or base64-encoded CSV."""
    table_text = (_from_base64(content) or content).decode("utf-8-sig", errors="replace")
    return [
        MetricPoint(step=step, values=values)
        for row in csv.DictReader(io.StringIO(table_text))
        if (step := integer(row.get("step"))) is not None and (values := _metrics(row))
    ]


def merged(points: Iterable[MetricPoint]) -> list[MetricPoint]:
    """Merge the metric points of each step into one point. If a metric has two values, the later one
    counts."""
    found: dict[int, MetricPoint] = {}
    for point in points:
        earlier = found.get(point.step, point)
        found[point.step] = MetricPoint(
            step=point.step, at=point.at or earlier.at, values={**earlier.values, **point.values}
        )
    return [found[step] for step in sorted(found)]


def _from_base64(content: bytes) -> bytes | None:
    try:
        found = base64.b64decode(b"".join(content.split()), validate=True)
    except (binascii.Error, ValueError):
        return None
    return found or None


def _metrics(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        NAMES.get(name, name): found
        for name, value in values.items()
        if name != "step" and (found := metric(value)) is not None
    }


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in _metrics(values).items() if isfinite(value)}


# -- a job's settings ----------------------------------------------------------------------------------------
# The job's method, epochs and file size, as reported by the API, determine its price.


METHODS: Mapping[str, Any] = {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}


def _method_of(job: Job) -> tuple[str, dict[str, Any]]:
    """Return the API's name of a job's method, and the method's settings. Anything unexpected is a method of
    its own, never the default."""
    method = job.payload.get("method")
    kind = table(method).get("type") if isinstance(method, dict | None) else method
    name = "supervised" if kind is None else str(kind)
    return name, table(table(method).get(name))


def job_recovery(job: Job, file: Callable[[str], object]) -> JobRecovery | None:
    """Collect the details that determine a job's price, or return `None` for an unknown method. `file` is a
    function that returns a file's record by id. The validation file is not billed."""
    kind, inside = _method_of(job)
    if kind not in METHODS:
        return None
    own = table(inside.get("hyperparameters"))
    epochs = own.get("n_epochs", table(job.payload.get("hyperparameters")).get("n_epochs"))
    name = text(job.payload.get("training_file"))
    needed = name is not None and job.trained_tokens is None
    return JobRecovery(
        method=METHODS[kind],
        epochs=integer(epochs),
        train_bytes=integer(plain(file(name)).get("bytes")) if needed and name else None,
    )


def reported_settings(job: Job) -> ReportedSettings:
    """Return the settings and files of a job. Accepts each of the API's formats for hyperparameters."""
    kind, inside = _method_of(job)
    own = {**table(job.payload.get("hyperparameters")), **table(inside.get("hyperparameters"))}
    own = {name: value for name, value in own.items() if value not in (None, "auto")}
    spec: dict[str, Any] = {}
    for name, ours in SETTINGS.items():
        if (value := number(own.get(name))) is not None:
            spec[ours] = int(value) if ours in _WHOLE else value
            del own[name]
    options: dict[str, Any] = {}
    if kind not in METHODS:
        spec["method"] = {"type": kind}
    elif METHODS[kind] == "dpo":
        beta = number(own.pop("beta", None))
        spec["method"] = {"type": "dpo"} | ({"beta": beta} if beta is not None else {})
    elif METHODS[kind] == "rft":
        given = {name: own.pop(name) for name in RFT_SETTINGS if name in own}
        spec["method"] = {"type": "rft", "grader": table(inside.get("grader")), **given}
        if "eval_samples" in own:
            options["method.reinforcement.hyperparameters.eval_samples"] = own.pop("eval_samples")
    if options:
        spec["provider_options"] = {job.handle.provider: options}
    if (seed := integer(job.payload.get("seed"))) is not None:
        spec["seed"] = seed
    suffix = text(job.payload.get("user_provided_suffix")) or text(job.payload.get("suffix"))
    if suffix := suffix_of(suffix, job.handle.ref):
        spec["suffix"] = suffix
    named = {"train": "training_file", "validation": "validation_file"}
    files = {split: id for split, field in named.items() if (id := text(job.payload.get(field)))}
    read = ("hyperparameters", "grader")
    own |= {name: value for name, value in inside.items() if name not in read and value is not None}
    if integrations := job.payload.get("integrations"):
        own["integrations"] = integrations
    return ReportedSettings(spec=spec, files=files, left_out=own)


RFT_SETTINGS = ("reasoning_effort", "compute_multiplier")
SETTINGS: Mapping[str, str] = {
    "n_epochs": "epochs",
    "batch_size": "batch_size",
    "eval_interval": "eval_steps",
    "learning_rate_multiplier": "learning_rate_multiplier",
    "learning_rate": "learning_rate",
    "warmup_ratio": "warmup_ratio",
    "weight_decay": "weight_decay",
}
_WHOLE = ("epochs", "batch_size", "eval_steps")
