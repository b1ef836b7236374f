"""What OpenAI would refuse, found before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import date
from typing import TYPE_CHECKING, Any, cast

from orchestrate import catalog
from orchestrate.catalog import Model, ModelOnHost
from orchestrate.core import days
from orchestrate.errors import TrainingClosed
from orchestrate.profile import this_machine
from orchestrate.providers import offline
from orchestrate.providers.openai.profile import PROFILE
from orchestrate.spec import RFT, JobSpec
from orchestrate.types import Problem, Severity, Translation

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.providers.base import Provider

RFT_ROWS = 50_000
RFT_VALIDATION_ROWS = 1_000


def check(
    provider: Provider,
    spec: JobSpec,
    data: TrainingData,
    translation: Translation,
    *,
    today: date | None = None,
) -> list[Problem]:
    """For a model without a catalog entry (a compatible host) only the rules of the wire are checked."""
    name, model = provider.name, provider.resolve(spec)
    found = offline.problems(provider, spec, data, translation)
    found = [p for p in found if p.code != "vision-model-only"]  # decided where the model is known
    found += _model(provider, spec, model, today or days.today())
    if isinstance(spec.method, RFT):
        found += _rft(name, spec.method, data)
    return found


def _problem(
    provider: str, code: str, message: str, fix: str | None, severity: Severity = Severity.ERROR, **place: Any
) -> Problem:
    return Problem(code=code, message=message, severity=severity, providers=(provider,), fix=fix, **place)


def _model(provider: Provider, spec: JobSpec, model: ModelOnHost, today: date) -> Iterator[Problem]:
    for warning in model.warnings:
        yield _problem(provider.name, "model", warning, None, Severity.WARNING, field="model")
    if model.host is None:
        return
    method = spec.method.type
    closed = None if provider.sandbox else provider.profile.closed(today)
    if closed:
        yield _problem(provider.name, "training-closed", closed, way_out(model.model, method), field="model")
    elif model.host.tunable == "no":
        message = f"OpenAI takes no new jobs for {model.name}"
        yield _problem(provider.name, "model-closed", message, way_out(model.model, method), field="model")
    elif method not in model.host.methods:
        message = f"OpenAI trains {model.name} with {', '.join(model.host.methods)}, not {method}"
        yield _problem(
            provider.name, "method-not-offered", message, "change the method or the model", field="method"
        )


def _rft(provider: str, method: RFT, data: TrainingData) -> Iterator[Problem]:
    if data.validation is None:
        yield _problem(
            provider,
            "rft-needs-validation",
            "reinforcement fine-tuning needs a validation file",
            "add  validation: FILE  (orchestrate data split makes one)",
            field="validation",
        )
    elif data.validation.rows > RFT_VALIDATION_ROWS:
        message = f"{data.validation.rows:,} validation rows; OpenAI takes {RFT_VALIDATION_ROWS:,} for RFT"
        yield _problem(provider, "too-many-rows", message, "use fewer", source=data.validation.path)
    if data.train.rows > RFT_ROWS:
        message = f"{data.train.rows:,} rows; OpenAI takes {RFT_ROWS:,} for RFT"
        yield _problem(provider, "too-many-rows", message, "train on fewer rows", source=data.train.path)
    for place, message in grader_errors(method.grader):
        yield _problem(provider, "grader", message, "see OpenAI's graders guide", field=place)


def grader_errors(grader: Mapping[str, Any], place: str = "method.grader") -> Iterator[tuple[str, str]]:
    """(field, message) for each mistake, by the SDK's own types.

    Those know a `multi` grader with one grader in it; the guide to graders has a map of them by name, and the
    formula reads the names.
    """
    from openai.types.graders import (
        LabelModelGraderParam,
        MultiGraderParam,
        PythonGraderParam,
        ScoreModelGraderParam,
        StringCheckGraderParam,
        TextSimilarityGraderParam,
    )
    from pydantic import TypeAdapter, ValidationError

    kinds: dict[str, Any] = {
        "string_check": StringCheckGraderParam,
        "text_similarity": TextSimilarityGraderParam,
        "python": PythonGraderParam,
        "score_model": ScoreModelGraderParam,
        "multi": MultiGraderParam,
    }
    if place != "method.grader":
        kinds = {**kinds, "label_model": LabelModelGraderParam}
        del kinds["multi"]
    kind = kinds.get(str(grader.get("type")))
    if kind is None:
        yield f"{place}.type", f"OpenAI's graders are {', '.join(kinds)}"
        return
    asked = dict(grader)
    if grader.get("type") == "multi" and isinstance(inner := grader.get("graders"), Mapping):
        named = cast("Mapping[str, Any]", inner)
        named = {"": named} if isinstance(named.get("type"), str) else named
        if not named:
            yield f"{place}.graders", "there is no grader in it"
        for name, part in named.items():
            where = f"{place}.graders.{name}".rstrip(".")
            if isinstance(part, Mapping):
                yield from grader_errors(cast("Mapping[str, Any]", part), where)
            else:
                yield where, "a grader is a mapping"
        asked["graders"] = _ANY_GRADER
    try:
        TypeAdapter(kind).validate_python(asked)
    except ValidationError as error:
        for item in error.errors():
            yield ".".join([place, *map(str, item["loc"])]), item["msg"]


_ANY_GRADER = {"type": "string_check", "name": "any", "input": "", "reference": "", "operation": "eq"}


# -- the end of fine-tuning --------------------------------------------------------------------------------
# The end of fine-tuning at OpenAI, told to the user with the way out.
#
# The last day of new jobs is in the profile; the shutdown of each base model is in the catalog.


def training_closed(error: TrainingClosed, model: ModelOnHost, method: str) -> TrainingClosed:
    """The host's 403 `training_not_available` with what happened, the dates, and the nearest open model."""
    text = (
        "OpenAI is winding down fine-tuning and takes no new job from this organization; "
        f"nothing was created. From {PROFILE.no_new_jobs_after} on it takes none from anyone"
    )
    if model.host is not None and model.host.shutdown is not None:
        text += f"; {model.name} and every tune made on it stop answering on {model.host.shutdown}"
    return TrainingClosed(
        error.provider,
        text,
        status=error.status,
        code=error.code,
        request_id=error.request_id,
        fix=way_out(model.model, method),
    )


def way_out(model: Model | None, method: str) -> str:
    """The command that trains the nearest open model elsewhere with the same data, method and spec."""
    others = catalog.alternatives(model) if model is not None else []
    if not others:
        return "orchestrate quote --provider all   (the same spec on the other backends)"
    nearest, here = others[0], this_machine().kind
    places = [name for name in catalog.trained_on(nearest, [method]) if name != PROFILE.kind]
    place = places[0] if places else here
    rest = ", ".join([*places[1:], here] if places else [])
    also = f"   ({nearest.name} is also on: {rest})" if rest else ""
    return f"orchestrate submit --provider {place} --model {nearest.name}{also}"
