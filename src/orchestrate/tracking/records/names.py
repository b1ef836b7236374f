"""Runs by what people call them."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Select, select

from orchestrate.errors import UsageError
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database
from orchestrate.tracking.ids import REF_PREFIX, RUN_PREFIX
from orchestrate.types import Run

_NEWEST = ("last", "latest")
_SOME = 5
"""So many runs are named when a name fits several."""


def one(db: Database, name: str, *, sandboxes: bool) -> Run:
    """See `Runs.get`."""
    found = named(db, name, sandboxes=sandboxes)
    if len(found) == 1:
        return found[0]
    if not found:
        if not sandboxes and (hidden := named(db, name)):
            raise UsageError(
                f"{name!r} would be {hidden[0].id}, a run of the sandbox: it has to be called by its id",
                fix=f"{hidden[0].id}, or the whole command as orchestrate sandbox run -- orchestrate ...",
            )
        if name in _NEWEST:
            raise UsageError("there is no run yet", fix="orchestrate submit  makes one")
        raise UsageError(f"no run is called {name!r}", fix="orchestrate runs  lists them")
    some = ", ".join(f"{run.id} ({run.provider}, {run.status.value})" for run in found[:_SOME])
    more = " and more" if len(found) > _SOME else ""
    raise UsageError(f"{name!r} fits several runs: {some}{more}", fix="give more of the id")


def named(db: Database, name: str, *, sandboxes: bool = True) -> list[Run]:
    """The runs that the name may mean, by the closest of its meanings that fits any."""
    table = schema.runs
    newest = select(table.c.record).order_by(table.c.created_at.desc())
    meant = newest if sandboxes else newest.where(~table.c.sandbox)
    exact = (table.c.id, table.c.ref, table.c.job_id)
    bare = name.removeprefix(RUN_PREFIX).removeprefix(REF_PREFIX)
    tries: list[Select[Any]] = [meant.limit(1)] if name in _NEWEST else []
    # One by one and in no order: so an id is found by its index. A sweep looks up thousands.
    tries += [select(table.c.record).where(c == name).limit(2) for c in exact]
    if bare.isalnum():
        tries.append(newest.where(table.c.id.startswith(RUN_PREFIX + bare)).limit(_SOME + 1))
    tries.append(meant.where(table.c.name == name).limit(1))
    if bare.isalnum() and len(bare) >= 3:
        tries.append(newest.where(table.c.id.endswith(bare)).limit(_SOME + 1))
    if name and (RUN_PREFIX.startswith(name) or REF_PREFIX.startswith(name)):
        tries.append(newest.limit(_SOME + 1))  # it is the beginning of every id
    with db.reading() as connection:
        for query in tries:
            if rows := connection.execute(query).scalars().all():
                return [Run.from_json(row) for row in rows]
    return []
