"""Clocks. The wall clock is for people; nothing that guards money trusts it.

Wall clocks are set, by hand and by NTP, in either direction. What must have elapsed is therefore measured
on the clock that counts since the machine's start, and only compared with readings from the same start of
the same machine.
"""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrate.types import Deployment


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


def time_of(deployment: Deployment, clock: Clock, *, made_at: datetime | None = None) -> datetime:
    """`created_at` plus the age of a deployment: what bills hourly is counted and limited on this clock.

    What has passed since the last reading is measured by uptime. After another start, or on another machine,
    only the wall clock is left. It never counts backward, and where it differs from the age by the host's
    own record (`made_at`), a wrong clock made the last reading, and the host's record holds.
    """
    now, up, last = clock.now(), clock.uptime(), deployment.age
    if last is None:  # made by an earlier version
        return max(now, deployment.created_at)
    if last.boot == up.boot and up.seconds >= last.uptime:
        return _after(deployment, last.seconds + up.seconds - last.uptime)
    passed = (now - last.at).total_seconds()
    if made_at is not None:
        by_host = (now - made_at).total_seconds() - last.seconds
        passed = by_host if passed < 0 else min(passed, by_host)
    return _after(deployment, last.seconds + max(passed, 0.0))


def _after(deployment: Deployment, seconds: float) -> datetime:
    return deployment.created_at + timedelta(seconds=seconds)
