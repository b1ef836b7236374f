"""Several files as one, against lists of the same rows made by hand."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrate.data import Dataset
from orchestrate.data.dataset_reader import OpenedFile, open_dataset
from orchestrate.data.operations.check import problems_of_files
from orchestrate.data.operations.mix import open_mix
from orchestrate.errors import DataError
from orchestrate.spec.methods import TrainFile


def chat(n: object, answer: str = "yes") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": answer}]}


def written(path: Path, rows: list[Any]) -> str:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return str(path)


def asked(data: Dataset | OpenedFile) -> list[str]:
    facts = data.facts if isinstance(data, OpenedFile) else data
    return [str(e.messages[0].text) for e in facts.examples()]  # type: ignore[union-attr]


def mixed(tmp_path: Path, *files: TrainFile, **more: Any) -> tuple[OpenedFile, OpenedFile]:
    sources = open_mix(files, tmp_path / "mixes", **more)
    assert sources.mix is not None
    return sources, sources.mix


def test_a_weight_is_a_number_of_times_and_a_seeded_sample(tmp_path: Path) -> None:
    a = written(tmp_path / "a.jsonl", [chat(f"a{n}") for n in range(10)])
    alpaca = [{"instruction": f"b{n}?", "output": "no"} for n in range(20)]
    b = written(tmp_path / "b.jsonl", [*alpaca[:5], "{", *alpaca[5:]])
    files = TrainFile(path=a, weight=2), TrainFile(path=b, weight=1.5, seed=3)
    sources, mix = mixed(tmp_path, *files)
    times = Counter(asked(mix))
    assert [times[f"a{n}?"] for n in range(10)] == [2] * 10
    of_b = [times[f"b{n}?"] for n in range(20)]
    assert Counter(of_b) == {1: 10, 2: 10}
    (listed,) = (tmp_path / "mixes").glob("*.mix.json")
    told = json.loads(listed.read_bytes())
    assert told["digest"] == mix.facts.digest and told["rows"] == mix.facts.rows == 50
    # In the file there is a broken line before row 5.
    twice = [n + 1 + (n >= 5) for n, count in enumerate(of_b) if count == 2]
    assert told["files"][1]["sample"] == twice and told["files"][1]["seed"] == 3
    again = mixed(tmp_path, files[0], files[1].model_copy(update={"seed": 4}))[1]
    assert again.facts.rows == 50 and Counter(asked(again)) != times
    assert mixed(tmp_path, *files)[1].facts.digest == mix.facts.digest
    (problem,) = (p for p in sources.facts.problems if p.code == "invalid-json")
    assert (problem.source, problem.row) == (b, 6)
    assert "10 rows x 2" in str(sources.mixed) and "10 of 20 rows sampled with seed 3" in str(sources.mixed)


@settings(max_examples=25, deadline=None)
@given(weights=st.lists(st.sampled_from([0.1, 0.5, 1, 1.7, 3]), min_size=1, max_size=4))
def test_every_part_of_a_mix_has_the_files_in_their_proportions(
    tmp_path_factory: pytest.TempPathFactory, weights: list[float]
) -> None:
    folder = tmp_path_factory.mktemp("mix")
    files = [
        TrainFile(path=written(folder / f"{k}.jsonl", [chat(f"{k}-{n}") for n in range(20)]), weight=weight)
        for k, weight in enumerate(weights)
    ]
    rows = asked(mixed(folder, *files)[1])
    wanted = [round(20 * weight) for weight in weights]
    assert len(rows) == sum(wanted)
    for end in range(len(rows) + 1):
        seen = Counter(int(row.partition("-")[0]) for row in rows[:end])
        for k, total in enumerate(wanted):
            assert abs(seen[k] - total * end / len(rows)) <= len(wanted)


def test_the_mix_is_a_file_like_one_written_by_hand(tmp_path: Path) -> None:
    """All kinds of a row's content go through it unchanged."""
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    rows = [
        {**chat("weights"), "weight": 0.5},
        {
            "messages": [
                {"role": "user", "content": "tool?"},
                {"role": "assistant", "tool_calls": [call], "weight": 0},
                {"role": "tool", "tool_call_id": "c", "content": "3"},
                {"role": "assistant", "reasoning_content": "hm", "content": "3"},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
            "parallel_tool_calls": False,
        },
    ]
    a = written(tmp_path / "a.jsonl", rows)
    b = written(tmp_path / "b.jsonl", [chat(1), chat(2)])
    by_hand = written(tmp_path / "c.jsonl", [rows[0], chat(1), rows[1], chat(2)])
    _, mix = mixed(tmp_path, TrainFile(path=a), TrainFile(path=b))
    assert mix.facts.digest == Dataset.open(by_hand).digest
    assert list(mix.facts.examples()) == list(Dataset.open(by_hand).examples())


def test_what_is_wrong_is_told_of_the_files_not_of_the_mix(tmp_path: Path) -> None:
    """A row that is there twice by its weight is no duplicate."""
    a = written(tmp_path / "a.jsonl", [chat(n) for n in range(5)])
    b = written(tmp_path / "b.jsonl", [chat("own"), chat(3), chat(4, "no")])
    v = written(tmp_path / "v.jsonl", [chat(1), chat("own")])
    sources, _ = mixed(tmp_path, TrainFile(path=a, weight=3), TrainFile(path=b), compare=True)
    found = problems_of_files({"train": sources, "validation": open_dataset(v, compare=True)})
    told = {(p.code, p.source, p.row): p.message for p in found if p.row is not None}
    assert told == {
        ("duplicate", b, 2): f"identical to row 4 of {a}",
        ("conflict", b, 3): told[("conflict", b, 3)],
        ("leakage", v, 1): told[("leakage", v, 1)],
        ("leakage", v, 2): told[("leakage", v, 2)],
    }
    assert told[("conflict", b, 3)].endswith(f"prompt as row 5 of {a} but a different answer")
    assert told[("leakage", v, 2)].endswith(f"also in train, row 1 of {b}")
    [few] = [p.message for p in found if p.code == "few-rows"]
    assert "You have 18 rows" in few


@pytest.mark.parametrize(
    ("rows", "weight", "expected"),
    [
        (
            [{"prompt": "a", "completion": "b"}],
            1.0,
            "completion rows. All files in a mix must contain the same kind",
        ),
        ([chat(1)], 0.2, "a weight of 0.2 selects none of the 1 valid rows"),
        (["{", "{"], 1.0, "invalid JSON"),
    ],
)
def test_a_file_that_cannot_be_mixed_is_refused(
    tmp_path: Path, rows: list[Any], weight: float, expected: str
) -> None:
    a = written(tmp_path / "a.jsonl", [chat(n) for n in range(5)])
    b = written(tmp_path / "b.jsonl", rows)
    with pytest.raises(DataError, match=expected):
        mixed(tmp_path, TrainFile(path=a), TrainFile(path=b, weight=weight))
    assert not list((tmp_path / "mixes").iterdir())


opens: list[str] = []


def test_each_file_is_read_once(tmp_path: Path) -> None:
    """As often as one that is trained on alone: `b` is opened for the first time, and once to be read."""
    a = written(tmp_path / "a.jsonl", [chat(n) for n in range(5)])
    b = written(tmp_path / "b.jsonl", [chat(n) for n in range(5, 9)])
    sys.addaudithook(lambda event, args: opens.append(str(args[0])) if event == "open" else None)
    open_dataset(a, compare=True, content=True)
    alone = opens.count(a)
    opens.clear()
    mixed(tmp_path, TrainFile(path=a, weight=2.5), TrainFile(path=b), compare=True, content=True)
    assert opens.count(b) == alone > opens.count(a) > 0
