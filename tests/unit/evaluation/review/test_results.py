"""What ratings say: preference, strengths, agreement and the people needed, by hand and by simulation."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from tests.cells import first

from orchestrate.evaluation import Answer, Item
from orchestrate.evaluation.review import ReviewTask, results
from orchestrate.evaluation.review.results import PairVote, result
from orchestrate.types import Criterion, Rating, Review, Rubric

AT = datetime(2026, 11, 1, tzinfo=UTC)
RUBRIC = Rubric(name="r", criteria=(Criterion(name="correct", scale=3), Criterion(name="tone", scale=5)))


def review_of(kind: str, names: tuple[str, ...], **fields: Any) -> Review:
    return Review(
        id="rev-1",
        created_at=AT,
        kind=kind,  # pyright: ignore[reportArgumentType]
        contenders=names,
        run_ids=(),
        rubric=RUBRIC,
        evaluation="e",
        dataset="d",
        items_digest="",
        items=4,
        tasks=4,
        folder="",
        **fields,
    )


def task(item: str, *names: str) -> ReviewTask:
    answers = tuple(Answer(text=f"{name} on {item}") for name in names)
    return ReviewTask(
        id=f"{item}{''.join(names)}", item=Item(id=item, prompt=()), contenders=names, answers=answers
    )


def said(of: ReviewTask, rater: str, choice: str, *, turned: bool = False, **fields: Any) -> Rating:
    left, right = (*(of.contenders[::-1] if turned else of.contenders), "")[:2]
    return Rating(
        review="rev-1", task=of.id, rater=rater, at=AT, choice=choice, left=left, right=right, **fields
    )  # type: ignore[arg-type]


def test_pairs_by_hand() -> None:
    tasks = [task(f"i{n}", "new", "old") for n in range(4)]
    ratings = [
        said(tasks[0], "ann", "left"),
        said(tasks[0], "bo", "right", turned=True),  # the new one again
        said(tasks[1], "ann", "right"),
        said(tasks[1], "bo", "tie"),
        said(tasks[2], "ann", "both bad", note="neither"),
        said(tasks[3], "ann", "left"),
        said(tasks[3], "ann", "right"),  # changed
        said(tasks[2], "bo", "left"),
        said(tasks[2], "bo", "left", withdrawn=True),
    ]
    same = (("new", "old", "i9"),)
    found = result(review_of("pairs", ("new", "old"), same=same), tasks, ratings)
    [pair] = found.pairs
    counts = (pair.first_better, pair.second_better, pair.ties, pair.both_bad, pair.same)
    assert counts == (2, 2, 1, 1, 1) and found.raters == {"ann": 4, "bo": 2} and found.notes == 1
    # Over items: 1, 0.25, 0.5, 0 and the tie that nobody was asked about.
    assert pair.preference.value == pytest.approx(2.25 / 5) and pair.preference.n == 5
    assert found.left is not None and (found.left.value, found.left.n) == (0.25, 4)
    assert found.agreement["choice"] is not None and found.strengths == {}


def test_singles_by_hand() -> None:
    tasks = [task(f"i{n}", name) for n in range(3) for name in ("new", "old")]
    rated = {"new": ((3, 5), (3, 5), (3, 3)), "old": ((1, 1), (3, 5), (2, 3))}
    ratings = [
        said(
            one,
            "ann",
            None,
            scores=dict(zip(("correct", "tone"), rated[name][int(one.item.id[1])], strict=True)),
        )  # type: ignore[arg-type]
        for one in tasks
        for name in one.contenders
    ]
    found = result(review_of("single", ("new", "old")), tasks, ratings)
    scores = {(s.contender, s.criterion): s.score.value for s in found.scores}
    assert scores["new", ""] == pytest.approx((1 + 1 + 0.75) / 3)
    assert scores["old", ""] == pytest.approx((0 + 1 + 0.5) / 3) and scores["old", "correct"] == 2
    [ahead] = found.differences
    assert ahead.score.value == pytest.approx((1 + 0 + 0.25) / 3)
    assert found.agreement == {"correct": None, "tone": None}  # one rater agrees with nobody


def test_strengths_solve_their_equations() -> None:
    """The most likely strengths are those under which each model is expected to win as often as it did."""
    names = ["a", "b", "c", "d"]
    draw = random.Random(1)
    wins = {(x, y): float(draw.randint(1, 20)) for x in names for y in names if x != y}
    power = results.fitted(wins, names, draws=0)
    for x in names:
        expected = sum((wins[x, y] + wins[y, x]) * power[x] / (power[x] + power[y]) for y in names if y != x)
        assert expected == pytest.approx(sum(wins[x, y] for y in names if y != x), rel=1e-5)
    two = results.fitted({("a", "b"): 30.0, ("b", "a"): 10.0}, ["a", "b"], draws=0)
    assert two["a"] == pytest.approx(0.75)


def test_one_that_never_loses_has_a_finite_strength() -> None:
    votes = [PairVote(f"i{n}", "best", "other", 1.0) for n in range(20)]
    votes += [PairVote(f"i{n}", "other", "worst", 1.0) for n in range(20)]
    found = results.strengths(votes)
    assert list(found) == ["best", "other", "worst"] and 0.9 < found["best"].value < 1
    assert all(score.low <= score.value <= score.high for score in found.values())


def simulated(
    rng: np.random.Generator, items: int, raters: int, share: float, likeness: float
) -> np.ndarray[Any, Any]:
    """Votes of which two on one item have this correlation: with its root's chance each is the item's own."""
    own = rng.random((items, 1)) < share
    copied = rng.random((items, raters)) < likeness**0.5
    return np.where(copied, own, rng.random((items, raters)) < share).astype(float)


def test_raters_of_one_item_do_not_make_it_surer_than_it_is() -> None:
    """The interval holds the truth in 95% of cases; one that took all votes for independent would not."""
    rng = np.random.default_rng(0)
    held = naive = 0
    for _ in range(400):
        points = simulated(rng, 60, 4, 0.6, 0.5)
        votes = [PairVote(str(i), "a", "b", p) for i, row in enumerate(points) for p in row]
        score = results.rate(votes)
        held += score.low <= 0.6 <= score.high
        half = 1.96 * float(points.std(ddof=1)) / points.size**0.5
        naive += abs(float(points.mean()) - 0.6) <= half
    assert 0.925 <= held / 400 <= 0.98 and naive / 400 < 0.88


@pytest.mark.parametrize("raters", first([3, 1, 5]))
def test_so_many_items_and_raters_show_a_preference_in_four_of_five_tries(raters: int) -> None:
    [plan] = results.planned(0.65, likeness=0.4, raters=(raters,))
    rng = np.random.default_rng(raters)
    shown = 0
    for _ in range(300):
        means = simulated(rng, plan.items, raters, 0.65, 0.4).mean(axis=1)
        score = results.rate([PairVote(str(i), "a", "b", float(p)) for i, p in enumerate(means)])
        shown += score.low > 0.5
    assert 0.72 <= shown / 300 <= 0.88
    assert results.detectable(plan.items, raters, 0.4) == pytest.approx(0.65, abs=0.003)


def test_more_raters_need_fewer_items_and_more_votes() -> None:
    plans = results.planned(0.6)
    assert plans[0].items == 194  # Fleiss, one sample, 5% two-sided, 80%
    assert [p.items for p in plans] == sorted((p.items for p in plans), reverse=True)
    assert [p.votes for p in plans] == sorted(p.votes for p in plans)


def test_likeness_is_found_again() -> None:
    rng = np.random.default_rng(2)
    points = simulated(rng, 3000, 3, 0.6, 0.4)
    votes = [PairVote(str(i), "a", "b", p) for i, row in enumerate(points) for p in row]
    assert results.likeness(votes) == pytest.approx(0.4, abs=0.05)
    assert results.likeness(votes[::3]) is None


def test_later_ratings_stand_whatever_their_clock() -> None:
    one = task("i0", "new", "old")
    late, early = said(one, "ann", "left"), said(one, "ann", "right")
    found = result(
        review_of("pairs", ("new", "old")), [one], [late, replace(early, at=AT - timedelta(days=1))]
    )
    assert found.pairs[0].second_better == 1 and found.ratings == 1
