"""ShareGPT conversations, with the tool-calling variants: `function_call` and `observation` turns, and calls
in the text as `<tool_call>`, as Hermes' data has them."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any, cast

import msgspec

from orchestrate.data.rows.examples import ChatExample, ChatMessage, FunctionCall, ToolCall
from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import (
    REASONING,
    alias,
    flags_of,
    message,
    messages_from,
    tools_from,
    weight_from,
)
from orchestrate.types import Problem

_ANSWERS = ("observation", "tool", "function_response", "tool_response")


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    """As they are written: decoding would round large numbers."""


_ONE, _SEVERAL = msgspec.json.Decoder(_Call), msgspec.json.Decoder(list[_Call])


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
    system = row.get("system")
    if not system:
        return messages
    if not isinstance(system, str):
        found.append(problem("bad-content", "system is not text", field="system"))
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
            self._call("", *_calls(said, self._made, f"{place}.value"))
        elif who in _ANSWERS:
            self._answer(said)
        elif (role := alias(who)) is None:
            shown = msgspec.json.encode(who).decode()[:60]
            self.found.append(problem("bad-role", f"the speaker {shown} is not known", field=f"{place}.from"))
        elif role == "assistant" and (written := calls_in(said)) is not None:
            self._call(_tagged(said, "tool_call")[1], *_calls(written, self._made, f"{place}.value"))
        else:
            self.messages.append(message(role, said))
        self._beside(turn, self.messages[before:], place)

    def _beside(self, turn: dict[str, Any], made: list[ChatMessage], place: str) -> None:
        """What a turn has beside its text belongs to the messages that were made of it."""
        if turn.keys() <= {"from", "value"}:
            return
        weight = weight_from(turn, self.found, f"{place}.weight")
        kept, untrained = flags_of(turn, made[0].role if made else None)
        kept |= {name for name in ("name", *REASONING) if isinstance(turn.get(name), str)}
        thought = next((turn[name] for name in REASONING if name in kept), None)
        for m in made:
            if m.role != "tool":
                m.weight = 0 if untrained and weight is None else weight
            m.reasoning, m.name = thought, turn.get("name") if "name" in kept else None
        unused = turn.keys() - kept - {"from", "value", "weight"}
        if extra := sorted(name for name in unused if turn[name] is not None):
            self.found.append(problem("extra-fields", f"unused: {', '.join(extra[:8])}", field=place))

    def _call(self, said: str, calls: list[ToolCall], wrong: list[Problem]) -> None:
        self.found += wrong
        self._made += len(calls)
        self._open += [call.id for call in calls]
        if calls:
            self.messages.append(ChatMessage(role="assistant", content=said or None, tool_calls=calls))

    def _answer(self, said: str) -> None:
        """One answer, or one for each open call where they are marked."""
        answers, _ = _tagged(said, "tool_response")
        for answer in answers if answers and len(answers) == len(self._open) else [said]:
            call = self._open.pop(0) if self._open else None
            self.messages.append(ChatMessage(role="tool", content=answer, tool_call_id=call))


def _tagged(text: str, tag: str) -> tuple[list[str], str]:
    """What stands between each pair of tags, and the text without them. The time of a regular expression
    would grow with the square of a hostile text."""
    inside: list[str] = []
    before, *pieces = text.split(f"<{tag}>")
    rest = [before]
    for piece in pieces:
        content, closed, after = piece.partition(f"</{tag}>")
        if not closed:
            return [], text
        inside.append(content.strip())
        rest.append(after)
    return inside, "".join(rest).strip()


def calls_in(said: str) -> str | None:
    """The calls that a text holds, as a JSON list; `None` when it holds none, or one that cannot be read: it
    then stays the text that it is."""
    written, _ = _tagged(said, "tool_call")
    calls = [_as_json(call) for call in written]
    return f"[{','.join(call for call in calls if call)}]" if calls and all(calls) else None


def _as_json(call: str) -> str | None:
    """Some of the data has Python's quotes instead of JSON's."""
    try:
        _ONE.decode(call)
    except (msgspec.DecodeError, RecursionError, UnicodeEncodeError):
        pass
    else:
        return call
    try:
        with warnings.catch_warnings(action="ignore"):
            written = json.dumps(ast.literal_eval(call), ensure_ascii=False)
        _ONE.decode(written)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return written


def _calls(said: str, made: int, field: str) -> tuple[list[ToolCall], list[Problem]]:
    """One call, or a list of calls for the same turn, as JSON text."""
    try:
        several = said.lstrip().startswith("[")
        given = _SEVERAL.decode(said) if several else [_ONE.decode(said)]
        arguments = [bytes(call.arguments) for call in given]
        texts = [msgspec.json.decode(a, type=str) if a[:1] == b'"' else a.decode() for a in arguments]
    except msgspec.ValidationError as error:
        return [], [problem("bad-tool-call", f"a function_call turn: {error}", field=field)]
    except (msgspec.DecodeError, RecursionError):
        return [], [problem("bad-tool-call", "a function_call turn is not JSON", field=field)]
    if not given:
        return [], [problem("bad-tool-call", "a function_call turn calls nothing", field=field)]
    return [
        ToolCall(id=f"call_{made + i}", function=FunctionCall(name=call.name, arguments=text))
        for i, (call, text) in enumerate(zip(given, texts, strict=True))
    ], []
