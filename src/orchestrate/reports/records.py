"""Records that make up a comparison of runs."""

from __future__ import annotations

from decimal import Decimal

import msgspec

from orchestrate import costing, text
from orchestrate.evaluation.pairs import Flips, Pairing
from orchestrate.evaluation.regression import Regression
from orchestrate.types import Contender, Difference, Evaluation, JobStatus, MetricUsed, Record, Run, Score

BILLED, WOULD_BILL = "billed", "would bill"


class CurvePoint(Record, frozen=True, kw_only=True):
    tokens: float
    """Number of tokens trained so far, or number of steps if `Compared.tokens_known` is False for all
    runs."""
    value: float


class Reason(Record, frozen=True, kw_only=True):
    """Reason why one aspect of the runs can't be compared."""

    aspect: str
    """One of: data, loss, scores, cost or all."""
    text: str


class RunScore(Record, frozen=True, kw_only=True):
    """A run's score on one metric, from its newest evaluation on these items."""

    metric: MetricUsed
    score: Score
    contender: Contender
    difference: Difference | None
    """Difference from the rival model, which is the run's base model or a model that you named. `None` if
    there is no rival."""
    rival_score: Score | None
    evaluation: Evaluation

    @property
    def rows(self) -> tuple[str, int]:
        """Digest and number of the evaluated items. Scores are comparable only if they have the same digest
        and the same number of items."""
        e = self.evaluation
        return (e.items_digest or e.dataset_digest, e.items)

    @property
    def method(self) -> str:
        """How the score was measured. Scores are comparable only if this is the same."""
        return self.evaluation.method(self.contender.name, self.metric)


class RunDifference(Record, frozen=True, kw_only=True):
    """Difference in score between two runs, on the items that both runs answered. The runs may have been
    evaluated separately."""

    first: str
    """Id of the first run."""
    second: str
    pairing: Pairing


class Compared(Record, frozen=True, kw_only=True):
    """One run of a comparison, with values derived from its records in the store."""

    run: Run
    label: str
    """Unique short name in the comparison. If only some of the runs used a sandbox, the labels of these runs
    end with `text.SANDBOX_MARK`."""
    seconds: float | None
    """Seconds from the run's creation to its end."""
    trained_tokens: int | None
    billed_tokens: int | None
    """Number of tokens on the bill, or in the quote if there is no bill. `None` if the host does not bill by
    tokens."""
    tokens_per_second: float | None
    train_loss: float | None
    """Last reported training loss."""
    valid_loss: float | None
    """Last reported validation loss."""
    reward: float | None = None
    """Last reported reward of reinforcement fine-tuning, on the validation prompts if there are any."""
    train_curve: tuple[CurvePoint, ...] = ()
    valid_curve: tuple[CurvePoint, ...] = ()
    tokens_known: bool = True
    """True if the host reports tokens per step. Otherwise, tokens are estimated from the run's steps."""
    settings: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    chosen: tuple[str, ...] = ()
    """Names of the settings that you set explicitly."""
    reconciliation: costing.Reconciliation | None = None
    scores: tuple[RunScore, ...] = ()
    flips: tuple[Flips, ...] = ()
    """Items whose result differs between the tuned model and its rival, from the run's newest evaluation."""
    regression: Regression | None = None
    """The run's newest regression test."""
    asked_again: tuple[Pairing, ...] = ()
    """Comparisons of the run's newest evaluation with its earlier evaluations on the same items."""
    serving: str | None = None
    silent: str | None = None
    """Reason why the model can't be queried on its host, or `None`."""
    proof: str | None = None
    """Summary of the proofs that the host serves the trained model, such as `proved at URL`. `None` for a run
    without a model."""

    @property
    def name(self) -> str:
        """The label without the `(sandbox)` suffix, for tables that show the sandbox separately."""
        return self.label.removesuffix(text.SANDBOX_MARK)


class ComparisonSummary(Record, frozen=True, kw_only=True):
    """The conclusion of a comparison."""

    sentence: str
    run: str | None = None
    """Id of the recommended run, or `None`."""


class ComparedRuns(Record, frozen=True, kw_only=True):
    """Runs compared side by side. `reasons` is empty if all aspects are comparable."""

    runs: tuple[Compared, ...]
    answer: ComparisonSummary = ComparisonSummary(sentence="")
    reasons: tuple[Reason, ...] = ()
    findings: tuple[str, ...] = ()
    """Sentences that state what the numbers show."""
    notes: tuple[str, ...] = ()
    between: tuple[RunDifference, ...] = ()

    @property
    def comparable(self) -> bool:
        return not self.reasons

    @property
    def sandbox(self) -> bool:
        """True if any of the runs was trained in a sandbox."""
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
    """Return the billed cost of training, or else the quoted cost."""
    bill = billed(compared)
    return quoted(compared) if bill is None else bill


def price_basis(compared: Compared) -> str:
    """Return the label of the price: `billed`, `quoted`, or `would bill` for the simulated bill of a
    sandbox."""
    if compared.run.bill is None:
        return "quoted"
    return WOULD_BILL if compared.run.sandbox else BILLED


def priced_as(compared: Compared) -> str:
    """Format the price with its basis: `$0.76 (billed)`."""
    return f"{text.money(price(compared))} ({price_basis(compared)})"


def bill_error(compared: Compared) -> str:
    found = compared.reconciliation
    return text.signed(found.total.relative) if found else text.NOTHING


def ended(compared: Compared) -> bool:
    return compared.run.status is JobStatus.SUCCEEDED
