"""Convert rows to the formats of other tools: ShareGPT, Alpaca, TRL, TRL's unpaired rows (two per pair) and
Parquet. As with hosts, rules declare which kinds of rows and which traits each format supports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.core import needed
from orchestrate.data.dialects import CANONICAL, fields
from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    Kind,
    PreferenceExample,
    RLExample,
    UnpairedExample,
    encode,
    messages_of,
)
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import EVERY_KIND, HostRules, RowTarget, Rule
from orchestrate.data.shapes.chat import calls_in
from orchestrate.types import Severity

# Rows for clouds that Orchestrate has no backend for: Gemini on Vertex AI, and Bedrock's conversation schema.
#
# Both formats separate the system prompt, store arguments as objects, and put tool results into the user's
# turn.

Row = dict[str, Any]


def gemini(example: Example) -> Row:
    """Encode a row for Vertex AI, with the fields `systemInstruction`, `contents` and `tools`. A pair is
    written as `completions` with scores."""
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
    """Move `parameters` to `parametersJsonSchema`, because Google's `parameters` is not plain JSON Schema."""
    schema: Any = function.pop("parameters", None)
    return function | ({"parametersJsonSchema": schema} if schema else {})


def _contents(messages: Sequence[ChatMessage]) -> list[Row]:
    names: dict[str, str] = {}
    turns: list[Row] = []
    for m in messages:
        role = "model" if m.role == "assistant" else "user"
        parts = _gemini_parts(m, names)
        if m.role == "tool" and turns and turns[-1]["parts"] and "functionResponse" in turns[-1]["parts"][-1]:
            turns[-1]["parts"] += parts  # results of one turn's calls share a turn
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
    """Encode a row as `bedrock-conversation-2024`, with messages in the format of Bedrock's Converse API."""
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
    """Return a message's parts as (text, image URL) pairs."""
    if not isinstance(m.content, list):
        return [(m.content or "", None)] if m.content or not m.tool_calls else []
    return [(part.text or "", part.image_url.url if part.image_url else None) for part in m.content]


def data_url(url: str) -> tuple[str, str] | None:
    """Return the media type and the base64 content of a data URL, or `None` for any other URL."""
    head, comma, data = url.partition(",")
    if not comma or not head.startswith("data:"):
        return None
    return head[5:].partition(";")[0], data


def _kind(url: str) -> str:
    ending = url.rpartition(".")[2].lower()
    return f"image/{ending if ending in ('png', 'gif', 'webp') else 'jpeg'}"


def _object(arguments: str) -> msgspec.Raw:
    """Return arguments as raw JSON, because decoding would round large numbers."""
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
"""Function fields that these formats support."""


def not_for_bedrock(example: Example) -> bool:
    """Return whether a row has content that Bedrock's format can't represent: an image at a URL that Bedrock
    can't read, an image with a `detail` setting, or a function with fields other than `_HELD`."""
    return _unheld(example, "s3://")


def not_for_gemini(example: Example) -> bool:
    """Return whether a row has an image or a function that Vertex AI's format can't represent."""
    return _unheld(example, "gs://")


Encode = Callable[[Example], dict[str, Any]]


def _lost(what: str) -> Rule:
    return Rule(
        "not-held", Severity.ERROR, f"{what} cannot be represented", "convert with --allow-loss", lossy=True
    )


def _refused(what: str) -> Rule:
    return Rule("not-held", Severity.ERROR, f"{what} cannot be stored", "pick another format for these rows")


_AS_SYSTEM = Rule(
    "developer-as-system",
    Severity.ERROR,
    "developer messages become system messages",
    "convert with --allow-loss",
    lossy=True,
)
_SPANS = _lost("training on only part of an answer")
_WITHOUT_WEIGHTS = {
    Trait.ROW_WEIGHT: _lost("row weights"),
    Trait.LOSS_SPANS: _SPANS,
    Trait.PARALLEL_TOOL_CALLS: _lost("parallel_tool_calls"),
}
WEIGHTS_BESIDE_OTHERS = _lost("message weights in a file where other rows train on several answers")
"""Rule for files in which some rows train only on the last answer, so that they fit TRL's prompt-completion
format, and other rows don't."""
_TRL = {**_WITHOUT_WEIGHTS, Trait.PARTLY_TRAINED: _lost("message weights")}
_WEIGHTS = {**_WITHOUT_WEIGHTS, Trait.MESSAGE_WEIGHTS: _lost("message weights")}
_JOINED = Rule("parts-joined", Severity.INFO, "text parts are joined into one string", "nothing to do")
_CHAT_ONLY = "only conversations can be represented"
_NO_LABEL = "the labels would be lost, and training would treat undesirable answers like the others"
_UNJUDGED = "the rows do not mark answers as good or bad. Only preference pairs and unpaired rows do"
_CONVERSATIONS: dict[Kind, str | None] = {
    **dict.fromkeys(EVERY_KIND, _CHAT_ONLY),
    "chat": None,
    "unpaired": _NO_LABEL,
}

_CLOUD = {
    **_WEIGHTS,
    Trait.NAMES: _lost("message names"),
    Trait.DEVELOPER: _AS_SYSTEM,
    Trait.FUNCTION_ROLE: _refused("messages with the role 'function'"),
    Trait.SYSTEM_LATER: _refused("system messages after the first message"),
    Trait.LOCAL_IMAGES: _refused("local image files"),
}
FORMATS: dict[str, HostRules] = {
    "sharegpt": HostRules(
        kinds=_CONVERSATIONS,
        traits={
            Trait.PARALLEL_TOOL_CALLS: _lost("parallel_tool_calls"),
            Trait.LOSS_SPANS: _SPANS,
            Trait.REASONING: _lost("thinking"),
            Trait.NAMES: _lost("names of messages"),
            Trait.IMAGES: _refused("images"),
            Trait.DEVELOPER: _AS_SYSTEM,
            Trait.FUNCTION_ROLE: _refused("messages with the role 'function'"),
            Trait.TOOLS: Rule(
                "call-ids-renumbered", Severity.INFO, "tool call ids are renumbered", "nothing to do"
            ),
            Trait.TEXT_WITH_CALLS: _lost("turns with both text and tool calls"),
            Trait.ANSWERS_IN_ANOTHER_ORDER: _refused("tool results in a different order than their calls"),
            Trait.TEXT_PARTS: _JOINED,
        },
    ),
    "alpaca": HostRules(
        kinds={**_CONVERSATIONS, "completion": None},
        traits={
            **_WEIGHTS,
            Trait.REASONING: _lost("thinking"),
            Trait.NAMES: _lost("names of messages"),
            Trait.IMAGES: _refused("images"),
            Trait.TOOLS: _refused("tool calls"),
            Trait.DEVELOPER: _AS_SYSTEM,
            Trait.FUNCTION_ROLE: _refused("messages with the role 'function'"),
            Trait.SYSTEM_LATER: _refused("system messages after the first message"),
            Trait.STARTS_WRONG: _refused("conversations that start with the assistant"),
            Trait.NOT_ALTERNATING: _refused("turns that do not alternate"),
            Trait.TEXT_PARTS: _JOINED,
            Trait.EMPTY_SYSTEM: _lost("an empty system prompt (Alpaca treats it like a missing one)"),
        },
    ),
    "trl": HostRules(kinds=EVERY_KIND, traits=_TRL),
    "unpaired": HostRules(
        kinds={**dict.fromkeys(EVERY_KIND, _UNJUDGED), "preference": None, "unpaired": None},
        traits=_TRL,
    ),
    "gemini": HostRules(
        kinds={**_CONVERSATIONS, "preference": None},
        traits={
            **_CLOUD,
            Trait.SEVERAL_ANSWERS: _refused("preference pairs with several messages in one answer"),
        },
    ),
    "bedrock": HostRules(
        kinds=_CONVERSATIONS,
        traits=_CLOUD,
    ),
    "parquet": HostRules(
        kinds={
            **EVERY_KIND,
            "unpaired": "Parquet output does not support rows with messages and a label",
            "rl": "Parquet requires one type per column, but grader fields can mix types",
        },
        traits={},
    ),
}


def tool(name: str) -> RowTarget:
    """Return the target for a format in `FORMATS`."""
    return RowTarget(name, FORMATS[name], encoder(name), backend=False)


def encoder(name: str) -> Encode:
    """Return a function that encodes an example as a row of a format in `FORMATS` or of `trl-completion`. The
    latter is for conversations in which only the last answer is trained on."""
    return {
        "sharegpt": _sharegpt,
        "alpaca": _alpaca,
        "trl": _trl,
        "trl-completion": _trl_completion,
        "unpaired": _trl,
        "gemini": gemini,
        "bedrock": bedrock,
        "parquet": _canonical,
    }[name]


def _reads_as_calls(example: Example) -> bool:
    """Return whether ShareGPT's reader would take a text for a tool call or its result."""
    return any(
        (m.role == "assistant" and "<tool_call>" in m.text and calls_in(m.text) is not None)
        or (m.role == "tool" and "<tool_response>" in m.text)
        for m in messages_of(example)
    )


def _has_prompt_field(example: Example) -> bool:
    return isinstance(example, RLExample) and "prompt" in example.fields


_NOT_IN_CLOUDS = (
    "images in tool messages, images whose detail is not auto, and function fields other than name, "
    "description and parameters"
)
UNHELD: dict[str, tuple[str, Callable[[Example], bool]]] = {
    "gemini": (f"images that are not gs:// or data: URLs, {_NOT_IN_CLOUDS}", not_for_gemini),
    "bedrock": (f"images that are not s3:// or data: URLs, {_NOT_IN_CLOUDS}", not_for_bedrock),
    "sharegpt": ("text that looks like a tool call or its result", _reads_as_calls),
    "trl": ("a grader field named 'prompt' in a row with messages", _has_prompt_field),
}
"""Content that a format cannot represent and that no trait covers, as {format: (description, function that
detects the content in a row)}. Rows are checked while they are written."""


def _canonical(example: Example) -> dict[str, Any]:
    return fields(example, CANONICAL)


def _sharegpt(example: Example) -> dict[str, Any]:
    assert isinstance(example, ChatExample)  # noqa: S101  the kinds above
    names = {"user": "human", "assistant": "gpt", "system": "system", "developer": "system"}
    turns: list[dict[str, Any]] = []
    for m in example.messages:
        if m.role == "tool":
            turns.append({"from": "observation", "value": m.text})
            continue
        if m.text or not m.tool_calls:
            turns.append(_weighted({"from": names[m.role], "value": m.text}, m))
        if m.tool_calls:
            turns.append(_weighted({"from": "function_call", "value": _calls(m)}, m))
    row: dict[str, Any] = {"conversations": turns}
    if example.tools:
        row["tools"] = encode(example.tools).decode()
    if example.weight is not None:
        row["weight"] = example.weight
    return row


def _weighted(turn: dict[str, Any], m: ChatMessage) -> dict[str, Any]:
    return turn if m.weight is None else turn | {"weight": m.weight}


def _calls(m: ChatMessage) -> str:
    """Return tool calls as JSON. The arguments are copied as raw JSON, because decoding would round large
    numbers."""
    calls = [
        {"name": c.function.name, "arguments": msgspec.Raw((c.function.arguments or "{}").encode())}
        for c in m.tool_calls or ()
    ]
    return encode(calls[0] if len(calls) == 1 else calls).decode()


def _alpaca(example: Example) -> dict[str, Any]:
    if isinstance(example, CompletionExample):
        return {"instruction": example.prompt, "input": "", "output": example.completion}
    assert isinstance(example, ChatExample)  # noqa: S101  the kinds above
    row: dict[str, Any] = {}
    messages = list(example.messages)
    if messages[0].role in ("system", "developer"):
        row["system"] = messages.pop(0).text
    pairs = [[messages[i].text, messages[i + 1].text] for i in range(0, len(messages) - 1, 2)]
    question, answer = pairs.pop()
    row |= {"instruction": question, "input": "", "output": answer}
    if pairs:
        row["history"] = pairs
    return row


def _trl(example: Example) -> dict[str, Any]:
    if isinstance(example, PreferenceExample):
        row = _canonical(example)
        given: dict[str, Any] = row["input"]
        shaped = {
            "prompt": given["messages"],
            "chosen": row["preferred_output"],
            "rejected": row["non_preferred_output"],
        }
        return shaped | ({"tools": example.tools} if example.tools else {})
    row = _canonical(example)
    if isinstance(example, RLExample):
        row = {"prompt": row.pop("messages")} | {name: row[name] for name in row if name != "prompt"}
        for m in row["prompt"]:
            m.pop("weight", None)
        return row
    row.pop("weight", None)
    row.pop("parallel_tool_calls", None)
    said = (row["prompt"], row["completion"]) if isinstance(example, UnpairedExample) else ()
    for m in [*row.get("messages", ()), *chain(*said)]:
        m.pop("weight", None)
    return row


def _trl_completion(example: Example) -> dict[str, Any]:
    row = _trl(example)
    *prompt, answer = row.pop("messages")
    return {"prompt": prompt, "completion": [answer], **row}


def write_parquet(examples: Iterable[Example], path: Path, kind: Kind, *, plain: bool) -> int:
    """Write a Parquet file in batches and return the number of rows. Without `plain`, lists are written as
    JSON text, because tool schemas and multipart content have no common column type. The reader accepts both.
    The loss spans of texts are a column of numbers. Raises `MissingExtra` if pyarrow is not installed."""
    with needed("data", "writing Parquet", "pyarrow"):
        import pyarrow as arrow  # pyright: ignore[reportMissingTypeStubs]
        import pyarrow.parquet as parquet  # pyright: ignore[reportMissingTypeStubs]
    library: Any = arrow
    schema = library.schema(_columns(library, kind, plain))
    written = 0
    with cast("Any", parquet).ParquetWriter(str(path), schema) as out:
        for batch in _batches(map(_canonical, examples), 1000):
            rows = batch if plain or kind == "text" else [_as_text(row) for row in batch]
            out.write_table(library.Table.from_pylist(rows, schema=schema))
            written += len(batch)
    return written


def _columns(library: Any, kind: Kind, plain: bool) -> list[tuple[str, Any]]:
    text, number, flag = library.string(), library.float64(), library.bool_()
    if kind == "chat":
        message = library.struct(
            [("role", text), ("content", text), ("name", text), ("weight", number), ("reasoning", text)]
        )
        messages = library.list_(message) if plain else text
        return [("messages", messages), ("tools", text), ("weight", number), ("parallel_tool_calls", flag)]
    if kind == "preference":
        return [("input", text), ("preferred_output", text), ("non_preferred_output", text)]
    if kind == "completion":
        return [("prompt", text), ("completion", text)]
    spans = library.list_(library.list_(library.int64()))
    return [("text", text)] if plain else [("text", text), ("loss_spans", spans)]


def _as_text(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: encode(value).decode() if isinstance(value, list | dict) else value
        for name, value in row.items()
    }


def _batches(rows: Iterable[dict[str, Any]], size: int) -> Iterable[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
