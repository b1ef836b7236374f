"""The interface of all metrics: built-in metrics, judges, and your own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from orchestrate.evaluation import DEFAULT, Answer, Item, Mark
from orchestrate.paid.asking import Asking, Respondent
from orchestrate.types import MetricUsed, Rubric

if TYPE_CHECKING:
    from orchestrate.evaluation.judges import Judge, Kind
    from orchestrate.evaluation.judges.calibration import Calibration


Embed = Callable[[Sequence[str]], list[list[float]]]


@dataclass(frozen=True)
class Context:
    """Resources that metrics may use. `respondent` returns a model to query through `asking`, which stores
    answers and prices and enforces the evaluation's budget. Models are named as in
    `orchestrate.providers.chat`."""

    items: Sequence[Item]
    asking: Asking
    respondent: Callable[[str, int, float], Respondent]
    """Function that returns a model to query, given its name, the maximum number of tokens, and the
    temperature. Raises the same errors as `model_at`."""
    embed: Callable[[str], Embed]
    """Function that takes a model and returns an embedding function, which returns one vector per text."""
    rubric: Rubric = DEFAULT
    """The rubric for judges."""
    held: Callable[[Judge, Kind], Calibration | None] = lambda judge, kind: None
    """Function that returns a judge's agreement with human raters, or `None` if unknown. The function may
    query the judge."""
    allow_code: bool = False
    """True if graders may run code."""

    @property
    def expects(self) -> bool:
        """True if each item has an expected answer."""
        return all(item.expected or item.expected_calls for item in self.items)


Totals = Sequence[float]
"""Parts returned by `Metric.parts`, or their sums over all items."""


@runtime_checkable
class Metric(Protocol):
    """Scores answers one by one, and combines the scores into one number.

    `used` is stored with the evaluation. A judge stores its prompt, model and calibration in `detail`, and
    the reason why it cannot decide a verdict in `unfit`. `metrics.registry` creates metrics by name."""

    @property
    def used(self) -> MetricUsed: ...

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        """Return a score for each pair, in order. A single call receives all of a contender's pairs, so a
        metric that queries a model can send concurrent requests. Failed answers, which have an `error`, are
        not passed in and get the score 0."""
        ...

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        """Return an answer's counts (such as true positives), which are summed over all items to compute the
        metric. Most metrics return `None`: their value is the mean of the per-answer scores."""
        ...

    def total(self, sums: Totals) -> float:
        """Compute the metric from the summed parts. For example, compute F1 from counts, or BLEU from n-gram
        counts."""
        ...


class MeanOfMarks:
    """Mixin for a `Metric` whose value is the mean of the per-answer scores."""

    def parts(self, item: Item, answer: Answer, mark: Mark) -> None:
        return None

    def total(self, sums: Totals) -> float:
        """Raise `TypeError`. Never called, because this metric has no parts."""
        raise TypeError(f"{type(self).__name__} is a mean")


@dataclass(frozen=True)
class PerAnswer(MeanOfMarks):
    """A metric that scores one answer at a time and whose value is the mean of the scores."""

    used: MetricUsed
    score: Callable[[Item, Answer], float | None]

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return [Mark(self.score(item, answer)) for item, answer in pairs]


class PairMetric(Protocol):
    """Compares two answers to the same item, as a judge or a person does. A contender's score is the rate at
    which it is preferred to its rival."""

    @property
    def used(self) -> MetricUsed: ...

    def marks(self, pairs: Sequence[tuple[Item, Answer, Answer]]) -> list[Mark]:
        """Score each pair: 1 if the first answer is better, 0 if the second is, and 0.5 for a tie."""
        ...
