"""ShareGPT conversations, with the tool-calling variants: `function_call` and `observation` turns, and calls
in the text as `<tool_call>`, as Hermes' data has them."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from orchestrate.data.rows.examples import ChatExample, ChatMessage, ToolCall
from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import (
    REASONING,
    alias,
    calls_in,
    message,
    messages_from,
    tagged,
    tools_from,
    unread,
    weight_from,
    written_calls,
)
from orchestrate.data.shapes.parts import loss_of, text_of
from orchestrate.types import Problem

SYSTEM = ("system", "system_prompt")
"""Columns that hold a row's system text; OpenOrca has the second."""
_ANSWERS = ("observation", "tool", "function_response", "tool_response")


def sharegpt(row: dict[str, Any]) -> tuple[ChatExample | None, list[Problem]]:
    turns: Any = row["conversations"]
    if not isinstance(turns, list):
        message_ = "conversations is not a list"
        return None, [problem("bad-message", message_, field="conversations")]
    messages, found = conversation(cast("list[Any]", turns), "conversations")
    tools, wrong = tools_from(row)
    found += wrong
    weight = weight_from(row, found)
    return ChatExample(messages=with_system(row, messages, found), tools=tools, weight=weight), found


def with_system(row: dict[str, Any], messages: list[ChatMessage], found: list[Problem]) -> list[ChatMessage]:
    """`messages` after the row's own system text, where it has one that they do not begin with; one that is
    no text is added to `found`."""
    names = [name for name in SYSTEM if row.get(name)]
    if not names:
        return messages
    name = names[0]
    if any(row[other] != row[name] for other in names):
        found.append(problem("lost-meaning", f"{names[1]} is not read beside {name}", field=names[1]))
    system = text_of(row[name])
    if system is None:
        found.append(problem("bad-content", f"{name} is not text", field=name))
        return messages
    first = message("system", system)
    return messages if messages[:1] == [first] else [first, *messages]


def conversation(items: list[Any], place: str) -> tuple[list[ChatMessage], list[Problem]]:
    """The messages of turns as `from` and `value`, or as `role` and `content`."""
    if items and all(isinstance(item, dict) and "role" in item for item in items):
        named = [item | {"role": alias(item["role"]) or item["role"]} for item in items]
        return messages_from(named, place)
    turns = _Turns()
    for i, item in enumerate(items):
        turns.add(cast("dict[str, Any]", item) if isinstance(item, dict) else {}, f"{place}[{i}]")
    return turns.messages, turns.found


class _Turns:
    """Calls have no ids in this format: they are numbered, and answers take them in turn."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self.found: list[Problem] = []
        self._open: list[str] = []
        self._made = 0

    def add(self, turn: dict[str, Any], place: str) -> None:
        who, said = turn.get("from"), turn.get("value")
        before = len(self.messages)
        if not isinstance(said, str):
            self.found.append(problem("bad-content", "value is not text", field=f"{place}.value"))
        elif who == "function_call":
            self._call("", *written_calls(said, self._made, f"{place}.value"))
        elif who in _ANSWERS:
            self._answer(said)
        elif (role := alias(who)) is None:
            shown = msgspec.json.encode(who).decode()[:60]
            self.found.append(problem("bad-role", f"the speaker {shown} is not known", field=f"{place}.from"))
        elif role == "assistant" and (written := calls_in(said)) is not None:
            self._call(tagged(said, "tool_call")[1], *written_calls(written, self._made, f"{place}.value"))
        else:
            self.messages.append(message(role, said))
        self._beside(turn, self.messages[before:], place)

    def _beside(self, turn: dict[str, Any], made: list[ChatMessage], place: str) -> None:
        """What a turn has beside its text belongs to the messages that were made of it."""
        if turn.keys() <= {"from", "value"}:
            return
        weight = weight_from(turn, self.found, f"{place}.weight")
        loss = loss_of(turn, made[0].role if made else None, made[0].text if made else "", place)
        self.found += loss.found
        thought = next((turn[name] for name in REASONING if isinstance(turn.get(name), str)), None)
        kept = loss.used | {name for name in REASONING if turn.get(name) == thought}
        kept |= {"name"} if isinstance(turn.get("name"), str) else set()
        for m in made:
            m.weight = weight
            if m.role != "tool":
                m.weight, m.loss_spans = loss.weight if weight is None else weight, loss.spans
            m.reasoning, m.name = thought, turn.get("name") if "name" in kept else None
        self.found += unread(turn | loss.strays, kept | {"from", "value", "weight"}, place)

    def _call(self, said: str, calls: list[ToolCall], wrong: list[Problem]) -> None:
        self.found += wrong
        self._made += len(calls)
        self._open += [call.id for call in calls]
        if calls:
            self.messages.append(ChatMessage(role="assistant", content=said or None, tool_calls=calls))

    def _answer(self, said: str) -> None:
        """One answer, or one for each open call where they are marked."""
        answers, _ = tagged(said, "tool_response")
        for answer in answers if answers and len(answers) == len(self._open) else [said]:
            call = self._open.pop(0) if self._open else None
            self.messages.append(ChatMessage(role="tool", content=answer, tool_call_id=call))
