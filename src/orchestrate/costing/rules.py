"""How each host bills, one small function for each rule, with the place where the host says so.

All are pure arithmetic on counts of tokens, rows, steps and hours.
"""

from __future__ import annotations

from decimal import Decimal

DPO_FACTOR = {"together": Decimal("2.5"), "fireworks": Decimal(2), "openai": Decimal(1)}
"""Price of a DPO token over an SFT token. Together: blog of 2026-09-11 (every published pair of prices).
Fireworks: fireworks.ai/pricing, 2026-10-08. OpenAI: one price for both
(developers.openai.com/api/docs/pricing)."""


def openai_tokens(train_tokens: int, epochs: int) -> int:
    """Tokens of the training file after truncation, once per epoch; the validation file is not billed.

    developers.openai.com fine-tuning guide, "Estimate costs": price per token x tokens in the file x epochs.
    The job reports the product as `trained_tokens`.
    """
    return train_tokens * epochs


def openai_auto_epochs(rows: int) -> int:
    """What `n_epochs: auto` comes to: 3, more for few rows, fewer for many.

    OpenAI cookbook, "Data preparation and analysis for chat model fine-tuning": 3 epochs, moved so that rows
    x epochs stays within 100 and 25,000, and epochs within 1 and 25.
    """
    if rows <= 0:
        return 3
    if rows * 3 < 100:
        return min(25, 100 // rows)
    if rows * 3 > 25_000:
        return max(1, 25_000 // rows)
    return 3


def together_tokens(
    train_tokens: int, epochs: int, validation_tokens: int = 0, evals: int = 0
) -> tuple[int, int]:
    """Training and evaluation tokens: `n_epochs x train + n_evals x validation`, masked tokens included.

    docs.together.ai fine-tuning pricing: every token processed is billed, whether it carries loss or not.
    """
    return train_tokens * epochs, validation_tokens * evals


def together_unpacked_tokens(rows: int, max_seq_length: int) -> int:
    """With `packing: false` every row is padded to the full length: `rows x max_seq_length` per epoch.

    docs.together.ai fine-tuning pricing.
    """
    return rows * max_seq_length


def minimum_top_up(usd: Decimal, minimum: Decimal) -> Decimal:
    """What is added so that a job costs its minimum: `max(0, minimum - usd)`.

    together.ai/pricing, 2026-10-07: the larger of the total and the model's minimum.
    """
    return max(Decimal(0), minimum - usd)


def together_share_billed(steps_done: int, steps: int, *, failed: bool = False) -> Decimal:
    """Share of the price that stays: the steps completed, for a cancelled or early-stopped job; none for a
    platform failure.

    docs.together.ai fine-tuning pricing: cancelled jobs pay for completed steps; unused steps of an early
    stop are refunded; failures of the platform are refunded in full.
    """
    if failed or steps <= 0:
        return Decimal(0)
    return Decimal(min(steps_done, steps)) / Decimal(steps)


def fireworks_tokens(
    train_tokens: int, epochs: int, *, reasoning: bool = False, average_turns: float = 1.0
) -> int:
    """Tokens of the dataset x epochs; rows with thinking and several turns are unrolled into one row for each
    turn, which multiplies their tokens by half the average number of turns (never below one).

    docs.fireworks.ai fine-tuning pricing.
    """
    factor = max(Decimal(1), Decimal(str(average_turns)) / 2) if reasoning else Decimal(1)
    return int((train_tokens * epochs * factor).to_integral_value(rounding="ROUND_CEILING"))


def gpu_hours(seconds: float | Decimal, gpus: int = 1) -> Decimal:
    """GPU-hours of a job or deployment, billed by the second (fireworks.ai/pricing, 2026-10-08)."""
    return Decimal(str(seconds)) * gpus / 3600


def together_gpu_hours(seconds: float | Decimal, gpus: int = 1) -> Decimal:
    """GPU-hours of a dedicated endpoint, billed by started minutes while it runs, idle included.

    together.ai/pricing, 2026-10-07.
    """
    minutes = (Decimal(str(seconds)) / 60).to_integral_value(rounding="ROUND_CEILING")
    return minutes * gpus / 60


def openai_rft_hours(core_seconds: float | Decimal) -> Decimal:
    """Hours of the core training loop, prorated to the second; queueing, validation and failures of the
    platform are free.

    help.openai.com/en/articles/11323177.
    """
    return Decimal(str(core_seconds)) / 3600


def electricity_kwh(seconds: float | Decimal, watts: int) -> Decimal:
    return Decimal(str(seconds)) * watts / 3_600_000
