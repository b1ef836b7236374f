"""Create requests as they were sent, for tests of their bodies."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.contract.backends import Backend, every_setting, new_ref
from tests.sending import create, upload

from orchestrate.data import TrainingData
from orchestrate.providers.base import (
    Cancels,
    Provider,
    capability,
)
from orchestrate.sandbox.server import Sandbox
from orchestrate.spec import JobSpec


def full_spec(backend: Backend, provider: Provider, files: dict[str, str], method: str) -> JobSpec:
    """All settings at once, but for those that the backend refuses, and those that need something else on the
    host (an earlier run, a W&B key)."""
    values = every_setting(method)
    values = {name: v for name, v in values.items() if name not in ("continue_from", "test")}
    if backend.name != "openai":
        del values["wandb"]
    values |= {"train": files[method], "validation": files[f"{method}-validation"]}
    if method == "rft":
        values["method"] = values["method"].model_copy(update={"grader": dict(backend.grader)})
    spec = JobSpec(model=backend.other_models.get(method, backend.model), **values)
    while refused := provider.translate(spec).refused:
        before = spec
        for row in refused:
            spec = _without(spec, row.name, row.instead)
        assert spec != before, f"cannot leave out {refused}"
    return spec


def _without(spec: JobSpec, name: str, instead: Any) -> JobSpec:
    """With the nearest value that is taken, where there is one."""
    values: Any = spec.model_dump(mode="python", exclude_unset=True)
    for tagged in ("method", "adapter"):  # a type that was not written is not among what was asked
        values[tagged] = {"type": getattr(spec, tagged).type, **values.get(tagged, {})}
    *path, last = name.split(".")
    inner = values
    for key in path:
        inner = inner.get(key, {})
    if instead is None:
        inner.pop(last, None)
    else:
        inner[last] = {"type": instead} if name in ("method", "adapter") else instead
    return JobSpec(**values)


def bodies(
    backend: Backend, provider: Provider, files: dict[str, str], sandbox: Sandbox, method: str
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(path, body) of the create requests of a spec that asks for nothing and of one that asks for all."""
    for spec in (backend.spec(files, method), full_spec(backend, provider, files, method)):
        remote = upload(provider, spec, TrainingData.open(spec.train, spec.validation))
        handle = create(provider, spec, remote, new_ref())
        sent = sandbox.requests(backend.name, method="POST")[-1]
        assert sent["path"] == backend.create_path[method]
        capability(provider, Cancels).cancel(handle)
        yield sent["path"], sent["body"]
