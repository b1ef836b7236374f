"""What a metric is: built in, a judge, or the user's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from orchestrate.evaluation.items import Answer, Item, Mark
from orchestrate.types import MetricUsed

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
        """One for each pair, in order; all pairs of one contender at once, so that what asks a model can ask
        for several at a time. An answer that failed (`error`) is not handed in: it has 0."""
        ...

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        """What adds up over items. `None` for the commonest case: the number is the mean of the marks."""
        ...

    def total(self, sums: Totals) -> float:
        """The number that the added parts make: F1 of counts, BLEU of n-gram counts."""
        ...


class MeanOfMarks:
    """What makes the number of a `Metric` the mean of its marks: nothing of it adds up otherwise."""

    def parts(self, item: Item, answer: Answer, mark: Mark) -> None:
        return None

    def total(self, sums: Totals) -> float:
        """Never asked, since there are no parts."""
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
        """For each, 1 where the first answer is better, 0 where the second is, 0.5 for a tie."""
        ...
