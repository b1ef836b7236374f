"""Months of serving, against prompting a base model."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.costing import (
    BasePrice,
    Ownership,
    Prices,
    ServingUse,
    Traffic,
    base_price,
    built_in,
    cheapest,
    default_base,
    local_rate,
    own,
    parse_flag,
    rental_rate,
    serving_terms,
)
from orchestrate.costing.ways import DAYS_PER_MONTH, replica, requests_per_day
from orchestrate.errors import UsageError
from orchestrate.profile import profile
from orchestrate.reports.quotes import ownership_verdict
from orchestrate.types import Confidence, Quote

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
    with pytest.raises(UsageError, match="is not valid"):
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
        key: changes.pop(key)
        for key in ("traffic", "months", "hours_per_day", "utilisation", "base")
        if key in changes
    }
    use = {"traffic": TRAFFIC, **use}
    return own(training, ServingUse(**use), **(values | changes))


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
    assert any("scales deployments to zero" in text for text in third.assumptions)


def model(params_b: float, active_b: float | None = None, precision: str = "bf16") -> catalog.ModelOnHost:
    made = catalog.Model(
        name="m",
        params_b=params_b,
        active_params_b=active_b,
        precision=precision,  # pyright: ignore[reportArgumentType]
    )
    return catalog.ModelOnHost(provider="together", id="m", model=made)


@pytest.mark.parametrize(
    ("params_b", "active_b", "gpus"),
    [(8, 8, 1), (31, 31, 1), (34, 34, 2), (70.6, 70.6, 4), (235, 22, 8), (671, 37, 32)],
)
def test_gpus_for_the_weights(params_b: float, active_b: float, gpus: int) -> None:
    found = replica(model(params_b, active_b), "H100")
    assert found is not None and found.gpus == gpus


@pytest.mark.parametrize(
    ("params_b", "precision", "gpu", "gpus"),
    [
        (34, "fp8", "H100", 1),  # 34 x 1 x 1.2 = 40.8 GB of 80
        (671, "fp8", "H100", 16),  # 805 GB: 10.1 of them
        (116.8, "mxfp4", "H100", 1),  # 116.8 x 0.56 x 1.2 = 78.5 GB
        (116.8, "bf16", "H100", 4),  # 280 GB: 3.5
        (20.9, "mxfp4", "T4", 1),  # 14.0 GB of 16
        (70.6, "bf16", "H200", 2),  # 169 GB of 141
        (70.6, "bf16", "B200", 1),  # of 180
        (9, "bf16", "L4", 1),  # 21.6 GB of 24
        (27, "bf16", "A100-80GB", 1),
        (27, "bf16", "A100 40GB", 2),  # 64.8 GB
    ],
)
def test_gpus_by_memory_and_precision(params_b: float, precision: str, gpu: str, gpus: int) -> None:
    found = replica(model(params_b, precision=precision), gpu)
    assert found is not None and found.gpus == gpus


MEASURED = [
    # Output tokens per second, 1,000 in and 1,000 out, 8-bit weights, of NVIDIA's TensorRT-LLM performance
    # overview: parameters, active ones, GPU, how many, measured. In 4 bits on the B200.
    (8.0, None, "H100", 1, 15_220),
    (8.0, None, "H200", 1, 17_744),
    (70.6, None, "H100", 2, 4_205),
    (70.6, None, "H200", 1, 2_909),
    (109.0, 17.0, "H100", 4, 12_129),
    (235.0, 22.0, "H100", 8, 14_898),
    (235.0, 22.0, "H200", 8, 23_789),
    (400.0, 17.0, "H100", 8, 9_677),
    (405.0, None, "H100", 8, 2_919),
    (405.0, None, "H200", 8, 3_330),
    (30.5, 3.3, "B200", 1, 25_828),
]


@pytest.mark.parametrize(("params_b", "active_b", "gpu", "gpus", "measured"), MEASURED)
def test_the_high_end_of_the_speed_against_measurements(
    params_b: float, active_b: float | None, gpu: str, gpus: int, measured: int
) -> None:
    """The model's high end is for the highest load; it lies within 40% of what was measured there, and the
    low end, for service, far below."""
    found = replica(model(params_b, active_b, "fp8"), gpu)
    assert found is not None
    low, expected, high = (speed * gpus / found.gpus for speed in found.tokens_per_second)
    # as many tokens in as out, read three times as fast: three quarters of the time is for the output
    assert high * 0.75 == pytest.approx(measured, rel=0.4)
    assert low < expected < measured


def test_the_expected_speed_against_a_measurement_of_vllm() -> None:
    # GPUStack: Qwen3-32B, 16 bits, one H100, vLLM as it comes, ShareGPT: 2,352.82 tokens a second, in and
    # out, about as many of each.
    found = replica(model(32.8), "H100")
    assert found is not None and found.gpus == 1
    assert found.tokens_per_second[1] * 0.75 * 2 == pytest.approx(2352.82, rel=0.1)


@given(a=st.integers(0, 10**7), b=st.integers(0, 10**7))
def test_more_traffic_never_costs_less(a: int, b: int) -> None:
    low, high = sorted((a, b))

    def month(requests: int) -> Decimal:
        traffic = Traffic(requests_per_day=Decimal(requests), input_tokens=900, output_tokens=150)
        return total("together", "qwen3.5-9b", traffic=traffic).monthly_usd

    assert month(low) <= month(high)


def test_what_a_replica_carries() -> None:
    # 150 out and 900 in at a third are 450 tokens; at 4,500 a second 0.1 s a request. The busiest hour has an
    # eighth of a day's requests: 36,000 in it, 288,000 a day. Up for 4 hours a quarter comes in it; at half
    # of the GPU's time for the mean a twelfth does.
    assert requests_per_day(TRAFFIC, 4500, 24) == 288_000
    assert requests_per_day(TRAFFIC, 4500, 8) == 288_000
    assert requests_per_day(TRAFFIC, 4500, 4) == 144_000
    assert requests_per_day(TRAFFIC, 4500, 24, Decimal("0.5")) == 432_000


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
    # One carries 355,555 a day, so it is enough there; what saves is the first whole request from there on.
    assert found.break_even_requests_per_day == 66_045


def test_a_replica_that_costs_more_than_it_saves_never_pays() -> None:
    # 355,555 requests a day of $0.0003 are $3,244 a month, and the GPU costs $4,007.70. At $0.0004 they are
    # $4,326, $318 more: n full ones and a request more pay for n + 1 from n = 4,017.69 / 318 = 12.6, so 13:
    # ($10 + 13 x $4,007.70) / ($0.0004 x 30.4167) = 4,283,021.9 requests.
    never = total("together", "qwen3.5-9b", months=1, base=base("0.0003"))
    assert never.break_even_requests_per_day is None
    found = total("together", "qwen3.5-9b", months=1, base=base("0.0004"))
    assert found.break_even_requests_per_day == 4_283_022


@pytest.mark.parametrize(
    ("provider", "model", "usd"),
    [
        ("together", "qwen3.5-9b", "0.0006"),
        ("fireworks", "qwen3.5-9b", "0.002"),
        ("fireworks", "llama-3.3-70b", "0.006"),
        ("together", "gpt-oss-120b", "0.0015"),
        ("openai", "gpt-4o-mini", "0.0012"),
    ],
)
def test_break_even_holds_where_it_is_asked_again(provider: str, model: str, usd: str) -> None:
    """At the answer itself, and at each traffic above, the total asked there is not dearer; just below it is.
    So for every place to serve."""

    def at(requests: Decimal) -> dict[str, Ownership]:
        traffic = Traffic(requests_per_day=requests, input_tokens=900, output_tokens=150)
        found = total(provider, model, traffic=traffic, months=1, base=base(usd), portable=True)
        return {way.server: way for way in found.options if way.unavailable is None}

    checked = 0
    for server, way in at(Decimal(20_000)).items():
        since = way.break_even_requests_per_day
        for more in (20_000, 10**6, 10**8) if since is None else (since, since + 1, since * 2, since * 17):
            again = at(Decimal(more))[server]
            assert again.base_usd is not None
            pays = again.expected_usd <= again.base_usd + Decimal("0.001")  # both rounded to a millionth
            assert pays or since is None, (server, more)
            assert again.break_even_requests_per_day == since, (server, more)
        if since is not None and since > 1:
            below = at(since - 1)[server]
            assert below.base_usd is not None and below.expected_usd > below.base_usd - Decimal("0.001")
            checked += 1
    assert checked


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
    with pytest.raises(UsageError, match="no price for 'no-such-model'"):
        base_price("no-such-model", TRAFFIC)


def test_own_machine() -> None:
    hourly = rental_rate("runpod", "A100 80GB PCIe", tier="community", today=TODAY)
    found = total("local", "qwen3-8b", hourly=hourly, months=1, hours_per_day=12)
    assert found.monthly_usd == Decimal("434.350000")  # 12 x 30.41667 x $1.19
    assert found.serving.startswith("this machine, 12 h a day")


def test_own_machine_must_carry_the_traffic() -> None:
    # 1M tokens in 1,000 s: 3,000 tokens a second forward. 20,000 requests a day at three times the mean need
    # 0.694 x (150 + 900 / 3) = 312.5 tokens a second; twenty times as many do not fit.
    training = Quote(
        provider="local", model="m", expected_usd=Decimal(0), billed_tokens=1_000_000, train_seconds=1000.0
    )
    hourly = rental_rate("lambda", "A100 40GB", today=TODAY)
    fits = total("local", "qwen3-8b", hourly=hourly, training=training)
    assert fits.unavailable is None
    assert (
        "3,000 tokens per second (estimated from its training speed), and peak traffic requires 312"
        in fits.assumptions[0]
    )
    busy = Traffic(requests_per_day=Decimal(400_000), input_tokens=900, output_tokens=150)
    over = total("local", "qwen3-8b", hourly=hourly, training=training, traffic=busy)
    assert "peak traffic requires 6,250" in (over.unavailable or "")


def test_a_rate_of_the_users_own_is_marked_where_it_serves() -> None:
    owned = built_in().over([parse_flag("local:owned=0.45", TODAY)])
    hourly = local_rate("local", "NVIDIA A100", book=owned, today=TODAY)
    [hosting] = total("local", "qwen3-8b", hourly=hourly, months=1).monthly
    assert hosting.own is not None and hosting.own == hourly.own


def test_reasons_for_no_total() -> None:
    unknown = Quote(provider="fireworks", model="m", unavailable="no price")
    assert total("fireworks", "qwen3-8b", training=unknown).unavailable == "no price"
    assert "size of glm-5.3 is unknown" in (total("fireworks", "glm-5.3").unavailable or "")
    assert "no known price for serving a tuned" in (
        total("local", "qwen3-8b", training=trained("local")).unavailable or ""
    )


def test_cheapest_must_last_the_whole_period() -> None:
    short, long = total("openai", "gpt-4o-mini"), total("together", "qwen3.5-9b")
    assert short.expected_usd < long.expected_usd
    assert cheapest([short, long]) is long
    assert cheapest([short]) is None


def test_serving_terms() -> None:
    assert serving_terms("openai", "gpt-4o-mini", today=TODAY) == "$0.30 in, $1.20 out per million tokens"
    # 169 GB in 16 bits: four H100 for $32, two H200 for $16, one B200 for $13
    assert serving_terms("fireworks", "llama-3.3-70b", today=TODAY) == "$13.00 per hour: 1 dedicated B200"
    assert serving_terms("together", "no such model", today=TODAY) is None


# -- models that end -----------------------------------------------------------------------------------------


def test_a_tuned_model_costs_nothing_after_its_end() -> None:
    # From 2026-11-25 to 2027-01-14 are 50 days, 1.6438 months; $273.75 a month are $450.00, and $10 more.
    found = total("openai", "gpt-4o-mini", months=6, base=base("0.00145"))
    assert found.serves_until == date(2027, 1, 14)
    assert found.months_served == Decimal("1.64")
    assert found.expected_usd == Decimal("460.00")
    assert found.base_usd == Decimal("1450.00")  # of the same 50 days: $0.00145 x 20,000 x 50
    assert any("covers only 1.6 of 6 months" in text for text in found.assumptions)
    over = total("openai", "gpt-4o-mini", months=6, base=base("0.00145"), training=trained("openai", "2000"))
    assert over.break_even_months is None  # $608.33 a month would take 3.3


def test_a_base_model_that_ends_is_followed_by_its_named_successor() -> None:
    found = base_price("gpt-4.1", TRAFFIC)
    assert found.until == date(2027, 1, 14)
    assert found.successor is not None and found.successor.model == "GPT-6 Luna"
    # $0.10 in and $0.50 out per million: 900 x 0.1 + 150 x 0.5 = 165 millionths.
    assert found.successor.usd_per_request == Decimal("0.000165")
    # Of 182 days 50 at $0.003 and 132 at $0.000165.
    mean = (50 * Decimal("0.003") + 132 * Decimal("0.000165")) / 182
    assert found.mean_usd(TODAY, 182) == pytest.approx(mean)
    assert found.mean_usd(TODAY, 30) == Decimal("0.003")
    told = total("together", "qwen3.5-9b", base=found)
    assert told.base_usd == pytest.approx(mean * 20_000 * DAYS_PER_MONTH * 6)
    assert told.base_words == "gpt 4.1 until its shutdown on 2027-01-14, then GPT-6 Luna"
    assert any(
        "the price of GPT-6 Luna, the successor that its host named" in text for text in told.assumptions
    )


def test_the_default_comparison_lives_through_the_period() -> None:
    assert default_base(TRAFFIC, 1, TODAY).model == "gpt 4.1"
    assert default_base(TRAFFIC, 6, TODAY).model == "GPT-6 Luna"
    assert default_base(TRAFFIC, 1, date(2027, 2, 1)).model == "GPT-6 Luna"
    assert default_base(TRAFFIC, 6, TODAY, saved_tokens=100).input_tokens == 1000


def test_a_successor_that_thinks_says_so() -> None:
    found = total("together", "qwen3.5-9b", base=default_base(TRAFFIC, 6, TODAY))
    assert any("GPT-6 Luna" in text and "bills reasoning as output" in text for text in found.assumptions)


def test_an_undecided_training_gives_a_total_from_its_low_to_its_high_end() -> None:
    # $4 to $60 of training, and $4,007.70 for one H100 in each of two months.
    wide = {"low_usd": Decimal(4), "expected_usd": None, "high_usd": Decimal(60), "undecided": "by model"}
    known = total("together", "qwen3.5-9b", months=2)
    found = total("together", "qwen3.5-9b", months=2, training=replace(trained("together"), **wide))
    assert found.expected_usd is None
    assert (found.paid.least_usd, found.paid.counted_usd) == (Decimal("8019.40"), Decimal("8075.40"))
    assert (known.paid.least_usd, known.paid.counted_usd) == (known.expected_usd, known.expected_usd)
    assert any("training cost ($60.00), because by model" in text for text in found.assumptions)
    assert cheapest([found, known]) is not None and cheapest([found, known]).place == known.place
    assert "together would cost $8,025.40, t2 $8,019.40 to $8,075.40" in (
        ownership_verdict([known, replace(found, provider="t2")])
    )


def test_no_traffic_has_the_same_break_even() -> None:
    # What saves is a matter of one request: $10 in a month at $0.001 saved each, also where none is asked.
    idle = Traffic(requests_per_day=Decimal(0), input_tokens=900, output_tokens=150)
    found = total("openai", "gpt-4o-mini", months=1, base=base("0.00145"), traffic=idle)
    assert found.break_even_requests_per_day == 329  # 10 / 0.001 / 30.4167 = 328.8


def test_open_weights_do_not_end_with_a_host() -> None:
    assert base_price("gpt-oss-120b", TRAFFIC).until is None


# -- elsewhere -----------------------------------------------------------------------------------------------


def test_every_rental_is_an_option_of_what_can_be_taken_away() -> None:
    found = total("together", "qwen3.5-9b", portable=True)
    servers = {way.server for way in found.elsewhere}
    assert {"runpod", "vast", "lambda", "huggingface", "nebius", "coreweave"} <= servers
    assert total("openai", "gpt-4o-mini").elsewhere == ()
    runpod = next(way for way in found.elsewhere if way.server == "runpod")
    # One A100 80GB PCIe of the community at $1.19: 730 hours a month.
    assert runpod.monthly_usd == Decimal("868.70")
    assert "vLLM" in " ".join(runpod.assumptions)
    # 2% of an H100's time are 3.4% of a card with 1.935 / 3.35 of its bandwidth.
    assert runpod.utilisation == pytest.approx(20_000 * 450 / (50_000 / 9 * 1.935 / 3.35) / 86_400)


def test_serving_at_an_old_price_says_so() -> None:
    found = total("together", "qwen3.5-9b", portable=True)
    old = {
        way.server: rate
        for way in found.elsewhere
        for rate in built_in()
        if (rate.provider, rate.confidence) == (way.server, Confidence.OLD) and rate.doubt in way.assumptions
    }
    assert set(old) == {"coreweave", "nebius"}, "of the others a newer price is known"
    assert all(str(rate.last_checked) in str(rate.doubt) for rate in old.values())


def test_machines_are_rented_whole() -> None:
    # Lambda rents eight A100 80GB or one H100 PCIe; 70.6B in 16 bits need 169 GB, so four: $2.79 x 8 x 730.
    found = total("fireworks", "llama-3.3-70b", portable=True)
    way = next(way for way in found.elsewhere if way.server == "lambda")
    assert way.monthly_usd == Decimal("16293.60")
    assert way.serving.startswith("8 rented A100 80GB at $2.79")


def test_a_band_of_the_speed_is_a_band_of_the_gpus() -> None:
    # An A100 40GB carries 165,000 of these a day at the expected speed, 82,500 at half, 528,000 at most.
    busy = Traffic(requests_per_day=Decimal(160_000), input_tokens=900, output_tokens=150)
    found = total("together", "qwen3.5-9b", traffic=busy, months=1, portable=True)
    way = next(way for way in found.elsewhere if way.server == "lambda")
    one = Decimal("1.99") * 730
    assert (way.low_usd, way.expected_usd, way.high_usd) == (10 + one, 10 + one, 10 + 2 * one)


def test_adapters_by_the_token() -> None:
    found = total("fireworks", "qwen3-14b", portable=True, months=1)
    by_name = {way.server: way for way in found.elsewhere}
    # $0.05 in and $0.22 out: 900 x 0.05 + 150 x 0.22 = 78 millionths, 608,333 requests a month.
    assert by_name["W&B Inference"].monthly_usd == pytest.approx(Decimal("47.45"))
    assert by_name["W&B Inference"].low_usd < by_name["W&B Inference"].expected_usd  # an inferred price
    assert "only adapters that were trained there" in (by_name["Alibaba Model Studio"].unavailable or "")
    nebius = {w.server: w for w in total("together", "llama-3.1-8b", portable=True, months=1).elsewhere}
    # What it asks for a tune of its own, too: 900 x 0.03 + 150 x 0.09 = 40.5 millionths.
    assert nebius["Nebius Token Factory"].monthly_usd == pytest.approx(Decimal("24.64"), abs=Decimal("0.01"))
    flash = {w.server: w for w in total("fireworks", "glm-5.3-flash", portable=True).elsewhere}
    assert flash["fireworks, shared adapters"].serving.startswith("per token, $0.15 in and $0.50 out")


def test_the_cheapest_may_be_served_elsewhere() -> None:
    found = total("fireworks", "qwen3-14b", portable=True)
    best = cheapest([found])
    assert best is not None and best.server == "W&B Inference"
    assert best.place == "fireworks, served at W&B Inference"
    assert best.training is found.training


def test_dearer_by_the_token_than_the_hosts_own_serverless_base_says_why() -> None:
    # $4,007.70 for 608,333 requests of 1,050 tokens, 638.75M: $6.28 a million. Serverless $0.17 in and $0.25
    # out: 900 x 0.17 + 150 x 0.25 = 190.5 millionths a request, $0.182 a million.
    found = total("together", "qwen3.5-9b")
    told = next(text for text in found.assumptions if "serverless price of the base model" in text)
    assert (
        "these GPUs cost $6.28 per million tokens" in told
        and "is $0.182." in told
        and "Serverless GPUs are shared among many users and cannot serve this tuned model" in told
    )
    busy = Traffic(requests_per_day=Decimal(340_000), input_tokens=900, output_tokens=150)
    full = total("together", "gpt-oss-20b", traffic=busy, portable=True)
    assert not any("serverless price of the base model" in text for text in full.assumptions)


def test_a_gpu_is_chosen_for_the_load() -> None:
    def kind(requests: int, model: str = "llama-3.3-70b") -> str:
        traffic = Traffic(requests_per_day=Decimal(requests), input_tokens=900, output_tokens=150)
        return total("fireworks", model, traffic=traffic).serving

    assert kind(1000).startswith("1 dedicated B200")  # $13 holds the weights
    assert kind(1000, "qwen3.5-9b").startswith("1 dedicated H100")  # $8, as the H200
    # 350,000 a day and more: an H100 carries 355,555, an H200 for the same money 509,452.
    assert kind(400_000, "qwen3.5-9b").startswith("1 dedicated H200")


def test_hours_and_utilisation() -> None:
    assert "hours per day must be above 0" in (
        total("together", "qwen3.5-9b", hours_per_day=0.0).unavailable or ""
    )
    busy = Traffic(requests_per_day=Decimal(400_000), input_tokens=900, output_tokens=150)
    two = total("together", "qwen3.5-9b", traffic=busy)
    one = total("together", "qwen3.5-9b", traffic=busy, utilisation=Decimal("0.5"))
    assert (two.serving[0], one.serving[0]) == ("2", "1")
    assert one.utilisation == pytest.approx(2 * (two.utilisation or 0))


def test_a_host_of_adapters_that_trains_here_too_has_its_own_price() -> None:
    found = total("together", "llama-3.1-8b", portable=True)
    [nebius] = [way for way in found.elsewhere if way.server.startswith("Nebius")]
    assert nebius.unavailable is None and nebius.monthly_usd == Decimal("24.637500")  # $0.03 in, $0.09 out
