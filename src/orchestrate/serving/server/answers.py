"""From the engine's messages to answers of the API, whole or as a stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from orchestrate.http.wire import HostError
from orchestrate.http.wire.openai import chat, error_body
from orchestrate.http.wire.openai.chat import Answer, ChatRequest, CompletionRequest, Piece
from orchestrate.serving.server import grammars
from orchestrate.serving.server.engine import Engine, EngineLost, EngineRefused
from orchestrate.serving.server.load import Full, Load
from orchestrate.serving.server.refusals import asking, full, lost, refusal_of

GONE = 499
"""What others write down for a client that did not wait."""


class Answering:
    """Answers requests that were found right."""

    def __init__(self, engine: Engine, load: Load) -> None:
        self._engine, self._load = engine, load

    async def chat(self, request: Request, asked: ChatRequest, wish: dict[str, Any]) -> Answer:
        """Raises `HostError`."""
        if wish["form"] is not None:
            await run_in_threadpool(grammars.require, wish["form"])
        form = ChatForm(asked)
        return await (self._stream(form, [wish]) if asked.stream else self._whole(request, form, [wish]))

    async def completions(
        self, request: Request, asked: CompletionRequest, wishes: Sequence[dict[str, Any]]
    ) -> Answer:
        """Raises `HostError`."""
        form = TextForm(asked)
        return await (self._stream(form, wishes) if asked.stream else self._whole(request, form, wishes))

    async def _whole(self, request: Request, form: Form, wishes: Sequence[dict[str, Any]]) -> Answer:
        begun = time.monotonic()
        with self._room():
            answering = asyncio.ensure_future(asyncio.gather(*(self._collect(w) for w in wishes)))
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
        ids = [h.get("prompt_ids") for h in heads]
        return Answer(form.whole(choices, usage, ids))

    async def _collect(self, wish: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The head of an answer, and the last message of each choice."""
        head: dict[str, Any] = {}
        choices: list[dict[str, Any]] = []
        async with aclosing(self._engine.messages("add", **wish)) as messages:
            async for message in messages:
                if "prompt_tokens" in message:
                    head = message
                elif "reason" in message:
                    choices.append(message)
                if len(choices) == wish["n"]:
                    break
        return head, sorted(choices, key=lambda c: c["choice"])

    def _room(self) -> ExitStack:
        """A place among those who are answered. Raises `HostError` 429."""
        ending = ExitStack()
        try:
            ending.enter_context(self._load.taking())
        except Full as error:
            raise full(error) from error
        return ending

    def _count(
        self, model: str, heads: Sequence[Mapping[str, Any]], ends: Sequence[Mapping[str, Any]]
    ) -> dict[str, Any]:
        prompt = sum(h["prompt_tokens"] for h in heads)
        completion = sum(e["completion_tokens"] for e in ends)
        self._load.tokens[model, "prompt"] += prompt
        self._load.tokens[model, "completion"] += completion
        return chat.usage(prompt, completion)

    # -- streams -------------------------------------------------------------------------------------------

    async def _stream(self, form: Form, wishes: Sequence[dict[str, Any]]) -> Answer:
        """What is wrong with the request is told before the stream begins."""
        ending = self._room()
        pieces = self._pieces(form, wishes, ending)
        with asking():
            first = await anext(pieces)
        return Answer({}, _behind(first, pieces))

    async def _pieces(
        self, form: Form, wishes: Sequence[dict[str, Any]], ending: ExitStack
    ) -> AsyncGenerator[Piece]:
        begun = time.monotonic()
        heads: list[dict[str, Any]] = []
        ends: list[dict[str, Any]] = []
        with ending:
            for number, wish in enumerate(wishes):
                try:
                    async with aclosing(self._engine.messages("add", **wish)) as messages:
                        async for message in messages:
                            if "prompt_tokens" in message:
                                heads.append(message)
                                if not number:
                                    yield form.opening(len(wishes) * wish["n"])
                                continue
                            if not ends:
                                self._load.first_token.add(time.monotonic() - begun)
                            for piece in form.pieces(
                                {**message, "choice": number * wish["n"] + message["choice"]}
                            ):
                                yield piece
                            ends += [message] if "reason" in message else []
                            if len(ends) == (number + 1) * wish["n"]:
                                break
                except (EngineLost, EngineRefused) as error:
                    if not heads:
                        raise
                    told = lost(error) if isinstance(error, EngineLost) else refusal_of(error)
                    yield error_body(told)
                    return
            usage = self._count(form.model, heads, ends)
            self._load.whole.add(time.monotonic() - begun)
            if form.tells_usage:
                yield form.closing(usage)


async def _behind(first: Piece, rest: AsyncGenerator[Piece]) -> AsyncGenerator[Piece]:
    async with aclosing(rest):
        yield first
        async for piece in rest:
            yield piece


async def _gone(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


# -- forms -------------------------------------------------------------------------------------------------


class Form(ABC):
    """How an answer is written. `tells_usage`: in the last piece of a stream."""

    def __init__(self, asked: ChatRequest | CompletionRequest, prefix: str) -> None:
        self.id, self.created, self.model = f"{prefix}-{secrets.token_hex(12)}", int(time.time()), asked.model
        self.tells_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._tells_ids = bool(asked.return_token_ids)

    @abstractmethod
    def whole(
        self, choices: list[dict[str, Any]], usage: dict[str, Any], prompt_ids: list[Any]
    ) -> dict[str, Any]: ...

    @abstractmethod
    def opening(self, choices: int) -> Piece: ...

    @abstractmethod
    def pieces(self, message: dict[str, Any]) -> list[Piece]: ...

    @abstractmethod
    def closing(self, usage: dict[str, Any]) -> Piece: ...


class ChatForm(Form):
    def __init__(self, asked: ChatRequest) -> None:
        super().__init__(asked, "chatcmpl")
        self._logprobs = bool(asked.logprobs)
        self._most_calls = 1 if asked.parallel_tool_calls is False else None

    def whole(
        self, choices: list[dict[str, Any]], usage: dict[str, Any], prompt_ids: list[Any]
    ) -> dict[str, Any]:
        shown = [self._choice(end, number) for number, end in enumerate(choices)]
        body = chat.completion(self.id, self.created, self.model, shown, usage)
        return {**body, "prompt_token_ids": prompt_ids[0]} if self._tells_ids else body

    def _choice(self, end: dict[str, Any], number: int) -> dict[str, Any]:
        more: dict[str, Any] = {"refusal": None}
        if end["reasoning"]:
            more["reasoning_content"] = end["reasoning"]
        if calls := self._calls(end, number, streamed=False):
            more["tool_calls"] = calls
        content = end["content"] or (None if calls else "")
        logprobs = {"content": _told(end["tokens"]), "refusal": None} if self._logprobs else None
        made = chat.choice(number, chat.message(content, **more), end["reason"], logprobs)
        return {**made, "token_ids": end["ids"]} if self._tells_ids else made

    def _calls(self, end: dict[str, Any], number: int, *, streamed: bool) -> list[dict[str, Any]]:
        """Ids are this answer's own: clients send them back beside those of other answers."""
        return [
            chat.call(
                n if streamed else None,
                f"call_{self.id[-12:]}_{number}_{n}",
                call["function"]["name"],
                call["function"]["arguments"],
            )
            for n, call in enumerate(end.get("tool_calls", ())[: self._most_calls])
        ]

    def opening(self, choices: int) -> Piece:
        pieces = [chat.piece(n, {"role": "assistant", "content": ""}, None) for n in range(choices)]
        return chat.chunk(self.id, self.created, self.model, pieces)

    def pieces(self, message: dict[str, Any]) -> list[Piece]:
        number, found = message["choice"], list[dict[str, Any]]()
        delta: dict[str, Any] = {}
        if message["reasoning"]:
            delta["reasoning_content"] = message["reasoning"]
        if message["content"]:
            delta["content"] = message["content"]
        if calls := self._calls(message, number, streamed=True):
            delta["tool_calls"] = calls
        if delta or message["tokens"]:
            told = {"content": _told(message["tokens"]), "refusal": None} if self._logprobs else None
            found.append(chat.piece(number, delta, None, told))
        if reason := message.get("reason"):
            found.append(chat.piece(number, {}, reason))
        return [chat.chunk(self.id, self.created, self.model, [piece]) for piece in found]

    def closing(self, usage: dict[str, Any]) -> Piece:
        return chat.chunk(self.id, self.created, self.model, [], usage)


class TextForm(Form):
    def __init__(self, asked: CompletionRequest) -> None:
        super().__init__(asked, "cmpl")
        self._logprobs = asked.logprobs is not None
        self._places: dict[int, int] = {}

    def whole(
        self, choices: list[dict[str, Any]], usage: dict[str, Any], prompt_ids: list[Any]
    ) -> dict[str, Any]:
        shown: list[dict[str, Any]] = []
        for number, end in enumerate(choices):
            more = {"token_ids": end["ids"], "prompt_token_ids": prompt_ids[0]} if self._tells_ids else {}
            shown.append({**self._choice(number, end, end["reason"]), **more})
        return {**self._body(shown), "usage": usage}

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices}

    def _choice(self, number: int, message: dict[str, Any], reason: str | None) -> dict[str, Any]:
        logprobs = self._old_logprobs(number, message["tokens"]) if self._logprobs else None
        return {"index": number, "text": message["content"], "logprobs": logprobs, "finish_reason": reason}

    def _old_logprobs(self, number: int, tokens: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        at = self._places.get(number, 0)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(at)
            at += len(token["token"])
        self._places[number] = at
        return {
            "tokens": [t["token"] for t in tokens],
            "token_logprobs": [t["logprob"] for t in tokens],
            "top_logprobs": [{top["token"]: top["logprob"] for top in t["tops"]} for t in tokens],
            "text_offset": offsets,
        }

    def opening(self, choices: int) -> Piece:
        return self._body(
            [{"index": n, "text": "", "logprobs": None, "finish_reason": None} for n in range(choices)]
        )

    def pieces(self, message: dict[str, Any]) -> list[Piece]:
        return [self._body([self._choice(message["choice"], message, message.get("reason"))])]

    def closing(self, usage: dict[str, Any]) -> Piece:
        return {**self._body([]), "usage": usage}


def _told(tokens: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Log-probabilities in the API's form."""
    return [
        {
            "token": t["token"],
            "bytes": t["bytes"],
            "logprob": t["logprob"],
            "top_logprobs": t["tops"],
        }
        for t in tokens
    ]
