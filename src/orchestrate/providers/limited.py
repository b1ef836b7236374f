"""Backends whose workers end themselves at a run's own limits of hours and money."""

from __future__ import annotations

from decimal import Decimal
from typing import Protocol, runtime_checkable

from orchestrate.types import Allowance, JobHandle


@runtime_checkable
class Limited(Protocol):
    def allowance(self, job: JobHandle) -> Allowance:
        """What the job may take, and has taken. Raises `ProviderError`."""
        ...

    def allow(self, job: JobHandle, *, max_hours: float | None, max_usd: Decimal | None) -> None:
        """Other limits, for the workers that are started from now on; the same ones change nothing. Raises
        `ProviderError`."""
        ...
