"""dedupe: copies and near copies are taken out, and what all rows share makes no copies of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.unit.data.operations.chat_files import SHARED, chat, write

from orchestrate.data import Dataset
from orchestrate.data.operations.dedupe import dedupe
from orchestrate.data.operations.split import Division, split

SHARES = (0.8, 0.1, 0.1)


def test_dedupe_keeps_the_first_and_logs_the_rest(tmp_path: Path) -> None:
    lines = [chat("a", "1"), chat("b", "2"), chat("a", "1").replace('": ', '":  '), chat("a", "other")]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), tmp_path / "out.jsonl")
    assert (report.rows, report.kept, report.exact, report.near) == (4, 3, 1, 0)
    assert [
        json.loads(row)["messages"][1]["content"] for row in (tmp_path / "out.jsonl").read_text().splitlines()
    ] == [
        "1",
        "2",
        "other",
    ]
    assert report.log is not None
    assert json.loads(Path(report.log).read_text()) == {"row": 3, "because_of": 1, "near": False}


def test_dedupe_near(tmp_path: Path) -> None:
    words = [f"w{i}" for i in range(200)]
    near = words.copy()
    near[100] = "changed"
    half = words[:100] + [f"v{i}" for i in range(100)]
    lines = [chat("q", " ".join(text)) for text in (words, near, half)]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), tmp_path / "out.jsonl", near_duplicates=True)
    assert [(r.row, r.because_of, r.near) for r in report.removed] == [(2, 1, True)]
    assert Dataset.open(tmp_path / "out.jsonl").rows == 2


def test_dedupe_near_finds_what_exact_comparison_of_all_pairs_finds(tmp_path: Path) -> None:
    """Recall against Jaccard over all pairs of five-word shingles."""
    r = random.Random(5)
    texts: list[list[str]] = []
    for _ in range(120):
        base = [f"w{r.randrange(5000)}" for _ in range(120)]
        texts.append(base)
        copy = base.copy()
        for _ in range(r.choice((1, 2, 8, 40))):
            copy[r.randrange(120)] = f"x{r.randrange(5000)}"
        texts.append(copy)
    shingles = [{tuple(t[i : i + 5]) for i in range(len(t) - 4)} for t in texts]
    alike = {
        j + 1
        for i in range(0, len(texts), 2)
        for j in (i + 1,)
        if len(shingles[i] & shingles[j]) / len(shingles[i] | shingles[j]) >= 0.85
    }
    unlike = {
        j + 1
        for i in range(0, len(texts), 2)
        for j in (i + 1,)
        if len(shingles[i] & shingles[j]) / len(shingles[i] | shingles[j]) < 0.6
    }
    file = write([json.dumps({"text": " ".join(t)}) for t in texts], tmp_path / "a.jsonl")
    found = {r.row for r in dedupe(file, None, near_duplicates=True).removed}
    assert len(alike) > 30 and len(unlike) > 20
    assert len(alike & found) >= 0.95 * len(alike)
    assert not unlike & found


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    file = write([chat("a", "1")] * 2, tmp_path / "a.jsonl")
    report = dedupe(file, None)
    assert report.exact == 1 and report.output is None and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("form", ["system", "template", "alpaca"])
def test_what_all_rows_share_makes_no_copies_of_them(tmp_path: Path, form: str) -> None:
    r = random.Random(4)

    def row(asked: str) -> str:
        if form == "alpaca":
            return json.dumps({"instruction": SHARED, "input": asked, "output": "yes"})
        if form == "template":
            return chat(f"{SHARED}: {asked}", "yes")
        messages = [{"role": "system", "content": SHARED}, *json.loads(chat(asked, "yes"))["messages"]]
        return json.dumps({"messages": messages})

    words = [" ".join(f"w{r.randrange(5000)}" for _ in range(40)) for _ in range(60)]
    short = [" ".join(f"w{r.randrange(5000)}" for _ in range(6)) for _ in range(140)]
    lines = [row(asked) for asked in (*words, *short, words[0] + " more")]
    file = write(lines, tmp_path / "a.jsonl")
    report = dedupe(file, tmp_path / "out.jsonl", near_duplicates=True)
    assert [(found.row, found.because_of) for found in report.removed] == [(201, 1)]
    parts = split(file, Division(SHARES), tmp_path / "out").files
    assert all(part.rows for part in parts)


def test_few_rows_with_one_system_text_are_no_copies(tmp_path: Path) -> None:
    """Too few to tell what their form is."""
    lines = [
        json.dumps({"messages": [{"role": "system", "content": SHARED}, *json.loads(one)["messages"]]})
        for one in (chat(f"a{i} b{i} c{i} d{i} e{i} f{i}", "yes") for i in range(12))
    ]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), None, near_duplicates=True)
    assert report.removed == ()


def test_rows_that_the_system_text_alone_tells_apart_are_no_copies(tmp_path: Path) -> None:
    lines = [
        json.dumps({"messages": [{"role": "system", "content": said}, *json.loads(one)["messages"]]})
        for said, one in (
            (" ".join(f"{i}w{k}" for k in range(80)), chat("Sum it up in one single word", "x"))
            for i in range(100)
        )
    ]
    report = dedupe(write(lines, tmp_path / "a.jsonl"), None, near_duplicates=True)
    assert report.removed == ()
