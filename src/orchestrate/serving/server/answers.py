"""Convert the engine's messages to API responses, complete or streamed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from orchestrate.http.wire import HostError
from orchestrate.http.wire.openai import chat, error_body
from orchestrate.http.wire.openai.chat import ApiAnswer, ChatRequest, CompletionRequest, Piece
from orchestrate.http.wire.openai.events import AnswerEncoder, ChatForm, PromptRead, Spoken, TextForm
from orchestrate.serving.server import grammars
from orchestrate.serving.server.engine import EngineClient, EngineLost, EngineRefused
from orchestrate.serving.server.load import ServerBusy, ServerLoad
from orchestrate.serving.server.refusals import asking, full, lost, refusal_of
from orchestrate.types.decoding import convert

GONE = 499
"""HTTP status that is logged if the client disconnects before the answer is complete."""


class Answering:
    """Answers validated requests."""

    def __init__(self, engine: EngineClient, load: ServerLoad) -> None:
        self._engine, self._load = engine, load

    async def chat(self, request: Request, asked: ChatRequest, options: dict[str, Any]) -> ApiAnswer:
        """Answer a chat request. Raises `HostError` if the request is invalid or the engine cannot answer
        it."""
        if options["form"] is not None:
            await run_in_threadpool(grammars.require, options["form"])
        form = ChatForm(asked)
        return await (
            self._stream(form, [options]) if asked.stream else self._whole(request, form, [options])
        )

    async def completions(
        self, request: Request, asked: CompletionRequest, requests: Sequence[dict[str, Any]]
    ) -> ApiAnswer:
        """Answer a completion request. Raises `HostError` if the request is invalid or the engine cannot
        answer it."""
        form = TextForm(asked)
        return await (self._stream(form, requests) if asked.stream else self._whole(request, form, requests))

    async def _whole(
        self, request: Request, form: AnswerEncoder, requests: Sequence[dict[str, Any]]
    ) -> ApiAnswer:
        begun = time.monotonic()
        with self._room():
            answering = asyncio.ensure_future(asyncio.gather(*(self._collect(one) for one in requests)))
            leaving = asyncio.ensure_future(_gone(request))
            try:
                await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
                if not answering.done():
                    raise HostError(GONE, "the client disconnected")
                with asking():
                    found = answering.result()
            finally:
                for task in (answering, leaving):
                    task.cancel()
        self._load.whole.add(time.monotonic() - begun)
        heads, choices = [h for h, _ in found], [c for _, mine in found for c in mine]
        usage = self._count(form.model, heads, choices)
        return ApiAnswer(form.whole(choices, usage, [h.prompt_ids for h in heads]))

    async def _collect(self, options: dict[str, Any]) -> tuple[PromptRead, list[Spoken]]:
        """Collect the head of an answer, and the last message of each choice."""
        head = PromptRead(prompt_tokens=0)
        choices: list[Spoken] = []
        async with aclosing(self._events(options)) as events:
            async for event in events:
                if isinstance(event, PromptRead):
                    head = event
                elif event.reason:
                    choices.append(event)
                if len(choices) == options["n"]:
                    break
        return head, sorted(choices, key=lambda c: c.choice)

    async def _events(self, options: dict[str, Any]) -> AsyncGenerator[PromptRead | Spoken]:
        async with aclosing(self._engine.messages("add", **options)) as messages:
            async for message in messages:
                yield convert(message, PromptRead) if "prompt_tokens" in message else convert(message, Spoken)

    def _room(self) -> ExitStack:
        """Reserve a place among the requests in progress. Raises `HostError` 429."""
        ending = ExitStack()
        try:
            ending.enter_context(self._load.taking())
        except ServerBusy as error:
            raise full(error) from error
        return ending

    def _count(self, model: str, heads: Sequence[PromptRead], ends: Sequence[Spoken]) -> dict[str, Any]:
        prompt = sum(h.prompt_tokens for h in heads)
        completion = sum(e.completion_tokens for e in ends)
        self._load.tokens[model, "prompt"] += prompt
        self._load.tokens[model, "completion"] += completion
        return chat.usage(prompt, completion)

    # -- streams -------------------------------------------------------------------------------------------

    async def _stream(self, form: AnswerEncoder, requests: Sequence[dict[str, Any]]) -> ApiAnswer:
        """Start a stream. Errors in the request are raised before the stream begins."""
        ending = self._room()
        pieces = self._pieces(form, requests, ending)
        with asking():
            first = await anext(pieces)
        return ApiAnswer({}, _behind(first, pieces))

    async def _pieces(
        self, form: AnswerEncoder, requests: Sequence[dict[str, Any]], ending: ExitStack
    ) -> AsyncGenerator[Piece]:
        begun = time.monotonic()
        heads: list[PromptRead] = []
        ends: list[Spoken] = []
        with ending:
            for number, options in enumerate(requests):
                try:
                    async with aclosing(self._events(options)) as events:
                        async for event in events:
                            if isinstance(event, PromptRead):
                                heads.append(event)
                                if not number:
                                    yield form.opening(len(requests) * options["n"])
                                continue
                            if not ends:
                                self._load.first_token.add(time.monotonic() - begun)
                            own = number * options["n"] + event.choice
                            for piece in form.pieces(msgspec.structs.replace(event, choice=own)):
                                yield piece
                            ends += [event] if event.reason else []
                            if len(ends) == (number + 1) * options["n"]:
                                break
                except (EngineLost, EngineRefused) as error:
                    if not heads:
                        raise
                    failure = lost(error) if isinstance(error, EngineLost) else refusal_of(error)
                    yield error_body(failure)
                    return
            usage = self._count(form.model, heads, ends)
            self._load.whole.add(time.monotonic() - begun)
            if form.includes_usage:
                yield form.closing(usage)


async def _behind(first: Piece, rest: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _gone(request: Request) -> None:
    """Return once the client has disconnected."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
