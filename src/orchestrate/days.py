"""The day by which closing dates and prices hold, the same wherever this runs."""

from __future__ import annotations

from datetime import UTC, date, datetime


def today() -> date:
    """The day in UTC. Hosts publish days without an hour or a zone, and a date that turned with the local
    clock would close a host, or end a price, on one machine a day before it does on another."""
    return datetime.now(UTC).date()
