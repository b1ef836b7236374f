"""Machines that are paid by the hour."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from orchestrate import catalog, costing
from orchestrate.costing import (
    PlannedJob,
    Speed,
    built_in,
    local_rate,
    parse_flag,
    quote_hours_job,
    rental_rate,
    watts,
)
from orchestrate.data import TrainingData
from orchestrate.errors import UsageError
from orchestrate.profile import profile
from orchestrate.spec import JobSpec
from orchestrate.types import Job, JobHandle, JobStatus, Quote, Translation

TODAY = date(2026, 11, 25)


def test_electricity_of_a_gpu() -> None:
    # RTX 4090: 450 W and 150 W for the rest of the machine; 0.6 kWh x $0.17 are 10.2 cents an hour.
    assert watts("NVIDIA GeForce RTX 4090") == 600
    rate = local_rate("local", "NVIDIA GeForce RTX 4090", today=TODAY)
    assert (rate.component, rate.usd_per_hour) == ("electricity", Decimal("0.102"))
    assert rate.low_usd_per_hour < rate.usd_per_hour < rate.high_usd_per_hour
    assert "The cost of the hardware is not included" in rate.label


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("local:electricity=0.30", "the price of electricity comes from"),
        ("local:owned=0.45", "the price of the machine's hour comes from"),
        ("local:gpu_rental=2", "the price of the rented hour comes from"),
    ],
)
def test_a_price_by_the_hour_that_is_the_users_own_says_so(
    flag: str, words: str, timed: Callable[..., Quote]
) -> None:
    book = built_in().over([parse_flag(flag, TODAY)])
    quote = timed(10.0, hourly=local_rate("local", "cpu", book=book, today=TODAY))
    assert [entry.own for entry in quote.lines] == [f"--rate {flag}"]
    assert any(words in warning and f"--rate {flag}" in warning for warning in quote.warnings)
    assert costing.quoted_hour(quote).own == f"--rate {flag}"  # type: ignore[union-attr]
    published = timed(10.0, hourly=local_rate("local", "cpu", today=TODAY))
    assert published.lines[0].own is None and not any("own" in warning for warning in published.warnings)


@pytest.mark.parametrize(
    ("device", "count", "expected"),
    [
        ("cpu", 1, 150),
        ("NVIDIA H100 80GB HBM3", 8, 5750),
        ("NVIDIA H100 PCIe", 1, 500),
        ("Some New GPU", 1, 600),
    ],
)
def test_watts(device: str, count: int, expected: int) -> None:
    assert watts(device, count) == expected


def test_the_users_own_rate_goes_first() -> None:
    owned = built_in().over([parse_flag("local:owned=0.45", TODAY)])
    assert local_rate("local", "NVIDIA A100", 4, book=owned, today=TODAY).usd_per_hour == Decimal("0.45")
    rented = built_in().over([parse_flag("local:gpu_rental=1.25", TODAY)])
    found = local_rate("local", "NVIDIA A100", 4, book=rented, today=TODAY)
    assert (found.component, found.usd_per_hour) == ("rental", Decimal(5))


@pytest.mark.parametrize(
    ("flag", "device", "component", "usd"),
    [
        ("local:gpu_rental@H100=2.49", "NVIDIA H100 80GB HBM3", "rental", "4.98"),
        ("local:owned@A100=1.10", "NVIDIA A100-SXM4-80GB", "owned", "1.10"),
        ("local:owned@rtx 4090=0.5", "NVIDIA GeForce RTX 4090", "owned", "0.5"),
        ("local:gpu_rental@H100=2.49", "NVIDIA A100-SXM4-80GB", "electricity", None),
    ],
)
def test_a_rate_of_ones_own_finds_the_device_as_people_name_it(
    flag: str, device: str, component: str, usd: str | None
) -> None:
    book = built_in().over([parse_flag(flag, TODAY)])
    found = local_rate("local", device, 2, book=book, today=TODAY)
    assert found.component == component
    assert usd is None or found.usd_per_hour == Decimal(usd)


def test_rental() -> None:
    assert rental_rate("runpod", "H100 SXM", 2, tier="secure", today=TODAY).usd_per_hour == Decimal("7.98")
    with pytest.raises(UsageError, match=r"no rental price for RTX 4090 at runpod; it has A100 80GB"):
        rental_rate("runpod", "RTX 4090", today=TODAY)


@pytest.fixture
def timed(data: TrainingData, translated: Callable[..., Translation]) -> Callable[..., Quote]:
    def make(speed: float, **changes: Any) -> Quote:
        resolved = catalog.resolve("qwen3-8b", "local", TODAY)
        work = PlannedJob(
            "local",
            profile("local"),
            JobSpec.parse({"model": "qwen3-8b", "train": "t"}),
            changes.pop("data", data),
            translated("local", resolved.id, epochs=2, evals=3),
            resolved,
        )
        values: dict[str, Any] = {
            "speed": Speed(tokens_per_second=speed, source="measured", band=changes.pop("band", 0.5)),
            "hourly": rental_rate("runpod", "H100 SXM", tier="secure", today=TODAY),
            "startup_seconds": 0.0,
        }
        return quote_hours_job(work, **(values | changes))

    return make


def test_hours_times_rate(timed: Callable[..., Quote], data: TrainingData) -> None:
    train = data.train.tokens("qwen3~o200k").tokens
    validation = data.validation.tokens("qwen3~o200k").tokens if data.validation else 0
    seconds = (train * 2 + validation * 3 / 3) / 10  # an evaluated token takes a third of a trained one
    found = timed(10.0)
    assert found.train_seconds == pytest.approx(seconds)
    assert float(found.expected_usd) == pytest.approx(seconds / 3600 * 3.99, rel=1e-4)
    assert found.low_usd < found.expected_usd < found.high_usd
    assert any("10 tokens per second (measured" in text for text in found.assumptions)


def test_faster_is_cheaper_and_surer_is_narrower(timed: Callable[..., Quote]) -> None:
    slow, fast = timed(10.0), timed(20.0)
    assert fast.expected_usd < slow.expected_usd
    sure = timed(10.0, band=0.1)
    assert sure.high_usd - sure.low_usd < slow.high_usd - slow.low_usd
    with pytest.raises(ValueError, match="must be positive"):
        timed(0.0)


@pytest.mark.parametrize(
    ("ran", "worked", "usd"),
    [
        (timedelta(minutes=90), None, "6.435"),  # 1.5 x $4.29
        (timedelta(minutes=90), 3600.0, "4.29"),  # paused for half an hour
        (timedelta(days=-1), 3600.0, "4.29"),  # the clock was set back
        (timedelta(days=-1), None, "0"),
    ],
)
def test_bill_by_measured_hours(ran: timedelta, worked: float | None, usd: str) -> None:
    start = datetime(2026, 11, 20, tzinfo=UTC)
    job = Job(
        worked_seconds=worked,
        handle=JobHandle(provider="local", job_id="j"),
        status=JobStatus.SUCCEEDED,
        raw_status="succeeded",
        started_at=start,
        finished_at=start + ran,
    )
    found = costing.bill(
        job,
        profile=profile("local"),
        spec=JobSpec.parse({"model": "qwen3-8b", "train": "t"}),
        resolved=catalog.resolve("qwen3-8b", "local", TODAY),
        hourly=rental_rate("lambda", "H100 SXM", tier="1x", today=TODAY),
    )
    assert found is not None
    assert (found.usd, found.origin) == (Decimal(usd), "measured hours times the rate")
