"""What `check` says of a job for this machine beside its settings and rows: packages, the model's files, the
adapter's layers, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from orchestrate import catalog, costing
from orchestrate.errors import ConfigError, MissingExtra, OrchestrateError, UsageError
from orchestrate.local.model.files import models
from orchestrate.local.run import launching
from orchestrate.providers.local import naming
from orchestrate.providers.local.translation import memory
from orchestrate.text import count, size
from orchestrate.types import MemoryPlan, Problem, Severity, TokensFrom, Translation

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from orchestrate.data import TrainingData
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
