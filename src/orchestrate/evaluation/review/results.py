"""Summarize the ratings of a review and the agreement of its raters."""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from orchestrate import text
from orchestrate.evaluation import statistics
from orchestrate.evaluation import statistics as agreement
from orchestrate.evaluation.review import ReviewTask
from orchestrate.evaluation.review.session import valid_ratings
from orchestrate.types import Rating, Record, Review, Score

_RESAMPLES = 200


class PairVote(NamedTuple):
    """The vote on one item: 1 if the answer of `first` is better, 0 if the answer of `second` is better, 0.5
    for a tie."""

    item: str
    first: str
    second: str
    points: float


def outcomes(votes: Iterable[PairVote]) -> list[PairVote]:
    """Average the raters' votes for each item and pair of models. Votes on the same item are not independent:
    three raters who agree on an item reveal little more about other items than one rater does."""
    points: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for vote in votes:
        points[vote.item, vote.first, vote.second].append(vote.points)
    return [PairVote(*key, fmean(values)) for key, values in points.items()]


def rate(votes: Iterable[PairVote]) -> Score:
    """Return the rate at which raters prefer the first of two models. A tie counts as half. The score's `n`
    is the number of items."""
    found = outcomes(votes)
    return statistics.mean([o.points for o in found], [o.item for o in found], within=(0.0, 1.0))


def likeness(votes: Sequence[PairVote]) -> float | None:
    """Return the agreement of two raters beyond chance, from 0 to 1: the intraclass correlation from a
    one-way analysis of variance (Shrout and Fleiss 1979). Returns `None` if fewer than two items have several
    votes, or if all votes are the same."""
    items: defaultdict[tuple[str, str, str], list[float]] = defaultdict(list)
    for vote in votes:
        items[vote.item, vote.first, vote.second].append(vote.points)
    rated = [points for points in items.values() if len(points) > 1]
    n = sum(len(points) for points in rated)
    if len(rated) < 2:
        return None
    overall_mean = fmean(point for points in rated for point in points)
    between = sum(len(points) * (fmean(points) - overall_mean) ** 2 for points in rated) / (len(rated) - 1)
    within = sum((point - fmean(points)) ** 2 for points in rated for point in points) / (n - len(rated))
    size = (n - sum(len(points) ** 2 for points in rated) / n) / (len(rated) - 1)
    spread = between + (size - 1) * within
    return None if spread <= 0 else max(0.0, (between - within) / spread)


def strengths(votes: Iterable[PairVote]) -> dict[str, Score]:
    """Return each model's strength in a Bradley-Terry model, strongest first. The strength is the rate at
    which the model would be preferred to another one chosen at random. Intervals come from resampling items.
    Every pair of models gets one extra tie, even a pair that raters never compared. Without it, a model that
    never lost would be infinitely strong."""
    votes = outcomes(votes)
    by_item: defaultdict[str, list[PairVote]] = defaultdict(list)
    for vote in votes:
        by_item[vote.item].append(vote)
    names = sorted({name for vote in votes for name in (vote.first, vote.second)})
    items = list(by_item.values())
    value = _bradley_terry(_wins(votes), names)
    draw = random.Random(0)  # noqa: S311  resampling, not cryptography
    drawn: list[Mapping[str, float]] = []
    for _ in range(_RESAMPLES):
        chosen = [vote for item in draw.choices(items, k=len(items)) for vote in item]
        drawn.append(_bradley_terry(_wins(chosen), names))
    found: dict[str, Score] = {}
    for name in sorted(names, key=lambda name: -value[name]):
        spread = sorted(one[name] for one in drawn)
        low, high = spread[int(0.025 * _RESAMPLES)], spread[int(0.975 * _RESAMPLES) - 1]
        met = sum(name in (vote.first, vote.second) for vote in votes)
        found[name] = Score(value=value[name], low=min(low, value[name]), high=max(high, value[name]), n=met)
    return found


def _wins(votes: Iterable[PairVote]) -> dict[tuple[str, str], float]:
    """Count wins by (winner, loser). A tie counts half for each."""
    wins: defaultdict[tuple[str, str], float] = defaultdict(float)
    for vote in votes:
        wins[vote.first, vote.second] += vote.points
        wins[vote.second, vote.first] += 1 - vote.points
    return wins


def _bradley_terry(wins: Mapping[tuple[str, str], float], names: Sequence[str]) -> dict[str, float]:
    power = fitted(wins, names)
    others = len(names) - 1
    return {
        a: sum(power[a] / (power[a] + power[b]) for b in names if b != a) / others if others else 0.5
        for a in names
    }


def fitted(
    wins: Mapping[tuple[str, str], float], names: Sequence[str], *, draws: float = 1.0
) -> dict[str, float]:
    """Fit strengths so that a / (a + b) is the probability that a is preferred to b. The strengths sum to 1.
    Adds `draws` ties to each pair of models. Uses Hunter's MM algorithm (2004), and stops when no strength
    changes by 1e-9 or more."""
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


LIKENESS = 0.4
"""Assumed agreement between raters of the same item, used until the review has measured it. The value is
typical for free-form answers."""
_LEVEL, _POWER = 1.959963984540054, 0.8416212335729143


class Planned(Record, frozen=True, kw_only=True):
    """A review design: the number of raters per item, and the number of items needed to detect a preference
    with a power of 80%."""

    raters: int
    items: int

    @property
    def votes(self) -> int:
        return self.raters * self.items


def planned(
    preference: float, *, likeness: float = LIKENESS, raters: tuple[int, ...] = (1, 2, 3, 4, 5)
) -> tuple[Planned, ...]:
    """Compute the number of items needed to distinguish this preference rate (such as 0.6) from 0.5, for each
    number of raters.

    Votes on the same item are correlated, so m votes on an item have an effective sample size of
    m / (1 + (m - 1) * likeness), where `likeness` is their intraclass correlation. Ties reduce the number of
    items needed."""
    away = abs(preference - 0.5)
    votes = ((_LEVEL * 0.5 + _POWER * math.sqrt(preference * (1 - preference))) / away) ** 2
    return tuple(Planned(raters=m, items=math.ceil(votes * (1 + (m - 1) * likeness) / m)) for m in raters)


def detectable(items: int, raters: int, likeness: float = LIKENESS) -> float:
    """Return the smallest preference rate above 50% that this number of items and raters can detect with a
    power of 80%."""
    low, high = 0.5, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        [need] = planned(middle, likeness=likeness, raters=(raters,))
        low, high = (middle, high) if need.items > items else (low, middle)
    return high


class Preferred(Record, frozen=True, kw_only=True):
    """A comparison of two contenders. Wins, losses and ties count votes, and the score is the mean over
    items."""

    first: str
    second: str
    preference: Score
    """Rate at which the first contender is preferred. Ties count half, and each item counts once."""
    first_better: int
    second_better: int
    ties: int
    both_bad: int
    same: int
    """Number of items with identical answers, which count as ties and are not rated."""


class Rated(Record, frozen=True, kw_only=True):
    """A contender's score from 0 to 1 on a criterion, or on all criteria if `criterion` is empty."""

    contender: str
    criterion: str
    score: Score


class Ahead(Record, frozen=True, kw_only=True):
    """Difference between two contenders: the first's average score over all criteria minus the second's, on
    the same items."""

    first: str
    second: str
    score: Score


class ReviewResult(Record, frozen=True, kw_only=True):
    """The result of `review --results`."""

    review: Review
    raters: dict[str, int]
    """Number of tasks that each rater has rated."""
    ratings: int
    pairs: tuple[Preferred, ...] = ()
    strengths: dict[str, Score] = msgspec.field(default_factory=dict[str, Score])
    """Rate at which each contender would be preferred to another one chosen at random, strongest first. Empty
    for fewer than three contenders."""
    scores: tuple[Rated, ...] = ()
    differences: tuple[Ahead, ...] = ()
    agreement: dict[str, Score | None] = msgspec.field(default_factory=dict[str, "Score | None"])
    """Krippendorff's alpha for each criterion, or for the choice if pairs were rated. `None` if no task has
    two raters or all ratings are the same."""
    likeness: float | None = None
    """Correlation between votes on the same item. `planned` uses it to estimate the number of items
    needed."""
    left: Score | None = None
    """Share of votes for the left answer, excluding ties. About half, unless raters have a position bias."""
    notes: int = 0


def result(review: Review, tasks: Sequence[ReviewTask], ratings: Sequence[Rating]) -> ReviewResult:
    """Summarize the valid ratings. Excludes ratings of tasks that are not in the review."""
    known = {task.id: task for task in tasks}
    held = [rating for rating in valid_ratings(ratings) if rating.task in known]
    found = ReviewResult(
        review=review,
        raters=dict(Counter(rating.rater for rating in held)),
        ratings=len(held),
        notes=sum(bool(rating.note) for rating in held),
    )
    return _of_pairs(found, known, held) if review.kind == "pairs" else _of_scores(found, known, held)


def describe(found: ReviewResult) -> list[str]:
    """Describe the ratings in one sentence per pair of contenders. Returns an empty list if there are no
    ratings."""
    review, raters = found.review, text.count(len(found.raters), "rater")
    by = f"{raters}, {review.id}, rubric {review.rubric.name}"
    for name, alpha in found.agreement.items():
        by += f", agreement on {name}: alpha {text.score(alpha)}"
    where = f"items of {review.dataset} ({review.items_digest[:12]})"
    if not found.ratings:
        return []
    sentences = [
        f"People preferred {p.first} over {p.second} in {p.preference.value:.0%} "
        f"({p.preference.low:.0%} to {p.preference.high:.0%}) of {p.preference.n} {where}: {by}."
        for p in found.pairs
    ]
    sentences += [
        f"Raters scored {one.first} {text.score(one.score)} higher than {one.second} (scale 0 to 1) "
        f"on {one.score.n} {where}: {by}."
        for one in found.differences
    ]
    return sentences


def points_of(rating: Rating) -> float:
    """Score the contender shown on the left: 1 if it was preferred, 0 if the other one was, and 0.5 for a
    tie."""
    return {"left": 1.0, "right": 0.0}.get(rating.choice or "", 0.5)


def votes_of(held: Iterable[Rating], tasks: Mapping[str, ReviewTask]) -> list[PairVote]:
    """Return the votes in the order of each task's contenders, not in the order in which they were shown."""
    votes: list[PairVote] = []
    for rating in held:
        task = tasks[rating.task]
        first, second = task.contenders
        points = points_of(rating)
        votes.append(PairVote(task.item.id, first, second, points if rating.left == first else 1 - points))
    return votes


def overall(
    held: Iterable[Rating], tasks: Mapping[str, ReviewTask], review: Review
) -> dict[str, dict[str, float]]:
    """Return the average rating over all raters and criteria, from 0 to 1, for each contender and item."""
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rating in held:
        task = tasks[rating.task]
        found[task.contenders[0]][task.item.id].append(review.rubric.score(rating.scores))
    return {name: {item: fmean(values) for item, values in items.items()} for name, items in found.items()}


def _of_pairs(found: ReviewResult, tasks: Mapping[str, ReviewTask], held: Sequence[Rating]) -> ReviewResult:
    votes = votes_of(held, tasks)
    same = [PairVote(item, first, second, 0.5) for first, second, item in found.review.same]
    together = list(dict.fromkeys(task.contenders for task in tasks.values()))
    sided = [rating for rating in held if rating.choice in ("left", "right")]
    several = len(found.review.contenders) > 2 and bool(votes)
    return replace(
        found,
        pairs=tuple(_pair(names, votes, same, held, tasks) for names in together),
        strengths=strengths([*votes, *same]) if several else {},
        agreement={"choice": agreement.alpha(_units(held, _preferred))},
        likeness=likeness(votes),
        left=statistics.wilson(sum(r.choice == "left" for r in sided), len(sided)) if sided else None,
    )


def _pair(
    names: tuple[str, ...],
    votes: Sequence[PairVote],
    same: Sequence[PairVote],
    held: Sequence[Rating],
    tasks: Mapping[str, ReviewTask],
) -> Preferred:
    first, second = names
    mine = [vote for vote in votes if (vote.first, vote.second) == names]
    alike = [vote for vote in same if (vote.first, vote.second) == names]
    bad = sum(rating.choice == "both bad" and tasks[rating.task].contenders == names for rating in held)
    return Preferred(
        first=first,
        second=second,
        preference=rate([*mine, *alike]),
        first_better=sum(vote.points == 1 for vote in mine),
        second_better=sum(vote.points == 0 for vote in mine),
        ties=sum(vote.points == 0.5 for vote in mine) - bad,
        both_bad=bad,
        same=len(alike),
    )


def _of_scores(found: ReviewResult, tasks: Mapping[str, ReviewTask], held: Sequence[Rating]) -> ReviewResult:
    review = found.review
    by_item = overall(held, tasks, review)
    scores: list[Rated] = []
    for name in review.contenders:
        mine = [rating for rating in held if rating.left == name]
        if not mine:
            continue
        total = statistics.mean(list(by_item[name].values()), within=(0.0, 1.0))
        scores.append(Rated(contender=name, criterion="", score=total))
        items = [tasks[rating.task].item.id for rating in mine]
        for c in review.rubric.criteria:
            given = [float(rating.scores[c.name]) for rating in mine]
            score = statistics.mean(given, items, within=(1.0, float(c.points)))
            scores.append(Rated(contender=name, criterion=c.name, score=score))
    differences: list[Ahead] = []
    for first, second in combinations([name for name in review.contenders if name in by_item], 2):
        one, other = by_item[first], by_item[second]
        away = [one[item] - other[item] for item in one if item in other]
        if away:
            score = statistics.mean(away, within=(-1.0, 1.0))
            differences.append(Ahead(first=first, second=second, score=score))
    return replace(
        found,
        scores=tuple(scores),
        differences=tuple(differences),
        agreement={
            c.name: agreement.alpha(_units(held, lambda rating, c=c: float(rating.scores[c.name])), "ordinal")
            for c in review.rubric.criteria
        },
    )


def _preferred(rating: Rating) -> str:
    """Return what was said, wherever the answers stood."""
    sides = {"left": f"better: {rating.left}", "right": f"better: {rating.right}"}
    return sides.get(rating.choice or "", rating.choice or "")


def _units(held: Iterable[Rating], value: Callable[[Rating], agreement.Value]) -> list[list[agreement.Value]]:
    units: defaultdict[str, list[agreement.Value]] = defaultdict(list)
    for rating in held:
        units[rating.task].append(value(rating))
    return list(units.values())
