"""Responses of the chat completions API and the older completions API, complete or streamed."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ConfigDict, Field, field_validator
from starlette.responses import JSONResponse, Response, StreamingResponse

from orchestrate.http.wire import Body

# Strictly validated completion requests. Unknown fields are rejected, and known fields that a server may
# ignore are listed separately.

Penalty = Annotated[float, Field(ge=-2, le=2)]


class Function(Body):
    name: str
    arguments: str = "{}"


class ApiToolCall(Body):
    model_config = ConfigDict(extra="ignore")

    id: str
    function: Function
    type: Literal["function"] = "function"


class ApiPart(Body):
    model_config = ConfigDict(extra="ignore")

    type: str
    text: str | None = None


class ApiMessage(Body):
    """A message in a request. Also accepts the fields of the API's responses, so clients can send a
    response's message back unchanged."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ApiPart] | None = None
    name: str | None = None
    tool_calls: list[ApiToolCall] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None
    function_call: Any = None
    """The deprecated format of a tool call, replaced by `tool_calls`."""


class StreamOptions(Body):
    model_config = ConfigDict(extra="ignore")

    include_usage: bool = False


Stop = Annotated[str, Field(min_length=1)]


def _one_if_none(given: object) -> object:
    return 1 if given is None else given


class SamplingRequest(Body):
    """Fields that chat and completion requests have in common. The fields after the blank line are accepted
    but don't affect answers."""

    model: str
    n: Annotated[int, Field(ge=1, le=16), BeforeValidator(_one_if_none)] = 1
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=0)] | None = None
    seed: int | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    return_token_ids: bool | None = None

    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    @field_validator("logit_bias")
    @classmethod
    def _of_ids(cls, given: dict[str, float] | None) -> dict[str, float] | None:
        if given and not all(key.isdigit() for key in given):
            raise ValueError("the keys must be token ids")
        return given

    @property
    def stops(self) -> tuple[str, ...]:
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class ChatRequest(SamplingRequest):
    messages: Annotated[list[ApiMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    modalities: list[str] | None = None


class CompletionRequest(SamplingRequest):
    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool | None = None
    suffix: str | None = None
    best_of: int | None = None


class TokenizeRequest(Body):
    """A tokenize request in vLLM's format: `messages` are rendered with the chat template, and `prompt` is
    used unchanged."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    messages: list[ApiMessage] | None = None
    tools: list[dict[str, Any]] | None = None
    prompt: str | None = None


COMPLETION, CHUNK = "chat.completion", "chat.completion.chunk"
DONE = "data: [DONE]\n\n"
Piece = dict[str, Any]
"""A chunk of a streamed answer, or `{"error": ...}` if the stream was interrupted."""
STREAMED: Mapping[str, str] = {"x-accel-buffering": "no", "cache-control": "no-store"}
"""Headers that prevent proxies from buffering a stream."""


@dataclass(frozen=True)
class ApiAnswer:
    """An answer before conversion to the format of a route, either complete or as a stream of chunks."""

    whole: dict[str, Any]
    pieces: AsyncGenerator[Piece] | None = None

    def written(self) -> Response:
        """Build the response to a chat or completion request."""
        if self.pieces is None:
            return JSONResponse(self.whole)
        return StreamingResponse(_events(self.pieces), media_type="text/event-stream", headers=dict(STREAMED))


async def _events(pieces: AsyncGenerator[Piece]) -> AsyncGenerator[str]:
    async with aclosing(pieces):
        async for piece in pieces:
            yield event(piece)
            if piece.get("error"):
                return
    yield DONE


def event(body: dict[str, Any]) -> str:
    """Format a chunk as a server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def completion(
    id: str, created: int, model: str, choices: Sequence[dict[str, Any]], usage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": id,
        "object": COMPLETION,
        "created": created,
        "model": model,
        "choices": list(choices),
        "usage": usage,
    }


def chunk(
    id: str,
    created: int,
    model: str,
    choices: Sequence[dict[str, Any]],
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Build one chunk of a stream. `usage`, if requested, is part of the final chunk, which has no
    choices."""
    more = {} if usage is None else {"usage": usage}
    return {"id": id, "object": CHUNK, "created": created, "model": model, "choices": list(choices), **more}


def message(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def choice(
    index: int, message: dict[str, Any], reason: str, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "message": message, "finish_reason": reason, "logprobs": logprobs}


def piece(
    index: int, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """Build the usage object from numbers of tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def call(index: int | None, id: str, name: str, arguments: str) -> dict[str, Any]:
    """Build a tool call object. In streamed chunks it has an index."""
    place = {} if index is None else {"index": index}
    return {**place, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
