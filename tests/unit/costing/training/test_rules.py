"""Every billing rule against an example worked by hand, or the host's own where it publishes one.

OpenAI and Together publish one each, both below. For Fireworks none was found for training by the token: its
price page has the rule (dataset tokens x epochs) and the pairs of SFT and DPO prices, which are checked here,
and its RFT page an estimator that it calls an order of magnitude.
"""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrate.costing import lines
from orchestrate.profile import profile
from orchestrate.providers import fireworks, openai, together

counts = st.integers(min_value=0, max_value=10**9)
epochs = st.integers(min_value=1, max_value=50)


def test_openai_published_example() -> None:
    # Fine-tuning guide, "Estimate costs": 100,000 tokens, 3 epochs, $3.00 a million: $0.90.
    tokens = openai.billed_tokens(100_000, 3)
    assert tokens == 300_000
    assert tokens * Decimal("3.00") / 1_000_000 == Decimal("0.90")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (10, 10),  # 3 x 10 < 100: 100 // 10
        (3, 25),  # 100 // 3 = 33, at most 25
        (33, 3),  # 99 < 100: 100 // 33
        (34, 3),
        (1000, 3),
        (8333, 3),  # 24,999
        (8334, 2),  # 25,002 > 25,000: 25,000 // 8,334
        (100_000, 1),
    ],
)
def test_openai_auto_epochs(rows: int, expected: int) -> None:
    assert openai.auto_epochs(rows) == expected


def test_together_trains_and_evaluates() -> None:
    # 3 epochs of 500,000 tokens and 2 evaluations of 50,000: 1.5M + 0.1M.
    assert together.billed_tokens(500_000, 3, 50_000, 2) == (1_500_000, 100_000)


def test_together_published_example() -> None:
    # docs.together.ai/docs/fine-tuning-pricing, "What happens if I cancel my job?": a context of 8,192, a
    # batch of 8 and 1,000 steps are 65,536,000 tokens; 10 evaluations of 1M are 10M more: 75,536,000 in all.
    trained, evaluated = together.billed_tokens(8_192 * 8 * 1_000, 1, 1_000_000, 10)
    assert (trained, evaluated) == (65_536_000, 10_000_000)
    assert trained + evaluated == 75_536_000
    # Cancelled there, after 1,000 of 4,000 steps, a quarter of the training is billed.
    assert together.billed_tokens(8_192 * 8 * 4_000, 1)[0] * together.share_billed(1_000, 4_000) == trained


def test_together_without_packing_pads_every_row() -> None:
    assert together.unpacked_tokens(1_000, 8_192) == 8_192_000


def test_together_minimum() -> None:
    # 1.6M tokens at $0.34 are $0.544; the minimum of $4 adds $3.456.
    assert lines.minimum_top_up(Decimal("0.544"), Decimal(4)) == Decimal("3.456")
    assert lines.minimum_top_up(Decimal(4), Decimal(4)) == 0
    assert lines.minimum_top_up(Decimal("4.01"), Decimal(4)) == 0


def test_together_dpo_is_two_and_a_half_times_sft() -> None:
    # Published pairs of 2026-09-11: gpt-oss-120b $2.50 and $6.25, gpt-oss-20b $0.40 and $1.00.
    assert Decimal("2.50") * profile("together").dpo_factor == Decimal("6.25")
    assert Decimal("0.40") * profile("together").dpo_factor == Decimal("1.00")


@pytest.mark.parametrize(
    ("done", "steps", "share"),
    [(50, 200, "0.25"), (200, 200, "1"), (250, 200, "1"), (0, 0, "0")],
)
def test_together_cancelled_early_stopped(done: int, steps: int, share: str) -> None:
    assert together.share_billed(done, steps) == Decimal(share)


@pytest.mark.parametrize(
    ("reasoning", "turns", "tokens"),
    [
        (False, 6.0, 3_000_000),  # plain rows: tokens x epochs
        (True, 6.0, 9_000_000),  # unrolled by turn: x 6 / 2
        (True, 1.0, 3_000_000),  # a single turn is not halved
        (True, 3.0, 4_500_000),
    ],
)
def test_fireworks(reasoning: bool, turns: float, tokens: int) -> None:
    assert fireworks.billed_tokens(1_000_000, 3, reasoning=reasoning, average_turns=turns) == tokens


def test_fireworks_dpo_is_twice_sft() -> None:
    # Price page: to 16B $0.50 and $1.00; 16.1B-80B $3 and $6; 80B-300B $6 and $12; above $10 and $20.
    for sft, dpo in (("0.5", "1"), ("3", "6"), ("6", "12"), ("10", "20")):
        assert Decimal(sft) * profile("fireworks").dpo_factor == Decimal(dpo)


def test_hours() -> None:
    assert lines.electricity_kwh(7200, 600) == Decimal("1.2")


@given(tokens=counts, more=counts, n=epochs, extra=st.integers(0, 10))
def test_monotone_in_tokens_and_epochs(tokens: int, more: int, n: int, extra: int) -> None:
    for rule in (
        openai.billed_tokens,
        lambda t, e: sum(together.billed_tokens(t, e)),
        lambda t, e: fireworks.billed_tokens(t, e, reasoning=True, average_turns=3.0),
    ):
        assert rule(tokens, n) <= rule(tokens + more, n)
        assert rule(tokens, n) <= rule(tokens, n + extra)


@given(a=counts, b=counts, n=epochs)
def test_additive_in_tokens(a: int, b: int, n: int) -> None:
    assert openai.billed_tokens(a + b, n) == openai.billed_tokens(a, n) + openai.billed_tokens(b, n)
    whole, parts = together.billed_tokens(a + b, n, a, 2), together.billed_tokens(a, n, a, 2)
    assert whole[0] - parts[0] == b * n and whole[1] == parts[1]


@given(usd=st.decimals("0", "1000", places=4), minimum=st.decimals("0", "100", places=2))
def test_never_below_the_minimum(usd: Decimal, minimum: Decimal) -> None:
    total = usd + lines.minimum_top_up(usd, minimum)
    assert total == max(usd, minimum)


@given(rows=st.integers(1, 10**7))
def test_auto_epochs_stay_in_their_range(rows: int) -> None:
    assert 1 <= openai.auto_epochs(rows) <= 25
