"""Compare amounts with limits, and report limits that cannot be enforced. No other module does this."""

from __future__ import annotations

from decimal import Decimal

from orchestrate.errors import OverBudget, UsageError
from orchestrate.text import limit

COMMAND_LIMIT = "--max-cost"
"""Name of the limit that applies to one command."""


class UnknownPrice(OverBudget, UsageError):
    """Raised if a limit is set but cannot be enforced, because the price is unknown."""

    exit_code = OverBudget.exit_code

    def __init__(
        self,
        provider: str,
        limit_usd: Decimal,
        reason: str,
        *,
        fix: str = "set the price (--rate, or usd_per_hour in the backend's options), or remove the limit",
    ) -> None:
        super().__init__(provider, limit_usd, limit_usd)
        self.message = f"{provider}: the cost limit of {limit(limit_usd)} cannot be enforced: {reason}"
        self.args = (self.message,)
        self.fix = fix


def require_within(
    provider: str,
    usd: Decimal | None,
    limit_usd: Decimal | None,
    *,
    taken_usd: Decimal = Decimal(0),
    unknown: str | None = None,
    unknown_fix: str | None = None,
    **words: str,
) -> None:
    """Raise `OverBudget` if `usd` exceeds the limit minus `taken_usd`. Without a limit, any amount is
    allowed.

    With a limit, raises `UnknownPrice` if `usd` is `None`, or if `unknown` is set. `unknown` is the reason
    why the price is unknown. `words` are passed to `OverBudget` as parts of its message."""
    if limit_usd is None:
        return
    if usd is None or unknown is not None:
        more = {} if unknown_fix is None else {"fix": unknown_fix}
        raise UnknownPrice(provider, limit_usd, unknown or "the cost is unknown", **more)
    left = max(limit_usd - taken_usd, Decimal(0))  # what costs nothing fits into an exceeded one too
    if usd > left:
        raise OverBudget(provider, usd, left, **words)


def require_price(
    provider: str,
    usd: Decimal | None,
    limit_usd: Decimal | None,
    unknown: str | None = None,
    unknown_fix: str | None = None,
) -> None:
    """Raise `UnknownPrice` if there is a limit and the amount is unknown. A known amount is not compared with
    the limit."""
    if usd is None:
        require_within(provider, usd, limit_usd, unknown=unknown, unknown_fix=unknown_fix)


def reworded(error: OverBudget, **words: str) -> OverBudget:
    """Return a copy of the error with a different description."""
    words = {"what": error.what, **words}
    return OverBudget(error.provider, error.high_usd, error.limit_usd, **words)


def exceeds(usd: Decimal | None, limit_usd: Decimal | None) -> bool:
    """Return True if the amount is above the limit. Returns False if either is `None`."""
    return usd is not None and limit_usd is not None and usd > limit_usd


def reached(usd: Decimal | None, limit_usd: Decimal | None) -> bool:
    """Return True if the amount has reached the limit. Returns False if either is `None`."""
    return usd is not None and limit_usd is not None and usd >= limit_usd
