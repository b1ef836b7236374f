"""How long the submit protocol waits, and the places at which the fault tests end it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from orchestrate.store.transitions import UNSETTLED

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.store.store import Store
    from orchestrate.types import Run

POINTS = (
    "after-intent",
    "after-upload",
    "after-uploaded",
    "after-submitting",
    "after-fence",
    "after-post",
    "after-submitted",
)
"""Where a death is recognized by what is on the host and what is written down."""

CrashPoint = Callable[[str], None]
"""Called with each of `POINTS` as it is reached; the fault tests kill the process there."""

CLOCK_SKEW = timedelta(days=2)
"""How far this machine's wall clock may be off the host's when a search by time is bounded."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the protocol."""

    send_limit_s: float = 20.0
    """Longest time from writing SUBMITTING to sending; later nothing is sent."""
    requests: int = 3
    """Requests of one create with what it reads before, each with the provider's time-out."""
    margin_s: float = 60.0
    """How late a host's list may show a job that it has."""
    lease_s: float = 30.0
    patience_s: float = 120.0
    """Longest wait in all for a host that is busy and says so."""

    def settle_s(self, provider: Provider) -> float:
        """After this long a request that was to be sent is sent, answered and listed, or never will be."""
        return self.send_limit_s + self.requests * provider.config.timeout_s + self.margin_s


DEFAULT_TIMING = Timing()


def settle_left_s(
    store: Store, provider: Provider, run: Run, timing: Timing = DEFAULT_TIMING
) -> float | None:
    """Seconds until the absence of a job with the run's ref proves that none was made; `None` for a run whose
    answer was not lost."""
    if run.phase not in UNSETTLED:
        return None
    return max(timing.settle_s(provider) - store.runs.waited(run.id), 0.0)


def pass_by(_point: str) -> None:
    """No crash is wanted."""
