"""Row formats of cloud providers with their own field names: Gemini and Vertex AI (`contents`) and Bedrock's
conversation schema.

Sources: the types of google-genai (`Content`, `Part`, `FunctionDeclaration`) and botocore's description of
Bedrock's Converse (`Message`, `ContentBlock`, `ToolConfiguration`). Training rows use the same schema.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping
from typing import Any, cast

from msgspec.structs import replace

from orchestrate.data import rows
from orchestrate.data.rows import ChatExample, PreferenceExample, problem
from orchestrate.data.shapes import NOTHING, Read, Row, RowFormat, call, image, named, replaced, strays
from orchestrate.data.shapes.chat import messages_from, tools_from, unread, with_types
from orchestrate.types import Problem

_SYSTEM = ("systemInstruction", "system_instruction")


_FREE = ("args", "response", "parameters", "parameters_json_schema")


def _snake(value: Any, found: list[Problem]) -> Any:
    """Convert camel case field names to snake case, because Google's client accepts both. Names inside
    tool arguments are unchanged. A field that an object has in both spellings is reported in `found`."""
    if isinstance(value, list):
        return [_snake(item, found) for item in cast("list[Any]", value)]
    if not isinstance(value, dict):
        return value
    made: Row = {}
    for name, held in cast("Row", value).items():
        key = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
        read = held if key in _FREE else _snake(held, found)
        if made.get(key) in NOTHING:
            made[key] = read
        elif read not in NOTHING and read != made[key]:
            message = f"an object has {key} in snake case and in camel case, and they differ"
            found.append(replace(problem("lost-meaning", message, field=name), fix="remove one of them"))
    return made


def _gemini_part(part: Row, message: Row) -> Row | None:
    """Convert a part of the content. Calls and reasoning are added to the message. Unknown parts are
    returned unchanged, to be reported."""
    kind = next((name for name in _GEMINI_PARTS if part.get(name) is not None), None)
    if kind is not None:  # other parts are errors anyway
        message |= strays(part, {kind, "thought", "thought_signature"}, "parts.")
    held: Any = part.get(kind or "")
    inside = cast("Row", held) if isinstance(held, dict) else {}
    message |= strays(inside, _GEMINI_PARTS.get(kind or "", ()), f"parts.{kind}.")
    if kind == "function_call" and inside:
        made = call(inside.get("id") or "", inside.get("name"), inside.get("args"))
        message.setdefault("tool_calls", []).append(made)
        return None
    if kind == "text" and isinstance(held, str):
        if part.get("thought") is not True:
            return {"type": "text", "text": held}
        message["reasoning"] = message.get("reasoning", "") + held
        return None
    if kind in ("inline_data", "file_data") and inside:
        mime = str(inside.get("mime_type"))
        if not mime.startswith("image/"):
            return {"type": mime}
        return image(inside.get("file_uri") or f"data:{mime};base64,{inside.get('data')}")
    return {"type": next(iter(part), "(empty)")} | part


_GEMINI_PARTS: Mapping[str, Container[str]] = {
    "function_call": {"id", "name", "args"},
    "function_response": {"id", "name", "response"},
    "inline_data": {"mime_type", "data", "display_name"},
    "file_data": {"mime_type", "file_uri", "display_name"},
    "text": (),
}
"""Supported kinds of parts, with the fields used from each."""


def _gemini_messages(contents: Any, place: str) -> tuple[list[Row], list[Problem]]:
    made: list[Row] = []
    if not isinstance(contents, list):
        return [], [problem("bad-message", f"{place} is not a list of contents", field=place)]
    for i, item in enumerate(cast("list[Any]", contents)):
        turn = cast("Row", item) if isinstance(item, dict) else {}
        parts: Any = turn.get("parts")
        if not isinstance(parts, list) or not all(isinstance(p, dict) for p in cast("list[Any]", parts)):
            return [], [
                problem("bad-message", "an entry in contents has no parts list", field=f"{place}[{i}]")
            ]
        role = turn.get("role", "user")
        message: Row = {"role": "assistant" if role == "model" else role}
        message |= strays(turn, {"role", "parts"}, f"{place}.")
        content: list[Row] = []
        for part in cast("list[Row]", parts):
            if isinstance(answer := part.get("function_response"), dict):
                read = {"function_response", "thought", "thought_signature"}
                made.append(_gemini_answer(cast("Row", answer)) | strays(part, read, "parts."))
            elif (shown := _gemini_part(part, message)) is not None:
                content.append(shown)
        if content or message.keys() & {"tool_calls", "reasoning"} or not parts:
            made.append(message | {"content": _plain(content)})
        elif made:
            made[-1] |= _without_role(message)
    _pair(made)
    return made, []


def _without_role(message: Row) -> Row:
    """Return all fields except the role."""
    return {name: value for name, value in message.items() if name != "role"}


def _pair(messages: list[Row]) -> None:
    """Match results to calls. Most rows have no ids, so a result without one belongs to the first open
    call of its function."""
    waiting: list[Row] = []
    made = 0
    for m in messages:
        for one in cast("list[Row]", m.get("tool_calls", [])):
            if not one["id"]:
                one["id"], made = f"call_{made}", made + 1
            waiting.append(one)
        if m["role"] == "tool" and "of" in m:
            id, name = m["tool_call_id"], m.pop("of")
            fits = (c for c in waiting if (c["id"] == id if id else c["function"]["name"] == name))
            if (found := next(fits, None)) is not None:
                m["tool_call_id"] = found["id"]
                waiting.remove(found)


def _gemini_answer(answer: Row) -> Row:
    """Convert a tool result. `of` is the function's name, which `_pair` uses."""
    given: Any = answer.get("response")
    said: Any = given
    if isinstance(given, dict) and given.keys() <= {"result", "output"} and len(cast("Row", given)) == 1:
        said = next(iter(cast("Row", given).values()))
    text = said if isinstance(said, str) else _json(given)
    named = {"role": "tool", "tool_call_id": answer.get("id"), "of": answer.get("name"), "content": text}
    return named | strays(answer, _GEMINI_PARTS["function_response"], "parts.function_response.")


def _json(value: Any) -> str:
    return rows.spaced(value)


def _plain(content: list[Row]) -> Any:
    """Return a single text as a string, and several parts unchanged."""
    if len(content) == 1 and content[0].keys() == {"type", "text"}:
        return content[0]["text"]
    return content or None


def _gemini_tools(row: Row) -> tuple[list[Row] | None, list[Problem]]:
    tools: list[Row] = []
    left: Row = {}
    for group in cast("list[Any]", row.get("tools") or []):
        declared: Any = cast("Row", group).get("function_declarations") if isinstance(group, dict) else None
        if not isinstance(declared, list) or not all(
            isinstance(d, dict) for d in cast("list[Any]", declared)
        ):
            return None, [problem("bad-tools", "only function declarations are used", field="tools")]
        left |= strays(cast("Row", group), {"function_declarations"}, "tools.")
        for each in cast("list[Row]", declared):
            each |= {"parameters": with_types(each.get("parameters"), str.lower)}  # Google writes STRING
            left |= strays(each, _DECLARED - replaced(each, _SCHEMAS), "function_declarations.")
            function = {name: value for name, value in each.items() if name in ("name", "description")}
            schema = next((each[name] for name in _SCHEMAS if each.get(name)), None)
            function |= {"parameters": schema} if schema else {}
            tools.append({"type": "function", "function": function})
    read, found = tools_from({"tools": tools or None})
    return read, [*unread(left, (), "tools"), *found]


_SCHEMAS = ("parameters", "parameters_json_schema")
_DECLARED = frozenset({"name", "description", *_SCHEMAS})


def _gemini(row: Row) -> Read:
    found: list[Problem] = []
    row = _snake({name: row[name] for name in row if name in _GEMINI}, found)
    given, bad = _gemini_messages(row["contents"], "contents")
    found += bad
    if (system := row.get("system_instruction")) is not None:
        content = {"parts": [{"text": system}]} if isinstance(system, str) else system
        first, wrong = _gemini_messages([content], "systemInstruction")
        given = [*(m | {"role": "system"} for m in first), *given]
        found += wrong
    messages, wrong = messages_from(given, "contents")
    tools, bad = _gemini_tools(row)
    return ChatExample(messages=messages, tools=tools), [*found, *wrong, *bad]


def _gemini_preference(row: Row) -> Read:
    """Read Vertex AI's preference format: two completions with scores, of which the higher score is
    preferred."""
    example, found = _gemini(row)
    given = [cast("Row", c) if isinstance(c, dict) else {} for c in cast("list[Any]", row["completions"])]
    ranked = sorted(given, key=lambda c: -(c["score"] if isinstance(c.get("score"), int | float) else 0))
    if len(ranked) != 2 or ranked[0].get("score") == ranked[1].get("score"):
        message = "completions must contain two answers with different scores"
        return None, [*found, problem("bad-message", message, field="completions")]
    sides: list[Any] = []
    for side in ranked:
        raw, wrong = _gemini_messages([_snake(side.get("completion"), found)], "completions")
        found += unread(side, {"score", "completion"}, "completions")
        said, more = messages_from(raw, "completions")
        sides.append(said)
        found = [*found, *wrong, *more]
    if not isinstance(example, ChatExample):
        return None, found
    made = PreferenceExample(
        prompt=example.messages, preferred=sides[0], rejected=sides[1], tools=example.tools
    )
    return made, found


def _bedrock(row: Row) -> Read:
    given: list[Row] = []
    if row.get("system"):
        first: Row = {"role": "system"}
        content = _bedrock_content(row["system"], first)
        given.append(first | {"content": content})
    for item in cast("list[Any]", row["messages"]):
        turn = cast("Row", item) if isinstance(item, dict) else {}
        message: Row = {"role": turn.get("role")} | strays(turn, {"role", "content"}, "messages.")
        answers: list[Row] = []
        blocks: list[Any] = (
            cast("list[Any]", turn["content"]) if isinstance(turn.get("content"), list) else []
        )
        rest: list[Any] = []
        for block in blocks:
            result: Any = cast("Row", block).get("toolResult") if isinstance(block, dict) else None
            if isinstance(result, dict):
                named = cast("Row", result)
                answer = {"role": "tool", "tool_call_id": named.get("toolUseId")}
                answer |= strays(named, {"toolUseId", "content"}, "toolResult.")
                answer |= strays(cast("Row", block), {"toolResult", "type"}, "content.")
                said = _bedrock_content(named.get("content"), answer)
                answers.append(answer | {"content": said})
            else:
                rest.append(block)
        content = _bedrock_content(rest, message)
        if content is not None or "tool_calls" in message or not answers:
            answers.append(message | {"content": content})
        else:
            answers[-1] |= _without_role(message)
        given += answers
    messages, wrong = messages_from(given, "messages")
    tools, bad = _bedrock_tools(row.get("toolConfig"))
    return ChatExample(messages=messages, tools=tools or None), [*wrong, *bad]


def _bedrock_tools(config: Any) -> tuple[list[Row], list[Problem]]:
    given: Any = cast("Row", config).get("tools") if isinstance(config, dict) else None
    tools: list[Row] = []
    left = strays(cast("Row", config), {"tools"}, "toolConfig.") if isinstance(config, dict) else {}
    for item in cast("list[Any]", given or []):
        spec: Any = cast("Row", item).get("toolSpec") if isinstance(item, dict) else None
        if not isinstance(spec, dict):
            return [], [problem("bad-tools", "only tools with a toolSpec are used", field="toolConfig")]
        named = cast("Row", spec)
        left |= strays(cast("Row", item), {"toolSpec"}, "tools.")
        left |= strays(named, {"name", "description", "strict", "inputSchema"}, "toolSpec.")
        function: Row = {n: named[n] for n in ("name", "description", "strict") if n in named}
        schema = cast("Row", named.get("inputSchema") or {})
        left |= strays(schema, {"json"}, "inputSchema.")
        function["parameters"] = schema.get("json") or {}
        tools.append({"type": "function", "function": function})
    return tools, unread(left, (), "toolConfig")


def _bedrock_content(blocks: Any, message: Row) -> Any:
    """Convert content blocks. A single text becomes a string. Calls, reasoning and unknown fields are
    added to the message."""
    content: list[Row] = []
    for item in cast("list[Any]", blocks) if isinstance(blocks, list) else []:
        given = cast("Row", item) if isinstance(item, dict) else {}
        block = {name: value for name, value in given.items() if value is not None}
        kind = next((name for name in _BLOCKS if name in block), "")
        held: Any = block.get(kind)
        if kind:  # other blocks are errors anyway
            message |= strays(block, {kind, "type"}, "content.")
        if isinstance(held, dict) and kind != "json":
            message |= strays(cast("Row", held), _BLOCKS[kind], f"{kind}.")
        if isinstance(block.get("text"), str):
            content.append({"type": "text", "text": block["text"]})
        elif "json" in block:
            content.append({"type": "text", "text": _json(block["json"])})
        elif isinstance(use := block.get("toolUse"), dict):
            named = cast("Row", use)
            made = call(named.get("toolUseId"), named.get("name"), named.get("input"))
            message.setdefault("tool_calls", []).append(made)
        elif isinstance(held := block.get("image"), dict):
            source: Row = cast("Row", held).get("source") or {}
            message |= strays(source, {"bytes", "s3Location"}, "image.source.")
            where: Row = source.get("s3Location") or {}
            data = f"data:image/{cast('Row', held).get('format')};base64,{source.get('bytes')}"
            content.append(image(data if source.get("bytes") else where.get("uri")))
        elif (thought := _bedrock_thought(block)) is not None:
            message |= strays(thought, {"text"}, "reasoningText.")
            texts = (message.get("reasoning"), thought["text"])
            message["reasoning"] = "\n\n".join(text for text in texts if text)
        else:
            content.append({"type": next(iter(block), "(empty)")} | block)
    return _plain(content)


def _bedrock_thought(block: Row) -> Row | None:
    held: Any = block.get("reasoningContent")
    thought: Any = cast("Row", held).get("reasoningText") if isinstance(held, dict) else None
    if not isinstance(thought, dict) or not isinstance(cast("Row", thought).get("text"), str):
        return None
    return cast("Row", thought)


_BLOCKS: Mapping[str, Container[str]] = {
    "text": (),
    "json": (),
    "toolUse": {"toolUseId", "name", "input", "type"},
    "image": {"format", "source"},
    "reasoningContent": {"reasoningText"},
}
"""Supported kinds of blocks, with the fields used from each."""


def _is_bedrock(row: Row) -> bool:
    if not isinstance(row.get("messages"), list):
        return False
    return str(row.get("schemaVersion", "")).startswith("bedrock-conversation")


def _is_gemini(row: Row) -> bool:
    contents: Any = row.get("contents")
    if not isinstance(contents, list) or not contents or not isinstance(contents[0], dict):
        return False
    return "parts" in contents[0]


_GEMINI = frozenset({"contents", "tools", *_SYSTEM})
SHAPES = (
    RowFormat(
        "gemini-preference",
        "preference",
        _GEMINI | {"completions"},
        lambda row: _is_gemini(row) and isinstance(row.get("completions"), list),
        _gemini_preference,
    ),
    RowFormat("gemini", "chat", _GEMINI, _is_gemini, _gemini),
    RowFormat("bedrock", "chat", named("schemaVersion system messages toolConfig"), _is_bedrock, _bedrock),
)
