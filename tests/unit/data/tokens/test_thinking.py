"""What is done with answers whose thinking the chat template drops, over every template that TRL carries."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.unit.data.tokens.templates import each
from tests.unit.data.tokens.test_turns import KINDS, TEMPLATES, conversations

from orchestrate.data.rows import ChatMessage, FunctionCall, ToolCall
from orchestrate.data.tokens.turns import Conversations, Earlier, rows_of

ROWS = ("thinking", "thinking in the text")
WORDS = {"a1": "r1why", "a3": "r3hmm"}
"""The beginning of each answer, and the thinking before it."""


def trained(chats: Conversations, messages: list[ChatMessage], earlier: Earlier) -> list[str]:
    """What each row's model learns to say, turn by turn."""
    found: list[str] = []
    for row in rows_of(chats, messages, None, earlier):
        shown = chats.rendered(row)
        answers = [m for m in row if m.role == "assistant"]
        for message, turn in zip(answers, shown.turns, strict=True):
            if message.weight != 0:
                found.append("".join(shown.text[start:end] for start, end in turn.spans))
    return found


def answers_in(turns: list[str]) -> Counter[str]:
    return Counter(word for word in WORDS for turn in turns if word in turn)


@pytest.mark.parametrize("kind", ROWS)  # varies first: each template is compiled once
@pytest.mark.parametrize("name", each(TEMPLATES))
def test_no_answer_is_trained_without_its_thinking_unless_that_is_asked(name: str, kind: str) -> None:
    chats, messages = conversations(TEMPLATES[name]), KINDS[kind][0]
    shown_alone = all(
        WORDS[word] in "".join(trained(chats, [KINDS["plain"][0][0], message], "train"))
        for word, message in zip(WORDS, (m for m in messages if m.role == "assistant"), strict=True)
    )
    split = trained(chats, messages, "split")
    rest = trained(chats, messages, "untrained")
    once = Counter(list(WORDS))
    assert answers_in(split) == once == answers_in(trained(chats, messages, "train"))
    for word, thought in WORDS.items():
        assert all(thought in turn for turn in rest if word in turn)
        assert not shown_alone or all(thought in turn for turn in split if word in turn)
    assert answers_in(rest)["a3"] == shown_alone, "where it never shows it, nothing is trained without it"


def test_qwen3_by_hand() -> None:
    chats = conversations(TEMPLATES["qwen3"])
    first, second = rows_of(chats, KINDS["thinking"][0], None, "split")
    assert [m.weight for m in first] == [None, None]
    assert [m.weight for m in second] == [None, 0, None, None]
    end = "<|im_end|>"
    assert trained(chats, KINDS["thinking"][0], "split") == [
        f"<think>\nr1why\n</think>\n\na1two{end}",
        f"<think>\nr3hmm\n</think>\n\na3four{end}",
    ]
    assert trained(chats, KINDS["thinking"][0], "train")[0] == f"a1two{end}"


def test_rows_without_thinking_and_of_weight_0_stay_as_they_are() -> None:
    chats = conversations(TEMPLATES["qwen3"])
    for kind in sorted(set(KINDS) - set(ROWS)):
        messages, tools = KINDS[kind]
        if not any(m.reasoning for m in messages):
            assert rows_of(chats, messages, tools, "split") == [messages]


INSIDE = {
    "in its answer": ("42", "It is 42."),
    "in the question": ("one", "Yes."),
    "in the template": ("assistant", "Yes."),
    "in a later answer": ("last", "Yes."),
    "in a call": ("look", "Yes."),
}
"""Reasoning, and the answer after it. Qwen 3 drops the reasoning, but its words are also elsewhere."""


@pytest.mark.parametrize("inline", [False, True])
@pytest.mark.parametrize("case", INSIDE)
def test_dropped_reasoning_is_missed_though_its_words_are_elsewhere(case: str, inline: bool) -> None:
    thought, said = INSIDE[case]
    block = f"<think>\n{thought}\n</think>\n\n"
    called = [ToolCall(id="1", function=FunctionCall(name="look", arguments="{}"))]
    first = ChatMessage(
        role="assistant",
        content=block + said if inline else said,
        reasoning=None if inline else thought,
        tool_calls=called if "call" in case else None,
    )
    result = [ChatMessage(role="tool", content="ok", tool_call_id="1")] if "call" in case else []
    later = ChatMessage(role="assistant", content="the last", reasoning="so")
    asked = [ChatMessage(role="user", content=f"question {n}") for n in ("one", "two")]
    row = [asked[0], first, *result, asked[1], later]
    chats = conversations(TEMPLATES["qwen3"])
    assert f"<think>\n{thought}" not in chats.rendered(row).text, "the template drops it"
    assert "drops" in " ".join(chats.rendered(row).notes(has_end=True))
    weights = [[m.weight for m in one if m.role == "assistant"] for one in rows_of(chats, row, None, "split")]
    assert weights == [[None], [0, None]]
    [rest] = rows_of(chats, row, None, "untrained")
    assert [m.weight for m in rest if m.role == "assistant"] == [0, None]
    # Where the template shows it, nothing is missed, wherever else its words are.
    alone = [*row[:2], *result]
    assert block in chats.rendered(alone).text
    assert rows_of(chats, alone, None, "untrained") == [alone]
    assert not chats.rendered(alone).notes(has_end=True)
