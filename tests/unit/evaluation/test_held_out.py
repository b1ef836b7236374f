"""Rows of a file as items."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from orchestrate.data import Dataset
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import digest_of
from orchestrate.evaluation.contenders import examples_of, shots_of
from orchestrate.evaluation.held_out import held_out


def chat(*said: str, **more: Any) -> dict[str, Any]:
    roles = ("system", "user", "assistant", "user", "assistant")
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, said, strict=False)], **more}


def opened(tmp_path: Path, rows: list[dict[str, Any]], name: str = "t.jsonl") -> Dataset:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Dataset.open(tmp_path / name)


def test_the_expected_answer_is_never_in_the_question(tmp_path: Path) -> None:
    data = opened(
        tmp_path, [chat("Be brief.", "hello", "secret"), chat("Be brief.", "a", "b", "c", "secret")]
    )
    first, second = held_out(data).items
    assert first.expected == second.expected == "secret"
    assert [m.role for m in first.prompt] == ["system", "user"]
    assert not any("secret" in m.content for item in (first, second) for m in item.prompt)


def test_calls_of_tools_are_expected_too(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q": 1}'}}
    tool = {
        "type": "function",
        "function": {"name": "find", "parameters": {"type": "object", "properties": {}}},
    }
    row = {
        "messages": [
            {"role": "user", "content": "find 1"},
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "content": "one", "tool_call_id": "c1"},
            {"role": "assistant", "content": None, "tool_calls": [{**call, "id": "c2"}]},
        ],
        "tools": [tool],
    }
    [item] = held_out(opened(tmp_path, [row])).items
    assert item.expected_calls[0]["function"] == call["function"] and item.tools[0]["type"] == "function"
    assert item.prompt[1].to_dict()["tool_calls"] == (call,) and item.prompt[2].tool_call_id == "c1"


def test_each_message_that_calls_tools_is_asked_for(tmp_path: Path) -> None:
    """The last answer is words: by it alone nobody knows whether the tools are called rightly."""

    def row(city: str, last: str) -> dict[str, Any]:
        call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": f'{{"c": "{city}"}}'}}
        return {
            "messages": [
                {"role": "user", "content": f"rain in {city}?"},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "yes", "tool_call_id": "c1"},
                {"role": "assistant", "content": last},
            ],
            "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}],
        }

    data = opened(tmp_path, [row("Oslo", "It rains."), row("Oslo", "Yes."), row("Rome", "No.")])
    found = held_out(data, turns=True, limit=2).items
    assert [bool(item.expected_calls) for item in found] == [True, False, True, False]
    assert [len(item.prompt) for item in found] == [1, 3, 1, 3] and len({item.id for item in found}) == 4
    assert len({item.cluster for item in found}) == 1 and found[0].cluster, "they share a message"
    every = held_out(data, turns=True).items
    assert len({item.cluster for item in every}) == 2 and every[4].cluster == every[5].cluster
    assert [item.expected for item in held_out(data).items] == ["It rains.", "Yes.", "No."]
    unlearned = row("Oslo", "It rains.")
    unlearned["messages"][1]["weight"] = 0
    assert len(held_out(opened(tmp_path, [unlearned], "u.jsonl"), turns=True).items) == 1


def test_what_cannot_be_asked_is_told(tmp_path: Path) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}
    seen = {"role": "user", "content": [{"type": "text", "text": "what is it?"}, picture]}
    rows = [chat("s", "q", "a"), {"messages": [seen, {"role": "assistant", "content": "a cat"}]}]
    found = held_out(opened(tmp_path, rows))
    assert len(found.items) == 1 and found.left_out == {
        "rows with images, which evaluations do not support": 1
    }
    with pytest.raises(DataError, match="no row ends with an assistant message"):
        held_out(opened(tmp_path, [{"text": "just text"}] * 12))


def test_rows_that_cannot_be_read_are_counted(tmp_path: Path) -> None:
    good = json.dumps(chat("s", "q", "a"))
    lines = [good, "{", json.dumps(chat("s", "q", "")), "", json.dumps(chat("s", "q2")), "{", good]
    (tmp_path / "t.jsonl").write_text("\n".join(lines))
    data = Dataset.open(tmp_path / "t.jsonl")
    found = held_out(data)
    assert len(found.items) == 2 and found.left_out == {
        "rows that could not be read (invalid-json)": 2,
        "rows that could not be read (empty-content)": 1,
        "rows that could not be read (no-assistant)": 1,
    }
    assert held_out(data, limit=1).left_out == {}


def test_rows_that_are_the_same_count_each(tmp_path: Path) -> None:
    items = held_out(opened(tmp_path, [chat("s", "q", "a")] * 3)).items
    assert len({item.id for item in items}) == 3 and len({item.prompt for item in items}) == 1


def test_the_digest_is_of_what_was_asked(tmp_path: Path) -> None:
    rows = [chat("s", f"q{i}", "a") for i in range(4)]
    one, other = opened(tmp_path, rows), opened(tmp_path, rows[::-1], "u.jsonl")
    assert one.digest != other.digest
    assert digest_of(held_out(one).items) == digest_of(held_out(other).items)
    assert digest_of(held_out(one).items) != digest_of(held_out(one, limit=3).items)


def test_clusters_and_slices_come_from_columns(tmp_path: Path) -> None:
    rows = [
        chat("s", "q" * (i + 1), "yes" if i % 2 else "no", user=f"u{i % 3}", tag=["x", "y"][i % 2])
        for i in range(6)
    ]
    data = opened(tmp_path, rows)
    items = held_out(data, cluster="user", slices=["tag", "length", "label"]).items
    assert [item.cluster for item in items] == ["u0", "u1", "u2"] * 2
    assert items[0].slices == ("tag:x", "length:short", "label:no")
    assert items[5].slices == ("tag:y", "length:long", "label:yes")
    with pytest.raises(UsageError, match="no row has a column named 'usr'"):
        held_out(data, cluster="usr")


def test_shots_are_never_the_questions(tmp_path: Path) -> None:
    train = held_out(opened(tmp_path, [chat("s", f"q{i}", f"a{i}") for i in range(8)])).items
    asked = train[:5]
    shots = shots_of(train, 3, asked)
    assert sorted(m.content for m in shots) == ["a5", "a6", "a7", "q5", "q6", "q7"]
    assert [m.role for m in shots] == ["user", "assistant"] * 3
    assert shots_of(train, 3, asked) == shots


def test_a_row_that_holds_its_thinking_expects_the_answer(tmp_path: Path) -> None:
    answers = ("<think>\nhm\n</think>\n\nyes", "<think>only", "no")
    rows = [chat("be brief", f"question {i}", answer) for i, answer in enumerate(answers)]
    found = [item.expected for item in held_out(opened(tmp_path, rows)).items]
    assert found == ["yes", "<think>only", "no"]


def test_rows_that_are_the_same_are_one_cluster(tmp_path: Path) -> None:
    """A file that was written twice shows no more than once."""
    rows = [chat("s", f"q{i}", "a", user=f"u{i}") for i in range(3)]
    found = held_out(opened(tmp_path, [*rows, rows[0], rows[0]]))
    first, *others = [item.cluster for item in found.items]
    assert first and others == ["", "", first, first] and found.repeated == 2
    by_user = held_out(opened(tmp_path, [*rows, rows[0]]), cluster="user").items
    assert [item.cluster for item in by_user] == ["u0", "u1", "u2", "u0"]


def test_examples_with_calls_of_tools(tmp_path: Path) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}

    def row(asked: str) -> dict[str, Any]:
        return {
            "messages": [
                {"role": "user", "content": asked},
                {"role": "assistant", "content": None, "tool_calls": [call]},
                {"role": "tool", "content": "one", "tool_call_id": "c1"},
                {"role": "assistant", "content": "it is one"},
            ]
        }

    train = held_out(opened(tmp_path, [row("a"), row("b"), row("b")])).items
    [example] = examples_of(train, train[:1])
    assert example.prompt[0].content == "b"
    assert [m.role for m in shots_of(train, 1, train[:1])] == ["user", "assistant", "tool", "assistant"]
