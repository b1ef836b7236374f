"""Clocks. The wall clock is for people; nothing that guards money trusts it.

Wall clocks are set, by hand and by NTP, in either direction. What must have elapsed is therefore measured
on the clock that counts since the machine's start, and only compared with readings from the same start of
the same machine.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Uptime:
    """`seconds` since the start that `boot` names; sleep and suspension included where the system tells."""

    boot: str
    seconds: float


class Clock:
    """The machine's clocks. Tests give another one to move time."""

    def now(self) -> datetime:
        """Wall clock, aware UTC."""
        return datetime.now(UTC)

    def uptime(self) -> Uptime:
        return Uptime(_boot(), _seconds())

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@cache
def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Elsewhere the start is estimated. When the wall clock is set this changes, and an old reading counts
        # as one from another machine: waiting starts again, which is slow and safe.
        return f"{platform.node()}:{round((time.time() - time.monotonic()) / 10)}"


def _seconds() -> float:
    # CLOCK_BOOTTIME goes on during suspension, CLOCK_MONOTONIC does not; only Linux has the first.
    source = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if source is None else time.clock_gettime(source)


def stamp(at: datetime) -> str:
    """A time as the store holds it: fixed width, so that the order of strings is the order of times."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")
