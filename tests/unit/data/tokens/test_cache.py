"""Token counts are kept for the next process, and never taken for another file, tokenizer or version."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import pytest
from tests import command
from tests.paths import TINY

from orchestrate.data import Dataset, TrainingData
from orchestrate.data.operations.check import CheckOptions, check
from orchestrate.data.passes.scan import ranges
from orchestrate.data.rows import Example
from orchestrate.data.tokens import Lengths, counters
from orchestrate.errors import DataError, OrchestrateError


def write(file: Path, *answers: str) -> Path:
    rows = [
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]}
        for text in answers
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def count(words: list[str]) -> None:
    file, memory, tokenizer = words
    counts = Dataset.open(Path(file), tokenizers=[tokenizer], memory=Path(memory)).tokens(tokenizer)
    print(counts.tokens, counts.trained_tokens, list(counts.lengths))


def in_a_new_process(file: Path, memory: Path, tokenizer: str) -> tuple[int, int, list[int], float, bool]:
    """Counts there; the last word tells whether a tokenizer was needed."""
    code = (
        "import sys, json; from pathlib import Path; from orchestrate.data import Dataset\n"
        f"d = Dataset.open({str(file)!r}, tokenizers=[{tokenizer!r}], memory=Path({str(memory)!r}))\n"
        f"c = d.tokens({tokenizer!r})\n"
        "print(json.dumps([c.tokens, c.trained_tokens, list(c.lengths), c.error_band,"
        " 'tokenizers' in sys.modules]))\n"
        "assert 'transformers' not in sys.modules and 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))


def test_the_next_process_needs_no_tokenizer(tmp_path: Path) -> None:
    file, memory, name = write(tmp_path / "t.jsonl", "one", "two words"), tmp_path / "m", f"hf:{TINY}"
    first = in_a_new_process(file, memory, name)
    second = in_a_new_process(file, memory, name)
    assert first[-1] and not second[-1]
    assert first[:-1] == second[:-1]
    direct = Dataset.open(file).tokens(name)
    assert (direct.tokens, direct.trained_tokens, list(direct.lengths)) == second[:3]


def test_a_check_keeps_its_counts_and_takes_them_from_there(tmp_path: Path) -> None:
    file, memory = write(tmp_path / "t.jsonl", "one", "two words"), tmp_path / "m"
    fresh = check({"train": str(file)}, CheckOptions(tokenizer="o200k"))
    assert check({"train": str(file)}, CheckOptions(tokenizer="o200k", memory=memory)) == fresh
    kept = in_a_new_process(file, memory, "o200k")
    assert list(memory.glob("*.counts")) and kept[:2] == (
        fresh.files[0].tokens,
        fresh.files[0].trained_tokens,
    )
    assert check({"train": str(file)}, CheckOptions(tokenizer="o200k", memory=memory)) == fresh


@pytest.mark.slow
def test_a_changed_file_of_the_same_size_and_time_is_counted_anew(tmp_path: Path) -> None:
    file, memory = write(tmp_path / "t.jsonl", "aaaaaaaaaaaa"), tmp_path / "m"
    stat = file.stat()
    short = in_a_new_process(file, memory, "o200k")
    write(file, "q z x j w v ")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert file.stat().st_size == stat.st_size
    long = in_a_new_process(file, memory, "o200k")
    assert long[0] > short[0]
    assert long[:3] == in_a_new_process(file, tmp_path / "fresh", "o200k")[:3]


@pytest.mark.parametrize("answers", [(), ("one", "two and more", "three"), ("another", "word")])
def test_a_file_that_changes_before_it_is_counted_is_not_counted_for_what_it_was(
    tmp_path: Path, answers: tuple[str, ...]
) -> None:
    before = (f"before {len(answers)}", "two and more")
    file, memory = write(tmp_path / "t.jsonl", *before), tmp_path / "m"
    opened = Dataset.open(file, memory=memory)
    write(file, *answers)
    with pytest.raises(DataError, match="changed while"):
        opened.tokens("o200k")
    assert not list(memory.glob("*.counts"))
    assert len(Dataset.open(write(file, *before), memory=memory).tokens("o200k").lengths) == 2


def test_after_an_edit_only_the_ranges_that_it_changed_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row more, another one longer, one less: all ranges behind them begin at the same rows as before."""
    monkeypatch.setattr("orchestrate.data.dataset_reader.ranges", partial(ranges, step=8 << 10))
    counted: list[int] = []
    count = counters.BpeCounter.count

    def spied(self: counters.BpeCounter, examples: Sequence[Example]) -> Lengths:
        counted.append(len(examples))
        return count(self, examples)

    monkeypatch.setattr(counters.BpeCounter, "count", spied)
    answers = [f"{number} " * (number % 37) + "end" for number in range(4000)]
    file, memory = write(tmp_path / "t.jsonl", *answers), tmp_path / "m"
    options = CheckOptions(tokenizer="o200k", memory=memory)
    check({"train": str(file)}, options)
    assert sum(counted) == 4000
    counted.clear()
    answers[700] += " more words than before"
    write(file, *answers[:100], "one more", *answers[100:3000], *answers[3001:])
    again = check({"train": str(file)}, options)
    assert 3 <= sum(counted) < 600
    assert again == check({"train": str(file)}, CheckOptions(tokenizer="o200k"))


def test_another_tokenizer_in_the_same_folder_is_another_count(tmp_path: Path) -> None:
    model, memory = tmp_path / "model", tmp_path / "m"
    model.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(TINY / name, model)
    file = write(tmp_path / "t.jsonl", "one")
    before = in_a_new_process(file, memory, f"hf:{model}")
    with (model / "chat_template.jinja").open("a") as template:
        template.write("{{ 'and a long tail of words' }}")
    after = in_a_new_process(file, memory, f"hf:{model}")
    assert after[0] > before[0]
    assert after[-1], "the tokenizer was asked again"


def test_a_stand_in_shares_its_counter_and_keeps_its_band(tmp_path: Path) -> None:
    file, memory = write(tmp_path / "t.jsonl", "one two three"), tmp_path / "m"
    data = Dataset.open(file, tokenizers=["qwen3~o200k", "o200k", "llama-3~o200k"], memory=memory)
    assert len(list(memory.glob("*.counts"))) == 1
    own, other = data.tokens("o200k"), data.tokens("qwen3~o200k")
    # The 3 tokens of each row that open an answer may not be there.
    assert (own.tokens, own.error_band, own.exact) == (other.tokens, 3 / own.tokens, False)
    assert (other.tokenizer, other.error_band, other.exact) == ("qwen3~o200k", 0.12, False)


@pytest.mark.parametrize("damage", [b"", b"\x92", b"\x92\xc4\x03abc\x05", b"not a count"])
def test_a_damaged_memory_is_counted_again(tmp_path: Path, damage: bytes) -> None:
    file, memory = write(tmp_path / "t.jsonl", "one", "two"), tmp_path / "m"
    words = [str(file), str(memory), "cl100k"]
    whole = command.run(words, cwd=tmp_path, env=os.environ, program=count)
    [kept] = memory.glob("*.counts")
    before = kept.read_bytes()
    kept.write_bytes(damage)
    again = command.run(words, cwd=tmp_path, env=os.environ, program=count)
    assert whole.code == 0 and again == whole
    assert kept.read_bytes() == before


def test_no_memory_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file where the folder should be")
    file = write(tmp_path / "t.jsonl", "one")
    data = TrainingData.open(str(file), str(file), tokenizers=["o200k"], memory=tmp_path / "taken")
    assert data.train.tokens("o200k").tokens > 0
    assert data.train == Dataset.open(file), "where counts are kept is no part of a dataset"


def test_a_tokenizer_that_is_not_there_is_told_when_it_is_needed(tmp_path: Path) -> None:
    data = Dataset.open(write(tmp_path / "t.jsonl", "one"), tokenizers=["hf:/nowhere"], memory=tmp_path / "m")
    with pytest.raises(OrchestrateError, match="no tokenizer in /nowhere"):
        data.tokens("hf:/nowhere")


@pytest.mark.slow
def test_old_counts_make_room(tmp_path: Path) -> None:
    lengths = Lengths()
    for n in range(counters.MOST_FILES + 5):
        counters.keep(f"digest {n}", "o200k", lengths, tmp_path)
    assert len(list(tmp_path.iterdir())) == counters.MOST_FILES
