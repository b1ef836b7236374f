"""Parity: where a new model answers as well as the old one, within a margin, and where it does not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from orchestrate.evaluation.items import Answered
from orchestrate.migration.proposals import Part
from orchestrate.types import Evaluation, MetricUsed, Score


def parts(evaluation: Evaluation, old: str, new: str, margin: float) -> list[Part]:
    """On all rows, then on each slice, by the first metric. `margin` is how much worse is still parity."""
    metric = evaluation.metrics[0]
    found: list[Part] = []
    for difference in evaluation.differences:
        if (difference.contender, difference.against, difference.metric) != (new, old, metric.name):
            continue
        mine, theirs = (evaluation.score(name, metric.name, difference.slice) for name in (new, old))
        if mine is not None and theirs is not None:
            found.append(
                Part(
                    slice=difference.slice,
                    old=theirs,
                    new=mine,
                    difference=difference.score,
                    parity=parity(metric, difference.score, margin),
                )
            )
    return sorted(found, key=lambda part: part.slice)


def parity(
    metric: MetricUsed, difference: Score, margin: float
) -> Literal["holds", "does not hold", "not shown"]:
    """By the interval: it lies above the margin, below it, or across."""
    low, high = difference.low, difference.high
    if metric.better == "lower":
        low, high = -high, -low
    if difference.n == 0:
        return "not shown"
    if low > -margin:
        return "holds"
    return "does not hold" if high < -margin else "not shown"


def same_answers(answered: Sequence[Answered], old: str, new: str) -> int:
    """Items to which both gave the very same texts and calls."""
    return sum(_said(one, old) == _said(one, new) for one in answered)


def _said(one: Answered, name: str) -> list[tuple[str, str]]:
    return [(a.text.strip(), str(a.tool_calls)) for a in one.answers.get(name, ())]
