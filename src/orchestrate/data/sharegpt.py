"""ShareGPT conversations, with the tool-calling variants: `function_call` and `observation` turns."""

from __future__ import annotations

from typing import Any, cast

import msgspec

from orchestrate.data.chat import alias, message, messages_from, tools_from
from orchestrate.data.examples import ChatExample, ChatMessage, FunctionCall, ToolCall
from orchestrate.data.problems import problem
from orchestrate.types import Problem

_ANSWERS = ("observation", "tool", "function_response", "tool_response")


def sharegpt(row: dict[str, Any]) -> tuple[ChatExample | None, list[Problem]]:
    turns: Any = row["conversations"]
    if not isinstance(turns, list):
        message_ = "conversations is not a list"
        return None, [problem("bad-message", message_, field="conversations")]
    items = cast("list[Any]", turns)
    if items and all(isinstance(item, dict) and "role" in item for item in items):
        messages, found = messages_from(items, "conversations")
    else:
        messages, found = _turns(items)
    if isinstance(row.get("system"), str) and row["system"]:
        messages.insert(0, message("system", row["system"]))
    tools, wrong = tools_from(row)
    weight = row.get("weight")
    if weight is not None and not isinstance(weight, int | float):
        found.append(problem("bad-weight", "the row's weight is not a number", field="weight"))
        weight = None
    return ChatExample(messages=messages, tools=tools, weight=weight), found + wrong


def _turns(items: list[Any]) -> tuple[list[ChatMessage], list[Problem]]:
    """Calls have no ids in this format: they are numbered, and answers take them in turn."""
    messages: list[ChatMessage] = []
    found: list[Problem] = []
    open_calls: list[str] = []
    made = 0
    for i, item in enumerate(items):
        place = f"conversations[{i}]"
        turn = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        who, said = turn.get("from"), turn.get("value")
        if not isinstance(said, str):
            found.append(problem("bad-content", "value is not text", field=f"{place}.value"))
        elif who == "function_call":
            calls, wrong = _calls(said, made, f"{place}.value")
            found += wrong
            made += len(calls)
            open_calls += [call.id for call in calls]
            if calls:
                messages.append(ChatMessage(role="assistant", tool_calls=calls))
        elif who in _ANSWERS:
            answered = open_calls.pop(0) if open_calls else None
            messages.append(ChatMessage(role="tool", content=said, tool_call_id=answered))
        elif (role := alias(who)) is None:
            shown = msgspec.json.encode(who).decode()[:60]
            found.append(problem("bad-role", f"the speaker {shown} is not known", field=f"{place}.from"))
        else:
            spoken = message(role, said)
            weight = turn.get("weight")
            if isinstance(weight, int | float) and not isinstance(weight, bool):
                spoken.weight = weight
            messages.append(spoken)
    return messages, found


def _calls(said: str, made: int, field: str) -> tuple[list[ToolCall], list[Problem]]:
    """One call, or a list of calls for the same turn, as JSON text."""
    try:
        value = msgspec.json.decode(said)
    except (msgspec.DecodeError, RecursionError):
        return [], [problem("bad-tool-call", "a function_call turn is not JSON", field=field)]
    items: list[Any] = cast("list[Any]", value) if isinstance(value, list) else [value]
    calls: list[ToolCall] = []
    for item in items:
        call = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        name = call.get("name")
        if not isinstance(name, str):
            return [], [problem("bad-tool-call", "a function_call turn names no function", field=field)]
        arguments: Any = call.get("arguments", {})
        text = arguments if isinstance(arguments, str) else msgspec.json.encode(arguments).decode()
        function = FunctionCall(name=name, arguments=text)
        calls.append(ToolCall(id=f"call_{made + len(calls)}", function=function))
    return calls, []
