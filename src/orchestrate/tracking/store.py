"""The store of runs: what was asked, what was sent, what the hosts said, what it cost."""

from __future__ import annotations

from typing import Self

from sqlalchemy import Engine

from orchestrate.tracking.clock import Clock
from orchestrate.tracking.database import engines
from orchestrate.tracking.database.engines import Database
from orchestrate.tracking.database.leases import Leases
from orchestrate.tracking.gateway import GatewayJobs, GatewayKeys, GatewayObjects
from orchestrate.tracking.hosting.deployments import Deployments
from orchestrate.tracking.records.agenda import Agenda, Notifications
from orchestrate.tracking.records.experiments import Experiments
from orchestrate.tracking.records.history import History
from orchestrate.tracking.records.queue import Queue
from orchestrate.tracking.records.reviews import Reviews
from orchestrate.tracking.records.runs import Runs
from orchestrate.tracking.records.searches import Searches


class Store:
    """The parts of the store over one database. Open with `Store.open`; a context manager that closes it."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self.database = Database(engine, clock)
        self.clock = self.database.clock
        self.place = self.database.place
        self.leases = Leases(self.database)
        self.runs = Runs(self.database, self.leases)
        self.deployments = Deployments(self.database)
        self.history = History(self.database)
        self.watching = Agenda(self.database, self.leases)
        self.notifications = Notifications(self.database)
        self.reviews = Reviews(self.database)
        self.experiments = Experiments(self.database)
        self.queue = Queue(self.database)
        self.searches = Searches(self.database)
        self.gateway_keys = GatewayKeys(self.database)
        self.gateway_objects = GatewayObjects(self.database)
        self.gateway_jobs = GatewayJobs(self.database)

    @classmethod
    def open(cls, url: str, *, clock: Clock | None = None) -> Self:
        """A SQLite file (made when nothing is there) or a Postgres database. Raises `StoreError`,
        `MissingExtra`."""
        return cls(engines.open_engine(url), clock)

    def verify(self) -> list[str]:
        """What is wrong with the stored pages; empty when nothing is."""
        return self.database.verify()

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
