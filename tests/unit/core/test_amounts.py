"""Sums and hours as people type them: what is read, and what is a usage error and never a defect."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrate.core.amounts import MOST, amount
from orchestrate.errors import SpecError, UsageError
from orchestrate.spec import JobSpec
from orchestrate.text import limit, money


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("25", "25"),
        (" 7.50 ", "7.50"),
        ("$25", "25"),
        ("$1,200.5", "1200.5"),
        ("1e3", "1000"),
        (".5", "0.5"),
        (0.1, "0.1"),
        (8, "8"),
        (Decimal("0.30"), "0.30"),
        ("0", "0"),
    ],
)
def test_what_is_written_is_what_is_read(written: Any, read: str) -> None:
    assert amount(written, "--max-cost") == Decimal(read)
    assert amount(None, "--max-cost") is None


@pytest.mark.parametrize(
    "written",
    [
        "1e400",
        "1e-400",
        "1e13",
        "-1",
        "nan",
        "inf",
        "7,50",
        "1,2,3",
        "",
        "$",
        "1 000",
        "many",
        True,
        1e400,
    ],
)
def test_everything_else_is_a_usage_error_that_names_the_option(written: Any) -> None:
    with pytest.raises(UsageError, match="--max-cost must be a number of US dollars"):
        amount(written, "--max-cost")


def test_zero_may_be_no_limit() -> None:
    with pytest.raises(UsageError, match=r"--max-hours must be a number of hours.*above 0"):
        amount(0, "--max-hours", "hours", above_zero=True)


@given(st.text(alphabet="0123456789.,eE+-$ ", max_size=12) | st.floats() | st.decimals())
def test_what_is_read_can_be_shown(written: Any) -> None:
    try:
        found = amount(written, "it")
    except UsageError:
        return
    assert found is not None and 0 <= found <= MOST and money(found) and limit(found)


@pytest.mark.parametrize("written", ["1e400", 1e400, "-1", "nan"])
def test_a_spec_takes_no_other_limit(written: Any) -> None:
    with pytest.raises(SpecError):
        JobSpec.parse({"model": "m", "train": "x.jsonl", "max_cost_usd": written})
