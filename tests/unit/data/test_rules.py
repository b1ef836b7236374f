"""What each host takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.targets import to

from orchestrate.data import Dataset, rules
from orchestrate.errors import UsageError

U = {"role": "user", "content": "a"}
A = {"role": "assistant", "content": "b"}
S = {"role": "system", "content": "s"}
PNG = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
URL = {"type": "image_url", "image_url": {"url": "https://a.example/b.png"}}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), **more}


def pair(*answers: dict[str, Any]) -> dict[str, Any]:
    return {
        "input": {"messages": [U]},
        "preferred_output": list(answers),
        "non_preferred_output": [{**A, "content": "c"}],
    }


def opened(rows: list[dict[str, Any]], folder: Path) -> Dataset:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset.open(file)


def codes(data: Dataset, host: str, **options: Any) -> set[str]:
    return {p.code for p in rules.check(data, to(host), **options)}


EVERYWHERE = {"openai", "together", "fireworks", "local"}


@pytest.mark.parametrize(
    ("row", "code", "hosts"),
    [
        (chat(U, {**A, "reasoning_content": "t"}), "reasoning-lost", {"openai"}),
        (chat(U, A, weight=2.0), "row-weight-lost", {"openai"}),
        (chat(U, A, S, U, A), "system-not-first", {"together", "fireworks"}),
        (chat(A, U, A), "starts-wrong", {"together"}),
        (chat(U, U, A), "not-alternating", {"together"}),
        (chat(U, A, A), "not-alternating", {"together"}),
        (
            chat(U, {"role": "function", "name": "f", "content": "x"}, A),
            "role-refused",
            {"together", "fireworks"},
        ),
        (chat({"role": "user", "content": [URL]}, A), "remote-image", {"together", "fireworks"}),
        (chat({"role": "user", "content": [PNG] * 11}, A), "many-images", {"together"}),
        (chat({"role": "system", "content": [PNG]}, U, A), "image-not-from-user", {"together"}),
        (chat({"role": "user", "content": [PNG]}, A), "no-vision", {"local"}),
        (pair(A, {**A, "content": "d"}), "several-answers", {"openai", "together", "fireworks"}),
    ],
)
def test_trait_is_refused_by_these_hosts_only(
    row: dict[str, Any], code: str, hosts: set[str], tmp_path: Path
) -> None:
    data = opened([row] * 10, tmp_path)
    assert data.rows == 10
    refusing = {host for host in EVERYWHERE if code in codes(data, host)}
    assert refusing == hosts
    for host in EVERYWHERE:
        assert (rules.accepted(data, to(host)) == 0) == any(
            p.severity.value == "error" for p in rules.check(data, to(host))
        )


def test_tool_turns_alternate(tmp_path: Path) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    answer = {"role": "tool", "tool_call_id": "c", "content": "1"}
    data = opened([chat(U, {"role": "assistant", "tool_calls": [call]}, answer, A)] * 3, tmp_path)
    assert codes(data, "together") == set()


def test_part_of_the_rows(tmp_path: Path) -> None:
    data = opened([chat(U, A)] * 7 + [chat(U, U, A)] * 3, tmp_path)
    assert rules.accepted(data, to("together")) == 7
    (found,) = [p for p in rules.check(data, to("together")) if p.code == "not-alternating"]
    assert found.row == 8 and "3 rows: 8, 9, 10" in found.message


@pytest.mark.parametrize(("host", "least"), [("openai", 10), ("together", 1), ("fireworks", 3), ("local", 1)])
def test_least_rows(host: str, least: int, tmp_path: Path) -> None:
    assert "too-few-rows" not in codes(opened([chat(U, A)] * least, tmp_path), host)
    if least > 1:
        few = opened([chat(U, A)] * (least - 1), tmp_path)
        assert "too-few-rows" in codes(few, host)
        assert "too-few-rows" not in codes(few, host, validation=True)


def test_row_weights_in_all_rows_or_none(tmp_path: Path) -> None:
    assert "row-weight-mixed" in codes(
        opened([chat(U, A)] * 3 + [chat(U, A, weight=1)], tmp_path), "fireworks"
    )
    assert codes(opened([chat(U, A, weight=1)] * 3, tmp_path), "fireworks") == set()


def test_kinds_and_methods(tmp_path: Path) -> None:
    texts = opened([{"text": "a"}] * 10, tmp_path)
    assert codes(texts, "openai") == codes(texts, "fireworks") == {"kind-refused"}
    assert codes(texts, "together", method="sft") == codes(texts, "local", method="sft") == set()
    assert codes(texts, "together", method="dpo") == {"wrong-kind"}


def test_too_many_rows_counts_epochs(tmp_path: Path) -> None:
    data = opened([chat(U, A)] * 4, tmp_path)
    assert "too-many-rows" in codes(data, "fireworks", epochs=1_000_000)
    assert "too-many-rows" not in codes(data, "fireworks", epochs=10)


def test_too_long_for_the_model(tmp_path: Path) -> None:
    data = opened([chat(U, A)] * 9 + [chat(U, {**A, "content": "word " * 400})], tmp_path)
    count = data.tokens("o200k")
    (found,) = rules.check(data, to("openai"), tokens=count, context=100)
    assert found.code == "too-long" and "1 row is longer" in found.message and found.row == 10
    assert rules.check(data, to("openai"), tokens=count) == []
    told = {
        truncation: rules.check(data, to("local"), tokens=count, context=100, truncation=truncation)[
            0
        ].message
        for truncation in (None, "right", "left", "drop")
    }
    assert told[None] == told["right"] and len(set(told.values())) == 3


def test_rows_that_are_too_long_are_named_by_the_scan_itself(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    short, long = (json.dumps(chat(U, {**A, "content": "word " * n})) for n in (1, 400))
    path.write_text(
        "\n".join([long, "{broken", "", short, long, "[1]", long, short, long, long, long]) + "\n"
    )
    data = Dataset.open(path, tokenizers=["o200k"])
    assert (data.rows, list(data.rowless)) == (8, [2, 3, 6])
    numbers = [number for number, _ in data.numbered()]
    path.unlink()
    (found,) = rules.check(data, to("together"), tokens=data.tokens("o200k"), context=100)
    assert (found.code, found.row) == ("too-long", 1)
    assert found.message.startswith("6 rows are longer") and found.message.endswith(": 1, 5, 7, 9, 10 ...")
    assert [data.number(place) for place in range(data.rows)] == numbers


def test_unknown_host(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        rules.check(opened([chat(U, A)], tmp_path), to("nowhere"))


def test_the_first_of_the_rows_that_are_too_long_are_named(tmp_path: Path) -> None:
    long = {**A, "content": "word " * 400}
    pair = {"input": {"messages": [U]}, "preferred_output": [long], "non_preferred_output": [A]}
    both = pair | {"non_preferred_output": [{**A, "content": "other " * 400}]}
    good = pair | {"preferred_output": [{**A, "content": "Well."}]}
    data = opened([good, {"broken": 1}, pair, good, both, *[pair] * 6], tmp_path)
    (found,) = rules.check(data, to("local"), tokens=data.tokens("o200k"), context=100)
    assert found.row == 3 and found.message.startswith("8 rows are longer")
    assert found.message.endswith(": 3, 5, 6, 7, 8 ...")
