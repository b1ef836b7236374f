"""Chats, completions and responses of tuned models: asked of the host that has them, or of this machine."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterable, Iterable, Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute

from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.gateway.calls import Call, parsed, read, streamed
from orchestrate.gateway.engines import Engines, name_of
from orchestrate.gateway.models import Models
from orchestrate.gateway.refusals import refusal_of
from orchestrate.handles.deployment import used
from orchestrate.providers.base import Chats, capability
from orchestrate.providers.calls.payloads import CutShort
from orchestrate.providers.calls.values import plain
from orchestrate.serving.server.conversation import chat_wish, completion_wishes
from orchestrate.types import Run
from orchestrate.wire.bodies import HostError, parse
from orchestrate.wire.openai import chat, responses
from orchestrate.wire.openai.errors import error_body
from orchestrate.wire.openai.requests import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from orchestrate.providers.chat.completions import Chat
    from orchestrate.workspace import Workspace

_HEADERS = {"x-accel-buffering": "no", "cache-control": "no-store"}
_OURS = frozenset(
    {"model", "messages", "stream", "max_tokens", "max_completion_tokens", "return_token_ids"}
    | {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
"""Fields that are not handed on as they are; those of the second line change no answer."""


class Answers:
    def __init__(self, ft: Workspace, models: Models, engines: Engines) -> None:
        self._ft, self._models, self._engines = ft, models, engines

    def routes(self) -> list[BaseRoute]:
        return [
            streamed("/v1/chat/completions", "POST", self.chat),
            streamed("/v1/completions", "POST", self.complete),
            streamed("/v1/responses", "POST", self.respond),
        ]

    async def chat(self, call: Call) -> Response:
        call.body = parsed(await read(call.request))
        return await self._chat(call, parse(ChatRequest, call.body), call.body)

    async def _chat(self, call: Call, asked: ChatRequest, body: Mapping[str, Any]) -> Response:
        call.about(asked.model)
        _, run, step = await run_in_threadpool(self._models.made, call.key, asked.model)
        if self._ft.provider(run.provider).profile.near:
            wish = {**chat_wish(asked), "model": name_of(run, step)}
            answering = await self._engines.answering(run, step)
            return await answering.chat(call.request, asked, wish)
        if step is not None:
            told = f"{run.provider} answers with the finished model only, not with a checkpoint"
            raise HostError(422, told, code="unsupported", param="model")
        return await self._hosted(run, asked, body)

    async def complete(self, call: Call) -> Response:
        asked = parse(CompletionRequest, parsed(await read(call.request)))
        call.about(asked.model)
        _, run, step = await run_in_threadpool(self._models.made, call.key, asked.model)
        if not self._ft.provider(run.provider).profile.near:
            told = f"{run.provider} is asked for chats only: /v1/chat/completions"
            raise HostError(422, told, code="unsupported", param="model")
        wishes = [{**wish, "model": name_of(run, step)} for wish in completion_wishes(asked)]
        answering = await self._engines.answering(run, step)
        return await answering.completions(call.request, asked, wishes)

    # -- of a host -----------------------------------------------------------------------------------------

    async def _hosted(self, run: Run, asked: ChatRequest, body: Mapping[str, Any]) -> Response:
        answer = await run_in_threadpool(self._ask, run, asked, body)
        if not asked.stream:
            return JSONResponse({**plain(answer), "model": asked.model})
        stream = iter(answer)
        first = await run_in_threadpool(_first, stream)
        pieces = iterate_in_threadpool(_pieces(chain(first, stream), asked.model))
        return StreamingResponse(pieces, media_type="text/event-stream", headers=_HEADERS)

    def _ask(self, run: Run, asked: ChatRequest, body: Mapping[str, Any]) -> Any:
        """The SDK's answer, or its stream. Raises `HostError`."""
        provider = capability(self._ft.provider(run.provider), Chats)
        most = asked.max_completion_tokens or asked.max_tokens
        try:
            host = provider.chat(run.handle)
        except UsageError as error:  # these serve a tuned model where it is deployed only
            error.fix = (
                f"on the gateway's machine, after it has shown the hourly price: orchestrate deploy {run.id}"
            )
            refusal = refusal_of(error)
            refusal.code, refusal.param = "model_not_deployed", "model"
            raise refusal from error
        if host is None:
            raise HostError(422, f"{run.provider} is not asked one chat at a time", code="unsupported")
        options = {name: value for name, value in body.items() if name not in _OURS and value is not None}
        if most is not None:
            options[_limit(host)] = most
        found = host.wire.read(
            lambda: host.create(
                model=host.model, messages=body["messages"], stream=bool(asked.stream), extra_body=options
            )
        )
        used(self._ft, run.id)
        return found

    # -- responses -----------------------------------------------------------------------------------------

    async def respond(self, call: Call) -> Response:
        asked = parse(responses.ResponseRequest, parsed(await read(call.request)))
        body = responses.chat_body(asked)
        if asked.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = await self._chat(call, parse(ChatRequest, body), body)
        id = f"resp_{secrets.token_hex(16)}"
        if isinstance(answer, StreamingResponse):
            events = _events(responses.Stream(asked, id, int(time.time())), answer.body_iterator)
            return StreamingResponse(events, media_type="text/event-stream", headers=_HEADERS)
        if answer.status_code != 200:
            return answer
        return JSONResponse(responses.of_chat(asked, json.loads(bytes(answer.body)), id))


def _limit(host: Chat) -> str:
    """What the host calls the most tokens of an answer."""
    return next((name for name in host.options if name.startswith("max")), "max_tokens")


def _first(stream: Iterator[Any]) -> list[Any]:
    """One piece: what fails before it is an answer of its own, not the end of one. Raises `HostError`."""
    try:
        found = list(islice(stream, 1))
    except Exception as error:
        raise _broken(error) from error
    if not found:
        raise HostError(502, "the host's answer was empty", type="server_error", code="host_failed")
    return found


def _broken(error: Exception) -> HostError:
    """Of the SDKs' own kinds, of any host."""
    if isinstance(error, OrchestrateError):
        return refusal_of(error)
    told = f"the host's answer broke off: {error}"
    return HostError(502, told, type="server_error", code="host_failed")


def _pieces(stream: Iterable[Any], model: str) -> Iterator[str]:
    """An SDK's stream as the API has it. What breaks within is told as its last piece, and so is a
    stream that was cut short."""
    ended = False
    try:
        for piece in stream:
            told = plain(piece)
            ended = ended or any(one.get("finish_reason") for one in told.get("choices") or ())
            yield chat.event({**told, "model": model})
        if not ended:
            raise CutShort
    except Exception as error:  # noqa: BLE001  told to the client, whatever it is
        yield chat.event(error_body(_broken(error)))
        return
    yield chat.DONE


async def _events(
    stream: responses.Stream, pieces: AsyncIterable[str | bytes | memoryview[int]]
) -> AsyncGenerator[str]:
    for event in stream.begin():
        yield event
    async for piece in pieces:
        text = piece if isinstance(piece, str) else bytes(piece).decode()
        for line in text.splitlines():
            data = line.removeprefix("data: ")
            if data == line or data == "[DONE]":
                continue
            told = json.loads(data)
            if "error" in told:
                yield stream.failed(told["error"]["message"])
                return
            for event in stream.take(told):
                yield event
    for event in stream.end():
        yield event
