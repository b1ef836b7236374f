"""Price of a recipe, computed from the number of tokens it trains, prefills and samples."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import NamedTuple

from orchestrate.costing import PlannedJob, Rate
from orchestrate.costing.lines import MTOK, line, summed
from orchestrate.costing.size import JobSize, measure
from orchestrate.costing.training import ANSWER_SHARE
from orchestrate.local.job import DEFAULT_SAMPLES
from orchestrate.providers.tinker.translation import most_new_tokens
from orchestrate.spec import DPO, RFT
from orchestrate.types import Quote


class _Tokens(NamedTuple):
    """Minimum, likely and maximum tokens of one kind."""

    least: Decimal
    likely: Decimal
    most: Decimal


def quote(work: PlannedJob, rates: Mapping[str, Rate | None]) -> Quote:
    """Build a quote from the rates `session_train`, `session_prefill` and `session_sample`. If a rate is
    `None`, its tokens are not billed."""
    size = measure(work)
    tokens = _tokens(work, size)
    lines = [
        line(
            component,
            found.likely / MTOK,
            rate,
            band=size.band,
            low=found.least / MTOK,
            high=found.most / MTOK,
        )
        for (component, found), rate in zip(tokens.items(), rates.values(), strict=True)
        if rate is not None
    ]
    notes = [f"{size.passes:.4g} epochs", *size.notes]
    if isinstance(work.spec.method, RFT):
        most = most_new_tokens(work.translation.body)
        least, likely = (f"{share * most:.0f}" for share in ANSWER_SHARE[:2])
        notes.append(f"assumes {likely} tokens per answer ({least} to {most})")
    if not lines:
        notes.append("a server on this machine costs nothing")
    return summed(
        provider=work.provider,
        model=work.resolved.name,
        lines=lines,
        assumptions=notes,
        warnings=work.resolved.warnings,
        billed_tokens=round(tokens["train"].likely),
    )


def _tokens(work: PlannedJob, size: JobSize) -> dict[str, _Tokens]:
    """Count the tokens. Rows are cut after their last trained token, so fewer may be sent than they have."""
    method, passes = work.spec.method, size.passes
    read = Decimal(size.validation_tokens * size.evals)
    if isinstance(method, RFT):
        samples = method.samples_per_prompt or DEFAULT_SAMPLES
        answers = [share * most_new_tokens(work.translation.body) for share in ANSWER_SHARE]
        drawn = [samples * size.rows * passes * one for one in answers]
        judged = [size.validation_rows * size.evals * one for one in answers]
        prompts = size.train_tokens * passes
        times = 2 if work.translation.body.get("objective") == "dro" else 1  # to sample, and for the loss
        return {
            "train": _Tokens(Decimal(0), *(samples * prompts + one for one in drawn[1:])),
            "prefill": _Tokens(*[times * prompts + read] * 3),
            "sample": _Tokens(*(one + other for one, other in zip(drawn, judged, strict=True))),
        }
    trained = size.train_tokens * passes
    if isinstance(method, DPO):
        # Each step first runs a forward pass on its pairs, because the loss is computed on this machine. A
        # reference model runs one more forward pass on all pairs.
        reference = method.loss != "orpo" and method.simpo_gamma is None
        read += trained + (size.train_tokens + size.validation_tokens if reference else 0)
    return {
        "train": _Tokens(trained / 2, trained, trained),
        "prefill": _Tokens(read / 2, read, read),
        "sample": _Tokens(*[Decimal(0)] * 3),
    }
