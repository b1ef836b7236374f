"""The history of a run: transitions, events, metrics, checkpoints, records and uploads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from math import isfinite
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import BigInteger, ColumnElement, Connection, Select, case, cast, func, literal, select

from orchestrate.store import Clock, schema, stamp
from orchestrate.store.database import Database
from orchestrate.types import (
    Checkpoint,
    Evaluation,
    Event,
    JobStatus,
    MetricPoint,
    Proof,
    RemoteDataset,
    Run,
    SubmitPhase,
    Translation,
    decoding,
)

if TYPE_CHECKING:
    from orchestrate.costing import Reconciliation

TRANSLATION = "translation"
"""Kind of the record that stores how a run's settings were translated for its backend."""


_SAME = tuple({column.name for column in schema.runs.columns} & {*Run.__struct_fields__} - {"id"})
"""Names of the columns that are copied from the field of `Run` with the same name."""


def _cell(value: Any) -> Any:
    """Convert a field of a record for its column: times and amounts to text, enums to their values."""
    match value:
        case datetime():
            return stamp(value)
        case StrEnum():
            return value.value
        case Decimal():
            return str(value)
        case _:
            return value


def columns(run: Run, clock: Clock) -> dict[str, Any]:
    """Return the values of a run's database row that are derived from its record, as `{column: value}`,
    without the id."""
    return {name: _cell(getattr(run, name)) for name in _SAME} | {
        "name": run.spec.get("suffix"),
        "due_at": stamp(clock.now()),
        "record": run.to_json().decode(),
        **schema.listed(run),
        **schema.charged(run),
    }


def beside(
    clock: Clock, run_id: str, kind: str, record: msgspec.Struct | Mapping[str, Any]
) -> dict[str, Any]:
    """Return the database row that stores a run's JSON record, such as a proof or an evaluation."""
    text = msgspec.json.encode(record).decode()
    return {"run_id": run_id, "kind": kind, "at": stamp(clock.now()), "record": text}


def recorded_state(run: Run) -> tuple[SubmitPhase, JobStatus, str | None]:
    """Return the phase, the status and the raw status of a run. Each change of these values is recorded as a
    transition."""
    return run.phase, run.status, run.raw_status


def reopened(before: Run, after: Run) -> bool:
    """Return whether the host is asked about an ended run once more: it goes on, or its bill counts now."""
    return before.status.terminal and (not after.status.terminal or (before.imported and not after.imported))


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded change of a run's state."""

    at: datetime
    phase: SubmitPhase
    status: JobStatus
    raw_status: str | None
    attempt: int
    actor: str
    """Process that recorded the change: host name, process id and a random part."""
    note: str | None


def add_events(
    db: Database, connection: Connection, run_id: str, events: Iterable[Event], *, from_host: bool
) -> list[Event]:
    """Add events like `History.add_events`, in the caller's transaction."""
    added: list[Event] = []
    for event in events:
        done = connection.execute(
            db.insert(schema.events)
            .values(
                run_id=run_id,
                id=event.id,
                from_host=from_host,
                at=stamp(event.at),
                record=event.to_json().decode(),
            )
            .on_conflict_do_nothing(index_elements=["run_id", "id"])
            .returning(schema.events.c.seq)
        )
        if done.scalar() is not None:
            added.append(event)
    return added


class History:
    """The history of runs. Adding is idempotent: entries with a known id or step are not duplicated."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add_events(self, run_id: str, events: Iterable[Event], *, from_host: bool = True) -> list[Event]:
        """Add events and return the new ones, in order."""
        events = list(events)
        if not events:
            return []
        with self._db.writing() as connection:
            return add_events(self._db, connection, run_id, events, from_host=from_host)

    def events(self, run_id: str, *, after: str | None = None, limit: int | None = None) -> list[Event]:
        """List events in the order in which they were received. `limit` keeps only the most recent ones."""
        table = schema.events
        query = select(table.c.record).where(table.c.run_id == run_id).order_by(table.c.seq.desc())
        if after is not None:
            seq = select(table.c.seq).where(table.c.run_id == run_id, table.c.id == after).scalar_subquery()
            query = query.where(table.c.seq > func.coalesce(seq, 0))
        with self._db.reading() as connection:
            rows = connection.execute(query.limit(limit)).scalars().all()
        return [Event.from_json(row) for row in reversed(rows)]

    def alarms(self, run_id: str) -> list[Event]:
        """List the alerts that Orchestrate itself raised and that need the user's attention."""
        table = schema.events
        query = (
            select(table.c.record)
            .where(table.c.run_id == run_id, ~table.c.from_host, table.c.id.startswith("orchestrate-"))
            .order_by(table.c.seq)
        )
        with self._db.reading() as connection:
            found = [Event.from_json(row) for row in connection.execute(query).scalars()]
        return [event for event in found if event.type == "alarm"]

    def last_event_id(self, run_id: str) -> str | None:
        """Return the id of the newest stored event from the host. The next poll requests the events after
        it."""
        table = schema.events
        query = (
            select(table.c.id)
            .where(table.c.run_id == run_id, table.c.from_host)
            .order_by(table.c.seq.desc())
            .limit(1)
        )
        with self._db.reading() as connection:
            return connection.execute(query).scalar()

    def add_metrics(self, run_id: str, points: Iterable[MetricPoint]) -> int:
        """Add metrics, merged by step, because a host may report the training loss first and the validation
        loss later. Returns the number of steps that were new or changed. Leaves out values that are not
        finite, which JSON can't represent, and adds a warning to the run's events."""
        table, points, at = schema.metrics, list(points), self._db.clock.now()
        left_out = sorted(
            {name for point in points for name, value in point.values.items() if not isfinite(value)}
        )
        known_of = select(table.c.step, table.c.record).where(table.c.run_id == run_id)
        # Most polls bring nothing new, and reading needs no lock.
        with self._db.reading() as connection:
            known = {step: record for step, record in connection.execute(known_of)}
        same = all(_merged(known.get(point.step), point) == known.get(point.step) for point in points)
        if same:
            return 0
        changed: set[int] = set()
        with self._db.writing() as connection:
            warnings = [_not_finite(name, at) for name in left_out]
            add_events(self._db, connection, run_id, warnings, from_host=False)
            known = {step: record for step, record in connection.execute(known_of)}
            for point in points:
                record = _merged(known.get(point.step), point)
                if record == known.get(point.step):
                    continue
                known[point.step] = record
                changed.add(point.step)
                insert = self._db.insert(table).values(run_id=run_id, step=point.step, record=record)
                connection.execute(
                    insert.on_conflict_do_update(
                        index_elements=["run_id", "step"], set_={"record": insert.excluded.record}
                    )
                )
        return len(changed)

    def metrics(self, run_id: str) -> list[MetricPoint]:
        """List the metrics of a run, sorted by step."""
        table = schema.metrics
        query = select(table.c.record).where(table.c.run_id == run_id).order_by(table.c.step)
        with self._db.reading() as connection:
            return [MetricPoint.from_json(row) for row in connection.execute(query).scalars()]

    def last_points(self, run_ids: Sequence[str]) -> dict[str, MetricPoint]:
        """Return the newest metric point of each run that has one."""
        table, found = schema.metrics, dict[str, MetricPoint]()
        with self._db.reading() as connection:
            for start in range(0, len(run_ids), 500):
                last = select(table.c.run_id, func.max(table.c.step).label("step")).group_by(table.c.run_id)
                n = last.where(table.c.run_id.in_(run_ids[start : start + 500])).subquery()
                join = (table.c.run_id == n.c.run_id) & (table.c.step == n.c.step)
                query = select(table.c.run_id, table.c.record).join(n, join)
                found |= {run_id: MetricPoint.from_json(row) for run_id, row in connection.execute(query)}
        return found

    def sampled(self, run_ids: Sequence[str], most: int) -> dict[str, list[MetricPoint]]:
        """Return about `most` metric points of each run, evenly spaced by step, including the first and the
        last one."""
        found: dict[str, dict[int, str]] = {run_id: {} for run_id in run_ids}
        with self._db.reading() as connection:
            for start in range(0, len(run_ids), 500):
                for run_id, step, record in connection.execute(_sample(run_ids[start : start + 500], most)):
                    found[run_id][step] = record
        return {
            run_id: [MetricPoint.from_json(record) for _, record in sorted(records.items())]
            for run_id, records in found.items()
        }

    def set_checkpoints(self, run_id: str, checkpoints: Iterable[Checkpoint]) -> None:
        """Add or replace checkpoints by id. Keeps checkpoints that the host no longer lists."""
        table, known = schema.checkpoints, self.checkpoints(run_id)
        new = [checkpoint for checkpoint in checkpoints if checkpoint not in known]
        if not new:
            return
        with self._db.writing() as connection:
            for checkpoint in new:
                insert = self._db.insert(table).values(
                    run_id=run_id, id=checkpoint.id, record=checkpoint.to_json().decode()
                )
                connection.execute(
                    insert.on_conflict_do_update(
                        index_elements=["run_id", "id"], set_={"record": insert.excluded.record}
                    )
                )

    def checkpoints(self, run_id: str) -> list[Checkpoint]:
        """List the checkpoints of a run, sorted by step. Those without a step come first."""
        table = schema.checkpoints
        with self._db.reading() as connection:
            rows = connection.execute(select(table.c.record).where(table.c.run_id == run_id)).scalars()
            found = [Checkpoint.from_json(row) for row in rows]
        return sorted(found, key=lambda c: (c.step or 0, c.id))

    # -- uploads -------------------------------------------------------------------------------------------

    def record_upload(self, provider: str, host: str, account: str, remote: RemoteDataset) -> None:
        """Record where an account stores a dataset, so the same content is not uploaded again."""
        insert = self._db.insert(schema.uploads).values(
            provider=provider,
            host=host,
            account=account,
            digest=remote.digest,
            at=stamp(self._db.clock.now()),
            record=remote.to_json().decode(),
        )
        with self._db.writing() as connection:
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["provider", "host", "account", "digest"],
                    set_={"record": insert.excluded.record, "at": insert.excluded.at},
                )
            )

    def upload(self, provider: str, host: str, account: str | None, digest: str) -> RemoteDataset | None:
        """Return the dataset's location in the account, or `None` if no upload is recorded."""
        query = select(schema.uploads.c.record).where(_upload(provider, host, account, digest))
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else RemoteDataset.from_json(row)

    def forget_upload(self, provider: str, host: str, account: str | None, digest: str) -> None:
        """Delete the record of an upload that the host no longer has or does not accept."""
        with self._db.writing() as connection:
            connection.execute(schema.uploads.delete().where(_upload(provider, host, account, digest)))

    # -- records of other modules --------------------------------------------------------------------------

    def add_record(self, run_id: str, kind: str, record: msgspec.Struct | dict[str, Any]) -> int:
        """Store a JSON record with a run. `kind` may be any name, such as `evaluation`, `artifact` or
        `endpoint`. Returns the record's id."""
        with self._db.writing() as connection:
            row = beside(self._db.clock, run_id, kind, record)
            done = connection.execute(schema.records.insert().values(row))
            key = done.inserted_primary_key
            return int(key[0]) if key else 0

    def translation(self, run_id: str) -> Translation | None:
        """Return how the run's settings were translated for its backend, without secrets. Returns `None` for
        a run that was not submitted from this store."""
        found = self.records(TRANSLATION, [run_id])
        return Translation.from_dict(found[-1].data) if found else None

    def proofs(self, *run_ids: str) -> list[Proof]:
        """List the proofs of these runs, or of all runs if none are given, oldest first."""
        return [Proof.from_dict(r.data) for r in self.records("proof", run_ids or None)]

    def records(self, kind: str, run_ids: Sequence[str] | None = None) -> list[StoredRecord]:
        """List the records of one kind, oldest first, for these runs or (by default) for all runs."""
        table = schema.records
        query = select(table).where(table.c.kind == kind).order_by(table.c.id)
        if run_ids is not None:
            query = query.where(table.c.run_id.in_(run_ids))
        with self._db.reading() as connection:
            return [
                StoredRecord(
                    id=row.id,
                    run_id=row.run_id,
                    at=datetime.fromisoformat(row.at),
                    data=json.loads(row.record),
                )
                for row in connection.execute(query)
            ]

    def add_reconciliations(self, found: Iterable[Reconciliation]) -> None:
        """Record how the quote of each ended run compares with its bill. If a host corrects its bill, a new
        record is added."""
        rows = [beside(self._db.clock, one.run_id, "reconciliation", one) for one in found]
        if rows:
            with self._db.writing() as connection:
                connection.execute(schema.records.insert(), rows)

    def reconciliations(self, *run_ids: str) -> list[Reconciliation]:
        """List the last reconciliation of each of these runs, oldest first. Without arguments, covers all
        runs."""
        found = self.records("reconciliation", run_ids or None)
        last = {record.run_id: record.data for record in found}
        from orchestrate.costing import Reconciliation

        return [decoding.convert(data, Reconciliation, strict=False) for data in last.values()]

    def add_evaluation(self, evaluation: Evaluation) -> None:
        """Store an evaluation with each of its runs, or without a run if it has none."""
        for run_id in evaluation.run_ids or [""]:
            self.add_record(run_id, "evaluation", evaluation)

    def evaluations(self, *run_ids: str) -> list[Evaluation]:
        """List the evaluations of these runs, or all evaluations if no runs are given, oldest first."""
        stored = self.records("evaluation", run_ids or None)
        found = [decoding.convert(record.data, Evaluation, strict=False) for record in stored]
        return list({one.id: one for one in found}.values())

    # -- steps ---------------------------------------------------------------------------------------------

    def transitions(self, run_id: str) -> list[Transition]:
        """List the transitions of a run, oldest first."""
        table = schema.transitions
        with self._db.reading() as connection:
            rows = connection.execute(
                select(table).where(table.c.run_id == run_id).order_by(table.c.id)
            ).all()
        return [
            Transition(
                at=datetime.fromisoformat(row.at),
                phase=SubmitPhase(row.phase),
                status=JobStatus(row.status),
                raw_status=row.raw_status,
                attempt=row.attempt,
                actor=row.actor,
                note=row.note,
            )
            for row in rows
        ]


class StoredRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A stored JSON record."""

    id: int
    run_id: str
    at: datetime
    data: dict[str, Any]


def _not_finite(name: str, at: datetime) -> Event:
    message = (
        f"{name} was not a finite number (NaN or infinite) at one or more steps. Those values are left out"
    )
    return Event(id=f"orchestrate-not-finite-{name}", at=at, level="warning", message=message)


def _merged(known: str | None, point: MetricPoint) -> str:
    old = MetricPoint(step=point.step, values={}) if known is None else MetricPoint.from_json(known)
    return old.updated(point).to_json().decode()


def _sample(run_ids: Sequence[str], most: int) -> Select[Any, Any, Any]:
    """Select the points at, or next after, `most` evenly spaced steps of each run. A point that is next after
    several of them is returned several times. Looking up each point in the index takes a sixth of the time of
    numbering a million points and selecting every tenth."""
    table, nearest = schema.metrics, schema.metrics.alias()
    first, last = func.min(table.c.step), func.max(table.c.step)
    ends = select(table.c.run_id, first.label("first"), cast(last - first, BigInteger).label("span"))
    run = ends.where(table.c.run_id.in_(run_ids)).group_by(table.c.run_id).subquery()
    part = select(literal(0).label("n")).cte(recursive=True)
    part = part.union_all(select(part.c.n + 1).where(part.c.n < most))
    parts = case((run.c.span == 0, 1), (run.c.span < most, run.c.span), else_=most)
    place = run.c.first + run.c.span * part.c.n // parts
    after = (nearest.c.run_id == run.c.run_id) & (nearest.c.step >= place)
    step = select(nearest.c.step).where(after).order_by(nearest.c.step).limit(1).scalar_subquery()
    return (
        select(table.c.run_id, table.c.step, table.c.record)
        .select_from(run)
        .join(part, part.c.n <= run.c.span)
        .join(table, (table.c.run_id == run.c.run_id) & (table.c.step == step))
    )


def _upload(provider: str, host: str, account: str | None, digest: str) -> ColumnElement[bool]:
    table = schema.uploads
    place = (table.c.provider == provider) & (table.c.host == host) & (table.c.account == (account or ""))
    return place & (table.c.digest == digest)
