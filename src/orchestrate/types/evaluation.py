"""Records of evaluations: questions, answers and scores, and reviews by human raters."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import msgspec
from msgspec import structs

from orchestrate.types.record import Record
from orchestrate.types.serving import AdapterCost

if TYPE_CHECKING:
    import pandas


class Likelihood(NamedTuple):
    """The likelihood of a text under a model."""

    nats: float
    """Negative log-likelihood of the text in nats, summed over its tokens."""
    tokens: int
    likeliest: bool
    """True if every token was the model's most likely one."""
    spread: float = 0.0
    """Standard deviation of the tokens' log-probabilities, in nats."""


class Message(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One chat message for `Provider.generate`. `to_dict` converts it to the format of the chat completions
    API."""

    role: str
    content: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    """Tool calls in the API's format: id, type, and a function with name and arguments."""
    tool_call_id: str | None = None
    name: str | None = None


class Reply(Record, frozen=True, kw_only=True):
    """A model's answer, with the token counts if the host reported them."""

    content: str
    """The answer itself, without reasoning and tool calls."""
    model: str
    reasoning: str | None = None
    """The reasoning before the answer, if the model showed any."""
    tool_calls: tuple[dict[str, Any], ...] = ()
    """Tool calls in the format of the chat completions API."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each token of the answer, if requested and returned by the host."""
    finish_reason: str | None = None
    """Reason why the answer ended. `length` means that it was cut off at the token limit, possibly before the
    end of the reasoning."""
    notes: tuple[str, ...] = ()
    """Notes on anything unexpected about the question or the answer."""
    precision: str | None = None
    """Precision of the model's weights: bf16, fp32 or NF4 (4 bits). `None` if a host does not report it."""


class Score(Record, frozen=True, kw_only=True):
    """A mean over `n` rows with its 95% interval."""

    value: float
    low: float
    high: float
    n: int


class Sampling(Record, frozen=True, kw_only=True):
    """The sampling settings of an evaluation's answers."""

    samples: int = 1
    """Number of answers per item. Answers to the same item form one cluster."""
    temperature: float = 0.0
    max_tokens: int = 512
    seed: int = 0
    batch: int | None = None
    """Batch size for answers computed on this machine. With 1, each answer is bitwise independent of the
    other rows."""
    response_format: dict[str, Any] | None = None
    """Response format of each answer, as in the chat completions API."""


class Contender(Record, frozen=True, kw_only=True):
    """A model and the way it is queried."""

    name: str
    """Name, unique within the evaluation and the same in later evaluations of the same model."""
    kind: Literal["tuned", "base", "model"]
    model: str
    """Model name as requested."""
    provider: str
    served_by: str
    """Source of the answers: the host's endpoint, or a model on this machine."""
    precision: str | None = None
    """Precision of the model's weights: bf16, fp32 or NF4 (4 bits). `None` if a host does not report it."""
    run_id: str | None = None
    checkpoint: str | None = None
    shots: int = 0
    """Number of few-shot examples before each question."""
    answers: int = 0
    failed: int = 0
    """Number of questions that could not be answered because of their content. Each counts as a wrong
    answer."""
    prompt_tokens: int | None = None
    """Prompt tokens of all answers. `None` if the host does not report them."""
    completion_tokens: int | None = None
    usd: Decimal | None = None
    """Total cost of all answers. `None` if no price is known, or if the host bills hours instead of
    tokens."""
    lost_requests: int = 0
    """Number of requests that got no answer and may have been billed."""
    lost_usd: Decimal | None = Decimal(0)
    """Maximum cost of the `lost_requests`, in addition to `usd`. `None` if no price is known."""
    usd_per_hour: Decimal | None = None
    """Hourly price of the answering deployment, if hours are billed instead of tokens."""
    hours: Decimal | None = None
    """Time in hours in which the deployment answered all questions, at this evaluation's concurrency."""
    answers_per_hour: Decimal | None = None
    """Expected number of answers per hour, if the user set it. Used to compute the cost per answer of a
    deployment that is billed hourly."""
    seconds: float | None = None
    """Median seconds per answer."""
    seconds_p95: float | None = None
    first_token_seconds: float | None = None
    asked_at: datetime | None = None
    """Time of the first answer. It may precede the evaluation, because earlier answers are reused."""
    proof: str | None = None
    """Result of the check that the answering model is the trained one, in the words of `Proof.badge`. `None`
    for a model without a run."""

    @property
    def answered_by(self) -> str:
        """Describe the source of the answers, with its precision and proof."""
        said = self.served_by if self.precision is None else f"{self.served_by}, in {self.precision}"
        return f"{said} ({self.proof})" if self.proof is not None else said

    @property
    def usd_per_answer(self) -> Decimal | None:
        """The average cost per answer in USD. With hourly billing, this is the hourly price divided by the
        answers per hour: the expected number if the user set it, otherwise the number that this evaluation
        reached."""
        came = self.answers - self.failed
        if self.usd is not None and came:
            return self.usd / came
        if self.usd_per_hour is None:
            return None
        if self.answers_per_hour:
            return self.usd_per_hour / self.answers_per_hour
        return self.usd_per_hour * self.hours / came if self.hours and came else None


_FINDINGS = ("agreement", "calibration", "notes")
"""Details of a judge that describe how well it did, and don't change its scores."""


class MetricUsed(Record, frozen=True, kw_only=True):
    """A metric of an evaluation. The first one decides the verdict."""

    name: str
    kind: Literal["right-or-wrong", "graded", "amount"]
    """Kind of the metric's values. `right-or-wrong` values are 0 or 1, `graded` values are between 0 and 1,
    and `amount` values have their own unit."""
    better: Literal["higher", "lower", "neither"] = "higher"
    unit: str = ""
    unfit: str | None = None
    """Reason why the metric must not decide a verdict."""
    detail: dict[str, Any] = {}
    """Details of how the metric is measured, such as a grader, a file's hash, or a judge's prompt and its
    agreement with human raters."""

    @property
    def method(self) -> str:
        """Everything that determines the scores. Metrics with the same name have different methods if, for
        example, a rubric or a grader's file changed in between. Then their scores can't be compared."""
        fixed = {key: value for key, value in self.detail.items() if key not in _FINDINGS}
        return msgspec.json.encode([self.name, fixed], order="deterministic").decode()


class Measure(Record, frozen=True, kw_only=True):
    """A contender's score in one metric, on all items or on a slice."""

    contender: str
    metric: str
    score: Score
    slice: str = ""


class Difference(Record, frozen=True, kw_only=True):
    """The difference `contender` minus `against`, paired by item."""

    contender: str
    against: str
    metric: str
    score: Score
    slice: str = ""
    gained: int = 0
    """Number of items that only the contender got right, for a right-or-wrong metric."""
    lost: int = 0
    p_value: float | None = None
    """Two-sided p-value: mid-p McNemar for a right-or-wrong metric, otherwise the test that matches the
    interval."""
    p_corrected: float | None = None
    """P-value after Holm's correction for multiple comparisons. The comparisons in the first metric on all
    items are corrected together, and all other comparisons are corrected together."""
    detectable: float | None = None
    """Smallest difference that this many items detect with 80% power."""

    @property
    def shown(self) -> bool:
        """True if the difference is significant at the 5% level, after correction for multiple
        comparisons."""
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
    """Confusion matrix: counts by expected and answered label."""

    contender: str
    labels: tuple[str, ...]
    """Labels, in the order of the rows and columns of `counts`. If some answers are not valid labels, the
    last entry represents all of them."""
    counts: tuple[tuple[int, ...], ...]
    """Confusion matrix: the number of items per expected label (rows) and answered label (columns)."""


class Verdict(Record, frozen=True, kw_only=True):
    """The verdict on whether a contender may ship.

    The stored verdict is based on the evaluation alone. The displayed verdict also depends on forgetting,
    parity with the model to replace, human ratings, and whether the served model was proven.
    """

    contender: str
    decision: Literal["ship", "do not ship", "not enough evidence"]
    reasons: tuple[str, ...]
    rows_needed: int | None = None
    """Approximate number of items needed for a decision. `None` if the verdict is already decided, or if no
    realistic number suffices."""


class Evaluation(Record, frozen=True, kw_only=True):
    """An evaluation of models on the same held-out items. `items_file` has every answer."""

    id: str
    created_at: datetime
    dataset: str
    dataset_digest: str
    """Digest of the entire file."""
    items: int
    items_digest: str
    """Digest of the evaluated items, independent of their order. Two evaluations with the same digest used
    the same items."""
    contenders: tuple[Contender, ...]
    metrics: tuple[MetricUsed, ...]
    measures: tuple[Measure, ...]
    differences: tuple[Difference, ...] = ()
    against: str | None = None
    """Name of the contender with which the others are compared."""
    sampling: Sampling = Sampling()
    cluster: str | None = None
    """Name of the column that groups related items. `clusters` is the number of groups."""
    clusters: int | None = None
    confusions: tuple[Confusion, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    parity: bool = False
    """True if the evaluation compares models with the model that they would replace."""
    items_file: str | None = None
    """JSONL file with a line for each item. See `orchestrate.evaluation.ScoredItem`."""
    adapter_costs: tuple[AdapterCost, ...] = ()
    """Loading time and time per token of each adapter, for tuned models that ran on this machine."""
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        verdicts = "; ".join(f"{v.contender}: {v.decision}" for v in self.verdicts)
        return f"{self.id}  {self.items:,} items of {self.dataset}{f'  {verdicts}' if verdicts else ''}"

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
        """Return a row for each contender, metric and slice, with its difference from the contender it is
        compared with. Raises `MissingExtra` if pandas is not installed."""
        from orchestrate import notebook

        return notebook.frame(notebook.scores(self))

    @property
    def all_notes(self) -> tuple[str, ...]:
        """Return the cost of each adapter, then the notes."""
        return (*map(str, self.adapter_costs), *self.notes)

    @property
    def run_ids(self) -> list[str]:
        return list(dict.fromkeys(c.run_id for c in self.contenders if c.run_id))

    def contender(self, name: str) -> Contender:
        return next(c for c in self.contenders if c.name == name)

    def score(self, contender: str, metric: str | None = None, slice: str = "") -> Score | None:
        """Return a contender's score on a metric (default: the first)."""
        wanted = (contender, metric or self.metrics[0].name, slice)
        return next((m.score for m in self.measures if (m.contender, m.metric, m.slice) == wanted), None)

    def difference(self, contender: str, metric: str | None = None, slice: str = "") -> Difference | None:
        """Return a contender's difference from the one it is compared with, by default in the first
        metric."""
        wanted = (contender, metric or self.metrics[0].name, slice)
        return next((d for d in self.differences if (d.contender, d.metric, d.slice) == wanted), None)

    def method(self, contender: str, metric: MetricUsed) -> str:
        """Return everything that determines a contender's scores: the metric's method and, if the metric only
        rates answers against a rival's, the rival."""
        apart = self.difference(contender, metric.name)
        if apart is None or self.score(apart.against, metric.name) is not None:
            return metric.method
        rival = self.contender(apart.against)
        who = (rival.provider, rival.model, rival.run_id, rival.checkpoint, rival.precision, rival.shots)
        return msgspec.json.encode([metric.method, who]).decode()


class Criterion(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A criterion for rating answers."""

    name: str
    question: str = ""
    scale: int | tuple[str, ...] = 5
    """Number of points, or a name for each point, worst first."""

    @property
    def points(self) -> int:
        return self.scale if isinstance(self.scale, int) else len(self.scale)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label of each point on the scale, starting with 1."""
        return self.scale if isinstance(self.scale, tuple) else tuple(str(n + 1) for n in range(self.scale))


class Rubric(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rubric by which human raters and judge models rate answers. `orchestrate.evaluation` loads it."""

    name: str
    question: str = "Which answer is better?"
    """Question to ask about a pair of answers."""
    guide: str = ""
    """Rating guidelines, written by an expert."""
    criteria: tuple[Criterion, ...] = (Criterion(name="quality", question="How good is the answer?"),)
    """Criteria for rating single answers."""

    def score(self, scores: Mapping[str, float]) -> float:
        """Return the mean of the criteria from 0 to 1, each scaled from its worst to its best score."""
        from statistics import fmean  # late: lists of runs need no statistics

        return fmean((scores[c.name] - 1) / (c.points - 1) for c in self.criteria)


class Review(Record, frozen=True, kw_only=True):
    """A blind review: human raters rate answers without knowing which model wrote them."""

    id: str
    created_at: datetime
    kind: Literal["pairs", "single", "writing"]
    contenders: tuple[str, ...]
    run_ids: tuple[str, ...]
    rubric: Rubric
    evaluation: str
    """The id of the evaluation with the answers, or several ids, comma-separated."""
    dataset: str
    items_digest: str
    items: int
    tasks: int
    same: tuple[tuple[str, str, str], ...] = ()
    """Items for which two contenders gave the same answer, as `[(contender, contender, item)]`. Raters don't
    see these items. Each counts as a tie."""
    seed: int = 0
    """Seed that determines, separately for each rater, the order of the items and the side on which each
    answer is shown."""
    folder: str
    """Folder with the displayed content and the raters' links."""


class Rating(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One rater's rating of one task. A later rating of the same task replaces it."""

    review: str
    task: str
    rater: str
    at: datetime
    choice: Literal["left", "right", "tie", "both bad"] | None = None
    """Choice between two answers. `left` and `right` are the sides on which the answers were displayed."""
    left: str = ""
    """Contender whose answer was on the left, or the only contender."""
    right: str = ""
    scores: dict[str, int] = {}
    """Points keyed by criterion, from 1 to the criterion's maximum."""
    note: str = ""
    question: str | None = None
    """The last user message, as shown or as corrected by the rater. Only set if the review produces training
    rows."""
    answer: str | None = None
    """The rater's final answer. Only set if the review produces training rows."""
    seconds: float | None = None
    withdrawn: bool = False
    """True if the rating was withdrawn. The task is then open again."""
