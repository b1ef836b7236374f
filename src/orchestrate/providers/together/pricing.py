"""Together's own estimate of a job's price (`/v1/fine-tunes/estimate-price`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrate import text as say
from orchestrate.errors import OverBudget, QuotaExceeded
from orchestrate.providers.calls.values import estimate_quote, money, number, text
from orchestrate.types import Quote

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec

_FIELDS = (
    "training_file",
    "validation_file",
    "model",
    "from_checkpoint",
    "n_epochs",
    "n_evals",
    "training_type",
    "training_method",
)
_NO_ESTIMATE = {
    "multimodal_dataset": "Together estimates no price for data with images",
    "train_file_not_validated": "the training file is still being validated",
    "eval_file_not_validated": "the validation file is still being validated",
    "train_file_invalid": "the training file is not valid",
    "eval_file_invalid": "the validation file is not valid",
}


def asked(body: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a create request that the estimate takes. It knows of no packing and no longest row."""
    return {key: body[key] for key in _FIELDS if key in body}


def quote(provider: str, model: str, answer: Mapping[str, Any], spec: JobSpec) -> Quote:
    """Raises `OverBudget` above the spec's limit and `QuotaExceeded` where the account may not go on."""
    total = money(answer.get("estimated_total_price"))
    if answer.get("estimation_available") is False or total is None:
        reason = text(answer.get("unavailable_reason")) or "Together gave no price"
        return Quote(provider=provider, model=model, unavailable=_NO_ESTIMATE.get(reason, reason))
    if answer.get("allowed_to_proceed") is False:
        limit = money(answer.get("user_limit"))
        allowed = "an amount that it does not name" if limit is None else say.limit(limit)
        raise QuotaExceeded(
            provider,
            f"the job is estimated at {say.money(total)}, above what the account may spend ({allowed}); "
            "nothing was sent",
            fix="add credit at Together, or train fewer tokens",
        )
    if spec.max_cost_usd is not None and total > spec.max_cost_usd:
        raise OverBudget(provider, total, spec.max_cost_usd, figure="the host's estimate")
    train = number(answer.get("estimated_train_token_count")) or 0
    evaluated = number(answer.get("estimated_eval_token_count")) or 0
    note = f"{train:,.0f} training and {evaluated:,.0f} evaluation tokens; packing is not part of it"
    source = "Together's own estimate (estimate-price)"
    return estimate_quote(provider, model, total, source, note=note, tokens=int(train + evaluated) or None)
