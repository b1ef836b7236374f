"""Chat completions, as all three hosts answer them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from orchestrate.errors import DataError
from orchestrate.sandbox.host import Body, Host, HostError, json_answer, parse
from orchestrate.sandbox.state import token
from orchestrate.types import Message, Reply

if TYPE_CHECKING:
    from orchestrate.sandbox.jobs import Job

DEFAULT_MAX_TOKENS = 256


class ChatMessage(Body):
    model_config = ConfigDict(extra="ignore")

    role: str
    content: str | list[dict[str, Any]] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class ChatRequest(Body):
    """What is used of a request; the many other parameters of the hosts are taken and ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] | None = None
    stream: bool | None = None


def parse_chat(values: dict[str, Any]) -> ChatRequest:
    return parse(ChatRequest, values)


def complete(host: Host, asked: ChatRequest, job: Job | None, step: int | None = None) -> Response:
    """The answer of a job's tuned model, or without a job of the base model's stand-in."""
    messages = [Message(role=m.role, content=m.text()) for m in asked.messages]
    most = asked.max_completion_tokens or asked.max_tokens or DEFAULT_MAX_TOKENS
    try:
        reply = host.trainer.reply(job, step, messages, max_tokens=most, temperature=asked.temperature or 0.0)
    except FileNotFoundError as error:
        raise HostError(404, f"the weights of {asked.model} are gone", code="model_not_found") from error
    except DataError as error:
        raise HostError(400, error.message, code="context_length_exceeded", param="messages") from error
    body = _body(host, asked, reply)
    if asked.stream:
        return StreamingResponse(_stream(body, reply), media_type="text/event-stream")
    return json_answer(body)


def _body(host: Host, asked: ChatRequest, reply: Reply) -> dict[str, Any]:
    prompt, completion = reply.prompt_tokens or 0, reply.completion_tokens or 0
    message: dict[str, Any] = {"role": "assistant", "content": reply.content, "refusal": None}
    if host.thinking_field and reply.reasoning:
        message[host.thinking_field] = reply.reasoning
    if reply.tool_calls:
        message["tool_calls"] = reply.tool_calls
    return {
        "id": f"chatcmpl-{token()}",
        "object": "chat.completion",
        "created": int(host.clock.now()),
        "model": asked.model,
        "choices": [
            {
                "index": 0,
                "message": message,
                "finish_reason": reply.finish_reason or "stop",
                "logprobs": None,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        },
        "sandbox": True,
        "sandbox_model": reply.model,
    }


def _stream(body: dict[str, Any], reply: Reply) -> Iterator[str]:
    """One chunk with the whole message, one that ends it."""
    base = {**body, "object": "chat.completion.chunk"}
    del base["usage"]
    calls = [{"index": n, **call} for n, call in enumerate(reply.tool_calls)]
    message = {k: v for k, v in body["choices"][0]["message"].items() if k not in ("refusal", "tool_calls")}
    for delta, reason in (
        (message | ({"tool_calls": calls} if calls else {}), None),
        ({}, reply.finish_reason or "stop"),
    ):
        chunk = {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
