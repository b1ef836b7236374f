"""Rows for clouds that no backend here drives: Gemini on Vertex AI and Bedrock's conversation schema.

Both keep the system text apart, hold arguments as objects, and put answers to calls into the user's turn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrate.data.rows.examples import (
    ChatExample,
    ChatMessage,
    Example,
    PreferenceExample,
    messages_of,
)

Row = dict[str, Any]


def gemini(example: Example) -> Row:
    """`systemInstruction`, `contents` and `tools`; a pair as Vertex AI's `completions` with scores."""
    if isinstance(example, PreferenceExample):
        sides = ((1.0, example.preferred), (0.0, example.rejected))
        row = _gemini(example.prompt, example.tools)
        row["completions"] = [{"score": score, "completion": _contents(said)[0]} for score, said in sides]
        return row
    assert isinstance(example, ChatExample)  # noqa: S101  the kinds that the format holds
    return _gemini(example.messages, example.tools)


def _gemini(messages: Sequence[ChatMessage], tools: list[Row] | None) -> Row:
    row: Row = {}
    first = messages[0] if messages else None
    if first is not None and first.role in ("system", "developer"):
        row["systemInstruction"] = {"role": "system", "parts": [{"text": first.text}]}
        messages = messages[1:]
    row["contents"] = _contents(messages)
    if tools:
        declared = [{n: tool["function"][n] for n in _HELD if n in tool["function"]} for tool in tools]
        row["tools"] = [{"functionDeclarations": [_with_schema(each) for each in declared]}]
    return row


def _with_schema(function: Row) -> Row:
    """JSON Schema has a field of its own; `parameters` is Google's dialect of it."""
    schema: Any = function.pop("parameters", None)
    return function | ({"parametersJsonSchema": schema} if schema else {})


def _contents(messages: Sequence[ChatMessage]) -> list[Row]:
    names: dict[str, str] = {}
    turns: list[Row] = []
    for m in messages:
        role = "model" if m.role == "assistant" else "user"
        parts = _gemini_parts(m, names)
        if m.role == "tool" and turns and turns[-1]["parts"] and "functionResponse" in turns[-1]["parts"][-1]:
            turns[-1]["parts"] += parts  # answers to one turn's calls stand in one turn
        else:
            turns.append({"role": role, "parts": parts})
    return turns


def _gemini_parts(m: ChatMessage, names: dict[str, str]) -> list[Row]:
    if m.role == "tool":
        call = m.tool_call_id or ""
        answer = {"id": call, "name": names.get(call, ""), "response": {"result": m.text}}
        return [{"functionResponse": answer}]
    parts: list[Row] = [{"text": m.reasoning, "thought": True}] if m.reasoning else []
    for text, url in _pieces(m):
        if url is None:
            parts.append({"text": text})
        elif (inline := data_url(url)) is not None:
            parts.append({"inlineData": {"mimeType": inline[0], "data": inline[1]}})
        else:
            parts.append({"fileData": {"mimeType": _kind(url), "fileUri": url}})
    for call in m.tool_calls or ():
        names[call.id] = call.function.name
        args = _object(call.function.arguments)
        parts.append({"functionCall": {"id": call.id, "name": call.function.name, "args": args}})
    return parts


def bedrock(example: Example) -> Row:
    """`bedrock-conversation-2024`, whose messages are those of Converse."""
    assert isinstance(example, ChatExample)  # noqa: S101  the kinds that the format holds
    row: Row = {"schemaVersion": "bedrock-conversation-2024"}
    messages = example.messages
    if messages[0].role in ("system", "developer"):
        row["system"] = [{"text": messages[0].text}]
        messages = messages[1:]
    row["messages"] = turns = list[Row]()
    for m in messages:
        role = "assistant" if m.role == "assistant" else "user"
        blocks = _blocks(m)
        if m.role == "tool" and turns and "toolResult" in turns[-1]["content"][-1]:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    if example.tools:
        row["toolConfig"] = {"tools": [{"toolSpec": _spec(tool["function"])} for tool in example.tools]}
    return row


def _spec(function: Row) -> Row:
    described = {"description": function["description"]} if function.get("description") else {}
    schema: Row = function.get("parameters") or {"type": "object", "properties": {}}
    return {"name": function["name"], **described, "inputSchema": {"json": schema}}


def _blocks(m: ChatMessage) -> list[Row]:
    if m.role == "tool":
        return [{"toolResult": {"toolUseId": m.tool_call_id or "", "content": [{"text": m.text}]}}]
    blocks: list[Row] = []
    if m.reasoning:
        blocks.append({"reasoningContent": {"reasoningText": {"text": m.reasoning}}})
    for text, url in _pieces(m):
        if url is None:
            blocks.append({"text": text})
            continue
        inline = data_url(url)
        source = {"bytes": inline[1]} if inline else {"s3Location": {"uri": url}}
        kind = (inline[0] if inline else _kind(url)).partition("/")[2]
        blocks.append({"image": {"format": kind, "source": source}})
    for call in m.tool_calls or ():
        use = {"toolUseId": call.id, "name": call.function.name, "input": _object(call.function.arguments)}
        blocks.append({"toolUse": use})
    return blocks


def _pieces(m: ChatMessage) -> list[tuple[str, str | None]]:
    """Texts, and images by their URL."""
    if not isinstance(m.content, list):
        return [(m.content or "", None)] if m.content or not m.tool_calls else []
    return [(part.text or "", part.image_url.url if part.image_url else None) for part in m.content]


def data_url(url: str) -> tuple[str, str] | None:
    """The kind and the base64 of a data URL."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:"):
        return None
    return head[5:].partition(";")[0], data


def _kind(url: str) -> str:
    ending = url.rpartition(".")[2].lower()
    return f"image/{ending if ending in ('png', 'gif', 'webp') else 'jpeg'}"


def _object(arguments: str) -> msgspec.Raw:
    """As they are written: decoding would round large numbers."""
    return msgspec.Raw((arguments or "{}").encode())


def _unheld(example: Example, start: str) -> bool:
    tools = example.tools if isinstance(example, ChatExample | PreferenceExample) else None
    if any(value for tool in tools or () for name, value in tool["function"].items() if name not in _HELD):
        return True
    images = [
        (m.role, part.image_url)
        for m in messages_of(example)
        for part in (m.content if isinstance(m.content, list) else ())
        if part.image_url is not None
    ]
    return any(
        role == "tool" or i.detail not in (None, "auto") or not i.url.startswith(("data:", start))
        for role, i in images
    )


_HELD = ("name", "description", "parameters")
"""What these formats say of a function."""


def not_for_bedrock(example: Example) -> bool:
    """Whether an image lies where Bedrock does not read it or asks for a detail, or a function says more than
    is held of it."""
    return _unheld(example, "s3://")


def not_for_gemini(example: Example) -> bool:
    """As `not_for_bedrock`, of what Vertex AI reads."""
    return _unheld(example, "gs://")
