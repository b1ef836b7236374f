"""The queue of runs waiting for a free slot, in start order."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from sqlalchemy import Connection, func, select, text

from orchestrate.errors import UsageError
from orchestrate.store import new_id, schema
from orchestrate.store.database import Database
from orchestrate.types import QueueEntry, QueueState

PREFIX = "q-"
_PAUSED = "queue-paused"
_LEAST = 4
"""Minimum number of characters of a partial id."""
_SOME = 5
"""Maximum number of entries to list when a name matches several."""


class Queue:
    """The queue in the store. Safe to use from several threads and processes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def new_id(self) -> str:
        return new_id(PREFIX, self._db.clock.now())

    def add(
        self,
        make: Callable[[int], QueueEntry],
        *,
        first: bool = False,
        guard: Callable[[QueueEntry, list[QueueEntry]], None] | None = None,
    ) -> QueueEntry:
        """Add an entry at the end of the queue, or at the start with `first`, and return the entry.

        `make` takes the position and returns the entry. `guard` takes the new entry and the existing entries,
        and may reject the new one by raising an error.
        """
        with self._db.writing() as connection:
            _one_at_a_time(connection)  # two that add at once would take one position
            edge = func.min if first else func.max
            position = connection.execute(select(edge(schema.queue.c.position))).scalar()
            entry = make((position or 0) + (-1 if first else 1))
            if guard is not None:
                others = connection.execute(select(schema.queue.c.record)).scalars()
                guard(QueueEntry.from_json(entry.to_json()), [QueueEntry.from_json(row) for row in others])
            connection.execute(schema.queue.insert().values(**_columns(entry)))
        return entry

    def matching(self, states: Iterable[QueueState] | None = None) -> list[QueueEntry]:
        """List the entries in start order."""
        table = schema.queue
        query = select(table.c.record).order_by(table.c.position)
        if states is not None:
            query = query.where(table.c.state.in_([state.value for state in states]))
        with self._db.reading() as connection:
            return [QueueEntry.from_json(row) for row in connection.execute(query).scalars()]

    def get(self, name: str) -> QueueEntry:
        """Get an entry by its id, or by at least `_LEAST` of the id's first or last characters. Raises
        `UsageError` if none or several match."""
        bare = name.strip().removeprefix(PREFIX)
        found = {entry.id.removeprefix(PREFIX): entry for entry in (self.matching() if bare else [])}
        if bare not in found:
            found = {own: one for own, one in found.items() if own.startswith(bare) or own.endswith(bare)}
            if len(found) != 1 or len(bare) < _LEAST:
                raise _unclear(name, list(found.values()), short=len(bare) < _LEAST)
            [bare] = found
        return found[bare]

    def change(self, entry_id: str, change: Callable[[QueueEntry], QueueEntry]) -> QueueEntry:
        """Change an entry with a function that receives its current state. If the function raises an
        exception, nothing changes."""
        table = schema.queue
        query = select(table.c.record).where(table.c.id == entry_id).with_for_update()
        with self._db.writing() as connection:
            before = QueueEntry.from_json(connection.execute(query).scalar_one())
            after = change(before)
            if after != before:
                connection.execute(table.update().where(table.c.id == entry_id).values(**_columns(after)))
        return after

    @property
    def paused(self) -> bool:
        """True if the queue is paused."""
        query = select(schema.meta.c.value).where(schema.meta.c.key == _PAUSED)
        with self._db.reading() as connection:
            return connection.execute(query).scalar() is not None

    def pause(self, paused: bool) -> None:
        with self._db.writing() as connection:
            if paused:
                insert = self._db.insert(schema.meta).values(key=_PAUSED, value="yes")
                connection.execute(insert.on_conflict_do_nothing())
            else:
                connection.execute(schema.meta.delete().where(schema.meta.c.key == _PAUSED))


def _unclear(name: str, found: list[QueueEntry], *, short: bool) -> UsageError:
    if not found:
        return UsageError(f"the queue has no entry {name!r}", fix="orchestrate queue list --all")
    some = ", ".join(f"{entry.id} ({entry.provider}, {entry.state.value})" for entry in found[:_SOME])
    fits = f"{name!r} matches {some}{' and more' if len(found) > _SOME else ''}"
    less = (
        f": the start or end of an id must have at least {_LEAST} characters"
        if short
        else ": the name must match exactly one entry"
    )
    return UsageError(f"{fits}{less}", fix="type more characters of the id")


def _columns(entry: QueueEntry) -> dict[str, object]:
    return {
        "id": entry.id,
        "state": entry.state.value,
        "position": entry.position,
        "record": entry.to_json().decode(),
    }


def _one_at_a_time(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":  # SQLite's writers wait for one another anyway
        connection.execute(text("LOCK TABLE queue IN EXCLUSIVE MODE"))
