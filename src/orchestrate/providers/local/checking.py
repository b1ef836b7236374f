"""What `check` says of a job for this machine beside its settings and rows: packages, the model's files, the
adapter's layers, memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from orchestrate import catalog, costing
from orchestrate.errors import ConfigError, MissingExtra, OrchestrateError, UsageError
from orchestrate.local.model import models
from orchestrate.local.plan.sizes import Shape
from orchestrate.local.run import launching
from orchestrate.providers.local.translation import memory
from orchestrate.text import count, size
from orchestrate.types import MemoryPlan, Problem, Severity, Translation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from orchestrate.data import TrainingData
    from orchestrate.local.model.models import ModelFolder
    from orchestrate.spec import JobSpec

NOT_STORED = ("lm_head",)
"""Layers that a model has and its files may leave out: tied to the embeddings."""


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
        folder = models.here(translation.model)
    except (UsageError, ConfigError) as error:
        yield _problem(name, "model-unusable", error, field="model")
        return
    targets = getattr(spec.adapter, "targets", None)
    if folder is not None and isinstance(targets, tuple):
        yield from _targets(name, folder, cast("tuple[str, ...]", targets))
    if getattr(spec.adapter, "target_parameters", None):
        yield from _experts(name, translation.model)
    yield from _memory(spec, data, translation, options)


def _targets(name: str, folder: ModelFolder, targets: Sequence[str]) -> Iterator[Problem]:
    modules = folder.modules()
    unknown = [t for t in targets if not any(m == t or m.endswith(f".{t}") for m in modules)]
    unknown = [t for t in unknown if t not in NOT_STORED]
    if not modules or not unknown:
        return
    last = sorted({m.rpartition(".")[2] for m in modules})
    yield Problem(
        code="unknown-target",
        message=f"adapter.targets: {', '.join(unknown)}: the model has no such layer",
        severity=Severity.ERROR if len(unknown) == len(targets) else Severity.WARNING,
        field="adapter.targets",
        providers=(name,),
        fix=f"all-linear, or some of {', '.join(last)}",
    )


def _experts(name: str, model: str) -> Iterator[Problem]:
    config = models.config_of(model)
    if config is not None and Shape.experts_in(config.get("text_config") or config) == 1:
        yield Problem(
            code="unknown-target",
            message="adapter.target_parameters: the model has no experts",
            severity=Severity.ERROR,
            field="adapter.target_parameters",
            providers=(name,),
            fix="leave it out; adapter.targets names linear layers",
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
    if translation.memory is None:
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
