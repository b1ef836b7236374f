"""Experiments: their plans and phases, the model assigned to each user, and the outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Row, select, update

from orchestrate.errors import UsageError
from orchestrate.store import new_id, stamp
from orchestrate.store import schema as tables
from orchestrate.store.database import Database
from orchestrate.types import ExperimentPhase, ExperimentRecord, Exposure

PREFIX = "exp-"


class StoredOutcome(NamedTuple):
    """The stored outcome for one user in an experiment."""

    person: str
    phase: int
    value: float
    at: datetime


class NewOutcome(NamedTuple):
    person: str
    phase: int
    metric: str
    value: float
    key: str | None


class Experiments:
    """Experiments in the store. Safe to use from several threads and processes."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.clock = db.clock

    # -- plans and phases ----------------------------------------------------------------------------------

    def new_id(self) -> str:
        return new_id(PREFIX, self.clock.now())

    def add(self, record: ExperimentRecord, first: ExperimentPhase) -> bool:
        """Add an experiment and its first phase. Returns `False` and adds nothing if the name is taken."""
        table, at = tables.experiments, stamp(record.created_at)
        values = {"id": record.id, "name": record.plan.name, "at": at, "record": record.to_json().decode()}
        insert = self._db.insert(table).values(values).on_conflict_do_nothing().returning(table.c.id)
        with self._db.writing() as connection:
            if connection.execute(insert).first() is None:
                return False
            connection.execute(tables.experiment_phases.insert().values(_phase_row(record.id, first)))
        return True

    def all(self) -> list[ExperimentRecord]:
        """List all experiments, newest first."""
        table = tables.experiments
        with self._db.reading() as connection:
            rows = connection.execute(select(table.c.record).order_by(table.c.at.desc())).scalars().all()
        return [ExperimentRecord.from_json(row) for row in rows]

    def named(self, name: str) -> ExperimentRecord | None:
        table = tables.experiments
        with self._db.reading() as connection:
            row = connection.execute(select(table.c.record).where(table.c.name == name)).scalar()
        return None if row is None else ExperimentRecord.from_json(row)

    def get(self, name: str) -> ExperimentRecord:
        """Get an experiment by its name or id, or a prefix of either. Raises `UsageError` if none or several
        match."""
        known = self.all()
        found = [one for one in known if one.plan.name == name]
        found = found or [one for one in known if one.id.startswith(name) or one.plan.name.startswith(name)]
        if len(found) != 1:
            what = f"{name} matches several experiments" if found else f"no experiment matches {name}"
            names = ", ".join(one.plan.name for one in known) or "none"
            raise UsageError(
                f"{what}. Experiments: {names}", fix="start one with: orchestrate ab serve PLAN.yaml"
            )
        return found[0]

    def phases(self, id: str) -> list[ExperimentPhase]:
        table = tables.experiment_phases
        query = select(table.c.record).where(table.c.experiment == id).order_by(table.c.number)
        with self._db.reading() as connection:
            return [ExperimentPhase.from_json(row) for row in connection.execute(query).scalars()]

    def add_phase(self, id: str, phase: ExperimentPhase) -> bool:
        """Add a phase. Returns `False` if another process has already added a phase with this number."""
        table = tables.experiment_phases
        insert = self._db.insert(table).values(_phase_row(id, phase)).on_conflict_do_nothing()
        with self._db.writing() as connection:
            return connection.execute(insert.returning(table.c.number)).first() is not None

    # -- users ---------------------------------------------------------------------------------------------

    def last_exposure(self, id: str, person: str) -> Exposure | None:
        table = tables.exposures
        query = select(table).where(table.c.experiment == id, table.c.person == person)
        with self._db.reading() as connection:
            row = connection.execute(query.order_by(table.c.phase.desc()).limit(1)).first()
        return None if row is None else _exposure(row)

    def expose(self, id: str, *given: Exposure) -> None:
        """Record exposures. Only a user's first exposure in a phase counts."""
        if not given:
            return
        insert = self._db.insert(tables.exposures).on_conflict_do_nothing()
        rows = [
            {
                "experiment": id,
                "person": one.user,
                "phase": one.phase,
                "tuned": one.arm == "tuned",
                "chance": one.chance,
                "at": stamp(one.at),
            }
            for one in given
        ]
        with self._db.writing() as connection:
            connection.execute(insert, rows)

    def exposures(self, id: str) -> list[Exposure]:
        """List the exposures of an experiment, in the order in which they were recorded."""
        table = tables.exposures
        query = select(table).where(table.c.experiment == id)
        with self._db.reading() as connection:
            rows = connection.execute(query.order_by(table.c.at, table.c.phase, table.c.person)).all()
        return [_exposure(row) for row in rows]

    # -- outcomes ------------------------------------------------------------------------------------------

    def record(self, id: str, given: Sequence[NewOutcome]) -> int:
        """Add all outcomes in one transaction, skipping those whose key is already stored. Returns the number
        added."""
        if not given:
            return 0
        at = stamp(self.clock.now())
        insert = self._db.insert(tables.outcomes).on_conflict_do_nothing().returning(tables.outcomes.c.seq)
        rows = [{"experiment": id, "at": at, **one._asdict()} for one in given]
        with self._db.writing() as connection:
            return len(connection.execute(insert, rows).all())

    def outcomes(self, id: str, metric: str) -> list[StoredOutcome]:
        """List the outcomes of one metric, in the order in which they were recorded."""
        table = tables.outcomes
        query = select(table.c.person, table.c.phase, table.c.value, table.c.at)
        query = query.where(table.c.experiment == id, table.c.metric == metric).order_by(table.c.seq)
        with self._db.reading() as connection:
            rows = connection.execute(query).all()
        return [StoredOutcome(row[0], row[1], row[2], datetime.fromisoformat(row[3])) for row in rows]

    # -- counts --------------------------------------------------------------------------------------------

    def count(self, id: str, name: str, more: int = 1) -> None:
        table = tables.experiment_counts
        there = update(table).where(table.c.experiment == id, table.c.name == name)
        insert = self._db.insert(table).values(experiment=id, name=name, value=more)
        with self._db.writing() as connection:
            insert = insert.on_conflict_do_nothing().returning(table.c.value)
            if connection.execute(insert).first() is None:
                connection.execute(there.values(value=table.c.value + more))

    def counts(self, id: str) -> dict[str, int]:
        table = tables.experiment_counts
        query = select(table.c.name, table.c.value).where(table.c.experiment == id).order_by(table.c.name)
        with self._db.reading() as connection:
            return {name: value for name, value in connection.execute(query).all()}


def _phase_row(id: str, phase: ExperimentPhase) -> dict[str, object]:
    record = phase.to_json().decode()
    return {"experiment": id, "number": phase.number, "at": stamp(phase.at), "record": record}


def _exposure(row: Row[Any]) -> Exposure:
    return Exposure(
        user=row.person,
        phase=row.phase,
        arm="tuned" if row.tuned else "base",
        chance=row.chance,
        at=datetime.fromisoformat(row.at),
    )
