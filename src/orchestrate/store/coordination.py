"""Polling state that all processes share through the store: polling times, pauses, how long runs have been
inactive, and webhook deliveries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import func, select

from orchestrate.store import schema, stamp
from orchestrate.store.database import Database, Lease, Leases
from orchestrate.types import JobStatus, Run, SubmitPhase

_ENDED = [s.value for s in JobStatus if s.terminal]


class Notifications:
    """Records which runs were reported to which channels."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def since(self, channel: str) -> datetime:
        """Return when this channel was first used. Runs that ended before then are not reported."""
        key, now = f"channel:{channel}"[:64], stamp(self._db.clock.now())
        query = select(schema.meta.c.value).where(schema.meta.c.key == key)
        with self._db.writing() as connection:
            connection.execute(
                self._db.insert(schema.meta).values(key=key, value=now).on_conflict_do_nothing()
            )
            value = connection.execute(query).scalar_one()
        return datetime.fromisoformat(value)

    def due(self, channel: str, since: datetime, *, limit: int = 100) -> list[Run]:
        """List ended runs that have not been reported to the channel, least recently updated first."""
        table, notifications, steps = schema.runs, schema.notifications, schema.transitions
        known = select(notifications.c.run_id).where(notifications.c.channel == channel)
        # Later updates of an ended run, such as a change of its tags, are not reported. Neither are runs that
        # had already ended when they were added to this store, for example by `recover`.
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
        """Claim the right to notify one channel about one run. Returns True if this process got it. No other
        process gets it as long as the claim exists."""
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
        """Mark the notification as sent, or release the claim if the notification is known not to have been
        sent."""
        table = schema.notifications
        mine = (table.c.run_id == run_id) & (table.c.channel == channel)
        with self._db.writing() as connection:
            done = table.update().where(mine).values(state="sent") if sent else table.delete().where(mine)
            connection.execute(done)

    def unfinished(self, channel: str, *, older_than_s: float) -> list[str]:
        """List the ids of runs whose notification was claimed but never finished, because the process
        stopped. The notification may have been sent."""
        table = schema.notifications
        before = stamp(self._db.clock.now() - timedelta(seconds=older_than_s))
        query = select(table.c.run_id).where(
            table.c.channel == channel, table.c.state == "sending", table.c.at < before
        )
        with self._db.reading() as connection:
            return list(connection.execute(query).scalars())

    def close(self, run_id: str, channel: str) -> None:
        """Mark the notification as possibly sent, so it is not claimed again."""
        table = schema.notifications
        mine = (table.c.run_id == run_id) & (table.c.channel == channel)
        with self._db.writing() as connection:
            connection.execute(table.update().where(mine).values(state="uncertain"))


_SOONEST = timedelta(seconds=10)
_LATEST = timedelta(minutes=5)
_LONGEST = timedelta(days=3650)
"""Longest pause that a host can request."""
_SHARE = 10
"""Divisor for the polling interval of a run, which is (time since the run's last change) / `_SHARE`, but at
least `_SOONEST` and at most `_LATEST`."""
_VIEWER_S = 15.0
"""Seconds after which a viewer that stopped responding no longer counts as watching."""


class Silence(NamedTuple):
    """Time for which a run has been inactive, in seconds. `reported_s` is the time since the user was
    notified of this, or `None` if no notification was sent."""

    seconds: float
    reported_s: float | None


class Coordination:
    """Polling times of each backend and run, shared by all processes."""

    def __init__(self, db: Database, leases: Leases) -> None:
        self._db = db
        self._leases = leases

    def changed(self, since: datetime) -> list[Run]:
        """List the runs changed after `since`, in the order in which they changed."""
        table = schema.runs
        query = select(table.c.record).where(table.c.updated_at > stamp(since)).order_by(table.c.updated_at)
        with self._db.reading() as connection:
            return [Run.from_json(row) for row in connection.execute(query).scalars()]

    def claim_due(self, provider: str, host: str, *, limit: int, soonest: timedelta = _SOONEST) -> list[Run]:
        """Claim up to `limit` active runs whose events and metrics are due to be polled, longest overdue
        first.

        A claimed run is not due again for at least `soonest`. Processes that call this at the same time get
        different runs. On Postgres, each skips the rows that another has locked. On SQLite, they take turns.
        """
        table, now = schema.runs, self._db.clock.now()
        query = (
            select(table.c.record)
            .where(table.c.provider == provider, table.c.host == host, ~table.c.closed)
            .where(table.c.phase == SubmitPhase.SUBMITTED.value, table.c.due_at <= stamp(now))
            .order_by(table.c.due_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        with self._db.writing() as connection:
            runs = [Run.from_json(row) for row in connection.execute(query).scalars()]
            for run in runs:
                quiet = max(now - run.updated_at, timedelta(0))
                due = now + min(max(quiet / _SHARE, soonest), _LATEST)
                connection.execute(table.update().where(table.c.id == run.id).values(due_at=stamp(due)))
        return runs

    def make_due(self, provider: str, job_id: str) -> Run | None:
        """Mark the run with this job as due for polling now, and return the run, or `None` if there is
        none."""
        table = schema.runs
        query = select(table.c.record).where(table.c.provider == provider, table.c.job_id == job_id)
        with self._db.writing() as connection:
            record = connection.execute(query).scalar()
            if record is None:
                return None
            run = Run.from_json(record)
            due = stamp(self._db.clock.now())
            connection.execute(table.update().where(table.c.id == run.id).values(due_at=due))
        return run

    def uncancelled(self, provider: str, host: str) -> list[str]:
        """List the ids of runs whose cancel request has not reached the host yet. Their jobs may still be
        running."""
        table = schema.runs
        left = [s.value for s in JobStatus if s.terminal or s is JobStatus.CANCELLING]
        query = (
            select(table.c.id)
            .where(table.c.provider == provider, table.c.host == host, ~table.c.closed)
            .where(table.c.cancel_requested, table.c.phase == SubmitPhase.SUBMITTED.value)
            .where(table.c.status.not_in(left))
        )
        with self._db.reading() as connection:
            return list(connection.execute(query).scalars())

    def silences(self, marks: Mapping[str, str], *, gap_s: float | None = None) -> dict[str, Silence]:
        """Return how long each run has been inactive, as {run id: Silence}.

        `marks` is {run id: text}. The text of a run must change whenever the run shows activity. A changed
        text restarts the measurement for that run. So does a gap of more than `gap_s` seconds since the
        previous check. Times are measured with this machine's uptime clock, so changes to the wall clock
        don't affect them.
        """
        table, up = schema.silences, self._db.clock.uptime()
        ids, rows, begun = [*marks], dict[str, Any](), list[str]()
        parts = [ids[start : start + 500] for start in range(0, len(ids), 500)]
        with self._db.reading() as connection:
            for part in parts:
                query = select(table).where(table.c.boot == up.boot, table.c.run_id.in_(part))
                rows |= {row.run_id: row for row in connection.execute(query)}
        found: dict[str, Silence] = {}
        for run_id, mark in marks.items():
            row = rows.get(run_id)
            same = row is not None and row.mark == mark and up.seconds - row.since >= 0
            if row is not None and same and (gap_s is None or up.seconds - row.seen <= gap_s):
                reported_s = None if row.told is None else up.seconds - row.told
                found[run_id] = Silence(up.seconds - row.since, reported_s)
            else:
                begun.append(run_id)
                found[run_id] = Silence(0.0, None)
        if begun or gap_s is not None:
            with self._db.writing() as connection:
                for part in parts:
                    here = (table.c.boot == up.boot) & table.c.run_id.in_(part)
                    connection.execute(table.update().where(here).values(seen=up.seconds))
                if begun:
                    now = {"boot": up.boot, "since": up.seconds, "seen": up.seconds, "told": None}
                    insert = self._db.insert(table)
                    new = {name: insert.excluded[name] for name in ("mark", "since", "seen", "told")}
                    connection.execute(
                        insert.on_conflict_do_update(index_elements=["run_id", "boot"], set_=new),
                        [{"run_id": run_id, "mark": marks[run_id], **now} for run_id in sorted(begun)],
                    )
        return found

    def end_silence(self, run_id: str) -> None:
        """Record that this run is active again. This resets its inactivity on all machines."""
        with self._db.writing() as connection:
            connection.execute(schema.silences.delete().where(schema.silences.c.run_id == run_id))

    def report_silence(self, run_id: str) -> None:
        """Record that the user was notified that this run is inactive."""
        table, up = schema.silences, self._db.clock.uptime()
        with self._db.writing() as connection:
            mine = (table.c.run_id == run_id) & (table.c.boot == up.boot) & table.c.told.is_(None)
            connection.execute(table.update().where(mine).values(told=up.seconds))

    def stalled(self) -> set[str]:
        """Return the ids of runs that were reported as stalled and still are."""
        table, runs = schema.silences, schema.runs
        ended = [s.value for s in JobStatus if s.terminal or s is JobStatus.CANCELLING]
        query = select(table.c.run_id).join(runs, runs.c.id == table.c.run_id)
        query = query.where(table.c.told.is_not(None), table.c.mark == runs.c.updated_at)
        with self._db.reading() as connection:
            return set(connection.execute(query.where(runs.c.status.not_in(ended))).scalars())

    def pause(self, account: str, seconds: float) -> None:
        """Stop all processes from querying this account for the next `seconds`. Never shortens an existing
        pause."""
        table, now = schema.pauses, self._db.clock.now()
        until = now + min(timedelta(seconds=min(seconds, 1e9)), _LONGEST)
        values = {"since": stamp(now), "until": stamp(until)}
        insert = self._db.insert(table).values(account=account, **values)
        with self._db.writing() as connection:
            connection.execute(
                insert.on_conflict_do_update(
                    index_elements=["account"], set_=values, where=table.c.until < values["until"]
                )
            )

    def paused_s(self, account: str) -> float:
        """Return the seconds for which this account must not be queried."""
        table, now = schema.pauses, self._db.clock.now()
        with self._db.reading() as connection:
            row = connection.execute(select(table).where(table.c.account == account)).one_or_none()
        if (
            row is None or stamp(now) < row.since
        ):  # else a clock that was set back would prolong it by as much
            return 0.0
        return max((datetime.fromisoformat(row.until) - now).total_seconds(), 0.0)

    def take_tokens(
        self, account: str, count: int, *, per_minute: float, burst: float, credit: bool = False
    ) -> float:
        """Take `count` tokens from the account's rate-limit bucket, which all processes of this store share.

        The bucket gains `per_minute` tokens per minute and holds at most `burst`. Returns 0 if it had enough
        tokens. Otherwise, takes none and returns the number of seconds until it will have enough. With
        `credit`, always takes the tokens and returns 0, which is meant for requests that were already sent.
        """
        key = f"bucket:{hashlib.sha256(account.encode()).hexdigest()[:48]}"
        now, table = self._db.clock.now(), schema.meta
        with self._db.writing() as connection:
            full = self._db.insert(table).values(key=key, value=f"{burst} {stamp(now)}")
            connection.execute(full.on_conflict_do_nothing())
            row = connection.execute(select(table.c.value).where(table.c.key == key).with_for_update())
            left, _, at = row.scalar_one().partition(" ")
            # If the clock was set back, the elapsed time is negative. It then counts as zero.
            passed = max((now - datetime.fromisoformat(at)).total_seconds(), 0.0)
            tokens = min(burst, float(left) + passed * per_minute / 60.0)
            missing = count - tokens
            refused = missing > 1e-9 and not credit
            value = f"{tokens if refused else tokens - count} {stamp(now)}"
            connection.execute(table.update().where(table.c.key == key).values(value=value))
        return missing * 60.0 / per_minute if refused else 0.0

    def watch(self, account: str, lease: Lease | None) -> Lease | None:
        """Record that a viewer is watching this account's runs, and return the viewer's lease. The lease
        expires after `_VIEWER_S` seconds. To renew it, pass it to the next call. Returns `None` if another
        viewer holds the lease."""
        if lease is not None and self._leases.renew(lease, _VIEWER_S):
            return lease
        return self._leases.acquire(_viewer_lease(account), _VIEWER_S)

    def is_watched(self, account: str) -> bool:
        """Return whether a viewer is watching this account's runs. If so, the account is polled more
        often."""
        return self._leases.held(_viewer_lease(account))

    def take_delivery(self, delivery_id: str) -> bool:
        """Record a webhook delivery and return whether its id is new."""
        with self._db.writing() as connection:
            done = connection.execute(
                self._db.insert(schema.deliveries)
                .values(id=delivery_id, at=stamp(self._db.clock.now()))
                .on_conflict_do_nothing()
                .returning(schema.deliveries.c.id)
            )
            return done.scalar() is not None


def _viewer_lease(account: str) -> str:
    return f"look:{account}"[:255]
