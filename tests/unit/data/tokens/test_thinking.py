"""What is done with answers whose thinking the chat template drops, over every template that TRL carries."""

from __future__ import annotations

from collections import Counter

import pytest
from tests.unit.data.tokens.templates import each
from tests.unit.data.tokens.test_turns import KINDS, TEMPLATES, conversations

from orchestrate.data.rows import ChatMessage
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
