from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrate.data import Dataset
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import Answers, choose_metric, evaluate, metrics, statistics
from orchestrate.types import Message, Reply


@pytest.mark.parametrize(
    ("metric", "expected", "answer", "score"),
    [
        ("exact_match", "yes", " yes\n", 1),
        ("exact_match", "yes", "Yes", 0),
        ("json_match", '{"a": 1, "b": [2]}', '```json\n{"b":[2],"a":1}\n```', 1),
        ("json_match", '{"a": 1}', '{"a": true}', 0),
        ("json_match", '{"a": [1]}', '{"a": [true]}', 0),
        ("json_match", '{"a": 1}', "not json", 0),
        ("json_match", '{"a": 1}', "[" * 100_000, 0),
        ("json_fields", '{"a": 1, "b": 2}', '{"a": 1, "b": 3}', 0.5),
        ("json_fields", '{"a": 1}', '{"a": 1, "extra": 0}', 0.5),
        ("contains", "Paris", "It is paris.", 1),
        ("token_f1", "the cat sat", "The cat!", 0.8),
        ("token_f1", "", "", 1),
        ("token_f1", "a", "", 0),
    ],
)
def test_metrics(metric: str, expected: str, answer: str, score: float) -> None:
    assert metrics.METRICS[metric](expected, answer) == pytest.approx(score)


@given(st.text(), st.text())
def test_every_metric_stays_in_its_range_and_a_perfect_answer_is_best(a: str, b: str) -> None:
    for metric in metrics.METRICS.values():
        assert 0 <= metric(a, b) <= 1
    assert metrics.exact_match(a, a) == metrics.token_f1(a, a) == metrics.contains(a, a) == 1


def test_the_metric_is_chosen_by_the_answers() -> None:
    assert choose_metric(['{"a": 1}', "[]"]) == "json_match"
    assert choose_metric(["yes", "no way"]) == "exact_match"
    assert choose_metric(["a long sentence with many words in it", "no"]) == "token_f1"


def test_wilson_against_a_published_value() -> None:
    # Newcombe 1998, table I, method 3: 81 of 263 gives 0.2553 to 0.3662.
    score = statistics.wilson(81, 263)
    assert (round(score.low, 4), round(score.high, 4)) == (0.2553, 0.3662)
    assert statistics.wilson(0, 10).low == 0 and statistics.wilson(0, 10).high > 0
    assert statistics.wilson(10, 10).high == 1 and statistics.wilson(10, 10).low < 1


@given(st.integers(0, 60), st.integers(0, 60))
def test_mcnemar_is_a_symmetric_probability(gained: int, lost: int) -> None:
    p = statistics.mcnemar(gained, lost)
    assert 0 < p <= 1 and p == statistics.mcnemar(lost, gained)


def test_mcnemar_by_hand() -> None:
    assert math.isclose(statistics.mcnemar(9, 1), 2 * (1 + 10) / 1024)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_the_bootstrap_interval_is_ordered_and_repeatable(values: list[float]) -> None:
    score = statistics.mean_interval(values)
    assert score.low <= score.high and score == statistics.mean_interval(values)
    assert min(values) - 1e-9 <= score.low and score.high <= max(values) + 1e-9


def rows(tmp_path: Path, answers: Sequence[str]) -> Dataset:
    path = tmp_path / "test.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "messages": [
                        {"role": "system", "content": "Be brief."},
                        {"role": "user", "content": f"question {i}"},
                        {"role": "assistant", "content": answer},
                    ]
                }
            )
            + "\n"
            for i, answer in enumerate(answers)
        )
    )
    return Dataset.open(path)


def answering(answers: Sequence[str], seen: list[Sequence[Message]] | None = None):
    def generate(prompts: Sequence[Sequence[Message]]) -> list[Reply]:
        if seen is not None:
            seen.extend(prompts)
        return [Reply(content=answer, model="m") for answer in answers[: len(prompts)]]

    return generate


def test_flips_scores_and_items(tmp_path: Path) -> None:
    seen: list[Sequence[Message]] = []
    result = evaluate(
        rows(tmp_path, ["a", "b", "c", "d"]),
        Answers(answering(["a", "b", "x", "d"], seen), answering(["a", "x", "c", "x"])),
        run_id="r",
        provider="p",
        items_file=tmp_path / "items.jsonl",
    )
    assert (result.metric, result.tuned.value, result.base and result.base.value) == (
        "exact_match",
        0.75,
        0.5,
    )
    assert (result.gained, result.lost) == (2, 1)
    assert result.difference is not None and result.difference.value == pytest.approx(0.25)
    assert [m.role for m in seen[0]] == ["system", "user"], (
        "the expected answer must never be shown to the model"
    )
    items = [json.loads(line) for line in (tmp_path / "items.jsonl").read_text().splitlines()]
    assert [i["tuned_score"] for i in items] == [1, 1, 0, 1] and items[1]["base"] == "x"


def test_limit_and_unknown_metric(tmp_path: Path) -> None:
    data = rows(tmp_path, ["a", "b", "c"])
    limited = evaluate(data, Answers(answering(["a", "b"])), run_id="r", provider="p", limit=2)
    assert limited.tuned.n == 2 and limited.base is None and limited.p_value is None
    with pytest.raises(UsageError, match="known: auto, exact_match"):
        evaluate(data, Answers(answering(["a"] * 3)), run_id="r", provider="p", metric="bleurt")


def test_rows_without_an_answer_cannot_be_scored(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"text": "just text"}\n' * 12)
    with pytest.raises(DataError, match="no row ends with an assistant message"):
        evaluate(Dataset.open(path), Answers(answering([])), run_id="r", provider="p")


def test_a_row_that_holds_its_thinking_is_compared_by_its_answer(tmp_path: Path) -> None:
    data = rows(tmp_path, ["<think>\nhm\n</think>\n\nyes", "no"])
    result = evaluate(data, Answers(answering(["yes", "no"])), run_id="r", provider="p")
    assert (result.metric, result.tuned.value) == ("exact_match", 1)


def test_answers_that_were_cut_are_told(tmp_path: Path) -> None:
    def generate(prompts: Sequence[Sequence[Message]]) -> list[Reply]:
        ends = ["stop", "length", "length"]
        notes = [(), (), ("cut within its thinking, before there was an answer",)]
        return [
            Reply(content="a", model="m", finish_reason=ends[i], notes=notes[i]) for i in range(len(prompts))
        ]

    result = evaluate(rows(tmp_path, ["a", "b", "c"]), Answers(generate), run_id="r", provider="p")
    assert result.notes == (
        "tuned, 1 of 3: cut within its thinking, before there was an answer",
        "tuned, 1 of 3: cut at the most tokens of an answer",
    )
