"""What a model is asked, what it answers, and how good that is."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from msgspec import structs

from orchestrate.types.record import Record
from orchestrate.types.serving import AdapterCost

if TYPE_CHECKING:
    import pandas


class Likelihood(NamedTuple):
    """The likelihood of a text under a model."""

    nats: float
    """The sum over its tokens."""
    tokens: int
    likeliest: bool
    """Whether each token was the likeliest."""
    spread: float = 0.0
    """The standard deviation of its tokens' nats."""


class Message(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One chat message for `Provider.generate`; `to_dict` is its form in the chat completions API."""

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    """As the API has them: id, type, function with name and arguments."""
    tool_call_id: str | None = None
    name: str | None = None


class Reply(Record, frozen=True, kw_only=True):
    """A model's answer with the token counts that the host reported, when it did."""

    content: str
    """The answer itself: thinking and calls of tools are apart from it."""
    model: str
    reasoning: str | None = None
    """The thinking before the answer, where the model showed some."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """As the chat completions API has them."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: tuple[float, ...] | None = None
    """Of each token of the answer, where they were asked for and the host gives them."""
    finish_reason: str | None = None
    """`length`: cut at the most tokens allowed, perhaps within its thinking, with nothing answered yet."""
    notes: tuple[str, ...] = ()
    """What about the question or the answer its reader may not expect."""
    precision: str | None = None
    """Of the weights that answered, as bf16, fp32 or NF4 (4 bits); `None` where a host does not say."""


class Score(Record, frozen=True, kw_only=True):
    """A mean over `n` rows with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


class Sampling(Record, frozen=True, kw_only=True):
    """The sampling settings of an evaluation's answers."""

    samples: int = 1
    """Answers to each item; more than one are one cluster."""
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    batch: int | None = None
    """On this machine: rows that are answered together; 1 answers each as it is answered alone, to the
    bit."""
    response_format: dict[str, Any] | None = None
    """To which each answer is held, as the chat completions API takes it."""


class Contender(Record, frozen=True, kw_only=True):
    """One model, asked in one way."""

    name: str
    """Unique within the evaluation, and the same in the next one of the same model."""
    kind: Literal["tuned", "base", "model"]
    model: str
    """By the name it was asked by."""
    provider: str
    served_by: str
    """What answered: the host's endpoint, or a model on this machine."""
    precision: str | None = None
    """Of the weights that answered, as bf16, fp32 or NF4 (4 bits); `None` where a host does not say."""
    run_id: str | None = None
    checkpoint: str | None = None
    shots: int = 0
    """Examples shown before each question."""
    answers: int = 0
    failed: int = 0
    """Answers that never came, the reason being the question: they count as wrong."""
    prompt_tokens: int | None = None
    """Of all answers; `None` where the host does not tell."""
    completion_tokens: int | None = None
    usd: Decimal | None = None
    """What all answers cost; `None` where no price is known, or where an hour is billed and no token."""
    lost_requests: int = 0
    """Requests that got no answer and may have been billed."""
    lost_usd: Decimal | None = Decimal(0)
    """The most that they cost, beside `usd`; `None` where no price is known."""
    usd_per_hour: Decimal | None = None
    """Of the deployment that answered, where an hour is billed and no token."""
    hours: Decimal | None = None
    """Of that deployment that the answers took, as many at a time as were asked."""
    answers_per_hour: Decimal | None = None
    """Of the traffic that such a deployment is to bear, where it was told."""
    seconds: float | None = None
    """Of one answer, the median."""
    seconds_p95: float | None = None
    first_token_seconds: float | None = None
    asked_at: datetime | None = None
    """When the first of its answers came; those of an earlier evaluation are used again."""
    proof: str | None = None
    """Whether what answered there was proved to be what was trained, in the words of `Proof.badge`; `None`
    for a model that is no run's."""

    @property
    def answered_by(self) -> str:
        """Return what answered, in which precision, and whether that was proved."""
        said = self.served_by if self.precision is None else f"{self.served_by}, in {self.precision}"
        return f"{said} ({self.proof})" if self.proof is not None else said

    @property
    def usd_per_answer(self) -> Decimal | None:
        """Return the price of an answer by its tokens. If the host bills hourly, it is hours x price /
        answers, at the given traffic or at the pace of this evaluation."""
        came = self.answers - self.failed
        if self.usd is not None and came:
            return self.usd / came
        if self.usd_per_hour is None:
            return None
        if self.answers_per_hour:
            return self.usd_per_hour / self.answers_per_hour
        return self.usd_per_hour * self.hours / came if self.hours and came else None


class MetricUsed(Record, frozen=True, kw_only=True):
    """A metric of an evaluation, the first being the one that a verdict goes by."""

    name: str
    kind: Literal["right-or-wrong", "graded", "amount"]
    """`right-or-wrong` is 0 or 1, `graded` lies between, `amount` has a unit of its own."""
    better: Literal["higher", "lower", "neither"] = "higher"
    unit: str = ""
    unfit: str | None = None
    """Why no verdict may go by it."""
    detail: dict[str, Any] = {}
    """What it was measured with: a pattern, a schema, a judge's prompt and its agreement with people."""


class Measure(Record, frozen=True, kw_only=True):
    """A contender's score in one metric, on all items or on those of a slice."""

    contender: str
    metric: str
    score: Score
    slice: str = ""


class Difference(Record, frozen=True, kw_only=True):
    """`contender` minus `against`, paired by item."""

    contender: str
    against: str
    metric: str
    score: Score
    slice: str = ""
    gained: int = 0
    """Items that the contender has right and the other wrong, where there is a right and wrong."""
    lost: int = 0
    p_value: float | None = None
    """Two-sided: mid-p McNemar for right or wrong, else of the interval's own test."""
    p_corrected: float | None = None
    """After Holm: over the contenders for the first metric on all items, else over all other differences."""
    detectable: float | None = None
    """The smallest difference that so many items show in four of five tries."""

    @property
    def shown(self) -> bool:
        """Return whether a difference is significant, at 5% after the correction."""
        p = self.p_corrected if self.p_corrected is not None else self.p_value
        return p <= 0.05 if p is not None else self.score.low > 0 or self.score.high < 0

    def turned(self) -> Difference:
        """Return the opposite difference: `against` minus `contender`."""
        score = self.score
        return structs.replace(
            self,
            contender=self.against,
            against=self.contender,
            score=structs.replace(score, value=-score.value, low=-score.high, high=-score.low),
            gained=self.lost,
            lost=self.gained,
        )


class Confusion(Record, frozen=True, kw_only=True):
    """The counts of each expected label by the label that was answered."""

    contender: str
    labels: tuple[str, ...]
    """The last one stands for every answer that is not a label, where there are some."""
    counts: tuple[tuple[int, ...], ...]
    """A row for each expected label, a column for each answered one."""


class Verdict(Record, frozen=True, kw_only=True):
    """The verdict on whether a contender may ship.

    As stored, it is based on the evaluation alone. As shown, it includes all that is known of the model:
    what it forgot, parity with the model it replaces, what people said, and whether it was proved."""

    contender: str
    decision: Literal["ship", "do not ship", "not enough evidence"]
    reasons: tuple[str, ...]
    rows_needed: int | None = None
    """About how many items would decide; `None` where they are decided, or out of reach."""


class Evaluation(Record, frozen=True, kw_only=True):
    """Models on the same held-out items. `items_file` has every answer."""

    id: str
    created_at: datetime
    dataset: str
    dataset_digest: str
    """Of the whole file."""
    items: int
    items_digest: str
    """Of the items that were asked, whatever their order: equal digests, equal questions."""
    contenders: tuple[Contender, ...]
    metrics: tuple[MetricUsed, ...]
    measures: tuple[Measure, ...]
    differences: tuple[Difference, ...] = ()
    against: str | None = None
    """The contender that the others are compared with."""
    sampling: Sampling = Sampling()
    cluster: str | None = None
    """The column whose values group items that belong together, and how many groups there are."""
    clusters: int | None = None
    confusions: tuple[Confusion, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    parity: bool = False
    """Whether it holds models against the one that they are to replace."""
    items_file: str | None = None
    """JSONL, a line for each item: see `orchestrate.evaluation.ScoredItem`."""
    adapter_costs: tuple[AdapterCost, ...] = ()
    """Of the tuned models that answered on this machine beside their base, as adapters on it."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        told = "; ".join(f"{v.contender}: {v.decision}" for v in self.verdicts)
        return f"{self.id}  {self.items:,} items of {self.dataset}{f'  {told}' if told else ''}"

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.evaluation(self)

    def cells(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "created_at": self.created_at,
            "dataset": self.dataset,
            "items": self.items,
            "contenders": ", ".join(c.name for c in self.contenders),
            "verdicts": "; ".join(f"{v.contender}: {v.decision}" for v in self.verdicts),
        }

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each contender, metric and slice, with its difference to what it is compared
        with. Raises `MissingExtra`."""
        from orchestrate import notebook

        return notebook.frame(notebook.scores(self))

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Return what each adapter costs, then the notes."""
        return (*map(str, self.adapter_costs), *self.notes)

    @property
    def run_ids(self) -> list[str]:
        return list(dict.fromkeys(c.run_id for c in self.contenders if c.run_id))

    def contender(self, name: str) -> Contender:
        return next(c for c in self.contenders if c.name == name)

    def score(self, contender: str, metric: str | None = None, slice: str = "") -> Score | None:
        """Return a contender's score, by default of the first metric."""
        wanted = (contender, metric or self.metrics[0].name, slice)
        return next((m.score for m in self.measures if (m.contender, m.metric, m.slice) == wanted), None)

    def difference(self, contender: str, metric: str | None = None, slice: str = "") -> Difference | None:
        """Return a contender's difference, by default of the first metric."""
        wanted = (contender, metric or self.metrics[0].name, slice)
        return next((d for d in self.differences if (d.contender, d.metric, d.slice) == wanted), None)
