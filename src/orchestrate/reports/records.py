"""What a comparison of runs holds."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from orchestrate import costing, text
from orchestrate.types import EvaluationResult, JobStatus, Record, Run


class Point(Record, frozen=True, kw_only=True):
    tokens: float
    """Trained so far; steps where `Compared.tokens_known` is false for all runs."""
    value: float


class Reason(Record, frozen=True, kw_only=True):
    """Why one aspect of the runs must not be compared."""

    aspect: str
    """data, loss, scores, cost or all."""
    text: str


class Compared(Record, frozen=True, kw_only=True):
    """One run of a comparison with what was derived from its rows."""

    run: Run
    label: str
    """Short and unique within the comparison."""
    seconds: float | None
    tokens: int | None
    tokens_per_second: float | None
    train_loss: float | None
    """The last one."""
    valid_loss: float | None
    """The last one."""
    reward: float | None = None
    """The last one of reinforcement fine-tuning: on the validation prompts where there are some."""
    train_curve: tuple[Point, ...] = ()
    valid_curve: tuple[Point, ...] = ()
    tokens_known: bool = True
    """False when the token axis is the run's steps spread over its tokens."""
    settings: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    reconciliation: costing.Reconciliation | None = None
    evaluations: tuple[EvaluationResult, ...] = ()
    serving: str | None = None


class ComparedRuns(Record, frozen=True, kw_only=True):
    """Runs side by side. `reasons` is empty when they may be compared in every respect."""

    runs: tuple[Compared, ...]
    reasons: tuple[Reason, ...] = ()
    findings: tuple[str, ...] = ()
    """What the numbers say, in sentences."""
    notes: tuple[str, ...] = ()

    @property
    def comparable(self) -> bool:
        return not self.reasons

    @property
    def sandbox(self) -> bool:
        """Whether any run was trained by a sandbox."""
        return any(c.run.sandbox for c in self.runs)

    @property
    def setting_names(self) -> list[str]:
        return sorted({name for c in self.runs for name in c.settings})


def quoted(compared: Compared) -> Decimal | None:
    quote = compared.run.quote
    return None if quote is None or quote.unavailable else quote.expected_usd


def billed(compared: Compared) -> Decimal | None:
    return compared.run.bill.usd if compared.run.bill else None


def bill_error(compared: Compared) -> str:
    found = compared.reconciliation
    return text.signed(found.total.relative) if found else text.NOTHING


def ended(compared: Compared) -> bool:
    return compared.run.status is JobStatus.SUCCEEDED
