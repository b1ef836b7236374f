"""The store of runs: what was asked, what was sent, what the hosts said, what it cost.

Every change of a run is one transaction that appends a transition and rewrites the run's row as their
projection. Writes are durable when a call returns. Errors are `StoreError` with the way out.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

import msgspec
from sqlalchemy import Connection, select, text
from sqlalchemy.exc import IntegrityError

from orchestrate.errors import OverBudget, UsageError
from orchestrate.keys import masked
from orchestrate.tracking import opening, schema
from orchestrate.tracking.agenda import Agenda
from orchestrate.tracking.clock import Clock, stamp
from orchestrate.tracking.database import Lease
from orchestrate.tracking.finding import total_spending
from orchestrate.tracking.ids import new_run_id, ref_of
from orchestrate.types import Bill, JobStatus, Quote, Run, SubmitPhase

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec

_BUDGET_LOCK = schema.APPLICATION_ID + 1


class Store(Agenda):
    """Open with `Store.open`; a context manager that closes it."""

    @classmethod
    def open(cls, url: str, *, clock: Clock | None = None) -> Self:
        """A SQLite file (made when nothing is there) or a Postgres database. Raises `StoreError`,
        `MissingExtra`."""
        return cls(opening.open_engine(url), clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- making --------------------------------------------------------------------------------------------

    def create_run(
        self,
        spec: JobSpec,
        provider: str,
        *,
        model: str | None = None,
        dataset_digest: str,
        host: str,
        account: str | None = None,
        sandbox: bool = False,
        quote: Quote | None = None,
        max_cost_usd: Decimal | None = None,
        budget_usd: Decimal | None = None,
    ) -> Run:
        """Writes the intent. Raises `OverBudget` when the quote's high end does not fit into what is left of
        `budget_usd` over all runs of this store; of processes that ask at once, only those that fit pass."""
        now = self.clock.now()
        run = Run(
            id=(run_id := new_run_id(now)),
            ref=ref_of(run_id),
            provider=provider,
            model=model or spec.model_for(provider),
            spec=masked(spec.model_dump(mode="json", exclude_unset=True)),
            spec_hash=spec.hash(),
            dataset_digest=dataset_digest,
            host=host,
            account=account,
            sandbox=sandbox,
            phase=SubmitPhase.INTENT,
            status=JobStatus.SUBMITTING,
            created_at=now,
            updated_at=now,
            quote=quote,
            max_cost_usd=max_cost_usd,
            tags=dict(spec.tags),
        )
        with suppress(_SameId):
            return self._insert(run, budget_usd)
        # The same millisecond and the same 20 random bits: another draw will not repeat it.
        run_id = new_run_id(now)
        return self._insert(msgspec.structs.replace(run, id=run_id, ref=ref_of(run_id)), budget_usd)

    def _insert(self, run: Run, budget_usd: Decimal | None) -> Run:
        with self.writing() as connection:
            if budget_usd is not None and not run.sandbox and run.quote is not None:
                self._require_budget(connection, run.provider, run.quote.high_usd, budget_usd)
            self.insert_run(connection, run)
            self._append(connection, run, attempt=0, note="intent")
        return run

    def restore_run(self, run: Run) -> None:
        """Writes a run as it is, to rebuild a store. Raises `UsageError` when it is there already."""
        try:
            with self.writing() as connection:
                self.insert_run(connection, run)
                self._append(connection, run, attempt=0, note="recovered from the host")
        except _SameId:
            raise UsageError(f"run {run.id} is in this store already") from None

    def insert_run(self, connection: Connection, run: Run) -> None:
        try:
            connection.execute(schema.runs.insert().values(id=run.id, **_columns(run, self.clock)))
        except IntegrityError as error:
            raise _SameId from error

    def _require_budget(
        self, connection: Connection, provider: str, high_usd: Decimal, budget_usd: Decimal
    ) -> None:
        if self.engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _BUDGET_LOCK})
        left = budget_usd - total_spending(connection).total_usd
        if high_usd > left:
            raise OverBudget(provider, high_usd, max(left, Decimal(0)), what="what is left of the budget,")

    # -- changing ------------------------------------------------------------------------------------------

    def apply(
        self,
        run_id: str,
        change: Callable[[Run], Run],
        *,
        lease: Lease | None = None,
        note: str | None = None,
        new_attempt: bool = False,
    ) -> Run:
        """Changes one run by a function of `orchestrate.tracking.transitions`, in one transaction.

        `change` sees the run as it is now, not as the caller last saw it; what it raises is raised here and
        changes nothing. Raises `LeaseLost` when `lease` is no longer the last one given.
        """
        with self.writing() as connection:
            if lease is not None:
                self.require(connection, lease)
            return self._apply(connection, run_id, change, note, new_attempt)

    def apply_many(self, changes: Sequence[tuple[str, Callable[[Run], Run]]]) -> list[Run]:
        """As `apply` for each, in one transaction. Returns the runs that did change."""
        changed: list[Run] = []
        with self.writing() as connection:
            for run_id, change in sorted(changes, key=lambda pair: pair[0]):  # one order: no deadlocks
                before = self._locked(connection, run_id)
                after = self._apply(connection, run_id, change, None, False, before)
                if after is not before:
                    changed.append(after)
        return changed

    def _locked(self, connection: Connection, run_id: str) -> Run:
        query = select(schema.runs.c.record).where(schema.runs.c.id == run_id).with_for_update()
        record = connection.execute(query).scalar()
        if record is None:
            raise UsageError(f"no run is called {run_id}", fix="orchestrate runs")
        return Run.from_json(record)

    def _apply(
        self,
        connection: Connection,
        run_id: str,
        change: Callable[[Run], Run],
        note: str | None,
        new_attempt: bool,
        before: Run | None = None,
    ) -> Run:
        before = before or self._locked(connection, run_id)
        after = change(before)
        if after is before:
            return before
        columns = _columns(after, self.clock)
        table = schema.runs
        attempt: int = connection.execute(select(table.c.attempt).where(table.c.id == run_id)).scalar_one()
        if new_attempt:
            attempt += 1
            up = self.clock.uptime()
            connection.execute(
                schema.stamps.insert().values(run_id=run_id, attempt=attempt, boot=up.boot, uptime=up.seconds)
            )
        if after.phase is SubmitPhase.REFUSED or _reopened(before, after):
            # What was sent and refused is looked for once more: it may have been done all the same.
            doubtful = attempt > 0 and after.status is JobStatus.FAILED
            columns["closed"] = after.phase is SubmitPhase.REFUSED and not doubtful
        connection.execute(table.update().where(table.c.id == run_id).values(attempt=attempt, **columns))
        if note or (before.phase, before.status, before.raw_status) != (
            after.phase,
            after.status,
            after.raw_status,
        ):
            self._append(connection, after, attempt, note)
        return after

    def _append(self, connection: Connection, run: Run, attempt: int, note: str | None) -> None:
        connection.execute(
            schema.transitions.insert().values(
                run_id=run.id,
                at=stamp(run.updated_at),
                phase=run.phase.value,
                status=run.status.value,
                raw_status=run.raw_status,
                attempt=attempt,
                actor=self.actor,
                note=note,
            )
        )

    def set_bill(self, run_id: str, bill: Bill) -> Run:
        return self.apply(
            run_id, lambda run: run if run.bill == bill else msgspec.structs.replace(run, bill=bill)
        )

    def set_tags(self, run_id: str, tags: dict[str, str]) -> Run:
        return self.apply(
            run_id, lambda run: msgspec.structs.replace(run, tags=tags, updated_at=self.clock.now())
        )

    def close_run(self, run_id: str) -> None:
        """Nothing about this run will be asked of its host again."""
        self._set(run_id, closed=True)

    def request_cancel(self, run_id: str) -> None:
        """Whoever learns the job of this run is to cancel it."""
        self._set(run_id, cancel_requested=True)

    def cancel_requested(self, run_id: str) -> bool:
        with self.reading() as connection:
            query = select(schema.runs.c.cancel_requested).where(schema.runs.c.id == run_id)
            return bool(connection.execute(query).scalar())

    def _set(self, run_id: str, **values: Any) -> None:
        with self.writing() as connection:
            connection.execute(schema.runs.update().where(schema.runs.c.id == run_id).values(values))

    def waited(self, run_id: str) -> float:
        """Seconds, by this machine's uptime, since it sent the current attempt, or since it first looked at
        an attempt that another machine sent or that it sent before its last start."""
        table, runs, up = schema.stamps, schema.runs, self.clock.uptime()
        with self.writing() as connection:
            attempt = connection.execute(select(runs.c.attempt).where(runs.c.id == run_id)).scalar_one()
            key = {"run_id": run_id, "attempt": attempt, "boot": up.boot}
            connection.execute(self.insert(table).values(**key, uptime=up.seconds).on_conflict_do_nothing())
            first = connection.execute(select(table.c.uptime).filter_by(**key)).scalar_one()
        return up.seconds - first


class _SameId(Exception):
    pass


def _reopened(before: Run, after: Run) -> bool:
    return before.status.terminal and not after.status.terminal


def _columns(run: Run, clock: Clock) -> dict[str, Any]:
    """The row of a run, but for its id and what is no part of the record."""
    from orchestrate.costing import spending

    money = spending(run)
    return {
        "ref": run.ref,
        "name": run.spec.get("suffix"),
        "provider": run.provider,
        "host": run.host,
        "account": run.account,
        "sandbox": run.sandbox,
        "phase": run.phase.value,
        "status": run.status.value,
        "job_id": run.job_id,
        "spec_hash": run.spec_hash,
        "dataset_digest": run.dataset_digest,
        "created_at": stamp(run.created_at),
        "updated_at": stamp(run.updated_at),
        "due_at": stamp(clock.now()),
        "bill_usd": str(money.spent_usd) if money.spent_usd else None,
        "committed_usd": str(money.committed_usd) if money.committed_usd else None,
        "record": run.to_json().decode(),
    }
