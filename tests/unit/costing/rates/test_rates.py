"""The rate files, and how a rate is found."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from importlib.resources import files
from pathlib import Path

import pytest

from orchestrate.costing import Rate, built_in, load, parse_flag, user_book
from orchestrate.costing.rates import parse
from orchestrate.errors import ConfigError, UsageError
from orchestrate.types import Confidence

TODAY = date(2026, 11, 25)
FILES = sorted(
    p.name for p in files("orchestrate.costing").joinpath("rates").iterdir() if p.name.endswith(".yaml")
)


HEAD = "provider: x\nrates:\n  - {method: sft, "
TAIL = "confidence: quoted, source: a}"


def find(provider: str, method: str, **asked: object) -> Rate:
    found = built_in().find(provider, method, on=asked.pop("on", TODAY), **asked)  # pyright: ignore
    assert found is not None
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_whole(name: str) -> None:
    rates = parse(files("orchestrate.costing").joinpath("rates").joinpath(name).read_text(), name)
    assert rates
    for rate in rates:
        assert rate.provider == name.removesuffix(".yaml")
        assert rate.start <= TODAY and rate.last_checked <= TODAY
        assert len(rate.source) > 10, rate
        assert not rate.source.startswith("s1"), "a source key without its text"
        if rate.unit == "usd_per_mtok":
            assert 0 < rate.usd <= 100, rate  # a price per token or per thousand would be far outside
        if rate.unit == "usd_per_gpu_hour":
            assert rate.usd == 0 or Decimal("0.3") < rate.usd < 30, rate  # the least is a T4


def unit_of(rate: Rate, method: str) -> str:
    """What the host bills this kind of thing by. A rate in another unit would be multiplied by the wrong
    quantity."""
    if method.startswith(("sft", "dpo", "inference_", "training_api_", "session_")):
        return "usd_per_mtok"
    if method == "rft" and rate.provider in ("openai", "azure"):
        return "usd_per_hour"  # of the core loop, whatever it runs on
    return {
        "rft": "usd_per_gpu_hour",
        "rft_small_models": "usd_per_gpu_hour",
        "deployment": "usd_per_gpu_hour",
        "gpu_rental": "usd_per_gpu_hour",
        "hosting": "usd_per_hour",
        "minimum": "usd_per_job",
        "electricity": "usd_per_kwh",
    }[method]


def test_every_rate_is_in_the_unit_of_its_method() -> None:
    wrong = [(r, m) for r in built_in() for m in r.methods if r.unit != unit_of(r, m)]
    assert not wrong


@pytest.mark.parametrize(
    ("provider", "method", "asked", "unit", "usd", "confidence"),
    [
        # OpenAI: price page, autumn 2026, per million training tokens
        ("openai", "sft", {"ids": ["gpt-4.1-2025-04-14"]}, "usd_per_mtok", "25", "quoted"),
        ("openai", "dpo", {"ids": ["gpt-4.1-mini-2025-04-14"]}, "usd_per_mtok", "5", "quoted"),
        ("openai", "sft", {"ids": ["gpt-4o-mini-2024-07-18"]}, "usd_per_mtok", "3", "quoted"),
        (
            "openai",
            "inference_tuned_output",
            {"ids": ["gpt-4o-mini-2024-07-18"]},
            "usd_per_mtok",
            "1.2",
            "quoted",
        ),
        # Together: blog of 2026-09-11 and price page of 2026-10-07, per million tokens processed
        (
            "together",
            "sft_lora",
            {"ids": ["Qwen/Qwen3.5-9B"], "params_b": 9},
            "usd_per_mtok",
            "0.34",
            "quoted",
        ),
        (
            "together",
            "dpo_lora",
            {"ids": ["openai/gpt-oss-20b"], "params_b": 20.9},
            "usd_per_mtok",
            "1.0",
            "quoted",
        ),
        (
            "together",
            "sft_lora",
            {"ids": ["openai/gpt-oss-120b"], "params_b": 117},
            "usd_per_mtok",
            "2.5",
            "quoted",
        ),
        ("together", "sft_lora", {"params_b": 14.8}, "usd_per_mtok", "0.34", "inferred"),
        ("together", "sft_lora", {"params_b": 70.6}, "usd_per_mtok", "2.03", "inferred"),
        ("together", "sft_full", {"params_b": 27}, "usd_per_mtok", "1.65", "old"),
        ("together", "minimum", {"params_b": 9}, "usd_per_job", "4", "inferred"),
        ("together", "deployment", {"gpu": "H100"}, "usd_per_gpu_hour", "5.49", "quoted"),
        # Fireworks: price page of 2026-10-08
        ("fireworks", "sft_lora", {"params_b": 16}, "usd_per_mtok", "0.5", "quoted"),
        ("fireworks", "sft_lora", {"params_b": 16.1}, "usd_per_mtok", "3", "quoted"),
        ("fireworks", "dpo_lora", {"params_b": 80}, "usd_per_mtok", "6", "quoted"),
        ("fireworks", "sft_full", {"params_b": 235}, "usd_per_mtok", "12", "quoted"),
        ("fireworks", "sft_lora", {"params_b": 671}, "usd_per_mtok", "10", "quoted"),
        ("fireworks", "deployment", {"gpu": "H100"}, "usd_per_gpu_hour", "8", "quoted"),
        ("fireworks", "rft", {"gpu": "B200"}, "usd_per_gpu_hour", "13", "quoted"),
        # Rentals
        ("runpod", "gpu_rental", {"gpu": "H100 SXM", "tier": "secure"}, "usd_per_gpu_hour", "3.99", "quoted"),
        (
            "runpod",
            "gpu_rental",
            {"gpu": "A100 80GB PCIe", "tier": "community"},
            "usd_per_gpu_hour",
            "1.19",
            "quoted",
        ),
        ("vast", "gpu_rental", {"gpu": "H100 SXM"}, "usd_per_gpu_hour", "2.4", "quoted"),
        ("lambda", "gpu_rental", {"gpu": "H100 SXM", "tier": "1x"}, "usd_per_gpu_hour", "4.29", "quoted"),
        ("nebius", "gpu_rental", {"gpu": "H100"}, "usd_per_gpu_hour", "4.5", "old"),
        ("coreweave", "gpu_rental", {"gpu": "H100"}, "usd_per_gpu_hour", "6.155", "old"),
        ("local", "electricity", {}, "usd_per_kwh", "0.17", "inferred"),
    ],
)
def test_rates_as_published(
    provider: str, method: str, asked: dict[str, object], unit: str, usd: str, confidence: str
) -> None:
    rate = find(provider, method, **asked)
    assert (rate.unit, rate.usd, rate.confidence) == (unit, Decimal(usd), Confidence(confidence))


def test_the_day_decides() -> None:
    # Fireworks' H100: $4 in 2025, $7 before and $8 from 2026-09-01.
    for on, usd in ((date(2025, 6, 1), 4), (date(2026, 8, 31), 7), (date(2026, 9, 1), 8)):
        assert find("fireworks", "deployment", gpu="H100", on=on).usd == usd


def test_ended_prices_are_not_offered() -> None:
    ids = ["gpt-4.1-nano-2025-04-14"]
    assert built_in().find("openai", "sft", ids=ids, on=date(2026, 10, 23)) is not None
    assert built_in().find("openai", "sft", ids=ids, on=date(2026, 10, 24)) is None
    assert built_in().find("fireworks", "minimum", params_b=9, on=TODAY) is None


def test_a_model_without_size_has_no_band() -> None:
    assert built_in().find("fireworks", "sft_lora", ids=["zai-org/GLM-5.1"], on=TODAY) is None


def test_confidence_widens_the_band() -> None:
    quoted = find("together", "sft_lora", ids=["Qwen/Qwen3.5-9B"])
    assert quoted.band() == (Decimal("0.34"),) * 3
    low, usd, high = find("together", "sft_lora", params_b=8).band()
    assert (low, usd, high) == (Decimal("0.272"), Decimal("0.34"), Decimal("0.408"))
    assert find("together", "minimum", params_b=70).band() == (4, 32, 60)


def test_flags_go_before_everything() -> None:
    book = built_in().over([parse_flag("together:sft_lora@Qwen/Qwen3.5-9B=0.10", TODAY)])
    assert book.find("together", "sft_lora", ids=["Qwen/Qwen3.5-9B"], on=TODAY).usd == Decimal("0.10")  # pyright: ignore
    assert book.find("together", "sft_lora", params_b=70.6, on=TODAY).usd == Decimal("2.03")  # pyright: ignore


@pytest.mark.parametrize(
    ("flag", "unit", "usd"),
    [
        ("local:electricity=0.30", "usd_per_kwh", "0.30"),
        ("local:owned=0.45", "usd_per_hour", "0.45"),
        ("together:minimum=0", "usd_per_job", "0"),
        ("runpod:gpu_rental@RTX 4090=0.44", "usd_per_gpu_hour", "0.44"),
        ("fireworks:sft_lora=0.4", "usd_per_mtok", "0.4"),
    ],
)
def test_units_of_flags(flag: str, unit: str, usd: str) -> None:
    rate = parse_flag(flag, TODAY)
    assert (rate.unit, rate.usd) == (unit, Decimal(usd))


@pytest.mark.parametrize(
    "flag", ["", "together", "together:sft=", "together:sft=abc", "together:sft=-1", "a:b=NaN"]
)
def test_bad_flags(flag: str) -> None:
    with pytest.raises(UsageError, match="is not valid"):
        parse_flag(flag, TODAY)


def test_a_users_file_goes_over_the_built_in_one(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(
        "provider: together\nsources: {mine: our contract of 2026-11}\nrates:\n"
        "  - {method: sft_lora, upto_b: 16, usd_per_mtok: 0.2, source: mine, start: 2026-11-01, "
        "confidence: quoted}\n"
        "---\nprovider: azure\nrates:\n"
        "  - {method: [sft, dpo], usd_per_mtok: 11, source: our invoice, start: 2026-11-01, "
        "confidence: quoted}\n"
    )
    book = user_book([tmp_path], ["together:minimum=0"])
    mine = book.find("together", "sft_lora", ids=["Qwen/Qwen3.5-9B"], params_b=9, on=TODAY)
    assert mine is not None and (mine.usd, mine.source) == (Decimal("0.2"), "our contract of 2026-11")
    assert book.find("azure", "dpo", on=TODAY).usd == 11  # pyright: ignore[reportOptionalMemberAccess]
    assert book.find("together", "minimum", params_b=9, on=TODAY).usd == 0  # pyright: ignore[reportOptionalMemberAccess]
    assert user_book([tmp_path / "none"]) is built_in()


def test_a_users_price_holds_from_its_day_to_its_last(tmp_path: Path) -> None:
    (tmp_path / "rates.yaml").write_text(
        "provider: together\nrates:\n  - {method: sft_lora, model: Qwen/Qwen3.5-9B, usd_per_mtok: 99, "
        "source: our contract, start: 2027-03-01, end: 2027-05-31, confidence: quoted}\n"
    )
    book = user_book([tmp_path])
    days = [TODAY, date(2027, 2, 28), date(2027, 3, 1), date(2027, 5, 31), date(2027, 6, 1)]
    found = [book.find("together", "sft_lora", ids=["Qwen/Qwen3.5-9B"], params_b=9, on=day) for day in days]
    assert [str(rate.usd) for rate in found if rate] == ["0.34", "0.34", "99", "99", "0.34"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("provider: x", "must have the fields `provider` and `rates`"),
        (
            HEAD + "start: 2026-01-01, " + TAIL,
            "exactly one of",
        ),
        (
            HEAD + "usd_per_mtok: 1, usd_per_hour: 1, start: 2026-01-01, " + TAIL,
            "exactly one of",
        ),
        (
            HEAD + "usd_per_mtok: 1, start: 2026-01-01, confidence: quoted}",
            "no source",
        ),
        (
            HEAD + "usd_per_ktok: 1, start: 2026-01-01, " + TAIL,
            "unknown field usd_per_ktok",
        ),
        (
            HEAD + "usd_per_mtok: 1, start: 2026-02-01, end: 2026-01-01, " + TAIL,
            "before it starts",
        ),
        (
            HEAD + "usd_per_mtok: -1, start: 2026-02-01, " + TAIL,
            "not be negative",
        ),
        *[
            (HEAD + f"usd_per_mtok: {usd}, start: 2026-02-01, " + TAIL, "a number below 1,000,000,000")
            for usd in (".nan", ".inf", "1e400", "'NaN'", "1000000000")
        ],
        ("provider: x\nrates: 5\n", "`rates` must be a list, and `sources` must map names to strings"),
        (
            "provider: x\nsources: [a]\nrates: []\n",
            "`rates` must be a list, and `sources` must map names to strings",
        ),
        ("provider: x\nrates: [5]\n", "not a mapping"),
        ("provider: x\nrates: [{source: [a], method: sft}]\n", "rate 1"),
        ("provider: [x]\nrates: [{1: 2, source: s, method: sft}]\n", "unknown field 1"),
        (
            HEAD + "usd_per_mtok: 1, start: soon, " + TAIL,
            "rate 1",
        ),
        ("provider: [", "is not YAML"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "rates.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as caught:
        load(path)
    assert str(path) in caught.value.message


@pytest.mark.parametrize("host", ["openai", "together", "fireworks", "nebius"])
@pytest.mark.parametrize("model", [None, "m"], ids=["any", "one"])
@pytest.mark.parametrize("method", ["sft", "dpo", "sft_lora", "dpo_lora"])
@pytest.mark.parametrize("way", ["flag", "file"])
def test_the_users_own_price_comes_before_every_built_in_one(
    tmp_path: Path, host: str, model: str | None, method: str, way: str
) -> None:
    """Whatever is published for it, and however specific: for every model that the host's rates name."""
    for rate in [rate for rate in built_in() if rate.provider == host and rate.usd_per_mtok is not None]:
        name = next(iter(rate.models), "m")
        if way == "flag":
            at = f"@{name}" if model else ""
            book = user_book([], [f"{host}:{method}{at}=99"], today=TODAY)
        else:
            of = f"model: {name}, " if model else ""
            entry = f"{{method: {method}, {of}usd_per_mtok: 99, start: 2026-11-01, {TAIL}"
            (tmp_path / "rates.yaml").write_text(f"provider: {host}\nrates:\n  - {entry}")
            book = user_book([tmp_path])
        asked = (method,) if "_" in method else (f"{method}_lora", method)
        found = book.find(host, asked, ids=[name], params_b=8, on=TODAY)
        assert found is not None and found.usd == 99, rate


def test_an_old_price_says_from_when_it_is_and_what_others_have_read_since() -> None:
    for gpu, later in (("H100", "3.99"), ("H200", "5.99")):
        rate = find("together", "gpu_rental", gpu=gpu)
        assert rate.confidence is Confidence.OLD and rate.doubt is not None
        assert f"old (about {rate.last_checked}, from an undated copy)" in rate.doubt
        assert "2026-10-24" in rate.doubt and later in rate.doubt
    dated = [rate for rate in built_in() if rate.confidence is Confidence.OLD and not rate.undated]
    assert dated and all(f"old ({rate.last_checked})" in str(rate.doubt) for rate in dated)
    assert find("lambda", "gpu_rental", gpu="H100 SXM").doubt is None
