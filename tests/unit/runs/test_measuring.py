"""What people and judges say, through the Python API: runs of several evaluations, ratings from elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.chat_host import ChatHost, chat_host
from tests.reviewing import answered

from orchestrate import AsyncOrchestrator, JobSpec, Orchestrator
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import ScoredItem
from orchestrate.evaluation.review.session import ReviewSession
from orchestrate.settings import config
from orchestrate.store.runs import Intent
from orchestrate.types import Contender, Evaluation, MetricUsed, Rating

QUESTIONS = ("one?", "two?", "three?", "four?")


@pytest.fixture
def ft(tmp_path: Path) -> Iterator[Orchestrator]:
    with Orchestrator(config.load(home=tmp_path / "home")) as found:
        yield found


def evaluated(ft: Orchestrator, folder: Path, name: str, rows: Sequence[ScoredItem], age: int = 0) -> str:
    """A run with an evaluation of its own, against the base of all."""
    items = folder / f"{name}.jsonl"
    items.write_bytes(b"".join(row.to_json() + b"\n" for row in rows))
    intent = Intent(
        spec=JobSpec(model="tiny-chat", train=f"{name}.jsonl"),
        provider="local",
        dataset_digest=name,
        host="here",
    )
    run = ft.store.runs.create(intent)
    common = {"model": "tiny", "provider": "local", "served_by": "here"}
    ft.store.history.add_evaluation(
        Evaluation(
            id=f"eval-{name}",
            created_at=datetime.now(UTC) - timedelta(hours=age),
            dataset="test.jsonl",
            dataset_digest="d",
            items=len(rows),
            items_digest=name,
            contenders=(
                Contender(name=name, kind="tuned", run_id=run.id, **common),  # type: ignore[arg-type]
                Contender(name="base tiny", kind="base", **common),  # type: ignore[arg-type]
            ),
            metrics=(MetricUsed(name="token_f1", kind="graded"),),
            measures=(),
            items_file=str(items),
        )
    )
    return run.id


def rows(name: str, questions: Sequence[str], base: str = "base") -> list[ScoredItem]:
    own = [(q, f"{name} {q}", f"{base} {q}") for q in questions]
    return answered(*own, names=(name, "base tiny"))


def rating(desk: ReviewSession, number: int, rater: str, better: str) -> Rating:
    task = desk.tasks[number]
    left, right = task.contenders
    choice = "left" if left == better else "right"
    return Rating(
        review=desk.review.id,
        task=task.id,
        rater=rater,
        at=datetime.now(UTC),
        choice=choice,
        left=left,
        right=right,
    )


def test_runs_of_several_evaluations_are_rated_on_what_all_have_answered(
    ft: Orchestrator, tmp_path: Path
) -> None:
    first = evaluated(ft, tmp_path, "alpha", rows("alpha", QUESTIONS, "older base"), age=1)
    second = evaluated(ft, tmp_path, "beta", rows("beta", QUESTIONS[1:]))
    desk = ft.review([first, second])
    assert set(desk.review.contenders) == {"alpha", "beta", "base tiny"}
    assert (desk.review.items, len(desk.tasks)) == (3, 9), "every two of three, on three items"
    assert desk.review.evaluation == "eval-alpha,eval-beta"
    assert set(desk.review.run_ids) == {first, second}
    texts = {a.text for task in desk.tasks for a in task.answers}
    assert "beta two?" in texts and "alpha two?" in texts
    assert "base two?" in texts and "older base two?" not in texts, "the newest answers of a contender"
    assert ft.review([first, second]).review.id == desk.review.id
    assert ft.review([first]).review.items == 4, "one run's own evaluation stays whole"
    other = evaluated(ft, tmp_path, "gamma", rows("gamma", ["five?"]))
    with pytest.raises(UsageError, match="no item was answered in all of these evaluations:"):
        ft.review([first, other])
    with pytest.raises(UsageError, match="no evaluation of these runs matches eval-alpha"):
        ft.review([first, second], evaluation="eval-alpha")


def test_a_review_of_other_items_pairs_or_seed_is_another_one(ft: Orchestrator, tmp_path: Path) -> None:
    """What is asked for is never dropped for a review that is there."""
    run = evaluated(ft, tmp_path, "alpha", rows("alpha", QUESTIONS))
    two = ft.review([run], items=2)
    assert two.review.items == 2 and ft.review([run], items=2).review.id == two.review.id
    whole = ft.review([run], items=100)
    assert whole.review.items == 4 and ft.review([run], items=100).review.id == whole.review.id
    assert ft.review([run], items=100, seed=3).review.seed == 3
    assert ft.review([run], items=2, against="base").review.id == two.review.id, "its one pair is that"


def test_ratings_from_elsewhere_are_kept_all_or_none(ft: Orchestrator, tmp_path: Path) -> None:
    run = evaluated(ft, tmp_path, "alpha", rows("alpha", QUESTIONS))
    desk = ft.review(run)
    given = [rating(desk, n, "  ann ", "alpha") for n in range(4)]
    for wrong, words in (
        ({"task": "none"}, "does not belong to"),
        ({"left": "beta"}, "shows alpha and base tiny"),
        ({"choice": None}, "choose the better answer"),
    ):
        bad = Rating.from_dict({**given[3].to_dict(), **wrong})
        with pytest.raises(UsageError, match=words):
            ft.rate(desk.review.id, [*given[:3], bad])
    assert ft.rated(desk.review.id).ratings == 0
    assert ft.rate(desk.review.id, given) == 4
    found = ft.rated(desk.review.id)
    assert found.raters == {"ann": 4} and found.pairs[0].preference.value == 1

    async def same() -> None:
        async with AsyncOrchestrator(ft.settings) as aft:
            again = await aft.review([await aft.run(run)])
            assert again.review.id == desk.review.id
            assert await aft.rate(desk.review.id, [rating(desk, 0, "bo", "base tiny")]) == 1
            assert (await aft.rated(desk.review.id)).raters == {"ann": 4, "bo": 1}

    asyncio.run(same())


@pytest.fixture
def judging() -> Iterator[ChatHost]:
    """Says 5 of what is `splendid`, and 1 of all else; the model `wrong` the opposite."""

    def writes(_: int, body: dict[str, object]) -> str:
        good = "splendid" in json.dumps(body["messages"])
        points = 5 if good == (body["model"] != "wrong") else 1
        return json.dumps({"reason": "seen", "scores": {"quality": points}})

    with chat_host() as found:
        found.writes = writes  # type: ignore[assignment]
        yield found


def test_a_judge_is_calibrated_and_parts_rows(ft: Orchestrator, tmp_path: Path, judging: ChatHost) -> None:
    people = [
        {
            "prompt": f"q{i}",
            "answer": f"{'splendid' if i % 2 else 'poor'} answer {i}",
            "rating": 5 if i % 2 else 1,
        }
        for i in range(40)
    ]
    held = tmp_path / "rated.jsonl"
    held.write_text("".join(json.dumps(line) + "\n" for line in people))
    train = tmp_path / "train.jsonl"
    train.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "user", "content": f"ask {i}"},
                        {"role": "assistant", "content": f"{'splendid' if i < 3 else 'poor'} row {i}"},
                    ]
                }
            )
            + "\n"
            for i in range(5)
        )
    )
    with pytest.raises(
        UsageError, match="this judge has not been calibrated against human ratings, so it cannot filter rows"
    ):
        ft.judge(train, f"{judging.url}=right")
    assert ft.calibrate(f"{judging.url}=wrong", held).unfit is not None
    with pytest.raises(DataError):
        ft.judge(train, f"{judging.url}=wrong", rated=str(held))
    assert ft.calibrate(f"{judging.url}=right", held).unfit is None
    before = len(judging.bodies)
    found = ft.judge(train, f"{judging.url}=right", keep=0.8)
    assert (found.kept, found.rejected, len(judging.bodies) - before) == (3, 2, 5)
    assert Path(found.output) == tmp_path / "train.judged.jsonl"
