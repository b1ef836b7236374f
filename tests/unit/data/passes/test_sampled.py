"""A sample's interval has the true count in it as often as is said, whatever rows the file holds."""

from __future__ import annotations

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from orchestrate.data import Dataset
from orchestrate.data.passes.scan import LEAST_BYTES, ScanTask, sampled
from orchestrate.data.tokens import COVERAGE
from orchestrate.errors import DataError
from orchestrate.types import TokensFrom

WORDS = {
    "prose": "The order of the third of May has not arrived yet, and nobody answers. ",
    "code": "for(i=0;i<n;++i){x[i]^=0x5f3759df;}\n",
    "chinese": "请问我的订单在哪里",
    "spaces": " " * 70,
}


def row(chance: random.Random, words: str, length: int) -> str:
    text = "".join(chance.choice((words, words[::-1])) for _ in range(length))
    messages = [{"role": "user", "content": text}, {"role": "assistant", "content": words}]
    return json.dumps({"messages": messages}, ensure_ascii=False)


def lines(kind: str) -> list[str]:
    chance = random.Random(3)
    if kind == "one kind after the other":
        return [row(chance, words, 4) for words in WORDS.values() for _ in range(300)]
    if kind == "few long rows":
        return [
            row(chance, WORDS["prose" if i % 100 else "code"], 1 if i % 100 else 300) for i in range(1200)
        ]
    if kind == "few dense rows":
        return [row(chance, WORDS["code"] if i % 60 == 0 else "-" * 64, 4) for i in range(1200)]
    if kind == "damaged and blank":
        return [("", "{", row(chance, WORDS["prose"], 3))[chance.randrange(3)] for _ in range(1200)]
    return [
        row(chance, chance.choice(list(WORDS.values())), int(chance.paretovariate(1.2))) for _ in range(1200)
    ]


@pytest.mark.parametrize(
    "kind",
    [
        "mixed",
        *(
            pytest.param(kind, marks=pytest.mark.slow)
            for kind in ("one kind after the other", "few long rows", "few dense rows", "damaged and blank")
        ),
    ],
)
@pytest.mark.slow
def test_the_true_count_is_in_the_interval_as_often_as_is_said(tmp_path: Path, kind: str) -> None:
    file, seeds = tmp_path / "rows.jsonl", 200
    file.write_text("\n".join(lines(kind)), "utf-8")
    count = Dataset.open(file).tokens("o200k")
    task = ScanTask(str(file), 0, file.stat().st_size, "openai-chat")
    samples = [sampled(task, "o200k", places=120, seed=seed) for seed in range(seeds)]
    held = sum(abs(one.tokens - count.tokens) <= one.half_width for one in samples)
    # Of 200 fair trials of 99 in 100 fewer than 194 hold in one of 200 cases.
    assert held >= 194 and COVERAGE == 99, f"{held} of {seeds}"
    assert fmean(one.tokens for one in samples) == pytest.approx(count.tokens, rel=0.02)
    assert fmean(one.trained for one in samples) == pytest.approx(count.trained_tokens, rel=0.05)
    assert fmean(sum(one.weights) for one in samples) == pytest.approx(count.rows, rel=0.05)
    assert fmean(one.half_width for one in samples) < 0.25 * count.tokens + unmet(120) * task.end


def unmet(places: int) -> float:
    """The part of a file that as many places miss in one of 200 cases."""
    return 1 - 0.005 ** (1 / places)


def test_all_rows_of_one_form_leave_no_doubt_but_of_those_that_were_not_met(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((row(random.Random(1), "same ", 5) + "\n") * 500, "utf-8")
    count, size = Dataset.open(file).tokens("o200k"), file.stat().st_size
    task = ScanTask(str(file), 0, size, "openai-chat")
    some, every = (sampled(task, "o200k", places=places) for places in (50, size))
    assert [some.tokens, every.tokens] == pytest.approx([count.tokens] * 2)
    assert some.half_width == pytest.approx(unmet(50) * size, rel=0.1)
    assert every.half_width < 1e-6 * count.tokens


def test_a_row_is_read_whole_wherever_a_place_lies_in_it(tmp_path: Path) -> None:
    """Rows shorter and longer than what is read at once, with and without an end of the last line."""
    file, lengths = tmp_path / "rows.jsonl", [1, 40_000, 0, 16_300, 16_384, 3, 100_000]
    texts = [json.dumps({"text": "word " * (n // 5)}) for n in lengths]
    for end in ("\n", ""):
        file.write_text("\n".join(texts) + end)
        sample = sampled(
            ScanTask(str(file), 0, file.stat().st_size, "text"), "o200k", places=file.stat().st_size
        )
        assert sorted(set(sample.lengths)) == sorted(Dataset.open(file).tokens("o200k").lengths)


def test_a_file_that_is_cut_while_it_is_sampled_is_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((row(random.Random(1), "same ", 5) + "\n") * 50, "utf-8")
    before = ScanTask(str(file), 0, 2 * file.stat().st_size, "openai-chat")
    with pytest.raises(DataError, match="changed while"):
        sampled(before, "o200k", places=40)


@pytest.mark.slow
def test_a_file_that_was_cut_since_it_was_read_is_told(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((lines("few long rows")[0] + "\n") * (LEAST_BYTES // 200))
    data = replace(Dataset.open(str(file)), tokens_from=TokensFrom.SAMPLED)
    assert data.bytes >= LEAST_BYTES
    for left in (1000, 0):
        os.truncate(file, left)
        with pytest.raises(DataError, match="changed while"):
            data.tokens("o200k")
