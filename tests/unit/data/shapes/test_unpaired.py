"""Unpaired preferences: one answer to a prompt, and whether it is a good one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.paths import DATASETS
from tests.targets import to

from orchestrate.data import Dataset
from orchestrate.data.operations.check import CheckOptions, CheckReport, check
from orchestrate.data.operations.convert import convert
from orchestrate.data.operations.dedupe import dedupe
from orchestrate.data.operations.fix import fix
from orchestrate.data.operations.inspect import inspect
from orchestrate.data.operations.split import Division, split
from orchestrate.data.rows import CompletionExample, UnpairedExample
from orchestrate.errors import DataError
from orchestrate.types import Severity

GOOD = DATASETS / "formats" / "good"
SAID = "The quick brown fox jumps over the lazy dog and then it sleeps for a very long while"


def write(path: Path, rows: Iterable[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def row(n: int, label: Any, answer: str = "yes") -> dict[str, Any]:
    return {"prompt": f"Is {n} even?", "completion": answer, "label": label}


def checked(path: Path, method: str | None = None, *hosts: str) -> CheckReport:
    return check({"train": str(path)}, CheckOptions(hosts=tuple(map(to, hosts)), method=method))


def codes(report: CheckReport) -> set[str]:
    return {p.code for p in report.problems} - {"few-rows"}


def test_a_label_that_is_no_truth_is_an_error_of_its_row(tmp_path: Path) -> None:
    bad = [1, "true", None, 0.5, "good", [True]]
    file = write(tmp_path / "rows.jsonl", [row(0, True), row(1, False), *(row(2, v) for v in bad)])
    report = checked(file)
    wrong = [p for p in report.problems if p.code == "bad-label"]
    assert [p.row for p in wrong] == [3, 4, 5, 6, 7, 8] and {p.severity for p in wrong} == {Severity.ERROR}
    assert report.files[0].format == "trl-unpaired" and {p.field for p in wrong} == {"label"}
    assert Dataset.open(file).rows == 2


def test_what_was_meant_as_a_label_is_repaired_and_nothing_else(tmp_path: Path) -> None:
    labels = [True, 0, "True", 0.7, None]
    file = write(tmp_path / "rows.jsonl", [row(n, label) for n, label in enumerate(labels)])
    report = fix(str(file), tmp_path / "fixed.jsonl")
    assert (report.repaired, report.left_out) == ({"bad-label": 2}, {"bad-label": 2})
    examples = list(Dataset.open(tmp_path / "fixed.jsonl").examples())
    assert [e.label for e in examples if isinstance(e, UnpairedExample)] == [True, False, True]


def test_a_class_in_a_column_called_label_stays_a_completion(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", [row(n, "billing") for n in range(3)])
    data = Dataset.open(file)
    assert data.format == "prompt-completion" and isinstance(next(data.examples()), CompletionExample)


def test_a_prompt_with_a_graders_label_stays_a_prompt(tmp_path: Path) -> None:
    rows = [{"messages": [{"role": "user", "content": f"Is {n} even?"}], "label": n % 2 == 0} for n in (1, 2)]
    assert Dataset.open(write(tmp_path / "rows.jsonl", rows)).format == "rft"


@pytest.mark.parametrize(
    ("good", "bad", "code", "told"),
    [
        (12, 0, "one-label", "all 12 answers are desirable"),
        (0, 12, "one-label", "all 12 answers are undesirable"),
        (12, 2, "labels-unbalanced", "undesirable_weight: 6"),
        (2, 9, "labels-unbalanced", "desirable_weight: 4.5"),
        (6, 2, None, ""),
    ],
)
def test_the_balance_of_labels(tmp_path: Path, good: int, bad: int, code: str | None, told: str) -> None:
    rows = [row(n, n < good, f"answer {n}") for n in range(good + bad)]
    report = checked(write(tmp_path / "rows.jsonl", rows))
    assert codes(report) == ({code} if code else set())
    if code:
        (found,) = [p for p in report.problems if p.code == code]
        assert told in found.message and found.severity is Severity.WARNING
    assert report.ok


def test_the_same_answer_with_both_labels_is_a_conflict_and_no_duplicate(tmp_path: Path) -> None:
    rows = [row(1, True), row(1, False, "no"), row(1, False), row(1, True), row(2, True)]
    file = write(tmp_path / "rows.jsonl", rows)
    report = checked(file)
    assert [(p.row, p.code) for p in report.problems if p.code in ("conflict", "duplicate")] == [
        (4, "duplicate"), (3, "conflict"),
    ]  # fmt: skip
    assert "row 1 with the opposite label" in next(p.message for p in report.problems if p.code == "conflict")
    kept = dedupe(str(file), tmp_path / "out.jsonl")
    assert [(r.row, r.because_of) for r in kept.removed] == [(4, 1)]


def test_nearly_the_same_answer_with_the_opposite_label_stays(tmp_path: Path) -> None:
    rows = [row(1, True, SAID), row(1, False, SAID + " again"), row(1, True, SAID + " today")]
    file = write(tmp_path / "rows.jsonl", rows)
    report = dedupe(str(file), tmp_path / "out.jsonl", near_duplicates=True)
    assert [(r.row, r.because_of) for r in report.removed] == [(3, 1)]


def test_inspect_tells_the_shares(tmp_path: Path) -> None:
    report = inspect(str(GOOD / "trl_unpaired.jsonl"))
    assert (report.kind, report.labels) == ("unpaired", {"desirable": 2, "undesirable": 2})
    assert 0 < report.trained_tokens < report.tokens
    assert inspect(str(GOOD / "trl_preference.jsonl")).labels == {}


def test_a_pair_becomes_two_rows_and_never_back(tmp_path: Path) -> None:
    pairs = GOOD / "openai_preference.jsonl"
    report = convert(str(pairs), to("unpaired"), tmp_path / "two.jsonl")
    count = Dataset.open(pairs).rows
    assert (report.rows, report.written, report.left_out) == (count, 2 * count, 0)
    two = [json.loads(line) for line in (tmp_path / "two.jsonl").read_text().splitlines()]
    assert [r["label"] for r in two] == [True, False] * count
    assert all(two[i]["prompt"] == two[i + 1]["prompt"] for i in range(0, len(two), 2))
    with pytest.raises(DataError, match="labels would be lost"):
        convert(str(tmp_path / "two.jsonl"), to("sharegpt"), tmp_path / "back.jsonl", allow_loss=True)


@pytest.mark.parametrize("target", ["openai", "together", "fireworks", "sharegpt", "alpaca", "parquet"])
def test_other_formats_refuse_them_and_say_which_do_not(target: str, tmp_path: Path) -> None:
    file = GOOD / "trl_unpaired.jsonl"
    for allow_loss in (False, True):
        with pytest.raises(DataError) as refused:
            convert(str(file), to(target), tmp_path / "out", allow_loss=allow_loss)
    assert "local, trl, unpaired" in (refused.value.fix or "")
    assert not (tmp_path / "out").exists()


def test_rows_without_a_verdict_become_no_unpaired_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the rows do not mark answers as good or bad"):
        convert(str(GOOD / "openai_chat.jsonl"), to("unpaired"), tmp_path / "out.jsonl", allow_loss=True)


def test_hosts_without_kto_say_so_in_the_table(tmp_path: Path) -> None:
    report = checked(GOOD / "trl_unpaired.jsonl", None, "openai", "together", "fireworks", "local")
    assert {h.host: h.accepted for h in report.hosts} == {
        "openai": 0, "together": 0, "fireworks": 0, "local": 4,
    }  # fmt: skip
    refused = [p for p in report.problems if p.code == "kind-refused"]
    assert {p.providers for p in refused} == {("openai",), ("together",), ("fireworks",)}
    assert all("KTO" in p.message and "dpo" in (p.fix or "") for p in refused)


@pytest.mark.parametrize(
    ("name", "method", "fix_"),
    [
        ("trl_unpaired.jsonl", "sft", "loss: kto"),
        ("trl_unpaired.jsonl", "dpo", "loss: kto"),
        ("trl_preference.jsonl", "kto", "--to unpaired"),
    ],
)
def test_rows_of_another_method(name: str, method: str, fix_: str) -> None:
    (found,) = [p for p in checked(GOOD / name, method, "local").problems if p.code == "wrong-kind"]
    assert method in found.message and fix_ in (found.fix or "")
    assert "wrong-kind" not in codes(checked(GOOD / "trl_unpaired.jsonl", "kto", "local"))


def test_a_split_keeps_a_prompt_together_and_the_labels_in_their_shares(tmp_path: Path) -> None:
    rows = [row(n // 2, n % 2 == 0, f"answer {n}") for n in range(200)]
    file = write(tmp_path / "rows.jsonl", rows)
    split(str(file), Division((0.8, 0.2), near_duplicates=False), tmp_path / "splits")
    sides = [
        [json.loads(line) for line in (tmp_path / "splits" / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "validation")
    ]
    prompts = [{r["prompt"][0]["content"] for r in side} for side in sides]
    assert not prompts[0] & prompts[1] and sum(map(len, sides)) == 200
    one = write(tmp_path / "alone.jsonl", [row(n, n % 4 == 0, f"answer {n} {'x' * n}") for n in range(200)])
    split(str(one), Division((0.5, 0.5), near_duplicates=False, stratify=True), tmp_path / "even")
    for name in ("train", "validation"):
        labels = inspect(str(tmp_path / "even" / f"{name}.jsonl")).labels
        assert labels == {"desirable": 25, "undesirable": 75}


def test_a_refusal_is_told_only_where_it_is_learnt(tmp_path: Path) -> None:
    refusal = "I'm sorry, but I can't help with that."
    file = write(tmp_path / "rows.jsonl", [row(1, True, refusal), row(2, False, refusal)])
    assert [p.row for p in checked(file).problems if p.code == "refusal"] == [1]
