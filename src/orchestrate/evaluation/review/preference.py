"""What votes between two answers say: how often one model is preferred, and with more than two how strong
each is."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from orchestrate.evaluation import statistics
from orchestrate.types import Score

_RESAMPLES = 200


class Vote(NamedTuple):
    """On one item: 1 where the answer of `first` is better, 0 where that of `second` is, 0.5 for a tie."""

    item: str
    first: str
    second: str
    points: float


def outcomes(votes: Iterable[Vote]) -> list[Vote]:
    """One for each item and two models, the mean of its raters: three raters who agree on an item say of
    other items hardly more than one does."""
    points: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for vote in votes:
        points[vote.item, vote.first, vote.second].append(vote.points)
    return [Vote(*key, fmean(values)) for key, values in points.items()]


def rate(votes: Iterable[Vote]) -> Score:
    """How often the first of two models is preferred, a tie counting half; `n` counts items."""
    found = outcomes(votes)
    return statistics.mean([o.points for o in found], [o.item for o in found], within=(0.0, 1.0))


def likeness(votes: Sequence[Vote]) -> float | None:
    """How far two raters of one item vote alike, beyond what chance gives: the correlation within items, 0
    to 1. `None` until items have several votes. (One-way analysis of variance, Shrout and Fleiss 1979.)"""
    items: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for vote in votes:
        items[vote.item, vote.first, vote.second].append(vote.points)
    rated = [points for points in items.values() if len(points) > 1]
    n = sum(len(points) for points in rated)
    if len(rated) < 2:
        return None
    whole = fmean(point for points in rated for point in points)
    between = sum(len(points) * (fmean(points) - whole) ** 2 for points in rated) / (len(rated) - 1)
    within = sum((point - fmean(points)) ** 2 for points in rated for point in points) / (n - len(rated))
    size = (n - sum(len(points) ** 2 for points in rated) / n) / (len(rated) - 1)
    spread = between + (size - 1) * within
    return None if spread <= 0 else max(0.0, (between - within) / spread)


def strengths(votes: Iterable[Vote]) -> dict[str, Score]:
    """Bradley and Terry's model: for each model how often it would be preferred to another one of them, met
    at random. Strongest first; the intervals by drawing items. One draw for each two, met or not, is added,
    without which a model that never lost would be infinitely strong."""
    votes = outcomes(votes)
    by_item: defaultdict[str, list[Vote]] = defaultdict(list)
    for vote in votes:
        by_item[vote.item].append(vote)
    names = sorted({name for vote in votes for name in (vote.first, vote.second)})
    items = list(by_item.values())
    value = _preferred(_wins(votes), names)
    draw = random.Random(0)  # noqa: S311  resampling, not cryptography
    drawn: list[Mapping[str, float]] = []
    for _ in range(_RESAMPLES):
        chosen = [vote for item in draw.choices(items, k=len(items)) for vote in item]
        drawn.append(_preferred(_wins(chosen), names))
    found: dict[str, Score] = {}
    for name in sorted(names, key=lambda name: -value[name]):
        spread = sorted(one[name] for one in drawn)
        low, high = spread[int(0.025 * _RESAMPLES)], spread[int(0.975 * _RESAMPLES) - 1]
        met = sum(name in (vote.first, vote.second) for vote in votes)
        found[name] = Score(value=value[name], low=min(low, value[name]), high=max(high, value[name]), n=met)
    return found


def _wins(votes: Iterable[Vote]) -> dict[tuple[str, str], float]:
    """(winner, loser) -> how often, a tie half to each."""
    wins: defaultdict[tuple[str, str], float] = defaultdict(float)
    for vote in votes:
        wins[vote.first, vote.second] += vote.points
        wins[vote.second, vote.first] += 1 - vote.points
    return wins


def _preferred(wins: Mapping[tuple[str, str], float], names: Sequence[str]) -> dict[str, float]:
    power = fitted(wins, names)
    others = len(names) - 1
    return {
        a: sum(power[a] / (power[a] + power[b]) for b in names if b != a) / others if others else 0.5
        for a in names
    }


def fitted(
    wins: Mapping[tuple[str, str], float], names: Sequence[str], *, draws: float = 1.0
) -> dict[str, float]:
    """Strengths of which a's share in a + b is the chance that a is preferred to b; their sum is 1. `draws`
    are added for each two. By Hunter's iteration (2004), to eight digits."""
    half = draws / 2
    won = {a: sum(wins.get((a, b), 0.0) + half for b in names if b != a) for a in names}
    met = {
        (a, b): wins.get((a, b), 0.0) + wins.get((b, a), 0.0) + draws for a in names for b in names if a != b
    }
    power = dict.fromkeys(names, 1 / len(names))
    for _ in range(10_000):
        new = {a: won[a] / sum(met[a, b] / (power[a] + power[b]) for b in names if b != a) for a in names}
        total = sum(new.values())
        new = {a: value / total for a, value in new.items()}
        change = max(abs(new[a] - power[a]) for a in names)
        power = new
        if change < 1e-9:
            break
    return power
