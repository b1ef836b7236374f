"""The dead man's switch of a worker away from here: a bill ends even if nobody here can end it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

import msgspec

from orchestrate.places.base import Limits
from orchestrate.text import duration, money


def boot_time() -> float:
    """Seconds that pass while a machine sleeps too, as they do on its bill."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass
class Switch:
    """`earlier_s`: what other attempts of the run have used."""

    limits: Limits
    earlier_s: float = 0.0
    clock: Callable[[], float] = boot_time
    begun: float = field(init=False)
    reported_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.reported_at = self.clock()

    @property
    def used_s(self) -> float:
        """By this attempt."""
        return self.clock() - self.begun

    def costs(self, usd_per_hour: Decimal) -> None:
        """An hour of the machine, as it was found out after the start."""
        self.limits = msgspec.structs.replace(self.limits, usd_per_hour=usd_per_hour)

    def reported(self) -> None:
        """A report went through."""
        self.reported_at = self.clock()

    def due(self) -> tuple[Literal["silence", "limit"], str] | None:
        """Why the worker must end now; at a limit it can still say so."""
        silent = self.clock() - self.reported_at
        if silent >= self.limits.silence_s:
            return "silence", f"no report went through for {duration(silent)}"
        price, cap = self.limits.usd_per_hour, self.limits.most_usd_per_hour
        if price is not None and cap is not None and price > cap:
            return "limit", f"an hour of its machine costs {money(price)}, and may cost {money(cap)}"
        end, whole = self.limits.working_s(self.earlier_s), self.limits.seconds
        used = self.earlier_s + self.used_s
        if end is None or whole is None or used < end:
            return None
        told = f"it has run for {duration(used)}, and its machine is paid for {duration(whole)} at most"
        if self.limits.max_hours is not None and whole >= self.limits.max_hours * 3600:
            return "limit", told
        return "limit", f"{told}, {money(self.limits.max_usd)} at {money(price)} per hour"
