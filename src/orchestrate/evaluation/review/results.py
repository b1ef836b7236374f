"""What the ratings of a review say, and how far its raters agree."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from statistics import fmean

import msgspec
from msgspec.structs import replace

from orchestrate import text
from orchestrate.evaluation import agreement, statistics
from orchestrate.evaluation.review import preference
from orchestrate.evaluation.review.desk import standing
from orchestrate.evaluation.review.preference import Vote
from orchestrate.evaluation.review.tasks import Task
from orchestrate.types import Rating, Record, Review, Score


class Preferred(Record, frozen=True, kw_only=True):
    """Two contenders side by side; the counts are of votes, the score is over items."""

    first: str
    second: str
    preference: Score
    """How often the first is preferred, ties counting half, each item once."""
    first_better: int
    second_better: int
    ties: int
    both_bad: int
    same: int
    """Items with the same answer of both: ties that nobody was asked about."""


class Rated(Record, frozen=True, kw_only=True):
    """A contender by one criterion, or with an empty one by all of them, from 0 to 1."""

    contender: str
    criterion: str
    score: Score


class Ahead(Record, frozen=True, kw_only=True):
    """The first contender's score over all criteria minus the second's, on the same items."""

    first: str
    second: str
    score: Score


class ReviewResult(Record, frozen=True, kw_only=True):
    """The answer of `review --results`."""

    review: Review
    raters: dict[str, int]
    """Tasks that each has rated."""
    ratings: int
    pairs: tuple[Preferred, ...] = ()
    strengths: dict[str, Score] = msgspec.field(default_factory=dict[str, Score])
    """With three contenders and more: how often each would be preferred to another one, strongest first."""
    scores: tuple[Rated, ...] = ()
    differences: tuple[Ahead, ...] = ()
    agreement: dict[str, Score | None] = msgspec.field(default_factory=dict[str, "Score | None"])
    """Krippendorff's alpha by criterion, of pairs of the choice; `None` while no task has two raters, or
    where all say the same."""
    likeness: float | None = None
    """How far votes on one item hang together, as `planned` takes it."""
    left: Score | None = None
    """Of the votes for one side, those for the left one: half, unless the place sways the raters."""
    notes: int = 0


def result(review: Review, tasks: Sequence[Task], ratings: Sequence[Rating]) -> ReviewResult:
    """Of the ratings that hold; those of tasks that are not in the review are left out."""
    known = {task.id: task for task in tasks}
    held = [rating for rating in standing(ratings) if rating.task in known]
    found = ReviewResult(
        review=review,
        raters=dict(Counter(rating.rater for rating in held)),
        ratings=len(held),
        notes=sum(bool(rating.note) for rating in held),
    )
    return _of_pairs(found, known, held) if review.kind == "pairs" else _of_scores(found, known, held)


def told(found: ReviewResult) -> list[str]:
    """What people said, a sentence for each two contenders; none while nobody said anything."""
    review, raters = found.review, text.count(len(found.raters), "rater")
    by = f"{raters}, {review.id}, rubric {review.rubric.name}"
    for name, alpha in found.agreement.items():
        by += f", agreement on {name}: alpha {text.score(alpha)}"
    where = f"items of {review.dataset} ({review.items_digest[:12]})"
    if not found.ratings:
        return []
    sentences = [
        f"People preferred {p.first} to {p.second} in {p.preference.value:.0%} ({p.preference.low:.0%} to "
        f"{p.preference.high:.0%}) of {p.preference.n} {where}: {by}."
        for p in found.pairs
    ]
    sentences += [
        f"People rated {one.first} {text.score(one.score)} above {one.second}, from 0 to 1, on {one.score.n} "
        f"{where}: {by}."
        for one in found.differences
    ]
    return sentences


def points_of(rating: Rating) -> float:
    """For the contender that was shown left."""
    return {"left": 1.0, "right": 0.0}.get(rating.choice or "", 0.5)


def votes_of(held: Iterable[Rating], tasks: Mapping[str, Task]) -> list[Vote]:
    """In the order of each task's contenders, whatever the sides were."""
    votes: list[Vote] = []
    for rating in held:
        task = tasks[rating.task]
        first, second = task.contenders
        points = points_of(rating)
        votes.append(Vote(task.item.id, first, second, points if rating.left == first else 1 - points))
    return votes


def overall(held: Iterable[Rating], tasks: Mapping[str, Task], review: Review) -> dict[str, dict[str, float]]:
    """contender -> item -> the mean of its raters over all criteria, 0 to 1."""
    found: defaultdict[str, defaultdict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for rating in held:
        task = tasks[rating.task]
        found[task.contenders[0]][task.item.id].append(review.rubric.score(rating.scores))
    return {name: {item: fmean(values) for item, values in items.items()} for name, items in found.items()}


def _of_pairs(found: ReviewResult, tasks: Mapping[str, Task], held: Sequence[Rating]) -> ReviewResult:
    votes = votes_of(held, tasks)
    same = [Vote(item, first, second, 0.5) for first, second, item in found.review.same]
    together = list(dict.fromkeys(task.contenders for task in tasks.values()))
    sided = [rating for rating in held if rating.choice in ("left", "right")]
    several = len(found.review.contenders) > 2 and bool(votes)
    return replace(
        found,
        pairs=tuple(_pair(names, votes, same, held, tasks) for names in together),
        strengths=preference.strengths([*votes, *same]) if several else {},
        agreement={"choice": agreement.alpha(_units(held, _preferred))},
        likeness=preference.likeness(votes),
        left=statistics.wilson(sum(r.choice == "left" for r in sided), len(sided)) if sided else None,
    )


def _pair(
    names: tuple[str, ...],
    votes: Sequence[Vote],
    same: Sequence[Vote],
    held: Sequence[Rating],
    tasks: Mapping[str, Task],
) -> Preferred:
    first, second = names
    mine = [vote for vote in votes if (vote.first, vote.second) == names]
    alike = [vote for vote in same if (vote.first, vote.second) == names]
    bad = sum(rating.choice == "both bad" and tasks[rating.task].contenders == names for rating in held)
    return Preferred(
        first=first,
        second=second,
        preference=preference.rate([*mine, *alike]),
        first_better=sum(vote.points == 1 for vote in mine),
        second_better=sum(vote.points == 0 for vote in mine),
        ties=sum(vote.points == 0.5 for vote in mine) - bad,
        both_bad=bad,
        same=len(alike),
    )


def _of_scores(found: ReviewResult, tasks: Mapping[str, Task], held: Sequence[Rating]) -> ReviewResult:
    review = found.review
    by_item = overall(held, tasks, review)
    scores: list[Rated] = []
    for name in review.contenders:
        mine = [rating for rating in held if rating.left == name]
        if not mine:
            continue
        whole = statistics.mean(list(by_item[name].values()), within=(0.0, 1.0))
        scores.append(Rated(contender=name, criterion="", score=whole))
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
    """What was said, wherever the answers stood."""
    sides = {"left": f"better: {rating.left}", "right": f"better: {rating.right}"}
    return sides.get(rating.choice or "", rating.choice or "")


def _units(held: Iterable[Rating], value: Callable[[Rating], agreement.Value]) -> list[list[agreement.Value]]:
    units: defaultdict[str, list[agreement.Value]] = defaultdict(list)
    for rating in held:
        units[rating.task].append(value(rating))
    return list(units.values())
