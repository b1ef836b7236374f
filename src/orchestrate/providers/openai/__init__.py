"""Backend for OpenAI, Azure OpenAI and OpenAI-compatible hosts, using the official SDK."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import date
from typing import TYPE_CHECKING

from orchestrate.data.dialects import Dialect
from orchestrate.data.rows.traits import Picture, Trait
from orchestrate.data.rules import (
    GIB,
    NO_KTO,
    NO_LOCAL_IMAGES,
    NO_ROW_WEIGHT,
    NO_SPANS,
    ONE_ANSWER,
    HostRules,
    Rule,
    refused,
)
from orchestrate.profile import BY_SDK, TUNING_STATUSES, Delivery, Gate, Profile, file_refused
from orchestrate.types import Severity

if TYPE_CHECKING:
    from orchestrate.costing.rate import Rate
    from orchestrate.costing.size import JobSize, Lines

# OpenAI's data rules. The limits for rows are from its documentation and API specification, late 2026.


RULES = HostRules(
    kinds={
        "chat": None,
        "preference": None,
        "unpaired": f"OpenAI {NO_KTO}",
        "rl": None,
        "completion": "prompt/completion rows only work with models that OpenAI has shut down. "
        "Convert them to chat rows",
        "text": "OpenAI trains only on conversations",
    },
    traits={
        Trait.ROW_WEIGHT: NO_ROW_WEIGHT,
        Trait.REASONING: Rule(
            "reasoning-lost",
            Severity.ERROR,
            "thinking is not supported",
            "remove it, or convert with --allow-loss",
            lossy=True,
        ),
        Trait.IMAGES: Rule(
            "vision-model-only",
            Severity.WARNING,
            "only gpt-4o-2024-08-06 accepts images",
            "choose that model, or remove the images",
        ),
        Trait.SEVERAL_ANSWERS: ONE_ANSWER,
        Trait.LOSS_SPANS: NO_SPANS,
        Trait.LOCAL_IMAGES: NO_LOCAL_IMAGES,
    },
    preference_traits={
        Trait.IMAGES: refused("images-in-pairs", "preference pairs are text only", "remove the images")
    },
    least_rows=10,
    most_bytes=8 * GIB,
    most_tokens=65_536,
)


def billed_tokens(train_tokens: int, epochs: int) -> int:
    """Count the tokens of the training file after truncation, once per epoch. The validation file is not
    billed.

    Source: developers.openai.com fine-tuning guide, "Estimate costs": price per token x tokens in the file x
    epochs. The job reports the product as `trained_tokens`."""
    return train_tokens * epochs


def auto_epochs(rows: int) -> int:
    """Return the number of epochs that `n_epochs: auto` resolves to: 3, or more for few rows and fewer for
    many.

    Source: OpenAI cookbook, "Data preparation and analysis for chat model fine-tuning": 3 epochs, adjusted so
    that rows x epochs is between 100 and 25,000 and epochs between 1 and 25."""
    if rows <= 0:
        return 3
    if rows * 3 < 100:
        return min(25, 100 // rows)
    if rows * 3 > 25_000:
        return max(1, 25_000 // rows)
    return 3


def bills(size: JobSize, rate: Rate) -> Lines:
    from orchestrate import text
    from orchestrate.costing.lines import MTOK, line
    from orchestrate.costing.size import Lines

    training = line(
        "training",
        billed_tokens(size.train_tokens, size.epochs) / MTOK,
        rate,
        low=size.train_least * size.epochs_low / MTOK,
        high=size.train_most * size.epochs_high / MTOK,
    )
    note = f"{text.count(size.epochs, 'epoch')}. The validation file is not billed"
    return Lines(lines=(training,), notes=(note,), open_end=size.uncounted)


def picture_tokens(model: str, picture: Picture) -> tuple[int, int, int] | None:
    from orchestrate.providers.openai import pictures

    return pictures.tokens(model, picture)


def tuned_base(name: str) -> str | None:
    """Return the base model in a tuned model's name, such as `ft:gpt-4o-mini-2024-07-18:org:suffix:id`, or
    `None` for other names. The base model determines the price and limits of jobs that continue from the
    tuned model."""
    parts = name.split(":")
    return parts[1] if parts[0] == "ft" and len(parts) > 1 else None


def delivery(body: str, headers: Mapping[str, str], secret: str) -> Delivery:
    from orchestrate.providers.openai.webhooks import read

    return read(body, headers, secret)


PROFILE = Profile(
    kind="openai",
    title="OpenAI",
    provider="orchestrate.providers.openai.provider:OpenAIProvider",
    rank=0,
    url="https://api.openai.com/v1",
    organization_variable="OPENAI_ORG_ID",
    project_variable="OPENAI_PROJECT_ID",
    chat_limit="max_completion_tokens",  # newer models refuse `max_tokens`; many compatible hosts need it
    webhook_variable="OPENAI_WEBHOOK_SECRET",
    delivery=delivery,
    options=BY_SDK,
    sdk="openai",
    others_speak=True,
    statuses=TUNING_STATUSES,
    sends_wandb_key=False,
    rules=RULES,
    dialect=Dialect(row_weight=False),
    ids=re.compile(r"^(ft:|gpt-|o\d|chatgpt-|davinci|babbage)"),
    tuned_base=tuned_base,
    no_new_jobs_after=date(2027, 1, 6),
    output_terms="OpenAI's Services Agreement prohibits using OpenAI's output to develop models that compete "
    "with OpenAI. Check whether your model would compete. Terms as of 2026-11: "
    "openai.com/policies/services-agreement",
    closing_source="developers.openai.com/api/docs/deprecations, announced 2026-05-07",
    # Several copies of that page give these dates.
    gates=(
        Gate(date(2026, 5, 7), "organizations that never fine-tuned a model"),
        Gate(date(2026, 7, 2), "organizations that had not used a tuned model in the previous 60 days"),
    ),
    bills=bills,  # one price for SFT and DPO: developers.openai.com/api/docs/pricing
    picture_tokens=picture_tokens,
    checkpoints_answer=True,  # `fine_tuned_model_checkpoint`; developers.openai.com, guide of fine-tuning
    auto_epochs=auto_epochs,
    unbilled_failure=file_refused,
    cap_gap="OpenAI reports a job's tokens only after it has ended",
)
