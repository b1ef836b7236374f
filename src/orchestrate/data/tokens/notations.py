"""The notations in which models write calls of tools: a few forms of JSON, XML and Python."""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

Tools = Sequence[Mapping[str, Any]] | None
_NAME = r"[A-Za-z_][\w.\-]*"


class Call(NamedTuple):
    name: str
    arguments: Any
    """An object, or its JSON as text."""
    id: str | None = None


def read(inside: str, tools: Tools) -> list[Call]:
    """The calls of a block, in the first notation that takes all of it."""
    inside = inside.strip()
    for notation in (of_json, _sections, _gemma, _mistral):
        if calls := notation(inside):
            return calls
    for typed in (_functions, _invocations, _keys_and_values):
        if calls := typed(inside, tools):
            return calls
    return of_python(inside)


def of_json(text: str) -> list[Call]:
    """`{"name": ..., "arguments": {...}}`, several of them, or a list; the names of the fields differ."""
    if fenced := re.fullmatch(r"```(?:json)?(.*)```", text, re.DOTALL):
        text = fenced[1].strip()
    if text[:1] not in ("{", "["):
        return []
    values: list[Any] = []
    at = 0
    try:
        while at < len(text):
            value, end = json.JSONDecoder(parse_constant=_no_number).raw_decode(text, at)
            values += cast("list[Any]", value) if isinstance(value, list) else [value]
            at = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n;,"))
    except (ValueError, RecursionError):
        return []
    calls = [_of_json(value) for value in values]
    return [call for call in calls if call] if all(calls) else []


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no JSON")


def _of_json(value: object) -> Call | None:
    if not isinstance(value, dict):
        return None
    given = cast("dict[str, Any]", value)
    id = next((str(given[key]) for key in ("id", "tool_call_id") if given.get(key)), None)
    if isinstance(inner := given.get("function"), dict):
        given = cast("dict[str, Any]", inner)
    name = next((given[key] for key in ("name", "tool_name") if isinstance(given.get(key), str)), None)
    held = next((key for key in ("arguments", "parameters", "args") if key in given), None)
    if name is None or not name.strip():
        [(name, arguments)] = given.items() if len(given) == 1 else [("", None)]
        return Call(name, arguments) if name and isinstance(arguments, dict) else None
    if held is None and given.keys() - {"name", "tool_name", "id", "tool_call_id", "type"}:
        return None
    arguments: Any = given[held] if held else {}
    arguments = {} if arguments in (None, "") else arguments
    return Call(_plain(name), arguments, id) if isinstance(arguments, dict | str) else None


def _plain(name: str) -> str:
    return name.strip().removeprefix("functions.")


_SECTIONS = (
    re.compile(
        r"<\|tool_call_begin\|>\s*(?P<id>(?:functions\.)?(?P<name>[^<\s:]+)(?::\d+)?)\s*"
        r"<\|tool_call_argument_begin\|>(?P<arguments>.*?)<\|tool_call_end\|>",
        re.DOTALL,
    ),
    re.compile(
        r"<｜tool▁call▁begin｜>\w+<｜tool▁sep｜>(?P<name>[^\n<]+)\n```json\n"
        r"(?P<arguments>.*?)\n```(?:<｜tool▁call▁end｜>|$)",
        re.DOTALL,
    ),
    re.compile(
        r"<｜tool▁call▁begin｜>(?P<name>[^\n<]+)<｜tool▁sep｜>(?P<arguments>.*?)(?:<｜tool▁call▁end｜>|$)",
        re.DOTALL,
    ),
)


def _sections(text: str) -> list[Call]:
    """Kimi's and DeepSeek's."""
    for pattern in _SECTIONS:
        if found := _all(pattern, text):
            groups = [one.groupdict() for one in found]
            calls = [_with_json(g["name"], g["arguments"], g.get("id")) for g in groups]
            return [call for call in calls if call] if all(calls) else []
    return []


_MISTRAL = re.compile(
    rf"(?P<name>{_NAME})(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?\s*(?P<arguments>\{{.*\}})", re.DOTALL
)


def _mistral(text: str) -> list[Call]:
    """A name and an object."""
    found = _MISTRAL.fullmatch(text)
    call = _with_json(found["name"], found["arguments"], found["id"]) if found else None
    return [call] if call else []


def _with_json(name: str, arguments: str, id: str | None = None) -> Call | None:
    try:
        value: Any = json.loads(arguments.strip() or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return Call(_plain(name), arguments.strip() or "{}", id) if isinstance(value, dict) else None


_GEMMA = re.compile(rf"call:(?P<name>{_NAME})(?P<arguments>\{{.*\}})", re.DOTALL)
_GEMMA_TEXT = re.compile(r"<\|\"\|>(.*?)<\|\"\|>|<escape>(.*?)<escape>", re.DOTALL)


def _gemma(text: str) -> list[Call]:
    """Objects with bare keys, and marks in the place of quotes."""
    found = _GEMMA.fullmatch(text)
    if not found:
        return []
    pieces: list[str] = []
    at = 0
    for quoted in _GEMMA_TEXT.finditer(found["arguments"]):
        pieces += [
            _with_quoted_keys(found["arguments"][at : quoted.start()]),
            json.dumps(quoted[1] or quoted[2] or ""),
        ]
        at = quoted.end()
    pieces.append(_with_quoted_keys(found["arguments"][at:]))
    call = _with_json(found["name"], "".join(pieces))
    return [Call(call.name, json.loads(call.arguments))] if call else []


def _with_quoted_keys(text: str) -> str:
    keys = re.sub(r"([{,]\s*)([^\s:{},\[\]\"]+)\s*:", r'\1"\2":', text)
    return re.sub(r"\bNone\b", "null", re.sub(r"\bTrue\b", "true", re.sub(r"\bFalse\b", "false", keys)))


_FUNCTION = re.compile(r"<function=([^\n>]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^\n>]+)>(.*?)</parameter>", re.DOTALL)


def _functions(text: str, tools: Tools) -> list[Call]:
    """`<function=NAME><parameter=KEY>VALUE</parameter></function>`, or a JSON object inside."""
    calls: list[Call] = []
    for found in _all(_FUNCTION, text):
        name, inside = _plain(found[1].strip('"')), found[2].strip()
        if inside.startswith("{") and (call := _with_json(name, inside)):
            calls.append(call)
            continue
        values = _all(_PARAMETER, inside)
        if inside and not values:
            return []
        pairs = [(one[1].strip(), _line(one[2])) for one in values]
        calls.append(Call(name, {key: _typed(value, name, key, tools) for key, value in pairs}))
    return calls


_INVOKED = re.compile(
    r"<(?P<space>[^\s<>/]*?)invoke name=\"(?P<name>[^\"]+)\">(.*?)</(?P=space)invoke>", re.DOTALL
)
_NAMED = re.compile(
    r"<(?P<space>[^\s<>/]*?)parameter name=\"(?P<key>[^\"]+)\"(?: string=\"(?P<text>true|false)\")?>"
    r"(?P<value>.*?)</(?P=space)parameter>",
    re.DOTALL,
)


def _invocations(text: str, tools: Tools) -> list[Call]:
    """`<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>`, each with a prefix or none."""
    calls: list[Call] = []
    for found in _all(_INVOKED, text):
        name, inside = found["name"], found[3].strip()
        if inside.startswith("{") and (call := _with_json(name, inside)):
            calls.append(call)
            continue
        values = _all(_NAMED, inside)
        if inside and not values:
            return []
        arguments = {
            one["key"]: one["value"]
            if one["text"] == "true"
            else _typed(_line(one["value"]), name, one["key"], tools)
            for one in values
        }
        calls.append(Call(name, arguments))
    return calls


_KEYS_AND_VALUES = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def _keys_and_values(text: str, tools: Tools) -> list[Call]:
    """GLM's: a name, and keys and values in turn."""
    name, mark, rest = text.partition("<arg_key>")
    name = name.strip()
    if not re.fullmatch(_NAME, name):
        return []
    pairs = _all(_KEYS_AND_VALUES, mark + rest)
    if mark and not pairs:
        return []
    return [Call(_plain(name), {one[1]: _typed(one[2], name, one[1], tools) for one in pairs})]


def _all(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """The matches, if there is nothing between them."""
    found = list(pattern.finditer(text))
    return found if found and not pattern.sub("", text).strip() else []


def _line(value: str) -> str:
    """Without the line breaks that set a value apart from its marks."""
    return value.removeprefix("\n").removesuffix("\n")


def _typed(value: str, tool: str, key: str, tools: Tools) -> Any:
    """A value that was written without quotes: a text where the tool says so, else JSON if it is some."""
    if parameter_types(tools).get(tool, {}).get(key) == "string":
        return value
    try:
        return json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(value.strip(), value)


def parameter_types(tools: Tools) -> dict[str, dict[str, Any]]:
    """The type of each parameter of each tool."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools or ():
        function = _table(tool.get("function")) or tool
        fields = _table(_table(function.get("parameters")).get("properties"))
        found[str(function.get("name"))] = {key: _table(value).get("type") for key, value in fields.items()}
    return found


def _table(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def of_python(text: str) -> list[Call]:
    """`[f(a=1), g(b="x")]`, or a call a line."""
    try:
        with warnings.catch_warnings(action="ignore"):
            body = ast.parse(text).body
        nodes = list(_called(body))
        return [_of_node(node) for node in nodes]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return []


def _called(body: Sequence[ast.stmt]) -> Iterator[ast.Call]:
    for statement in body:
        value = statement.value if isinstance(statement, ast.Expr) else None
        for node in value.elts if isinstance(value, ast.List | ast.Tuple) else [value]:
            if not isinstance(node, ast.Call):
                raise ValueError("no call")  # noqa: TRY004  as ast says of what it cannot read
            yield node


def _of_node(node: ast.Call) -> Call:
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("a call without the names of its arguments")
    name = ast.unparse(node.func)
    if not re.fullmatch(_NAME, name):
        raise ValueError("no name of a tool")
    return Call(name.removesuffix(".call"), {str(k.arg): _literal(k.value) for k in node.keywords})


def _literal(node: ast.expr) -> Any:
    """As Python writes a value, or as JSON does. Raises `ValueError` for what is no value."""
    match node:
        case ast.Name(id="true" | "false" | "null" as word):
            return {"true": True, "false": False, "null": None}[word]
        case ast.List(elts=items) | ast.Tuple(elts=items):
            return [_literal(item) for item in items]
        case ast.Dict(keys=keys, values=values) if all(isinstance(key, ast.Constant) for key in keys):
            return {str(ast.literal_eval(k)): _literal(v) for k, v in zip(keys, values, strict=True) if k}
        case _:
            value = ast.literal_eval(node)
            json.dumps(value, allow_nan=False)
            return value
