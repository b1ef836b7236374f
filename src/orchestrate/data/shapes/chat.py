"""Convert message lists to canonical messages leniently, and report every problem in the row. Strict structs
decode clean rows. This module reads all others: aliases, OpenAI's retired `functions` fields, unknown fields
and broken messages."""

from __future__ import annotations

import ast
import json
import warnings
from collections import Counter
from collections.abc import Callable, Container, Sequence
from itertools import zip_longest
from typing import Any, Literal, cast

import msgspec

from orchestrate.data import rows
from orchestrate.data.rows import ROLES, ChatMessage, FunctionCall, Role, ToolCall, problem
from orchestrate.data.shapes import (
    ARGUMENTS,
    CALL,
    arguments_of,
    call_fields,
    is_number,
    loss_of,
    same_call,
    strays,
    unfolded,
    written_call,
)
from orchestrate.data.shapes.unread import meaning_of
from orchestrate.types import Problem, decoding


class _Call(msgspec.Struct):
    name: str
    arguments: msgspec.Raw = msgspec.Raw()
    """Arguments as raw JSON, because decoding would round large numbers."""
    parameters: msgspec.Raw = msgspec.Raw()
    args: msgspec.Raw = msgspec.Raw()
    input: msgspec.Raw = msgspec.Raw()

    def given(self) -> bytes:
        named = (bytes(getattr(self, name)) for name in ARGUMENTS)
        return next((given for given in named if given not in (b"", b"null")), b"{}")


_ONE, _SEVERAL = decoding.decoder(_Call), decoding.decoder(list[_Call])


def tagged(text: str, tag: str) -> tuple[list[str], str]:
    """Return the content between each pair of tags, and the text without them. Uses no regular expression,
    because hostile text could make one take quadratic time."""
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
    """Return the tool calls in a text as a JSON list. Returns `None` if the text contains no call, or
    one that can't be parsed."""
    written, _ = tagged(said, "tool_call")
    calls = [_as_json(call) for call in written]
    return f"[{','.join(call for call in calls if call)}]" if calls and all(calls) else None


def _as_json(call: str) -> str | None:
    """Return a call as JSON. Some data sets use Python's quotes."""
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
    """Parse a tool call, or a list of calls for the same turn, from JSON text."""
    try:
        several = said.lstrip().startswith("[")
        given = _SEVERAL.decode(said) if several else [_ONE.decode(said)]
        arguments = [call.given() for call in given]
        texts = [msgspec.json.decode(a, type=str) if a[:1] == b'"' else a.decode() for a in arguments]
    except msgspec.ValidationError as error:
        return [], [problem("bad-tool-call", f"a function_call turn: {error}", field=field)]
    except (msgspec.DecodeError, RecursionError):
        return [], [problem("bad-tool-call", "a function_call turn is not valid JSON", field=field)]
    if not given:
        return [], [problem("bad-tool-call", "a function_call turn contains no call", field=field)]
    return [
        ToolCall(id=f"call_{made + i}", function=FunctionCall(name=call.name, arguments=text))
        for i, (call, text) in enumerate(zip(given, texts, strict=True))
    ], unread(_left_in(said), (), field)


class _Known(msgspec.Struct, forbid_unknown_fields=True):
    """A call with nothing beside its name and arguments, except an id, as Mistral writes it: results are
    matched by their order."""

    name: str
    arguments: msgspec.Raw
    id: str | None = None
    type: Literal["function"] = "function"


_KNOWN, _ALL_KNOWN = decoding.decoder(_Known), decoding.decoder(list[_Known])


def _left_in(said: str) -> dict[str, Any]:
    """Return the unused fields of the calls in valid JSON text."""
    try:
        _ALL_KNOWN.decode(said) if said.lstrip().startswith("[") else _KNOWN.decode(said)
    except msgspec.ValidationError:
        pass
    else:
        return {}  # most calls
    try:
        value: Any = rows.decode(said)
    except (msgspec.DecodeError, RecursionError):
        return {}  # the arguments are reported later
    left: dict[str, Any] = {}
    for call in cast("list[dict[str, Any]]", value if isinstance(value, list) else [value]):
        plain = {name: given for name, given in call.items() if (name, given) != ("type", "function")}
        left |= strays(plain, call_fields(call, CALL | {"id"}), "tool_calls.")
    return left


def number_calls(messages: Sequence[ChatMessage], place: str) -> list[Problem]:
    """Assign an id to each tool call that has none. Match tool messages without an id to these calls by
    function name, or else in order. If such a tool message follows an answer without tool calls, also parse
    the calls written in the answer's text and assign ids to them. Returns the problems of calls in a
    text."""
    found: list[Problem] = []
    taken = {call.id for m in messages for call in m.tool_calls or ()}
    waiting: list[ToolCall] = []
    made = 0
    for i, (m, after) in enumerate(zip_longest(messages, messages[1:])):
        if m.role == "tool" and m.tool_call_id in (None, "") and waiting:
            call = next((c for c in waiting if c.function.name == m.name), waiting[0])
            waiting.remove(call)
            m.tool_call_id = call.id
            m.name = None if m.name == call.function.name else m.name
        if m.role != "assistant":
            continue
        if after is not None and after.role == "tool" and not after.tool_call_id and not m.tool_calls:
            found += _take_from_text(m, f"{place}[{i}]")
        for call in m.tool_calls or ():
            if not call.id:
                while (id := f"call_{made}") in taken:
                    made += 1
                call.id = id
                taken.add(id)
                waiting.append(call)
    return found


_MARK = "[TOOL_CALLS]"
"""Mistral's marker before a list of calls."""


def _take_from_text(m: ChatMessage, place: str) -> list[Problem]:
    said = m.text
    left: dict[str, Any] = {}
    written, rest = calls_in(said), tagged(said, "tool_call")[1]
    if written is None:
        rest, mark, after = said.partition(_MARK)
        written, left = (after, {}) if mark else _json_calls(said)
        rest = rest if mark else ""
    calls, found = written_calls(written, 0, f"{place}.content") if written else ([], [])
    if not calls:
        return []
    for call in calls:
        call.id = ""
    if m.loss_spans is not None:
        found.append(calls_in_spans(f"{place}.loss_spans"))
    m.content, m.tool_calls = rest.strip() or None, calls
    return [*found, *unread(left, (), f"{place}.content")]


def calls_in_spans(field: str) -> Problem:
    """Return the problem of loss spans in a text that contains tool calls, which are taken out of it."""
    said = (
        "parts of the text are selected for training, but the text contains tool calls, which are taken out"
    )
    fix = "write the calls in tool_calls, and select parts of the text without them"
    return msgspec.structs.replace(problem("bad-weight", said, field=field), fix=fix)


class _Inner(msgspec.Struct):
    function: msgspec.Raw = msgspec.Raw(b"null")


class _Wrapped(msgspec.Struct):
    tool_calls: list[msgspec.Raw]


def _json_calls(said: str) -> tuple[str | None, dict[str, Any]]:
    """Return the calls in a text that is entirely JSON: a call, a list of calls, or either in
    `tool_calls`. Also returns the unused fields around the calls."""
    try:
        calls = decoding.decode(said, type=_Wrapped).tool_calls
        inner = [decoding.decode(bytes(call), type=_Inner).function for call in calls]
        value: dict[str, Any] = rows.decode(said)
    except (msgspec.DecodeError, RecursionError):
        return (said if said.lstrip()[:1] in ("{", "[") else None), {}
    left = strays(value, {"role", "tool_calls"}, "content.")
    for whole, function in zip(value["tool_calls"], inner, strict=True):
        if bytes(function) != b"null":
            left |= strays(whole, {"type", "function"}, "tool_calls.")
    used = [
        bytes(call if bytes(function) == b"null" else function)
        for function, call in zip(inner, calls, strict=True)
    ]
    return f"[{b','.join(used).decode()}]", left


_FIELDS = frozenset(ChatMessage.__struct_fields__)
REASONING = ("reasoning", "reasoning_content", "thinking")
"""Field names for an answer's reasoning."""
_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "bard": "assistant",
    "ai": "assistant",
    "model": "assistant",
    "instruction": "user",
    "function_response": "tool",
    "observation": "tool",
}
"""Roles of other formats. ShareGPT rows are read with these aliases. In chat rows, only `--fix` applies
them."""


def alias(role: Any) -> str | None:
    """Return the known role for an alias (case-insensitive), or `None` if the alias is unknown."""
    if not isinstance(role, str):
        return None
    role = role.strip().lower()
    return role if role in ROLES else _ALIASES.get(role)


def message(role: str, text: str) -> ChatMessage:
    """Build a plain message. `role` must be one of `ROLES`."""
    return ChatMessage(role=cast("Role", role), content=text)


def messages_from(value: Any, place: str) -> tuple[list[ChatMessage], list[Problem]]:
    """Convert a list of objects to canonical messages. A message with problems is reported and left out."""
    if not isinstance(value, list):
        text = "text that is not JSON" if isinstance(value, str) else "not a list of messages"
        return [], [problem("bad-message", f"{place} is {text}", field=place)]
    messages: list[ChatMessage] = []
    found: list[Problem] = []
    legacy = _LegacyCalls()
    for i, whole in enumerate(cast("list[Any]", value)):
        for item in unfolded(whole):
            read, wrong = _message(item, f"{place}[{i}]")
            found += wrong
            if read is not None:
                if read.role == "function" or isinstance(item.get("function_call"), dict):
                    legacy.join(read)
                messages.append(read)
    messages = _answered_apart(messages)
    found += number_calls(messages, place)
    return messages, found


def _answered_apart(messages: list[ChatMessage]) -> list[ChatMessage]:
    """Split a tool message that contains the results of several calls, as a JSON list, into one message
    per call."""
    made: list[ChatMessage] = []
    for i, m in enumerate(messages):
        calls = (messages[i - 1].tool_calls if i else None) or []
        is_alone = m.role == "tool" and messages[i + 1 : i + 2] and messages[i + 1].role != "tool"
        results = _results(m.text, calls) if is_alone and len(calls) > 1 and not m.tool_call_id else None
        made += [ChatMessage(role="tool", content=said) for said in results] if results else [m]
    return made


def _results(text: str, calls: Sequence[ToolCall]) -> list[str] | None:
    """Return the content of each result in call order, or `None` if the text is not a list of results."""
    try:
        held: Any = rows.decode(text) if text.lstrip()[:1] == "[" else None
    except (msgspec.DecodeError, RecursionError):
        return None
    given = cast("list[Any]", held) if isinstance(held, list) else []
    items = [cast("dict[str, Any]", item) for item in given if isinstance(item, dict) and "content" in item]
    if len(items) != len(given) or len(items) != len(calls):
        return None
    if any(item.keys() - {"tool_call_id", "name", "content", "role"} for item in items):
        return None
    names = [item.get("name", call.function.name) for item, call in zip(items, calls, strict=True)]
    if names != [call.function.name for call in calls]:
        return None
    said = [item["content"] for item in items]
    return [one if isinstance(one, str) else rows.spaced(one) for one in said]


class _LegacyCalls:
    """Conversion of OpenAI's retired function calls. They have no ids, and a message with the role
    function refers to a call by name. Each call gets an id, and each result becomes a tool message with
    that id."""

    def __init__(self) -> None:
        self._made: Counter[str] = Counter()
        self._open: dict[str, str] = {}

    def join(self, m: ChatMessage) -> None:
        if m.role == "function" and m.name in self._open:
            m.role, m.tool_call_id, m.name = "tool", self._open.pop(m.name), None
        for call in (m.tool_calls or []) if m.role == "assistant" else []:
            name = call.function.name
            self._made[name] += 1
            if self._made[name] > 1 and call.id == f"call_{name}":
                call.id = f"{call.id}_{self._made[name]}"
            self._open[name] = call.id


def _message(item: Any, place: str) -> tuple[ChatMessage | None, list[Problem]]:
    if not isinstance(item, dict):
        return None, [problem("bad-message", "the message is not an object", field=place)]
    raw = cast("dict[str, Any]", item)
    if (given := raw.get("function_call")) and (call := written_call(given)) is not None:
        raw = raw | {"function_call": call}  # some data sets write it as JSON text
    fields = {key: value for key, value in raw.items() if key in _FIELDS and value is not None}
    found = _legacy(raw, fields, place)
    for key in REASONING:
        if isinstance(raw.get(key), str):
            fields.setdefault("reasoning", raw[key])
    thoughts = {key for key in REASONING if raw.get(key) == fields.get("reasoning")}
    said: Any = fields.get("content")
    loss = loss_of(raw, raw.get("role"), said if isinstance(said, str) else "", place)
    found += loss.found
    if loss.weight is not None:
        fields.setdefault("weight", loss.weight)
    if loss.spans is not None:
        fields["loss_spans"] = loss.spans
    known = (_FIELDS - {*REASONING}) | thoughts | {"function_call"} | loss.used
    found += unread(raw | loss.strays, known, place)
    if fields.get("role") not in ROLES:
        shown = msgspec.json.encode(raw.get("role")).decode()[:60]
        return None, [*found, problem("bad-role", f"unknown role {shown}", field=f"{place}.role")]
    if (wrong := _content_problem(fields.get("content"), place)) is not None:
        return None, [*found, wrong]
    if wrongs := _tool_call_problems(fields, place):
        return None, [*found, *wrongs]
    try:
        return decoding.convert(fields, ChatMessage), found
    except msgspec.ValidationError as error:
        return None, [*found, problem("bad-message", str(error).replace("$", place), field=place)]


def unread(item: dict[str, Any], known: Container[str], place: str) -> list[Problem]:
    """Report the unused fields of a message or turn. A field that changes what the model learns is reported
    as an error."""
    left = strays(item, known, "")
    for call in (item.get("function_call"), *_items(item.get("tool_calls"))):
        if isinstance(call, dict):
            named = cast("dict[str, Any]", call)
            function: Any = named.get("function")
            if isinstance(function, dict):
                left |= strays(named, _CALL, "tool_calls.")
                named = cast("dict[str, Any]", function)
            prefix = "tool_calls." if function is not named else "tool_calls.function."
            left |= strays(named, call_fields(named, _CALL), prefix)
    found: list[Problem] = []
    for name in sorted(left):
        if (meaning := meaning_of(name, left[name])) is not None:
            message_ = f"{name} has no effect here, so training would ignore {meaning}"
            found.append(problem("lost-meaning", message_, field=place))
            del left[name]
    if left:
        found.append(problem("extra-fields", f"unused: {', '.join(sorted(left)[:8])}", field=place))
    return found


_CALL = CALL | {"id", "type", "function", "parsed_arguments"}


def _items(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _content_problem(content: Any, place: str) -> Problem | None:
    if content is None or isinstance(content, str):
        return None
    if not isinstance(content, list):
        kind = "an object" if isinstance(content, dict) else "another type"
        return problem(
            "bad-content",
            f"the content must be text or a list of parts (got {kind})",
            field=f"{place}.content",
        )
    for j, part in enumerate(cast("list[Any]", content)):
        kind = cast("dict[str, Any]", part).get("type") if isinstance(part, dict) else None
        if kind not in ("text", "image_url"):
            message = f"a part has the type {str(kind)[:40]!r}, but only text and images are supported"
            return problem("bad-content", message, field=f"{place}.content[{j}]")
        named = cast("dict[str, Any]", part)
        if "image_url" in named and kind == "image_url" and not isinstance(named["image_url"], dict):
            message = "image_url is not an object. Write {url: ...} (--fix converts it if it is a URL)"
            return problem("bad-content", message, field=f"{place}.content[{j}].image_url")
    return None


def _legacy(raw: dict[str, Any], fields: dict[str, Any], place: str) -> list[Problem]:
    """Convert OpenAI's retired `function_call` to a tool call."""
    call: Any = raw.get("function_call")
    if not call:
        return []
    if not isinstance(call, dict):
        message_ = "function_call is not an object with a name and arguments"
        return [problem("bad-tool-call", message_, field=f"{place}.function_call")]
    named = cast("dict[str, Any]", call)
    if given := raw.get("tool_calls"):
        calls = [cast("dict[str, Any]", c) for c in _items(given) if isinstance(c, dict)]
        if len(_items(given)) == len(calls) == 1 and same_call(calls[0], named):
            return []
        said = "the message has both tool_calls and function_call, and they differ"
        both = problem("bad-tool-call", said, field=f"{place}.function_call")
        return [msgspec.structs.replace(both, fix="remove function_call, or write all calls in tool_calls")]
    fields["tool_calls"] = [{"id": f"call_{named.get('name')}", "type": "function", "function": named}]
    return [problem("legacy-functions", field=f"{place}.function_call")]


def _tool_call_problems(fields: dict[str, Any], place: str) -> list[Problem]:
    """Check and normalize `tool_calls`. Arguments given as an object are encoded as a string."""
    calls: Any = fields.get("tool_calls")
    if calls is None:
        return []
    if not isinstance(calls, list):
        return [problem("bad-tool-call", "tool_calls is not a list", field=f"{place}.tool_calls")]
    normal: list[dict[str, Any]] = []
    for j, item in enumerate(cast("list[Any]", calls)):
        call = cast("dict[str, Any]", item) if isinstance(item, dict) else {}
        function: Any = call.get("function", call)
        named = cast("dict[str, Any]", function) if isinstance(function, dict) else {}
        arguments = arguments_of(named, "{}")
        if isinstance(arguments, dict):
            arguments = rows.encode(arguments).decode()
        id: Any = call.get("id")
        texts = ("" if id is None else id, named.get("name"), arguments)
        if not all(isinstance(text, str) for text in texts):
            message = "a tool call needs function.name and function.arguments, and an id string"
            return [problem("bad-tool-call", message, field=f"{place}.tool_calls[{j}]")]
        normal.append({"id": texts[0], "function": {"name": texts[1], "arguments": texts[2]}})
    if normal:
        fields["tool_calls"] = normal
    else:
        del fields["tool_calls"]
    return []


def tools_from(row: dict[str, Any]) -> tuple[list[dict[str, Any]] | None, list[Problem]]:
    """Return the row's `tools` (or the retired `functions`), given as a list or as JSON text."""
    tools, found = _schemas(row, "tools")
    functions, wrong = _schemas(row, "functions")
    found += wrong
    if functions and not tools:
        tools = functions
        found.append(problem("legacy-functions", field="functions"))
    elif functions and tools != functions:
        message = "`functions` is ignored because `tools` is present"
        found.append(problem("lost-meaning", message, field="functions"))
    if tools is None:
        return None, found
    seen: set[str] = set()
    wrapped = [_with_object(tool, seen) for tool in tools]
    read = cast("list[dict[str, Any]]", with_types(wrapped, lambda kind: _json_type(kind, seen)))
    if seen:
        message = f"tool types are treated as JSON Schema types: {', '.join(sorted(seen))}"
        found.append(problem("python-types", message, field="tools"))
    return read, found


def _schemas(row: dict[str, Any], name: str) -> tuple[list[dict[str, Any]] | None, list[Problem]]:
    """Return the tools in a field, given as a list or as JSON text."""
    value: Any = row.get(name)
    if isinstance(value, str):
        try:
            value = rows.decode(value) if value.strip() else None
        except (msgspec.DecodeError, RecursionError):
            return None, [problem("bad-tools", f"`{name}` is a string that is not valid JSON", field=name)]
    items = _items(value)
    if value is not None and (not isinstance(value, list) or not all(isinstance(i, dict) for i in items)):
        return None, [problem("bad-tools", f"`{name}` is not a list of objects", field=name)]
    return None if value is None else [_wrapped(tool) for tool in items], []


_PYTHON = {
    "dict": "object", "str": "string", "int": "integer", "float": "number", "bool": "boolean",
    "list": "array", "tuple": "array",
}  # fmt: skip
"""Python type names that occur in the tool schemas of some common datasets."""
_VALUES = frozenset({"default", "enum", "const", "example", "examples"})
"""Fields of a schema that contain values, not schemas."""
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
"""Fields of a schema that contain schemas by name."""


def _with_object(tool: dict[str, Any], seen: set[str]) -> dict[str, Any]:
    """Wrap parameters that are bare properties with Python types in an object schema."""
    function: Any = tool.get("function")
    given: Any = cast("dict[str, Any]", function).get("parameters") if isinstance(function, dict) else None
    bare = cast("dict[str, Any]", given) if isinstance(given, dict) else {}
    types = [cast("dict[str, Any]", p).get("type") if isinstance(p, dict) else None for p in bare.values()]
    if not types or not all(isinstance(t, str) and t.partition(",")[0] in _PYTHON for t in types):
        return tool
    seen.add("parameters that are not an object schema")
    return tool | {"function": function | {"parameters": {"type": "object", "properties": given}}}


def with_types(schema: Any, change: Callable[[str], str]) -> Any:
    """Return a schema with each type changed. Values in the schema, such as defaults, stay the same."""
    if isinstance(schema, list):
        return [with_types(item, change) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    made: dict[str, Any] = {}
    for name, value in cast("dict[str, Any]", schema).items():
        if name in _NAMED and isinstance(value, dict):  # whose keys are names, not fields of a schema
            named = cast("dict[str, Any]", value)
            made[name] = {key: with_types(one, change) for key, one in named.items()}
        elif name == "type" and isinstance(value, str):
            made[name] = change(value)
        else:
            made[name] = value if name in _VALUES else with_types(value, change)
    return made


def _json_type(kind: str, seen: set[str]) -> str:
    """Return JSON Schema's name of a Python type, which is added to `seen`. Other types are unchanged."""
    plain = kind.removesuffix(", optional")
    if plain not in _PYTHON:
        return kind
    seen.add(plain)
    return _PYTHON[plain]


def weight_from(row: dict[str, Any], found: list[Problem], field: str = "weight") -> int | float | None:
    """Return the weight of a row or a turn. A weight that is not a number is reported in `found`."""
    weight: Any = row.get("weight")
    if weight is None or is_number(weight):
        return weight
    found.append(problem("bad-weight", "the weight is not a number", field=field))
    return None


def parallel_from(row: dict[str, Any], found: list[Problem], field: str | None = None) -> bool | None:
    """Return the row's `parallel_tool_calls`. Values other than true and false are reported in `found`."""
    parallel: Any = row.get("parallel_tool_calls")
    if parallel is None or isinstance(parallel, bool):
        return parallel
    message = "parallel_tool_calls is ignored because it is neither true nor false"
    found.append(problem("extra-fields", message, field=field))
    return None


def _wrapped(tool: dict[str, Any]) -> dict[str, Any]:
    """Wrap a bare function schema in OpenAI's format. ShareGPT's tool variants, Anthropic (`input_schema`)
    and OpenAI's Responses (`type` next to the name) use bare schemas."""
    if "function" in tool or not isinstance(tool.get("name"), str):
        return tool
    if tool.get("type", "function") not in ("function", "custom"):
        return tool  # a built-in tool of the host
    function = {name: value for name, value in tool.items() if name not in ("type", "cache_control")}
    if "input_schema" in function:
        function["parameters"] = function.pop("input_schema")
    return {"type": "function", "function": function}
