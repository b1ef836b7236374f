"""A create request as a spec: what OpenAI's fields come to on any backend."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from orchestrate.errors import SpecError
from orchestrate.gateway.terms import Target
from orchestrate.spec import JobSpec
from orchestrate.wire.bodies import HostError
from orchestrate.wire.openai.tuning import CreateJob, Dpo, Reinforcement, Supervised

_METHODS = {"sft": "supervised", "dpo": "dpo", "rft": "reinforcement"}
_LONGEST_SUFFIX = 40


@dataclass(frozen=True)
class Wish:
    """The spec, and what was decided on the way, for people."""

    spec: JobSpec
    notes: tuple[str, ...]


def wish_of(
    asked: CreateJob, target: Target, train: str, validation: str | None, continued: str | None = None
) -> Wish:
    """`train` and `validation` are paths; `continued` is the run whose model is trained on. Raises
    `HostError` 422 for what a spec cannot say."""
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
    if isinstance(hyper, Reinforcement) and (steps := _number(hyper.eval_interval)) is not None:
        fields["eval_steps"] = steps
    notes.insert(0, f"{asked.model} is {target.model} on {target.backend} here")
    try:
        spec = JobSpec.parse({name: value for name, value in fields.items() if value is not None})
    except SpecError as error:
        raise HostError(422, error.message, code="invalid_request") from error
    return Wish(spec, tuple(notes))


def hyperparameters(asked: CreateJob) -> Supervised:
    """Those of the method, with what the older field says beside them."""
    hyper = asked.hyper()
    if asked.method is None or asked.hyperparameters is None:
        return hyper
    older = asked.hyperparameters.model_dump(exclude_unset=True)
    return hyper.model_copy(
        update={name: value for name, value in older.items() if name not in hyper.model_fields_set}
    )


def shown(asked: CreateJob) -> tuple[dict[str, Any], dict[str, Any]]:
    """`hyperparameters` and `method` as a job shows them."""
    hyper = hyperparameters(asked)
    kind = _METHODS[asked.kind()]
    values = hyper.model_dump()
    inner: dict[str, Any] = {"hyperparameters": values}
    if asked.kind() == "rft" and asked.method and asked.method.reinforcement:
        inner["grader"] = asked.method.reinforcement.grader
    three = {name: values[name] for name in ("n_epochs", "batch_size", "learning_rate_multiplier")}
    return three, {"type": kind, kind: inner}


def _method(asked: CreateJob, hyper: Supervised) -> dict[str, Any]:
    kind = asked.kind()
    found: dict[str, Any] = {"type": kind}
    if isinstance(hyper, Dpo):
        found["beta"] = _number(hyper.beta)
    if kind == "rft":
        told = asked.method.reinforcement if asked.method else None
        if told is None:
            raise HostError(422, "reinforcement needs a grader", param="method.reinforcement.grader")
        if told.response_format is not None:
            raise HostError(
                422,
                "response_format is not kept: answers are not held to a format while they are sampled",
                param="method.reinforcement.response_format",
                code="unsupported_parameter",
            )
        found["grader"] = told.grader
    if isinstance(hyper, Reinforcement):
        if _number(hyper.eval_samples) is not None:
            raise HostError(
                422,
                "eval_samples is not kept: each row of the validation file is sampled once",
                param="method.reinforcement.hyperparameters.eval_samples",
                code="unsupported_parameter",
            )
        found["compute_multiplier"] = _number(hyper.compute_multiplier)
        found["reasoning_effort"] = None if hyper.reasoning_effort == "default" else hyper.reasoning_effort
    return {name: value for name, value in found.items() if value is not None}


def _rate(multiplier: float | None, target: Target, notes: list[str]) -> Mapping[str, float]:
    if multiplier is None:
        return {}
    base = target.base_learning_rate
    if base is None:
        return {"learning_rate_multiplier": multiplier}
    rate = multiplier * base
    notes.append(f"learning_rate_multiplier {multiplier:g} is a rate of {rate:g}, {base:g} times it")
    return {"learning_rate": rate}


def _suffix(given: str | None, notes: list[str]) -> str | None:
    """Backends take fewer characters than the API."""
    if given is None:
        return None
    kept = re.sub(r"[^A-Za-z0-9_.-]+", "-", given).strip("-_.")[:_LONGEST_SUFFIX]
    if kept != given:
        notes.append(f"the suffix {given!r} is {kept!r} on the backend")
    return kept or None


def _wandb(asked: CreateJob) -> dict[str, Any] | None:
    wanted = [one.wandb for one in asked.integrations or ()]
    if len(wanted) > 1:
        raise HostError(422, "one W&B integration at most", param="integrations")
    return wanted[0].model_dump(exclude_none=True) if wanted else None


def _number(value: Any) -> Any:
    return None if value == "auto" else value
