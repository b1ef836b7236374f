"""Files, uploads, their parts and permissions, as the API's own objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from sqlalchemy import Connection, and_, or_, select

from orchestrate.tracking.clock import stamp
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database
from orchestrate.tracking.records.budget import one_at_a_time
from orchestrate.types import GatewayJob

Object = dict[str, Any]
FILE, UPLOAD, PART, PERMISSION = "file", "upload", "part", "permission"
"""Kinds."""


def unstorable(id: str) -> bool:
    """Whether nothing can be kept under it: no text of Postgres has the character 0."""
    return "\0" in id


class NoSuchPlace(LookupError):
    """A list was asked for behind an id that is not in it."""


@dataclass(frozen=True)
class Addition:
    """A file or a part of a file, with what puts its content in its place: nobody releases one meanwhile."""

    kind: str
    entry: Object
    keep: Callable[[], None]
    parent: str | None = None


class GatewayObjects:
    """JSON objects by kind and id, each of one project."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, kind: str, project: str, entries: Sequence[Object], *, parent: str | None = None) -> None:
        """All of them or none."""
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
        """In one transaction, with what is added at the same time; what `change` raises changes nothing.
        `None`: there is no such object."""
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
        """What was there."""
        if unstorable(id):
            return None
        table = schema.gateway_objects
        gone = table.delete().where(_one(kind, id), table.c.project == project).returning(table.c.record)
        with self._db.writing() as connection:
            row = connection.execute(gone).scalar()
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
        """Those behind the id `after`. Raises `NoSuchPlace`."""
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
        """Of all projects, each with its project."""
        table = schema.gateway_objects
        query = select(table.c.project, table.c.record).where(table.c.kind == kind)
        with self._db.reading() as connection:
            return [(row.project, msgspec.json.decode(row.record)) for row in connection.execute(query)]

    def unless_needed(self, sha256: str, drop: Callable[[], None]) -> None:
        """Calls `drop` when no file, no part and no job that goes on needs this content. Nobody adds one
        meanwhile."""
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
