"""Which notifications of ended runs were sent, so that each is sent once."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import func, select

from orchestrate.tracking.clock import stamp
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database
from orchestrate.types import JobStatus, Run

_ENDED = [s.value for s in JobStatus if s.terminal]


class Notifications:
    """By run and channel."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def since(self, channel: str) -> datetime:
        """When this channel was first used: runs that ended before are not told."""
        key, now = f"channel:{channel}"[:64], stamp(self._db.clock.now())
        query = select(schema.meta.c.value).where(schema.meta.c.key == key)
        with self._db.writing() as connection:
            connection.execute(
                self._db.insert(schema.meta).values(key=key, value=now).on_conflict_do_nothing()
            )
            value = connection.execute(query).scalar_one()
        return datetime.fromisoformat(value)

    def due(self, channel: str, since: datetime, *, limit: int = 100) -> list[Run]:
        """Ended runs about which the channel has not been told, oldest end first."""
        table, told, steps = schema.runs, schema.notifications, schema.transitions
        known = select(told.c.run_id).where(told.c.channel == channel)
        # What is written later about an ended run (its tags, a late fact) is no end. A run that was ended
        # when it came into this store, as `recover` brings it, is no news.
        of_run = steps.c.run_id == table.c.id
        end = select(func.min(steps.c.at)).where(of_run, steps.c.status.in_(_ENDED)).scalar_subquery()
        was_open = select(steps.c.id).where(of_run, steps.c.status.not_in(_ENDED)).exists()
        query = (
            select(table.c.record)
            .where(table.c.status.in_(_ENDED), table.c.updated_at >= stamp(since), table.c.id.not_in(known))
            .where(end >= stamp(since), was_open)
            .order_by(table.c.updated_at)
            .limit(limit)
        )
        with self._db.reading() as connection:
            return [Run.from_json(row) for row in connection.execute(query).scalars()]

    def claim(self, run_id: str, channel: str) -> bool:
        """The right to tell a channel about a run; one process gets it, once."""
        table = schema.notifications
        with self._db.writing() as connection:
            done = connection.execute(
                self._db.insert(table)
                .values(
                    run_id=run_id,
                    channel=channel,
                    state="sending",
                    owner=self._db.actor,
                    at=stamp(self._db.clock.now()),
                )
                .on_conflict_do_nothing()
                .returning(table.c.run_id)
            )
            return done.scalar() is not None

    def finish(self, run_id: str, channel: str, *, sent: bool) -> None:
        """Marks it as sent, or gives the claim back because it certainly was not."""
        table = schema.notifications
        mine = (table.c.run_id == run_id) & (table.c.channel == channel)
        with self._db.writing() as connection:
            done = table.update().where(mine).values(state="sent") if sent else table.delete().where(mine)
            connection.execute(done)

    def unfinished(self, channel: str, *, older_than_s: float) -> list[str]:
        """Runs whose teller died between claiming and finishing: it may or may not have been sent."""
        table = schema.notifications
        before = stamp(self._db.clock.now() - timedelta(seconds=older_than_s))
        query = select(table.c.run_id).where(
            table.c.channel == channel, table.c.state == "sending", table.c.at < before
        )
        with self._db.reading() as connection:
            return list(connection.execute(query).scalars())

    def close(self, run_id: str, channel: str) -> None:
        """Marks it as one of which nobody knows whether it was sent; it is not claimed again."""
        table = schema.notifications
        mine = (table.c.run_id == run_id) & (table.c.channel == channel)
        with self._db.writing() as connection:
            connection.execute(table.update().where(mine).values(state="uncertain"))
