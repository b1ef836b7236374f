"""Files, uploads, their parts and permissions, as the API's own objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from sqlalchemy import and_, or_, select

from orchestrate.tracking.clock import stamp
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database

Object = dict[str, Any]


class GatewayObjects:
    """JSON objects by kind and id, each of one project."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, kind: str, project: str, entries: Sequence[Object], *, parent: str | None = None) -> None:
        """All of them or none."""
        at = stamp(self._db.clock.now())
        own = {"kind": kind, "project": project, "parent": parent, "at": at}
        rows = [{**own, "id": entry["id"], "record": _json(entry)} for entry in entries]
        with self._db.writing() as connection:
            connection.execute(schema.gateway_objects.insert(), rows)

    def get(self, kind: str, project: str, id: str) -> Object | None:
        table = schema.gateway_objects
        query = select(table.c.record).where(_one(kind, id), table.c.project == project)
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else msgspec.json.decode(row)

    def change(self, kind: str, project: str, id: str, change: Callable[[Object], Object]) -> Object | None:
        """In one transaction; what `change` raises changes nothing. `None`: there is no such object."""
        table = schema.gateway_objects
        query = select(table.c.record).where(_one(kind, id), table.c.project == project).with_for_update()
        with self._db.writing() as connection:
            row = connection.execute(query).scalar()
            if row is None:
                return None
            after = change(msgspec.json.decode(row))
            connection.execute(table.update().where(_one(kind, id)).values(record=_json(after)))
        return after

    def remove(self, kind: str, project: str, id: str) -> Object | None:
        """What was there."""
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
        """Those behind the id `after`; none behind one that is not there."""
        table = schema.gateway_objects
        query = select(table.c.record)
        query = query.where(table.c.kind == kind, table.c.project == project)
        if parent is not None:
            query = query.where(table.c.parent == parent)
        order = (table.c.at, table.c.id) if oldest_first else (table.c.at.desc(), table.c.id.desc())
        with self._db.reading() as connection:
            if after is not None:
                at = connection.execute(select(table.c.at).where(_one(kind, after))).scalar()
                if at is None:
                    return []
                later = and_(table.c.at == at, table.c.id > after if oldest_first else table.c.id < after)
                query = query.where(or_(table.c.at > at if oldest_first else table.c.at < at, later))
            rows = connection.execute(query.order_by(*order)).scalars().all()
        return [msgspec.json.decode(row) for row in rows]

    def with_text(self, kind: str, text: str) -> bool:
        """Whether the record of any project's object of this kind holds this text."""
        table = schema.gateway_objects
        query = select(table.c.id).where(table.c.kind == kind, table.c.record.contains(text, autoescape=True))
        with self._db.reading() as connection:
            return connection.execute(query.limit(1)).scalar() is not None


def _one(kind: str, id: str) -> Any:
    return and_(schema.gateway_objects.c.kind == kind, schema.gateway_objects.c.id == id)


def _json(entry: Object) -> str:
    return msgspec.json.encode(entry).decode()
