"""One way to say each kind of amount."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrate import text
from orchestrate.errors import OverBudget

AMOUNTS = st.decimals("0", "1e12", allow_nan=False, allow_infinity=False) | st.decimals(
    "0", "2", places=9, allow_nan=False, allow_infinity=False
)


def said(words: str) -> Decimal:
    assert re.fullmatch(r"\$[\d,]+\.\d{2,}", words)
    return Decimal(words[1:].replace(",", ""))


@pytest.mark.parametrize(
    ("usd", "words"),
    [
        ("0", "$0.00"), ("12.5", "$12.50"), ("1234.001", "$1,234.01"), ("0.5", "$0.50"), ("0.0671", "$0.068"),
        ("0.0042", "$0.0042"), ("0.00000123", "$0.0000013"), ("0.9999", "$1.00"), ("-1.5", "-$1.50"),
    ],
)  # fmt: skip
def test_money(usd: str, words: str):
    assert text.money(Decimal(usd)) == words


@given(AMOUNTS)
def test_no_cost_is_shown_smaller_and_no_limit_larger(usd: Decimal):
    assert said(text.limit(usd)) <= usd <= said(text.money(usd))
    assert said(text.money(usd)) - usd <= max(Decimal("0.01") if usd >= 1 else usd / 10, Decimal(0))


@given(AMOUNTS, AMOUNTS)
def test_the_order_of_amounts_is_that_of_their_texts(a: Decimal, b: Decimal):
    low, high = sorted((a, b))
    assert said(text.money(low)) <= said(text.money(high))
    if low < high:
        assert said(text.limit(low)) < said(text.money(high))
        shown = str(OverBudget("p", high, low))
        assert text.money(high) in shown and text.limit(low) in shown


@given(AMOUNTS, st.integers(0, 6))
def test_one_amount_has_one_text_however_its_digits_are_written(usd: Decimal, zeros: int):
    longer = Decimal(f"{usd:f}" + ("" if "." in f"{usd:f}" else ".") + "0" * zeros)
    assert text.money(longer) == text.money(usd) and text.rate(longer) == text.rate(usd)
    assert said(text.rate(usd)) == usd
    if usd == usd.quantize(Decimal("0.01")):
        assert text.money(usd) == text.limit(usd) == text.rate(usd)


@pytest.mark.parametrize(
    ("amount", "words"),
    [
        (0, "0 bytes"), (1, "1 byte"), (1023, "1,023 bytes"), (1024, "1 KiB"), (2**20 - 1, "1 MiB"),
        (5 << 20, "5 MiB"), (2**30 - 1, "1 GiB"), (2**30, "1 GiB"), (int(3.44 * 2**30), "3.4 GiB"),
        (2**41, "2,048 GiB"),
    ],
)  # fmt: skip
def test_size(amount: int, words: str):
    assert text.size(amount) == words


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0s"), (0.42, "0.4s"), (9.96, "10s"), (59.6, "1m 00s"), (185, "3m 05s"), (3720, "1h 02m"),
        (60 * 3600, "2.5 days"), (-3, "0s"), (None, "-"),
    ],
)  # fmt: skip
def test_duration(seconds: float | None, words: str):
    assert text.duration(seconds) == words


def test_count():
    assert [text.count(n, "epoch") for n in (0, 1, 3, 0.9)] == ["0 epochs", "1 epoch", "3 epochs", "1 epoch"]
    assert text.count(2, "reply", "replies") == "2 replies"
    assert (text.count(12345.4), text.count(None)) == ("12,345", "-")
