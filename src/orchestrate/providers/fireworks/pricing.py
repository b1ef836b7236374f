"""Fireworks' own estimate of a job's price (`:estimateCost`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from orchestrate.errors import OverBudget
from orchestrate.providers.calls.values import estimate_quote
from orchestrate.providers.fireworks import reading
from orchestrate.types import Quote

if TYPE_CHECKING:
    from orchestrate.spec import JobSpec


def quote(provider: str, model: str, answer: Mapping[str, Any], spec: JobSpec) -> Quote:
    """Raises `OverBudget` above the spec's limit."""
    total = reading.usd_of(answer.get("estimatedCost"))
    if total is None:
        return Quote(provider=provider, model=model, unavailable="Fireworks gave no price")
    if spec.max_cost_usd is not None and total > spec.max_cost_usd:
        raise OverBudget(provider, total, spec.max_cost_usd, figure="the host's estimate")
    return estimate_quote(provider, model, total, "Fireworks' own estimate (estimateCost)")
