"""What `check` says of a job for this machine beside its settings and rows: packages, the model's files, the
adapter's layers, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrate import catalog, costing
from orchestrate.data.rows.examples import RLExample
from orchestrate.errors import ConfigError, MissingExtra, OrchestrateError, UsageError
from orchestrate.local.job import DEFAULT_SAMPLES
from orchestrate.local.model.files import models
from orchestrate.local.objectives import grading
from orchestrate.local.run import launching
from orchestrate.providers.local import naming
from orchestrate.providers.local.translation import max_new_tokens, memory
from orchestrate.spec import RFT
from orchestrate.text import count, size
from orchestrate.types import MemoryPlan, Problem, Severity, TokensFrom, Translation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from orchestrate.data import Dataset, TrainingData
    from orchestrate.spec import JobSpec


def problems(
    name: str, spec: JobSpec, data: TrainingData, translation: Translation, options: Mapping[str, Any]
) -> Iterator[Problem]:
    """`name`: of the backend."""
    try:
        launching.require_packages()
    except MissingExtra as error:
        yield _problem(name, "packages-missing", error)
    if any(row.name == "model" for row in translation.refused):
        return
    try:
        models.here(translation.model)
    except (UsageError, ConfigError) as error:
        yield _problem(name, "model-unusable", error, field="model")
        return
    if spec.continue_from is None:
        yield from _names(name, spec, translation)
    yield from _memory(spec, data, translation, options)


def joined(found: Iterable[Problem], more: Iterable[Problem]) -> list[Problem]:
    """A setting that is refused for names that the model does not have is a problem once."""
    more = list(more)
    told = [p.message for p in more if p.code == "unknown-target"]
    twice = [p for p in found if p.code == "setting-refused" and any(one in p.message for one in told)]
    return [*(p for p in found if p not in twice), *more]


def _names(name: str, spec: JobSpec, translation: Translation) -> Iterator[Problem]:
    """Of the adapter, that the model does not have; an error where the translation refuses the setting."""
    refused = {row.name for row in translation.refused}
    found, unseen = naming.looked_at(spec, translation.model)
    for one in found:
        field = f"adapter.{one.field}"
        yield Problem(
            code="unknown-target",
            message=one.told,
            severity=Severity.ERROR if field in refused else Severity.WARNING,
            field=field,
            providers=(name,),
            fix=one.fix,
        )
    if unseen is not None:
        yield Problem(
            code="names-not-looked-at",
            message=f"whether the model has what the adapter names could not be looked at: {unseen}",
            severity=Severity.INFO,
            field="adapter",
            providers=(name,),
        )


def _problem(name: str, code: str, error: OrchestrateError, field: str | None = None) -> Problem:
    return Problem(
        code=code,
        message=error.message,
        severity=Severity.ERROR,
        field=field,
        providers=(name,),
        fix=error.fix,
    )


def memory_of_rows(
    spec: JobSpec, data: TrainingData, translation: Translation, options: Mapping[str, Any]
) -> MemoryPlan | None:
    """By the longest row of the data."""
    model = catalog.resolve(spec.model_for("local"), "local")
    counter = costing.tokenizer_for(model, spec)
    return memory(spec, translation, options, data.train.tokens(counter).longest)


def _memory(
    spec: JobSpec, data: TrainingData, translation: Translation, options: Mapping[str, Any]
) -> list[Problem]:
    """A warning when these rows do not fit: the plan may err, and the engine tries."""
    if translation.memory is None or data.train.tokens_from is TokensFrom.NONE:
        return []
    plan = memory_of_rows(spec, data, translation, options)
    if plan is None or plan.fits is not False or plan.available_bytes is None:
        return []
    return [
        Problem(
            code="memory",
            message=f"training takes about {size(plan.total_bytes)} with {count(plan.rows, 'row')} of "
            f"{count(plan.longest, 'token')} at once; there are {size(plan.available_bytes)} on the "
            + ("GPU" if plan.device == "cuda" else "CPU"),
            severity=Severity.WARNING,
            providers=(translation.provider,),
            fix="; then ".join(plan.advice) or None,
        )
    ]


# -- reinforcement -----------------------------------------------------------------------------------------
# What reinforcement fine-tuning needs beside the settings: rows with what the grader reads, and a price.


def reinforcement_problems(provider: str, spec: JobSpec, data: TrainingData) -> list[Problem]:
    """Fields that the grader reads and rows lack, and prompts that leave no room for an answer."""
    if not isinstance(spec.method, RFT):
        return []
    sets = [d for d in (data.train, data.validation) if d is not None and d.kind == "rl"]
    found = [problem for dataset in sets for problem in _long(provider, spec, dataset)]
    if grading.refusal(spec.method.grader, allow_code=True) is None:
        fields = grading.fields_read(spec.method.grader)
        found += [problem for dataset in sets for problem in _lacking(provider, dataset, fields)]
    return found


def _long(provider: str, spec: JobSpec, dataset: Dataset) -> list[Problem]:
    try:
        model = catalog.resolve(spec.model_for(provider), "local")
    except UsageError:
        return []  # the translation's row of the model says so
    if dataset.tokens_from is TokensFrom.NONE:
        return []
    context = spec.max_seq_length or model.context("rft")
    count = dataset.tokens(costing.tokenizer_for(model, spec))
    if context is None or count.longest <= (room := context - max_new_tokens(spec)):
        return []
    each = count.weights or [1.0] * len(count.lengths)
    long = round(sum(weight for length, weight in zip(count.lengths, each, strict=True) if length > room))
    return [
        Problem(
            code="prompts-left-out",
            message=f"{long:,} of {dataset.rows:,} prompts have more than {room:,} tokens and would be left "
            f"out: {context:,} hold the prompt and an answer of {max_new_tokens(spec):,}",
            severity=Severity.WARNING,
            providers=(provider,),
            fix="shorten them, or lower provider_options.local.max_new_tokens",
            source=dataset.path,
        )
    ]


def _lacking(provider: str, dataset: Dataset, fields: tuple[str, ...]) -> list[Problem]:
    found: dict[str, list[int]] = {}
    for number, example in dataset.numbered() if fields else ():
        if isinstance(example, RLExample):
            item = {"messages": True, **example.fields}
            for field in fields:
                if not field.startswith("messages") and grading.lacks(item, field):
                    found.setdefault(field, []).append(number)
    return [
        Problem(
            code="grader-field-missing",
            message=f"the grader reads item.{field}, which {len(numbers):,} of {dataset.rows:,} rows lack",
            severity=Severity.ERROR,
            row=numbers[0],
            field=field,
            providers=(provider,),
            fix="add the field to the rows, or change method.grader: such answers would all get 0",
            source=dataset.path,
        )
        for field, numbers in found.items()
    ]


def answers(spec: JobSpec) -> costing.Answers | None:
    """How many answers a job draws, for its quote."""
    if not isinstance(spec.method, RFT):
        return None
    return costing.Answers(
        samples=spec.method.samples_per_prompt or DEFAULT_SAMPLES, most_tokens=max_new_tokens(spec)
    )
