"""Totals again by a little script of its own: plain floats, the YAML of the rates read as it is, and the
sizing written down anew."""

from __future__ import annotations

import math
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.paths import ROOT

from orchestrate import catalog
from orchestrate.costing import BasePrice, Ownership, Prices, ServingUse, Traffic, own
from orchestrate.profile import profile
from orchestrate.types import Quote

TODAY = date(2026, 11, 25)
RATES = ROOT / "src/orchestrate/costing/rates"
MONTH_HOURS = 730.0
"""Of a mean month: 365 x 24 / 12."""
GPUS = {  # GB, TB/s
    "T4": (16, 0.32), "L4": (24, 0.3), "A10G-large": (24, 0.6), "L40S": (48, 0.864), "A100 40GB": (40, 1.555),
    "A100 80GB": (80, 2.039), "A100 80GB SXM": (80, 2.039), "A100 80GB PCIe": (80, 1.935),
    "RTX PRO 6000": (96, 1.792), "H100 PCIe": (80, 2.0), "H100 NVL": (94, 3.9), "H100": (80, 3.35),
    "H100 SXM": (80, 3.35), "H200": (141, 4.8), "B200": (180, 8.0), "B300": (288, 8.0),
    "GB200": (192, 8.0), "GB300": (288, 8.0),
}  # fmt: skip
WIDTH = {"bf16": 2.0, "fp8": 1.0, "mxfp4": 0.56}


def in_force(name: str, method: str) -> list[dict[str, Any]]:
    """The rates of a file, the newest of each kind, the quoted ones where there are any."""
    newest: dict[tuple[Any, Any], dict[str, Any]] = {}
    for rate in yaml.safe_load((RATES / f"{name}.yaml").read_text())["rates"]:
        methods = rate["method"] if isinstance(rate["method"], list) else [rate["method"]]
        if method in methods and rate["start"] <= TODAY:
            key = rate["gpu"], rate.get("tier")
            if key not in newest or rate["start"] >= newest[key]["start"]:
                newest[key] = rate
    quoted = [rate for rate in newest.values() if rate["confidence"] == "quoted"]
    return quoted or list(newest.values())


def month_on_gpus(
    name: str, method: str, model: catalog.Model, asked: tuple[float, int, int], hours: float
) -> float:
    """The cheapest kind that a name has, for requests a day, tokens in and tokens out."""
    requests, tokens_in, tokens_out = asked
    params, active = float(model.params_b or 0), float(model.active_params_b or model.params_b or 0)
    prices: list[float] = []
    for rate in in_force(name, method):
        memory, bandwidth = GPUS[rate["gpu"]]
        gpus = 1
        while gpus * memory < params * WIDTH[model.precision] * 1.2:
            gpus *= 2
        machine = int(str(rate.get("tier"))[:-1]) if str(rate.get("tier"))[:-1].isdigit() else 1
        if rate.get("tier") and machine == 1 and str(rate["tier"]) == "1x" and gpus > 1:
            continue
        bought = max(gpus, math.ceil(gpus / machine) * machine)
        speed = gpus * 50_000 * bandwidth / 3.35 / max(1.0, math.sqrt(params * active))
        seconds = (tokens_out + tokens_in / 3) / speed
        carried = math.floor(3600 / (seconds * max(1 / 8, 1 / hours))) * (bought // gpus)
        units = max(1, math.ceil(requests / carried))
        prices.append(units * bought * float(rate["usd_per_gpu_hour"]) * MONTH_HOURS * hours / 24)
    return min(prices)


CASES = [
    # host, model, requests a day, tokens in, tokens out, months, hours a day
    ("together", "qwen3.5-9b", 20_000, 900, 150, 6, 24.0),
    ("fireworks", "llama-3.3-70b", 300_000, 900, 150, 12, 24.0),
    ("together", "gpt-oss-120b", 150_000, 2000, 500, 3, 24.0),
    ("fireworks", "qwen3-32b", 1000, 300, 800, 6, 8.0),
    ("fireworks", "qwen3-235b-a22b-instruct", 90_000, 4000, 60, 1, 12.0),
    ("fireworks", "gemma-4-26b-a4b", 2_000_000, 200, 20, 2, 4.0),
    ("fireworks", "kimi-k2.6", 50_000, 900, 150, 6, 24.0),
]


def totals(case: tuple[str, str, int, int, int, int, float], base: str) -> Ownership:
    host, name, requests, tokens_in, tokens_out, months, hours = case
    traffic = Traffic(requests_per_day=Decimal(requests), input_tokens=tokens_in, output_tokens=tokens_out)
    price = BasePrice(model="b", provider="p", usd_per_request=Decimal(base), input_tokens=1, source="a test")
    ten = Decimal(10)
    return own(
        Quote(provider=host, model=name, low_usd=ten, expected_usd=ten, high_usd=ten),
        ServingUse(traffic=traffic, months=months, hours_per_day=hours, base=price),
        resolved=catalog.resolve(name, host, TODAY),
        profile=profile(host),
        prices=Prices(host, on=TODAY),
        portable=True,
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_months_and_totals_on_gpus(case: tuple[str, str, int, int, int, int, float]) -> None:
    host, name, requests, tokens_in, tokens_out, months, hours = case
    found = totals(case, "0.004")
    model, asked = catalog.find(name), (requests, tokens_in, tokens_out)
    places = {host: ("deployment", found)} | {
        way.server: ("gpu_rental", way)
        for way in found.options[1:]
        if way.unavailable is None and Path(RATES / f"{way.server}.yaml").exists()
    }
    assert len(places) >= 4
    for place, (method, way) in places.items():
        month = month_on_gpus(place, method, model, asked, hours)
        assert float(way.monthly_usd) == pytest.approx(month, rel=1e-6), place
        assert float(way.expected_usd) == pytest.approx(10 + months * month, rel=1e-6), place
        assert float(way.base_usd or 0) == pytest.approx(0.004 * requests * 365 / 12 * months, rel=1e-6)
        saved = 0.004 * requests * 365 / 12 - month
        after = 10 / saved if saved > 0 else None
        if after is None or after > months:
            assert way.break_even_months is None, place
        else:
            assert float(way.break_even_months or 0) == pytest.approx(after, abs=0.005), place


def test_a_total_by_the_token() -> None:
    # gpt-4.1 tuned: $3 in and $12 out; 50,000 requests of 1,200 and 80 a day until 2027-01-14, in 50 days.
    found = totals(("openai", "gpt-4.1", 50_000, 1200, 80, 6, 24.0), "0.01")
    a_day = 50_000 * (1200 * 3 + 80 * 12) / 1e6
    assert float(found.expected_usd) == pytest.approx(10 + 50 * a_day)
    assert float(found.base_usd or 0) == pytest.approx(50 * 50_000 * 0.01)
    # what a request saves pays the training back at 10 / (50 x 0.00544) requests a day
    assert found.break_even_requests_per_day == math.ceil(10 / (50 * (0.01 - a_day / 50_000)))
