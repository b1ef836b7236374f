"""The interface of all places, built-in or from plugins.

A place holds a client but no run state, which is stored in the run directory. Places raise the errors of
providers (`orchestrate.errors.ProviderError`, or a setup error). Only `start` may raise `OutcomeUnknown`.
"""

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
"""Name of the file in a run's storage that contains the machine's price (an `Hourly`), as read after the
start."""


class WorkerLimits(Record, frozen=True, kw_only=True):
    """Limits at which a remote worker stops on its own, even if it can't reach any other machine. `None`
    means no limit."""

    max_hours: float | None = None
    """Maximum total hours of all attempts of the run."""
    max_usd: Decimal | None = None
    usd_per_hour: Decimal | None = None
    """Hourly price of the machine, used to convert `max_usd` into a time limit."""
    most_usd_per_hour: Decimal | None = None
    """Maximum hourly price. The worker stops on a machine that costs more."""
    silence_s: float = SILENCE_S

    @property
    def seconds(self) -> float | None:
        """Time limit in seconds for all attempts together: the stricter of `max_hours` and `max_usd`. `None`
        means no limit."""
        found = [] if self.max_hours is None else [self.max_hours * 3600]
        if self.max_usd is not None and self.usd_per_hour:
            found.append(float(self.max_usd / self.usd_per_hour) * 3600)
        return min(found, default=None)

    def working_s(self, earlier_s: float = 0.0) -> float | None:
        """Return the working time in seconds, over all attempts, after which a worker stops itself. This is
        below the limit, to leave time for saving the state. `None` means no limit. `earlier_s` is the time
        used by earlier attempts."""
        if self.seconds is None:
            return None
        return self.seconds - ending_s(max(0.0, self.seconds - earlier_s))


class Resources(Record, frozen=True, kw_only=True):
    """Resources that a worker needs, and the limits on their use."""

    gpu: str | None = None
    """GPU type, such as `H100`, or `None` for a machine without a GPU."""
    count: int = 1
    machine: str | None = None
    """The place's own name for the chosen machine."""
    spot: bool = False
    """True to use a spot machine, which is cheaper but may be reclaimed anytime."""
    min_processes: int | None = None
    """Minimum number of processes to train with if not all of them are available. `None` requires all of
    them."""
    limits: WorkerLimits = WorkerLimits()

    @property
    def description(self) -> str:
        return f"{self.count} x {self.gpu}" if self.gpu else "no GPU"


class Hourly(Record, frozen=True, kw_only=True):
    """The hourly price of a machine."""

    usd_per_hour: Decimal
    machine: str
    """The place's own name for the machine."""
    source: str
    as_of: datetime


class Machine(Record, frozen=True, kw_only=True):
    """A machine that a place offers, described without contacting the place."""

    name: str
    """The place's own name for the machine."""
    gpu: str | None = None
    count: int = 0
    """Number of GPUs."""
    memory_bytes: int | None = None
    """Memory of one GPU in bytes."""
    hourly: Hourly | None = None
    """Hourly price, or `None` if unknown."""
    spot: Hourly | None = None
    """Hourly price as a spot machine, which may be reclaimed anytime, or `None` if not offered."""


class Placed(Record, frozen=True, kw_only=True):
    """A worker as listed by its place."""

    id: str
    """Worker id assigned by the place."""
    ref: str
    state: Literal["waiting", "running", "ended", "unknown"]
    raw_state: str
    """The worker's status in the place's own terms."""
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    message: str | None = None
    machine: str | None = None
    """The place's own name for the worker's machine, if the place's list of workers includes it."""
    owner: str | None = None
    """Owner of the worker, if known to be someone other than the owner of the API key."""


class Usage(Record, frozen=True, kw_only=True):
    """Total usage over all attempts of a run."""

    seconds: float
    usd: Decimal | None
    """Cost, or `None` if the place does not bill."""
    source: str

    @classmethod
    def at(cls, hourly: Hourly | None, seconds: float, source: str) -> Usage:
        usd = None if hourly is None else hourly.usd_per_hour * Decimal(str(seconds)) / 3600
        return cls(seconds=seconds, usd=usd, source=source)


class Place(ABC):
    """A place that runs workers. All attempts of a run share the run's ref."""

    away: bool = True
    """True if workers don't share this machine's disk."""

    groups: bool = False
    """True if the place can spread a run's processes over several machines."""

    @property
    def own(self) -> bool:
        """True if the machines are known to belong to the user."""
        return not self.away

    def account(self) -> str | None:
        """Return the owner of the workers, or `None` if the place has only one account."""
        return None

    def require(self) -> None:  # noqa: B027  most need nothing before the first call
        """Raise a `SetupError` if workers can't be started with the current setup."""

    @abstractmethod
    def start(self, run: RunDir, resources: Resources, ref: str) -> None:
        """Start one worker on the run directory. Does nothing if the ref already has a worker.

        Raises `OutcomeUnknown` if it is unknown whether a worker was started. Any other `ProviderError`
        guarantees that none was started.
        """

    @abstractmethod
    def find(self, ref: str | None = None) -> list[Placed]:
        """List the workers of this ref, or of all runs, newest first. Includes ended workers if the place
        still lists them. Raises an error if the place's response is not a list."""

    def state(self, ref: str) -> Placed | None:
        """Return the newest worker, or `None` if the place lists none."""
        return next(iter(self.find(ref)), None)

    @abstractmethod
    def stop(self, ref: str) -> None:
        """Stop all workers of the run immediately. Repeated calls are safe. Progress that the workers have
        not reported is lost."""

    def machines(self) -> tuple[Machine, ...]:
        """List the machines that users can choose from, without network access. If the list is empty, the
        name of the requested machine is passed to the place unchecked."""
        return ()

    @abstractmethod
    def price(self, resources: Resources) -> Hourly | None:
        """Return the current hourly price of the requested machine, or `None` if nothing is billed. Raises
        `UsageError` if the place has no such machine."""

    @abstractmethod
    def usage(self, ref: str) -> Usage | None:
        """Return the usage that the place measured, or `None` if the place does not measure usage."""

    # -- the run directory --------------------------------------------------------------------------------

    def look(self, run: RunDir) -> None:  # noqa: B027  it lies here already
        """Fetch everything that the worker has reported since the last call."""

    def forward_action(self, run: RunDir) -> None:  # noqa: B027
        """Send the worker the pause or cancel request from this run directory."""

    def settle(self, run: RunDir) -> None:  # noqa: B027
        """Upload a run's state after it was changed on this machine. Only for runs that have no worker."""

    def starts(self, run: RunDir) -> int:
        """Return how many times a worker was started, or 0 if the place doesn't count starts. A place only
        has to count them if its workers may end before they record their attempts."""
        del run
        return 0

    def output(self, ref: str) -> str:
        """Return the last lines of the newest worker's output, or an empty string if the place stores
        none."""
        del ref
        return ""

    def bring(self, run: RunDir, folder: Path) -> None:  # noqa: B027
        """Fetch all files of a checkpoint or of the result to this machine."""

    def lost(self, run: RunDir) -> bool:
        """Return True if no worker can still be running, so another one may be started."""
        return not run.alive()

    def forget(self, run: RunDir) -> None:  # noqa: B027
        """Delete everything that the place stores about an ended run."""

    def close(self) -> None:  # noqa: B027
        """Close connections."""


def newest_first(found: Iterable[Placed]) -> list[Placed]:
    """Sort workers, newest first. Workers created at the same time are sorted by id in descending order,
    longer ids first."""

    def age(one: Placed) -> tuple[float, int, str]:
        return one.created_at.timestamp() if one.created_at else 0.0, len(one.id), one.id

    return sorted(found, key=age, reverse=True)


def ran_s(found: Iterable[Placed]) -> float:
    """Return the total running time of all workers in seconds, by the place's clock. The end time of a
    running worker is the current time of this machine's clock, which may differ from the place's."""
    now = datetime.now(UTC)
    times = [(one.started_at, one.finished_at or now) for one in found]
    return sum(max(0.0, (end - begun).total_seconds()) for begun, end in times if begun is not None)
