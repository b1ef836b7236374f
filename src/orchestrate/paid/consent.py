"""Ask the user to agree to a price. This module contains all consent checks and all errors about missing
consent."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal

from orchestrate.errors import UsageError
from orchestrate.paid.limits import COMMAND_LIMIT


def require_consent(
    usd: Decimal | None,
    agreed: Callable[[], bool],
    *,
    otherwise: str,
    unpriced: bool | None = None,
    limited: bool = False,
    fix: str = f"add --yes, or set a limit with {COMMAND_LIMIT} USD",
) -> None:
    """Raise `UsageError` unless the user agrees to the possible cost.

    Calls `agreed` only if `usd`, the maximum price, is above 0 or unknown. By default, the price is unknown
    if `usd` is `None`. Set `unpriced` to override this. `limited` means that the user set a cost limit, which
    counts as agreement. `otherwise` is the start of the error message and says what was not done."""
    unpriced = usd is None if unpriced is None else unpriced
    costs = unpriced or (usd is not None and usd > 0)
    if costs and not limited and not agreed():
        raise UsageError(f"{otherwise}: the price was not confirmed", fix=fix)


def require_hourly_price(
    host: str,
    usd_per_hour: Decimal | None,
    *,
    accepted: bool,
    fix: str = "--accept-unknown-price   (Python: accept_unknown_price=True)",
) -> None:
    """Raise `UsageError` if the deployment's hourly price is unknown and the user has not accepted that."""
    require_consent(
        Decimal(0),
        lambda: accepted,
        otherwise=f"not deployed: {host} does not publish an hourly price, and no rate is known",
        unpriced=usd_per_hour is None,
        fix=fix,
    )
