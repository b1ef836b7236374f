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
