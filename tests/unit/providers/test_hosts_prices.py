"""Prices as hosts write them: what can't be one is unknown, not an amount."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest

from orchestrate.providers.calls import money, nanos
from orchestrate.providers.fireworks.responses import usd_of


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
        (-1, None, None),
        ("-0.01", None, None),
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


@pytest.mark.parametrize(
    ("told", "usd"),
    [
        ({"units": "1", "nanos": 250_000_000}, "1.25"),
        ({"nanos": 5}, "5e-9"),
        ({"units": "1e400", "nanos": 5}, None),
        ({"units": "-1"}, None),
        ({"units": "1", "nanos": -5}, None),
        ({"units": "1", "nanos": "some"}, None),
    ],
)
def test_money_of_which_a_part_is_unreadable_is_unknown(told: Any, usd: str | None) -> None:
    assert usd_of(told) == (None if usd is None else Decimal(usd))
