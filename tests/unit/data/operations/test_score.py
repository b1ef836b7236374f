"""What rows are worth: signals that need no model, against cleanlab, SciPy and noise that was planted."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
from tests.paths import BUNDLED, ROOT

from orchestrate.data.operations import score
from orchestrate.data.operations.score import RowScore, ScoredFile, Scores, SelectReport
from orchestrate.errors import DataError, UsageError

TICKETS = ROOT / "examples" / "classification" / "train.jsonl"
# Labels, probabilities, and what cleanlab 2.9.0 makes of them:
#   find_label_issues(labels, probabilities, filter_by="confident_learning")
#   1 - 2 * get_normalized_margin_for_each_label(labels, probabilities)
LABELS = [2, 2, 1, 0, 1, 0, 0, 0, 0, 0, 1, 2, 1, 2, 2, 2, 1, 1, 1, 2, 0, 2, 0, 0, 1, 2, 1, 1, 2, 2]
FIRST_TWO = (
    "126 467 108 879 45 697 786 103 661 285 424 400 531 216 770 22 555 338 195 340 193 382 245 59 102 618 "
    "220 625 31 492 62 421 227 492 283 382 250 430 86 218 604 219 8 464 102 344 358 316 100 357 227 413 214 "
    "550 644 46 130 153 299 309"
)
CLEANLAB_ISSUES = [0, 1, 4, 9, 13, 14, 22, 24, 27]
CLEANLAB_DOUBTS = (
    "0.06 0.866 -0.439 -0.675 0.376 -0.024 -0.278 -0.562 -0.217 0.27 0.043 -0.451 -0.338 0.47 0.015 -0.096 "
    "-0.211 -0.047 -0.11 -0.478 -0.385 -0.064 0.452 -0.032 0.186 0.053 -0.314 0.598 -0.564 -0.083"
)


def row(question: str, answer: str, **more: object) -> str:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": messages, **more})


def scored(path: Path) -> Scores:
    """As `orchestrate data score` without a model writes it."""
    read = score.opened(str(path), None, 1)
    found = Scores(ScoredFile(scores_of=str(path), digest=read.facts.digest), {})
    assert score.of_rows(read, found, 1) == []
    score.write(found, score.place(str(path)))
    return found


def noisy(folder: Path, share: float) -> tuple[Path, set[int]]:
    """Tickets with this share of their labels wrong, and the numbers of those rows."""
    lines = [json.loads(line) for line in TICKETS.read_text().splitlines()]
    draw = random.Random(7)
    labels = sorted({line["messages"][-1]["content"] for line in lines})
    wrong = draw.sample(range(len(lines)), round(share * len(lines)))
    for n in wrong:
        own = lines[n]["messages"][-1]
        own["content"] = draw.choice([label for label in labels if label != own["content"]])
    path = folder / "noisy.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path, {n + 1 for n in wrong}


def test_confident_learning_is_that_of_cleanlab() -> None:
    given = [int(n) / 1000 for n in FIRST_TWO.split()]
    values = [(a, b, 1 - a - b) for a, b in zip(given[::2], given[1::2], strict=True)]
    found = score.confident_learning(LABELS, values)
    assert [n for n, (_, other) in enumerate(found) if other is not None] == CLEANLAB_ISSUES
    assert [doubt for doubt, _ in found] == pytest.approx(
        [float(n) for n in CLEANLAB_DOUBTS.split()], abs=2e-3
    )


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.3])
def test_planted_labels_are_found_and_left_out(tmp_path: Path, share: float) -> None:
    path, wrong = noisy(tmp_path, share)
    named = {one.row for one in scored(path).rows.values() if one.likely_label is not None}
    assert len(named & wrong) >= 0.9 * len(named) and len(named & wrong) >= 0.75 * len(wrong)
    select(path, keep=1 - share, by="label")
    left = {json.loads(line)["row"] for line in lines(tmp_path / "noisy.selected.left-out.jsonl")}
    assert len(left) == len(wrong) and len(left & wrong) >= 0.9 * len(wrong)
    # A signal that knows nothing of labels finds as many as chance does.
    by_length = {one.row for one in score.ranked(scored(path), "length")[-len(wrong) :]}
    assert len(by_length & wrong) < 0.6 * len(wrong)


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def select(path: Path, *, keep: float = 0.5, by: str = "length", output: str = "") -> SelectReport:
    target = path.with_name(output or f"{path.stem}.selected.jsonl")
    return score.select(str(path), target, keep=keep, by=by)


def test_the_signals_of_rows_by_hand(tmp_path: Path) -> None:
    usual = [
        row(f"What does part {n} cost in the shop at the harbor?", f"It costs {n} euros.") for n in range(20)
    ]
    asked = "When does the shop at the harbor open on a Monday"
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "\n".join(
            [
                *usual,
                row(f"{asked}?", "At nine in the morning, and it stays open until six."),
                row(f"{asked.upper()}", "It is closed on Mondays; call us on any other day."),
                row(f"{asked} ?", "At nine in the morning, and it stays open until six!"),
                row("Tell me all that you sell.", "Screws and bolts. " * 200),
                usual[3],
            ]
        )
    )
    found = scored(path).rows
    assert {n: found[n].contradicts for n in found if found[n].contradicts} == {
        21: (22,),
        22: (21, 23),
        23: (22,),
    }
    assert found[22].contradiction == 1.0 and found[21].contradiction == 0.5
    assert {n: one.duplicate_of for n, one in found.items() if one.duplicate_of} == {25: 4}
    assert max(found, key=lambda n: abs(found[n].length or 0)) == 24


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5", "-5", False),
        ("C", "C#", False),
        ("50%", "50", False),
        ("कि", "की", False),
        ("café", "cafe\u0301", True),
        ("yes", "Yes!", True),
        ("well-known", "well known", True),
    ],
)
def test_answers_and_questions_differ_by_what_they_mean(
    tmp_path: Path, one: str, other: str, same: bool
) -> None:
    """Such rows are no contradictions, if they differ in the question; and are, if they do in the answer."""
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join([row("What is it?", one), row("What is it?", other)]))
    assert scored(path).rows[1].contradicts == (() if same else (2,))
    path.write_text("\n".join([row(f"Is it {one}?", "yes, surely"), row(f"Is it {other}?", "no, never")]))
    assert scored(path).rows[1].contradicts == ((2,) if same else ())


@pytest.mark.parametrize("sign", ["-", "*", "/", " - ", "<", "^"])
def test_sums_with_the_same_numbers_are_different_questions(tmp_path: Path, sign: str) -> None:
    path = tmp_path / "rows.jsonl"
    more = "Think about it step by step, and then give the final result as a number. What is"
    path.write_text("\n".join([row(f"{more} 30+5?", "it is 35"), row(f"{more} 30{sign}5?", "it is 25")]))
    assert not scored(path).rows[1].contradicts


def test_one_question_with_many_answers_is_scored_in_linear_time(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    poems = [" ".join(f"word{n * 31 + i}" for i in range(40)) for n in range(3000)]
    path.write_text(
        "\n".join([*(row("Write a poem.", poem) for poem in poems), row("Write a poem.", poems[0])])
    )
    found = scored(path).rows
    assert found[2000].contradiction == 1.0 and found[2000].contradicts[0] == 1
    assert found[1].contradiction is not None and 0.9 < found[1].contradiction < 1.0


def test_outliers_of_length_are_those_of_scipy(tmp_path: Path) -> None:
    import numpy as np
    from scipy.stats import median_abs_deviation

    draw = random.Random(3)
    answers = ["x" * round(draw.lognormvariate(4, 1)) for _ in range(60)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row(f"question {n}", answer) for n, answer in enumerate(answers)))
    found = scored(path).rows
    logs = np.log1p([len(answer) for answer in answers])
    wanted = (logs - np.median(logs)) / median_abs_deviation(logs, scale="normal")
    assert [found[n + 1].length for n in range(60)] == pytest.approx(wanted.tolist(), rel=1e-3)


def test_a_selection_loses_nothing_and_overwrites_nothing(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    shutil.copy(BUNDLED / "orders" / "validation.jsonl", path)
    with path.open("a") as file:
        file.write('{broken\n\n{"messages": [], "note": 12345678901234567890}\n')
        file.write(row("q", "a", id=12345678901234567890) + "\n")
    given = lines(path)
    with pytest.raises(UsageError, match="not been scored"):
        select(path)
    scored(path)
    report = select(path, keep=0.25)
    assert (report.kept, report.left_out, report.errors) == (25, 79, 3)
    left = [json.loads(line) for line in lines(tmp_path / "rows.selected.left-out.jsonl")]
    written = {one["row"]: one["left_out"] for one in left}
    kept = iter(lines(tmp_path / "rows.selected.jsonl"))
    for number, line in enumerate(given, start=1):  # in its order and byte for byte
        if number not in written:
            assert next(kept) == line
        elif isinstance(written[number], str):
            assert written[number] == line
        else:
            assert written[number] == json.loads(line)
    assert all(one["why"] for one in left) and next(kept, None) is None
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="already exists"):
        select(path, keep=0.5)
    with pytest.raises(UsageError, match="--model"):
        select(path, by="loss", output="other.jsonl")
    with pytest.raises(UsageError, match="--by takes"):
        select(path, by="beauty", output="other.jsonl")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    path.write_text("\n".join(given[1:]))
    with pytest.raises(DataError, match="changed since it was scored"):
        select(path, output="other.jsonl")
    assert not (tmp_path / "other.jsonl").exists()


def test_a_file_that_is_not_of_scores_stays(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(row("q", "a"))
    score.place(str(path)).write_text("my own notes\n")
    read = score.opened(str(path), None, 1)
    with pytest.raises(UsageError, match="not a scores file"):
        score.kept(str(path), read.facts)


def test_rows_without_a_score_go_last() -> None:
    head = ScoredFile(scores_of="rows.jsonl", digest="")
    each = {1: RowScore(row=1), 2: RowScore(row=2, judge=0.2), 3: RowScore(row=3, judge=0.9)}
    assert [one.row for one in score.ranked(Scores(head, each), "judge")] == [3, 2, 1]
