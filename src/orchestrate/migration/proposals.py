"""The records of a migration: what is proposed before anything is sent, and what came of it."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from orchestrate.evaluation.regression.regress import Regression
from orchestrate.migration.changes import Change
from orchestrate.migration.targets import Needs, Suited
from orchestrate.types import Evaluation, JobStatus, Quote, Record, Score

Old = Literal["live", "recorded"]


class Priced(Record, frozen=True, kw_only=True):
    """A model on a backend, with its prices at the user's traffic."""

    suited: Suited
    quote: Quote
    serving: str = ""
    """How it would be served, in words: by the token, or by the hour."""
    monthly_usd: Decimal | None = None
    unserved: str | None = None
    """Why there is no price of serving."""

    @property
    def against(self) -> tuple[str, ...]:
        """What speaks against it, prices included."""
        known = (self.quote.unavailable, self.quote.refused, self.quote.unlisted)
        return (*self.suited.against, *(reason for reason in known if reason))


class Target(Record, frozen=True, kw_only=True):
    """One backend."""

    provider: str
    candidates: tuple[Priced, ...]
    model: str | None = None
    """The one that would be trained; `None`: nothing that is known to do."""
    quote: Quote | None = None
    """Of all settings as they would be sent."""
    changes: tuple[Change, ...] = ()
    refused: str | None = None
    """Why it cannot be done there."""


class HeldOutRows(Record, frozen=True, kw_only=True):
    """The prompts by which parity is judged."""

    path: str
    rows: int
    origin: str
    """Where they are from, in words."""
    recording: str | None = None
    """The id of the recording that has the old model's answers to them."""


class Proposal(Record, frozen=True, kw_only=True):
    run_id: str
    provider: str
    model: str
    tuned_model: str | None
    silent_on: date | None
    days_left: int | None
    needs: Needs
    traffic: str
    """By which serving is priced, in words."""
    held_out: HeldOutRows | None
    old: Old
    margin: float
    targets: tuple[Target, ...]
    notes: tuple[str, ...] = ()


class Part(Record, frozen=True, kw_only=True):
    """Parity on all rows, or on a slice of them."""

    slice: str
    """Empty: on all."""
    old: Score
    new: Score
    difference: Score
    parity: Literal["holds", "does not hold", "not shown"]


class Moved(Record, frozen=True, kw_only=True):
    """The new model on one backend."""

    provider: str
    model: str
    run_id: str
    status: JobStatus
    cost_usd: Decimal | None = None
    problem: str | None = None
    """Why there is nothing to compare."""
    metric: str = ""
    parts: tuple[Part, ...] = ()
    """On all rows first."""
    decision: str = ""
    """`ship`, `do not ship` or `not enough evidence`, as the evaluation has it."""
    reasons: tuple[str, ...] = ()
    same_answers: int = 0
    """Prompts that both answered with the very same text."""
    prompts: int = 0


class Migration(Record, frozen=True, kw_only=True):
    """What came of moving one run."""

    at: datetime
    proposal: Proposal
    moved: tuple[Moved, ...] = ()
    old: str = ""
    """The name under which the old model stands in the evaluation."""
    evaluation: Evaluation | None = None
    forgotten: tuple[Regression, ...] = ()
    """Of each new model against its own base."""
    notes: tuple[str, ...] = ()

    @property
    def parity(self) -> bool:
        """Whether every new model was shown to be no worse than the margin."""
        return bool(self.moved) and all(m.parts and m.parts[0].parity == "holds" for m in self.moved)
