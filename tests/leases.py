"""Leases of a killed process, over as soon as it is dead: half a minute later they are so by themselves."""

from __future__ import annotations

from orchestrate.store import schema
from orchestrate.store.store import Store


def expire(url: str) -> None:
    """All of a store. Nobody may be at work on it."""
    with Store.open(url) as store, store.database.writing() as connection:
        connection.execute(schema.leases.update().values(expires_uptime=0.0, expires_at=""))
