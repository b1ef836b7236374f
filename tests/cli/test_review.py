"""orchestrate review: from an evaluation to ratings, results, sheets and training rows, as commands."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.chat_host import chat_host
from tests.cli.conftest import Cli
from tests.reviewing import ESCAPES, HUGE, MARKUP, answered

from orchestrate import JobSpec, Orchestrator
from orchestrate.commands.evaluation.review import AnswersReviewing
from orchestrate.data import Dataset
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation.review.results import ReviewResult
from orchestrate.evaluation.review.rows import FromReview, Imported
from orchestrate.evaluation.review.written_rows import WritingResult
from orchestrate.runs.evaluation import reviews
from orchestrate.settings import config
from orchestrate.store.runs import Intent
from orchestrate.types import Contender, Evaluation, MetricUsed

ROWS = answered(
    ("one?", "tuned one", "base one"),
    ("two?", MARKUP, "base two"),
    ("three?", ESCAPES, HUGE),
    ("four?", "the same", "the same"),
    names=("run", "base tiny"),
)


@pytest.fixture
def run_id(tmp_path: Path, cli_env: dict[str, str]) -> str:
    """A run with an evaluation whose answers are there."""
    items = tmp_path / "items.jsonl"
    items.write_bytes(b"".join(row.to_json() + b"\n" for row in ROWS))
    with Orchestrator(config.load(home=tmp_path / "home")) as ft:
        spec = JobSpec(model="tiny-chat", train="t.jsonl")
        run = ft.store.runs.create(Intent(spec=spec, provider="local", dataset_digest="d", host="here"))
        contenders = (
            Contender(
                name="run", kind="tuned", model="tiny", provider="local", served_by="here", run_id=run.id
            ),
            Contender(name="base tiny", kind="base", model="tiny", provider="local", served_by="here"),
        )
        ft.store.history.add_evaluation(
            Evaluation(
                id="eval-20261101-abcd",
                created_at=datetime.now(UTC),
                dataset="test.jsonl",
                dataset_digest="d",
                items=len(ROWS),
                items_digest="e" * 64,
                contenders=contenders,
                metrics=(MetricUsed(name="token_f1", kind="graded"),),
                measures=(),
                items_file=str(items),
            )
        )
    return run.id


def serve(
    tmp_path: Path, env: dict[str, str], *arguments: str
) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "orchestrate.cli", "review", *arguments, "--json"],
        cwd=tmp_path,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    lines: list[str] = []
    while not lines or lines[-1] != "}\n":
        line = child.stdout.readline()
        assert line, child.stderr.read() if child.stderr else ""
        lines.append(line)
    told = json.loads("".join(lines))
    msgspec.convert(told, AnswersReviewing)
    return child, told


def act(link: str, **body: Any) -> Any:
    request = urllib.request.Request(link, json.dumps(body).encode())
    with urllib.request.urlopen(request, timeout=240) as answer:
        return json.load(answer)


def end(child: subprocess.Popen[str]) -> str:
    child.send_signal(signal.SIGTERM)
    _, err = child.communicate(timeout=240)
    assert child.returncode == 0 and "Traceback" not in err
    return err


def better(shown: dict[str, Any], texts: tuple[str, ...]) -> str:
    return "left" if shown["answers"][0]["text"].startswith(texts) else "right"


@pytest.mark.slow
def test_pairs_from_the_page_to_training_rows(
    cli: Cli, cli_env: dict[str, str], run_id: str, tmp_path: Path
) -> None:
    child, told = serve(tmp_path, cli_env, run_id, "--raters", "ann, bo")
    assert list(told["links"]) == ["ann", "bo"] and told["tasks"] == 3
    tuned = ("tuned", MARKUP[:9], ESCAPES[:9])
    for link in told["links"].values():
        shown = act(link, action="show")
        while shown["done"] < 3:
            shown = act(link, action="rate", task=shown["task"], choice=better(shown, tuned), note=ESCAPES)
    err = end(child)
    assert "rated: ann 3, bo 3 of 3" in err and "1 pair of identical answers" in err
    found = cli("review", run_id, "--results", "--json")
    result = msgspec.convert(found.json, ReviewResult, strict=False)
    [pair] = result.pairs
    assert (pair.first, pair.first_better, pair.second_better, pair.same) == ("run", 6, 0, 1)
    assert pair.preference.value == pytest.approx(3.5 / 4) and result.review.id == told["review"]
    shown = cli("review", told["review"], "--results")
    assert (
        "88% (" in shown.out and "ann 3 of 3, bo 3 of 3" in shown.err and "\x1b" not in shown.out + shown.err
    )
    compared = cli("compare", run_id, "--format", "md")
    assert "People preferred run over base tiny in 88% (" in compared.out and "2 raters" in compared.out
    rows = cli("data", "from-review", told["review"], "-o", "dpo.jsonl", "--json")
    assert msgspec.convert(rows.json, FromReview).rows == 3 and Dataset.open(tmp_path / "dpo.jsonl").rows == 3
    kto = cli("data", "from-review", told["review"], "-o", "kto.jsonl", "--as", "kto")
    assert kto.code == 0 and "kto.jsonl: 6 rows for kto" in kto.out
    wrong = cli("data", "from-review", told["review"], "-o", "x.jsonl", "--as", "rft")
    assert wrong.code == 2
    with Orchestrator(config.load(home=tmp_path / "home")) as ft:  # goes on, unless it is told not to
        same = reviews.opened(ft, [run_id])
        assert same.review.id == told["review"] and same.done() == {"ann": 3, "bo": 3}
        with reviews.serving(same, raters=["bo", "cy"]) as page:
            old, new = told["links"]["bo"].split("/")[-2], page.links["bo"].split("/")[-2]
            assert old == new and list(page.links) == ["bo", "cy"]  # a link stays the same
        order = reviews.ReviewOrder(new=True, items=2, against="base")
        other = reviews.opened(ft, [run_id], order)
        assert other.review.id != told["review"] and other.review.items == 2


@pytest.mark.slow
def test_single_answers_on_sheets_hold_a_judge(cli: Cli, run_id: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.csv"
    done = cli("review", run_id, "--single", "--export", "sheet.csv", "--rater", "Fay", "--json")
    assert done.code == 0 and done.json["rows"] == 8
    review = done.json["review"]
    text = sheet.read_text(encoding="utf-8-sig")
    assert run_id not in text and "base tiny" not in text
    import csv

    csv.field_size_limit(1 << 30)
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        head, *body = list(csv.reader(file))
    for number, line in enumerate(body):
        line[head.index("quality (1 to 5)")] = str(1 + number % 5)
    with sheet.open("w", newline="") as file:
        csv.writer(file).writerows([head, *body])
    taken = cli("review", review, "--import", "sheet.csv", "--rater", "Fay", "--json")
    assert msgspec.convert(taken.json, Imported).ratings == 8
    assert (
        "0 ratings from Fay, 8 already known"
        in cli("review", review, "--import", "sheet.csv", "--rater", "Fay").out
    )
    shown = cli("review", review, "--results")
    assert (
        "all, 0 to 1" in shown.out
        and "unknown: either no task has two raters, or all ratings are equal" in shown.err
    )
    rated = cli("review", review, "--export", "rated.jsonl")
    assert "rated.jsonl: 8 rows" in rated.out
    (tmp_path / "rows.jsonl").write_text(
        '{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}\n'
    )
    with chat_host() as host:
        host.writes = lambda number, _: json.dumps({"scores": {"quality": 1 + number % 5}})
        judged = cli(
            "data", "judge", "rows.jsonl", "--model", f"{host.url}=judge", "--calibrate", review, "--yes"
        )
    assert judged.code == 1 and "compared with human ratings on 8 answers, but 30 are required" in judged.err


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ({"contenders": ("run", "moon")}, "unknown contender 'moon'"),
        ({"contenders": ("run",)}, "two contenders"),
        ({"evaluation": "eval-0"}, "matches eval-0"),
        ({"rubric": Path("none.yaml")}, "cannot be read"),
        ({"against": "moon"}, "unknown contender 'moon'"),
    ],
)
def test_what_cannot_be_reviewed_is_told(
    run_id: str, tmp_path: Path, order: dict[str, Any], words: str
) -> None:
    with (
        Orchestrator(config.load(home=tmp_path / "home")) as ft,
        pytest.raises(UsageError, match=words),
    ):
        reviews.opened(ft, [run_id], reviews.ReviewOrder(**order))


def test_mistakes_are_told(cli: Cli, run_id: str, tmp_path: Path) -> None:
    for arguments, words in (
        ((), "choose the runs"),
        ((run_id, "--results", "--plan"), "one of --results"),
        ((run_id, "--results"), "no review of these answers yet"),
    ):
        done = cli("review", *arguments)
        assert done.code == 2 and words in done.err, (arguments, done.err)
    with Orchestrator(config.load(home=tmp_path / "home")) as ft:
        desk = reviews.opened(ft, [run_id])
        for file, rater, words in (
            ("sheet.csv", None, "needs a rater.s name"),
            ("sheet.xlsx", "a", "use .csv for a spreadsheet to fill in, or .jsonl for the ratings"),
            ("rated.jsonl", None, "no ratings yet"),
        ):
            with pytest.raises(UsageError, match=words):
                reviews.export(ft, desk, tmp_path / file, rater)
        with pytest.raises(UsageError, match="no review matches rev-none"):
            reviews.opened(ft, ["rev-none"])
        (tmp_path / "items.jsonl").unlink()
        with pytest.raises(DataError, match="cannot find the answers:"):
            reviews.opened(ft, [run_id], reviews.ReviewOrder(new=True))


def test_nobody_knows_the_sides_beforehand(run_id: str, tmp_path: Path) -> None:
    """Who knows the tool, the rows and the rater's name can't tell whose answer stands left."""
    with Orchestrator(config.load(home=tmp_path / "home")) as ft:
        made = [reviews.opened(ft, [run_id], reviews.ReviewOrder(new=True)).review for _ in range(4)]
        assert len({review.seed for review in made}) == 4
        chosen = reviews.opened(ft, [run_id], reviews.ReviewOrder(new=True, seed=7)).review
        assert chosen.seed == 7
        assert reviews.opened(ft, [run_id]).review.id == chosen.id, "without a seed any of them goes on"
        again = reviews.opened(ft, [run_id], reviews.ReviewOrder(seed=made[0].seed)).review
        assert again.id == made[0].id


def test_models_that_were_not_trained_here_are_rated(cli: Cli, tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "one"}]}
    (tmp_path / "t.jsonl").write_text(json.dumps(row) + "\n")
    with chat_host() as host:
        host.writes = lambda _, body: str(body["model"])
        models = [word for name in ("one", "two") for word in ("--model", f"{host.url}={name}")]
        found = cli("eval", "--test", "t.jsonl", *models, "--json").json
    asked = ("review", "--evaluation", found["id"])
    assert cli(*asked, "--results").code == 2
    sheet = cli(*asked, "--export", "sheet.csv", "--rater", "ann", "--json")
    assert (sheet.code, sheet.json["rows"]) == (0, 1), sheet.err
    assert cli(*asked, "--results", "--json").json["review"]["contenders"] == [
        f"{host.url}={name}" for name in ("one", "two")
    ]
    wrong = cli("review", "--evaluation", "eval-none", "--plan")
    assert wrong.code == 2 and "no evaluation matches eval-none" in wrong.err


def test_people_are_planned(cli: Cli, run_id: str) -> None:
    shown = cli("review", "--plan", "--detect", "0.65")
    assert shown.code == 0 and "ratings in total" in shown.out and "assumed" in shown.err
    plans = cli("review", run_id, "--plan", "--json").json
    assert [plan["raters"] for plan in plans] == [1, 2, 3, 4, 5] and plans[0]["items"] == 194


@pytest.mark.slow
def test_rows_that_people_write_outlast_a_kill(cli: Cli, cli_env: dict[str, str], tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"{n}?"}]} for n in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ("--write", "rows.jsonl", "--raters", "ann,bo", "--overlap", "1", "--settler", "eve")
    child, told = serve(tmp_path, cli_env, *asked)
    assert sorted(told["links"]) == ["ann", "bo", "eve"] and told["tasks"] == 24
    for who, link in told["links"].items():
        shown = act(link, action="show")
        while who != "eve" and shown["done"] < 12:
            answer = ESCAPES if shown["row"] == 1 and who == "ann" else f"the answer to {shown['row']}"
            body = {"task": shown["task"], "question": shown["question"], "answer": answer}
            shown = act(link, action="save", **body)
    child.kill()
    child.communicate(timeout=240)
    assert cli("data", "from-review", told["review"], "-o", "x.jsonl", "--as", "dpo").code == 2
    shown = cli("review", told["review"], "--results")
    assert (
        "row 1, open, ROUGE-L" in shown.out
        and "\x1b" not in shown.out
        and "1 disagreement to settle" in shown.err
    )
    child, again = serve(tmp_path, cli_env, *asked)
    assert again["review"] == told["review"] and again["done"] == {"ann": 12, "bo": 12}
    shown = act(again["links"]["eve"], action="show")
    act(again["links"]["eve"], action="save", task=shown["task"], question="0?", answer="settled")
    end(child)
    found = msgspec.convert(cli("review", told["review"], "--results", "--json").json, WritingResult)
    assert (found.to_settle, found.settled, found.doubly, found.written) == (0, 1, 12, 12)
    assert cli("data", "from-review", told["review"], "-o", "train.jsonl").code == 0
    assert cli("data", "check", "train.jsonl").code == 0
    assert Dataset.open(tmp_path / "train.jsonl").rows == 12
    assert cli("review", "--write", "rows.jsonl", "--raters", "ann", "--plan").code == 2
    assert cli("review", "--write", "nothing.jsonl", "--raters", "ann").code == 2
