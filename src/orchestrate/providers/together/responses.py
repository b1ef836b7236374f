"""Parsing of Together's responses into Orchestrate's records.

Sources: both versions of the SDK's `FinetuneResponse` (in `types/` and `lib/types/`), its `FinetuneEvent`,
and the names of metrics in the API's responses (`train/loss`, `eval/loss`)."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from math import isfinite
from typing import Any

from orchestrate import catalog
from orchestrate import text as say
from orchestrate.catalog import HostModel, search
from orchestrate.errors import (
    ProviderError,
    QuotaExceeded,
    UsageError,
)
from orchestrate.providers.calls import (
    estimate_quote,
    integer,
    metric,
    money,
    nanos,
    number,
    payload,
    rows,
    suffix_of,
    table,
    text,
    when,
)
from orchestrate.providers.sessions import (
    Row,
    array_of,
)
from orchestrate.providers.together import PROFILE
from orchestrate.types import (
    Checkpoint,
    Event,
    Job,
    JobError,
    JobHandle,
    JobRecovery,
    JobStatus,
    MetricPoint,
    Quote,
    Record,
    ReportedSettings,
)

METRIC_NAMES = {
    "train/loss": "train_loss",
    "eval/loss": "valid_loss",
    "train/accuracy": "train_accuracy",
    "eval/accuracy": "valid_accuracy",
    "train/learning_rate": "learning_rate",
    "train/grad_norm": "grad_norm",
    "train/tokens": "tokens",
    "train/tokens_per_second": "tokens_per_second",
}
_LEVELS = {"warning": "warning", "iwarning": "warning", "error": "error", "ierror": "error"}
_ERROR_EVENTS = ("job_error", "job_user_error", "billing_limit")


def job_of(raw: Mapping[str, Any], ref: str | None, provider: str = "together") -> Job:
    """Parse one job. The stored payload excludes the job's `events`, because they are read separately."""
    status = text(raw.get("status")) or ""
    known = PROFILE.status(status)
    updated = when(raw.get("updated_at"))
    step, total = integer(raw.get("steps_completed")), integer(raw.get("total_steps"))
    price = nanos(raw.get("total_price"))
    return Job(
        handle=JobHandle(provider=provider, job_id=str(raw.get("id") or ""), ref=ref),
        status=known,
        raw_status=status,
        model=text(raw.get("model")),
        created_at=when(raw.get("created_at")),
        started_at=when(raw.get("started_at")),
        finished_at=updated if known.terminal else None,
        estimated_finish=_estimate(raw, updated) if known is JobStatus.RUNNING else None,
        tuned_model=text(raw.get("model_output_name")) if known is JobStatus.SUCCEEDED else None,
        trained_tokens=integer(raw.get("token_count")) or None,
        step=step,
        total_steps=total,
        epoch=number(raw.get("epochs_completed")),
        percent=round(100 * step / total, 1) if step is not None and total else None,
        early_stopped=raw.get("early_stopped") is True,
        error=_error(raw, status) if known is JobStatus.FAILED else None,
        cost_usd=price or None,
        cost_origin="total_price" if price else None,
        payload=payload({k: v for k, v in raw.items() if k not in ("events", "wandb_key")}),
    )


def _estimate(raw: Mapping[str, Any], updated: datetime | None) -> datetime | None:
    progress = table(raw.get("progress"))
    seconds = number(progress.get("seconds_remaining"))
    if progress.get("estimate_available") is not True or seconds is None:
        return None
    return (updated or datetime.now(UTC)) + timedelta(seconds=seconds)


def _error(raw: Mapping[str, Any], status: str) -> JobError:
    events = [e for e in rows(raw.get("events")) if str(e.get("type", "")).lower() in _ERROR_EVENTS]
    fallback = {
        "user_error": "Together rejected the data or the W&B settings. For details: orchestrate events RUN",
        "error": "Together had a platform failure. It refunds this job and restarts it under a new id",
    }
    return JobError(
        message=text(events[-1].get("message")) or status if events else fallback[status], code=status
    )


# -- events ------------------------------------------------------------------------------------------------


def events_of(raw: Iterable[Mapping[str, Any]]) -> list[Event]:
    """Parse events, oldest first. The host gives events no ids, so an event's hash becomes its id. Newer
    events have no hash, and their ids are derived from their content. Repeated events are numbered. The ids
    never change."""
    seen: Counter[str] = Counter()
    events: list[Event] = []
    for entry in sorted(raw, key=lambda e: when(e.get("created_at")) or datetime.min.replace(tzinfo=UTC)):
        kind = str(entry.get("type") or "message").lower()
        base = text(entry.get("hash")) or _fingerprint(entry, kind)
        seen[base] += 1
        events.append(
            Event(
                id=base if seen[base] == 1 else f"{base}-{seen[base]}",
                at=when(entry.get("created_at")) or datetime.fromtimestamp(0, UTC),
                level=_LEVELS.get(str(entry.get("level") or "info").lower().removeprefix("legacy_"), "info"),
                message=text(entry.get("message")) or kind.replace("_", " "),
                type=kind,
                step=integer(entry.get("step")) or None,
                data=payload(
                    {
                        k: v
                        for k, v in entry.items()
                        if k not in ("object", "created_at", "level", "message", "type", "hash", "step")
                        and v not in (None, "", 0)
                    }
                ),
            )
        )
    return events


def _fingerprint(entry: Mapping[str, Any], kind: str) -> str:
    words = [str(entry.get(k)) for k in ("created_at", "message", "step", "checkpoint_path")]
    return "ev-" + hashlib.sha256("\n".join([kind, *words]).encode()).hexdigest()[:20]


# -- metrics and checkpoints -------------------------------------------------------------------------------


def metrics_of(raw: Iterable[Mapping[str, Any]]) -> list[MetricPoint]:
    """Build one point for each step. An evaluation row without a step belongs to the previous training
    row."""
    values: dict[int, dict[str, float]] = {}
    times: dict[int, datetime] = {}
    epochs: dict[int, float] = {}
    step = 0
    for row in raw:
        reported = next((integer(v) for k, v in row.items() if k.endswith("global_step")), None)
        step = step if reported is None else reported
        point = values.setdefault(step, {})
        for key, value in row.items():
            found = metric(value)
            if found is None or key.endswith("global_step"):
                continue
            if key == "timestamp":
                if at := when(found):
                    times.setdefault(step, at)
            elif key.endswith("/epoch"):
                if isfinite(found):
                    epochs.setdefault(step, found)
            else:
                point[METRIC_NAMES.get(key, key)] = found
    return [
        MetricPoint(step=s, values=values[s], at=times.get(s), epoch=epochs.get(s))
        for s in sorted(values)
        if values[s]
    ]


def checkpoints_of(raw: Iterable[Mapping[str, Any]], job_id: str) -> list[Checkpoint]:
    """List the checkpoints. Ids are `STEP:KIND` (`12:adapter`, `12:model`), for use with `download`. Each
    checkpoint's `model` is the value for `continue_from`."""
    found: list[Checkpoint] = []
    for entry in raw:
        step = integer(entry.get("step"))
        kind = text(entry.get("checkpoint")) or _kind(text(entry.get("checkpoint_type")) or "")
        found.append(
            Checkpoint(
                id=f"{step}:{kind}" if step is not None else kind,
                step=step,
                created_at=when(entry.get("created_at")),
                model=f"{job_id}:{step}" if step is not None else job_id,
            )
        )
    return sorted(found, key=lambda c: (c.step or 0, c.id))


def _kind(label: str) -> str:
    return "adapter" if "adapter" in label.lower() else "model"


class TokenMask(Record, frozen=True, kw_only=True):
    """A row as tokenized by the host."""

    tokens: tuple[str, ...]
    trained: tuple[bool, ...]
    """True for each token that contributes to the loss."""
    truncated: bool = False


def masks_of(raw: Iterable[Mapping[str, Any]]) -> list[TokenMask]:
    masks: list[TokenMask] = []
    for row in raw:
        tokens = tuple(str(t) for t in row.get("tokens") or ())
        spans = [(int(a), int(b)) for a, b in row.get("trained_spans") or ()]
        trained = tuple(any(a <= n < b for a, b in spans) for n in range(len(tokens)))
        masks.append(TokenMask(tokens=tokens, trained=trained, truncated=row.get("truncated") is True))
    return masks


def selection(checkpoint: str | None, full: bool) -> dict[str, Any]:
    """Convert an id from `checkpoints_of` to `checkpoint` and `checkpoint_step` of the download request."""
    if checkpoint is None:
        return {"checkpoint": "model_output_path" if full else "adapter"}
    step, _, kind = checkpoint.partition(":") if checkpoint[:1].isdigit() else ("", "", checkpoint)
    words = {"": "adapter", "adapter": "adapter", "model": "merged", "merged": "merged"}
    if kind not in words or (step and not step.isdigit()):
        raise UsageError(
            f"{checkpoint!r} is not a checkpoint of a Together job",
            fix="use `adapter` or `merged` for the final model. To list the checkpoints: "
            "orchestrate checkpoints RUN",
        )
    chosen = {"checkpoint": "model_output_path" if full else words[kind]}
    return chosen | ({"checkpoint_step": int(step)} if step else {})


def models_of(rows: Iterable[Mapping[str, Any]]) -> list[HostModel]:
    """Parse `GET /v2/supported-models?product=PRODUCT_FINE_TUNING`. Identify each model by
    its `id` if the catalog contains it, otherwise by its `name`."""
    known = {m.hosts[PROFILE.kind].id for m in search(provider=PROFILE.kind)}
    found: list[HostModel] = []
    for row in rows:
        names = [str(row[field]) for field in ("id", "name") if row.get(field)]
        if names:
            id = next((name for name in names if name in known), names[-1])
            gone = row.get("status") == "SUPPORTED_MODEL_STATUS_HIDDEN"
            found.append(HostModel(id=id, tunable="no" if gone else "yes"))
    return found


# -- what determines a job's price -------------------------------------------------------------------------
# What Together reports about a job that its price depends on: its settings, and the bytes and rows of its
# files.


def job_recovery(job: Job, file: Callable[[str], Mapping[str, Any]]) -> JobRecovery | None:
    """Return the properties of a job that determine its price, or `None` for an unknown method. `file` takes
    a file's id and returns its record."""
    payload = job.payload
    full = text(table(payload.get("training_type")).get("type")) == "Full"
    method = table(payload.get("training_method")).get("method")
    if method not in (None, "sft", "dpo"):
        return None
    needed = job.cost_usd is None
    train = _file_of(payload.get("training_file"), file, needed)
    evals = integer(payload.get("n_evals")) or 0
    validation = _file_of(payload.get("validation_file"), file, needed and evals > 0)
    return JobRecovery(
        method="dpo" if method == "dpo" else "sft",
        adapter="full" if full else "lora",
        epochs=integer(payload.get("n_epochs")),
        evals=evals if validation else 0,
        packing=payload.get("packing") is not False,
        max_length=integer(payload.get("max_seq_length")),
        rows=integer(table(train.get("validation_report")).get("nlines")),
        train_bytes=integer(train.get("bytes")),
        validation_bytes=integer(validation.get("bytes")),
    )


def _file_of(name: Any, file: Callable[[str], Mapping[str, Any]], needed: bool) -> Mapping[str, Any]:
    return file(name) if needed and isinstance(name, str) and name else {}


USUAL = {"warmup_ratio": 0.0, "weight_decay": 0.0, "max_grad_norm": 1.0}
"""Together's defaults, which it reports for each job, including those that were not set."""
_SEED = 42
"""Together's default seed."""
_OPTIONS = ("multimodal_params", "from_hf_model", "hf_model_revision", "early_stopping_warmup_evals")


def reported_settings(job: Job) -> ReportedSettings:
    """Return the spec settings and the file ids that a job was created with, from the host's job record.
    Leaves out Together's defaults."""
    raw = job.payload
    spec = _numbers(raw)
    if raw.get("packing") is False:
        spec["packing"] = False
    if suffix := suffix_of(text(raw.get("suffix")), job.handle.ref):
        spec["suffix"] = suffix
    if earlier := text(raw.get("from_checkpoint")):
        spec["continue_from"] = earlier
    if raw.get("early_stopping_enabled") is True:
        given = {name: number(raw.get(f"early_stopping_{name}")) for name in ("patience", "min_delta")}
        spec["early_stopping"] = {name: value for name, value in given.items() if value is not None}
    method, not_held = _method(raw)
    schedule, no_schedule = _schedule(table(raw.get("lr_scheduler")))
    spec |= method | _adapter(table(raw.get("training_type"))) | schedule
    length, kind = integer(raw.get("max_seq_length")), str(method.get("method", {}).get("type", "sft"))
    if length and length != catalog.usual_length(job.model or "unknown", PROFILE, kind):
        spec["max_seq_length"] = length
    named = {"train": "training_file", "validation": "validation_file"}
    files = {split: id for split, field in named.items() if (id := text(raw.get(field)))}
    if "validation" not in files:
        spec.pop("evals", None)
    if options := {name: raw[name] for name in _OPTIONS if raw.get(name)}:
        spec["provider_options"] = {job.handle.provider: options}
    left_out = not_held | no_schedule
    if project := text(raw.get("wandb_project_name")):
        left_out["wandb_project_name"] = project  # needs the user's key
    return ReportedSettings(spec=spec, files=files, left_out=left_out)


def _numbers(raw: Mapping[str, Any]) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    for name, ours in (("n_epochs", "epochs"), ("n_evals", "evals")):
        if value := integer(raw.get(name)):
            spec[ours] = value
    if batch := integer(raw.get("batch_size")):
        # The spec counts all rows of a step, Together those of one accumulated part.
        steps = integer(raw.get("gradient_accumulation_steps")) or 1
        spec["batch_size"] = batch * steps
        spec |= {"gradient_accumulation": steps} if steps > 1 else {}
    if (count := integer(raw.get("n_checkpoints")) or 1) > 1:
        spec["checkpoints"] = count
    if (rate := number(raw.get("learning_rate"))) is not None:
        spec["learning_rate"] = rate
    for name, usual in USUAL.items():
        if (value := number(raw.get(name))) not in (None, usual):
            spec[name] = value
    if (seed := integer(raw.get("random_seed"))) not in (None, _SEED):
        spec["seed"] = seed
    return spec


def _method(raw: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec's method, and what it cannot hold."""
    method = table(raw.get("training_method"))
    kind = method.get("method")
    if kind == "dpo":
        named = {"beta": "dpo_beta", "rpo_alpha": "rpo_alpha", "simpo_gamma": "simpo_gamma"}
        given = {ours: number(method.get(name)) for ours, name in named.items()}
        chosen: dict[str, Any] = {name: value for name, value in given.items() if value}
        simpo = "simpo_gamma" in chosen  # has no reference model and normalizes by length
        if method.get("dpo_normalize_logratios_by_length") is True and not simpo:
            chosen["normalize_by_length"] = True
        free = method.get("dpo_reference_free") is True and not simpo
        return {"method": {"type": "dpo", **chosen}}, {"dpo_reference_free": True} if free else {}
    if kind not in (None, "sft"):
        return {"method": {"type": str(kind)}}, {
            name: value for name, value in method.items() if name != "method"
        }
    if isinstance(on_all := method.get("train_on_inputs", raw.get("train_on_inputs")), bool):
        return {"method": {"type": "sft", "train_on_inputs": on_all}}, {}
    return {}, {}


def _adapter(kind: Mapping[str, Any]) -> dict[str, Any]:
    if text(kind.get("type")) == "Full":
        return {"adapter": {"type": "full"}}
    if not (rank := integer(kind.get("lora_r"))):
        return {}
    adapter: dict[str, Any] = {"type": "lora", "r": rank}
    for ours, name in (("alpha", "lora_alpha"), ("dropout", "lora_dropout")):
        adapter |= {ours: value} if (value := number(kind.get(name))) else {}
    modules = text(kind.get("lora_trainable_modules"))
    if modules not in (None, "all-linear"):
        adapter["targets"] = modules.split(",")
    return {"adapter": adapter}


def _schedule(scheduler: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the spec's schedule, and what it cannot hold."""
    kind, args = text(scheduler.get("lr_scheduler_type")), table(scheduler.get("lr_scheduler_args"))
    least, cycles = number(args.get("min_lr_ratio")) or 0.0, number(args.get("num_cycles"))
    if kind == "linear" and least == 1:
        return {"schedule": "constant"}, {}
    if kind not in ("linear", "cosine") or (kind == "cosine" and cycles not in (None, 0.5)):
        return {}, {"lr_scheduler": dict(scheduler)} if scheduler else {}
    if kind == "cosine" and not least:
        return {}, {}  # the default
    return {"schedule": kind} | ({"min_lr_ratio": least} if least else {}), {}


# -- the host's price estimate -----------------------------------------------------------------------------
# Together's own estimate of a job's price (`/v1/fine-tunes/estimate-price`).


_FIELDS = (
    "training_file",
    "validation_file",
    "model",
    "from_checkpoint",
    "n_epochs",
    "n_evals",
    "training_type",
    "training_method",
)
_NO_ESTIMATE = {
    "multimodal_dataset": "Together does not estimate prices for data with images",
    "train_file_not_validated": "Together is still validating the training file",
    "eval_file_not_validated": "Together is still validating the validation file",
    "train_file_invalid": "the training file is not valid",
    "eval_file_invalid": "the validation file is not valid",
}


def estimated(body: Mapping[str, Any]) -> dict[str, Any]:
    """Reduce a create request to the fields that the estimate endpoint accepts. The endpoint has no fields
    for packing or the maximum length."""
    return {key: body[key] for key in _FIELDS if key in body}


def estimate(provider: str, model: str, answer: Mapping[str, Any]) -> Quote:
    """Parse the host's estimate. Raises `QuotaExceeded` if it exceeds the account's limit."""
    total = money(answer.get("estimated_total_price"))
    if answer.get("estimation_available") is False or total is None:
        reason = text(answer.get("unavailable_reason")) or "Together returned no price"
        return Quote(provider=provider, model=model, unavailable=_NO_ESTIMATE.get(reason, reason))
    if answer.get("allowed_to_proceed") is False:
        limit = money(answer.get("user_limit"))
        allowed = "an unstated amount" if limit is None else say.limit(limit)
        raise QuotaExceeded(
            provider,
            f"Together estimates the job at {say.money(total)}, more than the account may spend ({allowed}). "
            "No job was created",
            fix="add credits to your Together account, or train on fewer tokens",
        )
    train = number(answer.get("estimated_train_token_count")) or 0
    evaluated = number(answer.get("estimated_eval_token_count")) or 0
    note = f"{train:,.0f} training and {evaluated:,.0f} evaluation tokens, without the effect of packing"
    source = "Together's own estimate (estimate-price)"
    return estimate_quote(provider, model, total, source, note=note, tokens=int(train + evaluated) or None)


# -- rows and answers of training sessions ---------------------------------------------------------------


_SUPPORTED = frozenset({"target_tokens", "weights", "mask", "logprobs", "advantages"})


def tensor(values: Sequence[float], dtype: str = "float32") -> dict[str, Any]:
    return {"data": list(values), "dtype": dtype}


def sample_of(number: int, row: Row, loss: str) -> dict[str, Any]:
    """Convert a row to Together's sample format. Raises `UsageError` if Together does not accept the row's
    inputs or would compute a different loss."""
    import numpy as np  # the base install has none

    inputs: dict[str, Any] = {}
    for name, value in row["inputs"].items():
        if name not in _SUPPORTED:
            raise UsageError(f"row {number}: Together's loss functions do not accept the input {name!r}")
        array = array_of(value)
        if array.ndim != 1:
            raise UsageError(
                f"row {number}: Together expects one {name} per token (got shape {list(array.shape)})"
            )
        if loss != "cross_entropy" and name == "weights" and not np.isin(array, (0, 1)).all():
            raise UsageError(f"row {number}: with {loss}, Together accepts only the weights 0 and 1")
        inputs[name] = tensor(array.tolist(), "int64" if name == "target_tokens" else "float32")
    if loss == "cross_entropy" and "weights" not in inputs and "target_tokens" in inputs:
        inputs["weights"] = tensor([1.0] * len(inputs["target_tokens"]["data"]))
    chunk = {"encoded_text": {"tokens": list(row["tokens"])}}
    return {"model_input": {"chunks": [chunk]}, "loss_fn_inputs": inputs}


def forward_answer(
    done: Any, given: Sequence[Mapping[str, Any]], weighed: Sequence[Mapping[str, Any]] | None
) -> dict[str, Any]:
    """Parse the result of a forward pass. If `weighed` (the rows with their loss weights) is given, compute
    the cross-entropy loss on this machine from all log-probabilities and these weights. Otherwise, return the
    loss that the host computed."""
    import numpy as np

    found = [np.asarray(one.tensors["logprobs"].data, dtype="<f4") for one in done.loss_fn_outputs or ()]
    if len(found) != len(given):
        raise ProviderError(
            "together", f"received log-probabilities for {len(found)} rows instead of {len(given)}"
        )
    loss = float(done.loss)
    if weighed is not None:
        loss = float(
            sum(-(lp * np.asarray(row["weights"])).sum() for lp, row in zip(found, weighed, strict=True))
        )
    metrics = {**dict(done.metrics or {}), "loss:sum": loss}
    if all("logprobs" in row for row in given):
        apart = sum(abs(lp - row["logprobs"]).sum() for lp, row in zip(found, given, strict=True))
        metrics["sampled_logprob_difference:sum"] = float(apart)
    return {"logprobs": found, "metrics": metrics}


def sequence_of(one: Any) -> dict[str, Any]:
    stop = "stop" if one.stop_reason == "STOP_REASON_STOP" else "length"
    return {"stop": stop, "tokens": [int(id) for id in one.tokens], "logprobs": list(one.logprobs or ())}
