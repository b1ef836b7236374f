"""Prices as hosts write them: what can't be one is unknown, not an amount."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from orchestrate.providers.calls import money, nanos


@pytest.mark.parametrize(
    ("told", "usd", "of_nanos"),
    [
        (2, "2", "2e-9"),
        ("1.25", "1.25", "1.25e-9"),
        (10**12, "1e12", "1000"),
        (1.5e12, None, "1500"),
        (10**21, None, "1e12"),
        ("1e26", None, None),
        ("-1e26", None, None),
        ("1e999999", None, None),
        ("1e9999999999999999999", None, None),
        (float("nan"), None, None),
        (float("inf"), None, None),
        (True, None, None),
        ("free", None, None),
        (None, None, None),
    ],
)
def test_only_what_can_be_a_price_is_one(told: Any, usd: str | None, of_nanos: str | None) -> None:
    assert money(told) == (None if usd is None else Decimal(usd))
    assert nanos(told) == (None if of_nanos is None else Decimal(of_nanos))
