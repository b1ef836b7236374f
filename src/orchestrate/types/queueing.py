"""Runs that wait for a place, and trials of a search of settings."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from orchestrate.types.record import Record


class QueueState(StrEnum):
    WAITING = "waiting"
    """Starts as soon as its backend has room and the runs it depends on have succeeded."""
    HELD = "held"
    """Does not start on its own; the note says why. `orchestrate queue resume` lets it wait again."""
    SUBMITTING = "submitting"
    """A server is submitting it, or was when it ended; the next one continues."""
    SUBMITTED = "submitted"
    """Has its run, which is followed like any other."""
    REMOVED = "removed"


class QueueEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A run that will be submitted once there is room for it."""

    id: str
    provider: str
    spec: dict[str, Any]
    """The spec as requested, with absolute paths of its files."""
    host: str
    """The backend's address at that time, so a sandbox's entry never goes to the real host."""
    account: str
    """The account whose key was in use, so another account is not billed for it."""
    digest: str
    """Digest of the training data when the price was confirmed; changed data is not submitted."""
    created_at: datetime
    position: int
    """The lowest goes first."""
    state: QueueState = QueueState.WAITING
    after: tuple[str, ...] = ()
    """Entries and runs that must succeed first."""
    agreed_usd: Decimal | None = None
    """The high end of the quote that was shown, or the limit if that is higher: nothing above it is
    submitted to a host. `None`: it had no price."""
    max_cost_usd: Decimal | None = None
    run_id: str | None = None
    note: str | None = None
    made_by: str | None = None


class TrialState(StrEnum):
    OPEN = "open"
    """It has a run, or is about to have one."""
    SCORED = "scored"
    PRUNED = "pruned"
    """Stopped early: other trials were better at the same step."""
    FAILED = "failed"


class Trial(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One choice of settings on one share of the data."""

    number: int
    """Unique in the search."""
    settings: dict[str, Any]
    """Differences from the search's spec, by dotted names; `provider` is the backend."""
    share: float = 1.0
    """Share of the training rows."""
    parent: int | None = None
    """The trial on fewer rows that this one continues in full."""
    state: TrialState = TrialState.OPEN
    run_id: str | None = None
    high_usd: Decimal = Decimal(0)
    """High end of its quote, which it reserves in the budget until its bill is known."""
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    """The interval of the score, if the target has one."""
    note: str | None = None


class Search(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A search for settings: a spec, what may vary, and the target."""

    id: str
    created_at: datetime
    spec: dict[str, Any]
    providers: tuple[str, ...]
    choices: dict[str, tuple[Any, ...]]
    """Values to choose from, by dotted names."""
    ranges: dict[str, tuple[float, float, bool]]
    """Low, high, and whether on a log scale."""
    sampler: str
    trials: int
    """Maximum number of trials on the first share of the data."""
    seed: int = 0
    target: str = "validation_loss"
    test: str | None = None
    """Rows on which `eval:` targets are scored; default: the spec's."""
    digest: str = ""
    """Digest of the training data: a search is not continued on other data."""
    share: float = 1.0
    survivors: int = 0
    """With a share below 1: how many of the best are trained again on all rows."""
    prune: bool = False
    max_parallel: int = 1
    max_cost_usd: Decimal | None = None
