"""Calls of tools that lie in the text of an answer, and calls that have no ids."""

from __future__ import annotations

import ast
import json
import warnings
from collections.abc import Sequence
from itertools import zip_longest

import msgspec

from orchestrate.data.rows.examples import ChatMessage, FunctionCall, ToolCall
from orchestrate.data.rows.problems import problem
from orchestrate.types import Problem, decoding


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    """As they are written: decoding would round large numbers."""


_ONE, _SEVERAL = decoding.decoder(_Call), decoding.decoder(list[_Call])


def tagged(text: str, tag: str) -> tuple[list[str], str]:
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
    written, _ = tagged(said, "tool_call")
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


def written_calls(said: str, made: int, field: str) -> tuple[list[ToolCall], list[Problem]]:
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


def number_calls(messages: Sequence[ChatMessage]) -> None:
    """Gives ids to calls without any, those in the text of an answer that a tool's message follows included;
    the tools' messages take them in turn."""
    taken = {call.id for m in messages for call in m.tool_calls or ()}
    waiting: list[str] = []
    made = 0
    for m, after in zip_longest(messages, messages[1:]):
        if m.role == "tool" and m.tool_call_id in (None, "") and waiting:
            m.tool_call_id = waiting.pop(0)
        if m.role != "assistant":
            continue
        if after is not None and after.role == "tool" and not after.tool_call_id and not m.tool_calls:
            _take_from_text(m)
        for call in m.tool_calls or ():
            if not call.id:
                while (id := f"call_{made}") in taken:
                    made += 1
                call.id = id
                taken.add(id)
                waiting.append(id)


_MARK = "[TOOL_CALLS]"
"""Mistral's, before a list of calls."""


def _take_from_text(m: ChatMessage) -> None:
    said = m.text
    written, rest = calls_in(said), tagged(said, "tool_call")[1]
    if written is None:
        rest, mark, after = said.partition(_MARK)
        written = after if mark else _whole(said)
        rest = rest if mark else ""
    calls, wrong = written_calls(written, 0, "") if written else ([], [])
    if calls and not wrong:
        for call in calls:
            call.id = ""
        m.content, m.tool_calls = rest.strip() or None, calls


def _whole(said: str) -> str | None:
    """The calls of a text that is nothing but JSON: a call, a list of them, or either in `tool_calls`."""
    try:
        value = decoding.decode(said, type=_Wrapped)
    except (msgspec.DecodeError, RecursionError):
        return said if said.lstrip()[:1] in ("{", "[") else None
    calls = [call if call.function is None else call.function for call in value.tool_calls]
    return msgspec.json.encode([{"name": c.name, "arguments": c.arguments} for c in calls]).decode()


class _Inner(msgspec.Struct):
    name: str = ""
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    function: _Call | None = None


class _Wrapped(msgspec.Struct):
    tool_calls: list[_Inner]
