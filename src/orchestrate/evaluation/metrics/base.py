"""The interface of all metrics: built-in metrics, judges, and your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from orchestrate.evaluation import DEFAULT, Answer, Item, Mark
from orchestrate.paid.paid_requests import Asking, Respondent
from orchestrate.types import MetricUsed, Rubric

if TYPE_CHECKING:
    from orchestrate.evaluation.judges import Judge, Kind
    from orchestrate.evaluation.judges.calibration import Calibration


Embed = Callable[[Sequence[str]], list[list[float]]]


@dataclass(frozen=True)
class Context:
    """Resources that metrics may use. `respondent` returns the models to query. `asking` sends the requests
    to them, stores the responses with their prices, and enforces the evaluation's budget. Model names have
    the same format as in `orchestrate.providers.chat`."""

    items: Sequence[Item]
    asking: Asking
    respondent: Callable[[str, int, float], Respondent]
    """Returns the model to query. The arguments are its name, the maximum number of tokens to generate, and
    the temperature. Raises the same errors as `model_at`."""
    embed: Callable[[str], Embed]
    """Returns the named model's embedding function, which maps each text to a vector."""
    rubric: Rubric = DEFAULT
    """The rubric for judges."""
    held: Callable[[Judge, Kind], Calibration | None] = lambda judge, kind: None
    """Function that returns a judge's agreement with human raters, or `None` if it is unknown. Measuring the
    agreement may send questions to the judge."""
    allow_code: bool = False
    """True if graders may run code."""

    @property
    def expects(self) -> bool:
        """True if each item has an expected answer."""
        return all(item.expected or item.expected_calls for item in self.items)


Totals = Sequence[float]
"""Values returned by `Metric.parts` for one answer, or their sums over all items."""


@runtime_checkable
class Metric(Protocol):
    """Scores answers one by one, and combines the scores into one number.

    `used` describes the metric and is stored with the evaluation. For a judge, `used.detail` contains the
    prompt, model and calibration, and `used.unfit` is the reason why the judge cannot decide a verdict.
    `metrics.registry` creates metrics by name."""

    @property
    def used(self) -> MetricUsed: ...

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        """Return a score for each (item, answer) pair, in order. A single call receives all of a contender's
        pairs, so a metric that queries a model can send concurrent requests. Failed answers, which have an
        `error`, are not passed in and score 0."""
        ...

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        """Return an answer's counts (such as true positives), which are summed over all items to compute the
        metric. Most metrics return `None`: their value is the mean of the per-answer scores."""
        ...

    def total(self, sums: Totals) -> float:
        """Compute the metric from the sums of the parts. For example, compute F1 from label counts, or BLEU
        from n-gram counts."""
        ...


class MeanOfMarks:
    """Mixin for a `Metric` whose value is the mean of the per-answer scores."""

    def parts(self, item: Item, answer: Answer, mark: Mark) -> None:
        return None

    def total(self, sums: Totals) -> float:
        """Raise `TypeError`. Never called, because this metric's `parts` returns `None`."""
        raise TypeError(f"{type(self).__name__} is a mean")


MOST_UNRATED = 0.1
"""Largest acceptable share of answers that a rating model leaves unrated. With more, the remaining ones may
not be representative."""


@dataclass
class CountsUnrated:
    """Mixin for metrics that ask a model for ratings."""

    unrated: tuple[int, int] = field(default=(0, 0), init=False)
    """Number of missing ratings and of all ratings of the contender that lacks the largest share of them."""

    def counted(self, marks: list[Mark]) -> list[Mark]:
        """Return the marks of one contender, after counting those that are missing."""
        missing, among = self.unrated
        lost = sum(mark.value is None for mark in marks)
        if lost * among >= missing * len(marks):
            self.unrated = lost, len(marks)
        return marks

    def unfit_rater(self, rater: str) -> str | None:
        """Return the reason why the ratings cannot decide a verdict, or `None`."""
        missing, among = self.unrated
        if missing <= MOST_UNRATED * among:
            return None
        return f"{rater} did not rate {missing} of a contender's {among} answers"


@dataclass(frozen=True)
class PerAnswer(MeanOfMarks):
    """A metric that scores one answer at a time and whose value is the mean of the scores."""

    used: MetricUsed
    score: Callable[[Item, Answer], float | None]

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return [Mark(self.score(item, answer)) for item, answer in pairs]


class PairMetric(Protocol):
    """Compares two answers to the same item, as a judge or a human rater does. A contender's score is the
    rate at which its answers are preferred to its rival's."""

    @property
    def used(self) -> MetricUsed: ...

    def marks(self, pairs: Sequence[tuple[Item, Answer, Answer]]) -> list[Mark]:
        """Score each pair: 1 if the first answer is better, 0 if the second is, and 0.5 for a tie."""
        ...
