"""orchestrate data judge: rows parted by a model that people have checked, over a host on loopback."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.chat_host import ChatHost, chat_host
from tests.cli.conftest import Cli

from orchestrate.runs.evaluation.judges import JudgeReport

RUBRIC = "guide: The longer the better.\ncriteria: [{name: length, scale: 5}]\n"
PRICED = "gpt-4.1-mini"


def judges(number: int, body: dict[str, Any]) -> str:
    """An honest judge: an answer of n letters has n points."""
    length = len(rated_answer(body))
    return json.dumps({"reason": f"{length} letters", "scores": {"length": length}})


def inverted(number: int, body: dict[str, Any]) -> str:
    return json.dumps({"reason": "wrong on purpose", "scores": {"length": 6 - len(rated_answer(body))}})


def rated_answer(body: dict[str, Any]) -> str:
    found = re.search(r"=+\w+ answer to rate\n(.*?)\n\n=+", body["messages"][1]["content"], re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def host() -> Iterator[ChatHost]:
    with chat_host() as found:
        found.writes = judges
        yield found


def row(question: str, answer: str) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, "id": 12345678901234567890})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "rubric.yaml").write_text(RUBRIC)
    rows = [row(f"q{i}", "x" * (1 + i % 5)) for i in range(10)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows[:5], "{broken", "", *rows[5:]]) + "\n")
    draw = random.Random(1)
    rated = [
        {"prompt": f"r{i}", "answer": "y" * n, "rating": n}
        for i, n in enumerate(draw.choices(range(1, 6), k=40))
    ]
    (tmp_path / "rated.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in rated))
    return tmp_path


def command(host: ChatHost, *more: str, model: str = PRICED) -> list[str]:
    return ["data", "judge", "rows.jsonl", "--rubric", "rubric.yaml", "--model", f"{host.url}={model}", *more]


@pytest.mark.slow
def test_good_rows_are_kept_and_nothing_is_lost(cli: Cli, host: ChatHost, folder: Path) -> None:
    done = cli(*command(host, "--calibrate", "rated.jsonl", "--keep", "0.75", "--yes", "--json"))
    assert done.code == 0, done.err
    report = msgspec.convert(done.json, JudgeReport, strict=False)
    assert (report.rows, report.kept, report.rejected, report.not_judged) == (11, 4, 6, 1)
    assert report.calibration is not None and report.calibration.unfit is None and report.usd
    assert "11 rows and 40 rated answers: 50 requests to send; about $" in done.err
    given = [line for line in (folder / "rows.jsonl").read_text().splitlines() if line]
    parts = {
        name: (folder / file).read_text().splitlines()
        for name, file in (
            ("kept", "rows.judged.jsonl"),
            ("rejected", "rows.judged.rejected.jsonl"),
            ("not judged", "rows.judged.not-judged.jsonl"),
        )
    }
    # Byte for byte, large numbers too.
    assert sorted(line for part in parts.values() for line in part) == sorted(given)
    assert parts["not judged"] == ["{broken"] and parts["kept"] == [given[i] for i in (3, 4, 9, 10)]
    log = [json.loads(line) for line in (folder / "rows.judged.scores.jsonl").read_text().splitlines()]
    assert [one["row"] for one in log] == list(range(1, 12))
    assert log[0] == {
        "row": 1,
        "verdict": "rejected",
        "score": 0.0,
        "scores": {"length": 1},
        "reason": "1 letters",
    }
    assert log[5]["verdict"] == "not judged" and log[5]["reason"]
    again = cli(*command(host, "--keep", "0.5"))  # its answers and its calibration are kept
    assert again.code == 0 and len(host.bodies) == 50, again.err
    assert "rows.judged.jsonl: 6 rows of 11" in again.out and "agrees with human raters" in again.err


@pytest.mark.slow
def test_a_judge_that_is_wrong_on_purpose_is_refused(cli: Cli, host: ChatHost, folder: Path) -> None:
    host.writes = inverted
    done = cli(*command(host, "--calibrate", "rated.jsonl", "--yes"))
    assert done.code == 1 and "with human raters is too low" in done.err
    assert len(host.bodies) == 40 and not (folder / "rows.judged.jsonl").exists()  # no row was asked about
    known = cli(*command(host, "--yes"))  # it is remembered as what it is
    assert known.code == 1 and "with human raters is too low" in known.err and len(host.bodies) == 40
    anyway = cli(*command(host, "--yes", "--uncalibrated"))
    assert anyway.code == 0 and "with human raters is too low" in anyway.err and len(host.bodies) == 50


@pytest.mark.slow
def test_without_people_nothing_is_left_out(cli: Cli, host: ChatHost, folder: Path) -> None:
    done = cli(*command(host, "--yes"))
    assert (
        done.code == 2
        and "this judge has not been calibrated against human ratings, so it cannot filter rows" in done.err
        and "--calibrate" in done.err
    )
    unasked = cli(*command(host, "--calibrate", "rated.jsonl"))
    assert unasked.code == 2 and "nothing was sent" in unasked.err and "about $" in unasked.err
    pairs = {"prompt": "q", "answers": ["a", "b"], "preferred": "first"}
    (folder / "pairs.jsonl").write_text(json.dumps(pairs) + "\n")
    wrong = cli(*command(host, "--calibrate", "pairs.jsonl", "--yes"))
    assert wrong.code == 2 and "needs ratings of single answers" in wrong.err
    assert host.bodies == []
    loose = cli(*command(host, "--uncalibrated", "--yes", "--json"))
    assert loose.code == 0
    assert "the judge has not been compared with human ratings" in loose.json["judge"]["unfit"]


def test_it_stops_before_the_limit_and_goes_on(cli: Cli, host: ChatHost, folder: Path) -> None:
    limited = cli(*command(host, "--uncalibrated", "--max-cost", "0.0021"))
    assert limited.code == 6 and not (folder / "rows.judged.jsonl").exists(), limited.err
    sent = len(host.bodies)
    assert 0 < sent < 10
    done = cli(*command(host, "--uncalibrated", "--max-cost", "1"))
    assert done.code == 0 and len(host.bodies) == 10


def test_other_rows_are_refused_and_unreadable_answers_lose_no_row(
    cli: Cli, host: ChatHost, folder: Path
) -> None:
    host.writes = lambda number, _: "I would rather not say" if number % 2 else '{"scores": {"length": 5}}'
    done = cli(*command(host, "--uncalibrated", "--yes", "--json"))
    assert done.code == 0 and (done.json["kept"], done.json["not_judged"]) == (5, 6)
    sizes = [
        len((folder / f).read_text().splitlines())
        for f in ("rows.judged.jsonl", "rows.judged.not-judged.jsonl")
    ]
    assert sizes == [5, 6] and (folder / "rows.judged.rejected.jsonl").read_text() == ""
    (folder / "rows.jsonl").write_text('{"text": "prose"}\n' * 3)
    other = cli(*command(host, "--uncalibrated", "--yes"))
    assert other.code == 1 and "chat and completion rows" in other.err


@pytest.mark.parametrize(
    "words",
    [
        "eval --test rows.jsonl --model {}=m",
        "record {}=m --prompts rows.jsonl",
        "data judge rows.jsonl --uncalibrated --model {}=m",
        "data generate rows.jsonl -o new.jsonl --model m --base-url {}",
    ],
)
def test_one_rule_for_models_whose_price_is_unknown(
    cli: Cli, host: ChatHost, folder: Path, words: str
) -> None:
    """Somebody else's is asked only when the user agrees, and takes no limit; one's own is asked at once."""
    (folder / "rows.jsonl").write_text("".join(f"{row(f'q{i}', 'x' * 5)}\n" for i in range(3)))
    foreign = words.format("https://models.invalid/v1").split()
    done = cli(*foreign)
    assert (done.code, "nothing was sent" in done.err) == (2, True), done.err
    limited = cli(*words.format(host.url).split(), "--max-cost", "1")
    assert (limited.code, "cannot be enforced" in limited.err, host.bodies) == (6, True, []), limited.err
    host.writes = lambda number, body: "yes"
    cli(*words.format(host.url).split())
    assert host.bodies, "on loopback"
