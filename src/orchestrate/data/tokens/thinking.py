"""Thinking that a chat template drops from an answer once another turn follows.

Templates of reasoning models show the thinking of the last answer only. Trained as one row, the earlier
answers would teach the model to answer without it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from msgspec.structs import replace

from orchestrate.data.rows.examples import ChatMessage
from orchestrate.data.tokens.turns import Conversations, Rendered
from orchestrate.data.tokens.words import Tools, inline_thought

Earlier = Literal["train", "split", "untrained"]
"""Answers without the thinking that they have in the row: trained all the same, made the last of a row of
their own, or left as context."""


def rows_of(
    chats: Conversations, messages: Sequence[ChatMessage], tools: Tools, earlier: Earlier
) -> list[Sequence[ChatMessage]]:
    """The conversations that are trained for one row, in its order. Raises `DataError` when the template
    refuses it."""
    if earlier == "train" or not any(_thought(m) for m in messages):
        return [messages]
    lost = _lost(chats.rendered(messages, tools))
    if not lost:
        return [messages]
    rows: list[Sequence[ChatMessage]] = []
    rest = list(messages)
    for place in lost:
        begun = [*map(_untrained, messages[:place]), messages[place]]
        if earlier == "split":
            if place in _lost(chats.rendered(begun, tools)):
                continue  # the template shows no thinking at all: nothing is gained by a row of its own
            rows.append(begun)
        rest[place] = _untrained(messages[place])
    return [*rows, rest]


def _lost(shown: Rendered) -> list[int]:
    """Places of trained answers whose thinking is not in what the model learns to say."""
    answers = [place for place, m in enumerate(shown.messages) if m.role == "assistant"]
    return [
        place
        for place, turn in zip(answers, shown.turns, strict=True)
        if (thought := _thought(shown.messages[place]))
        and shown.messages[place].weight != 0
        and not any(thought in shown.text[start:end] for start, end in turn.spans)
    ]


def _thought(message: ChatMessage) -> str:
    return (message.reasoning or "").strip() or inline_thought(message.text)


def _untrained(message: ChatMessage) -> ChatMessage:
    return replace(message, weight=0.0) if message.role == "assistant" else message
