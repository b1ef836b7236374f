"""Parse amounts of money and durations that users enter in options, forms and calls."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Literal

from orchestrate.errors import UsageError

MOST = Decimal(10) ** 12
"""Upper bound for amounts and durations: far above all realistic values, and small enough for exact
arithmetic."""
_LEAST = Decimal(10) ** -12
_WRITTEN = re.compile(r"\$?(\d+(?:\.\d*)?|\.\d+|\d{1,3}(?:,\d{3})+(?:\.\d*)?)(?:[eE][+-]?\d{1,9})?", re.ASCII)

Unit = Literal["US dollars", "hours", "minutes"]


def amount(
    given: Decimal | float | str | None, name: str, unit: Unit = "US dollars", *, above_zero: bool = False
) -> Decimal | None:
    """Parse an amount such as `25`, `7.50` or `$1,200`. Raises `UsageError` with the option's name if
    the value is not an amount."""
    if given is None:
        return None
    found = _read(given)
    if found is None or (above_zero and not found):
        least = "above 0" if above_zero else "not below 0"
        example = "25 or 7.50" if unit == "US dollars" else "8 or 0.5"
        bounds = f"{least} and at most {MOST:,f}"
        raise UsageError(f"{name} must be a number of {unit}, {bounds}, such as {example} (got {given!r})")
    return found


def _read(given: Decimal | float | str) -> Decimal | None:
    text = str(given).strip()
    if isinstance(given, bool) or not _WRITTEN.fullmatch(text):
        return None
    try:
        found = Decimal(text.removeprefix("$").replace(",", ""))
    except InvalidOperation:
        return None
    return found if found.is_finite() and (not found or _LEAST <= found <= MOST) else None
