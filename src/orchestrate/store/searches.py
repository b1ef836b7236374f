"""Sweeps and their trials."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from msgspec.structs import replace
from sqlalchemy import Connection, or_, select

from orchestrate.errors import UsageError
from orchestrate.store import schema as tables
from orchestrate.store import stamp
from orchestrate.store.database import Database, Lease, Leases
from orchestrate.store.ledger import Limit
from orchestrate.types import Run, Search, Trial


class Searches:
    """Sweeps in the store. Safe to use from several threads and processes."""

    def __init__(self, db: Database, leases: Leases) -> None:
        self._db = db
        self._leases = leases

    def add(self, search: Search) -> bool:
        """Add a sweep. If the sweep already exists, update its limits and return `False`."""
        values = {"id": search.id, "at": stamp(search.created_at), "record": search.to_json().decode()}
        table = tables.searches
        insert = self._db.insert(table).values(values).on_conflict_do_nothing().returning(table.c.id)
        with self._db.writing() as connection:
            if connection.execute(insert).first() is not None:
                return True
            own = select(table.c.record).where(table.c.id == search.id).with_for_update()
            there = Search.from_json(connection.execute(own).scalar_one())
            now = replace(there, max_parallel=search.max_parallel, max_cost_usd=search.max_cost_usd)
            if now != there:
                record = now.to_json().decode()
                connection.execute(table.update().where(table.c.id == search.id).values(record=record))
            return False

    def all(self) -> list[Search]:
        """List all sweeps, newest first."""
        query = select(tables.searches.c.record).order_by(tables.searches.c.at.desc())
        with self._db.reading() as connection:
            return [Search.from_json(row) for row in connection.execute(query).scalars()]

    def get(self, name: str) -> Search:
        """Get a sweep by its id or a prefix of it, or by `last`. Raises `UsageError` if none or several
        match."""
        every = self.all()
        found = every[:1] if name == "last" else [one for one in every if name and one.id.startswith(name)]
        if len(found) != 1:
            what = f"{name} matches several sweeps" if found else f"no sweep matches {name}"
            raise UsageError(what, fix="orchestrate sweep --list")
        return found[0]

    def trials(self, search_id: str) -> list[Trial]:
        """List the trials of a sweep, sorted by number."""
        table = tables.trials
        query = select(table.c.record).where(table.c.search_id == search_id).order_by(table.c.number)
        with self._db.reading() as connection:
            return [Trial.from_json(row) for row in connection.execute(query).scalars()]

    def spent_usd(self, search_id: str, *, but: int | None = None) -> Decimal:
        """Return what a sweep's runs have cost so far, plus what they may still cost, in USD. `but` is the
        number of a trial to leave out."""
        with self._db.reading() as connection:
            return _spent(connection, search_id, but)

    def limit(self, search: Search, trial: Trial, **description: str) -> Limit | None:
        """Build the cost limit of a sweep, or return `None` if it has none. The limit must be checked in the
        transaction that creates or changes the trial's run."""
        if search.max_cost_usd is None:
            return None
        description = {"what": "the sweep's remaining limit", **description}

        def taken(connection: Connection) -> Decimal:
            return _spent(connection, search.id, trial.number)

        return Limit(search.max_cost_usd, taken, description)

    def of_run(self, run: Run) -> tuple[Search, Trial] | None:
        """Return the sweep and the trial that a run belongs to, or `None`.

        Both are derived from the run's idempotency key. This also works if the process died after it created
        the run but before it recorded the run in the trial.
        """
        for search in self.all():
            if (run.idempotency_key or "").startswith(f"{search.id}-"):
                found = [
                    t for t in self.trials(search.id) if run.idempotency_key == f"{search.id}-{t.number}"
                ]
                return (search, found[0]) if found else None
        return None

    def propose(self, search_id: str, trial: Trial, *, lease: Lease | None = None) -> bool:
        """Add a trial. Returns `False` if a trial with this number already exists. Raises `LeaseLost` if
        `lease` is no longer the latest one."""
        table = tables.trials
        values = {"search_id": search_id, "number": trial.number, "record": trial.to_json().decode()}
        insert = self._db.insert(table).values(values).on_conflict_do_nothing().returning(table.c.number)
        with self._db.writing() as connection:
            if lease is not None:
                self._leases.require(connection, lease)
            return connection.execute(insert).first() is not None

    def change(
        self, search_id: str, number: int, change: Callable[[Trial], Trial], *, lease: Lease | None = None
    ) -> Trial:
        """Change a trial with a function that receives its current state. If the function raises an
        exception, nothing changes. Raises `LeaseLost` if `lease` is no longer the latest one."""
        table = tables.trials
        own = (table.c.search_id == search_id) & (table.c.number == number)
        with self._db.writing() as connection:
            if lease is not None:
                self._leases.require(connection, lease)
            row = connection.execute(select(table.c.record).where(own).with_for_update()).scalar_one()
            before = Trial.from_json(row)
            after = change(before)
            if after != before:
                record = after.to_json().decode()
                connection.execute(table.update().where(own).values(record=record))
        return after


def _spent(connection: Connection, search_id: str, but: int | None) -> Decimal:
    from orchestrate.costing import of_trial  # late: listing runs must not pay for the room's import

    table, runs = tables.trials, tables.runs
    query = select(table.c.record).where(table.c.search_id == search_id)
    trials = [Trial.from_json(row) for row in connection.execute(query).scalars()]
    # The keys also find runs whose creator was killed before it recorded the run's id in the trial.
    keys = [f"{search_id}-{trial.number}" for trial in trials]
    ids = [trial.run_id for trial in trials if trial.run_id is not None]
    rows = connection.execute(
        select(runs.c.record).where(or_(runs.c.idempotency_key.in_(keys), runs.c.id.in_(ids)))
    ).scalars()
    found = [Run.from_json(row) for row in rows]
    of = {run.idempotency_key: run for run in found} | {run.id: run for run in found}
    each = ((of.get(t.run_id or f"{search_id}-{t.number}"), t) for t in trials if t.number != but)
    return sum((of_trial(run, trial) for run, trial in each), Decimal(0))
