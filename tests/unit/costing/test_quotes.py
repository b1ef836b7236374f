"""Quotes of jobs that are billed by tokens, against arithmetic done here from the counts."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrate import catalog, costing
from orchestrate.core import days
from orchestrate.costing import built_in, parse_flag
from orchestrate.data import TrainingData
from orchestrate.data.rows.traits import Picture
from orchestrate.profile import profile
from orchestrate.spec import JobSpec
from orchestrate.types import Confidence, Quote, Translation

TODAY = date(2026, 11, 25)
MTOK = Decimal(1_000_000)
Quoting = Callable[..., Quote]


def test_openai(quote: Quoting, data: TrainingData) -> None:
    tokens = data.train.tokens("o200k").tokens
    found = quote("openai", "gpt-4o-mini", epochs=3)
    assert found.billed_tokens == tokens * 3
    assert found.expected_usd == (tokens * 3 * 3 / MTOK).quantize(Decimal("0.000001"))
    # 3 tokens of each row open an answer that is yet to come, so they may not be there.
    assert found.expected_usd - found.low_usd == found.high_usd - found.expected_usd == 400 * 3 * 3 * 3 / MTOK
    assert [line.component for line in found.lines] == ["training"]
    assert any("The validation file is not billed" in text for text in found.assumptions)
    assert "2027-01-14" in found.warnings[0]
    assert "since 2026-05-07 for organizations that never fine-tuned a model" in found.warnings[1]
    assert "2027-01-06" in found.warnings[1]
    early = quote("openai", "gpt-4o-mini", epochs=3, today=date(2026, 4, 1))
    assert not any("closed to new jobs" in text for text in early.warnings)


def test_openai_auto_epochs_are_a_range(quote: Quoting, data: TrainingData) -> None:
    once, doubt = data.train.tokens("o200k").tokens * 25 / MTOK, 400 * 3 * 25 / MTOK
    found = quote("openai", "gpt-4.1", epochs="auto")
    assert found.expected_usd == pytest.approx(once * 3, abs=Decimal("0.000001"))
    assert (found.low_usd, found.high_usd) == (
        pytest.approx(once - doubt, abs=Decimal("0.000001")),
        pytest.approx((once + doubt) * 4, abs=Decimal("0.000001")),
    )
    assert any("auto" in text for text in found.assumptions)


def test_together_trains_evaluates_and_tops_up(quote: Quoting, data: TrainingData) -> None:
    train, validation = (d.tokens("qwen3.5").tokens for d in (data.train, data.validation) if d)
    found = quote("together", "qwen3.5-9b", epochs=3, evals=2)
    lines = {line.component: line for line in found.lines}
    assert lines["training"].quantity == train * 3 / MTOK
    assert lines["evaluation"].quantity == validation * 2 / MTOK
    assert lines["training"].usd + lines["evaluation"].usd + lines["minimum"].usd == found.expected_usd == 4
    assert found.low_usd == found.high_usd == 4


def test_together_above_its_minimum(quote: Quoting, data: TrainingData) -> None:
    train = data.train.tokens("qwen3.5").tokens
    found = quote("together", "qwen3.5-9b", epochs=5000)
    assert found.expected_usd == (train * 5000 * Decimal("0.34") / MTOK).quantize(Decimal("0.000001")) > 4
    assert {line.component: line.usd for line in found.lines}["minimum"] == 0


def test_together_large_models_may_have_a_larger_minimum(quote: Quoting) -> None:
    found = quote("together", "llama-3.3-70b", epochs=1)
    assert (found.low_usd, found.high_usd) == (4, 60)
    assert found.undecided and "$4.00 to $60.00" in found.undecided
    assert found.expected_usd is None and found.counted_usd == 60
    assert sum(line.usd for line in found.lines) == 60
    assert any("said no minimum (support.together.ai 2025-11-14)" in text for text in found.assumptions)


def test_together_above_the_largest_minimum_nothing_is_undecided(quote: Quoting) -> None:
    found = quote("together", "llama-3.3-70b", epochs=5000)
    assert found.expected_usd > 60 and found.undecided is None


def test_together_without_packing(quote: Quoting) -> None:
    found = quote("together", "qwen3.5-9b", epochs=2, packing=False, max_seq_length=4096)
    assert found.lines[0].quantity == 400 * 4096 * 2 / MTOK
    assert any("each row is billed as 4096 tokens" in text for text in found.assumptions)


def test_together_without_packing_and_without_a_known_context(quote: Quoting, data: TrainingData) -> None:
    longest = data.train.tokens("qwen3.5").longest
    packed, found = (quote("together", "qwen3.5-2b", epochs=1, packing=p) for p in (True, False))
    assert found.lines[0].quantity == 400 * longest / MTOK > packed.lines[0].quantity
    assert found.open_end and "unknown" in found.open_end and packed.open_end is None


def test_together_pads_both_sequences_of_a_pair(quote: Quoting, pairs: TrainingData) -> None:
    """50 pairs x 2 sequences x 4,096 tokens at $0.84; at the low end one sequence a pair."""
    found = quote(
        "together",
        "qwen3.5-9b",
        on=pairs,
        epochs=25,
        packing=False,
        max_seq_length=4096,
        spec={"method": "dpo", "validation": None},
    )
    training = found.lines[0]
    assert training.quantity == 50 * 2 * 4096 * 25 / MTOK
    assert training.usd == training.usd_high == 2 * training.usd_low == Decimal("8.601600")


def images(folder: Path, number: int, detail: str, size: tuple[int, int] | None) -> TrainingData:
    """Rows with one image each; without a size it is at an address."""
    url = "https://example.com/a.png"
    if size is not None:
        head = (
            b"\x89PNG\r\n\x1a\n" + b"\0\0\0\rIHDR" + size[0].to_bytes(4, "big") + size[1].to_bytes(4, "big")
        )
        url = "data:image/png;base64," + base64.b64encode(head + bytes(13)).decode()
    part = {"type": "image_url", "image_url": {"url": url, "detail": detail}}
    row = {"messages": [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a cat"}]}
    path = folder / "images.jsonl"
    path.write_text((json.dumps(row) + "\n") * number)
    return TrainingData.open(str(path))


@pytest.mark.parametrize(
    ("detail", "size", "each"),
    [
        ("high", (1024, 1024), (765, 765, 765)),  # OpenAI's examples: 85 + 4 x 170
        ("high", (2048, 4096), (1105, 1105, 1105)),  # 85 + 6 x 170
        ("low", (4096, 8192), (85, 85, 85)),
        ("auto", (1024, 1024), (85, 765, 765)),
        ("high", None, (255, 765, 1445)),  # an image at an address may have any size
    ],
)
def test_images_are_counted_by_openais_rule(
    quote: Quoting, tmp_path: Path, detail: str, size: tuple[int, int] | None, each: tuple[int, int, int]
) -> None:
    words = quote(
        "openai", "gpt-4o", on=images(tmp_path, 20, "low", (8, 8)), epochs=3, spec={"validation": None}
    )
    data = images(tmp_path, 20, detail, size)
    found = quote("openai", "gpt-4o", on=data, epochs=3, spec={"validation": None})
    low, usd, high = ((tokens - 85) * 20 * 3 * 25 / MTOK for tokens in each)
    assert found.low_usd - words.low_usd == low
    assert found.expected_usd - words.expected_usd == usd
    assert found.high_usd - words.high_usd == high
    assert found.open_end is None


def test_twenty_images_in_high_detail_cost_what_is_due(quote: Quoting, tmp_path: Path) -> None:
    """20 x 765 tokens x 3 epochs x $25 per million = $1.1475 beside the words."""
    found = quote("openai", "gpt-4o", on=images(tmp_path, 20, "high", (1024, 1024)), epochs=3)
    assert Decimal("1.1475") < found.expected_usd < Decimal("1.19")


@pytest.mark.parametrize(("provider", "model"), [("together", "gemma-4-31b"), ("fireworks", "qwen3-vl-8b")])
def test_images_without_a_published_rule_leave_the_high_end_open(
    quote: Quoting, tmp_path: Path, provider: str, model: str
) -> None:
    found = quote(provider, model, on=images(tmp_path, 3, "high", (64, 64)), epochs=1)
    assert found.open_end == "3 images without a published rule"
    with pytest.raises(costing.UnknownPrice, match="does not include 3 images"):
        costing.check_budget(found, max_cost_usd=Decimal(1000))


@pytest.mark.parametrize(
    ("model", "size", "tokens"),
    [
        ("gpt-4o-mini", (1024, 1024), 2833 + 4 * 5667),
        ("gpt-4.1", (512, 512), 85 + 170),
        ("gpt-4.1-mini", (1024, 1024), 1659),  # 1,024 patches x 1.62, rounded up
        ("gpt-4.1-nano", (1024, 1024), 2520),  # x 2.46
        ("o4-mini", (1800, 2400), 2498),  # OpenAI's example comes to 1,452 patches; x 1.72
        ("gpt-4o", (1, 1), 255),
    ],
)
def test_rules_of_pictures(model: str, size: tuple[int, int], tokens: int) -> None:
    rule = profile("openai").picture_tokens
    assert rule is not None
    assert rule(model, Picture(*size, "high")) == (tokens, tokens, tokens)
    assert rule("gpt-3.5-turbo", Picture(*size, "high")) is None


@pytest.mark.parametrize(
    ("model", "usd"), [("minimax-m2.5", 6), ("glm-5.1", 10), ("kimi-k2.5", 10), ("kimi-k2.6", 10)]
)
def test_fireworks_prices_models_whose_size_is_public(quote: Quoting, model: str, usd: int) -> None:
    assert quote("fireworks", model, epochs=1).lines[0].usd_per_unit == usd


@given(
    width=st.integers(1, 20_000),
    height=st.integers(1, 20_000),
    model=st.sampled_from(["gpt-4o", "gpt-4o-mini", "gpt-4.1-mini", "o4-mini"]),
)
def test_no_image_costs_more_than_the_largest(width: int, height: int, model: str) -> None:
    rule = profile("openai").picture_tokens
    assert rule is not None
    least, likely, most = rule(model, Picture(width, height, "high")) or (0, 0, 0)
    unknown = rule(model, Picture(None, None, "high"))
    assert unknown is not None
    assert least == likely == most <= unknown[2]


def test_fireworks(quote: Quoting, data: TrainingData) -> None:
    count = data.train.tokens("qwen3.5")
    found = quote("fireworks", "qwen3.5-9b", epochs=2)
    usd = count.tokens * 2 * Decimal("0.5") / MTOK
    assert found.expected_usd == usd.quantize(Decimal("0.000001"))
    assert found.high_usd == pytest.approx(usd * Decimal(str(1 + count.error_band)), abs=Decimal("0.000001"))
    assert count.error_band > 0


def test_fireworks_unrolls_thinking(quote: Quoting, tmp_path: Path) -> None:
    path = tmp_path / "think.jsonl"
    turns = [
        {"role": role, "content": f"text {i}", **({"reasoning_content": "hm"} if role == "assistant" else {})}
        for i in range(6)
        for role in ("user", "assistant")
    ]
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for _ in range(20)))
    data = TrainingData.open(str(path))
    assert data.train.content.reasoning and data.train.content.average_turns == 6
    found = quote("fireworks", "qwen3-8b", on=data, epochs=1)
    tokens = data.train.tokens("qwen3~o200k").tokens
    assert found.lines[0].quantity == tokens * 3 / MTOK


def test_truncation_is_billed_as_cut(quote: Quoting, data: TrainingData) -> None:
    count = data.train.tokens("o200k")
    limit = count.longest - 5
    found = quote("openai", "gpt-4o-mini", epochs=1, max_seq_length=limit)
    assert found.billed_tokens == sum(min(n, limit) for n in count.lengths) < count.tokens
    assert any("tokens are neither trained on nor billed" in text for text in found.assumptions)


@pytest.mark.parametrize(
    ("provider", "model", "usd"),
    [("together", "qwen3.5-9b", "0.84"), ("fireworks", "qwen3.5-9b", "1"), ("openai", "gpt-4.1", "25")],
)
def test_dpo_rates(quote: Quoting, pairs: TrainingData, provider: str, model: str, usd: str) -> None:
    found = quote(provider, model, on=pairs, epochs=1, spec={"method": "dpo", "validation": None})
    assert found.lines[0].usd_per_unit == Decimal(usd)
    count = pairs.train.tokens("o200k" if provider == "openai" else "qwen3.5")
    prompts = (count.tokens - count.trained_tokens) // 2
    assert found.lines[0].quantity == count.tokens / MTOK  # the prompt with each answer
    assert any(
        "with each answer" in text and f"{prompts:,} shared prompt" in text for text in found.assumptions
    )
    once = (count.tokens - prompts) * (1 - Decimal(str(count.error_band))) * Decimal(usd) / MTOK
    assert found.lines[0].usd_low == once.quantize(Decimal("0.000001"))


def test_dpo_without_a_rate_of_its_own_is_inferred(quote: Quoting, pairs: TrainingData) -> None:
    book = costing.RateBook(((parse_flag("together:sft_lora=2", TODAY),),))
    found = quote("together", "qwen3.5-9b", on=pairs, spec={"method": "dpo"}, epochs=1, book=book)
    assert found.lines[0].usd_per_unit == 5  # 2.5 x 2
    assert found.lines[0].confidence is Confidence.INFERRED


def test_stand_ins_and_inferred_prices_are_said(quote: Quoting) -> None:
    found = quote("together", "qwen3-8b", epochs=4000)
    assert found.low_usd < found.expected_usd < found.high_usd
    assert any("the tokenizer of qwen3 is not available): +/-" in text for text in found.assumptions)
    assert any("inferred, not quoted" in text for text in found.warnings)
    assert found.lines[0].confidence is Confidence.INFERRED


@pytest.mark.parametrize(
    ("provider", "model", "said"),
    [
        ("openai", "gpt-4.1-nano", "were shut down on openai on 2026-10-23"),
        ("together", "glm-5.1", "published only a range"),
        ("fireworks", "glm-5.3", "the size of glm-5.3 is unknown"),
    ],
)
def test_no_price_is_a_reason_not_a_guess(quote: Quoting, provider: str, model: str, said: str) -> None:
    found = quote(provider, model, epochs=1)
    assert found.unavailable is not None and said in found.unavailable
    assert found.lines == () and found.expected_usd is None


def test_a_flag_gives_the_missing_price(quote: Quoting) -> None:
    book = built_in().over([parse_flag("fireworks:sft_lora@glm-5.1=12", TODAY)])
    assert quote("fireworks", "glm-5.1", epochs=1, book=book).lines[0].usd_per_unit == 12


def test_openai_closes(quote: Quoting) -> None:
    after = date(2027, 1, 6)
    assert "has not accepted new fine-tuning jobs" in (
        quote("openai", "gpt-4.1", epochs=1, today=after).unavailable or ""
    )
    assert quote("openai", "gpt-4.1", epochs=1, today=after, sandbox=True).unavailable is None


def test_a_clock_that_is_wrong_is_told(quote: Quoting, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "clock says 2025-11-26"
    behind = quote("together", "qwen3.5-9b", epochs=1, today=date(2025, 11, 26))
    assert behind.expected_usd == 4 and any(said in text for text in behind.warnings)
    ahead = quote("together", "qwen3.5-9b", epochs=1, today=date(2027, 11, 26))
    assert ahead.expected_usd == 4 and any("was last checked" in text for text in ahead.warnings)
    assert not any("clock" in text for text in quote("together", "qwen3.5-9b", epochs=1).warnings)
    monkeypatch.setenv(days.VARIABLE, "2025-11-26")
    pretended = quote("together", "qwen3.5-9b", epochs=1, today=date(2025, 11, 26))
    assert any(days.VARIABLE in text for text in pretended.warnings)
    assert not any("clock" in text for text in pretended.warnings)


def test_rft_needs_hours(quote: Quoting) -> None:
    spec = {"method": {"type": "rft", "grader": {"evaluator": "x"}}}
    found = quote("fireworks", "qwen3-8b", spec=spec, epochs=1)
    assert found.unavailable is not None and "$8.00 per hour" in found.unavailable
    told = quote("fireworks", "qwen3-8b", spec=spec, epochs=1, gpu_hours=Decimal("2.5"))
    assert told.expected_usd == 20  # 2.5 GPU-hours on H100 at $8
    there = {"provider_options": {"fireworks": {"trainingConfig": {"region": "EU_PARIS_1"}}}}
    dear = quote("fireworks", "qwen3-8b", spec=spec | there, epochs=1, gpu_hours=Decimal("2.5"))
    assert dear.expected_usd == 30  # x 1.5 for a region: fireworks.ai/pricing, 2026-10-08
    assert "times 1.5 for the chosen region" in (dear.lines[0].note or "")


def test_a_second_host_with_rates_of_its_own(
    data: TrainingData, translated: Callable[..., Translation]
) -> None:

    resolved = catalog.ModelOnHost(provider="attic", id="gpt-4.1-2025-04-14", model=catalog.find("gpt-4.1"))
    spec = JobSpec.parse({"model": "gpt-4.1", "train": "t"})
    told = translated("attic", resolved.id, epochs=2)

    def price(prices: str | None) -> Quote:
        return costing.quote_tokens_job(
            costing.PlannedJob("attic", profile("openai"), spec, data, told, resolved),
            prices=costing.Prices(prices or "attic", on=TODAY),
        )

    assert "no rates for attic" in (price(None).unavailable or "")
    assert price("openai").expected_usd > 0


@settings(max_examples=25, suppress_health_check=list(HealthCheck))
@given(epochs=st.integers(1, 60), more=st.integers(0, 20), evals=st.integers(0, 10))
@pytest.mark.parametrize(
    ("provider", "model"), [("together", "llama-3.3-70b"), ("fireworks", "qwen3-8b"), ("openai", "gpt-4.1")]
)
def test_properties(quote: Quoting, provider: str, model: str, epochs: int, more: int, evals: int) -> None:
    first = quote(provider, model, epochs=epochs, evals=evals)
    second = quote(provider, model, epochs=epochs + more, evals=evals + more)
    for name in ("low_usd", "counted_usd", "high_usd"):
        assert getattr(first, name) <= getattr(second, name)
    for found in (first, second):
        assert found.low_usd <= found.counted_usd <= found.high_usd
        assert found.low_usd == sum(line.usd_low for line in found.lines)
        assert found.counted_usd == sum(line.usd for line in found.lines)
        assert found.high_usd == sum(line.usd_high for line in found.lines)
        if provider == "together":
            assert found.low_usd >= 4
