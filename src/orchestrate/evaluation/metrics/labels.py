"""Score answers that are one of a few labels: accuracy, F1, and the confusion matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer, Item, Mark
from orchestrate.evaluation.metrics.base import Totals
from orchestrate.evaluation.metrics.text import caseless, nfc
from orchestrate.types import Confusion, MetricUsed

MOST_LABELS = 50
NO_LABEL = "(no label)"


@dataclass(frozen=True)
class LabelSet:
    """The labels of a task: its distinct expected answers. They are compared without surrounding white space
    and in Unicode form NFC. Case is ignored unless two labels differ only in case."""

    names: tuple[str, ...]
    case_matters: bool = False

    @classmethod
    def of(cls, items: Sequence[Item]) -> LabelSet:
        """Collect the labels from the expected answers. Raises `UsageError` if they don't look like
        labels."""
        exact = {nfc(item.expected.strip()) for item in items}
        if len(exact) > MOST_LABELS:
            raise UsageError(
                f"the expected answers don't look like labels: {len(exact)} distinct values",
                fix="use exact_match, or token_f1 for prose",
            )
        case_matters = len({caseless(name) for name in exact}) < len(exact)
        return cls(tuple(sorted(exact, key=str if case_matters else str.casefold)), case_matters)

    def index(self, text: str) -> int:
        """Return the index of the label that matches the text, or the number of labels if none does."""
        return self._places.get(self._key(text), len(self.names))

    @cached_property
    def _places(self) -> dict[str, int]:
        return {self._key(name): place for place, name in enumerate(self.names)}

    def _key(self, text: str) -> str:
        return nfc(text.strip()) if self.case_matters else caseless(text)


Average = Literal["macro", "micro", "weighted"]


@dataclass(frozen=True)
class F1:
    """F1 over the expected labels. An answer that is not a label counts only as a false negative."""

    used: MetricUsed
    labels: LabelSet
    average: Average

    def marks(self, pairs: Sequence[tuple[Item, Answer]]) -> list[Mark]:
        return [Mark(right(self.labels, item, answer)) for item, answer in pairs]

    def parts(self, item: Item, answer: Answer, mark: Mark) -> Totals | None:
        """Return the answer's label counts as one flat list: correct counts for all labels, then expected
        counts, then predicted counts."""
        del mark
        count = len(self.labels.names)
        found = [0.0] * (3 * count)
        want, got = self.labels.index(item.expected), self.labels.index(answer.text)
        found[count + want] = 1.0
        if got < count:
            found[2 * count + got] = 1.0
        if want == got:
            found[want] = 1.0
        return found

    def total(self, sums: Totals) -> float:
        count = len(self.labels.names)
        rights, wanted, given = sums[:count], sums[count : 2 * count], sums[2 * count :]
        if self.average == "micro":
            both = sum(wanted) + sum(given)
            return 2 * sum(rights) / both if both else 0.0
        each = [2 * r / (w + g) if w + g else 0.0 for r, w, g in zip(rights, wanted, given, strict=True)]
        if self.average == "weighted":
            return sum(f * w for f, w in zip(each, wanted, strict=True)) / (sum(wanted) or 1.0)
        # A label that is missing from a bootstrap sample has no F1.
        there = [f for f, w, g in zip(each, wanted, given, strict=True) if w + g]
        return sum(there) / len(there) if there else 0.0


def right(labels: LabelSet, item: Item, answer: Answer) -> float:
    return float(labels.index(item.expected) == labels.index(answer.text))


def accuracy(labels: LabelSet) -> Callable[[Item, Answer], float]:
    return lambda item, answer: right(labels, item, answer)


def confusion(contender: str, labels: LabelSet, pairs: Sequence[tuple[Item, Answer]]) -> Confusion:
    seen = Counter((labels.index(item.expected), labels.index(answer.text)) for item, answer in pairs)
    count = len(labels.names)
    other = any(got == count for _, got in seen)
    return Confusion(
        contender=contender,
        labels=(*labels.names, *((NO_LABEL,) if other else ())),
        counts=tuple(tuple(seen[want, got] for got in range(count + other)) for want in range(count)),
    )
