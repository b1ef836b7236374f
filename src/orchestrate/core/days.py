"""The current date for shutdown dates and prices. It is the same on every machine."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime

from orchestrate.errors import ConfigError
from orchestrate.text import count

VARIABLE = "ORCHESTRATE_TODAY"


def pretended(day: date) -> str | None:
    """Return a note that `ORCHESTRATE_TODAY` overrides the current date with `day`. Returns `None` if the
    variable is not set to `day`, or if `day` is the real date."""
    if os.environ.get(VARIABLE) != day.isoformat() or day == datetime.now(UTC).date():
        return None
    return f"{VARIABLE} is set: prices and shutdown dates are as of {day}"


def shutdown(day: date, left: int | None = None) -> str:
    """Describe the shutdown of a model after `day`, such as `will be shut down after 2027-01-14 (in 43
    days)`. `left` is the number of days until then, by default from today."""
    left = (day - today()).days if left is None else left
    if left >= 0:
        return f"will be shut down after {day} (in {count(left, 'day')})"
    return f"shut down after {day} ({count(-left, 'day')} ago)"


def today() -> date:
    """Return the current date in UTC. Hosts publish dates without a time zone. With local dates, machines in
    different time zones would disagree about whether a model is shut down or a price has changed.

    `ORCHESTRATE_TODAY=2027-01-07` shows models, shutdowns and prices as of that date. The variable does not
    change what a host reports or when a run was created. Raises `ConfigError` if its value is not a date.
    """
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
