"""The store: one SQLite or Postgres database of runs and their records."""

from __future__ import annotations

import hashlib
import platform
import re
import secrets
import time
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

if TYPE_CHECKING:
    from orchestrate.types import Deployment

# Clocks. The wall clock is for display. Checks that protect money use it only if the uptime is unavailable.


class Uptime(Struct, frozen=True):
    """Time since the machine's last boot, in seconds. `boot` identifies that boot. Includes time spent asleep
    or suspended if the system reports it."""

    boot: str
    seconds: float


class Clock:
    """The machine's wall clock and uptime. Tests replace this class to control the time."""

    def now(self) -> datetime:
        """Return the current time as a timezone-aware UTC datetime."""
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
        # Other systems have no boot id, so the boot time is estimated. If the wall clock is changed, the
        # estimate changes too. Earlier uptimes then count as another machine's, so waits start over, which
        # takes longer but is safe.
        return f"{platform.node()}:{round((time.time() - time.monotonic()) / 10)}"


def _seconds() -> float:
    # Unlike CLOCK_MONOTONIC, CLOCK_BOOTTIME includes suspension, but only Linux has it.
    source = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if source is None else time.clock_gettime(source)


def stamp(at: datetime) -> str:
    """Format a time as a fixed-width ISO string, so that stored times sort chronologically."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


def time_of(deployment: Deployment, clock: Clock, *, made_at: datetime | None = None) -> datetime:
    """Return the current time on a deployment's own clock, which is `created_at` plus the deployment's age.
    Hourly charges and limits use this clock, which never runs backward.

    The current age is the last recorded age plus the time since then, which is measured with the uptime
    clock. After a reboot or on another machine, that time is measured with the wall clock instead. `made_at`
    is the creation time that the host reports. If it shows that the wall clock was wrong when the age was
    recorded, the age is computed from `made_at`.
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


# Run ids, and the tag that links a job on a host to its run.


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")


def unstorable(name: str) -> bool:
    """Return whether a name contains a null character, which Postgres can't store in text, or half of a
    surrogate pair, which neither database can."""
    return _UNSTORABLE.search(name) is not None


RUN_PREFIX = "run-"
REF_PREFIX = "orc-"
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u to misread
_EPOCH_MS = 1_735_689_600_000  # 2025-01-01; eight characters last until 2059
REF_PATTERN = re.compile(rf"{REF_PREFIX}[{_ALPHABET}]{{12}}")


def new_run_id(at: datetime) -> str:
    return new_id(RUN_PREFIX, at)


def new_id(prefix: str, at: datetime, mark: int | None = None) -> str:
    """Create an id from a time and a random part. If the hash `mark` is given, it replaces the milliseconds
    and the random part. The same `mark` within the same second then always gives the same id."""
    age_ms = max(0, int(at.timestamp() * 1000) - _EPOCH_MS) % 32**8
    if mark is not None:
        age_ms = max(0, age_ms - age_ms % 1000 + mark // 32**4 % 1000)
    return (
        prefix + _base32(age_ms, 8) + _base32(secrets.randbelow(32**4) if mark is None else mark % 32**4, 4)
    )


def derived_ref(facts: str) -> str:
    """Derive a job's ref from `facts`: the same text always gives the same ref. The ref encodes 60 bits of
    the text's SHA-256."""
    return REF_PREFIX + _base32(int(hashlib.sha256(facts.encode()).hexdigest(), 16) % 32**12, 12)


def ref_of(run_id: str) -> str:
    return REF_PREFIX + run_id.removeprefix(RUN_PREFIX)


def run_id_of(ref: str) -> str:
    return RUN_PREFIX + ref.removeprefix(REF_PREFIX)


def _base32(number: int, width: int) -> str:
    digits: list[str] = []
    for _ in range(width):
        number, digit = divmod(number, 32)
        digits.append(_ALPHABET[digit])
    return "".join(reversed(digits))
