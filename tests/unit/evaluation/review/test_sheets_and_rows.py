"""Reviews that leave the page: sheets for raters elsewhere, rated answers for judges, rows for training."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.reviewing import ESCAPES, HUGE, MARKUP, answered, desk_of

from orchestrate import evaluation
from orchestrate.data import Dataset
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import Answer, review
from orchestrate.evaluation.judges import calibration
from orchestrate.evaluation.metrics import graders
from orchestrate.evaluation.review import rows
from orchestrate.evaluation.review.session import ReviewAction, ReviewSession, valid_ratings
from orchestrate.store.store import Store
from orchestrate.types import Criterion, Rubric

ROWS = answered(
    ("one?", "tuned 1", "base 1"),
    ("two?", "=HYPERLINK(1)", "base 2"),
    ("three?", MARKUP, 'base, "3"\nof two lines'),
    ("four?", ESCAPES, HUGE),
    ("five?", "tuned 5", ""),
)
SCALES = Rubric(name="s", criteria=(Criterion(name="correct", scale=3), Criterion(name="tone")))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


@pytest.fixture
def desk(store: Store, tmp_path: Path) -> ReviewSession:
    return desk_of(store, tmp_path / "reviews", ROWS)


def fill(path: Path, fields: dict[str, list[str]], *, delimiter: str = ",") -> None:
    """As a spreadsheet would."""
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8-sig", newline="") as file:
        [head, *body] = list(csv.reader(file))
    for name, values in fields.items():
        column = next(i for i, title in enumerate(head) if title.split(" (")[0] == name)
        for row, value in zip(body, values, strict=False):
            row[column] = value
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([head, *body])


def rate(desk: ReviewSession, rater: str, item: int, better: str) -> None:
    """Says `tuned`, `base`, `tie` or `both bad` of an item."""
    [task] = [t for t in desk.tasks if t.item.id == ROWS[item].item.id]
    turned = dict((t.id, turned) for t, turned in desk.order(rater))[task.id]
    sides = {"tuned": "right" if turned else "left", "base": "left" if turned else "right"}
    desk.act(ReviewAction(action="rate", task=task.id, choice=sides.get(better, better), rater=rater))  # type: ignore[arg-type]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_sheet_goes_out_and_comes_back(
    desk: ReviewSession, store: Store, tmp_path: Path, delimiter: str
) -> None:
    sheet = tmp_path / "sheet.csv"
    assert rows.export(desk, "Fay", sheet) == 5
    text = sheet.read_text(encoding="utf-8-sig")
    assert "tuned-model" not in text and "contender" not in text and "'=HYPERLINK(1)" in text
    fill(sheet, {"choice": ["left", "B", "TIE", "", "both bad"], "note": ["", "=1+1"]}, delimiter=delimiter)
    found = rows.take(desk, sheet, "Fay", store.reviews.rate)
    assert (found.ratings, found.empty, found.unchanged) == (4, 1, 0)
    kept = valid_ratings(store.reviews.ratings(desk.review.id))
    order = desk.order("Fay")
    assert [r.choice for r in kept] == ["left", "right", "tie", "both bad"] and kept[1].note == "=1+1"
    for rating, place in zip(kept, (0, 1, 2, 4), strict=True):
        task, turned = order[place]
        assert rating.task == task.id and rating.left == task.contenders[turned]
    again = rows.take(desk, sheet, "Fay", store.reviews.rate)
    assert (again.ratings, again.unchanged) == (0, 4)
    rows.export(desk, "Fay", sheet)  # with what is known; nothing changes by taking it back
    assert rows.take(desk, sheet, "Fay", store.reviews.rate).unchanged == 4


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"choice": ["left", "best"]}, "row 3.*'best' is not left"),
        ({"task": ["x"], "choice": ["left"]}, "row 2: review .* has no task 'x'"),
        ({"choice": ["left"], "note": ["n" * 10_001]}, "row 2: a note"),
    ],
)
def test_a_wrong_sheet_is_refused_as_a_whole(
    desk: ReviewSession, store: Store, tmp_path: Path, fields: dict[str, list[str]], words: str
) -> None:
    sheet = tmp_path / "sheet.csv"
    rows.export(desk, "Fay", sheet)
    fill(sheet, fields)
    with pytest.raises(DataError, match=words):
        rows.take(desk, sheet, "Fay", store.reviews.rate)
    assert store.reviews.ratings(desk.review.id) == []


def test_what_a_spreadsheet_does_to_a_sheet(desk: ReviewSession, store: Store, tmp_path: Path) -> None:
    """It adds empty rows. A row that was copied and a column that was removed are not taken for ratings."""
    sheet = tmp_path / "sheet.csv"
    rows.export(desk, "Fay", sheet)
    fill(sheet, {"choice": ["left"], "note": ["''=1+1"]})
    with pytest.raises(UsageError, match="not imported"):
        rows.export(desk, "Fay", sheet)
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        [head, first, *rest] = list(csv.reader(file))

    def taken(*lines: list[str]) -> rows.Imported:
        with sheet.open("w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows(lines)
        return rows.take(desk, sheet, "Fay", store.reviews.rate)

    with pytest.raises(DataError, match="row 7: row 2 rates the same task"):
        taken(head, first, *rest, [*first[:4], "right", ""])
    with pytest.raises(DataError, match="it has no 'choice"):
        taken(*(line[:4] for line in (head, first, *rest)))
    assert desk.of("Fay") == [] and taken(head, first, *rest, [""] * 6).ratings == 1
    rows.export(desk, "Fay", sheet)
    assert rows.take(desk, sheet, "Fay", store.reviews.rate).unchanged == 1, "the note is as it was"


@pytest.mark.parametrize("name", ["note", "task", "fluency (en)", "answer", "choice"])
def test_a_criterion_has_any_name(store: Store, tmp_path: Path, name: str) -> None:
    rubric = Rubric(name="r", criteria=(Criterion(name=name, scale=5),))
    desk = desk_of(store, tmp_path / "r", ROWS[:1], kind="single", rubric=rubric)
    sheet = tmp_path / "sheet.csv"
    rows.export(desk, "Fay", sheet)
    with sheet.open(encoding="utf-8-sig", newline="") as file:
        [head, *body] = list(csv.reader(file))
    for row in body:
        row[head.index(f"{name} (1 to 5)")] = "4"
    with sheet.open("w", encoding="utf-8-sig", newline="") as file:
        csv.writer(file).writerows([head, *body])
    assert rows.take(desk, sheet, "Fay", store.reviews.rate).ratings == 2
    assert [rating.scores for rating in desk.of("Fay")] == [{name: 4}] * 2


def test_other_files_are_no_sheets(desk: ReviewSession, store: Store, tmp_path: Path) -> None:
    for content in (b"a,b\n1,2\n", b"", b"task\n\xff\n"):
        (tmp_path / "x.csv").write_bytes(content)
        with pytest.raises(DataError):
            rows.take(desk, tmp_path / "x.csv", "Fay", store.reviews.rate)
    with pytest.raises(DataError):
        rows.take(desk, tmp_path / "none.csv", "Fay", store.reviews.rate)
    with pytest.raises(UsageError):
        rows.export(desk, " ", tmp_path / "x.csv")


def test_single_answers_on_a_sheet(store: Store, tmp_path: Path) -> None:
    desk = desk_of(store, tmp_path / "r", ROWS[:1], kind="single", rubric=SCALES)
    sheet = tmp_path / "sheet.csv"
    rows.export(desk, "Fay", sheet)
    assert "correct (1 to 3),tone (1 to 5)" in sheet.read_text(encoding="utf-8-sig")
    fill(sheet, {"correct": ["3", "4"], "tone": ["5", "5"]})
    with pytest.raises(DataError, match="row 3: correct must be from 1 to 3"):
        rows.take(desk, sheet, "Fay", store.reviews.rate)
    fill(sheet, {"correct": ["3", "x"]})
    with pytest.raises(DataError, match="must be integers"):
        rows.take(desk, sheet, "Fay", store.reviews.rate)
    fill(sheet, {"correct": ["3", "1"]})
    assert rows.take(desk, sheet, "Fay", store.reviews.rate).ratings == 2


def _rated(desk: ReviewSession) -> None:
    for rater in ("ann", "bo", "cy"):
        rate(desk, rater, 0, "tuned")
        rate(desk, rater, 1, "both bad")
        rate(desk, rater, 2, "base" if rater == "ann" else "tuned")
        rate(desk, rater, 4, "tuned")
    rate(desk, "ann", 3, "tuned")
    rate(desk, "bo", 3, "base")


def test_rows_for_dpo(desk: ReviewSession, store: Store, tmp_path: Path) -> None:
    _rated(desk)
    out = tmp_path / "dpo.jsonl"
    ratings = store.reviews.ratings(desk.review.id)
    found = rows.from_review(desk.review, desk.tasks, ratings, out, format="dpo")
    assert (found.rows, found.left_out) == (2, {"both bad": 1, "tie": 1, "no answer": 1})
    [first, second] = [json.loads(line) for line in out.read_text().splitlines()]
    assert first["input"]["messages"][-1]["content"] == "one?"
    assert (first["preferred_output"][0]["content"], first["non_preferred_output"][0]["content"]) == (
        "tuned 1",
        "base 1",
    )
    assert second["preferred_output"][0]["content"] == MARKUP
    data = Dataset.open(out)
    assert data.kind == "preference" and data.rows == 2
    strict = rows.from_review(desk.review, desk.tasks, ratings, out, format="dpo", agreement=0.9)
    assert strict.rows == 1 and strict.left_out["raters disagree"] == 1


def test_rows_for_kto(desk: ReviewSession, store: Store, tmp_path: Path) -> None:
    _rated(desk)
    out = tmp_path / "kto.jsonl"
    found = rows.from_review(
        desk.review, desk.tasks, store.reviews.ratings(desk.review.id), out, format="kto"
    )
    made = [json.loads(line) for line in out.read_text().splitlines()]
    labels = {row["completion"][0]["content"]: row["label"] for row in made}
    assert labels["tuned 1"] is True and labels["base 1"] is False and labels[MARKUP] is True
    assert labels["=HYPERLINK(1)"] is False and labels["base 2"] is False and labels["tuned 5"] is True
    assert found.rows == len(made) == 7 and found.left_out == {"tie": 1, "no answer": 1}
    assert Dataset.open(out).kind == "unpaired"


def test_rows_from_single_answers(store: Store, tmp_path: Path) -> None:
    desk = desk_of(store, tmp_path / "r", ROWS[:2], kind="single", rubric=SCALES)
    scores = {"tuned 1": (3, 5), "base 1": (1, 1), "=HYPERLINK(1)": (2, 3), "base 2": (3, 4)}
    for task in desk.tasks:
        correct, tone = scores[task.answers[0].text]
        given = {"correct": correct, "tone": tone}
        desk.act(ReviewAction(action="rate", task=task.id, scores=given, rater="ann"))
    ratings, out = store.reviews.ratings(desk.review.id), tmp_path / "o.jsonl"
    pairs = rows.from_review(desk.review, desk.tasks, ratings, out, format="dpo")
    chosen = [json.loads(line)["preferred_output"][0]["content"] for line in out.read_text().splitlines()]
    assert sorted(chosen) == ["base 2", "tuned 1"] and pairs.left_out == {}
    rows.from_review(desk.review, desk.tasks, ratings, out, format="kto")
    labels = {
        r["completion"][0]["content"]: r["label"] for r in map(json.loads, out.read_text().splitlines())
    }
    assert labels == {"tuned 1": True, "base 1": False, "base 2": True}


def test_no_rating_makes_no_rows(desk: ReviewSession, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no ratings yet"):
        rows.from_review(desk.review, desk.tasks, [], tmp_path / "o.jsonl", format="dpo")
    assert not (tmp_path / "o.jsonl").exists()


def test_rated_answers_are_written_and_read(desk: ReviewSession, store: Store, tmp_path: Path) -> None:
    _rated(desk)
    held = valid_ratings(store.reviews.ratings(desk.review.id))
    file = tmp_path / "rated.jsonl"
    made = calibration.of_review(desk.review, desk.tasks, held)
    assert calibration.write(made, file) == 5
    back = calibration.read(file, desk.review.rubric)
    assert back == made
    said = {one.answers[0][:12]: (one.preferred, one.raters) for one in back}
    assert said["tuned 1"] == ("first", 3) and said["=HYPERLINK(1)"[:12]] == ("both bad", 3)
    assert said[ESCAPES[:12]] == ("tie", 2)


def test_rated_single_answers_are_read_as_they_were_written(store: Store, tmp_path: Path) -> None:
    desk = desk_of(store, tmp_path, answered(("q", "good", "bad")), kind="single")
    for _ in desk.tasks:
        shown = desk.shown("ann")
        points = 5 if shown["answers"][0]["text"] == "good" else 2
        desk.act(ReviewAction(action="rate", rater="ann", task=shown["task"], scores={"quality": points}))
    file = tmp_path / "rated.jsonl"
    made = calibration.of_review(desk.review, desk.tasks, store.reviews.ratings(desk.review.id))
    assert calibration.write(made, file) == 2
    back = calibration.read(file, desk.review.rubric)
    assert back == made
    assert {one.answers[0]: one.scores["quality"] for one in back} == {"good": 5, "bad": 2}


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1"),
        ('{"prompt": "x", "answers": ["y", "z", "a"], "preferred": "tie"}', "length <= 2"),
        ('{"prompt": "x"}', "use prompt and answer, prompt and answers, or messages"),
        ('{"prompt": "x", "answer": "y"}', "quality has no rating"),
        ('{"prompt": "x", "answer": "y", "rating": 6}', "from 1 to 5"),
        ('{"prompt": "x", "answers": ["y", "z"]}', "pairs need a preference"),
        ('{"prompt": "x", "answers": ["y"], "preferred": "first"}', "line 1"),
        ('{"prompt": "x", "answers": ["y", "z"], "preferred": "best"}', "line 1"),
        ("", "no rated answer"),
    ],
)
def test_what_is_no_rated_answer_is_told(tmp_path: Path, line: str, words: str) -> None:
    (tmp_path / "r.jsonl").write_text(line)
    with pytest.raises(DataError, match=words):
        calibration.read(tmp_path / "r.jsonl", evaluation.DEFAULT)


def test_people_may_write_rated_answers_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "r.jsonl"
    chat = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        "rating": 4,
    }
    file.write_text(
        json.dumps(chat) + '\n\n{"prompt": "q", "answer": "b", "scores": {"quality": 2}, "why": 1}\n'
    )
    first, second = calibration.read(file, evaluation.DEFAULT)
    assert (first.answers, first.scores) == (("a",), {"quality": 4}) and second.answers == ("b",)
    assert first.prompt == second.prompt and first.item == second.item


# -- tasks and rubrics ---------------------------------------------------------------------------------------


def test_tasks_of_three_contenders() -> None:
    many = answered(*((f"q{i}", "a", "b", "c") for i in range(20)))
    names = ("tuned", "base", "few-shot")
    made = review.tasks_of(many, names, kind="pairs", review="r")
    assert len(made.tasks) == 60 and len({task.id for task in made.tasks}) == 60
    against = review.tasks_of(many, names, kind="pairs", review="r", against="base", items=5)
    assert {t.contenders for t in against.tasks} == {("tuned", "base"), ("few-shot", "base")}
    assert len(against.tasks) == 10
    assert len(review.tasks_of(many, names, kind="single", review="r").tasks) == 60


def test_calls_are_part_of_an_answer() -> None:
    row = answered(("q", "", ""))[0]
    calls = [
        ({"id": str(i), "function": {"name": "f", "arguments": a}},)
        for i, a in enumerate(("{}", "{1}", "{}"))
    ]
    for first, second, same in ((0, 1, 0), (0, 2, 1)):
        answers = {
            n: (Answer(text="", tool_calls=calls[i]),) for n, i in (("tuned", first), ("base", second))
        }
        one = msgspec.structs.replace(row, answers=answers)
        other = answered(("p", "a", "b"))[0]
        assert len(review.tasks_of([one, other], ("tuned", "base"), kind="pairs", review="r").same) == same


def test_nothing_to_rate_is_told() -> None:
    with pytest.raises(UsageError, match="all answers are identical"):
        review.tasks_of(answered(("q", "a", "a")), ("tuned", "base"), kind="pairs", review="r")
    with pytest.raises(UsageError, match="two contenders"):
        review.tasks_of(answered(("q", "a")), ("tuned",), kind="pairs", review="r")
    with pytest.raises(UsageError, match="unknown contender"):
        review.tasks_of(answered(("q", "a", "b")), ("tuned", "base"), kind="pairs", review="r", against="x")


def test_a_rubric_is_read(tmp_path: Path) -> None:
    file = tmp_path / "support.yaml"
    file.write_text(
        "question: Which would you send?\nguide: Numbers first.\ncriteria:\n"
        "  - {name: correct, question: Everything right, scale: [wrong, partly, right]}\n  - name: tone\n"
    )
    found = evaluation.read(file)
    assert found.name == "support" and [c.points for c in found.criteria] == [3, 5]
    assert found.score({"correct": 3, "tone": 5}) == 1 and found.score({"correct": 2, "tone": 3}) == 0.5
    assert evaluation.read(None) == evaluation.DEFAULT


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("criteria: []", "at least one"),
        ("criteria: [{name: a}, {name: a}]", "twice"),
        ("criteria: [{name: a, scale: 1}]", "2 to 9 points"),
        ("criteria: [{name: a, scale: 10}]", "2 to 9 points"),
        ("criteria: [{name: a, scale: [x, x]}]", "same name"),
        ("criteria: [{name: ' '}]", "needs a name"),
        ("criterias: []", "unknown field"),
        ("- a", "not a valid rubric"),
        ("a: [", "not valid YAML"),
        ("", "not a valid rubric"),
    ],
)
def test_what_is_no_rubric_is_told(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(UsageError, match=words):
        evaluation.read(tmp_path / "r.yaml")


def test_a_yaml_bomb_is_no_rubric_and_no_grader(tmp_path: Path) -> None:
    levels = "\n".join(f"a{i + 1}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(9))
    (tmp_path / "r.yaml").write_text(f"a0: &a0 [x]\n{levels}\n")
    context: Any = None
    with pytest.raises(UsageError, match="not valid YAML"):
        evaluation.read(tmp_path / "r.yaml")
    with pytest.raises(UsageError, match="not valid YAML"):
        graders.from_file(str(tmp_path / "r.yaml"), context)
