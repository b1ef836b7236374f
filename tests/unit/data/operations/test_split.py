"""split: every row on one side, and rows that are alike on the same one."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.unit.data.operations.chat_files import SHARED, chat, sides, write

from orchestrate.data.operations.dedupe import dedupe
from orchestrate.data.operations.split import Division, parse_shares, split
from orchestrate.errors import DataError, UsageError

SHARES = (0.8, 0.1, 0.1)


def test_split_holds_every_row_once_and_about_the_shares(tmp_path: Path) -> None:
    lines = [chat(f"question {i}", f"answer {i}") for i in range(2000)]
    report = split(
        write(lines, tmp_path / "a.jsonl"), Division(SHARES, near_duplicates=False), tmp_path / "out"
    )
    assert sum(part.rows for part in report.files) == 2000 == len(sides(tmp_path / "out"))
    for part, share in zip(report.files, SHARES, strict=True):
        assert part.share == pytest.approx(share, abs=0.03)


def test_split_is_stable_when_rows_are_added_and_shuffled(tmp_path: Path) -> None:
    lines = [chat(f"question {i}", f"answer {i}") for i in range(500)]
    more = lines + [chat(f"new {i}", f"answer {i}") for i in range(300)]
    random.Random(1).shuffle(more)
    split(write(lines, tmp_path / "a.jsonl"), Division(SHARES, near_duplicates=False), tmp_path / "a")
    split(write(more, tmp_path / "b.jsonl"), Division(SHARES, near_duplicates=False), tmp_path / "b")
    before, after = sides(tmp_path / "a"), sides(tmp_path / "b")
    assert {row: after[row] for row in before} == before


def test_seed_changes_the_split(tmp_path: Path) -> None:
    file = write([chat(f"question {i}", "a") for i in range(300)], tmp_path / "a.jsonl")
    for seed in (0, 1):
        split(file, Division(SHARES, seed=seed, near_duplicates=False), tmp_path / str(seed))
    assert sides(tmp_path / "0") != sides(tmp_path / "1")


def test_a_conversation_stays_on_one_side(tmp_path: Path) -> None:
    """Rows unrolled turn by turn begin alike."""
    lines = [
        chat(*(f"talk {talk} turn {t}" for t in range(2 * turns)), system=f"system {talk}")
        for talk in range(150)
        for turns in (1, 2, 3)
    ]
    report = split(
        write(lines, tmp_path / "a.jsonl"), Division(SHARES, near_duplicates=False), tmp_path / "out"
    )
    where: dict[str, set[str]] = {}
    for row, side in sides(tmp_path / "out").items():
        where.setdefault(json.loads(row)["messages"][0]["content"], set()).add(side)
    assert report.groups == 150 == len(where)
    assert all(len(found) == 1 for found in where.values())
    assert set.union(*where.values()) == {"train", "validation", "test"}


def test_near_duplicates_stay_on_one_side(tmp_path: Path) -> None:
    r = random.Random(2)
    lines: list[str] = []
    for topic in range(60):
        words = [f"{topic}w{r.randrange(1000)}" for _ in range(150)]
        for copy in range(4):
            words[copy * 7] = f"changed{copy}"
            lines.append(chat(f"topic {topic} copy {copy} " + " ".join(words), "done"))
    report = split(write(lines, tmp_path / "a.jsonl"), Division(SHARES), tmp_path / "out")
    where: dict[str, set[str]] = {}
    for row, side in sides(tmp_path / "out").items():
        topic = json.loads(row)["messages"][0]["content"].split()[1]
        where.setdefault(topic, set()).add(side)
    assert report.groups == 60 and all(len(found) == 1 for found in where.values())


@pytest.mark.parametrize("stratify", [False, True])
def test_the_order_of_the_file_moves_no_row(tmp_path: Path, stratify: bool) -> None:
    """Chains of rows, each near the next: who leads a group, and which neighbours are compared, must be a
    matter of the content."""
    r = random.Random(3)
    lines: list[str] = []
    for topic in range(80):
        words = [f"{topic}w{r.randrange(1000)}" for _ in range(120)]
        for copy in range(6):
            words[r.randrange(120)] = f"changed{copy}"
            words[r.randrange(120)] = f"again{copy}"
            lines.append(chat(f"copy {copy} of {topic} " + " ".join(words), f"label {r.randrange(3)}"))
    found: list[dict[str, str]] = []
    for turn in range(4):
        out = tmp_path / str(turn)
        report = split(write(lines, tmp_path / "a.jsonl"), Division(SHARES, stratify=stratify), out)
        found.append(sides(out) | {"groups": str(report.groups)})
        r.shuffle(lines)
    assert found[1:] == found[:1] * 3
    assert set(found[0].values()) >= {"train", "validation", "test"}


def test_stratified_split_keeps_the_mix(tmp_path: Path) -> None:
    lines = [chat(f"text {i}", "rare" if i % 10 == 0 else "common") for i in range(400)]
    file = write(lines, tmp_path / "a.jsonl")
    report = split(file, Division(SHARES, stratify=True, near_duplicates=False), tmp_path / "out")
    rare = {name: 0 for name in ("train", "validation", "test")}
    for row, side in sides(tmp_path / "out").items():
        rare[side] += "rare" in row
    assert [part.rows for part in report.files] == [320, 40, 40] and rare == {
        "train": 32,
        "validation": 4,
        "test": 4,
    }


@pytest.mark.parametrize(
    ("text", "shares"), [("80/10/10", (0.8, 0.1, 0.1)), ("0.9/0.1", (0.9, 0.1)), ("80:20", (0.8, 0.2))]
)
def test_shares(text: str, shares: tuple[float, ...]) -> None:
    assert parse_shares(text) == pytest.approx(shares)


@pytest.mark.parametrize("text", ["", "80", "a/b", "1/2/3/4", "-1/2", "50/0", "80/10/5", "4:1"])
def test_wrong_shares(text: str) -> None:
    with pytest.raises(UsageError, match="80/10/10"):
        parse_shares(text)


def test_a_file_without_a_good_row_is_neither_split_nor_deduplicated(tmp_path: Path) -> None:
    file = write(['{"messages": []}'], tmp_path / "a.jsonl")
    for attempt in (
        lambda: split(file, Division((0.8, 0.2)), tmp_path / "s"),
        lambda: dedupe(file, tmp_path / "d.jsonl"),
    ):
        with pytest.raises(DataError, match="no valid row"):
            attempt()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl"]


def test_a_split_that_cannot_be_filled_is_refused(tmp_path: Path) -> None:
    file = write([chat(f"{SHARED} {i}", "yes") for i in range(12)], tmp_path / "a.jsonl")
    with pytest.raises(DataError, match="12 rows form 1 group of near-duplicate rows") as caught:
        split(file, Division(SHARES), tmp_path / "out")
    assert "--no-near" in str(caught.value.fix) and not (tmp_path / "out").exists()


def test_rows_of_one_customer_stay_together(tmp_path: Path) -> None:
    """By a column of the file that no format reads, also one inside another."""
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for n in range(120):
            messages = [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes"}]
            who = {"customer": f"c{n % 12}", "meta": {"team": n % 8}} if n != 5 else {}
            out.write(json.dumps({"messages": messages, **who}) + "\n")
            out.write('{"messages": []}\n' if n == 7 else "")
    team = {f"question {n}": (n % 12, n % 8) for n in range(120) if n != 5}
    for column, at in (("customer", 0), ("meta.team", 1)):
        report = split(
            str(file), Division((0.5, 0.5), near_duplicates=False, group_by=column), tmp_path / column
        )
        sides = [Path(one.path).read_text().splitlines() for one in report.files]
        asked = [{json.loads(line)["messages"][0]["content"] for line in side} for side in sides]
        assert sum(map(len, asked)) == 120 and all(asked)
        values = [{team[question][at] for question in side if question in team} for side in asked]
        assert not values[0] & values[1]
    with pytest.raises(UsageError, match="no column shop") as refused:
        split(str(file), Division((0.5, 0.5), near_duplicates=False, group_by="shop"), tmp_path / "o")
    assert "customer" in (refused.value.fix or "")


def test_a_few_hundred_rows_come_near_to_the_shares(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for n in range(300):
            messages = [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes"}]
            out.write(json.dumps({"messages": messages}) + "\n")
    report = split(str(file), Division((0.8, 0.1, 0.1), near_duplicates=False, fill=True), tmp_path / "s")
    assert all(
        abs(one.share - share) < 0.01 for one, share in zip(report.files, (0.8, 0.1, 0.1), strict=True)
    )


def test_rows_stay_when_a_small_file_grows(tmp_path: Path) -> None:
    file, folder = tmp_path / "rows.jsonl", tmp_path / "s"
    division = Division((0.8, 0.1, 0.1), near_duplicates=False, fill=True)

    def placed(rows: int) -> dict[str, str]:
        chats = (
            [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": "yes"}]
            for n in range(rows)
        )
        file.write_text("".join(f"{json.dumps({'messages': one})}\n" for one in chats))
        report = split(str(file), division, folder)
        wanted = zip(report.files, (0.8, 0.1, 0.1), strict=True)
        assert all(abs(one.share - share) < 0.02 for one, share in wanted)
        return {
            line: part.split for part in report.files for line in Path(part.path).read_text().splitlines()
        }

    before, after = placed(300), placed(320)
    assert {line: after[line] for line in before} == before


@pytest.mark.parametrize("fill", [False, True])
@pytest.mark.parametrize("column", [None, "customer"])
def test_answers_that_are_all_different_are_shared_out_together(
    tmp_path: Path, fill: bool, column: str | None
) -> None:
    """Beside an answer that is common, whose mix is kept."""
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for n in range(150):
            said = "refund" if n < 50 else f"answer {n}"
            messages = [{"role": "user", "content": f"question {n}"}, {"role": "assistant", "content": said}]
            who = {"customer": f"c{n // 2}"} if n < 140 else {"customer": None} if n % 2 else {}
            out.write(json.dumps({"messages": messages, **who}) + "\n")
    division = Division(SHARES, near_duplicates=False, stratify=True, fill=fill, group_by=column)
    report = split(str(file), division, tmp_path / "out")
    assert [one.share for one in report.files] == pytest.approx(SHARES, abs=0.03)
    common = [Path(one.path).read_text().count('"refund"') for one in report.files]
    assert common == pytest.approx([40, 5, 5], abs=2)
    assert report.pooled == (100 if column is None else 55)
    assert report.ungrouped == (0 if column is None else 10)


@pytest.mark.parametrize("stratify", [False, True])
def test_a_split_that_would_be_empty_is_refused(tmp_path: Path, stratify: bool) -> None:
    """Three customers of 50 rows each: none is small enough for a tenth."""
    file = tmp_path / "rows.jsonl"
    with file.open("w") as out:
        for n in range(150):
            messages = [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}]
            out.write(json.dumps({"messages": messages, "customer": n % 3}) + "\n")
    division = Division(SHARES, 1, near_duplicates=False, stratify=stratify, group_by="customer")
    with pytest.raises(DataError, match="test would be empty"):
        split(str(file), division, tmp_path / "out")
    assert not (tmp_path / "out").exists()
