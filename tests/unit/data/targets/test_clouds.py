"""Rows for Gemini and Bedrock: back they are what they were, and the clouds' own types take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from google.genai import types
from tests.targets import to

from orchestrate.data import Dataset
from orchestrate.data.operations.convert import convert
from orchestrate.data.rows import ChatExample
from orchestrate.errors import DataError

GOOD = Path(__file__).parents[4] / "fixtures" / "datasets" / "formats" / "good"
NAMES = ["openai_chat.jsonl", "sharegpt_tools.jsonl", "openai_images.jsonl", "reasoning.jsonl"]


@pytest.mark.parametrize("target", ["gemini", "bedrock"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_come_back_as_they_were(target: str, name: str, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    report = convert(str(GOOD / name), to(target), out)
    assert (report.left_out, report.losses) == (0, ())
    back = Dataset.open(out)
    assert (back.format, back.problems) == (target, ())
    for before, after in zip(Dataset.open(GOOD / name).examples(), back.examples(), strict=True):
        assert isinstance(before, ChatExample) and isinstance(after, ChatExample)
        assert [(m.role, m.content, m.reasoning) for m in before.messages] == [
            (m.role, m.content, m.reasoning) for m in after.messages
        ]
        calls = [
            [json.loads(c.function.arguments) for m in e.messages for c in m.tool_calls or ()]
            for e in (before, after)
        ]
        assert calls[0] == calls[1] and before.tools == after.tools


@pytest.mark.parametrize("name", [*NAMES, "openai_preference.jsonl"])
def test_googles_client_takes_the_rows(name: str, tmp_path: Path) -> None:
    """Its types forbid fields that they do not have."""
    out = tmp_path / "out.jsonl"
    convert(str(GOOD / name), to("gemini"), out)
    for line in out.read_text().splitlines():
        row = json.loads(line)
        said = [*row.pop("contents"), *(c["completion"] for c in row.pop("completions", ()))]
        for content in said:
            assert types.Content.model_validate(content).role in ("user", "model")
        if "systemInstruction" in row:
            types.Content.model_validate(row.pop("systemInstruction"))
        for tool in row.pop("tools", ()):
            types.Tool.model_validate(tool)
        assert row == {}


def test_answers_to_the_calls_of_one_turn_stand_in_one_turn(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    calls = [
        {"id": f"c{i}", "type": "function", "function": {"name": "weather", "arguments": f'{{"n": {i}}}'}}
        for i in (1, 2)
    ]
    answers = [{"role": "tool", "tool_call_id": f"c{i}", "content": str(i)} for i in (1, 2)]
    row = {
        "messages": [
            {"role": "user", "content": "q"},
            {"role": "assistant", "tool_calls": calls},
            *answers,
            {"role": "assistant", "content": "a"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
    }
    (tmp_path / "in.jsonl").write_text(json.dumps(row) + "\n")
    for target, field in (("gemini", "contents"), ("bedrock", "messages")):
        convert(str(tmp_path / "in.jsonl"), to(target), out)
        turns = json.loads(out.read_text())[field]
        assert [turn["role"] for turn in turns] == ["user", turns[1]["role"], "user", turns[1]["role"]]


@pytest.mark.parametrize("target", ["gemini", "bedrock"])
def test_what_a_cloud_cannot_hold_is_refused(target: str, tmp_path: Path) -> None:
    for name in ("openai_weights.jsonl", "axolotl_parts.jsonl"):
        with pytest.raises(DataError, match="cannot be represented"):
            convert(str(GOOD / name), to(target), tmp_path / "out.jsonl")
