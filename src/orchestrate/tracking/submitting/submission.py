"""What is asked for with one submit, as its user saw it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.errors import UsageError
from orchestrate.settings.keys import is_masked
from orchestrate.spec import JobSpec
from orchestrate.types import Quote, Run, Translation

if TYPE_CHECKING:
    from orchestrate.data import TrainingData


@dataclass(frozen=True, kw_only=True)
class Submission:
    """`spec` as its backend gets it, with the secrets that no store keeps."""

    spec: JobSpec
    translation: Translation
    """What the spec becomes on the backend: its request is made of this, and nothing is translated again."""
    data: TrainingData
    quote: Quote | None = None
    max_cost_usd: Decimal | None = None
    allowed_usd: Decimal | None = None
    """The most that it may cost, where a rented machine ends at that: so much a budget holds for it."""
    idempotency_key: str | None = None
    again: bool = True
    """Also when a run that is the same (`orchestrate.tracking.submitting.repeats`) stands in the way."""
    patient: bool = False
    """What its host cannot take now, though it may later, stays unsent: the next call with the key goes on
    with the run, under the ref that it has in every copy of the store. Without it the run is refused."""
    made_by: str | None = None


def stored_spec(run: Run) -> JobSpec:
    """What is to be sent for a run that an earlier command began. Raises `UsageError` when a part of it was a
    secret."""
    if names := [name for name, value in run.spec.items() if is_masked(value)]:
        raise UsageError(
            f"run {run.id} cannot be sent again from what is stored: the secrets in "
            f"{' and '.join(names)} of its spec are not kept",
            fix=f"orchestrate cancel {run.id}, then submit again; what was uploaded is used again",
        )
    return JobSpec.parse(run.spec)
