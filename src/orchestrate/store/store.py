"""The run store: everything that Orchestrate records about runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Self

from msgspec import Struct
from sqlalchemy import Engine

from orchestrate.store import Clock, database
from orchestrate.store.database import Database, Leases
from orchestrate.store.history import History
from orchestrate.store.run_lists import RunLists
from orchestrate.store.runs import Runs
from orchestrate.store.transitions import UNSETTLED

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.store.coordination import Coordination, Notifications
    from orchestrate.store.deployments import Deployments
    from orchestrate.store.experiments import Experiments
    from orchestrate.store.gateway import GatewayJobs, GatewayKeys, GatewayObjects
    from orchestrate.store.ledger import Ledger
    from orchestrate.store.queue import Queue
    from orchestrate.store.reviews import Reviews
    from orchestrate.store.searches import Searches
    from orchestrate.types import Run


class Store:
    """A run store: one database, and the objects that read and write its parts. Open it with `Store.open`,
    and use it as a context manager to close it."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self.database = Database(engine, clock)
        self.clock = self.database.clock
        self.place = self.database.place
        self.leases = Leases(self.database)
        self.runs = Runs(self.database, self.leases)
        self.listing = RunLists(self.database)
        self.history = History(self.database)

    # Imported on first use, because most commands need few of them.
    @cached_property
    def ledger(self) -> Ledger:
        from orchestrate.store.ledger import Ledger

        return Ledger(self.database)

    @cached_property
    def deployments(self) -> Deployments:
        from orchestrate.store.deployments import Deployments

        return Deployments(self.database)

    @cached_property
    def watching(self) -> Coordination:
        from orchestrate.store.coordination import Coordination

        return Coordination(self.database, self.leases)

    @cached_property
    def notifications(self) -> Notifications:
        from orchestrate.store.coordination import Notifications

        return Notifications(self.database)

    @cached_property
    def reviews(self) -> Reviews:
        from orchestrate.store.reviews import Reviews

        return Reviews(self.database)

    @cached_property
    def experiments(self) -> Experiments:
        from orchestrate.store.experiments import Experiments

        return Experiments(self.database)

    @cached_property
    def queue(self) -> Queue:
        from orchestrate.store.queue import Queue

        return Queue(self.database)

    @cached_property
    def searches(self) -> Searches:
        from orchestrate.store.searches import Searches

        return Searches(self.database, self.leases)

    @cached_property
    def gateway_keys(self) -> GatewayKeys:
        from orchestrate.store.gateway import GatewayKeys

        return GatewayKeys(self.database)

    @cached_property
    def gateway_objects(self) -> GatewayObjects:
        from orchestrate.store.gateway import GatewayObjects

        return GatewayObjects(self.database)

    @cached_property
    def gateway_jobs(self) -> GatewayJobs:
        from orchestrate.store.gateway import GatewayJobs

        return GatewayJobs(self.database)

    @classmethod
    def open(cls, url: str, *, clock: Clock | None = None) -> Self:
        """Open a SQLite file (created if missing) or a Postgres database. Raises `StoreError` if it can't be
        opened, and `MissingExtra` if the Postgres driver is not installed."""
        return cls(database.open_engine(url), clock)

    def verify(self) -> list[str]:
        """Check the database file and return the problems found."""
        return self.database.verify()

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Time limits of the submit protocol, and the points at which fault tests kill it.


POINTS = (
    "after-intent",
    "after-upload",
    "after-uploaded",
    "after-submitting",
    "after-fence",
    "after-post",
    "after-submitted",
)
"""Points in the submit protocol at which fault tests kill the process."""

CrashPoint = Callable[[str], None]
"""Callback that the submit protocol calls at each point in `POINTS`, with the point's name."""

CLOCK_SKEW = timedelta(days=2)
"""Tolerated difference between this machine's clock and the host's clock when searching for jobs by creation
time."""


class Timing(Struct, frozen=True):
    """Time limits of the submit protocol, in seconds."""

    send_limit_s: float = 20.0
    """Maximum time between storing the phase SUBMITTING and sending the create request. After this time, the
    request is not sent."""
    requests: int = 3
    """Number of HTTP requests needed to create one job, including the reads before the create request. Each
    request may take as long as the provider's timeout."""
    margin_s: float = 60.0
    """Maximum delay before a new job appears in the host's list."""
    lease_s: float = 30.0
    patience_s: float = 120.0
    """Maximum total time to wait for a busy host."""

    def settle_s(self, provider: Provider) -> float:
        """Return the settle time: the seconds after which the result of a create request is certain. By then,
        the request is no longer in flight, and if it created a job, the host's list shows the job."""
        return self.send_limit_s + self.requests * provider.config.timeout_s + self.margin_s


DEFAULT_TIMING = Timing()


def settle_left_s(
    store: Store, provider: Provider, run: Run, timing: Timing = DEFAULT_TIMING
) -> float | None:
    """Return the seconds that remain of the settle time. If the host still doesn't list the job after that,
    the job was never created. Returns `None` if it is already known whether the host has the job."""
    if run.phase not in UNSETTLED:
        return None
    return max(timing.settle_s(provider) - store.runs.waited(run.id), 0.0)


def pass_by(_point: str) -> None:
    """Do nothing. This is the default `CrashPoint`, which is used outside of fault tests."""
