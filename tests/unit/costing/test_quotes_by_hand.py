"""Quotes against figures worked out by hand: every billing rule, every band of sizes and both of its edges.

Each row has what is asked, the arithmetic written out (tokens in millions x US dollars per million), and the
source of the price in the comment above its group. Nothing here is read from the rates.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal as D
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.costing import (
    HourlyRate,
    PlannedJob,
    PricedJob,
    Prices,
    Speed,
    built_in,
    local_rate,
    parse_flag,
    quote_hours_job,
)
from orchestrate.costing.lines import line
from orchestrate.costing.rate import Rate
from orchestrate.costing.size import JobSize, Lines
from orchestrate.costing.training import quote_sized_job
from orchestrate.data import TrainingData
from orchestrate.profile import profile
from orchestrate.spec import JobSpec
from orchestrate.types import Outcome, Quote, Setting, Translation

TODAY = date(2026, 11, 25)
M = 1_000_000


def size(tokens: float, epochs: int, **changes: Any) -> JobSize:
    """`tokens` of one pass, in millions, in rows of 1,000 tokens; counted exactly unless told otherwise."""
    train = int(tokens * M)
    values: dict[str, Any] = {
        "rows": max(1, train // 1000),
        "longest": 1000,
        "train_tokens": train,
        "train_least": D(train),
        "train_most": D(train),
        "validation_tokens": 0,
        "validation_rows": 0,
        "validation_sequences": 0,
        "epochs": epochs,
        "epochs_low": epochs,
        "epochs_high": epochs,
        "passes": D(epochs),
        "evals": 0,
        "packing": True,
        "max_length": None,
        "reasoning": False,
        "average_turns": 1.0,
        "band": 0.0,
        "notes": (),
    } | changes
    held = D(values["validation_tokens"])
    values = {"sequences": values["rows"], "validation_least": held, "validation_most": held} | values
    return JobSize(**values)


@dataclass(frozen=True)
class Row:
    provider: str
    model: str
    size: JobSize
    usd: D
    low: D | None = None
    """As `usd` where there is none."""
    high: D | None = None
    method: str = "sft"
    adapter: str = "lora"
    minimum: D = D(0)
    """What tops the job up to its minimum, within `usd`."""
    more: dict[str, Any] = field(default_factory=dict[str, Any])
    """Of the spec."""


def quoted(row: Row, *, on: date = TODAY, hours: D | None = None, sandbox: bool = False) -> Quote:
    values: dict[str, Any] = {"model": row.model, "train": "t", "adapter": {"type": row.adapter}, **row.more}
    values["method"] = {"type": row.method} | (
        {"grader": {"type": "string_check"}} if row.method == "rft" else {}
    )
    job = PricedJob(
        row.provider,
        profile(row.provider),
        JobSpec.parse(values),
        catalog.resolve(row.model, row.provider, on),
        Prices(row.provider, built_in(), on),
        sandbox,
    )
    return quote_sized_job(job, lambda: row.size, gpu_hours=hours)


def test_lines_that_say_nothing_are_as_sure_as_their_tokens() -> None:
    """A limit goes by the high end, so that a plug-in's lines need one too."""

    def bills(size: JobSize, rate: Rate) -> Lines:
        return Lines(lines=(line("training", size.train_tokens * size.epochs / D(M), rate),))

    on = "2026-11-25"
    told = replace(profile("openai"), bills=bills)
    job = PricedJob(
        "openai",
        told,
        JobSpec.parse({"model": "gpt-4o-mini", "train": "t"}),
        catalog.resolve("gpt-4o-mini", "openai", date.fromisoformat(on)),
        Prices("openai", built_in(), date.fromisoformat(on)),
    )
    guessed = size(1, 2, train_least=D(750_000), train_most=D(1_250_000), band=0.25)
    found = quote_sized_job(job, lambda: guessed)
    assert (found.low_usd, found.expected_usd, found.high_usd) == (D("4.5"), D(6), D("7.5"))
    exact = quote_sized_job(job, lambda: size(1, 2))
    assert exact.low_usd == exact.expected_usd == exact.high_usd == 6


# developers.openai.com/api/docs/pricing: gpt-4.1 and gpt-4o $25, gpt-4.1-mini $5, gpt-4o-mini $3 per million
# training tokens, DPO as SFT; tokens of the file times epochs, no minimum, validation free.
OPENAI = [
    Row("openai", "gpt-4.1", size(1, 3), D(1) * 3 * 25),
    Row("openai", "gpt-4o", size(2, 1), D(2) * 1 * 25),
    Row("openai", "gpt-4.1-mini", size(1, 3), D(1) * 3 * 5),
    Row("openai", "gpt-4o-mini", size(0.5, 4), D("0.5") * 4 * 3),
    Row("openai", "gpt-4o-mini", size(0.001, 1), D("0.001") * 3),  # nothing tops a small job up
    Row("openai", "gpt-4o-mini", size(1, 1, validation_tokens=M, evals=5), D(1) * 3),  # validation is free
    Row("openai", "gpt-4o-mini", size(1, 2, packing=False, max_length=4096), D(1) * 2 * 3),  # nor is padding
    # left to the host: three taken, one to four possible
    Row("openai", "gpt-4o-mini", size(1, 3, epochs_low=1, epochs_high=4), D(9), D(1) * 1 * 3, D(1) * 4 * 3),
    # 1,000 rows with 3 tokens each that may not be there
    Row("openai", "gpt-4o-mini", size(1, 3, train_least=D(997_000)), D(9), D("0.997") * 9, D(9)),
    Row("openai", "gpt-4.1", size(1, 1), D(1) * 25, method="dpo"),
    Row("openai", "gpt-4.1-mini", size(3, 2), D(3) * 2 * 5, method="dpo"),
    Row("openai", "ft:gpt-4o-mini-2024-07-18:acme::abc", size(1, 1), D(1) * 3),  # going on from a tune
]

# together.ai blog 2026-09-11 and pricing 2026-10-07: SFT and DPO by model; masked and validation tokens
# billed; $4 at least up to 16B.
TOGETHER_BY_MODEL = [
    Row("together", "qwen3.5-9b", size(20, 3), D(20) * 3 * D("0.34")),
    Row("together", "qwen3.5-9b", size(20, 3), D(20) * 3 * D("0.84"), method="dpo"),
    # above 16B the minimum is between $4 and $60 by model, so that only more than $60 is beyond it
    Row("together", "qwen3.8-27b", size(100, 1), D(100) * D("1.05")),
    Row("together", "qwen3.8-27b", size(100, 1), D(100) * D("2.62"), method="dpo"),
    Row("together", "gemma-4-31b", size(100, 1), D(100) * D("1.05")),
    Row("together", "gemma-4-31b", size(100, 1), D(100) * D("2.62"), method="dpo"),
    Row("together", "gpt-oss-20b", size(200, 1), D(200) * D("0.40")),
    Row("together", "gpt-oss-20b", size(200, 1), D(200) * D("1.00"), method="dpo"),
    Row("together", "gpt-oss-120b", size(100, 1), D(100) * D("2.50")),
    Row("together", "gpt-oss-120b", size(100, 1), D(100) * D("6.25"), method="dpo"),
    Row("together", "llama-3.3-70b", size(100, 1), D(100) * D("2.03")),
    Row("together", "llama-3.3-70b", size(100, 1), D(100) * D("5.08"), method="dpo"),
    Row("together", "deepseek-v3.1", size(100, 1), D(100) * 7),
    # 2.5 x SFT, inferred: +-20%
    Row("together", "deepseek-v3.1", size(100, 1), D(1750), D(1750) * D("0.8"), D(1750) * D("1.2"), "dpo"),
]

TOGETHER_RULES = [
    # $0.05 of tokens, topped up to $4
    Row("together", "qwen3.5-9b", size(0.05, 3), D(4), minimum=D(4) - D("0.05") * 3 * D("0.34")),
    # exactly at it: 4 / 0.34 does not come out even, so a million tokens more and less
    Row("together", "qwen3.5-9b", size(11, 1), D(4), minimum=D(4) - 11 * D("0.34")),
    Row("together", "qwen3.5-9b", size(12, 1), 12 * D("0.34")),
    # two evaluations of 1M tokens
    Row("together", "qwen3.5-9b", size(20, 1, validation_tokens=M, evals=2), (20 + 2 * 1) * D("0.34")),
    Row("together", "qwen3.5-9b", size(20, 1, validation_tokens=M, evals=0), 20 * D("0.34")),
    # packing off: 20,000 rows of 2,048 tokens each
    Row("together", "qwen3.5-9b", size(20, 1, packing=False, max_length=2048), D("40.96") * D("0.34")),
    # and of a preference pair two of them, or one: 20,000 x 2,048 x 0.84, low the half
    Row(
        "together",
        "qwen3.5-9b",
        size(20, 1, packing=False, max_length=2048, rows=10_000, sequences=20_000),
        D("40.96") * D("0.84"),
        D("20.48") * D("0.84"),
        method="dpo",
    ),
    # a tokenizer that is known to 10%
    Row(
        "together",
        "qwen3.5-9b",
        size(20, 1, train_least=D(18 * M), train_most=D(22 * M)),
        20 * D("0.34"),
        18 * D("0.34"),
        22 * D("0.34"),
    ),
]


def band(usd: str, method: str = "sft", adapter: str = "lora", spread: str = "0.2") -> dict[str, Any]:
    """100M tokens once at a price per million that is inferred, or old."""
    price, wide = 100 * D(usd), D(spread)
    return {
        "size": size(100, 1),
        "usd": price,
        "low": price * (1 - wide),
        "high": price * (1 + wide),
        "method": method,
        "adapter": adapter,
    }


# Bands by size, inferred as 0.70 x those of May 2026 (to 16B $0.48, 69.9B $1.50, 100B $2.90; DPO 2.5 times);
# full-parameter prices are those of May, old. Both edges of each.
TOGETHER_BANDS = [
    Row("together", "acme/x-1B", **band("0.34")),
    Row("together", "acme/x-16B", **band("0.34")),
    Row("together", "acme/x-16B", **band("0.84", "dpo")),
    Row("together", "acme/x-16B", **band("0.54", adapter="full", spread="0.3")),
    Row("together", "acme/x-16B", **band("1.35", "dpo", "full", "0.3")),
    Row("together", "acme/x-16.1B", **band("1.05")),
    Row("together", "acme/x-69.9B", **band("1.05")),
    Row("together", "acme/x-69.9B", **band("2.62", "dpo")),
    Row("together", "acme/x-69.9B", **band("1.65", adapter="full", spread="0.3")),
    Row("together", "acme/x-69.9B", **band("4.12", "dpo", "full", "0.3")),
    Row("together", "acme/x-70B", **band("2.03")),
    Row("together", "acme/x-100B", **band("2.03")),
    Row("together", "acme/x-100B", **band("5.08", "dpo")),
    Row("together", "acme/x-100B", **band("3.20", adapter="full", spread="0.3")),
    Row("together", "acme/x-100B", **band("8.00", "dpo", "full", "0.3")),
]

ACME = "accounts/acme/models/x-"

# fireworks.ai/pricing 2026-10-08: SFT $0.50 up to 16B, $3 up to 80B, $6 up to 300B, $10 above; DPO and full
# parameters twice that each; dataset tokens times epochs, no minimum, evaluation free; thinking over several
# turns by half of the turns.
FIREWORKS = [
    *(
        Row(
            "fireworks", f"{ACME}{name}b", size(2, 3), 2 * 3 * D(usd) * factor, method=method, adapter=adapter
        )
        for name, usd in [
            ("1", "0.5"),
            ("16", "0.5"),
            ("16p1", "3"),
            ("80", "3"),
            ("80p1", "6"),
            ("300", "6"),
            ("300p1", "10"),
            ("1000", "10"),
        ]
        for method, adapter, factor in [("sft", "lora", 1), ("dpo", "lora", 2)]
    ),
    Row("fireworks", f"{ACME}16b", size(2, 1), D(2) * 1, adapter="full"),
    Row("fireworks", f"{ACME}80b", size(2, 1), D(2) * 6, adapter="full"),
    Row("fireworks", f"{ACME}300b", size(2, 1), D(2) * 12, adapter="full"),
    Row("fireworks", f"{ACME}301b", size(2, 1), D(2) * 20, adapter="full"),
    Row("fireworks", f"{ACME}16b", size(2, 1), D(2) * 2, method="dpo", adapter="full"),
    Row("fireworks", f"{ACME}301b", size(2, 1), D(2) * 40, method="dpo", adapter="full"),
    Row("fireworks", "qwen3-8b", size(1, 2), D(1) * 2 * D("0.5")),  # 8.2B
    Row("fireworks", "llama-3.3-70b", size(1, 2), D(1) * 2 * 3),  # 70.6B
    Row("fireworks", "minimax-m2.5", size(1, 2), D(1) * 2 * 6),  # 229B
    Row("fireworks", "kimi-k2.6", size(1, 2), D(1) * 2 * 10),  # 1T
    Row("fireworks", "qwen3-8b", size(0.001, 1), D("0.001") * D("0.5")),  # no minimum
    Row(
        "fireworks", "qwen3-8b", size(1, 1, validation_tokens=M, evals=3), D(1) * D("0.5")
    ),  # evaluation free
    # 5 turns with thinking: 5 / 2 times the tokens; 1.5 turns: no less than once
    Row("fireworks", "qwen3-8b", size(2, 1, reasoning=True, average_turns=5.0), 2 * D("2.5") * D("0.5")),
    Row("fireworks", "qwen3-8b", size(2, 1, reasoning=True, average_turns=1.5), D(2) * D("0.5")),
    Row("fireworks", "qwen3-8b", size(2, 1, average_turns=5.0), D(2) * D("0.5")),  # no thinking, no unrolling
    Row(
        "fireworks",
        "qwen3-8b",
        size(2, 1, train_least=D("1.76") * M, train_most=D("2.24") * M),  # a stand-in, +-12%
        D(2) * D("0.5"),
        D("1.76") * D("0.5"),
        D("2.24") * D("0.5"),
    ),
]

ROWS = [*OPENAI, *TOGETHER_BY_MODEL, *TOGETHER_RULES, *TOGETHER_BANDS, *FIREWORKS]


def test_there_are_enough_rows() -> None:
    assert len(ROWS) >= 60


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda row: f"{row.provider}-{row.model}-{row.method}-{row.adapter}"
)
def test_by_hand(row: Row) -> None:
    found = quoted(row)
    assert found.unavailable is None
    assert found.expected_usd == row.usd
    assert found.low_usd == (row.usd if row.low is None else row.low)
    assert found.high_usd == (row.usd if row.high is None else row.high)
    topped = sum((line.usd for line in found.lines if line.component == "minimum"), D(0))
    assert topped == row.minimum
    assert found.undecided is None


# -- the same with a minimum that is only a range ------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "low", "high"),
    [
        (1, D(4), D(60)),  # $1.05 of tokens
        (3, D(4), D(60)),  # $3.15
        (4, D("4.20"), D(60)),
        (57, D("59.85"), D(60)),
    ],
)
def test_a_minimum_between_4_and_60_dollars(tokens: int, low: D, high: D) -> None:
    found = quoted(Row("together", "qwen3.8-27b", size(tokens, 1), D(0)))
    assert (found.low_usd, found.high_usd) == (low, high)
    assert "$4.00 to $60.00" in (found.undecided or "")
    assert found.expected_usd is None and found.counted_usd == high
    at_least = replace(found, undecided=None, expected_usd=D("59"))
    assert sorted([found, at_least], key=lambda q: q.rank) == [at_least, found]


def test_beyond_the_range_there_is_one_price() -> None:
    found = quoted(Row("together", "qwen3.8-27b", size(58, 1), D(0)))
    assert found.expected_usd == 58 * D("1.05") == D("60.90")
    assert found.undecided is None


# -- reinforcement fine-tuning: by the hour ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hours", "region", "usd"),
    [
        ("10", None, D(10) * 8),
        ("0.25", None, D("0.25") * 8),
        ("10", "GLOBAL", D(10) * 8),
        ("10", "US_IOWA_1", D(10) * 8 * D("1.5")),  # "region-restricted deployments x1.5"
    ],
)
def test_rft_by_gpu_hours(hours: str, region: str | None, usd: D) -> None:
    more = {"provider_options": {"fireworks": {"trainingConfig": {"region": region}}}} if region else {}
    row = Row("fireworks", "qwen3-8b", size(1, 1), usd, method="rft", more=more)
    assert quoted(row, hours=D(hours)).expected_usd == usd


# -- where there is no price ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "on", "said"),
    [
        (Row("openai", "gpt-4.1-nano", size(1, 1), D(0)), TODAY, "shut down on openai on 2026-10-23"),
        (Row("openai", "o4-mini", size(1, 1), D(0), method="rft"), TODAY, "2026-10-23"),
        (Row("openai", "gpt-4.1", size(1, 1), D(0)), date(2027, 1, 6), "2027-01-06"),
        (Row("together", "acme/x-101B", size(1, 1), D(0)), TODAY, "no price found for sft_lora"),
        (Row("together", "acme/x", size(1, 1), D(0)), TODAY, "size of acme/x is unknown"),
        (Row("together", "glm-5.1", size(1, 1), D(0)), TODAY, "only a range for glm-5.1: $9.00 to $100.00"),
        (Row("fireworks", "glm-5.3", size(1, 1), D(0)), TODAY, "size of glm-5.3 is unknown"),
        (Row("fireworks", "qwen3-8b", size(1, 1), D(0), method="rft"), TODAY, "--gpu-hours"),
    ],
)
def test_no_price(row: Row, on: date, said: str) -> None:
    assert said in (quoted(row, on=on).unavailable or "")


def test_the_last_day_and_the_sandbox_still_have_a_price() -> None:
    row = Row("openai", "gpt-4.1", size(1, 1), D(25))
    assert quoted(row, on=date(2027, 1, 5)).expected_usd == 25
    assert quoted(row, on=date(2027, 1, 6), sandbox=True).expected_usd == 25


# -- this machine: by the hour -------------------------------------------------------------------------------

# Watts at full load: 150 for the machine beside its GPUs, H100 SXM 700, A100 400, T4 70, RTX 4090 450,
# another GPU 450; a CPU alone 150. 17 cents per kWh (EIA, 2025), inferred: +-20%.
HOURS = [
    ("cpu", 1, None, D("0.150") * D("0.17")),
    ("NVIDIA H100 80GB HBM3", 1, None, D("0.850") * D("0.17")),
    ("NVIDIA A100-SXM4-80GB", 2, None, D("0.950") * D("0.17")),
    ("Tesla T4", 1, None, D("0.220") * D("0.17")),
    ("NVIDIA GeForce RTX 4090", 1, None, D("0.600") * D("0.17")),
    ("Some GPU", 1, None, D("0.600") * D("0.17")),
    ("NVIDIA H100 80GB HBM3", 1, "local:electricity=0.30", D("0.850") * D("0.30")),
    ("NVIDIA H100 80GB HBM3", 2, "local:gpu_rental@H100=2.49", 2 * D("2.49")),
    ("NVIDIA H100 80GB HBM3", 4, "local:gpu_rental=2", 4 * D(2)),
    ("NVIDIA A100-SXM4-80GB", 8, "local:owned@A100=3.50", D("3.50")),  # of the whole machine
]


def hour_of(device: str, count: int, flag: str | None) -> HourlyRate:
    book = built_in().over([parse_flag(flag, TODAY)] if flag else [])
    return local_rate("local", device, count, book=book, today=TODAY)


@pytest.mark.parametrize(("device", "count", "flag", "usd"), HOURS)
def test_an_hour_of_this_machine(device: str, count: int, flag: str | None, usd: D) -> None:
    found = hour_of(device, count, flag)
    assert found.usd_per_hour == usd
    spread = D(0) if flag else D("0.2")
    assert found.low_usd_per_hour == usd * (1 - spread)
    assert found.high_usd_per_hour == usd * (1 + spread)


def text_rows(path: Path, rows: int) -> str:
    """Rows of exactly 1,000 tokens: `a` and ` a` are one each in o200k and in Qwen's vocabulary."""
    path.write_text((json.dumps({"text": "a" + " a" * 999}) + "\n") * rows)
    return str(path)


@pytest.mark.parametrize(
    ("epochs", "evals", "speed", "seconds"),
    [
        # 500,000 tokens, 3 times, at 1,000 a second, and 30 s to start
        (3, 0, 1000.0, D(500) * 3 + 30),
        (1, 0, 250.0, D(2000) + 30),
        # and 60,000 of validation twice, in a third of the time: 40 s
        (3, 2, 1000.0, D(1500) + D(120) / 3 + 30),
    ],
)
def test_hours_of_this_machine(tmp_path: Path, epochs: int, evals: int, speed: float, seconds: D) -> None:
    data = TrainingData.open(text_rows(tmp_path / "t.jsonl", 500), text_rows(tmp_path / "v.jsonl", 60))
    spec = JobSpec.parse({"model": "qwen3.5-9b", "train": "t", "validation": "v"})
    told = tuple(
        Setting(name=name, asked=value, outcome=Outcome.KEPT, sent=value)
        for name, value in {"epochs": epochs, "evals": evals}.items()
    )
    translation = Translation(provider="local", model="m", settings=told, body={})
    resolved = catalog.resolve("qwen3.5-9b", "local", TODAY)
    work = PlannedJob("local", profile("local"), spec, data, translation, resolved)
    hourly = hour_of("NVIDIA H100 80GB HBM3", 1, "local:owned=3.60")  # a tenth of a cent a second
    found = quote_hours_job(
        work, speed=Speed(tokens_per_second=speed, source="measured", band=0.25), hourly=hourly
    )
    assert found.expected_usd == (seconds / 1000).quantize(D("0.000001"))
    # tokens known to 10%, the speed to 25%; the start is what it is
    work_seconds = seconds - 30
    assert found.low_usd == pytest.approx(
        (work_seconds * D("0.9") / D("1.25") + 30) / 1000, abs=D("0.000001")
    )
    assert found.high_usd == pytest.approx(
        (work_seconds * D("1.1") / D("0.75") + 30) / 1000, abs=D("0.000001")
    )
    assert found.billed_tokens == 500_000 * epochs
