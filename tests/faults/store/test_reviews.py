"""Reviews and calibrations in the store, on SQLite and Postgres."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from msgspec.structs import replace

from orchestrate.errors import UsageError
from orchestrate.store.store import Store
from orchestrate.types import Rating, Review, Rubric

AT = datetime(2026, 11, 1, tzinfo=UTC)


class Found(msgspec.Struct):
    n: int


def review(id: str, *runs: str, at: datetime = AT) -> Review:
    return Review(
        id=id,
        created_at=at,
        kind="pairs",
        contenders=("a", "b"),
        run_ids=runs,
        rubric=Rubric(name="r"),
        evaluation="eval-1",
        dataset="d",
        items_digest="",
        items=1,
        tasks=1,
        folder="f",
    )


@pytest.mark.slow
def test_reviews_are_found_again(store: Store) -> None:
    first, second = review("rev-aaa", "run-1", "run-2"), review("rev-aab", "run-2", at=AT + timedelta(1))
    for one in (first, second):
        store.reviews.add(one)
    assert store.reviews.matching() == [second, first]
    assert store.reviews.matching(run_ids=["run-1"]) == [first]
    assert store.reviews.matching(evaluation="eval-2") == []
    assert store.reviews.get("rev-aab") == second
    for name, words in (("rev-aa", "several"), ("rev-x", "no review matches")):
        with pytest.raises(UsageError, match=words):
            store.reviews.get(name)


def test_ratings_are_only_added_and_keep_their_order(store: Store) -> None:
    """Many at a time, from several threads: none is lost, and each thread's own stay in order."""
    one = Rating(review="rev-1", task="t", rater="ann", at=AT, choice="left", left="a", right="b")

    def rate(who: str) -> None:
        for n in range(10):
            store.reviews.rate(replace(one, rater=who, note=str(n)))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(rate, ("ann", "bo", "cy")))
    store.reviews.rate()
    store.reviews.rate(one, replace(one, review="rev-2"))
    kept = store.reviews.ratings("rev-1")
    assert len(kept) == 31 and kept[-1] == one and len(store.reviews.ratings("rev-2")) == 1
    for who in ("ann", "bo", "cy"):
        assert [r.note for r in kept if r.rater == who and r.note] == [str(n) for n in range(10)]


def test_the_last_calibration_of_a_judge_stands(store: Store) -> None:
    assert store.reviews.calibration("j") is None
    for n in (1, 2):
        store.reviews.calibrate("j", Found(n))
    store.reviews.calibrate("k", Found(3))
    assert store.reviews.calibration("j") == {"n": 2} and store.reviews.calibration("k") == {"n": 3}
