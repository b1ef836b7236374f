"""What a described host would refuse, found before anything is sent."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING

from orchestrate.catalog import ModelOnHost
from orchestrate.core import days
from orchestrate.providers import offline
from orchestrate.spec import JobSpec
from orchestrate.types import Problem, Severity, Translation

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.providers.base import Provider


def check(
    provider: Provider,
    spec: JobSpec,
    data: TrainingData,
    translation: Translation,
    *,
    today: date | None = None,
) -> list[Problem]:
    found = offline.problems(provider, spec, data, translation)
    return found + list(_model(provider, spec, provider.resolve(spec), today or days.today()))


def _model(provider: Provider, spec: JobSpec, model: ModelOnHost, today: date) -> Iterator[Problem]:
    def problem(code: str, message: str, fix: str | None, severity: Severity = Severity.ERROR) -> Problem:
        place = "method" if code == "method-not-offered" else "model"
        return Problem(
            code=code, message=message, severity=severity, providers=(provider.name,), fix=fix, field=place
        )

    for warning in model.warnings:
        yield problem("model", warning, None, Severity.WARNING)
    if model.host is None:
        return
    others = "orchestrate quote --provider all   (the same spec on the other backends)"
    until, method = model.host.no_new_jobs_after, spec.method.type
    if until is not None and today >= until and not provider.sandbox:
        message = f"{provider.title} takes no new jobs for {model.name} since {until}"
        yield problem("model-closed", message, others)
    elif model.host.tunable == "no":
        yield problem("model-closed", f"{provider.title} takes no new jobs for {model.name}", others)
    elif model.host.methods and method not in model.host.methods:
        offered = ", ".join(model.host.methods)
        message = f"{provider.title} trains {model.name} with {offered}, not {method}"
        yield problem("method-not-offered", message, "change the method or the model")
