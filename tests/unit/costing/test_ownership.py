"""Months of serving, against prompting a base model."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrate import catalog
from orchestrate.costing import (
    BasePrice,
    Ownership,
    Prices,
    Traffic,
    Use,
    base_price,
    built_in,
    cheapest,
    local_rate,
    own,
    parse_flag,
    rental_rate,
    serving_terms,
)
from orchestrate.costing.ownership import DAYS_PER_MONTH, gpus_needed
from orchestrate.errors import UsageError
from orchestrate.profile import profile
from orchestrate.types import Quote

TODAY = date(2026, 11, 25)
TRAFFIC = Traffic(requests_per_day=Decimal(20_000), input_tokens=900, output_tokens=150)


@pytest.mark.parametrize(
    ("words", "per_day", "tokens_in", "tokens_out"),
    [
        ("20k req/day, 900 in, 150 out", 20_000, 900, 150),
        ("1,000 requests per hour, 1.2k in, 80 out", 24_000, 1200, 80),
        ("2 req/sec; 500 tokens in; 20 tokens out", 172_800, 500, 20),
        ("0.5M calls a day 10 input 5 output", 500_000, 10, 5),
        ("1 req/s, 900 in, 150 out", 86_400, 900, 150),
        ("3 req/h, 900 in, 150 out", 72, 900, 150),
        ("365 req/month, 1 in, 1 out", 12, 1, 1),
    ],
)
def test_traffic_in_words(words: str, per_day: int, tokens_in: int, tokens_out: int) -> None:
    found = Traffic.parse(words)
    assert found.requests_per_day == pytest.approx(Decimal(per_day))
    assert (found.input_tokens, found.output_tokens) == (tokens_in, tokens_out)


@pytest.mark.parametrize(
    "words", ["", "20k", "20k req/day", "many req/day, 1 in, 1 out", "20k req/year, 1 in, 1 out"]
)
def test_traffic_that_is_not_understood(words: str) -> None:
    with pytest.raises(UsageError, match="is not understood"):
        Traffic.parse(words)


def trained(provider: str, usd: str = "10") -> Quote:
    amount = Decimal(usd)
    return Quote(provider=provider, model="m", low_usd=amount, expected_usd=amount, high_usd=amount)


def total(provider: str, model: str, **changes: Any) -> Ownership:
    values: dict[str, Any] = {
        "resolved": catalog.resolve(model, provider, TODAY),
        "profile": profile(provider),
        "prices": Prices(provider, on=TODAY),
    }
    training = changes.pop("training", trained(provider))
    use: dict[str, Any] = {
        key: changes.pop(key) for key in ("traffic", "months", "hours_per_day", "base") if key in changes
    }
    return own(training, Use(**({"traffic": TRAFFIC} | use)), **(values | changes))


def test_openai_serves_by_the_token() -> None:
    # gpt-4o-mini tuned: $0.30 in, $1.20 out. A request: 900 x 0.3 + 150 x 1.2 = 450 millionths of a dollar;
    # 20,000 a day are $9.00 a day, $273.75 a month of 365/12 days.
    found = total("openai", "gpt-4o-mini", months=1)
    assert found.monthly_usd == Decimal("273.75")
    assert found.expected_usd == Decimal("283.75")
    assert found.serves_until is None
    assert total("openai", "gpt-4o-mini", months=6).serves_until == date(2027, 1, 14)


def test_together_needs_a_gpu_all_day() -> None:
    # 9B in 16 bits is 21.6 GB with the cache: one H100, 24 h x 30.4167 days x $5.49 = $4,007.70.
    found = total("together", "qwen3.5-9b", months=2)
    assert found.monthly_usd == Decimal("4007.700000")
    assert found.expected_usd == 10 + 2 * Decimal("4007.70")
    assert "idle included" in (found.monthly[0].note or "")


def test_hours_a_day_are_what_is_billed() -> None:
    whole, third = total("fireworks", "qwen3.5-9b"), total("fireworks", "qwen3.5-9b", hours_per_day=8)
    assert third.monthly_usd * 3 == pytest.approx(whole.monthly_usd)
    assert any("scales to zero" in text for text in third.assumptions)


@pytest.mark.parametrize(
    ("params_b", "active_b", "replica"),
    [(8, 8, 1), (31, 31, 1), (34, 34, 2), (70.6, 70.6, 4), (235, 22, 8), (671, 37, 32)],
)
def test_gpus_for_the_weights(params_b: float, active_b: float, replica: int) -> None:
    idle = Traffic(requests_per_day=Decimal(1), input_tokens=1, output_tokens=1)
    assert gpus_needed(params_b, active_b, idle)[:2] == (replica, replica)


@given(a=st.integers(0, 10**7), b=st.integers(0, 10**7))
def test_more_traffic_never_needs_fewer_gpus(a: int, b: int) -> None:
    low, high = sorted((a, b))

    def gpus(requests: int) -> int:
        return gpus_needed(
            8, 8, Traffic(requests_per_day=Decimal(requests), input_tokens=900, output_tokens=150)
        )[1]

    assert gpus(low) <= gpus(high)


def base(usd_per_request: str) -> BasePrice:
    return BasePrice(
        model="base",
        provider="p",
        usd_per_request=Decimal(usd_per_request),
        input_tokens=900,
        source="a test",
    )


def test_break_even_by_the_token() -> None:
    # Tuned: $0.00045 a request. Base: $0.00145. Saved: $0.001 x 20,000 x 30.4167 = $608.33 a month; training
    # for $60.83 pays off after a tenth of a month, and over a month from 2,000 requests a day on.
    found = total(
        "openai", "gpt-4o-mini", months=1, training=trained("openai", "60.83333"), base=base("0.00145")
    )
    assert found.base_monthly_usd == pytest.approx(Decimal("882.083333"))
    assert found.break_even_months == Decimal("0.10")
    assert found.break_even_requests_per_day == 2000


def test_break_even_of_a_dedicated_gpu_is_a_volume() -> None:
    # One H100 on Together costs $4,007.70 a month at any traffic; training adds $10 in 1 month. At $0.002
    # a request that is 2,008,850 requests a month, 66,044 a day.
    found = total("together", "qwen3.5-9b", months=1, base=base("0.002"))
    assert found.break_even_months is None  # at 20,000 a day the base model is cheaper
    assert found.break_even_requests_per_day == round(
        (Decimal("4017.70") / Decimal("0.002")) / DAYS_PER_MONTH
    )


def test_never_cheaper_than_a_cheaper_base() -> None:
    found = total("openai", "gpt-4.1", months=1, base=base("0.0001"))
    assert found.break_even_months is None and found.break_even_requests_per_day is None


def test_base_price_with_the_examples_that_tuning_saves() -> None:
    plain = base_price("gpt-4.1", TRAFFIC)
    # $2 in and $8 out per million: 900 x 2 + 150 x 8 = 3,000 millionths.
    assert plain.usd_per_request == Decimal("0.003")
    shots = base_price("gpt-4.1", TRAFFIC, saved_tokens=1500)
    assert shots.usd_per_request - plain.usd_per_request == Decimal("0.003")
    assert shots.input_tokens == 2400
    with pytest.raises(UsageError, match="no price of 'no-such-model'"):
        base_price("no-such-model", TRAFFIC)


def test_own_machine() -> None:
    hourly = rental_rate("runpod", "A100 80GB PCIe", tier="community", today=TODAY)
    found = total("local", "qwen3-8b", hourly=hourly, months=1, hours_per_day=12)
    assert found.monthly_usd == Decimal("434.350000")  # 12 x 30.41667 x $1.19
    assert found.serving.startswith("this machine, 12 h a day")


def test_own_machine_must_carry_the_traffic() -> None:
    # 1M tokens in 1,000 s: 3,000 tokens a second forward. 20,000 requests a day at three times the mean need
    # 0.694 x (150 + 900 / 8) = 182 tokens a second; twenty times as many do not fit.
    training = Quote(provider="local", model="m", billed_tokens=1_000_000, train_seconds=1000.0)
    hourly = rental_rate("lambda", "A100 40GB", today=TODAY)
    fits = total("local", "qwen3-8b", hourly=hourly, training=training)
    assert fits.unavailable is None
    assert "3,000 tokens a second (from its training speed) for 182 at the peak" in fits.assumptions[0]
    busy = Traffic(requests_per_day=Decimal(400_000), input_tokens=900, output_tokens=150)
    over = total("local", "qwen3-8b", hourly=hourly, training=training, traffic=busy)
    assert "the traffic needs 3,646 at its peak" in (over.unavailable or "")


def test_a_rate_of_the_users_own_is_marked_where_it_serves() -> None:
    owned = built_in().over([parse_flag("local:owned=0.45", TODAY)])
    hourly = local_rate("local", "NVIDIA A100", book=owned, today=TODAY)
    [hosting] = total("local", "qwen3-8b", hourly=hourly, months=1).monthly
    assert hosting.own is not None and hosting.own == hourly.own


def test_reasons_for_no_total() -> None:
    unknown = Quote(provider="fireworks", model="m", unavailable="no price")
    assert total("fireworks", "qwen3-8b", training=unknown).unavailable == "no price"
    assert "size of glm-5.3 is not known" in (total("fireworks", "glm-5.3").unavailable or "")
    assert "no price of serving" in (total("local", "qwen3-8b", training=trained("local")).unavailable or "")


def test_cheapest_must_last_the_whole_period() -> None:
    short, long = total("openai", "gpt-4o-mini"), total("together", "qwen3.5-9b")
    assert short.expected_usd < long.expected_usd
    assert cheapest([short, long]) is long
    assert cheapest([short]) is None


def test_serving_terms() -> None:
    assert serving_terms("openai", "gpt-4o-mini", today=TODAY) == "$0.30 in, $1.20 out per million tokens"
    assert serving_terms("fireworks", "llama-3.3-70b", today=TODAY) == "$32.00 per hour: 4 dedicated H100"
    assert serving_terms("together", "no such model", today=TODAY) is None
