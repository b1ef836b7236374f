"""The store of runs: what was asked, what was sent, what the hosts said, what it cost."""

from __future__ import annotations

from typing import Self

from sqlalchemy import Engine

from orchestrate.store.clock import Clock
from orchestrate.store.database import engines
from orchestrate.store.database.engines import Database
from orchestrate.store.database.leases import Leases
from orchestrate.store.gateway import GatewayJobs, GatewayKeys, GatewayObjects
from orchestrate.store.records.agenda import Agenda, Notifications
from orchestrate.store.records.deployments import Deployments
from orchestrate.store.records.experiments import Experiments
from orchestrate.store.records.history import History
from orchestrate.store.records.ledger import Ledger
from orchestrate.store.records.listing import Listing
from orchestrate.store.records.queue import Queue
from orchestrate.store.records.reviews import Reviews
from orchestrate.store.records.runs import Runs
from orchestrate.store.records.searches import Searches


class Store:
    """The parts of the store over one database. Open with `Store.open`; a context manager that closes it."""

    def __init__(self, engine: Engine, clock: Clock | None = None) -> None:
        self.database = Database(engine, clock)
        self.clock = self.database.clock
        self.place = self.database.place
        self.leases = Leases(self.database)
        self.ledger = Ledger(self.database)
        self.runs = Runs(self.database, self.leases)
        self.listing = Listing(self.database)
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
