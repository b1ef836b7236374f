"""Rules of billing that are not one host's alone; a host's own lie in its profile. Pure arithmetic."""

from __future__ import annotations

from decimal import Decimal


def minimum_top_up(usd: Decimal, minimum: Decimal) -> Decimal:
    """What is added so that a job costs its minimum: `max(0, minimum - usd)`.

    together.ai/pricing, 2026-10-07: the larger of the total and the model's minimum.
    """
    return max(Decimal(0), minimum - usd)


def electricity_kwh(seconds: float | Decimal, watts: int) -> Decimal:
    return Decimal(str(seconds)) * watts / 3_600_000
