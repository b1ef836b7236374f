"""A tuned model against its base among real users: what was planned, and what the evidence says."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

from orchestrate.types.record import Record

Arm = Literal["base", "tuned"]
Verb = Literal["hold", "ramp", "ship", "roll back", "stop"]


class PlannedMetric(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A number recorded for users, where each user counts once in a phase."""

    name: str
    role: Literal["primary", "guardrail", "told"] = "told"
    """The primary metric decides whether the tuned model ships, a guardrail only whether it is rolled
    back; `told` decides nothing."""
    kind: Literal["right-or-wrong", "number"] = "right-or-wrong"
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    """Accepted worsening: absolute, in the metric's own unit."""
    of_user: Literal["first", "mean", "sum", "any", "all"] = "first"
    """How a user's outcomes are combined. All but `first` need a window."""
    window_h: float | None = None
    """Hours after a user was first assigned a model in a phase, in which outcomes count."""
    absent: float | None = None
    """Value of a user without an outcome in the window; `None`: the user doesn't count."""


class DecisionRule(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule for moving to the next share, fixed before anything is observed."""

    stages: tuple[float, ...] = (10, 25, 50, 100)
    """Shares of users that get the tuned model, one after the other, in percent; the last is 100."""
    goal: Literal["better", "not worse"] = "better"
    """Goal of the primary metric for the last stage; `not worse` uses its margin."""
    min_users: int = 100
    """Minimum users of each arm in a stage before the next one."""
    min_hours: float = 24.0
    """Minimum hours of each stage."""
    most_users: int | None = None
    """Users of both arms together after which it is rolled back without reaching the goal."""
    alpha: float = 0.05
    """The chance of a wrong claim on the primary metric, however often you look; the guardrails share
    another one."""


class ExperimentPlan(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan of an experiment, fixed before it begins."""

    name: str
    base: str
    """MODEL, HOST=MODEL, https://ADDRESS/v1=MODEL, or a run, whose base is then used."""
    tuned: str
    metrics: tuple[PlannedMetric, ...]
    rule: DecisionRule = DecisionRule()
    key_variables: dict[str, str] = {}
    """By arm: the environment variable with the key for an address."""
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
    """Makes the users' assignment independent of all other experiments."""
    plan: ExperimentPlan


class ExperimentPhase(Record, frozen=True, kw_only=True):
    """A period with a constant share."""

    number: int
    share: float
    """Share of users, 0 to 1, that get the tuned model."""
    at: datetime
    verb: Literal["start", "ramp", "ship", "roll back", "stop"]
    why: str
    actor: str

    @property
    def over(self) -> bool:
        """No more evidence is collected, and everybody gets one model."""
        return self.verb in ("ship", "roll back", "stop")


class Exposure(Record, frozen=True, kw_only=True):
    """A user who was assigned a model in a phase."""

    user: str
    """A hash."""
    phase: int
    arm: Arm
    chance: float
    """Probability of the tuned model, given the user's earlier assignment: 1 for users who stay with it."""
    at: datetime


class EvidencePoint(Record, frozen=True, kw_only=True):
    """The evidence after this many users were counted."""

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
    """Counted users, by arm."""
    values: dict[str, float | None]
    """Raw means by arm over all phases. The difference is not theirs if shares changed."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    """The interval contains the true difference at all times at once with a probability of 1 - alpha."""
    gate: str | None = None
    """Why there is no interval yet, and for numbers no evidence."""
    log10_e: float = 0.0
    """The strongest evidence so far against no difference."""
    p_value: float = 1.0
    """Valid anytime."""
    decision: Literal["better", "worse", "open"] = "open"
    detectable: float | None = None
    """A difference that would have been detected by now in four of five experiments."""
    counted_ratio_p: float = 1.0
    """Whether outcomes came from both arms alike: below 0.001, the metric is not trusted."""
    curve: tuple[EvidencePoint, ...] = ()


class ExperimentDecision(Record, frozen=True, kw_only=True):
    """The rule's current decision."""

    verb: Verb
    share: float
    """Share of users that it leads to."""
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
    """Users who were assigned a model, by arm; users of both count in both."""
    sample_ratio_p: float
    """Whether users were split as planned; below 0.001, the split is broken."""
    evidence: tuple[Evidence, ...]
    decision: ExperimentDecision
    counts: dict[str, int] = {}
    """Answers of the base instead of the tuned model, requests without a user, and outcomes not counted."""
    applied: bool = False
    """The decision was carried out by this very look."""
