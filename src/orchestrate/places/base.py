"""Interface of every place, built-in or from another package.

A place holds a client but never a run's state, which is in the run directory. Errors are those of providers
(`orchestrate.errors.ProviderError`, or a setup error). Only `start` may raise `OutcomeUnknown`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Literal

from orchestrate.local.run import RunDir
from orchestrate.types import Record
from orchestrate.types.allowance import ending_s

SILENCE_S = 600.0
"""Seconds without a successful report after which a worker stops itself."""


PRICE = "price.json"
"""File in a run's storage. It holds an `Hourly`, the machine's price as read after the start."""


class WorkerLimits(Record, frozen=True, kw_only=True):
    """Limits at which a remote worker stops itself, independently of everything else. `None`: no limit."""

    max_hours: float | None = None
    """Total hours over all attempts of the run."""
    max_usd: Decimal | None = None
    usd_per_hour: Decimal | None = None
    """Hourly price of the machine, which converts `max_usd` into a time."""
    most_usd_per_hour: Decimal | None = None
    """Highest hourly price at which a machine is used."""
    silence_s: float = SILENCE_S

    @property
    def seconds(self) -> float | None:
        """The shorter of both limits, in seconds, over all attempts."""
        found = [] if self.max_hours is None else [self.max_hours * 3600]
        if self.max_usd is not None and self.usd_per_hour:
            found.append(float(self.max_usd / self.usd_per_hour) * 3600)
        return min(found, default=None)

    def working_s(self, earlier_s: float = 0.0) -> float | None:
        """Return the total seconds of all attempts after which a worker stops itself. `earlier_s` is the time
        that earlier attempts used."""
        if self.seconds is None:
            return None
        return self.seconds - ending_s(max(0.0, self.seconds - earlier_s))


class Resources(Record, frozen=True, kw_only=True):
    """Resources that a worker needs, and the limits of their use."""

    gpu: str | None = None
    """GPU type, such as `H100`. `None`: a machine without a GPU."""
    count: int = 1
    machine: str | None = None
    """The place's own name for the chosen machine."""
    spot: bool = False
    """True for a spot machine, which is cheaper but reclaimed when someone pays more."""
    min_processes: int | None = None
    """Minimum number of processes with which the run continues if not all are available. `None`: it needs
    all."""
    limits: WorkerLimits = WorkerLimits()

    @property
    def told(self) -> str:
        return f"{self.count} x {self.gpu}" if self.gpu else "no GPU"


class Hourly(Record, frozen=True, kw_only=True):
    """The hourly price of a machine."""

    usd_per_hour: Decimal
    machine: str
    """The place's own name for the machine."""
    source: str
    as_of: datetime


class Machine(Record, frozen=True, kw_only=True):
    """A machine that a place offers, as far as known without contacting the place."""

    name: str
    """The place's own name."""
    gpu: str | None = None
    count: int = 0
    """Number of GPUs."""
    memory_bytes: int | None = None
    """Memory of one GPU."""
    hourly: Hourly | None = None
    """`None` if no price is known."""
    spot: Hourly | None = None
    """Spot price, or `None` if there is none. A spot machine may be reclaimed anytime."""


class Placed(Record, frozen=True, kw_only=True):
    """A worker as its place knows it."""

    id: str
    """The place's own id."""
    ref: str
    state: Literal["waiting", "running", "ended", "unknown"]
    raw_state: str
    """The place's own status."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    message: str | None = None
    machine: str | None = None
    """The place's own name for the worker's machine, if its list shows it."""
    owner: str | None = None
    """Owner of the worker, if known to differ from the owner of the key."""


class Usage(Record, frozen=True, kw_only=True):
    """Total usage of all attempts of a run."""

    seconds: float
    usd: Decimal | None
    """`None` if the place does not bill."""
    source: str

    @classmethod
    def at(cls, hourly: Hourly | None, seconds: float, source: str) -> Usage:
        usd = None if hourly is None else hourly.usd_per_hour * Decimal(str(seconds)) / 3600
        return cls(seconds=seconds, usd=usd, source=source)


class Place(ABC):
    """A place that runs workers. All attempts of a run share one ref."""

    away: bool = True
    """True if a worker has its own disk, not that of this machine."""

    groups: bool = False
    """True if a run's processes may be spread over several machines."""

    @property
    def own(self) -> bool:
        """True if the machines are known to be the user's own."""
        return not self.away

    def account(self) -> str | None:
        """Return the owner of these workers, or `None` if there is only one account."""
        return None

    def require(self) -> None:  # noqa: B027  most need nothing before the first call
        """Raise a setup error if the current setup can't start anything."""

    @abstractmethod
    def start(self, run: RunDir, resources: Resources, ref: str) -> None:
        """Start one worker on the run directory. Does nothing for a ref that already has a worker.

        Raises `OutcomeUnknown` if it is unknown whether a worker was started. Any other `ProviderError` means
        that none was."""

    @abstractmethod
    def find(self, ref: str | None = None) -> list[Placed]:
        """Find the workers of this ref, or of all runs, newest first, including ended ones if the place still
        lists them. Raises an error if the response is not a list."""

    def state(self, ref: str) -> Placed | None:
        """Return the newest worker, or `None` if the place knows of none."""
        return next(iter(self.find(ref)), None)

    @abstractmethod
    def stop(self, ref: str) -> None:
        """Stop all workers of the run immediately. Idempotent. Anything that they have not reported is
        lost."""

    def machines(self) -> tuple[Machine, ...]:
        """List the machines to choose from. Offline. If the list is empty, any requested machine is passed on
        to the place."""
        return ()

    @abstractmethod
    def price(self, resources: Resources) -> Hourly | None:
        """Return the current price of such a machine, or `None` if nothing is billed. Raises `UsageError` if
        the place has no such machine."""

    @abstractmethod
    def usage(self, ref: str) -> Usage | None:
        """Return the usage that the place itself measured, or `None` if it measures none."""

    # -- the run directory --------------------------------------------------------------------------------

    def look(self, run: RunDir) -> None:  # noqa: B027  it lies here already
        """Fetch everything that was reported since the last call."""

    def tell(self, run: RunDir) -> None:  # noqa: B027
        """Send the request in this run directory to the worker."""

    def settle(self, run: RunDir) -> None:  # noqa: B027
        """Pass on the state that was set here for a run without a worker."""

    def starts(self, run: RunDir) -> int:
        """Return how often a worker was started, for places where a worker may end before it counts its own
        attempt."""
        del run
        return 0

    def output(self, ref: str) -> str:
        """Return the last lines of the newest worker's output. Empty if the place stores none."""
        del ref
        return ""

    def bring(self, run: RunDir, folder: Path) -> None:  # noqa: B027
        """Fetch all files of a checkpoint or of the result to this machine."""

    def lost(self, run: RunDir) -> bool:
        """Return True if no worker can be running anymore and another may be started."""
        return not run.alive()

    def forget(self, run: RunDir) -> None:  # noqa: B027
        """Remove everything that the place stores of an ended run."""

    def close(self) -> None:  # noqa: B027
        """Close connections."""


def newest_first(found: Iterable[Placed]) -> list[Placed]:
    """Sort workers, newest first. Among equal creation times, the later name or number comes first."""

    def age(one: Placed) -> tuple[float, int, str]:
        return one.created_at.timestamp() if one.created_at else 0.0, len(one.id), one.id

    return sorted(found, key=age, reverse=True)


def ran_s(found: Iterable[Placed]) -> float:
    """Sum the running time of all workers in seconds, by the place's clock. A worker that is still running
    counts until now by this machine's clock, which may be behind."""
    now = datetime.now(UTC)
    times = [(one.started_at, one.finished_at or now) for one in found]
    return sum(max(0.0, (end - begun).total_seconds()) for begun, end in times if begun is not None)
