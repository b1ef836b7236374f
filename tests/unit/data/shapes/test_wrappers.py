"""What wrappers of messages hold beside them, and weights where nothing is trained."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrate.data.rows import ChatExample
from orchestrate.data.shapes import known
from orchestrate.data.shapes.row_reader import row_of

ASK = {"role": "user", "content": "What is the capital of Norway?"}
REPLY = {"role": "assistant", "content": "Oslo."}
THOUGHT = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm."}]}
RECORDED = {"traceId": "t", "input": [ASK]}


@pytest.mark.parametrize(
    ("format_", "row", "said"),
    [
        (
            "openai-chat",
            {"messages": [ASK | {"content": [{"type": "image", "image": "a.png", "text": "A"}]}, REPLY]},
            "content.text",
        ),
        (
            "openai-responses",
            {"input": [ASK], "output": [{"type": "message", **REPLY}, THOUGHT]},
            "not followed by an answer",
        ),
        (
            "openai-responses",
            {"request": {"input": "q", "mood": "x"}, "response": {"output": [{"type": "message", **REPLY}]}},
            "mood",
        ),
        (
            "openai-responses",
            {"input": "q", "conversation": {"id": "c"}, "output": [{"type": "message", **REPLY}]},
            "earlier",
        ),
        (
            "openai-stored",
            {"request": {"messages": [ASK], "mood": "x"}, "response": {"choices": [{"message": REPLY}]}},
            "mood",
        ),
        (
            "langsmith",
            {"inputs": {"messages": [ASK]}, "outputs": {"generations": [[{"message": REPLY}] * 2]}},
            "generations",
        ),
        (
            "langsmith",
            {
                "inputs": {"messages": [ASK]},
                "outputs": {"generations": [[{"text": "Bergen.", "message": REPLY}]]},
            },
            "text",
        ),
        (
            "langsmith",
            {"inputs": {"messages": [ASK]}, "outputs": {"output": {"message": REPLY, "mood": "x"}}},
            "mood",
        ),
        (
            "langsmith",
            {"inputs": {"question": "q"}, "outputs": {"answer": "a"}, "attachments": {"a.png": "..."}},
            "attachments",
        ),
        (
            "langsmith",
            {
                "inputs": {"messages": [ASK]},
                "outputs": {
                    "messages": [
                        {"type": "ai", "content": REPLY["content"], "invalid_tool_calls": [{"name": "f"}]}
                    ]
                },
            },
            "invalid_tool_calls",
        ),
        ("langfuse", RECORDED | {"output": json.dumps({"message": REPLY, "mood": "x"})}, "mood"),
        ("langfuse", RECORDED | {"output": {"choices": [{"message": REPLY}] * 2}}, "choices"),
        (
            "langfuse",
            RECORDED | {"output": REPLY, "metadata": {"context": "Norway is a country."}},
            "Norway is",
        ),
    ],
)
def test_what_a_wrapper_holds_beside_the_messages_is_told(
    format_: str, row: dict[str, Any], said: str
) -> None:
    made = row_of(row, known.BY_NAME[format_])
    assert said in f"{[(p.message, p.field) for p in made.problems]}{made.unread}"


@pytest.mark.parametrize(
    "row",
    [
        {
            "request": {"messages": [ASK], "metadata": {"app": "a"}},
            "response": {"choices": [{"message": REPLY}]},
        },
        RECORDED | {"output": {"id": "c", "model": "m", "usage": {}, "choices": [{"message": REPLY}]}},
        {
            "inputs": {"messages": [ASK]},
            "outputs": {"generations": [[{"text": REPLY["content"], "message": REPLY}]]},
            "child_runs": [],
        },
    ],
)
def test_what_a_recorder_notes_of_a_call_is_not_asked_about(row: dict[str, Any]) -> None:
    shape = known.recognize(row)
    assert shape is not None
    made = row_of(row, shape)
    assert made.example is not None and not made.problems and not made.unread


ASKED = [ASK, REPLY | {"weight": 1}, ASK]


@pytest.mark.parametrize(
    "row",
    [
        {
            "input": {"messages": ASKED},
            "preferred_output": [REPLY],
            "non_preferred_output": [REPLY | {"content": "?"}],
        },
        {"prompt": ASKED, "chosen": [REPLY], "rejected": [REPLY | {"content": "?"}]},
        {"prompt": ASKED, "completion": [REPLY], "label": True},
        {"messages": ASKED, "reference": "Oslo"},
    ],
)
def test_a_weight_inside_a_prompt_that_is_not_trained_is_told(row: dict[str, Any]) -> None:
    shape = known.recognize(row)
    assert shape is not None
    made = row_of(row, shape)
    assert [(p.code, (p.field or "").endswith("[1].weight")) for p in made.problems] == [
        ("extra-fields", True)
    ]


def test_a_weight_inside_the_prompt_of_a_completion_is_the_rows_own() -> None:
    row = {"prompt": [*ASKED, REPLY, ASK], "completion": [REPLY]}
    made = row_of(row, known.BY_NAME["prompt-completion-chat"])
    assert isinstance(made.example, ChatExample) and not made.problems
    assert [m.weight for m in made.example.messages if m.role == "assistant"] == [1, 0, None]


def test_an_answer_of_a_pair_that_is_not_trained_is_an_error() -> None:
    row = {"prompt": [ASK], "chosen": [REPLY | {"weight": 0}], "rejected": [REPLY | {"content": "?"}]}
    made = row_of(row, known.BY_NAME["trl-preference"])
    assert made.example is None and [p.code for p in made.problems] == ["nothing-trained"]
