"""What a metric is: built in, a judge, or the user's own."""

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
    """`respondent` gives a model to ask through `asking`, which keeps answers, prices and the limit of the
    whole evaluation; models are written as in `orchestrate.providers.chat`."""

    items: Sequence[Item]
    asking: Asking
    respondent: Callable[[str, int, float], Respondent]
    """Of (model, most tokens, temperature). Raises as `model_at` does."""
    embed: Callable[[str], Embed]
    """Of a model: one vector for each text."""
    rubric: Rubric = DEFAULT
    """By which judges rate."""
    held: Callable[[Judge, Kind], Calibration | None] = lambda judge, kind: None
    """How far a judge agrees with people; may ask it. `None` if unknown."""
    allow_code: bool = False
    """Whether graders may run code."""

    @property
    def expects(self) -> bool:
        """Whether each item has an expected answer."""
        return all(item.expected or item.expected_calls for item in self.items)


Totals = Sequence[float]
"""Sums over items of what `Metric.parts` gives for each."""


@runtime_checkable
class Metric(Protocol):
    """Marks answers one by one, and makes one number of many.

    `used` is what is kept with the evaluation; a judge puts prompt, model and calibration into its `detail`,
    and into `unfit` why it may not carry a verdict. Metrics are made by name in `metrics.registry`.
    """

    @property
    def used(self) -> MetricUsed: ...

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        """Return a mark for each pair, in order. All pairs of one contender come in one call, so that a
        metric that asks a model can ask about several at a time. Answers that failed (`error`) are not
        passed in: their mark is 0."""
        ...

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        """Return the parts that add up over items. `None` is the most common case: the metric is the mean
        of the marks."""
        ...

    def total(self, sums: Totals) -> float:
        """Compute the metric from the added parts: F1 from counts, BLEU from n-gram counts."""
        ...


class MeanOfMarks:
    """What makes the number of a `Metric` the mean of its marks: nothing of it adds up otherwise."""

    def parts(self, item: Item, answer: Answer, mark: Mark) -> None:
        return None

    def total(self, sums: Totals) -> float:
        """Raise `TypeError`: this is never called, since there are no parts."""
        raise TypeError(f"{type(self).__name__} is a mean")


@dataclass(frozen=True)
class PerAnswer(MeanOfMarks):
    """A metric that looks at one answer at a time and whose number is the mean."""

    used: MetricUsed
    score: Callable[[Item, Answer], float | None]

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return [Mark(self.score(item, answer)) for item, answer in pairs]


class PairMetric(Protocol):
    """Puts two answers to one item side by side, as a judge or a person does: a contender's score is how
    often it is preferred to its rival."""

    @property
    def used(self) -> MetricUsed: ...

    def marks(self, pairs: Sequence[tuple[Item, Answer, Answer]]) -> list[Mark]:
        """Return for each pair 1 when the first answer is better, 0 when the second is, and 0.5 for a
        tie."""
        ...
