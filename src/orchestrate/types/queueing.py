"""Runs that wait for a place, and trials of a search of settings."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from orchestrate.types.record import Record


class QueueState(StrEnum):
    WAITING = "waiting"
    """Goes as soon as its backend has room and what it comes after has succeeded."""
    HELD = "held"
    """Does not go on its own; the note says why. `orchestrate queue resume` lets it wait again."""
    SUBMITTING = "submitting"
    """A server is at it, or was when it ended: the next one goes on with it."""
    SUBMITTED = "submitted"
    """Has its run, which is followed as any other."""
    REMOVED = "removed"


class QueueEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A run that is to be submitted once there is room for it."""

    id: str
    provider: str
    spec: dict[str, Any]
    """As it was asked for, its files by their full paths."""
    host: str
    """Where the backend was then: a sandbox's entry never goes to the real host."""
    account: str
    """Whose key was in use: another account is not billed for it."""
    digest: str
    """Of the training data when the price was agreed to: other data are not submitted."""
    created_at: datetime
    position: int
    """The lowest goes first."""
    state: QueueState = QueueState.WAITING
    after: tuple[str, ...] = ()
    """Entries and runs that must have succeeded."""
    agreed_usd: Decimal | None = None
    """The high end of the quote that was shown, or the limit where that is above it: nothing above it is
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
    """Ended early: others were better at the same step."""
    FAILED = "failed"


class Trial(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One choice of settings on one share of the data."""

    number: int
    """Unique in the search."""
    settings: dict[str, Any]
    """What differs from the search's spec, by dotted names; `provider` is the backend."""
    share: float = 1.0
    """Of the training rows."""
    parent: int | None = None
    """The trial on fewer rows that this one continues in full."""
    state: TrialState = TrialState.OPEN
    run_id: str | None = None
    high_usd: Decimal = Decimal(0)
    """Of its quote: what it takes of the budget until its bill is known."""
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    """The interval of the score, where the target has one."""
    note: str | None = None


class Search(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A search of settings: a spec, what may vary, and what is wanted of it."""

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
    """At most, on the first share of the data."""
    seed: int = 0
    target: str = "validation_loss"
    test: str | None = None
    """Rows on which `eval:` targets are scored; default: the spec's."""
    digest: str = ""
    """Of the training data: a search is not continued on other data."""
    share: float = 1.0
    survivors: int = 0
    """With a share below 1: how many of the best are trained again on all rows."""
    prune: bool = False
    max_parallel: int = 1
    max_cost_usd: Decimal | None = None
