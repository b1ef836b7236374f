"""A tuned model against its base among real users: what was planned, and what the evidence says."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

from orchestrate.types.record import Record

Arm = Literal["base", "tuned"]
Verb = Literal["hold", "ramp", "ship", "roll back", "stop"]


class PlannedMetric(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number that is recorded of users, of which each user counts once in a phase."""

    name: str
    role: Literal["primary", "guardrail", "told"] = "told"
    """The primary one decides whether the tuned model is shipped, a guardrail only whether it is taken
    back; `told` decides nothing."""
    kind: Literal["right-or-wrong", "number"] = "right-or-wrong"
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    """A worsening of up to so much is borne: absolute, in the metric's own unit."""
    of_user: Literal["first", "mean", "sum", "any", "all"] = "first"
    """What a user's outcomes come to. All but `first` need a window."""
    window_h: float | None = None
    """Hours after a user was first given a model in a phase, whose outcomes count."""
    absent: float | None = None
    """What a user without an outcome in the window counts as; `None`: as nothing."""


class DecisionRule(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule for moving to the next share, fixed before anything is observed."""

    stages: tuple[float, ...] = (10, 25, 50, 100)
    """Shares of users that the tuned model gets one after the other, in percent; the last is 100."""
    goal: Literal["better", "not worse"] = "better"
    """Of the primary metric, for the last stage; `not worse` is by its margin."""
    min_users: int = 100
    """So many of each arm must have been seen in a stage before the next."""
    min_hours: float = 24.0
    """Of each stage."""
    most_users: int | None = None
    """Seen in both arms together without the goal: rolled back."""
    alpha: float = 0.05
    """The chance of a wrong claim on the primary metric, however often one looks; the guardrails share
    another one."""


class ExperimentPlan(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan that is fixed before an experiment begins."""

    name: str
    base: str
    """MODEL, HOST=MODEL, https://ADDRESS/v1=MODEL, or a run, whose base it then is."""
    tuned: str
    metrics: tuple[PlannedMetric, ...]
    rule: DecisionRule = DecisionRule()
    key_variables: dict[str, str] = {}
    """By arm: the variable of the environment with the key for an address."""
    usd_per_mtok: dict[str, tuple[Decimal, Decimal]] = {}
    """By arm: prices of a million prompt and answer tokens, for the metric `cost_usd`."""

    def metric(self, name: str) -> PlannedMetric | None:
        return next((m for m in self.metrics if m.name == name), None)

    @property
    def primary(self) -> PlannedMetric:
        return next(m for m in self.metrics if m.role == "primary")


class ExperimentRecord(Record, frozen=True, kw_only=True):
    id: str
    created_at: datetime
    salt: str
    """Makes the users' places independent of those in all other experiments."""
    plan: ExperimentPlan


class ExperimentPhase(Record, frozen=True, kw_only=True):
    """A time of a constant share."""

    number: int
    share: float
    """Of users, 0 to 1, that the tuned model gets."""
    at: datetime
    verb: Literal["start", "ramp", "ship", "roll back", "stop"]
    why: str
    actor: str

    @property
    def over(self) -> bool:
        """No evidence is collected any more: everybody gets one model."""
        return self.verb in ("ship", "roll back", "stop")


class Exposure(Record, frozen=True, kw_only=True):
    """A user who was given a model in a phase."""

    user: str
    """A hash."""
    phase: int
    arm: Arm
    chance: float
    """With which it was the tuned one, given what the user had before: 1 for who stays with it."""
    at: datetime


class EvidencePoint(Record, frozen=True, kw_only=True):
    """The evidence when so many users had been counted."""

    users: int
    log10_e: float
    """0: none; at log10(1 / alpha) a difference is shown."""


class Evidence(Record, frozen=True, kw_only=True):
    """The evidence of one metric, valid anytime. A difference is tuned minus base, over all phases."""

    metric: str
    role: str
    better: str
    margin: float
    alpha: float
    users: dict[str, int]
    """Counted, by arm."""
    values: dict[str, float | None]
    """Means of what users came to, by arm, over all phases as they are: the difference is not theirs where
    shares changed."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    """The interval holds the true difference at all times at once with a chance of 1 - alpha."""
    gate: str | None = None
    """Why there is no interval yet, and for numbers no evidence."""
    log10_e: float = 0.0
    """The most evidence that there was against no difference."""
    p_value: float = 1.0
    """Valid anytime."""
    decision: Literal["better", "worse", "open"] = "open"
    detectable: float | None = None
    """A difference that would have been seen by now in four of five experiments."""
    counted_ratio_p: float = 1.0
    """Whether outcomes came from both arms alike: the metric is not believed where this is below 0.001."""
    curve: tuple[EvidencePoint, ...] = ()


class ExperimentDecision(Record, frozen=True, kw_only=True):
    """The rule's current decision."""

    verb: Verb
    share: float
    """To which it leads."""
    why: str


class ExperimentReport(Record, frozen=True, kw_only=True):
    """The current state of an experiment."""

    id: str
    created_at: datetime
    at: datetime
    plan: ExperimentPlan
    phases: tuple[ExperimentPhase, ...]
    state: Literal["running", "shipped", "rolled back", "stopped"]
    share: float
    users: dict[str, int]
    """Who were given a model, by arm; who had both counts in both."""
    sample_ratio_p: float
    """Whether users were split as planned; below 0.001 the split is broken."""
    evidence: tuple[Evidence, ...]
    decision: ExperimentDecision
    counts: dict[str, int] = {}
    """Answers of the base in the tuned model's place, requests without a user, outcomes not counted."""
    applied: bool = False
    """The decision was carried out by this very look."""
