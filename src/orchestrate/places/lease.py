"""Ownership of runs. If several workers were started for the same run, ownership decides which one trains."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Literal

import msgspec

from orchestrate.paid.limits import exceeds
from orchestrate.places.base import WorkerLimits
from orchestrate.places.storage import StoredRun
from orchestrate.text import duration, money
from orchestrate.types import Record


def boot_time() -> float:
    """Return the time in seconds on a clock that keeps running while the machine sleeps. A sleeping machine
    is still billed."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


@dataclass
class Watchdog:
    """Decides when a worker must stop because of its limits. `earlier_s` is the time used by the run's other
    attempts, in seconds."""

    limits: WorkerLimits
    earlier_s: float = 0.0
    clock: Callable[[], float] = boot_time
    begun: float = field(init=False)
    reported_at: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.reported_at = self.clock()

    @property
    def used_s(self) -> float:
        """Seconds used by this attempt."""
        return self.clock() - self.begun

    def costs(self, usd_per_hour: Decimal) -> None:
        """Set the machine's hourly price once it is known, after the start."""
        self.limits = msgspec.structs.replace(self.limits, usd_per_hour=usd_per_hour)

    def reported(self) -> None:
        """Record that a report was sent successfully."""
        self.reported_at = self.clock()

    def due(self) -> tuple[Literal["silence", "limit"], str] | None:
        """Return why the worker must stop now, or `None`. The worker can still send a last report if the
        reason is `limit`, but not if it is `silence`."""
        silent = self.clock() - self.reported_at
        if silent >= self.limits.silence_s:
            return "silence", f"could not send a heartbeat for {duration(silent)}"
        price, cap = self.limits.usd_per_hour, self.limits.most_usd_per_hour
        if exceeds(price, cap):
            return "limit", f"the machine costs {money(price)} per hour, more than the limit of {money(cap)}"
        end, limit_s = self.limits.working_s(self.earlier_s), self.limits.seconds
        used = self.earlier_s + self.used_s
        if end is None or limit_s is None or used < end:
            return None
        limit = duration(limit_s)
        if self.limits.max_hours is None or limit_s < self.limits.max_hours * 3600:
            limit += f", which is {money(self.limits.max_usd)} at {money(price)} per hour"
        return "limit", f"the run has used {duration(used)} of billed time (limit: {limit})"


class Attempt(Record, frozen=True, kw_only=True):
    """Contents of an attempt's file, such as `attempts/00000001.json`. The worker of the attempt writes
    it."""

    token: str
    used_s: float = 0.0
    """Seconds used until the latest report."""
    under: str | None = None
    """Token of the parent attempt, or `None`. An attempt has a parent if its job may start several attempts.
    The time of this attempt then counts as part of the parent's."""


class RunLease:
    """A lease that gives one attempt ownership of its run. The newest attempt owns the run.

    A worker stops when it finds a newer attempt. Starting a second worker by mistake therefore wastes a few
    minutes, but never trains the model twice.
    """

    def __init__(self, stored: StoredRun, under: str | None = None) -> None:
        """Claim the run. `under` is the token of the attempt that starts this one. Raises `Superseded` if
        another attempt now owns the run."""
        self.stored = stored
        earlier = _attempts(stored)
        last = earlier[-1] if earlier else None
        if under is not None and (last is None or under not in (last.token, last.under)):
            raise Superseded
        self.number = len(earlier) + 1
        alike = [number for number, one in enumerate(earlier, 1) if under and one.under == under]
        self.first = alike[0] if alike else self.number
        """Number of the first attempt with the same parent, or this attempt's own number if it has no
        parent."""
        self.earlier_s = sum(one.used_s for one in earlier)
        self._mine = Attempt(token=secrets.token_hex(8), under=under)
        self.used(0.0)

    @property
    def token(self) -> str:
        return self._mine.token

    def used(self, seconds: float) -> None:
        """Record the seconds that this attempt has used. Records 0 for an attempt with a parent, because its
        time is already included in the parent's."""
        self._mine = msgspec.structs.replace(self._mine, used_s=0.0 if self._mine.under else seconds)
        self.stored.write(f"attempts/{_name(self.number)}", self._mine.to_json())

    @property
    def holds(self) -> bool:
        """True if this attempt is the newest attempt or started the newest attempt."""
        names = self.stored.run_storage.names(f"{self.stored.folder}/attempts")
        data = self.stored.read(f"attempts/{_name(self.number)}")
        mine = data is not None and Attempt.from_json(data).token == self._mine.token
        if not mine or names[-1:] == [_name(self.number)]:
            return mine
        newest = self.stored.read(f"attempts/{names[-1]}")
        return newest is not None and Attempt.from_json(newest).under == self._mine.token


class Superseded(Exception):
    """Raised if another attempt has taken over the run."""


class Signs:
    """Monitors a parent attempt: whether it still reports, and whether it still owns the run."""

    def __init__(self, stored: StoredRun, under: str, number: int, clock: Callable[[], float]) -> None:
        """Watch the attempt with the token `under`. `number` is the newest attempt that it started. Raises
        `Superseded` if the watched attempt no longer exists."""
        self.stored, self.number, self.clock = stored, number, clock
        names = self.stored.run_storage.names(f"{self.stored.folder}/attempts")
        data = {name: self.stored.read(f"attempts/{name}") for name in names}
        mine = [
            name for name, content in data.items() if content and Attempt.from_json(content).token == under
        ]
        if not mine:
            raise Superseded
        self._name, self._content, self._at = mine[0], data[mine[0]], clock()

    @property
    def newest(self) -> bool:
        names = self.stored.run_storage.names(f"{self.stored.folder}/attempts")
        return names[-1:] == [_name(self.number)]

    @property
    def silent_s(self) -> float:
        """Seconds since the parent attempt last reported."""
        content = self.stored.read(f"attempts/{self._name}")
        if content != self._content:
            self._content, self._at = content, self.clock()
        return self.clock() - self._at


def used_s(stored: StoredRun) -> float:
    """Return the total time used by all attempts, in seconds, as reported so far."""
    return sum(one.used_s for one in _attempts(stored))


def attempts(stored: StoredRun) -> int:
    """Return the number of attempts of the run."""
    return len(stored.run_storage.names(f"{stored.folder}/attempts"))


def _attempts(stored: StoredRun) -> list[Attempt]:
    names = stored.run_storage.names(f"{stored.folder}/attempts")
    found = (stored.record(f"attempts/{name}", Attempt) for name in names)
    return [one for one in found if one is not None]


def _name(number: int) -> str:
    return f"{number:08d}.json"
