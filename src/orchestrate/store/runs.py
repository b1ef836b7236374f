"""The runs in the store: create, change and find them.

Each change of a run is one transaction that appends a transition and rewrites the run's row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

import msgspec
from sqlalchemy import Column, ColumnElement, Connection, Select, bindparam, func, select
from sqlalchemy.exc import IntegrityError

from orchestrate.errors import UsageError
from orchestrate.settings import masked
from orchestrate.store import (
    REF_PREFIX,
    RUN_PREFIX,
    ledger,
    new_run_id,
    ref_of,
    run_id_of,
    schema,
    stamp,
    unstorable,
)
from orchestrate.store.database import Database, Lease, Leases
from orchestrate.store.history import TRANSLATION, add_events, beside, columns, recorded_state, reopened
from orchestrate.store.transitions import UNSENT, billed, submitting, withdrawn
from orchestrate.types import Bill, Event, JobStatus, Run, RunRequest, SubmitPhase, Translation

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec
    from orchestrate.store.ledger import Limit

_NEWEST = ("last", "latest")
_LONGEST = 200
"""Maximum length of a name that may be part of an id, and that errors show in full."""
_SOME = 5
"""Maximum number of runs to list when a name matches several."""


def one(db: Database, name: str, *, sandboxes: bool, near: str | None) -> Run:
    """Find one run. See `Runs.get`."""
    found = named(db, name, sandboxes=sandboxes, near=near)
    if len(found) == 1:
        return found[0]
    if not found:
        if not sandboxes and (hidden := named(db, name)):
            raise UsageError(
                f"{name!r} matches {hidden[0].id}, which is a sandbox run",
                fix=f"use {hidden[0].id}, or run the command as orchestrate sandbox run -- orchestrate ...",
            )
        if near is not None and (real := named(db, name)):
            raise UsageError(
                f"{name!r} matches {real[0].id}, which is not a sandbox run",
                fix=f"use {real[0].id}, or run the command without orchestrate sandbox run --",
            )
        if name in _NEWEST:
            raise UsageError("there are no runs yet", fix="create one with: orchestrate submit")
        shown = name if len(name) <= _LONGEST else f"{name[:_LONGEST]} ..."
        raise UsageError(f"unknown run {shown!r}", fix="list them with: orchestrate runs")
    some = ", ".join(f"{run.id} ({run.provider}, {run.status.value})" for run in found[:_SOME])
    more = " and more" if len(found) > _SOME else ""
    raise UsageError(f"{name!r} matches several runs: {some}{more}", fix="type more characters of the id")


def named(db: Database, name: str, *, sandboxes: bool = True, near: str | None = None) -> list[Run]:
    """Find the runs that a name may refer to.

    A name may be an id, a ref, a job id, the start of an id, and so on. These interpretations are tried in a
    fixed order. The first one that matches any run decides the result.
    """
    if unstorable(name):
        return []
    table = schema.runs
    newest = select(table.c.record).order_by(table.c.created_at.desc())
    meant = newest if sandboxes else newest.where(~table.c.sandbox)
    if near is not None:
        meant = newest.where(table.c.sandbox | (table.c.provider == near))
    exact = (table.c.id, table.c.ref, table.c.job_id)
    bare = name.removeprefix(RUN_PREFIX).removeprefix(REF_PREFIX)
    tries: list[Select[Any]] = [meant.limit(1)] if name in _NEWEST else []
    # Query one column at a time and without sorting, so the column's index is used. A sweep looks up
    # thousands of ids.
    tries += [select(table.c.record).where(c == name).limit(2) for c in exact]
    short = bare.isalnum() and len(bare) <= _LONGEST
    if short:
        tries.append(newest.where(table.c.id.startswith(RUN_PREFIX + bare)).limit(_SOME + 1))
    tries.append(meant.where(table.c.name == name).limit(1))
    if short and len(bare) >= 3:
        tries.append(newest.where(table.c.id.endswith(bare)).limit(_SOME + 1))
    if name and (RUN_PREFIX.startswith(name) or REF_PREFIX.startswith(name)):
        tries.append(newest.limit(_SOME + 1))  # it is the beginning of every id
    with db.reading() as connection:
        for query in tries:
            if rows := connection.execute(query).scalars().all():
                return [Run.from_json(row) for row in rows]
    return []


# Ids and new values are bind parameters, because building a statement takes longer than running it.
_LOCKED = (
    select(
        *(schema.runs.c[name] for name in ("id", "attempt", "cancel_requested", "record")),
        *(schema.runs.c[name] for name in ("sandbox", "bill_usd", "committed_usd", "group_key")),
    )
    .where(schema.runs.c.id.in_(bindparam("ids", expanding=True)))
    .order_by(schema.runs.c.id)
    .with_for_update()
)
_CHANGE = schema.runs.update().where(schema.runs.c.id == bindparam("changed"))
_INSERT = schema.runs.insert()
_APPEND = schema.transitions.insert()
_STAMP = schema.stamps.insert()
_AT_ONCE = 500
"""Maximum number of runs locked by one statement."""
Change = Callable[[Run], Run]
Guard = Callable[[Connection, Run], None]


WITHDRAWN = "canceled before anything was sent"


class _StoredRun(NamedTuple):
    run: Run
    attempt: int
    cancel_requested: bool
    taken: ledger.LedgerShare
    """Amounts that the run adds to the ledger's sums."""


class Equal(TypedDict, total=False):
    """Filter for runs whose fields have exactly these values. `None` matches any value."""

    provider: str | None
    host: str | None
    closed: bool | None
    sandbox: bool | None


class Intent(RunRequest, frozen=True, kw_only=True):
    """The values of a new run, which is recorded before anything is sent. Set `model` if the backend's name
    for the model differs from the spec's."""

    spec: JobSpec
    provider: str
    model: str | None = None
    dataset_digest: str
    host: str
    account: str | None = None
    sandbox: bool = False
    translation: Translation | None = None
    """Settings translated for the backend. They are stored with the run and used for all later requests."""
    ref: str | None = None
    """Tag of the job on the host, derived from an idempotency key. A run without a key gets a unique tag."""


class Runs:
    """Runs in the store. Methods raise `StoreError` if the database fails. The error says how to fix the
    problem. Writes are durable once a call returns."""

    def __init__(self, db: Database, leases: Leases) -> None:
        self._db = db
        self._leases = leases

    # -- making and changing -------------------------------------------------------------------------------

    def create(
        self,
        intent: Intent,
        *,
        budget_usd: Decimal | None = None,
        limits: Sequence[Limit] = (),
        guard: Guard | None = None,
    ) -> Run:
        """Create a run, unless `guard` raises an error in the same transaction.

        Raises `OverBudget` if the run's maximum cost exceeds its own limit, one of `limits`, or what remains
        of `budget_usd`, the budget of the entire store. Raises `UnknownPrice` if there is any limit or
        budget, but the cost is unknown. Processes that create runs at the same time can't exceed the budget
        together.
        """
        now, spec = self._db.clock.now(), intent.spec
        run = Run(
            id=(run_id := run_id_of(intent.ref) if intent.ref else new_run_id(now)),
            ref=ref_of(run_id),
            provider=intent.provider,
            model=intent.model or spec.model_for(intent.provider),
            **requested_fields(spec, intent.dataset_digest),
            host=intent.host,
            account=intent.account,
            sandbox=intent.sandbox,
            phase=SubmitPhase.INTENT,
            status=JobStatus.SUBMITTING,
            created_at=now,
            updated_at=now,
            tags=dict(spec.tags),
            **intent.kept(),
        )
        translation = intent.translation
        with suppress(_SameId):
            return self._insert(run, translation, budget_usd, limits, guard)
        # Ids only collide if their milliseconds and their 20 random bits are equal, so one more attempt
        # suffices.
        run_id = new_run_id(now)
        run = msgspec.structs.replace(run, id=run_id, ref=ref_of(run_id))
        return self._insert(run, translation, budget_usd, limits, guard)

    def _insert(
        self,
        run: Run,
        translation: Translation | None,
        budget_usd: Decimal | None,
        limits: Sequence[Limit],
        guard: Guard | None,
    ) -> Run:
        with self._db.writing() as connection:
            if guard is not None:
                ledger.one_at_a_time(connection)
                guard(connection, run)
            ledger.reserve_run(connection, self._db.clock, run, budget_usd, limits)
            self._insert_row(connection, run)
            connection.execute(_APPEND, self._step(run, attempt=0, note="intent"))
            if translation is not None:
                kept = beside(self._db.clock, run.id, TRANSLATION, masked(translation.to_dict()))
                connection.execute(schema.records.insert().values(kept))
        return run

    def restore(self, run: Run) -> None:
        """Add a run that was recovered from its host, to rebuild a store. Raises `UsageError` if it already
        exists."""
        try:
            with self._db.writing() as connection:
                self._insert_row(connection, run)
                connection.execute(_APPEND, self._step(run, attempt=0, note="recovered from the host"))
        except _SameId:
            raise UsageError(f"run {run.id} is already in this store") from None

    def _insert_row(self, connection: Connection, run: Run) -> None:
        row = {"id": run.id, **columns(run, self._db.clock)}
        try:
            connection.execute(_INSERT, row)
        except IntegrityError as error:
            raise _SameId from error
        if run.tags:
            schema.write_tags(connection, [run])
        ledger.count(connection, [], [ledger.LedgerShare.by_run(row)])

    def apply(
        self,
        run_id: str,
        change: Change,
        *,
        lease: Lease | None = None,
        note: str | None = None,
    ) -> Run:
        """Change one run with a function of `orchestrate.store.transitions`, in one transaction.

        `change` receives the run's current state, not the state that the caller last saw. If `change` raises
        an exception, nothing changes and the exception propagates. Raises `LeaseLost` if `lease` is no longer
        the latest one.
        """
        with self._db.writing() as connection:
            if lease is not None:
                self._leases.require(connection, lease)
            ((_, after),) = self._apply(connection, [(run_id, change)], note)
            return after

    def begin(self, run_id: str, lease: Lease, whole: Lease | None = None) -> Run:
        """Start a new attempt to submit a run, and set its phase to SUBMITTING.

        If the user has already requested cancellation, withdraws the run instead. A later request cancels the
        job on the host. Raises `LeaseLost` if another process has taken over the run or `whole`, the sweep
        that it belongs to, and `ImpossibleTransition` if the run can't be submitted.
        """
        at = self._db.clock.now()
        with self._db.writing() as connection:
            for one in (lease, whole) if whole is not None else (lease,):
                self._leases.require(connection, one)
            cancelled = self._locked(connection, [run_id])[run_id].cancel_requested
            step, note = (withdrawn, WITHDRAWN) if cancelled else (submitting, None)

            def change(run: Run) -> Run:
                return step(run, at)

            ((_, after),) = self._apply(connection, [(run_id, change)], note, new_attempt=not cancelled)
            return after

    def apply_many(self, changes: Sequence[tuple[str, Change]]) -> list[Run]:
        """Apply all changes in one transaction, each as `apply` does. Returns the runs that changed."""
        with self._db.writing() as connection:
            steps = self._apply(connection, changes)
        return [after for before, after in steps if after is not before]

    def _locked(self, connection: Connection, run_ids: Iterable[str]) -> dict[str, _StoredRun]:
        """Lock the runs and return them by id. The order of locks is always the same, to avoid deadlocks."""
        wanted, found = sorted(set(run_ids)), dict[str, _StoredRun]()
        for start in range(0, len(wanted), _AT_ONCE):
            rows = connection.execute(_LOCKED, {"ids": wanted[start : start + _AT_ONCE]})
            found |= {
                row["id"]: _StoredRun(
                    Run.from_json(row["record"]),
                    row["attempt"],
                    row["cancel_requested"],
                    ledger.LedgerShare.by_run(row),
                )
                for row in rows.mappings()
            }
        for run_id in wanted:
            if run_id not in found:
                raise UsageError(f"unknown run {run_id}", fix="orchestrate runs")
        return found

    def _apply(
        self,
        connection: Connection,
        changes: Sequence[tuple[str, Change]],
        note: str | None = None,
        new_attempt: bool = False,
    ) -> list[tuple[Run, Run]]:
        """Apply the changes and return (before, after) of each, by id. A second change of a run sees the
        first. All changes are written together."""
        held = self._locked(connection, (run_id for run_id, _ in changes))
        steps: list[tuple[Run, Run]] = []
        rows: dict[str, dict[str, Any]] = {}
        transitions: list[dict[str, Any]] = []
        for run_id, change in sorted(changes, key=lambda pair: pair[0]):
            before, attempt, requested, taken = held[run_id]
            after = change(before)
            steps.append((before, after))
            if after is before:
                continue
            if new_attempt:
                attempt += 1
                up = self._db.clock.uptime()
                stamped = {"run_id": run_id, "attempt": attempt, "boot": up.boot, "uptime": up.seconds}
                connection.execute(_STAMP, stamped)
            held[run_id] = _StoredRun(after, attempt, requested, taken)
            row = rows.setdefault(run_id, {"changed": run_id})
            row |= {"attempt": attempt, **columns(after, self._db.clock)}
            if after.tags != before.tags:
                schema.write_tags(connection, [after])
            if after.phase is SubmitPhase.REFUSED or reopened(before, after):
                # A run that was rejected or withdrawn after it was sent may still have a job, so it stays
                # open for one more search.
                row["closed"] = after.phase is SubmitPhase.REFUSED and not attempt
            if note or recorded_state(before) != recorded_state(after):
                transitions.append(self._step(after, attempt, note))
        for closes in (False, True):  # the rows of one statement set the same columns
            if some := [row for row in rows.values() if ("closed" in row) is closes]:
                connection.execute(_CHANGE, some)
        if transitions:
            connection.execute(_APPEND, transitions)
        ledger.count(
            connection,
            (held[id].taken for id in rows),
            (ledger.LedgerShare.by_run(row) for row in rows.values()),
        )
        return steps

    def _step(self, run: Run, attempt: int, note: str | None) -> dict[str, Any]:
        return {
            "run_id": run.id,
            "at": stamp(run.updated_at),
            "phase": run.phase.value,
            "status": run.status.value,
            "raw_status": run.raw_status,
            "attempt": attempt,
            "actor": self._db.actor,
            "note": note,
        }

    def commit(  # noqa: PLR0913  what is reserved, and each limit that it is held against
        self,
        run_id: str,
        usd: Decimal | None,
        change: Change,
        budget_usd: Decimal | None,
        *,
        lease: Lease | None = None,
        event: Event | None = None,
        limits: Sequence[Limit] = (),
        figure: str = "the host's own estimate",
        anew: bool = False,
    ) -> Run:
        """Change a run, and reserve `usd` as its new maximum total cost. Raises `OverBudget` if `usd` exceeds
        one of `limits`, or if the increase over the reserved amount exceeds what remains of `budget_usd`.
        With `anew`, all of `usd` counts as increase."""
        with self._db.writing() as connection:
            if lease is not None:
                self._leases.require(connection, lease)
            run = self._locked(connection, [run_id])[run_id].run
            ledger.reserve_more(connection, self._db.clock, run, usd, budget_usd, limits, figure, anew=anew)
            ((_, after),) = self._apply(connection, [(run_id, change)])
            if event is not None:
                add_events(self._db, connection, run_id, [event], from_host=False)
            return after

    def set_bills(self, bills: Mapping[str, Bill]) -> list[Run]:
        """Set the bills of several runs in one transaction. Returns the runs that changed."""
        return self.apply_many([(run_id, billed(bill)) for run_id, bill in bills.items()])

    def close(self, run_id: str) -> None:
        """Record that Orchestrate will not query the host about this run again."""
        self._set(run_id, closed=True)
        with self._db.writing() as connection:
            connection.execute(schema.silences.delete().where(schema.silences.c.run_id == run_id))

    def request_cancel(self, run_id: str) -> None:
        """Record a request to cancel this run. Its job is canceled once the job's id is known."""
        self._set(run_id, cancel_requested=True)

    def cancel_requested(self, run_id: str) -> bool:
        with self._db.reading() as connection:
            query = select(schema.runs.c.cancel_requested).where(schema.runs.c.id == run_id)
            return bool(connection.execute(query).scalar())

    def _set(self, run_id: str, **values: Any) -> None:
        with self._db.writing() as connection:
            connection.execute(schema.runs.update().where(schema.runs.c.id == run_id).values(values))

    def waited(self, run_id: str) -> float:
        """Return the seconds since the current attempt was sent. See `Database.waited`."""
        return self._db.waited(schema.runs, run_id)

    # -- finding -------------------------------------------------------------------------------------------

    def get(self, name: str, *, sandboxes: bool = True, near: str | None = None) -> Run:
        """Get a run by name. The name may be any of the following:

        - the run's id, or a unique prefix or suffix of it
        - the run's ref, or the host's job id
        - the spec's `suffix`, which refers to the newest run with this suffix
        - `last`

        Without `sandboxes`, the spec's suffix and `last` never match a sandbox run. With `near`, they only
        match sandbox runs and runs of that backend. Raises `UsageError` unless exactly one run matches.
        """
        return one(self._db, name.strip(), sandboxes=sandboxes, near=near)

    def matching(
        self,
        *,
        status: JobStatus | Iterable[JobStatus] | None = None,
        phase: Iterable[SubmitPhase] | None = None,
        active: bool | None = None,
        tags: dict[str, str] | None = None,
        limit: int | None = None,
        **equal: Unpack[Equal],
    ) -> list[Run]:
        """List runs, newest first. `active` selects runs that have not ended."""
        table = schema.runs
        query = select(table.c.record).order_by(table.c.created_at.desc(), table.c.id.desc())
        query = query.filter_by(**{name: value for name, value in equal.items() if value is not None})
        if status is not None:
            status = [status] if isinstance(status, JobStatus) else status
            query = query.where(table.c.status.in_([s.value for s in status]))
        if phase is not None:
            query = query.where(table.c.phase.in_([p.value for p in phase]))
        if active is not None:
            ended = [s.value for s in JobStatus if s.terminal]
            query = query.where(table.c.status.not_in(ended) if active else table.c.status.in_(ended))
        with self._db.reading() as connection:
            rows = connection.execute(query if tags else query.limit(limit)).scalars().all()
        found = [Run.from_json(row) for row in rows]
        if tags:
            found = [run for run in found if tags.items() <= run.tags.items()][:limit]
        return found

    def open_providers(self, *, sandboxes: bool = True) -> list[str]:
        """List the backends that have runs whose state may still change."""
        table = schema.runs
        query = select(table.c.provider).where(~table.c.closed).distinct().order_by(table.c.provider)
        query = query if sandboxes else query.where(~table.c.sandbox)
        with self._db.reading() as connection:
            return list(connection.execute(query).scalars())

    def live_hosts(self) -> list[tuple[str, str]]:
        """List the (backend, host) pairs of runs that have, or may have, an unfinished job."""
        table = schema.runs
        ended = [s.value for s in JobStatus if s.terminal]
        unsent = [p.value for p in UNSENT]
        query = select(table.c.provider, table.c.host).distinct()
        query = query.where(~table.c.closed, table.c.status.not_in(ended), table.c.phase.not_in(unsent))
        with self._db.reading() as connection:
            return [(row.provider, row.host) for row in connection.execute(query)]

    def of_ids(self, run_ids: Iterable[str]) -> list[Run]:
        """Return the runs with these ids, in any order. Leaves out unknown ids."""
        return self._runs_among(schema.runs.c.id, run_ids)

    def is_closed(self, run_id: str) -> bool:
        """Return whether Orchestrate no longer queries the host about this run."""
        query = select(schema.runs.c.closed).where(schema.runs.c.id == run_id)
        with self._db.reading() as connection:
            return bool(connection.execute(query).scalar())

    def exists(self, name: str) -> bool:
        """Return whether the name matches exactly one run."""
        return len(named(self._db, name.strip())) == 1

    def of_key(self, idempotency_key: str) -> Run | None:
        """Return the run with an idempotency key, or `None`."""
        query = select(schema.runs.c.record).where(schema.runs.c.idempotency_key == idempotency_key)
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else Run.from_json(row)

    def keyed(self, prefix: str) -> list[Run]:
        """List the runs whose idempotency keys start with `prefix`."""
        return self._runs_from(schema.runs.c.idempotency_key, prefix)

    def referred(self, prefix: str) -> list[Run]:
        """List the runs whose refs start with `prefix`."""
        return self._runs_from(schema.runs.c.ref, prefix)

    def _runs_from(self, column: Column[str], prefix: str) -> list[Run]:
        query = select(schema.runs.c.record).where(column.startswith(prefix, autoescape=True))
        if self._db.file is not None:  # there only a range is looked up by the index
            query = query.where(column >= prefix, column < prefix + "\U0010ffff")
        with self._db.reading() as connection:
            return [Run.from_json(row) for row in connection.execute(query).scalars()]

    def of_refs(self, refs: Iterable[str]) -> list[Run]:
        """List the runs with these refs, including ended ones."""
        return self._runs_among(schema.runs.c.ref, refs)

    def of_names(self, names: Iterable[str], *, sandbox: bool | None = None) -> dict[str, Run]:
        """Return the runs with these job ids or refs, ignoring case, as `{name in lowercase: run}`. If
        several have a name, a job id comes before a ref, and an older run before a newer one. Names that a
        host shows may be any text, so those that no run can have match nothing."""
        # SQLite lowercases only ASCII letters.
        wanted = {"".join(c.lower() if c.isascii() else c for c in name) for name in names}
        wanted |= {name.lower() for name in wanted}
        jobs = self._runs_among(func.lower(schema.runs.c.job_id), wanted)
        oldest_last = sorted(jobs, key=lambda run: (run.created_at, run.id), reverse=True)
        named = [(run.ref, run) for run in self.of_refs(wanted)]
        named += [((run.job_id or "").lower(), run) for run in oldest_last]
        return {name: run for name, run in named if sandbox in (None, run.sandbox)}

    def _runs_among(self, column: ColumnElement[Any], values: Iterable[str]) -> list[Run]:
        wanted, found = sorted({value for value in values if not unstorable(value)}), list[Run]()
        with self._db.reading() as connection:
            for start in range(0, len(wanted), 500):
                query = select(schema.runs.c.record).where(column.in_(wanted[start : start + 500]))
                found.extend(Run.from_json(row) for row in connection.execute(query).scalars())
        return found


def requested_fields(spec: JobSpec, dataset_digest: str) -> dict[str, Any]:
    """Return the fields of a run that describe the requested training: spec, spec hash and dataset digest."""
    kept = masked(spec.model_dump(mode="json", exclude_unset=True))
    return {"spec": kept, "spec_hash": spec.hash(), "dataset_digest": dataset_digest}


class _SameId(Exception):
    pass
