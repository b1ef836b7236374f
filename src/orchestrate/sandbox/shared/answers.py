"""Chat completions, as all three hosts answer them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from orchestrate.errors import DataError
from orchestrate.http.wire.openai import chat
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
    message = chat.message(reply.content, refusal=None)
    body = chat.completion(
        f"chatcmpl-{token()}",
        int(host.clock.now()),
        asked.model,
        [chat.choice(0, message, reply.finish_reason or "stop")],
        chat.usage(reply.prompt_tokens or 0, reply.completion_tokens or 0),
    )
    return {**body, "sandbox": True, "sandbox_model": reply.model}


def _stream(body: dict[str, Any], reply: Reply) -> Iterator[str]:
    """A chunk for each word, with the space before it, and one that ends it."""
    base = {**body, "object": chat.CHUNK}
    del base["usage"]
    first, *more = re.findall(r"\s*\S+|\s+", reply.content) or [""]
    deltas: list[dict[str, str]] = [{"role": "assistant", "content": first}]
    for delta in [*deltas, *({"content": word} for word in more)]:
        yield chat.event({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]})
    ended = reply.finish_reason or "stop"
    yield chat.event({**base, "choices": [{"index": 0, "delta": {}, "finish_reason": ended}]})
    yield chat.DONE
