"""OpenAI's Responses API, `/v1/responses`, on top of chat completions: text and function calls, complete or
streamed."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Annotated, Any, Literal, cast

from pydantic import Field
from starlette.responses import JSONResponse, Response, StreamingResponse

from orchestrate.http.wire import Body, HostError
from orchestrate.http.wire.openai import chat

_TEXTS = ("input_text", "output_text", "text")


class TextOptions(Body):
    format: dict[str, Any] | None = None
    verbosity: str | None = None


class ReasoningOptions(Body):
    effort: str | None = None
    summary: str | None = None
    generate_summary: str | None = None


class ResponseRequest(Body):
    """A strictly validated request. The fields after the blank line are accepted because they don't affect
    answers. `chat_body` rejects unsupported fields that would affect them."""

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    metadata: dict[str, str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    previous_response_id: str | None = None
    conversation: Any = None
    prompt: Any = None
    background: bool | None = None
    context_management: Any = None
    moderation: Any = None
    image: Any = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: list[str] | None = None

    stream_options: dict[str, Any] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    max_tool_calls: int | None = None
    background_options: Any = None
    access_programs: Any = None
    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Any = None
    prompt_cache_retention: str | None = None


REFUSED = {
    "previous_response_id": "responses are not stored. Send the entire conversation as input",
    "conversation": "conversations are not stored. Send the entire conversation as input",
    "prompt": "stored prompts are not supported. Send the text as input or instructions",
    "background": "background mode is not available",
    "context_management": "the server never truncates the input",
    "moderation": "the server does not moderate answers",
    "image": "only text output is supported",
    "top_logprobs": "log-probabilities are only available from /v1/chat/completions",
}
"""Unsupported fields that would change an answer, each with its error message."""


def chat_body(asked: ResponseRequest) -> dict[str, Any]:
    """Convert the request to a chat request. Raises `HostError` 400 for anything that a chat request cannot
    express."""
    _require_known(asked)
    messages: list[dict[str, Any]] = []
    if asked.instructions:
        messages.append({"role": "system", "content": asked.instructions})
    items = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    for place, item in enumerate(items):
        _take(messages, item, f"input.{place}")
    given = {
        "max_completion_tokens": asked.max_output_tokens,
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "tools": [_tool(tool, n) for n, tool in enumerate(asked.tools or [])] or None,
        "tool_choice": _choice(asked.tool_choice),
        "parallel_tool_calls": asked.parallel_tool_calls,
        "response_format": _format(asked.text.format if asked.text else None),
        "verbosity": asked.text.verbosity if asked.text else None,
        "reasoning_effort": asked.reasoning.effort if asked.reasoning else None,
    }
    kept = {name: value for name, value in given.items() if value is not None}
    return {"model": asked.model, "messages": messages, **kept}


def _require_known(asked: ResponseRequest) -> None:
    refused = {name: why for name, why in REFUSED.items() if getattr(asked, name)}
    if asked.reasoning and (asked.reasoning.summary or asked.reasoning.generate_summary):
        refused["reasoning.summary"] = "the server does not summarize reasoning"
    if "message.output_text.logprobs" in (asked.include or ()):
        refused["include"] = REFUSED["top_logprobs"]
    for name, why in refused.items():
        raise HostError(400, f"{name} is not supported: {why}", param=name, code="unsupported_parameter")


def _format(wanted: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Convert the response format to that of a chat request."""
    if wanted is None or wanted.get("type") in ("text", "json_object"):
        return dict(wanted) if wanted and wanted["type"] != "text" else None
    if wanted.get("type") != "json_schema":
        raise HostError(400, "the format must be text, json_object or json_schema", param="text.format.type")
    named = ("name", "description", "schema", "strict")
    return {"type": "json_schema", "json_schema": {n: wanted[n] for n in named if n in wanted}}


def _take(messages: list[dict[str, Any]], item: Mapping[str, Any], place: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _text(item.get("content"), place)})
    elif kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        if messages and messages[-1].get("tool_calls"):
            messages[-1]["tool_calls"].append(call)
        elif messages and messages[-1]["role"] == "assistant":
            messages[-1]["tool_calls"] = [call]
        else:
            messages.append({"role": "assistant", "content": None, "tool_calls": [call]})
    elif kind == "function_call_output":
        output = _text(item.get("output"), place)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind != "reasoning":
        raise HostError(400, f"items of type {kind!r} are not supported", param=place)


def _text(content: Any, place: str) -> str:
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for part in cast("list[Any]", content) if isinstance(content, list) else [content]:
        block = cast("dict[str, Any]", part) if isinstance(part, dict) else {}
        if block.get("type") not in _TEXTS or not isinstance(block.get("text"), str):
            raise HostError(400, "only text is supported", param=f"{place}.content")
        texts.append(block["text"])
    return "".join(texts)


def _tool(tool: Mapping[str, Any], place: int) -> dict[str, Any]:
    if tool.get("type") != "function" or not isinstance(tool.get("name"), str):
        raise HostError(400, "only function tools are supported", param=f"tools.{place}")
    names = ("name", "description", "parameters", "strict")
    return {"type": "function", "function": {n: tool[n] for n in names if tool.get(n) is not None}}


def _choice(choice: str | dict[str, Any] | None) -> str | dict[str, Any] | None:
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {"type": "function", "function": {"name": choice.get("name")}}
    return choice


# -- answers -----------------------------------------------------------------------------------------------


def written(asked: ResponseRequest, answer: chat.ApiAnswer) -> Response:
    """Convert a chat completion to a response object."""
    id = f"resp_{secrets.token_hex(16)}"
    if answer.pieces is None:
        return JSONResponse(of_chat(asked, answer.whole, id))
    events = _events(ResponseStream(asked, id, int(time.time())), answer.pieces)
    return StreamingResponse(events, media_type="text/event-stream", headers=dict(chat.STREAMED))


async def _events(stream: ResponseStream, pieces: AsyncGenerator[chat.Piece]) -> AsyncGenerator[str]:
    async with aclosing(pieces):
        for event in stream.begin():
            yield event
        async for piece in pieces:
            if piece.get("error"):
                yield stream.failed(piece["error"]["message"])
                return
            for event in stream.take(piece):
                yield event
        for event in stream.end():
            yield event


def of_chat(asked: ResponseRequest, given: Mapping[str, Any], id: str) -> dict[str, Any]:
    choice = given["choices"][0]
    items = _items(id, choice["message"].get("content"), choice["message"].get("tool_calls") or ())
    cut = choice["finish_reason"] == "length"
    return _response(asked, id, given["created"], items, cut=cut, usage=given.get("usage"))


def _items(id: str, content: str | None, calls: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Build the output items. Their ids derive from `id`, the id of the response."""
    text = [_message(_item_id("msg", id, 0), content or "")] if content or not calls else []
    return text + [_call(_item_id("fc", id, n), call) for n, call in enumerate(calls)]


def _item_id(prefix: str, id: str, number: int) -> str:
    return f"{prefix}_{id.removeprefix('resp_')}{number}"


def _message(id: str, text: str, status: str = "completed") -> dict[str, Any]:
    content = [_part(text)] if status == "completed" else []
    return {"id": id, "type": "message", "role": "assistant", "status": status, "content": content}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _call(id: str, call: Mapping[str, Any], status: str = "completed") -> dict[str, Any]:
    function = call["function"]
    return {
        "id": id,
        "type": "function_call",
        "status": status,
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
    }


def _response(
    asked: ResponseRequest,
    id: str,
    created: int,
    items: Sequence[Mapping[str, Any]],
    *,
    cut: bool = False,
    usage: Mapping[str, Any] | None = None,
    status: str | None = None,
) -> dict[str, Any]:
    return {
        "id": id,
        "object": "response",
        "created_at": created,
        "status": status or ("incomplete" if cut else "completed"),
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": asked.instructions,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "output": list(items),
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "temperature": asked.temperature,
        "tool_choice": asked.tool_choice or "auto",
        "tools": asked.tools or [],
        "top_p": 1.0 if asked.top_p is None else asked.top_p,
        "max_output_tokens": asked.max_output_tokens,
        "text": {"format": {"type": "text"}, **_given(asked.text)},
        "reasoning": asked.reasoning.model_dump() if asked.reasoning else None,
        **({} if usage is None else {"usage": _usage(usage)}),
    }


def _given(options: Body | None) -> dict[str, Any]:
    return {} if options is None else options.model_dump(exclude_none=True)


def _usage(usage: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
    }


class ResponseStream:
    """Converts chat completion chunks to stream events of the Responses API. Call `begin`, then `take` for
    each chunk, then `end`."""

    def __init__(self, asked: ResponseRequest, id: str, created: int) -> None:
        self._asked, self._id, self._created = asked, id, created
        self._number = -1
        self._text: str | None = None
        self._calls: dict[int, dict[str, Any]] = {}
        self._cut = False
        self._usage: Mapping[str, Any] | None = None

    def begin(self) -> Iterator[str]:
        now = _response(self._asked, self._id, self._created, [], status="in_progress")
        yield self._event("response.created", response=now)
        yield self._event("response.in_progress", response=now)

    def take(self, piece: Mapping[str, Any]) -> Iterator[str]:
        self._usage = piece.get("usage") or self._usage
        choices: list[dict[str, Any]] = piece.get("choices") or []
        for choice in choices:
            self._cut = self._cut or choice.get("finish_reason") == "length"
            delta: dict[str, Any] = choice.get("delta") or {}
            if text := delta.get("content"):
                yield from self._write(text)
            calls: list[dict[str, Any]] = delta.get("tool_calls") or []
            for call in calls:
                yield from self._dictate(call)

    def end(self) -> Iterator[str]:
        if self._text is None and not self._calls:
            yield from self._write("")
        items: list[dict[str, Any]] = []
        if self._text is not None:
            items.append(_message(self._message_id, self._text))
            at = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
            yield self._event("response.output_text.done", **at, text=self._text, logprobs=[])
            yield self._event("response.content_part.done", **at, part=_part(self._text))
            yield self._event("response.output_item.done", output_index=0, item=items[0])
        for number, call in sorted(self._calls.items()):
            item = _call(_item_id("fc", self._id, number), call)
            at = {"item_id": item["id"], "output_index": len(items)}
            fields = {"arguments": item["arguments"], "name": item["name"]}
            yield self._event("response.function_call_arguments.done", **at, **fields)
            yield self._event("response.output_item.done", output_index=len(items), item=item)
            items.append(item)
        whole = _response(self._asked, self._id, self._created, items, cut=self._cut, usage=self._usage)
        yield self._event("response.incomplete" if self._cut else "response.completed", response=whole)

    def failed(self, message: str) -> str:
        """Return the final event of an interrupted stream."""
        whole = _response(self._asked, self._id, self._created, [], status="failed")
        error = {"code": "server_error", "message": message}
        return self._event("response.failed", response={**whole, "error": error})

    @property
    def _message_id(self) -> str:
        return _item_id("msg", self._id, 0)

    def _write(self, text: str) -> Iterator[str]:
        at = {"item_id": self._message_id, "output_index": 0, "content_index": 0}
        if self._text is None:
            self._text = ""
            item = _message(self._message_id, "", "in_progress")
            yield self._event("response.output_item.added", output_index=0, item=item)
            yield self._event("response.content_part.added", **at, part=_part(""))
        self._text += text
        if text:
            yield self._event("response.output_text.delta", **at, delta=text, logprobs=[])

    def _dictate(self, piece: Mapping[str, Any]) -> Iterator[str]:
        """Stream the pieces of a tool call: its name first, then its arguments bit by bit."""
        number = int(piece.get("index") or 0)
        function: dict[str, Any] = piece.get("function") or {}
        place = number + (self._text is not None)
        if number not in self._calls:
            named = {"name": function.get("name") or "", "arguments": ""}
            self._calls[number] = {"id": piece.get("id") or "", "function": named}
            item = _call(_item_id("fc", self._id, number), self._calls[number], "in_progress")
            yield self._event("response.output_item.added", output_index=place, item=item)
        if more := function.get("arguments"):
            self._calls[number]["function"]["arguments"] += more
            at = {"item_id": _item_id("fc", self._id, number), "output_index": place}
            yield self._event("response.function_call_arguments.delta", **at, delta=more)

    def _event(self, kind: str, **fields: Any) -> str:
        self._number += 1
        body = {"type": kind, "sequence_number": self._number, **fields}
        return f"event: {kind}\ndata: {json.dumps(body, ensure_ascii=False)}\n\n"
