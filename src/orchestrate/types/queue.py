"""Records of queued runs, and of hyperparameter searches with their trials."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any

from orchestrate.types.record import Record


class QueueState(StrEnum):
    WAITING = "waiting"
    """The entry starts as soon as its backend has a free slot and the runs it depends on have succeeded."""
    HELD = "held"
    """The entry doesn't start automatically. Its note says why. `orchestrate queue resume` sets it to WAITING
    again."""
    SUBMITTING = "submitting"
    """A server is submitting the entry. If that server stopped in the meantime, the next one finishes the
    submission."""
    SUBMITTED = "submitted"
    """The entry's run exists and is tracked like any other run."""
    REMOVED = "removed"


class QueueEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A run to be submitted once there is a free slot."""

    id: str
    provider: str
    spec: dict[str, Any]
    """The spec as requested, with absolute paths of its files."""
    host: str
    """Address of the backend when the entry was added, so that a sandbox's entry is never sent to the real
    host."""
    account: str
    """Account of the key that was configured when the entry was added, so that no other account is billed."""
    digest: str
    """Digest of the training data when the price was confirmed. Changed data is not submitted."""
    created_at: datetime
    position: int
    """Position in the queue. The entry with the lowest position starts first."""
    state: QueueState = QueueState.WAITING
    after: tuple[str, ...] = ()
    """Entries and runs that must succeed first."""
    agreed_usd: Decimal | None = None
    """Price that the user confirmed: the high end of the displayed quote or, if higher, the limit. The run is
    not submitted if its price has risen above this. `None` if there was no price."""
    max_cost_usd: Decimal | None = None
    run_id: str | None = None
    note: str | None = None
    made_by: str | None = None


class TrialState(StrEnum):
    OPEN = "open"
    """The trial has a run, or is about to get one."""
    SCORED = "scored"
    PRUNED = "pruned"
    """The trial was stopped early because other trials were better at the same step."""
    FAILED = "failed"


class Trial(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One trial of a search: a value for each setting that varies, and the share of the training rows to
    train on."""

    number: int
    """Number of the trial, unique within the search."""
    settings: dict[str, Any]
    """Settings that differ from the search's spec, keyed by dotted name. `provider` is the backend."""
    share: float = 1.0
    """Share of the training rows."""
    parent: int | None = None
    """Number of the earlier trial whose settings this trial repeats on all rows. `None` for other trials."""
    state: TrialState = TrialState.OPEN
    run_id: str | None = None
    high_usd: Decimal = Decimal(0)
    """High end of the trial's quote. The budget reserves this amount until the bill is known."""
    score: float | None = None
    score_low: float | None = None
    score_high: float | None = None
    """High end of the score's confidence interval. `None` if the search's target has no interval."""
    note: str | None = None


class Search(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A hyperparameter search: a spec, the settings to vary, and the target."""

    id: str
    created_at: datetime
    spec: dict[str, Any]
    providers: tuple[str, ...]
    choices: dict[str, tuple[Any, ...]]
    """Values to choose from, keyed by the setting's dotted name."""
    ranges: dict[str, tuple[float, float, bool]]
    """Ranges as (low, high, log scale), keyed by the setting's dotted name."""
    sampler: str
    trials: int
    """Maximum number of trials on the first share of the data."""
    seed: int = 0
    target: str = "validation_loss"
    test: str | None = None
    """File with the rows used to score `eval:` targets. Default: the spec's test file."""
    digest: str = ""
    """Digest of the training data. A search is not continued on other data."""
    share: float = 1.0
    survivors: int = 0
    """Number of best trials to repeat on all rows. Only used if `share` is below 1."""
    prune: bool = False
    max_parallel: int = 1
    max_cost_usd: Decimal | None = None
