"""Together: fine-tuning of open models with SFT and DPO, LoRA and full, through the `together` SDK."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.data.dialects import Dialect
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import (
    AS_SYSTEM,
    GIB,
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
    refused,
)
from orchestrate.profile import HOSTED, HUB_ID, Profile
from orchestrate.types import Job, JobStatus

if TYPE_CHECKING:
    from orchestrate.costing.rate import Rate
    from orchestrate.costing.size import JobSize, Lines

# Together's data rules. The limits for rows are from its documentation and API specification, late 2026.


RULES = HostRules(
    kinds={
        "chat": None,
        "preference": None,
        "unpaired": f"Together {NO_KTO}",
        "completion": None,
        "text": None,
        "rl": "Together does not support RFT",
    },
    traits={
        Trait.FUNCTION_ROLE: NO_FUNCTION_ROLE,
        Trait.SYSTEM_LATER: SYSTEM_LATER,
        Trait.STARTS_WRONG: refused(
            "starts-wrong", "the first message is neither system nor user", "start with a user message"
        ),
        Trait.NOT_ALTERNATING: refused(
            "not-alternating",
            "user and assistant must alternate",
            "merge consecutive messages with the same role (--fix does this)",
        ),
        Trait.REMOTE_IMAGES: INLINE_IMAGES,
        Trait.IMAGES_NOT_FROM_USER: refused(
            "image-not-from-user", "only user messages may contain images", "move the image to a user message"
        ),
        Trait.MANY_IMAGES: refused("many-images", "a row may have at most 10 images", "split the row"),
        Trait.SEVERAL_ANSWERS: ONE_ANSWER,
        Trait.LOSS_SPANS: NO_SPANS,
        Trait.LOCAL_IMAGES: NO_LOCAL_IMAGES,
        Trait.DEVELOPER: AS_SYSTEM,
        Trait.NAMES: NO_NAMES,
        Trait.PARALLEL_TOOL_CALLS: NO_PARALLEL,
    },
    most_bytes=50 * GIB,
)


def billed_tokens(
    train_tokens: int, epochs: int, validation_tokens: int = 0, evals: int = 0
) -> tuple[int, int]:
    """Count training and evaluation tokens: `n_epochs x train + n_evals x validation`, masked tokens
    included.

    Source: docs.together.ai fine-tuning pricing. Every processed token is billed, whether or not it
    contributes to the loss."""
    return train_tokens * epochs, validation_tokens * evals


def unpacked_tokens(sequences: int, max_seq_length: int) -> int:
    """Count tokens without packing. With `packing: false`, every sequence is padded to the full length, so an
    epoch has `rows x max_seq_length` tokens. A preference pair is assumed to count as two sequences.

    Source: docs.together.ai fine-tuning pricing, which does not say how pairs are counted."""
    return sequences * max_seq_length


def share_billed(steps_done: int, steps: int) -> Decimal:
    """Return the fraction of the price that Together bills for a job that was canceled or stopped early. It
    is the fraction of steps that were completed.

    Source: docs.together.ai fine-tuning pricing. For a canceled job, completed steps are billed. For a job
    that stopped early, the remaining steps are refunded."""
    return Decimal(min(steps_done, steps)) / Decimal(steps) if steps > 0 else Decimal(0)


def bills(size: JobSize, rate: Rate) -> Lines:
    from orchestrate import text
    from orchestrate.costing.lines import MTOK, line
    from orchestrate.costing.size import Lines

    epochs, evals = text.count(size.epochs, "epoch"), text.count(size.evals, "evaluation")
    notes = [f"{epochs} and {evals}, including masked tokens"]
    open_end = size.uncounted
    per_epoch, least, most = size.train_tokens, size.train_least, size.train_most
    evaluated_most = size.validation_most
    if not size.packing:
        length = size.max_length or size.longest
        per_epoch = unpacked_tokens(size.sequences, length)
        # The length of padded rows is known, but not whether a pair counts as one row or two.
        least, most = Decimal(size.rows * length), Decimal(per_epoch)
        evaluated_most = max(evaluated_most, Decimal(unpacked_tokens(size.validation_sequences, length)))
        notes.append(f"packing off: each row is billed as {length} tokens")
        if size.sequences > size.rows:
            notes[-1] += ", and a preference pair as two rows (as one row in the low estimate)"
        if size.max_length is None:
            open_end = (
                f"without packing, rows are padded to the model's maximum length. This length is unknown, "
                f"so the quote assumes the length of the longest row: {length} tokens"
            )
    training, evaluation = billed_tokens(per_epoch, size.epochs, size.validation_tokens, size.evals)
    low, high = (each * size.epochs / MTOK for each in (least, most))
    lines = [line("training", training / MTOK, rate, low=low, high=high)]
    if evaluation:
        low, high = (each * size.evals / MTOK for each in (size.validation_least, evaluated_most))
        lines.append(line("evaluation", evaluation / MTOK, rate, low=low, high=high))
    return Lines(lines=tuple(lines), notes=tuple(notes), open_end=open_end)


def unbilled_failure(job: Job) -> bool:
    """Return True if Together does not bill a failed job. The status `error` means a platform failure, which
    Together refunds in full. For the status `user_error`, only completed steps are billed, so a job that
    never started training costs nothing. Source: docs.together.ai fine-tuning pricing."""
    never_began = job.step == 0 or (job.step is None and job.started_at is None)
    return job.raw_status == "error" or (never_began and not job.trained_tokens)


STATUSES: Mapping[str, JobStatus] = {
    "pending": JobStatus.QUEUED,
    "queued": JobStatus.QUEUED,
    "running": JobStatus.RUNNING,
    "compressing": JobStatus.FINALIZING,
    "uploading": JobStatus.FINALIZING,
    "cancel_requested": JobStatus.CANCELLING,
    "cancelled": JobStatus.CANCELLED,
    "error": JobStatus.FAILED,
    "user_error": JobStatus.FAILED,
    "completed": JobStatus.SUCCEEDED,
}

PROFILE = Profile(
    kind="together",
    title="Together",
    provider="orchestrate.providers.together.sessions:SteppedTogether",
    rank=1,
    url="https://api.together.ai",
    origins=frozenset(
        {"https://api.together.ai", "https://api.together.xyz", "https://api-inference.together.ai"}
    ),
    options=HOSTED,
    sdk="together",
    project_variable="TOGETHER_PROJECT_ID",
    chat_url="https://api-inference.together.ai",
    chat_path="/v1",
    statuses=STATUSES,
    rules=RULES,
    dialect=Dialect(developer="system", reasoning="reasoning", names=False, parallel=False),
    ids=HUB_ID,  # its own output names look so too
    bills=bills,
    dpo_factor=Decimal("2.5"),  # blog of 2026-09-11: every published pair of prices
    default_epochs=1,
    share_billed=share_billed,
    reports_price=True,  # `total_price`
    unbilled_failure=unbilled_failure,
)
