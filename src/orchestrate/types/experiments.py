"""Records of A/B tests of a tuned model against its base: plans, evidence and decisions."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Literal

from orchestrate.types.record import Record

Arm = Literal["base", "tuned"]
Verb = Literal["hold", "ramp", "ship", "roll back", "stop"]


class PlannedMetric(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A metric recorded per user. Each user counts once per phase."""

    name: str
    role: Literal["primary", "guardrail", "secondary"] = "secondary"
    """Role of the metric. The `primary` metric decides whether the tuned model ships. A `guardrail` can only
    cause a rollback. A `secondary` metric is reported, but decides nothing."""
    kind: Literal["right-or-wrong", "number"] = "right-or-wrong"
    better: Literal["higher", "lower"] = "higher"
    margin: float = 0.0
    """Non-inferiority margin: how much worse than the base the tuned model may be, in the metric's unit."""
    of_user: Literal["first", "mean", "sum", "any", "all"] = "first"
    """Rule for combining a user's outcomes. All rules except `first` need a window."""
    window_h: float | None = None
    """Window in which a user's outcomes count, in hours since the user's first assignment in a phase."""
    absent: float | None = None
    """Value for a user without an outcome in the window. With `None`, such a user doesn't count."""


class DecisionRule(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The rule for moving to the next stage. It is set before any data is collected."""

    stages: tuple[float, ...] = (10, 25, 50, 100)
    """Percentage of users that get the tuned model in each stage, in order. The last is 100."""
    goal: Literal["better", "not worse"] = "better"
    """Goal of the primary metric for the last stage. `not worse` uses the metric's margin."""
    min_users: int = 100
    """Minimum number of users per arm before the next stage."""
    min_hours: float = 24.0
    """Minimum duration of each stage in hours."""
    most_users: int | None = None
    """Total number of users, in both arms, after which the tuned model is rolled back if the goal was not
    reached."""
    alpha: float = 0.05
    """Maximum probability of a false claim about the primary metric, no matter how often you check. The
    guardrails share a separate alpha."""


class ExperimentPlan(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The plan of an experiment, set before it begins."""

    name: str
    base: str
    """Base model: MODEL, HOST=MODEL, https://ADDRESS/v1=MODEL, or a run (for its base model)."""
    tuned: str
    metrics: tuple[PlannedMetric, ...]
    rule: DecisionRule = DecisionRule()
    key_variables: dict[str, str] = {}
    """Names of the environment variables with the API keys, as {arm: variable}, for arms that are URLs."""
    usd_per_mtok: dict[str, tuple[Decimal, Decimal]] = {}
    """Prices per million prompt tokens and per million answer tokens, keyed by arm. Used for the metric
    `cost_usd`."""

    def metric(self, name: str) -> PlannedMetric | None:
        return next((m for m in self.metrics if m.name == name), None)

    @property
    def primary(self) -> PlannedMetric:
        return next(m for m in self.metrics if m.role == "primary")


class ExperimentRecord(Record, frozen=True, kw_only=True):
    id: str
    created_at: datetime
    salt: str
    """Random text that makes the assignment of users independent of other experiments."""
    plan: ExperimentPlan


class ExperimentPhase(Record, frozen=True, kw_only=True):
    """A period during which the share of users that get the tuned model stays constant."""

    number: int
    share: float
    """Share of users, 0 to 1, that get the tuned model."""
    at: datetime
    verb: Literal["start", "ramp", "ship", "roll back", "stop"]
    why: str
    actor: str

    @property
    def over(self) -> bool:
        """True if the phase is over. No more evidence is collected, and all users get the same model."""
        return self.verb in ("ship", "roll back", "stop")


class Exposure(Record, frozen=True, kw_only=True):
    """The assignment of a user to a model in a phase."""

    user: str
    """Hash of the user id."""
    phase: int
    arm: Arm
    chance: float
    """Probability that this user is assigned the tuned model, given the user's earlier assignment. It is 1
    for a user who already has the tuned model."""
    at: datetime


class EvidencePoint(Record, frozen=True, kw_only=True):
    """The evidence after a certain number of users."""

    users: int
    log10_e: float
    """Base-10 logarithm of the e-value. 0 means no evidence. The difference is significant once this reaches
    log10(1 / alpha)."""


class Evidence(Record, frozen=True, kw_only=True):
    """The anytime-valid evidence of one metric. A difference is tuned minus base, over all phases."""

    metric: str
    role: str
    better: str
    margin: float
    alpha: float
    users: dict[str, int]
    """Number of users included in the results, by arm."""
    values: dict[str, float | None]
    """Unadjusted average of each arm over all phases. If the arms' shares of users changed between phases,
    `difference` is not simply the difference between these averages."""
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    """Upper bound of the anytime-valid interval. With probability 1 - alpha, the interval contains the true
    difference at all times."""
    gate: str | None = None
    """Reason why the interval can't be computed yet. Until then, numeric metrics also have no evidence."""
    log10_e: float = 0.0
    """Strongest evidence so far against the null hypothesis of no difference."""
    p_value: float = 1.0
    """Anytime-valid p-value."""
    decision: Literal["better", "worse", "open"] = "open"
    detectable: float | None = None
    """Smallest difference that would have been detected by now with 80% power."""
    counted_ratio_p: float = 1.0
    """P-value of a test that the users counted for this metric are split between the arms as planned. Below
    0.001, outcomes seem to be recorded more often in one arm than in the other, so the metric is not
    trusted."""
    curve: tuple[EvidencePoint, ...] = ()


class ExperimentDecision(Record, frozen=True, kw_only=True):
    """The rule's current decision."""

    verb: Verb
    share: float
    """Share of users after the decision."""
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
    """Number of users who were assigned a model, by arm. A user who was in both arms counts in both."""
    sample_ratio_p: float
    """P-value of a test that users are split between the arms as planned. Below 0.001, the split is
    considered broken."""
    evidence: tuple[Evidence, ...]
    decision: ExperimentDecision
    counts: dict[str, int] = {}
    """Counts of failovers to the base model, requests without a user, and ignored outcomes."""
    applied: bool = False
    """True if this call carried out the decision."""
