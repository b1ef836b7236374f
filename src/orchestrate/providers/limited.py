"""Backends whose workers end themselves at a run's own limits of hours and money."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from orchestrate.types import Allowance, JobHandle, Quote, Translation

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec


@runtime_checkable
class Limited(Protocol):
    def ends_usd(self, spec: JobSpec, translation: Translation, quote: Quote) -> Decimal | None:
        """At what the bill ends, whatever the run does: by the limits of the spec, else at the high end of
        the quote. `None` where nobody knows what an hour costs, or nobody sends a bill."""
        ...

    def allowance(self, job: JobHandle) -> Allowance:
        """What the job may take, and has taken. Raises `ProviderError`."""
        ...

    def allow(self, job: JobHandle, *, max_hours: float | None, max_usd: Decimal | None) -> None:
        """Other limits, for the workers that are started from now on; the same ones change nothing. Raises
        `ProviderError`."""
        ...
