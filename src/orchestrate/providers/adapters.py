"""Interface of backends that accept adapters trained elsewhere.

An uploaded adapter is identified by a `JobHandle` with the adapter's id and the kind `ADAPTER_JOB`. `deploy`,
`undeploy`, `deployed`, `endpoint` and `generate` accept this handle in place of a job's handle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, Self

import msgspec

from orchestrate import catalog
from orchestrate.errors import SpecError, UsageError
from orchestrate.paid.limits import require_within
from orchestrate.profile import Profile
from orchestrate.types import ADAPTER_JOB, Adapter, JobHandle, Record, decoding

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
"""Files of a PEFT adapter. Hosts accept no other files."""


class Adapters(ABC):
    """Uploads adapters that were trained elsewhere to a backend that serves them."""

    @abstractmethod
    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        """Return the hourly price of `deploy` with these options in US dollars, or `None` if it is unknown.
        Does not upload or change anything. Raises `UsageError` for a base model or rank that the host does
        not serve."""

    @abstractmethod
    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        """Upload the adapter and wait until the host can serve it. Uploads are free, and an interrupted
        upload resumes. Raises `ProviderError` if the upload fails."""


def handle(provider: str, adapter: Adapter) -> JobHandle:
    return JobHandle(provider=provider, job_id=adapter.id, kind=ADAPTER_JOB)


def base_at(profile: Profile, adapter: Adapter) -> str:
    """Return the host's name for the adapter's base model. Raises `UsageError` if the host does not have this
    model or does not accept the adapter's rank."""
    try:
        found = catalog.resolve(adapter.base, profile)
    except SpecError as error:
        raise UsageError(
            f"{profile.title} does not serve {adapter.base}, the adapter's base model: {error.message}",
            fix="choose a host that serves this base model. To serve the adapter on your own machine: "
            "orchestrate serve RUN",
        ) from error
    return found.id


def files(adapter: Adapter) -> list[Path]:
    return [Path(adapter.folder) / name for name in (CONFIG, WEIGHTS)]


# Options of `deploy` on all hosts that deploy to dedicated GPUs.


DEPLOY_FIX = (
    "to deploy it: orchestrate deploy RUN (shows the hourly price first). To run its adapter on "
    "this machine, add --on here"
)
"""Suggested fix in errors about a tuned model that is not deployed yet."""


class Replicas(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    min_replicas: int = 1
    max_replicas: int = 1
    max_usd_per_hour: Decimal | None = None

    @classmethod
    def read(cls, provider: str, options: Mapping[str, Any] | None) -> Self:
        """Parse the options. Raises `UsageError` for unknown options and invalid numbers."""
        try:
            wanted = decoding.convert(dict(options or {}), cls, strict=False)
        except msgspec.ValidationError as error:
            known = ", ".join(sorted(cls.__struct_fields__))
            raise UsageError(f"invalid deploy options for {provider}: {error}. Known: {known}") from error
        if not 0 <= wanted.min_replicas <= wanted.max_replicas or wanted.max_replicas < 1:
            raise UsageError(
                "min_replicas must be at least 0, and max_replicas at least 1 and not below min_replicas"
            )
        return wanted

    def require(self, provider: str, per_hour: Decimal | None) -> None:
        """Raise `OverBudget` if `max_usd_per_hour` is set and the price exceeds it or is unknown."""
        limit, figure = self.max_usd_per_hour, "the hourly price"
        require_within(provider, per_hour, limit, what="max_usd_per_hour", figure=figure)
