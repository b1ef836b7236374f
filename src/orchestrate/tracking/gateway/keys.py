"""The clients' keys, kept as hashes, and the log of what was done with them."""

from __future__ import annotations

import hashlib
import secrets
from datetime import datetime

from msgspec.structs import replace
from sqlalchemy import Insert, select

from orchestrate.errors import UsageError
from orchestrate.tracking.clock import stamp
from orchestrate.tracking.database import schema
from orchestrate.tracking.database.opened import Database
from orchestrate.types import AuditEntry, GatewayKey

PREFIX = "orc-gw-"
MOST_KEYLESS = 10_000
"""Refused requests without a key that are kept."""


class GatewayKeys:
    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, key: GatewayKey, *, by: str) -> str:
        """A new key; it cannot be shown again. `by`: who makes it, for the log. Raises `UsageError` for a
        name that is taken."""
        if not key.name.strip() or not key.name.isprintable() or len(key.name) > 64:
            raise UsageError("a key's name, whose it is, has 1 to 64 characters")
        if not key.project.strip() or not key.project.isprintable() or len(key.project) > 64:
            raise UsageError("the name of a key's project has 1 to 64 characters")
        made = PREFIX + secrets.token_urlsafe(32)
        values = {"name": key.name, "hash": hashed(made), "record": key.to_json().decode()}
        insert = self._db.insert(schema.gateway_keys).values(**values)
        with self._db.writing() as connection:
            done = connection.execute(
                insert.on_conflict_do_nothing().returning(schema.gateway_keys.c.name)
            ).scalar()
            if done is not None:
                connection.execute(_logged(_command(key.created_at, key.name, "add", by)))
        if done is None:
            raise UsageError(
                f"a key called {key.name!r} was made already; a revoked one keeps its name, for the log",
                fix="another name",
            )
        return made

    def of(self, given: str) -> GatewayKey | None:
        """Whose key it is, revoked or not."""
        query = select(schema.gateway_keys.c.record).where(schema.gateway_keys.c.hash == hashed(given))
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else GatewayKey.from_json(row)

    def named(self, name: str) -> GatewayKey | None:
        query = select(schema.gateway_keys.c.record).where(schema.gateway_keys.c.name == name)
        with self._db.reading() as connection:
            row = connection.execute(query).scalar()
        return None if row is None else GatewayKey.from_json(row)

    def all(self) -> list[GatewayKey]:
        """By name, the revoked ones too."""
        query = select(schema.gateway_keys.c.record).order_by(schema.gateway_keys.c.name)
        with self._db.reading() as connection:
            return [GatewayKey.from_json(row) for row in connection.execute(query).scalars()]

    def revoke(self, name: str, at: datetime, *, by: str) -> GatewayKey:
        """`by`: as for `add`. Raises `UsageError` for a name without a key."""
        known = self.named(name)
        if known is None:
            names = ", ".join(key.name for key in self.all()) or "none"
            raise UsageError(f"no key is called {name!r}; there are: {names}")
        revoked = replace(known, revoked_at=known.revoked_at or at)
        table = schema.gateway_keys
        with self._db.writing() as connection:
            connection.execute(
                table.update().where(table.c.name == name).values(record=revoked.to_json().decode())
            )
            if known.revoked_at is None:
                connection.execute(_logged(_command(at, name, "revoke", by)))
        return revoked

    # -- the log -------------------------------------------------------------------------------------------

    def log(self, entry: AuditEntry) -> None:
        with self._db.writing() as connection:
            connection.execute(_logged(entry))

    def entries(self, *, key: str | None = None, limit: int = 100) -> list[AuditEntry]:
        """The last ones, oldest first."""
        table = schema.gateway_audit
        query = select(table.c.record).order_by(table.c.seq.desc()).limit(limit)
        if key is not None:
            query = query.where(table.c.key == key)
        with self._db.reading() as connection:
            return [AuditEntry.from_json(row) for row in connection.execute(query).scalars()][::-1]

    def sweep(self, most: int = MOST_KEYLESS) -> None:
        """Whoever has no key cannot make the log longer than this."""
        table = schema.gateway_audit
        keyless = select(table.c.seq).where(table.c.key == "").order_by(table.c.seq.desc())
        with self._db.writing() as connection:
            oldest = connection.execute(keyless.offset(most).limit(1)).scalar()
            if oldest is not None:
                connection.execute(table.delete().where(table.c.key == "", table.c.seq <= oldest))


def _command(at: datetime, name: str, verb: str, by: str) -> AuditEntry:
    return AuditEntry(at=at, key=name, method="COMMAND", path=f"gateway keys {verb}", status=0, by=by)


def _logged(entry: AuditEntry) -> Insert:
    values = {"at": stamp(entry.at), "key": entry.key, "record": entry.to_json().decode()}
    return schema.gateway_audit.insert().values(values)


def hashed(key: str) -> str:
    """Keys are random, so one round without salt is enough."""
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
