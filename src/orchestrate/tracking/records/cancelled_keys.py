"""Idempotency keys whose submit was cancelled before its run was made."""

from __future__ import annotations

import hashlib

from sqlalchemy import Connection, select

from orchestrate.errors import OrchestrateError
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database
from orchestrate.tracking.records.budget import one_at_a_time


class KeyCancelled(OrchestrateError):
    """A submit was cancelled before its run was made; nothing was sent."""


def request_cancel(db: Database, connection: Connection, key: str) -> None:
    """Requests the cancellation of the run of an idempotency key, or prevents that it is made."""
    one_at_a_time(connection)  # a run that is made meanwhile sees the request, or is seen here
    runs = schema.runs
    change = runs.update().where(runs.c.idempotency_key == key).values(cancel_requested=True)
    if not connection.execute(change).rowcount:
        insert = db.insert(schema.meta).values(key=_name(key), value="yes")
        connection.execute(insert.on_conflict_do_nothing())


def require_uncancelled(connection: Connection, key: str) -> None:
    """To be called in the transaction that makes a run. Raises `KeyCancelled`."""
    query = select(schema.meta.c.value).where(schema.meta.c.key == _name(key))
    if connection.execute(query).scalar() is not None:
        raise KeyCancelled(f"the submit with the idempotency key {key} was cancelled; nothing was sent")


def _name(key: str) -> str:
    """It fits into the column, however long the key is."""
    return f"cancelled {hashlib.sha256(key.encode()).hexdigest()[:48]}"
