"""Rows on disk: what was encoded comes back, in bounded memory, and the order of an epoch is that of plain
lists."""

from __future__ import annotations

import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.paths import TINY

from orchestrate.errors import DataError
from orchestrate.local.encoding import Template, decode_row, encode
from orchestrate.local.encoding.encoded import (
    EncodedRows,
    encode_file,
    encode_prompts,
    epoch_batches,
    micro_batches,
    open_prompts,
)
from orchestrate.local.model.loader import load_tokenizer
from orchestrate.local.plan.memory import SHORT_ROW
from orchestrate.local.plan.memory_fit import _passes  # pyright: ignore[reportPrivateUsage]

LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=200)


@pytest.fixture(scope="module")
def template() -> Template:
    return Template(load_tokenizer(TINY))


def written(path: Path, count: int) -> Path:
    said = "all the words of a row of some length, so that its tokens are more than its place in the file "
    with path.open("w", encoding="utf-8") as out:
        for n in range(count):
            chat = [{"role": "user", "content": said * 3}, {"role": "assistant", "content": f"{n}"}]
            out.write(json.dumps({"messages": chat}) + "\n")
    return path


def test_rows_come_back_as_they_were_encoded(tmp_path: Path, template: Template) -> None:
    path = written(tmp_path / "rows.jsonl", 12)
    rows, report = encode_file(path, template, tmp_path / "encoded")
    assert (rows.examples, report.rows, report.dropped) == (12, 12, 0)
    assert isinstance(rows.ids, np.memmap) and isinstance(rows.weights, np.memmap)
    again = EncodedRows.open(tmp_path / "encoded")
    assert again is not None
    for n, line in enumerate(path.read_bytes().splitlines()):
        wanted = encode(decode_row(line), template)
        for some in (rows, again):
            ids, weights = some.row(n)
            assert ids.tolist() == wanted.ids and weights.tolist() == wanted.weights
    assert (
        list(rows.lengths) == [len(rows.row(n)[0]) for n in range(12)] and rows.tokens == rows.lengths.sum()
    )


def test_nothing_is_left_of_a_file_that_cannot_be_encoded(tmp_path: Path, template: Template) -> None:
    path = written(tmp_path / "rows.jsonl", 3)
    path.write_text(path.read_text() + "{}\n")
    with pytest.raises(DataError, match="row 4"):
        encode_file(path, template, tmp_path / "encoded")
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(DataError, match="no row contains a token to train on"):
        encode_file(empty, template, tmp_path / "encoded")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty.jsonl", "rows.jsonl"]


@pytest.mark.slow
@pytest.mark.usefixtures("usual_collection")
def test_a_row_more_costs_its_place_in_memory_and_not_its_tokens(tmp_path: Path, template: Template) -> None:
    """Some 200 tokens in each: held as lists they are over 10,000 bytes."""
    peaks: list[int] = []
    for count in (100, 500):
        path = written(tmp_path / f"{count}.jsonl", count)
        tracemalloc.start()
        rows, _ = encode_file(path, template, tmp_path / f"encoded-{count}")
        for batch in rows.batches(8, 0, 0):
            assert len(batch) <= 8
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert rows.tokens > 100 * count
    assert (peaks[1] - peaks[0]) / 400 < 300


@pytest.mark.slow
@pytest.mark.usefixtures("usual_collection")
def test_a_prompt_more_costs_its_place_in_memory_and_not_its_words(
    tmp_path: Path, template: Template
) -> None:
    """Some 200 tokens in each and 1,000 bytes for its grader, which come back as the file has them."""
    peaks: list[int] = []
    for count in (100, 500):
        path = tmp_path / f"{count}.jsonl"
        said = [{"role": "user", "content": "a question of some words " * 40}]
        given = [{"messages": said, "answer": f"{n}", "note": {"why": "x" * 1000}} for n in range(count)]
        given[7]["messages"] = [{"role": "user", "content": "a question that is too long " * 100}]
        path.write_text("".join(json.dumps(row) + "\n" for row in given))
        tracemalloc.start()
        rows, left_out = encode_prompts(path, template, tmp_path / f"prompts-{count}", 600)
        for batch in rows.batches(8, 0, 0):
            assert all(rows.prompts[i].fields["note"] == {"why": "x" * 1000} for i in batch)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert left_out == 1 and rows.examples == len(rows.prompts) == count - 1 and rows.tokens > 100 * count
        again = open_prompts(path, tmp_path / f"prompts-{count}")
        for one in (rows, again):
            assert one is not None and [p.fields["answer"] for p in one.prompts[6:9]] == ["6", "8", "9"]
            asked = template.asked(one.prompts[7].messages, one.prompts[7].tools)
            assert one.row(7)[0].tolist() == asked and not one.row(7)[1].any()
    assert (peaks[1] - peaks[0]) / 400 < 300


def by_lists(lengths: list[int], batch_size: int, seed: int, epoch: int, window: int) -> list[list[int]]:
    """As earlier versions made them: a run that they began goes on in the same order."""
    order = list(range(len(lengths)))
    chance = random.Random(f"{seed}/{epoch}")
    chance.shuffle(order)
    span = window * batch_size
    batches: list[list[int]] = []
    for start in range(0, len(order), span):
        near = sorted(order[start : start + span], key=lambda i: lengths[i])
        batches.extend(near[i : i + batch_size] for i in range(0, len(near), batch_size))
    chance.shuffle(batches)
    return batches


def parts_by_lists(batch: list[int], lengths: list[int], most: int, most_rows: int) -> list[list[int]]:
    parts: list[list[int]] = []
    part: list[int] = []
    for i in sorted(batch, key=lambda i: lengths[i]):
        if part and (len(part) >= most_rows or (len(part) + 1) * lengths[i] > most):
            parts.append(part)
            part = []
        part.append(i)
    parts.append(part)
    return parts


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(0, 3), st.sampled_from([1, 16]), st.integers(1, 400))
def test_the_order_is_that_of_plain_lists(
    lengths: list[int], size: int, seed: int, window: int, most: int
) -> None:
    array = np.array(lengths, dtype=np.int64)
    wanted = by_lists(lengths, size, seed, 1, window)
    found = epoch_batches(array, size, seed, 1, window=window)
    assert list(found) == wanted and len(found) == len(wanted)
    assert list(found[2:]) == wanted[2:] and found == epoch_batches(array, size, seed, 1, window=window)
    for batch in wanted:
        assert list(micro_batches(batch, array, most, 3)) == parts_by_lists(batch, lengths, most, 3)


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.integers(1, 400), st.integers(0, 200))
def test_rows_that_fit_into_a_line_stay_among_themselves(lengths: list[int], most: int, line: int) -> None:
    array, rows = np.array(lengths, dtype=np.int64), list(range(len(lengths)))
    short, long = [i for i in rows if lengths[i] <= line], [i for i in rows if lengths[i] > line]
    wanted = [p for some in (short, long) if some for p in parts_by_lists(some, lengths, most, 3)]
    assert list(micro_batches(rows, array, most, 3, line)) == wanted


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.integers(1, 600), st.integers(1, 20), st.sampled_from([1, 30]))
def test_the_largest_passes_are_those_of_plain_lists(
    lengths: list[int], tokens: int, most: int, scale: int
) -> None:
    """Also among those with short rows alone, whose attention keeps its weights."""
    lengths, tokens = [n * scale for n in lengths], tokens * scale
    parts = parts_by_lists(list(range(len(lengths))), lengths, tokens, most)
    passes = [(len(part), lengths[part[-1]]) for part in parts]
    counts = sorted((n, lengths.count(n)) for n in set(lengths))
    found = _passes(counts, tokens, most)
    assert found[0] == passes[-1] and set(found) <= set(passes)
    for short in (False, True):
        sizes = [[n * of for n, of in some if (of <= SHORT_ROW) is short] for some in (passes, found)]
        assert max(sizes[0], default=0) == max(sizes[1], default=0)
