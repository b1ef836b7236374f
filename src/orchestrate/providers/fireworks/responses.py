"""Parsing of Fireworks' responses into Orchestrate's records.

Sources: the SDK's `SupervisedFineTuningJob`, `DpoJob` and `ReinforcementFineTuningJob`. The host has no list
of events, so they are derived from a job's state and progress, with ids that never change. Rows of the
metrics file are `{step, timestamp, data: {"train/loss": ...}}`, or the same without `data`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from datetime import date, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from orchestrate import catalog
from orchestrate.catalog import HostModel
from orchestrate.providers.calls import (
    estimate_quote,
    integer,
    metric,
    money,
    nanos,
    number,
    payload,
    ref_in,
    table,
    text,
    when,
)
from orchestrate.providers.fireworks import PROFILE
from orchestrate.types import (
    Event,
    Job,
    JobError,
    JobHandle,
    JobRecovery,
    JobStatus,
    MetricPoint,
    Quote,
    ReportedSettings,
)

if TYPE_CHECKING:
    from orchestrate.data.operations.preview import RowTokens

KINDS: Mapping[str, str] = {
    "supervised": "supervisedFineTuningJobs",
    "dpo": "dpoJobs",
    "reinforcement": "reinforcementFineTuningJobs",
}
"""Maps `JobHandle.kind` to the name of the host's collection."""
ID_PARAMETER: Mapping[str, str] = {
    "supervised": "supervisedFineTuningJobId",
    "dpo": "dpoJobId",
    "reinforcement": "reinforcementFineTuningJobId",
}
_PREFIX = "JOB_STATE_"
_NUMBERED = (
    "UNSPECIFIED",
    "CREATING",
    "RUNNING",
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "DELETING",
    "WRITING_RESULTS",
    "VALIDATING",
)
"""Names of the host's job states, indexed by their enum number. Higher numbers are unknown."""
METRIC_NAMES = {
    "train/loss": "train_loss",
    "loss": "train_loss",
    "train_loss": "train_loss",
    "eval/loss": "valid_loss",
    "eval_loss": "valid_loss",
    "validation/loss": "valid_loss",
    "train/accuracy": "train_accuracy",
    "eval/accuracy": "valid_accuracy",
    "train/learning_rate": "learning_rate",
    "train/lr": "learning_rate",
    "learning_rate": "learning_rate",
    "lr": "learning_rate",
    "train/grad_norm": "grad_norm",
    "grad_norm": "grad_norm",
    "train/token": "tokens",
    "train/tokens_per_second": "tokens_per_second",
}
_EPOCHS = ("train/epoch", "epoch")


def state_of(value: Any) -> str:
    """Normalize the host's state, which may be `JOB_STATE_RUNNING`, `RUNNING`, `JobState.RUNNING` or 2."""
    if isinstance(value, int) and not isinstance(value, bool):
        return _PREFIX + _NUMBERED[value] if 0 <= value < len(_NUMBERED) else str(value)
    word = str(value or "").rsplit(".", 1)[-1]
    if word.isdigit():
        return state_of(int(word))
    named = word if word.startswith(_PREFIX) else _PREFIX + word.upper()
    return named if named in PROFILE.statuses else word


def id_of(name: Any) -> str:
    """Return the id from a resource name: `accounts/a/dpoJobs/x` -> `x`."""
    return str(name or "").rsplit("/", 1)[-1]


def job_of(raw: Mapping[str, Any], kind: str, ref: str | None = None, provider: str = "fireworks") -> Job:
    state = state_of(raw.get("state"))
    status = PROFILE.status(state)
    progress = table(raw.get("jobProgress"))
    config = settings_of(raw)
    cost = usd_of(raw.get("estimatedCost"))
    job_id = id_of(raw.get("name"))
    ended = when(raw.get("completedTime")) or when(raw.get("updateTime"))
    return Job(
        handle=JobHandle(provider=provider, job_id=job_id, ref=ref or ref_in(job_id), kind=kind),
        status=status,
        raw_status=state,
        model=text(config.get("baseModel")) or text(config.get("warmStartFrom")),
        created_at=when(raw.get("createTime")),
        finished_at=ended if status.terminal else None,
        tuned_model=tuned_model(raw) if status is JobStatus.SUCCEEDED else None,
        trained_tokens=integer(progress.get("inputTokens")) or None,
        epochs=integer(config.get("epochs")),
        batch_size=integer(config.get("batchSizeSamples")),
        epoch=number(progress.get("epoch")),
        percent=number(progress.get("percent")),
        early_stopped=state == "JOB_STATE_EARLY_STOPPED",
        error=_error(raw, state) if status is JobStatus.FAILED else None,
        cost_usd=cost or None,
        cost_origin="estimatedCost" if cost else None,
        accelerator_seconds={
            gpu: seconds
            for gpu, value in table(raw.get("acceleratorSeconds")).items()
            if (seconds := integer(value)) is not None
        },
        payload=payload(dict(raw)),
    )


def settings_of(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the job's hyperparameters, which are at the top level (SFT) or in `trainingConfig`."""
    return table(raw.get("trainingConfig")) or raw


def tuned_model(raw: Mapping[str, Any]) -> str:
    """Return the full name of the tuned model. If a job names no output model, the model has the job's id."""
    account = "/".join(str(raw.get("name")).split("/")[:2])
    given = text(settings_of(raw).get("outputModel")) or id_of(raw.get("name"))
    return given if given.startswith("accounts/") else f"{account}/models/{given}"


def usd_of(value: Any) -> Decimal | None:
    """Convert a `Money` object to US dollars. It holds the whole units as a string and the billionths as a
    number."""
    amount = table(value)
    if not amount or amount.get("currencyCode", "USD") != "USD":
        return None
    units, billionths = money(amount.get("units") or 0), nanos(amount.get("nanos") or 0)
    return None if units is None or billionths is None else units + billionths


def _error(raw: Mapping[str, Any], state: str) -> JobError:
    status = table(raw.get("status"))
    word = state.removeprefix(_PREFIX).lower()
    return JobError(message=text(status.get("message")) or word, code=text(status.get("code")) or word)


# -- events ------------------------------------------------------------------------------------------------


def events_of(raw: Mapping[str, Any]) -> list[Event]:
    """Derive events from a job's creation time, progress and state, oldest first."""
    job = job_of(raw, "")
    made = job.created_at or when(raw.get("updateTime"))
    now = when(raw.get("updateTime")) or made
    if made is None or now is None:
        return []
    events = [Event(id="created", at=made, level="info", message="job created", type="created")]
    progress = _progress(job, now)
    state = _state(job, job.finished_at or now)
    events += [state, *progress] if not job.status.terminal else [*progress, state]
    return events


def _state(job: Job, at: datetime) -> Event:
    word = job.raw_status.removeprefix(_PREFIX).lower().replace("_", " ")
    failed = job.error is not None
    return Event(
        id=f"state-{job.raw_status}",
        at=at,
        level="error" if failed else "info",
        message=f"{word}: {job.error.message}" if job.error is not None else f"job is {word}",
        type="state",
        data={"state": job.raw_status},
    )


def _progress(job: Job, at: datetime) -> list[Event]:
    if job.percent is None or (job.percent == 0 and not job.epoch):
        return []
    epoch = f"epoch {job.epoch:g}, " if job.epoch is not None else ""
    return [
        Event(
            id=f"progress-{job.epoch or 0:g}-{job.percent:g}",
            at=at,
            level="info",
            message=f"{epoch}{job.percent:g} %",
            type="progress",
            data={"percent": job.percent, "epoch": job.epoch},
        )
    ]


# -- metrics -----------------------------------------------------------------------------------------------


def metrics_of(lines: Iterable[str]) -> list[MetricPoint]:
    """Build one metric point for each step from the lines of the metrics file. Lines of the same step are
    merged. Lines that are not JSON objects are skipped."""
    points: dict[int, MetricPoint] = {}
    for line_number, line in enumerate(lines, start=1):
        row = _row(line)
        if not row:
            continue
        data = table(row.get("data")) or row
        step = integer(row.get("step"))
        step = line_number if step is None else step
        before = points.get(step)
        values = {
            METRIC_NAMES.get(key, key): found
            for key, value in data.items()
            if key not in ("step", "timestamp", *_EPOCHS) and (found := metric(value)) is not None
        }
        epoch = next((e for key in _EPOCHS if (e := number(data.get(key))) is not None), None)
        points[step] = MetricPoint(
            step=step,
            values={**(before.values if before else {}), **values},
            at=when(row.get("timestamp")) or (before.at if before else None),
            epoch=epoch if epoch is not None else (before.epoch if before else None),
        )
    return [points[step] for step in sorted(points) if points[step].values]


def _row(line: str) -> dict[str, Any]:
    try:
        return table(json.loads(line))
    except ValueError:
        return {}


def models_of(rows: Iterable[Mapping[str, Any]]) -> list[HostModel]:
    """Parse `GET /v1/accounts/fireworks/models`: `tunable`, `rlTunable`, `trainingContextLength`,
    `deprecationDate`."""
    found: list[HostModel] = []
    for row in rows:
        if not row.get("name"):
            continue
        details: Mapping[str, Any] = row.get("baseModelDetails") or {}
        context = int(row.get("trainingContextLength") or 0)
        tunable = bool(row.get("tunable") or details.get("tunable"))
        found.append(
            HostModel(
                id=str(row["name"]),
                tunable="yes" if tunable else "no",
                methods=("sft", "dpo", "rft") if row.get("rlTunable") else ("sft", "dpo"),
                context=(context, context) if context else None,
                shutdown=_day(row.get("deprecationDate")),
            )
        )
    return found


def _day(value: Any) -> date | None:
    """Parse a date from text (with or without a time) or from `{year, month, day}`. `None` for anything
    else."""
    with suppress(ValueError, TypeError, KeyError):
        if isinstance(value, Mapping):
            day = cast("Mapping[str, int]", value)
            return date(int(day["year"]), int(day["month"]), int(day["day"]))
        return date.fromisoformat(str(value)[:10]) if value else None
    return None


# -- a job's settings ----------------------------------------------------------------------------------------
# The job's epochs and the token count of its dataset, as reported by Fireworks, determine its price.


METHODS: Mapping[str | None, Any] = {"supervised": "sft", "dpo": "dpo", "reinforcement": "rft"}


def job_recovery(job: Job, dataset: Callable[[str], Mapping[str, Any] | None]) -> JobRecovery:
    """Return the properties of a job that determine its price. `dataset` takes a dataset's id and returns its
    record. The evaluation dataset is ignored, because it is not billed."""
    name = text(job.payload.get("dataset"))
    record = (dataset(id_of(name)) if name and job.cost_usd is None else None) or {}
    return JobRecovery(
        method=METHODS.get(job.handle.kind, "sft"),
        epochs=integer(settings_of(job.payload).get("epochs")),
        rows=integer(record.get("exampleCount")),
        train_tokens=integer(record.get("estimatedTokenCount")) or None,
        average_turns=number(record.get("averageTurnCount")) or 1.0,
    )


_WHOLE = {
    "epochs": "epochs",
    "batchSizeSamples": "batch_size",
    "learningRateWarmupSteps": "warmup_steps",
    "samplerCheckpointSaveIntervalSteps": "checkpoint_steps",
}
_REAL = {"learningRate": "learning_rate", "optimizerWeightDecay": "weight_decay"}
_OPTIONS = ("jinjaTemplate",)
_JOB_OPTIONS = ("evalAutoCarveout", "rendererHuggingFaceRepoId", "chunkSize", "mcpServer")
_NOT_HELD = ("batchSize", "gradientAccumulationSteps", "earlyStop", "wandbConfig")
"""Settings that the trainer no longer accepts, and the W&B project, which needs the user's key."""


def reported_settings(job: Job) -> ReportedSettings:
    """Return the settings and datasets of a job. A 0 is the same as an unset field. Leaves out where a job
    runs, such as its region."""
    raw = job.payload
    own = settings_of(raw)
    kind, place = METHODS.get(job.handle.kind, "sft"), "trainingConfig." if own is not raw else ""
    spec: dict[str, Any] = {ours: value for name, ours in _WHOLE.items() if (value := integer(own.get(name)))}
    spec |= {ours: value for name, ours in _REAL.items() if (value := number(own.get(name)))}
    options = {f"{place}{name}": own[name] for name in _OPTIONS if own.get(name)}
    options |= {name: raw[name] for name in _JOB_OPTIONS if raw.get(name)}
    left_out = {name: value for name in _NOT_HELD if (value := own.get(name) or raw.get(name))}
    if left_out.get("gradientAccumulationSteps") == 1:
        del left_out["gradientAccumulationSteps"]
    if earlier := text(own.get("warmStartFrom")):
        spec["continue_from"] = earlier
    if rank := integer(own.get("loraRank")):
        given = {"alpha": number(own.get("loraAlpha")), "dropout": number(own.get("loraDropout"))}
        given["targets"] = own.get("loraTargetModules")
        spec["adapter"] = {"type": "lora", "r": rank, **{n: v for n, v in given.items() if v}}
    length = integer(own.get("maxContextLength"))
    if length and length != catalog.usual_length(job.model or "unknown", PROFILE, kind):
        spec["max_seq_length"] = length
    schedule, settings = next(iter(table(own.get("lrScheduler")).items()), (None, None))
    if schedule is not None:
        spec["schedule"], rest = schedule, dict(table(settings))
        spec |= {"min_lr_ratio": least} if (least := number(rest.pop("minLrRatio", None))) else {}
        left_out |= {f"lrScheduler.{schedule}.{name}": value for name, value in rest.items() if value}
    method, more, not_held = _method(raw, kind)
    spec |= method
    if options := options | more:
        spec["provider_options"] = {job.handle.provider: options}
    named = {"train": "dataset", "validation": "evaluationDataset"}
    files = {split: id_of(id) for split, field in named.items() if (id := text(raw.get(field)))}
    return ReportedSettings(spec=spec, files=files, left_out=left_out | not_held)


def _method(raw: Mapping[str, Any], kind: str) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the spec's method, its settings that go into `provider_options`, and those that a spec cannot
    hold."""
    if kind == "sft":
        return {}, {}, {}
    loss = table(raw.get("lossConfig"))
    name = text(loss.get("method"))
    name = None if name == "METHOD_UNSPECIFIED" else name
    if kind == "dpo":
        beta = number(table(loss.get("dpo")).get("beta"))
        if name == "ORPO":
            beta = number(table(loss.get("orpo")).get("lambda"))
        method: dict[str, Any] = {"type": "dpo"} | ({"loss": "orpo"} if name == "ORPO" else {})
        other = {"lossConfig.method": name} if name not in (None, "DPO", "ORPO") else {}
        return {"method": method | ({"beta": beta} if beta else {})}, {}, other
    method = {"type": "rft", "grader": {"evaluator": text(raw.get("evaluator")) or "unknown"}}
    sampling = dict(table(raw.get("inferenceParameters")))
    if samples := integer(sampling.pop("responseCandidatesCount", None)):
        method["samples_per_prompt"] = samples
    if beta := number(loss.get("klBeta")):
        method["kl_beta"] = beta
    options = {f"inferenceParameters.{key}": value for key, value in sampling.items() if value}
    return {"method": method}, options | ({"lossConfig.method": name} if name else {}), {}


# -- the host's estimate of a price ------------------------------------------------------------------------
# Fireworks estimates a job's price in `:estimateCost`.


def estimate(provider: str, model: str, answer: Mapping[str, Any]) -> Quote:
    total = usd_of(answer.get("estimatedCost"))
    if total is None:
        return Quote(provider=provider, model=model, unavailable="Fireworks returned no price")
    return estimate_quote(provider, model, total, "Fireworks' own estimate (estimateCost)")


# -- tokenized rows ------------------------------------------------------------------------------------------


def rendered_of(lines: Iterable[str]) -> list[RowTokens]:
    """Parse the host's tokenized rows of an SFT job, with token ids and loss masks, and sort them by row
    number. Lines that are not samples are skipped.

    Source: docs.fireworks.ai, "Debug SFT tokenization". The samples are JSON lines with
    `source_jsonl_line_number`, `token_ids`, `decoded_tokens` and `token_weights`, which are 0 for context. A
    row may be split into several sequences (`split_index`), each one turn longer than the previous."""
    found = [row for line in lines for row in _rendered(line)]
    return sorted(found, key=lambda row: row.row)


def _rendered(line: str) -> Iterator[RowTokens]:
    from orchestrate.data.operations.preview import RowTokens, Token  # late: it is heavy

    try:
        sample = table(json.loads(line))
    except ValueError:
        return
    ids, decoded, weights = (_list(sample, n) for n in ("token_ids", "decoded_tokens", "token_weights"))
    row = integer(sample.get("source_jsonl_line_number"))
    if row is None or not ids or not len(ids) == len(decoded) == len(weights):
        return
    tokens = tuple(
        Token(id=integer(i) or 0, text=str(t), weight=number(w) or 0.0)
        for i, t, w in zip(ids, decoded, weights, strict=True)
    )
    note = f"renderer {text(sample.get('renderer'))}, trained on {text(sample.get('train_on_what'))}"
    split = integer(sample.get("split_index"))
    part = (f"part {split + 1} of this row",) if split else ()
    trained = sum(token.weight > 0 for token in tokens)
    yield RowTokens(row=row, tokens=tokens, trained=trained, truncated=0, notes=(note, *part))


def _list(sample: dict[str, Any], name: str) -> list[Any]:
    value = sample.get(name)
    return value if isinstance(value, list) else []  # pyright: ignore[reportUnknownVariableType]
