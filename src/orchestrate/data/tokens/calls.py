"""Parse tool calls as models write them in their answers.

A chat template only shows how earlier calls of a conversation were written, so a table here lists the markers
that open and close a block of calls in each model family. A block that cannot be parsed remains part of the
text.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

from orchestrate.data.rows import FunctionCall, ToolCall

Tools = Sequence[Mapping[str, Any]] | None
_NAME = r"[A-Za-z_][\w.\-]*"


class ParsedCall(NamedTuple):
    name: str
    arguments: Any
    """Arguments as an object or as a JSON string."""
    id: str | None = None


def read(inside: str, tools: Tools) -> list[ParsedCall]:
    """Parse the calls in a block, using the first notation that can parse the entire block."""
    inside = inside.strip()
    for notation in (of_json, _sections, _gemma, _mistral):
        if calls := notation(inside):
            return calls
    for typed in (_functions, _invocations, _keys_and_values):
        if calls := typed(inside, tools):
            return calls
    return of_python(inside)


def of_json(text: str) -> list[ParsedCall]:
    """Parse calls written as JSON: one or more objects such as `{"name": ..., "arguments": {...}}`, or a list
    of them. Field names differ between models."""
    if fenced := re.fullmatch(r"```(?i:json)?(.*)```", text, re.DOTALL):
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
    raise ValueError(f"{word} is not JSON")


def _of_json(value: object) -> ParsedCall | None:
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
        return ParsedCall(name, arguments) if name and isinstance(arguments, dict) else None
    if held is None and given.keys() - {"name", "tool_name", "id", "tool_call_id", "type"}:
        return None
    arguments: Any = given[held] if held else {}
    arguments = {} if arguments in (None, "") else arguments
    return ParsedCall(_plain(name), arguments, id) if isinstance(arguments, dict | str) else None


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


def _sections(text: str) -> list[ParsedCall]:
    """Parse the format of Kimi and DeepSeek."""
    for pattern in _SECTIONS:
        if found := _all(pattern, text):
            groups = [one.groupdict() for one in found]
            calls = [_with_json(g["name"], g["arguments"], g.get("id")) for g in groups]
            return [call for call in calls if call] if all(calls) else []
    return []


_MISTRAL = re.compile(
    rf"(?P<name>{_NAME})(?:\[CALL_ID\](?P<id>\w+))?(?:\[ARGS\])?\s*(?P<arguments>\{{.*\}})", re.DOTALL
)


def _mistral(text: str) -> list[ParsedCall]:
    """Parse Mistral's format: a name and an object."""
    found = _MISTRAL.fullmatch(text)
    call = _with_json(found["name"], found["arguments"], found["id"]) if found else None
    return [call] if call else []


def _with_json(name: str, arguments: str, id: str | None = None) -> ParsedCall | None:
    try:
        value: Any = json.loads(arguments.strip() or "{}", parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return ParsedCall(_plain(name), arguments.strip() or "{}", id) if isinstance(value, dict) else None


_GEMMA = re.compile(rf"call:(?P<name>{_NAME})(?P<arguments>\{{.*\}})", re.DOTALL)
_GEMMA_TEXT = re.compile(r"<\|\"\|>(.*?)<\|\"\|>|<escape>(.*?)<escape>", re.DOTALL)


def _gemma(text: str) -> list[ParsedCall]:
    """Parse Gemma's format: objects with bare keys, and markers instead of quotes."""
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
    return [ParsedCall(call.name, json.loads(call.arguments))] if call else []


def _with_quoted_keys(text: str) -> str:
    keys = re.sub(r"([{,]\s*)([^\s:{},\[\]\"]+)\s*:", r'\1"\2":', text)
    return re.sub(r"\bNone\b", "null", re.sub(r"\bTrue\b", "true", re.sub(r"\bFalse\b", "false", keys)))


_FUNCTION = re.compile(r"<function=([^\n>]+)>(.*?)</function>", re.DOTALL)
_PARAMETER = re.compile(r"<parameter=([^\n>]+)>(.*?)</parameter>", re.DOTALL)


def _functions(text: str, tools: Tools) -> list[ParsedCall]:
    """Parse `<function=NAME><parameter=KEY>VALUE</parameter></function>`, or a JSON object inside the
    function tags."""
    calls: list[ParsedCall] = []
    for found in _all(_FUNCTION, text):
        name, inside = _plain(found[1].strip('"')), found[2].strip()
        if inside.startswith("{") and (call := _with_json(name, inside)):
            calls.append(call)
            continue
        values = _all(_PARAMETER, inside)
        if inside and not values:
            return []
        pairs = [(one[1].strip(), _line(one[2])) for one in values]
        calls.append(ParsedCall(name, {key: _typed(value, name, key, tools) for key, value in pairs}))
    return calls


_INVOKED = re.compile(
    r"<(?P<space>[^\s<>/]*?)invoke name=\"(?P<name>[^\"]+)\">(.*?)</(?P=space)invoke>", re.DOTALL
)
_NAMED = re.compile(
    r"<(?P<space>[^\s<>/]*?)parameter name=\"(?P<key>[^\"]+)\"(?: string=\"(?P<text>true|false)\")?>"
    r"(?P<value>.*?)</(?P=space)parameter>",
    re.DOTALL,
)


def _invocations(text: str, tools: Tools) -> list[ParsedCall]:
    """Parse `<invoke name="NAME"><parameter name="KEY">VALUE</parameter></invoke>`, with or without a
    prefix."""
    calls: list[ParsedCall] = []
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
        calls.append(ParsedCall(name, arguments))
    return calls


_KEYS_AND_VALUES = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.DOTALL)


def _keys_and_values(text: str, tools: Tools) -> list[ParsedCall]:
    """Parse GLM's format: a name, then alternating keys and values."""
    name, mark, rest = text.partition("<arg_key>")
    name = name.strip()
    if not re.fullmatch(_NAME, name):
        return []
    pairs = _all(_KEYS_AND_VALUES, mark + rest)
    if mark and not pairs:
        return []
    return [ParsedCall(_plain(name), {one[1]: _typed(one[2], name, one[1], tools) for one in pairs})]


def _all(pattern: re.Pattern[str], text: str) -> list[re.Match[str]]:
    """Return all matches if there is nothing between them."""
    found = list(pattern.finditer(text))
    return found if found and not pattern.sub("", text).strip() else []


def _line(value: str) -> str:
    """Remove the line breaks between a value and its markers."""
    return value.removeprefix("\n").removesuffix("\n")


def _typed(value: str, tool: str, key: str, tools: Tools) -> Any:
    """Parse an unquoted value: text if the tool's schema says so, otherwise JSON if it is valid."""
    if parameter_types(tools).get(tool, {}).get(key) == "string":
        return value
    try:
        return json.loads(value, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return {"True": True, "False": False, "None": None}.get(value.strip(), value)


def parameter_types(tools: Tools) -> dict[str, dict[str, Any]]:
    """Return the type of each parameter of each tool."""
    found: dict[str, dict[str, Any]] = {}
    for tool in tools or ():
        function = _table(tool.get("function")) or tool
        fields = _table(_table(function.get("parameters")).get("properties"))
        found[str(function.get("name"))] = {key: _table(value).get("type") for key, value in fields.items()}
    return found


def _table(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def of_python(text: str) -> list[ParsedCall]:
    """Parse calls written in Python: `[f(a=1), g(b="x")]`, or one call on each line."""
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
                raise ValueError("no call")  # noqa: TRY004  the same error as ast.literal_eval
            yield node


def _of_node(node: ast.Call) -> ParsedCall:
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise ValueError("a call without argument names")
    name = ast.unparse(node.func)
    if not re.fullmatch(_NAME, name):
        raise ValueError("no tool name")
    return ParsedCall(name.removesuffix(".call"), {str(k.arg): _literal(k.value) for k in node.keywords})


def _literal(node: ast.expr) -> Any:
    """Evaluate a Python or JSON literal. Raises `ValueError` for any other expression."""
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


_BLOCKS = {
    "<tool_call>": "</tool_call>",  # Qwen, Hermes, GLM, Nemotron 3, Granite 4, SmolLM3
    "<tool_calls>": "</tool_calls>",  # Hunyuan, Jamba, MiniMax M1
    "<seed:tool_call>": "</seed:tool_call>",
    "<minimax:tool_call>": "</minimax:tool_call>",
    "<TOOLCALL>": "</TOOLCALL>",  # Nemotron 2
    "<function_calls>": "</function_calls>",  # OLMo 3
    "<atem:function_calls>": "</atem:function_calls>",  # Muse
    "<｜DSML｜function_calls>": "</｜DSML｜function_calls>",  # DeepSeek 3.2
    "<｜DSML｜tool_calls>": "</｜DSML｜tool_calls>",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",  # DeepSeek to 3.1
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",  # Kimi
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4-mini; Granite 3 without an end
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|tool_call>": "<tool_call|>",  # Gemma 4
    "<start_function_call>": "<end_function_call>",  # FunctionGemma
    "<|START_ACTION|>": "<|END_ACTION|>",  # Command A, Command R7B
    "Action: ```json": "```",  # Command R
    "<|tools_prefix|>": "<|tools_suffix|>",  # Apertus
    "<|action_start|><|plugin|>": "<|action_end|>",  # InternLM
    "<|python_start|>": "<|python_end|>",  # Llama 4
    "<|python_tag|>": "",  # Llama 3
    "[TOOL_CALLS]": "",  # Mistral
    "functools[": "",  # Phi-4-mini
    "<function=": "</function>",  # Qwen3-Coder without a block, Llama 3.1
}
"""Markers that open and close a block. The closing marker is empty if the block extends to the next one, or
to the end."""
_INCLUDED = {"functools[": "[", "<function=": "<function="}
"""Maps an opening marker to the part of it that belongs to the call. The closing marker of such a block
belongs to the call too."""
CODE_MARK = "<|python_tag|>"
_INTERPRETERS = ("code_interpreter", "ipython", "python")
_SPACE = re.compile(r"\s*")
_OPENINGS = re.compile("|".join(re.escape(opening) for opening in sorted(_BLOCKS, key=len, reverse=True)))


def taken_out(text: str, tools: Tools = None, *, cut: bool = False) -> tuple[str, list[ToolCall]]:
    """Extract the tool calls from a text. Returns the text without the calls, and the parsed calls. The
    parameter types in `tools` determine which values are strings in notations without quotes. If `tools` is
    set, calls without markers are also parsed, but only if the text contains nothing else. Set `cut` if the
    text may end in the middle of a call."""
    found: list[ParsedCall] = []
    kept: list[str] = []
    at = 0
    for opening in _OPENINGS.finditer(text):
        if opening.start() < at:
            continue
        inside, after = _block(text, opening, cut)
        calls = _calls(opening[0], inside, tools) if inside is not None else []
        if calls:
            kept.append(text[at : opening.start()])
            found += calls
            at = after
    rest = "".join([*kept, text[at:]])
    if not found and tools and (calls := _bare(rest.strip(), tools)):
        found, rest = calls, ""
    return rest, [
        ToolCall(id=call.id or f"call_{n}", function=FunctionCall(name=call.name, arguments=_written(call)))
        for n, call in enumerate(found)
    ]


def _calls(mark: str, inside: str, tools: Tools) -> list[ParsedCall]:
    """Parse the calls in a block. If the tools include an interpreter, a Llama 3 code block is a call of
    that tool."""
    calls, offered = read(inside, tools), parameter_types(tools)
    known = bool(calls) and all(call.name in offered for call in calls)
    interpreter = next((name for name in _INTERPRETERS if name in offered), None)
    if mark != CODE_MARK or known or interpreter is None or not inside.strip():
        return calls
    fields = list(offered[interpreter])
    return [ParsedCall(interpreter, {fields[0] if len(fields) == 1 else "code": inside.strip()})]


def settled(text: str, marks: Iterable[str], offered: bool) -> str:
    """Return the longest prefix of an unfinished text that later text can't turn into part of a tool call or
    of one of the `marks`. Returns an empty string if tools were `offered` and the text starts like JSON,
    because the entire text may be a call."""
    if offered and text.lstrip().startswith(("{", "[")):
        return ""
    if opening := _OPENINGS.search(text):
        return text[: opening.start()]
    marks = (*_BLOCKS, *marks)
    held = (n for n in range(min(len(text), max(map(len, marks))), 0, -1) if _begins(text[-n:], marks))
    return text[: len(text) - next(held, 0)]


def _begins(end: str, marks: Iterable[str]) -> bool:
    return any(mark.startswith(end) for mark in marks)


def _written(call: ParsedCall) -> str:
    given = call.arguments
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _block(text: str, opening: re.Match[str], cut: bool) -> tuple[str | None, int]:
    """Return the content of a block and the position after it, or no content if the block doesn't end."""
    mark, closing = opening[0], _BLOCKS[opening[0]]
    begin = opening.end() - len(_INCLUDED.get(mark, ""))
    if (end := _end_of_json(text, begin)) is not None:  # a value may contain the closing marker
        after = _after_space(text, end)
        if text.startswith(closing, after) or after == len(text):
            return text[begin:end], min(after + len(closing), len(text))
    end = text.find(closing, opening.end()) if closing else -1
    if end >= 0:
        whole = end + len(closing)
        return text[begin : whole if mark in _INCLUDED else end], whole
    end = text.find(mark, opening.end())
    if end < 0 and cut:
        return None, begin
    end = len(text) if end < 0 else end
    return text[begin:end], end


def _end_of_json(text: str, start: int) -> int | None:
    """Return the end of the JSON values that start at a position."""
    end: int | None = None
    at = _after_space(text, start)
    try:
        while text.startswith(("{", "["), at):
            end = json.JSONDecoder().raw_decode(text, at)[1]
            at = _after_space(text, end)
            at = _after_space(text, at + 1) if text.startswith((";", ","), at) else at
    except (ValueError, RecursionError):
        return None
    return end


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _bare(text: str, tools: Sequence[Mapping[str, Any]]) -> list[ParsedCall]:
    """Parse calls without markers, if all of them call offered tools."""
    calls = (of_json(text) if text[:1] in ("{", "[") else []) or (of_python(text) if text[:1] == "[" else [])
    return calls if calls and all(call.name in parameter_types(tools) for call in calls) else []
