"""Quotes of jobs that are billed by tokens, against arithmetic done here from the counts."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrate import catalog, costing
from orchestrate.costing import built_in, parse_flag
from orchestrate.data import TrainingData
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
    assert found.low_usd == found.expected_usd == found.high_usd  # own tokenizer, quoted price
    assert [line.component for line in found.lines] == ["training"]
    assert any("the validation file is not billed" in text for text in found.assumptions)
    assert "2027-01-14" in found.warnings[0]


def test_openai_auto_epochs_are_a_range(quote: Quoting, data: TrainingData) -> None:
    once = data.train.tokens("o200k").tokens * 25 / MTOK
    found = quote("openai", "gpt-4.1", epochs="auto")
    assert found.expected_usd == pytest.approx(once * 3, abs=Decimal("0.000001"))
    assert (found.low_usd, found.high_usd) == (
        pytest.approx(once, abs=Decimal("0.000001")),
        pytest.approx(once * 4, abs=Decimal("0.000001")),
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
    assert (found.low_usd, found.expected_usd, found.high_usd) == (4, 4, 60)


def test_together_without_packing(quote: Quoting) -> None:
    found = quote("together", "qwen3.5-9b", epochs=2, packing=False, max_seq_length=4096)
    assert found.lines[0].quantity == 400 * 4096 * 2 / MTOK
    assert any("each row is billed as 4096 tokens" in text for text in found.assumptions)
    unknown = quote("together", "qwen3.5-2b", epochs=1, packing=False)
    assert any("not known" in text for text in unknown.assumptions)


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
    assert any(f"cut at {limit} tokens" in text for text in found.assumptions)


@pytest.mark.parametrize(
    ("provider", "model", "usd"),
    [("together", "qwen3.5-9b", "0.84"), ("fireworks", "qwen3.5-9b", "1"), ("openai", "gpt-4.1", "25")],
)
def test_dpo_rates(quote: Quoting, pairs: TrainingData, provider: str, model: str, usd: str) -> None:
    found = quote(provider, model, on=pairs, epochs=1, spec={"method": "dpo", "validation": None})
    assert found.lines[0].usd_per_unit == Decimal(usd)
    assert any("both answers" in text for text in found.assumptions)


def test_dpo_without_a_rate_of_its_own_is_inferred(quote: Quoting, pairs: TrainingData) -> None:
    book = costing.RateBook(((parse_flag("together:sft_lora=2", TODAY),),))
    found = quote("together", "qwen3.5-9b", on=pairs, spec={"method": "dpo"}, epochs=1, book=book)
    assert found.lines[0].usd_per_unit == 5  # 2.5 x 2
    assert found.lines[0].confidence is Confidence.INFERRED


def test_stand_ins_and_inferred_prices_are_said(quote: Quoting) -> None:
    found = quote("together", "qwen3-8b", epochs=4000)
    assert found.low_usd < found.expected_usd < found.high_usd
    assert any("in place of qwen3's tokenizer: +/-" in text for text in found.assumptions)
    assert any("inferred, not quoted" in text for text in found.warnings)
    assert found.lines[0].confidence is Confidence.INFERRED


@pytest.mark.parametrize(
    ("provider", "model", "said"),
    [
        ("openai", "gpt-4.1-nano", "was shut down on openai on 2026-10-23"),
        ("together", "glm-5.1", "published only a range"),
        ("fireworks", "glm-5.1", "the size of glm-5.1 is not known"),
        ("fireworks", "kimi-k2.6", "is not known"),
    ],
)
def test_no_price_is_a_reason_not_a_guess(quote: Quoting, provider: str, model: str, said: str) -> None:
    found = quote(provider, model, epochs=1)
    assert found.unavailable is not None and said in found.unavailable
    assert found.lines == () and found.expected_usd == 0


def test_a_flag_gives_the_missing_price(quote: Quoting) -> None:
    book = built_in().over([parse_flag("fireworks:sft_lora@glm-5.1=12", TODAY)])
    assert quote("fireworks", "glm-5.1", epochs=1, book=book).lines[0].usd_per_unit == 12


def test_openai_closes(quote: Quoting) -> None:
    after = date(2027, 1, 6)
    assert "has taken no new fine-tuning jobs" in (
        quote("openai", "gpt-4.1", epochs=1, today=after).unavailable or ""
    )
    assert quote("openai", "gpt-4.1", epochs=1, today=after, sandbox=True).unavailable is None


def test_rft_needs_hours(quote: Quoting) -> None:
    spec = {"method": {"type": "rft", "grader": {"evaluator": "x"}}}
    found = quote("fireworks", "qwen3-8b", spec=spec, epochs=1)
    assert found.unavailable is not None and "$8.00 per hour" in found.unavailable
    told = quote("fireworks", "qwen3-8b", spec=spec, epochs=1, gpu_hours=Decimal("2.5"))
    assert told.expected_usd == 20  # 2.5 GPU-hours on H100 at $8


def test_a_second_host_with_rates_of_its_own(
    data: TrainingData, translated: Callable[..., Translation]
) -> None:

    resolved = catalog.ModelOnHost(provider="azure", id="gpt-4.1-2025-04-14", model=catalog.find("gpt-4.1"))
    spec = JobSpec.parse({"model": "gpt-4.1", "train": "t"})
    told = translated("azure", resolved.id, epochs=2)

    def price(prices: str | None) -> Quote:
        return costing.quote_tokens_job(
            costing.Work("azure", profile("openai"), spec, data, told, resolved),
            prices=costing.Prices(prices or "azure", on=TODAY),
        )

    assert "there are no rates for azure" in (price(None).unavailable or "")
    assert price("openai").expected_usd > 0


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(epochs=st.integers(1, 60), more=st.integers(0, 20), evals=st.integers(0, 10))
@pytest.mark.parametrize(
    ("provider", "model"), [("together", "llama-3.3-70b"), ("fireworks", "qwen3-8b"), ("openai", "gpt-4.1")]
)
def test_properties(quote: Quoting, provider: str, model: str, epochs: int, more: int, evals: int) -> None:
    first = quote(provider, model, epochs=epochs, evals=evals)
    second = quote(provider, model, epochs=epochs + more, evals=evals + more)
    for name in ("low_usd", "expected_usd", "high_usd"):
        assert getattr(first, name) <= getattr(second, name)
    for found in (first, second):
        assert found.low_usd <= found.expected_usd <= found.high_usd
        assert found.low_usd == sum(line.usd_low for line in found.lines)
        assert found.expected_usd == sum(line.usd for line in found.lines)
        assert found.high_usd == sum(line.usd_high for line in found.lines)
        if provider == "together":
            assert found.low_usd >= 4
