"""The gateway's tables in the store: clients' keys, files and jobs, and the audit log."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from sqlalchemy import Connection, Insert, and_, or_, select, true

from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.store import schema, stamp, unstorable
from orchestrate.store.database import Database
from orchestrate.store.ledger import Limit, gateway_spending, one_at_a_time
from orchestrate.types import AuditEntry, GatewayJob, GatewayKey, SubmitPhase

Object = dict[str, Any]
FILE, UPLOAD, PART, PERMISSION = "file", "upload", "part", "permission"
"""Kinds of stored objects."""

_MAY_BE_THERE = {
    phase.value for phase in (SubmitPhase.SUBMITTING, SubmitPhase.SUBMITTED, SubmitPhase.OUTCOME_UNKNOWN)
}
"""Phases in which the host may have the job."""


class NoSuchPlace(LookupError):
    """Raised if a page is requested that starts after an id that is not in the list."""


class Addition(Struct, frozen=True):
    """A file or an upload part to add, with the function that stores its content. The content can't be
    deleted while it is being added."""

    kind: str
    entry: Object
    keep: Callable[[], None]
    parent: str | None = None


class GatewayObjects:
    """JSON objects by kind and id, each belonging to one project."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, kind: str, project: str, entries: Sequence[Object], *, parent: str | None = None) -> None:
        """Add all entries in one transaction."""
        with self._db.writing() as connection:
            for entry in entries:
                self._insert(connection, kind, project, entry, parent)

    def add_content(self, project: str, added: Addition) -> None:
        with self._db.writing() as connection:
            self._insert_content(connection, project, added)

    def _insert_content(self, connection: Connection, project: str, added: Addition) -> None:
        one_at_a_time(connection)
        self._insert(connection, added.kind, project, added.entry, added.parent)
        added.keep()

    def _insert(
        self, connection: Connection, kind: str, project: str, entry: Object, parent: str | None
    ) -> None:
        at = stamp(self._db.clock.now())
        row = {"kind": kind, "project": project, "parent": parent, "at": at, "id": entry["id"]}
        connection.execute(schema.gateway_objects.insert().values(**row, record=_json(entry)))

    def get(self, kind: str, project: str, id: str) -> Object | None:
        if unstorable(id):
            return None
        table = schema.gateway_objects
        query = select(table.c.record).where(_one(kind, id), table.c.project == project)
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else msgspec.json.decode(row)

    def change(
        self,
        kind: str,
        project: str,
        id: str,
        change: Callable[[Object], Object],
        added: Addition | None = None,
    ) -> Object | None:
        """Change an object and add `added`, in one transaction. If `change` raises an exception, nothing
        changes. Returns `None` if the object does not exist."""
        table = schema.gateway_objects
        query = select(table.c.record).where(_one(kind, id), table.c.project == project).with_for_update()
        with self._db.writing() as connection:
            row = connection.execute(query).scalar()
            if row is None:
                return None
            after = change(msgspec.json.decode(row))
            connection.execute(table.update().where(_one(kind, id)).values(record=_json(after)))
            if added is not None:
                self._insert_content(connection, project, added)
        return after

    def remove(self, kind: str, project: str, id: str) -> Object | None:
        """Remove an object and return it, or `None` if it did not exist."""
        if unstorable(id):
            return None
        table = schema.gateway_objects
        deletion = table.delete().where(_one(kind, id), table.c.project == project).returning(table.c.record)
        with self._db.writing() as connection:
            row = connection.execute(deletion).scalar()
        return None if row is None else msgspec.json.decode(row)

    def listed(
        self,
        kind: str,
        project: str,
        *,
        parent: str | None = None,
        after: str | None = None,
        oldest_first: bool = False,
    ) -> list[Object]:
        """List objects, starting after the id `after`. Raises `NoSuchPlace` if that id is not in the list."""
        if after is not None and unstorable(after):
            raise NoSuchPlace(after)
        table = schema.gateway_objects
        query = select(table.c.record)
        query = query.where(table.c.kind == kind, table.c.project == project)
        if parent is not None:
            query = query.where(table.c.parent == parent)
        order = (table.c.at, table.c.id) if oldest_first else (table.c.at.desc(), table.c.id.desc())
        with self._db.reading() as connection:
            if after is not None:
                place = select(table.c.at).where(_one(kind, after), table.c.project == project)
                if parent is not None:
                    place = place.where(table.c.parent == parent)
                at = connection.execute(place).scalar()
                if at is None:
                    raise NoSuchPlace(after)
                later = and_(table.c.at == at, table.c.id > after if oldest_first else table.c.id < after)
                query = query.where(or_(table.c.at > at if oldest_first else table.c.at < at, later))
            rows = connection.execute(query.order_by(*order)).scalars().all()
        return [msgspec.json.decode(row) for row in rows]

    def every(self, kind: str) -> list[tuple[str, Object]]:
        """List the objects of a kind in all projects, each with its project."""
        table = schema.gateway_objects
        query = select(table.c.project, table.c.record).where(table.c.kind == kind)
        with self._db.reading() as connection:
            return [(row.project, msgspec.json.decode(row.record)) for row in connection.execute(query)]

    def unless_needed(self, sha256: str, drop: Callable[[], None]) -> None:
        """Call `drop` to delete stored content, unless a file, an upload part or an open job still uses it.
        No new use of the content can begin while `drop` runs."""
        objects, jobs = schema.gateway_objects, schema.gateway_jobs
        holding = select(objects.c.id).where(
            objects.c.kind.in_((FILE, PART)), objects.c.record.contains(sha256, autoescape=True)
        )
        training = select(jobs.c.record).where(jobs.c.open, jobs.c.record.contains(sha256, autoescape=True))
        with self._db.writing() as connection:
            one_at_a_time(connection)
            if connection.execute(holding.limit(1)).scalar() is not None:
                return
            going = map(GatewayJob.from_json, connection.execute(training).scalars())
            if not any(sha256 in job.files and job.ended_at is None for job in going):
                drop()


def _one(kind: str, id: str) -> Any:
    return and_(schema.gateway_objects.c.kind == kind, schema.gateway_objects.c.id == id)


def _json(entry: Object) -> str:
    return msgspec.json.encode(entry).decode()


class KeyCancelled(OrchestrateError):
    """Raised if a submit was canceled before its run was created. Nothing was sent."""


def request_cancel(db: Database, connection: Connection, key: str) -> None:
    """Request the cancellation of the run with this idempotency key, or prevent its creation."""
    one_at_a_time(connection)  # a run that is made meanwhile sees the request, or is seen here
    runs = schema.runs
    change = runs.update().where(runs.c.idempotency_key == key).values(cancel_requested=True)
    if not connection.execute(change).rowcount:
        insert = db.insert(schema.meta).values(key=_name(key), value="yes")
        connection.execute(insert.on_conflict_do_nothing())


def require_uncancelled(connection: Connection, key: str) -> None:
    """Raise `KeyCancelled` if the submit with this key was canceled. Call this in the transaction that
    creates the run."""
    query = select(schema.meta.c.value).where(schema.meta.c.key == _name(key))
    if connection.execute(query).scalar() is not None:
        raise KeyCancelled(f"the submission with the idempotency key {key} was canceled. Nothing was sent")


def _name(key: str) -> str:
    """Return a name that fits into the column for keys of any length."""
    return f"cancelled {hashlib.sha256(key.encode()).hexdigest()[:48]}"


# The jobs that clients requested. A repeated request creates no second job.
#
# Clients usually send no idempotency key. If they get no response, they send the request again, with the
# number of retries in a header. Two requests with the same API key and body are therefore the same if either
# of them is a retry. The retry may arrive first, if the original request was delayed.

WINDOW = timedelta(hours=1)
"""Maximum time between a request and its retry. After that, an identical request counts as a new one. Clients
wait 10 minutes for a response and send a request at most three times."""


class OtherRequest(UsageError):
    """Raised if an idempotency key was reused with a different request body."""


class CreateKey(Struct, frozen=True):
    """Identifies a create request. `digest` is the SHA-256 of its body, and `retries` counts how often the
    client has already sent it."""

    key: str
    digest: str
    retries: int = 0
    idempotency_key: str | None = None


class KeyUse(Struct, frozen=True):
    """Usage of a key: the cost of its jobs and requested deployments, and the number of its open jobs."""

    usd: Decimal
    open: int


class GatewayJobs:
    def __init__(self, db: Database) -> None:
        self._db = db
        self.changes = 0
        """Number of job changes by this process. If it has grown, cached jobs are stale."""

    def known(self, request: CreateKey) -> GatewayJob | None:
        """Return the job of a repeated request, or `None` for a new request. Raises `OtherRequest` if the
        idempotency key was used with a different body."""
        with self._db.reading() as connection:
            known = self._known(connection, request)
        if known is not None:
            with self._db.writing() as connection:
                self._seen(connection, known.id, request.retries)
        return known

    def take(
        self, job: GatewayJob, request: CreateKey, allow: Callable[[KeyUse], None]
    ) -> tuple[GatewayJob, bool]:
        """Store a new job, and return `(job, True)`. If the request was received before, returns the existing
        job, as `(job, False)`.

        `allow` is called before the job is stored. It receives the usage of the client's key, and may reject
        the job by raising an error. No other job can be added in the meantime.
        """
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

    def _known(self, connection: Connection, request: CreateKey) -> GatewayJob | None:
        table = schema.gateway_jobs
        query = select(table.c.record, table.c.digest).where(table.c.key == request.key)
        if request.idempotency_key is not None:
            row = connection.execute(
                query.where(table.c.idempotency_key == request.idempotency_key)
            ).one_or_none()
            if row is not None and row.digest != request.digest:
                raise OtherRequest(
                    f"the idempotency key {request.idempotency_key!r} was already used with a "
                    "different request body",
                    fix="use a new key for a new request",
                )
            return None if row is None else GatewayJob.from_json(row.record)
        repeated = true() if request.retries else table.c.fewest_retries > 0
        same = and_(table.c.digest == request.digest, table.c.idempotency_key.is_(None))
        rows = connection.execute(query.where(same, repeated)).all()
        aged = [(self._age(job), job) for job in (GatewayJob.from_json(row.record) for row in rows)]
        recent = [pair for pair in aged if pair[0] <= WINDOW]
        return min(recent, key=lambda pair: pair[0])[1] if recent else None

    def _age(self, job: GatewayJob) -> timedelta:
        """Return the age by this machine's uptime if it has not been rebooted. The wall clock may be set
        between a request and its repeat, and then a second job would be created."""
        up = self._db.clock.uptime()
        if job.boot == up.boot:
            return timedelta(seconds=up.seconds - job.uptime_s)
        return abs(self._db.clock.now() - job.created_at)

    def _seen(self, connection: Connection, id: str, retries: int) -> None:
        """Record that a request arrived, so the next one that is not a repeat counts as new."""
        table = schema.gateway_jobs
        fewer = table.update().where(table.c.id == id, table.c.fewest_retries > retries)
        connection.execute(fewer.values(fewest_retries=retries))

    def limit(self, key: GatewayKey, but: str | None) -> Limit | None:
        """Build the cost limit of a key, or return `None` if the key has none.

        It must be checked in the transaction that creates or changes a deployment for this key. `but` is the
        id of the deployment that is being changed. Its current cost is not counted.
        """
        if key.budget_usd is None:
            return None
        description = {
            "what": f"the remaining budget of the key {key.name}",
            "figure": "the maximum cost of this deployment",
            "fix": "use a key with a higher budget",
        }

        def taken(connection: Connection) -> Decimal:
            return self._use(connection, key.name, but).usd

        return Limit(key.budget_usd, taken, description)

    def _use(self, connection: Connection, key: str, but: str | None = None) -> KeyUse:
        jobs, runs = schema.gateway_jobs, schema.runs
        query = (
            select(jobs.c.record, jobs.c.open, runs.c.phase, runs.c.bill_usd, runs.c.committed_usd)
            .join(runs, runs.c.id == jobs.c.run_id, isouter=True)
            .where(jobs.c.key == key)
        )
        usd, count = Decimal(0), 0
        for row in connection.execute(query).mappings():
            job = GatewayJob.from_json(row["record"]) if row["open"] else None
            going = job is not None and job.ended_at is None
            count += going
            # Unlike the store's budget, limits count simulated costs of sandbox runs like real costs.
            known = Decimal(row["bill_usd"] or 0) + Decimal(row["committed_usd"] or 0)
            if known or row["phase"] in _MAY_BE_THERE:
                usd += known
            elif job is not None and going:  # it will be sent, or again where it was refused
                usd += job.quote_usd or Decimal(0)
        return KeyUse(usd + gateway_spending(connection, self._db.clock, but=but, gateway_key=key), count)

    def use(self, key: str) -> KeyUse:
        with self._db.reading() as connection:
            return self._use(connection, key)

    # -- reading and changing ------------------------------------------------------------------------------

    def get(self, id: str, project: str | None = None) -> GatewayJob | None:
        """Return the job with this id, or `None`. With `project`, the job must belong to it."""
        return None if unstorable(id) else self._one(schema.gateway_jobs.c.id == id, project)

    def of_model(self, name: str, project: str | None = None) -> GatewayJob | None:
        """Return the job that creates the model with this name, or `None`."""
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
        """List jobs, newest first. With `before`, a job's creation time and id, lists only older jobs."""
        table = schema.gateway_jobs
        query = select(table.c.record).where(table.c.project == project)
        query = query.order_by(table.c.at.desc(), table.c.id.desc())
        for pair in (metadata or {}).items():  # more than those that have it, and few others
            query = query.where(table.c.record.contains(_json(dict([pair]))[1:-1], autoescape=True))
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

    def records(self, project: str) -> list[tuple[str, str]]:
        """List the id and JSON of each job, newest first. The JSON is not parsed, so callers can skip jobs
        that they have already parsed."""
        table = schema.gateway_jobs
        query = select(table.c.id, table.c.record).where(table.c.project == project)
        with self._db.reading() as connection:
            rows = connection.execute(query.order_by(table.c.at.desc(), table.c.id.desc()))
            return [(row.id, row.record) for row in rows]

    def unended(self) -> list[GatewayJob]:
        """List the unfinished jobs of all projects, oldest first."""
        table = schema.gateway_jobs
        query = select(table.c.record).where(table.c.open).order_by(table.c.at)
        with self._db.reading() as connection:
            return [GatewayJob.from_json(row) for row in connection.execute(query).scalars()]

    def change(self, id: str, change: Callable[[GatewayJob], GatewayJob]) -> GatewayJob:
        """Change a job in one transaction. `change` receives the job's current state. Raises `KeyError` for
        an unknown id."""
        with self._db.writing() as connection:
            changed = self._change(connection, id, change)
        self.changes += 1
        return changed

    def request_cancel(self, id: str) -> GatewayJob:
        """Request the cancellation of the job and of its run, in one transaction. Raises `KeyError` for
        an unknown id."""
        with self._db.writing() as connection:
            one_at_a_time(connection)  # before the row, as `take`: else the two wait for one another
            job = self._change(connection, id, lambda job: replace(job, cancel_asked=True))
            request_cancel(self._db, connection, job.run_key)
        self.changes += 1
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


PREFIXES = {"gateway": "orc-gw-", "serve": "orc-", "sessions": "tml-"}
"""Prefixes of keys, keyed by the kind of server. Tinker's client only accepts keys with its own prefix."""
MOST_KEYLESS = 10_000
"""Maximum number of log entries for requests without a key."""


class GatewayKeys:
    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, key: GatewayKey, *, by: str, again: bool = False) -> str:
        """Create a key and return its value, which can't be shown again.

        `by` is the creator's name in the log. With `again`, the new key may replace a key of the same name,
        if both are for the same kind of server. Raises `UsageError` if the name is taken or invalid.
        """
        if not key.name.strip() or not key.name.isprintable() or len(key.name) > 64:
            raise UsageError("a key's name must be 1 to 64 characters long")
        if not key.project.strip() or not key.project.isprintable() or len(key.project) > 64:
            raise UsageError("a key's project name must be 1 to 64 characters long")
        made = PREFIXES[key.opens] + secrets.token_urlsafe(32)
        with self._db.writing() as connection:
            one_at_a_time(connection)
            known = self._named(connection, key.name)
            if known is not None and not (again and known.opens == key.opens):
                raise UsageError(
                    f"a key called {key.name!r} already exists. Names of revoked keys cannot be reused, "
                    "because the log refers to them",
                    fix="use another name",
                )
            self._put(connection, hashed(made), key)
            connection.execute(_logged(_command(key, "add", by, key.created_at)))
        return made

    def _put(self, connection: Connection, hash: str, key: GatewayKey) -> None:
        table = schema.gateway_keys
        insert = self._db.insert(table).values(name=key.name, hash=hash, record=key.to_json().decode())
        new = {"hash": insert.excluded.hash, "record": insert.excluded.record}
        connection.execute(insert.on_conflict_do_update(index_elements=[table.c.name], set_=new))

    def bring_in(self, keys: Mapping[str, GatewayKey], *, by: str) -> None:
        """Import keys that were created elsewhere. `keys` maps their hashes to their records. Existing keys
        stay unchanged. If a name is taken, a number is appended."""
        table = schema.gateway_keys
        with self._db.writing() as connection:
            one_at_a_time(connection)
            for hash, key in keys.items():
                if connection.execute(select(table.c.name).where(table.c.hash == hash)).scalar() is not None:
                    continue
                name, number = key.name, 1
                while self._named(connection, name) is not None:
                    number += 1
                    name = f"{key.name} {number}"
                brought = replace(key, name=name)
                self._put(connection, hash, brought)
                connection.execute(_logged(_command(brought, "bring in", by, self._db.clock.now())))

    def of(self, given: str) -> GatewayKey | None:
        """Return the record of a key, revoked or not, or `None` for an unknown key."""
        query = select(schema.gateway_keys.c.record).where(schema.gateway_keys.c.hash == hashed(given))
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else GatewayKey.from_json(row)

    def _named(self, connection: Connection, name: str) -> GatewayKey | None:
        query = select(schema.gateway_keys.c.record).where(schema.gateway_keys.c.name == name)
        row = connection.execute(query).scalar()
        return None if row is None else GatewayKey.from_json(row)

    def by_hash(self, opens: str) -> dict[str, GatewayKey]:
        """Return the keys for one kind of server, including revoked keys, as a mapping from hash to
        record."""
        table = schema.gateway_keys
        with self._db.reading() as connection:
            rows = connection.execute(select(table.c.hash, table.c.record)).all()
        keys = {hash: GatewayKey.from_json(record) for hash, record in rows}
        return {hash: key for hash, key in keys.items() if key.opens == opens}

    def all(self) -> list[GatewayKey]:
        """List all keys, sorted by name, including revoked ones."""
        query = select(schema.gateway_keys.c.record).order_by(schema.gateway_keys.c.name)
        with self._db.reading() as connection:
            return [GatewayKey.from_json(row) for row in connection.execute(query).scalars()]

    def revoke(self, name: str, at: datetime, *, by: str, opens: str | None = None) -> GatewayKey:
        """Revoke a key. `by` is the user's name in the log. With `opens`, only a key for that kind of server
        is revoked. Raises `UsageError` if no key matches."""
        table = schema.gateway_keys
        with self._db.writing() as connection:
            known = self._named(connection, name)
            if known is None or opens not in (None, known.opens):
                kept = connection.execute(select(table.c.record).order_by(table.c.name)).scalars()
                keys = [key for key in map(GatewayKey.from_json, kept) if opens in (None, key.opens)]
                names = ", ".join(key.name for key in keys) or "none"
                raise UsageError(f"unknown key {name!r}. Known keys: {names}")
            revoked = replace(known, revoked_at=known.revoked_at or at)
            change = table.update().where(table.c.name == name)
            connection.execute(change.values(record=revoked.to_json().decode()))
            if known.revoked_at is None:
                connection.execute(_logged(_command(known, "revoke", by, at)))
        return revoked

    # -- the log -------------------------------------------------------------------------------------------

    def log(self, entry: AuditEntry) -> None:
        with self._db.writing() as connection:
            connection.execute(_logged(entry))

    def entries(self, *, key: str | None = None, limit: int = 100) -> list[AuditEntry]:
        """List the newest entries of the audit log, oldest first."""
        table = schema.gateway_audit
        query = select(table.c.record).order_by(table.c.seq.desc()).limit(limit)
        if key is not None:
            query = query.where(table.c.key == key)
        with self._db.reading() as connection:
            return [AuditEntry.from_json(row) for row in connection.execute(query).scalars()][::-1]

    def sweep(self, most: int = MOST_KEYLESS) -> None:
        """Delete the oldest log entries of requests without a key, so the log holds at most `most` of
        them."""
        table = schema.gateway_audit
        keyless = select(table.c.seq).where(table.c.key == "").order_by(table.c.seq.desc())
        with self._db.writing() as connection:
            oldest = connection.execute(keyless.offset(most).limit(1)).scalar()
            if oldest is not None:
                connection.execute(table.delete().where(table.c.key == "", table.c.seq <= oldest))


def _command(key: GatewayKey, verb: str, by: str, at: datetime) -> AuditEntry:
    path = f"{key.opens} keys {verb}"
    return AuditEntry(at=at, key=key.name, method="COMMAND", path=path, status=0, by=by)


def _logged(entry: AuditEntry) -> Insert:
    values = {"at": stamp(entry.at), "key": entry.key, "record": entry.to_json().decode()}
    return schema.gateway_audit.insert().values(values)


def hashed(key: str) -> str:
    """Return the hash of a key. Keys are random, so one round without a salt is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
