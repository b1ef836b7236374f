"""The engine's answer as typed events, with encoders for chat completions and the older completions API.

`responses` builds the Responses API from chunks of chat completions.
"""

from __future__ import annotations

import secrets
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrate.http.wire.openai import chat
from orchestrate.http.wire.openai.chat import ChatRequest, CompletionRequest, Piece


class PromptRead(msgspec.Struct, frozen=True):
    """Event that the engine sends after it has processed a prompt."""

    prompt_tokens: int
    prompt_ids: list[int] | None = None


class SampledToken(msgspec.Struct, frozen=True):
    token: str
    bytes: list[int] | None = None
    logprob: float | None = None
    tops: list[dict[str, Any]] = []

    def shown(self) -> dict[str, Any]:
        """Convert the token and its log-probabilities to the format of chat completions."""
        return {"token": self.token, "bytes": self.bytes, "logprob": self.logprob, "top_logprobs": self.tops}


class Spoken(msgspec.Struct, frozen=True, kw_only=True):
    """Event with everything new in a choice since its previous event: text, reasoning, tool calls and tokens.
    `reason` is the finish reason, set only in the choice's last event. An answer that is not streamed has one
    event per choice."""

    choice: int
    content: str = ""
    reasoning: str = ""
    tokens: list[SampledToken] = []
    tool_calls: list[dict[str, Any]] = []
    reason: str | None = None
    ids: list[int] = []
    completion_tokens: int = 0


class AnswerEncoder(ABC):
    """Base class for encoders, each of which converts events to one API's format. If `includes_usage` is set,
    the last chunk of a stream contains the token usage."""

    def __init__(self, asked: ChatRequest | CompletionRequest, prefix: str) -> None:
        self.id, self.created, self.model = f"{prefix}-{secrets.token_hex(12)}", int(time.time()), asked.model
        self.includes_usage = bool(asked.stream_options and asked.stream_options.include_usage)
        self._includes_ids = bool(asked.return_token_ids)

    @abstractmethod
    def whole(
        self, choices: Sequence[Spoken], usage: dict[str, Any], prompt_ids: list[Any]
    ) -> dict[str, Any]: ...

    @abstractmethod
    def opening(self, choices: int) -> Piece: ...

    @abstractmethod
    def pieces(self, event: Spoken) -> list[Piece]: ...

    @abstractmethod
    def closing(self, usage: dict[str, Any]) -> Piece: ...


class ChatForm(AnswerEncoder):
    def __init__(self, asked: ChatRequest) -> None:
        super().__init__(asked, "chatcmpl")
        self._logprobs = bool(asked.logprobs)
        self._most_calls = 1 if asked.parallel_tool_calls is False else None

    def whole(
        self, choices: Sequence[Spoken], usage: dict[str, Any], prompt_ids: list[Any]
    ) -> dict[str, Any]:
        shown = [self._choice(end, number) for number, end in enumerate(choices)]
        body = chat.completion(self.id, self.created, self.model, shown, usage)
        return {**body, "prompt_token_ids": prompt_ids[0]} if self._includes_ids else body

    def _choice(self, end: Spoken, number: int) -> dict[str, Any]:
        more: dict[str, Any] = {"refusal": None}
        if end.reasoning:
            more["reasoning_content"] = end.reasoning
        if calls := self._calls(end, number, streamed=False):
            more["tool_calls"] = calls
        content = end.content or (None if calls else "")
        logprobs = (
            {"content": [one.shown() for one in end.tokens], "refusal": None} if self._logprobs else None
        )
        made = chat.choice(number, chat.message(content, **more), end.reason or "stop", logprobs)
        return {**made, "token_ids": end.ids} if self._includes_ids else made

    def _calls(self, end: Spoken, number: int, *, streamed: bool) -> list[dict[str, Any]]:
        """Build the tool calls. Ids are unique to this answer, because clients send them back together with
        those of other answers."""
        return [
            chat.call(
                n if streamed else None,
                f"call_{self.id[-12:]}_{number}_{n}",
                call["function"]["name"],
                call["function"]["arguments"],
            )
            for n, call in enumerate(end.tool_calls[: self._most_calls])
        ]

    def opening(self, choices: int) -> Piece:
        pieces = [chat.piece(n, {"role": "assistant", "content": ""}, None) for n in range(choices)]
        return chat.chunk(self.id, self.created, self.model, pieces)

    def pieces(self, event: Spoken) -> list[Piece]:
        number, found = event.choice, list[dict[str, Any]]()
        delta: dict[str, Any] = {}
        if event.reasoning:
            delta["reasoning_content"] = event.reasoning
        if event.content:
            delta["content"] = event.content
        if calls := self._calls(event, number, streamed=True):
            delta["tool_calls"] = calls
        if delta or event.tokens:
            logprobs = (
                {"content": [one.shown() for one in event.tokens], "refusal": None}
                if self._logprobs
                else None
            )
            found.append(chat.piece(number, delta, None, logprobs))
        if event.reason:
            found.append(chat.piece(number, {}, event.reason))
        return [chat.chunk(self.id, self.created, self.model, [piece]) for piece in found]

    def closing(self, usage: dict[str, Any]) -> Piece:
        return chat.chunk(self.id, self.created, self.model, [], usage)


class TextForm(AnswerEncoder):
    def __init__(self, asked: CompletionRequest) -> None:
        super().__init__(asked, "cmpl")
        self._logprobs = asked.logprobs is not None
        self._places: dict[int, int] = {}

    def whole(
        self, choices: Sequence[Spoken], usage: dict[str, Any], prompt_ids: list[Any]
    ) -> dict[str, Any]:
        shown: list[dict[str, Any]] = []
        for number, end in enumerate(choices):
            more = {"token_ids": end.ids, "prompt_token_ids": prompt_ids[0]} if self._includes_ids else {}
            shown.append({**self._choice(number, end), **more})
        return {**self._body(shown), "usage": usage}

    def _body(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        head = {"id": self.id, "object": "text_completion", "created": self.created, "model": self.model}
        return {**head, "choices": choices}

    def _choice(self, number: int, event: Spoken) -> dict[str, Any]:
        logprobs = self._old_logprobs(number, event.tokens) if self._logprobs else None
        return {"index": number, "text": event.content, "logprobs": logprobs, "finish_reason": event.reason}

    def _old_logprobs(self, number: int, tokens: Sequence[SampledToken]) -> dict[str, Any]:
        at = self._places.get(number, 0)
        offsets: list[int] = []
        for token in tokens:
            offsets.append(at)
            at += len(token.token)
        self._places[number] = at
        return {
            "tokens": [t.token for t in tokens],
            "token_logprobs": [t.logprob for t in tokens],
            "top_logprobs": [{top["token"]: top["logprob"] for top in t.tops} for t in tokens],
            "text_offset": offsets,
        }

    def opening(self, choices: int) -> Piece:
        return self._body(
            [{"index": n, "text": "", "logprobs": None, "finish_reason": None} for n in range(choices)]
        )

    def pieces(self, event: Spoken) -> list[Piece]:
        return [self._body([self._choice(event.choice, event)])]

    def closing(self, usage: dict[str, Any]) -> Piece:
        return {**self._body([]), "usage": usage}
