"""Taking adapters that were trained elsewhere: what a backend has for it.

An uploaded adapter is asked for as a job's tuned model is, by a `JobHandle` of the kind `ADAPTER_JOB` whose
id is the adapter's: `deploy`, `undeploy`, `deployed`, `endpoint` and `generate` take it as they take a
job's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate import catalog
from orchestrate.errors import SpecError, UsageError
from orchestrate.types import ADAPTER_JOB, Adapter, JobHandle

if TYPE_CHECKING:
    from orchestrate.profile import Profile

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""PEFT's files, which is all that hosts take."""


class Adapters(ABC):
    """Of one backend."""

    @abstractmethod
    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        """US dollars per hour of `deploy` with these options, before anything is uploaded; `None` when it
        is not known. Reads only. Raises `UsageError` for a base or a rank that the host does not serve."""

    @abstractmethod
    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        """Bills nothing. Goes on where an earlier call ended, and returns when the host can serve it. Raises
        `ProviderError`."""


def handle(provider: str, adapter: Adapter) -> JobHandle:
    return JobHandle(provider=provider, job_id=adapter.id, kind=ADAPTER_JOB)


def base_at(profile: Profile, adapter: Adapter) -> str:
    """The host's name for the adapter's base. Raises `UsageError` for a base that it does not have, and a
    rank that it does not take."""
    try:
        found = catalog.resolve(adapter.base, profile)
    except SpecError as error:
        raise UsageError(
            f"{profile.title} does not serve {adapter.base}, on which this was trained: {error.message}",
            fix="orchestrate serve RUN   on a machine of yours, or a host that has the base",
        ) from error
    return found.id


def files(adapter: Adapter) -> list[Path]:
    return [Path(adapter.folder) / name for name in (CONFIG, WEIGHTS)]
