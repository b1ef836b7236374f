"""The jobs that clients asked for, each once however often its request came.

No client sends an idempotency key, and all send a request again whose answer did not come; they count how
often in a header. So the same body under the same key is the same request when one of the two was a repeat:
in either order, since a first request that was held up may arrive behind its repeat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from msgspec.structs import replace
from sqlalchemy import Connection, and_, or_, select, true

from orchestrate.errors import UsageError
from orchestrate.tracking.clock import stamp
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database
from orchestrate.tracking.gateway.objects import unstorable
from orchestrate.tracking.records import cancelled_keys
from orchestrate.tracking.records.budget import one_at_a_time
from orchestrate.types import GatewayJob, SubmitPhase

WINDOW = timedelta(hours=1)
"""Clients wait 10 minutes for an answer and ask three times in all."""


class OtherRequest(UsageError):
    """An idempotency key came with another body than before."""


@dataclass(frozen=True)
class Request:
    """What tells a create request from others. `digest` is the body's sha256, `retries` how often its client
    has sent it before."""

    key: str
    digest: str
    retries: int = 0
    idempotency_key: str | None = None


@dataclass(frozen=True)
class Use:
    """What a key's jobs take."""

    usd: Decimal
    open: int


class GatewayJobs:
    def __init__(self, db: Database) -> None:
        self._db = db

    def known(self, request: Request) -> GatewayJob | None:
        """The job of a request that came before. Raises `OtherRequest`."""
        with self._db.reading() as connection:
            known = self._known(connection, request)
        if known is not None:
            with self._db.writing() as connection:
                self._seen(connection, known.id, request.retries)
        return known

    def take(
        self, job: GatewayJob, request: Request, allow: Callable[[Use], None]
    ) -> tuple[GatewayJob, bool]:
        """Writes the job down, unless its request came before: then that one's job, and False. `allow` sees
        what the key's jobs take, and nothing is written when it raises; nobody else adds one meanwhile."""
        with self._db.writing() as connection:
            one_at_a_time(connection)
            if known := self._known(connection, request):
                self._seen(connection, known.id, request.retries)
                return known, False
            allow(self._use(connection, request.key))
            connection.execute(
                schema.gateway_jobs.insert().values(
                    **_columns(job),
                    digest=request.digest,
                    fewest_retries=request.retries,
                    idempotency_key=request.idempotency_key,
                )
            )
        return job, True

    def _known(self, connection: Connection, request: Request) -> GatewayJob | None:
        table = schema.gateway_jobs
        query = select(table.c.record, table.c.digest).where(table.c.key == request.key)
        if request.idempotency_key is not None:
            row = connection.execute(
                query.where(table.c.idempotency_key == request.idempotency_key)
            ).one_or_none()
            if row is not None and row.digest != request.digest:
                raise OtherRequest(
                    f"the idempotency key {request.idempotency_key!r} came with another body before",
                    fix="a new key for a new request",
                )
            return None if row is None else GatewayJob.from_json(row.record)
        repeated = true() if request.retries else table.c.fewest_retries > 0
        same = and_(table.c.digest == request.digest, table.c.idempotency_key.is_(None))
        rows = connection.execute(query.where(same, repeated)).all()
        aged = [(self._age(job), job) for job in (GatewayJob.from_json(row.record) for row in rows)]
        recent = [pair for pair in aged if pair[0] <= WINDOW]
        return min(recent, key=lambda pair: pair[0])[1] if recent else None

    def _age(self, job: GatewayJob) -> timedelta:
        """By the clock that counts since the machine's start where it is the same one: the wall clock may
        have been set between a request and its repeat, and then a job would be made twice."""
        up = self._db.clock.uptime()
        if job.boot == up.boot:
            return timedelta(seconds=up.seconds - job.uptime_s)
        return abs(self._db.clock.now() - job.created_at)

    def _seen(self, connection: Connection, id: str, retries: int) -> None:
        """Once the first request has arrived, the next one that is no repeat is another."""
        table = schema.gateway_jobs
        fewer = table.update().where(table.c.id == id, table.c.fewest_retries > retries)
        connection.execute(fewer.values(fewest_retries=retries))

    def _use(self, connection: Connection, key: str) -> Use:
        jobs, runs = schema.gateway_jobs, schema.runs
        query = (
            select(jobs.c.record, jobs.c.open, runs.c.bill_usd, runs.c.committed_usd, runs.c.phase)
            .join(runs, runs.c.id == jobs.c.run_id, isouter=True)
            .where(jobs.c.key == key)
        )
        usd, count = Decimal(0), 0
        for row in connection.execute(query):
            job = GatewayJob.from_json(row.record) if row.open else None
            going = job is not None and job.ended_at is None
            count += going
            if row.phase not in (None, SubmitPhase.REFUSED.value):
                usd += Decimal(row.bill_usd or 0) + Decimal(row.committed_usd or 0)
            elif job is not None and going:  # a refused run has the next one behind it
                usd += job.quote_usd or Decimal(0)
        return Use(usd, count)

    def use(self, key: str) -> Use:
        with self._db.reading() as connection:
            return self._use(connection, key)

    # -- reading and changing ------------------------------------------------------------------------------

    def get(self, id: str, project: str | None = None) -> GatewayJob | None:
        """`project` is whose it must be."""
        return None if unstorable(id) else self._one(schema.gateway_jobs.c.id == id, project)

    def of_model(self, name: str, project: str | None = None) -> GatewayJob | None:
        """The job that makes the model of this name."""
        return None if unstorable(name) else self._one(schema.gateway_jobs.c.tuned == name, project)

    def _one(self, where: Any, project: str | None) -> GatewayJob | None:
        table = schema.gateway_jobs
        query = select(table.c.record).where(where)
        if project is not None:
            query = query.where(table.c.project == project)
        with self._db.reading() as connection:
            row = connection.execute(query.limit(1)).scalar()
        return None if row is None else GatewayJob.from_json(row)

    def listed(
        self,
        project: str,
        *,
        before: tuple[datetime, str] | None = None,
        limit: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> list[GatewayJob]:
        """Newest first, those that were made `before` a time and an id."""
        table = schema.gateway_jobs
        query = select(table.c.record).where(table.c.project == project)
        query = query.order_by(table.c.at.desc(), table.c.id.desc())
        found: list[GatewayJob] = []
        with self._db.reading() as connection:
            if before is not None:
                at, id = stamp(before[0]), before[1]
                query = query.where(or_(table.c.at < at, and_(table.c.at == at, table.c.id < id)))
            for row in connection.execute(query if metadata else query.limit(limit)).scalars():
                job = GatewayJob.from_json(row)
                given: Mapping[str, str] = job.asked.get("metadata") or {}
                if not metadata or metadata.items() <= given.items():
                    found.append(job)
                if limit is not None and len(found) >= limit:
                    break
        return found

    def unended(self) -> list[GatewayJob]:
        """Of all projects, oldest first: those about which there is something to do."""
        table = schema.gateway_jobs
        query = select(table.c.record).where(table.c.open).order_by(table.c.at)
        with self._db.reading() as connection:
            return [GatewayJob.from_json(row) for row in connection.execute(query).scalars()]

    def change(self, id: str, change: Callable[[GatewayJob], GatewayJob]) -> GatewayJob:
        """In one transaction: `change` sees the job as it is now. Raises `KeyError`."""
        with self._db.writing() as connection:
            return self._change(connection, id, change)

    def request_cancel(self, id: str) -> GatewayJob:
        """Of the job and of its run, in one transaction. Raises `KeyError`."""
        with self._db.writing() as connection:
            one_at_a_time(connection)  # before the row, as `take`: else the two wait for one another
            job = self._change(connection, id, lambda job: replace(job, cancel_asked=True))
            cancelled_keys.request_cancel(self._db, connection, job.run_key)
        return job

    def _change(
        self, connection: Connection, id: str, change: Callable[[GatewayJob], GatewayJob]
    ) -> GatewayJob:
        table = schema.gateway_jobs
        query = select(table.c.record).where(table.c.id == id).with_for_update()
        row = connection.execute(query).scalar()
        if row is None:
            raise KeyError(id)
        before = GatewayJob.from_json(row)
        after = change(before)
        if after is not before:
            connection.execute(table.update().where(table.c.id == id).values(**_columns(after)))
        return after


def _columns(job: GatewayJob) -> dict[str, Any]:
    return {
        "id": job.id,
        "key": job.key,
        "project": job.project,
        "at": stamp(job.created_at),
        "run_id": job.run_id,
        "open": job.ended_at is None or not job.told,
        "tuned": job.tuned,
        "record": msgspec.json.encode(job).decode(),
    }
