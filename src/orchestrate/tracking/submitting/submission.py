"""What is asked for with one submit, as its user saw it."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

from orchestrate.spec import JobSpec
from orchestrate.types import Quote, Translation

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
    idempotency_key: str | None = None
    again: bool = True
    """Also when a run that is the same (`orchestrate.tracking.submitting.repeats`) stands in the way."""
    made_by: str | None = None
