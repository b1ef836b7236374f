"""orchestrate eval with a judge: what it says counts only where people have checked it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.chat_host import ChatHost, chat_host
from tests.cli.conftest import Cli

from orchestrate.types import Evaluation

Marks = Callable[[str], int]


def length(answer: str) -> int:
    return len(answer)


def inverted(answer: str) -> int:
    return 6 - len(answer)


def answers(marks: Marks) -> Callable[[int, dict[str, Any]], str]:
    """Two models, one of which writes more; and a judge of what they write."""

    def write(number: int, body: dict[str, Any]) -> str:
        asked = body["messages"][-1]["content"]
        if body["model"] != "judge":
            row = int(asked.removeprefix("q"))
            return "x" * (2 + (row % 3 != 0) + (row % 2 if body["model"] == "writer-2" else -1))
        parts = dict(re.findall(r"=+\w+ (answer [\w ]+)\n(.*?)\n\n=", asked, re.DOTALL))
        if "answer to rate" in parts:
            points = marks(parts["answer to rate"])
            return json.dumps({"reason": f"{points} points", "scores": {"quality": points}})
        a, b = marks(parts["answer A"]), marks(parts["answer B"])
        return json.dumps({"reason": "longer", "winner": "A" if a > b else "B" if b > a else "tie"})

    return write


@pytest.fixture
def host() -> Iterator[ChatHost]:
    with chat_host() as found:
        found.writes = answers(length)
        yield found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "xxx"}]}
        for i in range(30)
    ]
    draw = random.Random(1)
    singles = [
        {"prompt": f"r{i}", "answer": "y" * n, "rating": n}
        for i, n in enumerate(draw.choices(range(1, 6), k=40))
    ]
    pairs = [
        {
            "prompt": f"r{i}",
            "answers": ["y" * a, "z" * b],
            "preferred": "first" if a > b else "second" if b > a else "tie",
        }
        for i, (a, b) in enumerate((draw.randint(1, 5), draw.randint(1, 5)) for _ in range(40))
    ]
    for name, lines in (("test", rows), ("singles", singles), ("pairs", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return tmp_path


def evaluated(cli: Cli, host: ChatHost, metric: str, *more: str) -> Evaluation:
    models = [f"{host.url}=writer-{n}" for n in (1, 2)]
    done = cli(
        "eval", "--model", models[0], "--model", models[1], "--against", models[0], "--test", "test.jsonl",
        "--metrics", f"{metric}:{host.url}=judge", *more, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert f"{metric}:judge: 60 requests; " in done.err
    return msgspec.convert(done.json, Evaluation, strict=False)


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "rated"), [("judge", "singles"), ("judge_pair", "pairs")])
def test_a_judge_that_agrees_with_people_carries_a_verdict(
    cli: Cli, host: ChatHost, folder: Path, metric: str, rated: str
) -> None:
    found = evaluated(cli, host, metric, "--calibrate", f"{rated}.jsonl")
    [verdict] = found.verdicts
    assert verdict.decision == "ship", verdict.reasons
    [used] = found.metrics
    assert used.unfit is None and used.detail["calibration"]["kappa"]["value"] == 1
    assert used.detail["prompt_text"] and used.detail["rubric"]["name"] == "preference"
    assert any("was compared with human ratings: kappa 1.000" in note for note in found.notes)
    [difference] = found.differences
    better = difference.contender
    if metric == "judge":
        assert difference.score.value == pytest.approx((15 * 2 + 15 * 1) / 30 / 4)  # of four steps
    else:
        score = found.score(better)
        assert score is not None and score.value == 1 and difference.score.value == 1
        assert found.score(difference.against) is None  # its own share of wins against itself means nothing
    asked = len(host.bodies)
    again = evaluated(cli, host, metric)  # remembered, and nothing is asked twice
    assert len(host.bodies) == asked and again.verdicts[0].decision == "ship"


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "rated"), [("judge", "singles"), ("judge_pair", "pairs")])
def test_a_judge_that_is_wrong_on_purpose_carries_none(
    cli: Cli, host: ChatHost, folder: Path, metric: str, rated: str
) -> None:
    host.writes = answers(inverted)
    found = evaluated(cli, host, metric, "--calibrate", f"{rated}.jsonl")
    assert found.verdicts[0].decision == "not enough evidence"
    assert "agreement with human raters is too low" in found.verdicts[0].reasons[0]
    assert any("cannot decide the verdict:" in note for note in found.notes)


def test_a_judge_that_nobody_checked_carries_none(cli: Cli, host: ChatHost, folder: Path) -> None:
    found = evaluated(cli, host, "judge")
    assert found.verdicts[0].decision == "not enough evidence"
    assert "the judge has not been compared with human ratings" in found.verdicts[0].reasons[0]
    pairs = evaluated(cli, host, "judge", "--calibrate", "pairs.jsonl")  # the other kind says nothing of it
    assert pairs.verdicts[0].decision == "not enough evidence"
    done = cli(
        "eval", "--model", f"{host.url}=writer-1", "--test", "test.jsonl", "--calibrate", "pairs.jsonl"
    )
    assert (
        done.code == 2
        and "--calibrate compares a judge with human ratings, but none of the metrics is a judge" in done.err
    )
