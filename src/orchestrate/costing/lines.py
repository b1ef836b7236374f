"""Lines of quotes, and their sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from decimal import Decimal

from orchestrate.costing.rate import Rate
from orchestrate.types import Confidence, Quote, QuoteLine


def minimum_top_up(usd: Decimal, minimum: Decimal) -> Decimal:
    """Return the amount that raises a job to the minimum charge: `max(0, minimum - usd)`. Together charges
    the higher of the job's cost and the model's minimum (together.ai/pricing, 2026-10-07)."""
    return max(Decimal(0), minimum - usd)


def electricity_kwh(seconds: float | Decimal, watts: int) -> Decimal:
    return Decimal(str(seconds)) * watts / 3_600_000


_SIXTH = Decimal("0.000001")
MTOK = Decimal(1_000_000)
_WORDS = {"owned": "the machine's hour", "rental": "the rented hour"}


def rounded(usd: Decimal) -> Decimal:
    """Round to a millionth of a dollar. All hosts bill in larger units, so the sums of lines stay exact."""
    return usd.quantize(_SIXTH)


def line(
    component: str,
    quantity: Decimal,
    rate: Rate,
    *,
    band: float = 0.0,
    low: Decimal | None = None,
    high: Decimal | None = None,
    note: str | None = None,
) -> QuoteLine:
    """Build a line of a quote. `quantity` is in the rate's unit. The low and high ends of the range come from
    `band` (a relative half-width) or from the quantities `low` and `high`."""
    spread = Decimal(str(band))
    low_price, price, high_price = rate.band()
    smallest = (quantity if low is None else low) * (1 - spread)
    largest = (quantity if high is None else high) * (1 + spread)
    return QuoteLine(
        component=component,
        quantity=quantity,
        unit=rate.unit,
        usd_per_unit=rate.usd,
        usd_low=rounded(smallest * low_price),
        usd=rounded(quantity * price),
        usd_high=rounded(largest * high_price),
        note=note or rate.note,
        source=rate.source,
        as_of=rate.as_of,
        confidence=rate.confidence,
        own=rate.own,
    )


def summed(
    *,
    provider: str,
    model: str,
    lines: Sequence[QuoteLine],
    assumptions: Iterable[str] = (),
    warnings: Iterable[str] = (),
    billed_tokens: int | None = None,
    train_seconds: float | None = None,
    open_end: str | None = None,
) -> Quote:
    """Build a quote from its lines. Its totals are the sums of the lines."""
    return Quote(
        provider=provider,
        model=model,
        lines=tuple(lines),
        assumptions=tuple(assumptions),
        low_usd=sum((entry.usd_low for entry in lines), Decimal(0)),
        expected_usd=sum((entry.usd for entry in lines), Decimal(0)),
        high_usd=sum((entry.usd_high for entry in lines), Decimal(0)),
        billed_tokens=billed_tokens,
        train_seconds=train_seconds,
        warnings=(*warnings, *_of_own_rates(lines)),
        open_end=open_end,
    )


def _of_own_rates(lines: Sequence[QuoteLine]) -> list[str]:
    """Return a warning for each price that the user set, so nobody takes it for the host's."""
    own = dict.fromkeys((entry.component, entry.own) for entry in lines if entry.own)
    return [
        f"the price of {_WORDS.get(component, component)} comes from {place}, not from the host"
        for component, place in own
    ]


def age_days(quote: Quote, today: date) -> int | None:
    """Return the age of the oldest price behind a quote, in days."""
    checked = [date.fromisoformat(e.as_of) for e in quote.lines if e.as_of and e.as_of[:1].isdigit()]
    return (today - min(checked)).days if checked else None


def worst_confidence(quote: Quote) -> Confidence:
    """Return the lowest confidence of all rates that contribute to the price."""
    order = (Confidence.OLD, Confidence.INFERRED, Confidence.QUOTED)
    used = {e.confidence for e in quote.lines if e.usd_high > 0}
    return next((c for c in order if c in used), Confidence.QUOTED)
