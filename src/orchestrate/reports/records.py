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
    """Tokens trained so far, or steps if `Compared.tokens_known` is false for all runs."""
    value: float


class Reason(Record, frozen=True, kw_only=True):
    """A reason why one aspect of the runs must not be compared."""

    aspect: str
    """data, loss, scores, cost or all."""
    text: str


class RunScore(Record, frozen=True, kw_only=True):
    """A run's score in one metric, from its newest evaluation on these items."""

    metric: MetricUsed
    score: Score
    contender: Contender
    difference: Difference | None
    """Difference from its rival, which is its base model or the model that the user named."""
    rival_score: Score | None
    evaluation: Evaluation

    @property
    def rows(self) -> tuple[str, int]:
        """Key of the evaluated rows. Scores with equal keys are comparable."""
        e = self.evaluation
        return (e.items_digest or e.dataset_digest, e.items)


class RunDifference(Record, frozen=True, kw_only=True):
    """The difference between two runs on the items that both answered, from any evaluations."""

    first: str
    """Ids of the runs."""
    second: str
    pairing: Pairing


MARK = " (sandbox)"


class Compared(Record, frozen=True, kw_only=True):
    """One run of a comparison, with values derived from its rows."""

    run: Run
    label: str
    """Short name that is unique within the comparison. A sandbox run next to real hosts ends with `MARK`."""
    seconds: float | None
    """Seconds from its creation to its end."""
    trained_tokens: int | None
    billed_tokens: int | None
    """Tokens from its bill, otherwise from its quote. `None` if it is not billed by tokens."""
    tokens_per_second: float | None
    train_loss: float | None
    """The last training loss."""
    valid_loss: float | None
    """The last validation loss."""
    reward: float | None = None
    """The last reward of reinforcement fine-tuning, on the validation prompts if there are any."""
    train_curve: tuple[CurvePoint, ...] = ()
    valid_curve: tuple[CurvePoint, ...] = ()
    tokens_known: bool = True
    """True if tokens are known. Otherwise, the token axis is estimated from the run's steps."""
    settings: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    chosen: tuple[str, ...] = ()
    """Settings that the user requested."""
    reconciliation: costing.Reconciliation | None = None
    scores: tuple[RunScore, ...] = ()
    flips: tuple[Flips, ...] = ()
    """Flips in its latest evaluation."""
    regression: Regression | None = None
    """Its latest regression test."""
    asked_again: tuple[Pairing, ...] = ()
    """The run's latest evaluation compared with an earlier one on the same items."""
    serving: str | None = None
    silent: str | None = None
    """Reason that its model can't be queried on its host, if there is one."""
    proof: str | None = None
    """The proof that the served model is the trained one, as `types.proof.badge` words it. `None` for a run
    without a model."""

    @property
    def name(self) -> str:
        """The label without the sandbox mark, for places that show the mark separately."""
        return self.label.removesuffix(MARK)


class ComparisonSummary(Record, frozen=True, kw_only=True):
    """The conclusions of a comparison."""

    sentence: str
    run: str | None = None
    """Id of the recommended run, if there is one."""


class ComparedRuns(Record, frozen=True, kw_only=True):
    """Runs side by side. `reasons` is empty if they are fully comparable."""

    runs: tuple[Compared, ...]
    answer: ComparisonSummary = ComparisonSummary(sentence="")
    reasons: tuple[Reason, ...] = ()
    findings: tuple[str, ...] = ()
    """Sentences about what the numbers show."""
    notes: tuple[str, ...] = ()
    between: tuple[RunDifference, ...] = ()

    @property
    def comparable(self) -> bool:
        return not self.reasons

    @property
    def sandbox(self) -> bool:
        """True if any run was trained in a sandbox."""
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
    """Return what `price` means: quoted, billed, or what a sandbox would bill."""
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
