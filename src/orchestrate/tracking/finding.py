"""Finding runs in the store, and what they cost together."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import msgspec
from sqlalchemy import Column, Connection, Select, or_, select

from orchestrate.errors import UsageError
from orchestrate.tracking import schema
from orchestrate.tracking.clock import stamp
from orchestrate.tracking.history import History
from orchestrate.tracking.ids import REF_PREFIX, RUN_PREFIX
from orchestrate.tracking.transitions import UNSENT
from orchestrate.types import JobStatus, Run, SubmitPhase

if TYPE_CHECKING:
    from orchestrate.costing import Spending


_SOME = 5
"""So many runs are named when a name fits several."""


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a run, as it was written down when it happened."""

    at: datetime
    phase: SubmitPhase
    status: JobStatus
    raw_status: str | None
    attempt: int
    actor: str
    """Machine, process and a random part of the one that wrote it."""
    note: str | None


class Finding(History):
    """The reading half of the store of runs."""

    def run(self, name: str) -> Run:
        """By id, ref, the host's job id, a unique beginning or end of the id, the spec's suffix (the
        newest), or `last`. Raises `UsageError` when there is none or more than one."""
        name = name.strip()
        found = self._named(name)
        if not found and name and (RUN_PREFIX.startswith(name) or REF_PREFIX.startswith(name)):
            found = self.runs(limit=_SOME + 1)  # it is the beginning of every id
        if len(found) == 1:
            return found[0]
        if not found:
            raise UsageError(f"no run is called {name!r}", fix="orchestrate runs  lists them")
        some = ", ".join(f"{run.id} ({run.provider}, {run.status.value})" for run in found[:_SOME])
        more = " and more" if len(found) > _SOME else ""
        raise UsageError(f"{name!r} fits several runs: {some}{more}", fix="give more of the id")

    def _named(self, name: str) -> list[Run]:
        table = schema.runs
        newest = select(table.c.record).order_by(table.c.created_at.desc())
        exact = (table.c.id, table.c.ref, table.c.job_id)
        bare = name.removeprefix(RUN_PREFIX).removeprefix(REF_PREFIX)
        tries: list[Select[Any]] = [newest.limit(1)] if name in ("last", "latest") else []
        # One by one and in no order: so an id is found by its index. A sweep looks up thousands.
        tries += [select(table.c.record).where(c == name).limit(2) for c in exact]
        if bare.isalnum():
            tries.append(newest.where(table.c.id.startswith(RUN_PREFIX + bare)).limit(_SOME + 1))
        tries.append(newest.where(table.c.name == name).limit(1))
        if bare.isalnum() and len(bare) >= 3:
            tries.append(newest.where(table.c.id.endswith(bare)).limit(_SOME + 1))
        with self.reading() as connection:
            for query in tries:
                if rows := connection.execute(query).scalars().all():
                    return [Run.from_json(row) for row in rows]
        return []

    def runs(
        self,
        *,
        provider: str | None = None,
        host: str | None = None,
        status: JobStatus | Iterable[JobStatus] | None = None,
        phase: Iterable[SubmitPhase] | None = None,
        active: bool | None = None,
        closed: bool | None = None,
        dataset_digest: str | None = None,
        spec_hash: str | None = None,
        tags: dict[str, str] | None = None,
        since: datetime | None = None,
        limit: int | None = None,
    ) -> list[Run]:
        """Newest first. `active` asks for runs that have not ended."""
        table = schema.runs
        query = select(table.c.record).order_by(table.c.created_at.desc(), table.c.id.desc())
        equal = {
            "provider": provider,
            "host": host,
            "dataset_digest": dataset_digest,
            "spec_hash": spec_hash,
            "closed": closed,
        }
        query = query.filter_by(**{k: v for k, v in equal.items() if v is not None})
        if status is not None:
            status = [status] if isinstance(status, JobStatus) else status
            query = query.where(table.c.status.in_([s.value for s in status]))
        if phase is not None:
            query = query.where(table.c.phase.in_([p.value for p in phase]))
        if active is not None:
            ended = [s.value for s in JobStatus if s.terminal]
            query = query.where(table.c.status.not_in(ended) if active else table.c.status.in_(ended))
        if since is not None:
            query = query.where(table.c.created_at >= stamp(since))
        with self.reading() as connection:
            rows = connection.execute(query if tags else query.limit(limit)).scalars().all()
        found = [Run.from_json(row) for row in rows]
        if tags:
            found = [run for run in found if tags.items() <= run.tags.items()][:limit]
        return found

    def active_runs(self) -> list[Run]:
        """Those that have not ended, newest first."""
        return self.runs(active=True)

    def open_providers(self) -> list[str]:
        """The backends of the runs about which something may still be learnt."""
        table = schema.runs
        query = select(table.c.provider).where(~table.c.closed).distinct().order_by(table.c.provider)
        with self.reading() as connection:
            return list(connection.execute(query).scalars())

    def live_hosts(self) -> list[tuple[str, str]]:
        """(backend, host) of the runs that have or may have a job which has not ended."""
        table = schema.runs
        ended = [s.value for s in JobStatus if s.terminal]
        unsent = [p.value for p in UNSENT]
        query = select(table.c.provider, table.c.host).distinct()
        query = query.where(~table.c.closed, table.c.status.not_in(ended), table.c.phase.not_in(unsent))
        with self.reading() as connection:
            return [(row.provider, row.host) for row in connection.execute(query)]

    def runs_of(self, run_ids: Iterable[str]) -> list[Run]:
        """The runs of these ids, in no order; unknown ids are left out."""
        return self._runs_among(schema.runs.c.id, run_ids)

    def is_closed(self, run_id: str) -> bool:
        """Whether nothing more is to be learnt about this run from its host."""
        query = select(schema.runs.c.closed).where(schema.runs.c.id == run_id)
        with self.reading() as connection:
            return bool(connection.execute(query).scalar())

    def is_run(self, name: str) -> bool:
        """Whether `run` would find exactly one."""
        return len(self._named(name.strip())) == 1

    def runs_by_ref(self, refs: Iterable[str]) -> list[Run]:
        """The runs, ended ones included, whose refs are among these."""
        return self._runs_among(schema.runs.c.ref, refs)

    def _runs_among(self, column: Column[str], values: Iterable[str]) -> list[Run]:
        wanted, found = sorted(set(values)), list[Run]()
        with self.reading() as connection:
            for start in range(0, len(wanted), 500):
                query = select(schema.runs.c.record).where(column.in_(wanted[start : start + 500]))
                found.extend(Run.from_json(row) for row in connection.execute(query).scalars())
        return found

    def uncancelled(self, provider: str, host: str) -> list[str]:
        """Ids of the runs whose job was to be cancelled and goes on: the wish has not reached the host."""
        table = schema.runs
        left = [s.value for s in JobStatus if s.terminal or s is JobStatus.CANCELLING]
        query = (
            select(table.c.id)
            .where(table.c.provider == provider, table.c.host == host, ~table.c.closed)
            .where(table.c.cancel_requested, table.c.phase == SubmitPhase.SUBMITTED.value)
            .where(table.c.status.not_in(left))
        )
        with self.reading() as connection:
            return list(connection.execute(query).scalars())

    def transitions(self, run_id: str) -> list[Transition]:
        """Oldest first."""
        table = schema.transitions
        with self.reading() as connection:
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

    def spending(self) -> Spending:
        """The sum of `costing.spending` over all runs; sandbox runs are left out."""
        with self.reading() as connection:
            return total_spending(connection)


def total_spending(connection: Connection) -> Spending:
    from orchestrate.costing import Spending  # late: listing runs must not pay for the room's import

    table = schema.runs
    query = select(table.c.bill_usd, table.c.committed_usd).where(
        ~table.c.sandbox, or_(table.c.bill_usd.is_not(None), table.c.committed_usd.is_not(None))
    )
    spent = committed = Decimal(0)
    for bill, high in connection.execute(query):
        spent += Decimal(bill or 0)
        committed += Decimal(high or 0)
    return Spending(spent_usd=spent, committed_usd=committed)
