"""The records of a comparison of runs."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from orchestrate import costing, text
from orchestrate.evaluation.pairing import Flips, Pairing
from orchestrate.evaluation.regression import Regression
from orchestrate.types import Contender, Difference, Evaluation, JobStatus, MetricUsed, Record, Run, Score


class CurvePoint(Record, frozen=True, kw_only=True):
    tokens: float
    """Trained so far; steps where `Compared.tokens_known` is false for all runs."""
    value: float


class Reason(Record, frozen=True, kw_only=True):
    """Why one aspect of the runs must not be compared."""

    aspect: str
    """data, loss, scores, cost or all."""
    text: str


class RunScore(Record, frozen=True, kw_only=True):
    """A run's score in one metric, from its newest evaluation on these items."""

    metric: MetricUsed
    score: Score
    contender: Contender
    difference: Difference | None
    """To its rival: its base, or what the user named."""
    rival_score: Score | None
    evaluation: Evaluation

    @property
    def rows(self) -> tuple[str, int]:
        """A key of the evaluated rows. Scores with equal keys are comparable."""
        e = self.evaluation
        return (e.items_digest or e.dataset_digest, e.items)


class RunDifference(Record, frozen=True, kw_only=True):
    """The difference between two runs on the items that both answered, from any evaluations."""

    first: str
    """Run ids."""
    second: str
    pairing: Pairing


MARK = " (sandbox)"


class Compared(Record, frozen=True, kw_only=True):
    """One run of a comparison, with values derived from its rows."""

    run: Run
    label: str
    """Short and unique within the comparison; of a sandbox beside real hosts it ends with `MARK`."""
    seconds: float | None
    """From its creation to its end."""
    trained_tokens: int | None
    billed_tokens: int | None
    """By its bill, else by its quote; `None` where something else than tokens is billed."""
    tokens_per_second: float | None
    train_loss: float | None
    """The last one."""
    valid_loss: float | None
    """The last one."""
    reward: float | None = None
    """The last one of reinforcement fine-tuning: on the validation prompts where there are some."""
    train_curve: tuple[CurvePoint, ...] = ()
    valid_curve: tuple[CurvePoint, ...] = ()
    tokens_known: bool = True
    """False when the token axis is the run's steps spread over its tokens."""
    settings: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    chosen: tuple[str, ...] = ()
    """Those of its settings that somebody asked for."""
    reconciliation: costing.Reconciliation | None = None
    scores: tuple[RunScore, ...] = ()
    flips: tuple[Flips, ...] = ()
    """Of its newest evaluation."""
    regression: Regression | None = None
    """Its newest one."""
    asked_again: tuple[Pairing, ...] = ()
    """Its newest evaluation against an earlier one of the same items."""
    serving: str | None = None
    proof: str | None = None
    """Where it was proved to be what was trained, in the words of `types.proof.badge`; `None` for a run
    that has no model yet."""

    @property
    def name(self) -> str:
        """The label without the sandbox mark, for places that show the mark separately."""
        return self.label.removesuffix(MARK)


class ComparisonSummary(Record, frozen=True, kw_only=True):
    """The conclusions of a comparison."""

    sentence: str
    run: str | None = None
    """The id of the run to take, where there is one."""


class ComparedRuns(Record, frozen=True, kw_only=True):
    """Runs side by side. `reasons` is empty if they are comparable in every respect."""

    runs: tuple[Compared, ...]
    answer: ComparisonSummary = ComparisonSummary(sentence="")
    reasons: tuple[Reason, ...] = ()
    findings: tuple[str, ...] = ()
    """What the numbers say, in sentences."""
    notes: tuple[str, ...] = ()
    between: tuple[RunDifference, ...] = ()

    @property
    def comparable(self) -> bool:
        return not self.reasons

    @property
    def sandbox(self) -> bool:
        """Whether any run was trained in a sandbox."""
        return any(c.run.sandbox for c in self.runs)

    @property
    def setting_names(self) -> list[str]:
        return sorted({name for c in self.runs for name in c.settings})


def quoted(compared: Compared) -> Decimal | None:
    quote = compared.run.quote
    return None if quote is None else quote.expected_usd


def billed(compared: Compared) -> Decimal | None:
    return compared.run.bill.usd if compared.run.bill else None


def price(compared: Compared) -> Decimal | None:
    """Return what the training cost, or would cost."""
    bill = billed(compared)
    return quoted(compared) if bill is None else bill


def bill_word(compared: Compared) -> str:
    """Return what `price` is: quoted, billed, or what a sandbox would bill."""
    if compared.run.bill is None:
        return "quoted"
    return "would bill" if compared.run.sandbox else "billed"


def priced_as(compared: Compared) -> str:
    """Format the price: `$0.76 (billed)`."""
    return f"{text.money(price(compared))} ({bill_word(compared)})"


def bill_error(compared: Compared) -> str:
    found = compared.reconciliation
    return text.signed(found.total.relative) if found else text.NOTHING


def ended(compared: Compared) -> bool:
    return compared.run.status is JobStatus.SUCCEEDED
