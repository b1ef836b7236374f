"""What OpenAI would refuse, found before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from typing import TYPE_CHECKING, Any

from orchestrate import catalog, costing
from orchestrate.catalog import ModelOnHost
from orchestrate.data import rules
from orchestrate.providers.openai.sunset import way_out
from orchestrate.spec import RFT, JobSpec, method_word
from orchestrate.types import Problem, Setting, Severity

if TYPE_CHECKING:
    from orchestrate.data import Dataset, TrainingData

VISION_MODELS = frozenset({"gpt-4o-2024-08-06"})
RFT_ROWS = 50_000
RFT_VALIDATION_ROWS = 1_000


def check(
    provider: str,
    spec: JobSpec,
    data: TrainingData,
    model: ModelOnHost,
    refused: Sequence[Setting],
    *,
    sandbox: bool,
    today: date | None = None,
) -> list[Problem]:
    """`model` is what the spec's model is on this host; without a catalog entry (a compatible host) only the
    rules of the wire are checked. `refused` are the settings that its translation refuses."""
    found = [
        _problem(provider, "setting-refused", f"{s.name} = {s.asked!r}: {s.rule}", None, field=s.name)
        for s in refused
    ]
    found += [*_model(provider, spec, model, sandbox, today or date.today()), *_images(provider, data, model)]
    for dataset, validation in ((data.train, False), (data.validation, True)):
        if dataset is not None:
            found += _rows(provider, spec, dataset, model, validation)
    if isinstance(spec.method, RFT):
        found += _rft(provider, spec.method, data)
    return found


def _problem(
    provider: str, code: str, message: str, fix: str | None, severity: Severity = Severity.ERROR, **place: Any
) -> Problem:
    return Problem(code=code, message=message, severity=severity, providers=(provider,), fix=fix, **place)


def _model(provider: str, spec: JobSpec, model: ModelOnHost, sandbox: bool, today: date) -> Iterator[Problem]:
    for warning in model.warnings:
        yield _problem(provider, "model", warning, None, Severity.WARNING, field="model")
    if model.host is None:
        return
    closed = None if sandbox else catalog.closed_for_new_jobs("openai", today)
    if closed:
        yield _problem(provider, "training-closed", closed, way_out(model.model), field="model")
    elif model.host.tunable == "no":
        message = f"OpenAI takes no new jobs for {model.name}"
        yield _problem(provider, "model-closed", message, way_out(model.model), field="model")
    elif spec.method.type not in model.host.methods:
        message = f"OpenAI trains {model.name} with {', '.join(model.host.methods)}, not {spec.method.type}"
        yield _problem(
            provider, "method-not-offered", message, "change the method or the model", field="method"
        )


def _rows(
    provider: str, spec: JobSpec, dataset: Dataset, model: ModelOnHost, validation: bool
) -> Iterator[Problem]:
    problems = rules.check(
        dataset,
        "openai",
        method=method_word(spec.method),
        tokens=dataset.tokens(costing.tokenizer_for(model)),
        context=model.context(spec.method.type),
        epochs=spec.epochs,
        validation=validation,
    )
    for problem in problems:
        if problem.code != "vision-model-only":  # decided here, where the model is known
            yield Problem.from_dict(problem.to_dict() | {"providers": (provider,)})


def _images(provider: str, data: TrainingData, model: ModelOnHost) -> Iterator[Problem]:
    if model.host is None or model.host.id in VISION_MODELS:
        return
    for dataset in (data.train, data.validation):
        if dataset is not None and dataset.content.images and dataset.kind != "preference":
            message = f"{model.name} is tuned on text only; images are taken by gpt-4o"
            fix = "train gpt-4o, or remove the images"
            yield _problem(provider, "images-refused", message, fix, source=dataset.path)


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
    for place, message in _grader_errors(method.grader):
        yield _problem(provider, "grader", message, "see OpenAI's graders guide", field=place)


def _grader_errors(grader: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, message) for each mistake, by the SDK's own types."""
    from openai.types.graders import (
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
    kind = kinds.get(str(grader.get("type")))
    if kind is None:
        yield "method.grader.type", f"OpenAI's graders are {', '.join(kinds)}"
        return
    try:
        TypeAdapter(kind).validate_python(dict(grader))
    except ValidationError as error:
        for item in error.errors():
            yield ".".join(["method.grader", *map(str, item["loc"])]), item["msg"]
