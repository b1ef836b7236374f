"""Fireworks: managed fine-tuning of open models with SFT, DPO and RFT through the `fireworks-ai` SDK."""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from orchestrate.data.dialects import Dialect
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import (
    AS_SYSTEM,
    INLINE_IMAGES,
    NO_FUNCTION_ROLE,
    NO_KTO,
    NO_LOCAL_IMAGES,
    NO_NAMES,
    NO_PARALLEL,
    NO_SPANS,
    ONE_ANSWER,
    SYSTEM_LATER,
    HostRules,
)
from orchestrate.profile import HOSTED, Profile
from orchestrate.types import Job, JobStatus

if TYPE_CHECKING:
    from orchestrate.costing.rate import Rate
    from orchestrate.costing.size import JobSize, Lines
    from orchestrate.spec import JobSpec

# What Fireworks accepts and requires. The row limits come from its documentation and API description, late
# 2026.


RULES = HostRules(
    kinds={
        "chat": None,
        "preference": None,
        "unpaired": f"Fireworks {NO_KTO}",
        "completion": None,
        "rl": None,
        "text": "Fireworks accepts only chat and prompt/completion rows",
    },
    traits={
        Trait.FUNCTION_ROLE: NO_FUNCTION_ROLE,
        Trait.SYSTEM_LATER: SYSTEM_LATER,
        Trait.REMOTE_IMAGES: INLINE_IMAGES,
        Trait.SEVERAL_ANSWERS: ONE_ANSWER,
        Trait.LOSS_SPANS: NO_SPANS,
        Trait.LOCAL_IMAGES: NO_LOCAL_IMAGES,
        Trait.DEVELOPER: AS_SYSTEM,
        Trait.NAMES: NO_NAMES,
        Trait.PARALLEL_TOOL_CALLS: NO_PARALLEL,
    },
    least_rows=3,
    most_rows=3_000_000,
    row_weights_on_all=True,
)


def billed_tokens(
    train_tokens: int, epochs: int, *, reasoning: bool = False, average_turns: float = 1.0
) -> int:
    """Return the number of billed tokens: the dataset's tokens times the number of epochs. With `reasoning`,
    rows are split into one row per turn. The result is then multiplied by half of `average_turns` if that is
    more than 1.

    Source: docs.fireworks.ai fine-tuning pricing."""
    factor = max(Decimal(1), Decimal(str(average_turns)) / 2) if reasoning else Decimal(1)
    return int((train_tokens * epochs * factor).to_integral_value(rounding="ROUND_CEILING"))


def bills(size: JobSize, rate: Rate) -> Lines:
    from orchestrate import text
    from orchestrate.costing.lines import MTOK, line
    from orchestrate.costing.size import Lines

    epochs = text.count(size.epochs, "epoch")
    notes = [f"{epochs}. The evaluation dataset is not billed. The price page lists no minimum charge"]
    tokens = billed_tokens(
        size.train_tokens, size.epochs, reasoning=size.reasoning, average_turns=size.average_turns
    )
    if tokens != size.train_tokens * size.epochs:
        notes.append(
            f"rows with reasoning are split into one row per turn (tokens x {size.average_turns / 2:.2f})"
        )
    unrolled = Decimal(tokens) / size.train_tokens if size.train_tokens else Decimal(0)
    low, high = (each * unrolled / MTOK for each in (size.train_least, size.train_most))
    training = line("training", tokens / MTOK, rate, low=low, high=high)
    return Lines(lines=(training,), notes=tuple(notes), open_end=size.uncounted)


REGION_FACTOR = Decimal("1.5")


def region_factor(region: str | None) -> Decimal:
    """Return the price multiplier for a GPU-hour in a region. Source: fireworks.ai/pricing, 2026-10-08,
    "region-restricted deployments x1.5"."""
    anywhere = region is None or region == "GLOBAL" or region.endswith("UNSPECIFIED")
    return Decimal(1) if anywhere else REGION_FACTOR


def hourly_factor(spec: JobSpec) -> Decimal:
    """Return the multiplier for the hourly price of an RFT job. Fireworks bills RFT at deployment rates,
    which depend on the selected region."""
    options = spec.provider_options.get(PROFILE.kind, {})
    config: Any = options.get("trainingConfig")
    inside: Any = cast("dict[str, Any]", config).get("region") if isinstance(config, dict) else None
    region: Any = inside or options.get("trainingConfig.region")
    return region_factor(region if isinstance(region, str) else None)


def refused_in_validation(job: Job) -> bool:
    """Return True if a failed SFT job never started training, that is, if it reports no progress. Such a job
    costs nothing, because Fireworks bills SFT jobs per token.

    Always returns False for DPO and RFT jobs, because the API doesn't report their progress. Fireworks does
    not document that failed jobs are free."""
    worked = job.percent or job.epoch or job.trained_tokens or job.accelerator_seconds
    return job.handle.kind == "supervised" and not worked


STATUSES: Mapping[str, JobStatus] = {
    "JOB_STATE_UNSPECIFIED": JobStatus.UNKNOWN,
    "JOB_STATE_CREATING": JobStatus.QUEUED,
    "JOB_STATE_PENDING": JobStatus.QUEUED,
    "JOB_STATE_RE_QUEUEING": JobStatus.QUEUED,
    "JOB_STATE_VALIDATING": JobStatus.VALIDATING,
    "JOB_STATE_CREATING_INPUT_DATASET": JobStatus.VALIDATING,
    "JOB_STATE_RUNNING": JobStatus.RUNNING,
    "JOB_STATE_IDLE": JobStatus.RUNNING,
    "JOB_STATE_WRITING_RESULTS": JobStatus.FINALIZING,
    "JOB_STATE_PAUSED": JobStatus.PAUSED,
    "JOB_STATE_CANCELLING": JobStatus.CANCELLING,
    "JOB_STATE_COMPLETED": JobStatus.SUCCEEDED,
    "JOB_STATE_EARLY_STOPPED": JobStatus.SUCCEEDED,
    "JOB_STATE_FAILED": JobStatus.FAILED,
    "JOB_STATE_EXPIRED": JobStatus.FAILED,
    "JOB_STATE_CANCELLED": JobStatus.CANCELLED,
    "JOB_STATE_DELETING": JobStatus.CANCELLED,
    "JOB_STATE_DELETING_CLEANING_UP": JobStatus.CANCELLED,
    "JOB_STATE_DELETED": JobStatus.CANCELLED,
    "JOB_STATE_ARCHIVED": JobStatus.CANCELLED,  # what a deleted job leaves behind (fw-ai/cookbook)
}

PROFILE = Profile(
    kind="fireworks",
    title="Fireworks",
    provider="orchestrate.providers.fireworks.sessions:SteppedFireworks",
    rank=2,
    url="https://api.fireworks.ai",
    options=HOSTED,
    sdk="fireworks-ai",
    account_variable="FIREWORKS_ACCOUNT_ID",
    chat_path="/inference/v1",
    statuses=STATUSES,
    rules=RULES,
    dialect=Dialect(developer="system", reasoning="reasoning_content", names=False, parallel=False),
    ids=re.compile(r"^accounts/[^/]+/models/[^/]+$"),
    bills=bills,
    dpo_factor=Decimal(2),  # fireworks.ai/pricing, 2026-10-08
    default_epochs=1,
    hourly_factor=hourly_factor,
    figures_are_estimates=True,  # the field is called `estimatedCost`, and does not change with the job's end
    unbilled_failure=refused_in_validation,
    serving_note="Fireworks scales deployments to zero after one idle hour",
)
