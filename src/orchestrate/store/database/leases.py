"""The right to one piece of work at a time, with fences."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import Connection, select

from orchestrate.errors import OrchestrateError, StoreError
from orchestrate.store.clock import stamp
from orchestrate.store.database import engines, schema
from orchestrate.store.database.engines import Database
from orchestrate.text import duration


class LeaseLost(OrchestrateError):
    """Another process has taken this work over; what this one was about to write was not written."""

    retryable = True


class LeaseHeld(OrchestrateError):
    """Another process is at this work."""

    retryable = True


@dataclass(frozen=True)
class Lease:
    """The right to one piece of work until it expires. Each taking raises the fence, and writes of an older
    fence are refused: a process that slept past its lease can do no harm to the store."""

    name: str
    owner: str
    fence: int


class Leases:
    """Leases on names, held by processes."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self._file = db.file

    def acquire(self, name: str, ttl_s: float) -> Lease | None:
        """Takes the lease when it is free or has expired; `None` while another holds it."""
        now, up = self._db.clock.now(), self._db.clock.uptime()
        values: dict[str, Any] = {
            "owner": f"{self._db.actor}:{secrets.token_hex(3)}",
            "expires_at": stamp(now + timedelta(seconds=ttl_s)),
            "boot": up.boot,
            "expires_uptime": up.seconds + ttl_s,
        }
        row_of = select(schema.leases).where(schema.leases.c.name == name).with_for_update()
        with self._db.writing() as connection:
            connection.execute(
                self._db.insert(schema.leases)
                .values(name=name, owner=None, fence=0, expires_at="", boot="", expires_uptime=0.0)
                .on_conflict_do_nothing()
            )
            row = connection.execute(row_of).one()
            if row.owner is not None and not self._expired(row):
                return None
            values["fence"] = row.fence + 1
            connection.execute(schema.leases.update().where(schema.leases.c.name == name).values(values))
        return Lease(name, values["owner"], values["fence"])

    def renew(self, lease: Lease, ttl_s: float) -> bool:
        """Whether the lease is still ours; it then lasts for another `ttl_s`."""
        now, up = self._db.clock.now(), self._db.clock.uptime()
        with self._db.writing() as connection:
            done = connection.execute(
                schema.leases.update()
                .where(schema.leases.c.name == lease.name, schema.leases.c.fence == lease.fence)
                .where(schema.leases.c.owner == lease.owner)
                .values(
                    expires_at=stamp(now + timedelta(seconds=ttl_s)),
                    boot=up.boot,
                    expires_uptime=up.seconds + ttl_s,
                )
            )
        return done.rowcount == 1

    def held(self, name: str) -> bool:
        """Whether some process has the lease now."""
        with self._db.reading() as connection:
            row = connection.execute(select(schema.leases).where(schema.leases.c.name == name)).one_or_none()
        return row is not None and row.owner is not None and not self._expired(row)

    def _expired(self, row: Any) -> bool:
        # A lease of this start of this machine is measured without the wall clock.
        up = self._db.clock.uptime()
        if row.boot == up.boot:
            return up.seconds >= row.expires_uptime
        return stamp(self._db.clock.now()) >= row.expires_at

    def release(self, lease: Lease) -> None:
        with self._db.writing() as connection:
            connection.execute(
                schema.leases.update()
                .where(schema.leases.c.name == lease.name, schema.leases.c.fence == lease.fence)
                .where(schema.leases.c.owner == lease.owner)
                .values(owner=None)
            )

    def require(self, connection: Connection, lease: Lease) -> None:
        """Raises `LeaseLost` unless the lease is the last one given; to be called inside the transaction that
        it protects."""
        row = connection.execute(
            select(schema.leases.c.fence, schema.leases.c.owner)
            .where(schema.leases.c.name == lease.name)
            .with_for_update()
        ).one_or_none()
        if row is None or row.fence != lease.fence or row.owner != lease.owner:
            raise _lost(lease)

    def check(self, lease: Lease, ttl_s: float) -> None:
        """Raises `LeaseLost` when another process has taken the work over, and `StoreError` when the store is
        not where it was opened. It renews the lease, which also shows that the store can be written."""
        if not self.renew(lease, ttl_s):
            raise _lost(lease)
        if self._file is not None and engines.identity(self._db.place) != self._file:
            # Writes into a file without a name succeed, and nobody reads them again.
            raise StoreError(
                f"the run store {self._db.place} was removed or replaced while it was in use",
                fix=f"nothing was sent; put it back and try again, or {engines.RECOVER}",
            )

    @contextmanager
    def hold(
        self, name: str, ttl_s: float = 30.0, *, wait: Callable[[], object] | None = None
    ) -> Generator[Lease]:
        """Holds the lease for the block, renewed by a thread, so that it ends soon after its process does.

        Raises `LeaseHeld` at once when another process has it; with `wait`, which is called between looks,
        its turn is waited for.
        """
        lease = self.acquire(name, ttl_s)
        while lease is None:
            if wait is None:
                raise LeaseHeld(
                    f"{name}: another process is working on it",
                    fix=f"wait up to {duration(ttl_s)}, then try again",
                )
            wait()
            if not self.held(name):
                lease = self.acquire(name, ttl_s)
        done = threading.Event()

        def keep() -> None:
            while not done.wait(ttl_s / 3):
                try:
                    if not self.renew(lease, ttl_s):
                        return
                except OrchestrateError:
                    continue  # the store may be back at the next turn; the fence guards what matters

        keeper = threading.Thread(target=keep, name=f"lease {name}", daemon=True)
        keeper.start()
        try:
            yield lease
        finally:
            done.set()
            keeper.join()
            with suppress(OrchestrateError):
                self.release(lease)  # else it expires; an error that is under way must not be hidden


def _lost(lease: Lease) -> LeaseLost:
    return LeaseLost(f"{lease.name}: another process has taken this over", fix="orchestrate sync")
