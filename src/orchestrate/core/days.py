"""The current day for closing dates and prices, the same on every machine."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime

from orchestrate.errors import ConfigError

VARIABLE = "ORCHESTRATE_TODAY"


def pretended(day: date) -> str | None:
    """Return a note that names the variable that sets prices and closings to `day`, or `None` if it is
    not set to that day, or that day is today."""
    if os.environ.get(VARIABLE) != day.isoformat() or day == datetime.now(UTC).date():
        return None
    return f"{VARIABLE} is set: prices and closing dates are as of {day}"


def today() -> date:
    """Return the current day in UTC. Hosts publish days without an hour or a time zone. A day that
    followed the local clock would close a host or end a price on one machine a day before another.

    `ORCHESTRATE_TODAY=2027-01-07` shows what will hold, or held, on another day: models, shutdowns and
    prices. What a host itself reports, and when a run was created, do not change. Raises `ConfigError` if
    it is not a date."""
    asked = os.environ.get(VARIABLE)
    if not asked:
        return datetime.now(UTC).date()
    try:
        return date.fromisoformat(asked)
    except ValueError:
        raise ConfigError(
            f"{VARIABLE} must be a date (YYYY-MM-DD), got {asked!r}",
            fix=f"write it as 2027-01-07, or: unset {VARIABLE}",
        ) from None
