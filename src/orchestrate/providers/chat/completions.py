"""Asking a model through the chat completions API, which all hosts share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import msgspec

from orchestrate.errors import InvalidRequest, UnexpectedAnswer
from orchestrate.profile import built_in, kinds, profile
from orchestrate.providers.calls.hosted import Retry, Wire
from orchestrate.providers.calls.payloads import redact_text
from orchestrate.providers.calls.values import plain, rows, table, text, whole
from orchestrate.providers.chat.streaming import Timed
from orchestrate.providers.chat.wishes import Wishes
from orchestrate.types import Message, Reply

if TYPE_CHECKING:
    from orchestrate.settings.config import HostConfig


@dataclass(frozen=True)
class Chat:
    """One model; `create` is an SDK client's `chat.completions.create`, `options` go with each request."""

    wire: Wire
    create: Callable[..., Any]
    model: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    threads: int = 4
    """Questions that the host takes at the same time."""
    calls: bool = True
    """Whether calls of tools are looked for in the text of an answer to which none were offered."""
    wishes: Wishes = field(default_factory=Wishes, repr=False, compare=False)

    @property
    def retry(self) -> Retry:
        return self.wire.retry

    def ask_once(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Reply:
        """As `ask`, but what may be billed is sent once, for callers that count each send: after a refusal
        the question is asked as the model takes it, after anything else the error is raised."""
        return self._reply(messages, tools, self.wire.once)

    def ask(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Reply:
        """Callable from several threads. Raises `ProviderError`.

        A model that is still being brought up answers 503 or 429, so a question is asked again as a read is.
        One that does not take a temperature, or calls the most tokens of an answer otherwise, is asked again
        as it takes it, and the reply's notes say so.
        """
        return self._reply(messages, tools, self.wire.read)

    def _reply(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], send: Callable[..., Any]
    ) -> Reply:
        from orchestrate.data.tokens.answers import CUT_WITHIN_THINKING

        more = {"tools": [dict(tool) for tool in tools]} if tools else {}
        answer = self._answer([m.to_dict() for m in messages], more, send)
        choice, usage = next(iter(rows(answer.get("choices"))), None), table(answer.get("usage"))
        if choice is None:
            raise UnexpectedAnswer(self.wire.provider, "a chat answer without choices")
        finish = text(choice.get("finish_reason"))
        if finish == "error":
            # Of hosts that pass questions on: where it went wrong behind them, they answer 200 all the same.
            why = text(table(choice.get("error")).get("message")) or "the host gives no reason"
            raise UnexpectedAnswer(self.wire.provider, f"a chat answer that is an error: {redact_text(why)}")
        content, reasoning, calls = self._said(table(choice.get("message")), tools, cut=finish == "length")
        within = finish == "length" and reasoning and not content and not calls
        return Reply(
            content=content,
            model=text(answer.get("model")) or self.model,
            reasoning=reasoning,
            tool_calls=tuple(calls),
            prompt_tokens=whole(usage.get("prompt_tokens")),
            completion_tokens=whole(usage.get("completion_tokens")),
            logprobs=_logprobs(table(choice.get("logprobs"))),
            finish_reason=finish,
            notes=(*((CUT_WITHIN_THINKING,) if within else ()), *self.wishes.notes(self.options)),
        )

    def _answer(
        self, shaped: list[dict[str, Any]], more: dict[str, Any], send: Callable[..., Any]
    ) -> dict[str, Any]:
        while True:
            sent = self.wishes.of(self.options) | more
            ask = partial(self.create, model=self.model, messages=shaped, **sent)
            try:
                return plain(send(ask))
            except InvalidRequest as error:
                if not self.wishes.learn(error, sent):
                    raise

    def _said(
        self, message: dict[str, Any], tools: Sequence[Mapping[str, Any]], *, cut: bool
    ) -> tuple[str, str | None, list[dict[str, Any]]]:
        """Content, thinking and calls: the host's own fields where it fills them, else what its text says."""
        from orchestrate.data.tokens.answers import Shape, read_answer

        content = text(message.get("content")) or ""
        reasoning = text(message.get("reasoning")) or text(message.get("reasoning_content")) or None
        calls = rows(message.get("tool_calls"))
        shape = Shape(thinking=()) if reasoning else Shape()
        look = not calls and (self.calls or bool(tools))
        said = read_answer(content, shape=shape, tools=tools, cut=cut, calls=look)
        calls = calls or [msgspec.to_builtins(call) for call in said.tool_calls]
        return said.content, reasoning or said.reasoning, calls

    def read_along(self, tell: Callable[[str], object]) -> Chat:
        """The same, with the text of an answer told as the host writes it."""
        return replace(self, create=Timed(self.create, tell))

    def with_logprobs(self) -> Chat:
        """The same, asked for the log-probabilities of its tokens; a host that refuses to give them is asked
        without."""

        def create(**options: Any) -> Any:
            try:
                return self.create(**options, logprobs=True)
            except Exception as error:
                if getattr(error, "status_code", None) not in (400, 422):
                    raise
            return self.create(**options)

        return replace(self, create=create)

    def replies(
        self, prompts: Sequence[Sequence[Message]], tools: Sequence[Mapping[str, Any]] = ()
    ) -> list[Reply]:
        """One for each conversation, `threads` of them at a time."""

        def ask(messages: Sequence[Message]) -> Reply:
            return self.ask(messages, tools)

        with ThreadPoolExecutor(max_workers=self.threads) as pool:
            return list(pool.map(ask, prompts))


def _logprobs(told: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Of the tokens, in OpenAI's form or in the older one with a list of numbers."""
    content = [part.get("logprob") for part in rows(told.get("content"))]
    numbers = content or cast("list[Any]", told.get("token_logprobs") or [])
    found = tuple(float(number) for number in numbers if isinstance(number, int | float))
    return found or None


def chat_with(
    config: HostConfig,
    model: str,
    *,
    max_tokens: int,
    temperature: float | None = None,
    retry: Retry | None = None,
) -> Chat:
    """Any host that speaks the API, by default asked once for each question, for texts that may hold
    anything: rows with calls of tools too. Raises `MissingKey`."""
    from orchestrate.providers.calls.clients import connect

    config = at_chat(config)
    root = (config.base_url or "").rstrip("/")
    limits = (one.chat_limit for one in built_in().values() if one.url and root.startswith(one.url))
    options: dict[str, Any] = {next(limits, "max_tokens"): max_tokens}
    if temperature is not None:
        options["temperature"] = temperature
    wire = Wire(config.name, retry=retry or Retry(attempts=1))
    return Chat(wire, connect(config).chat.completions.create, model, options, calls=False)


def at_chat(config: HostConfig) -> HostConfig:
    """A host with the address at which it takes `/chat/completions`."""
    root = (config.base_url or "").rstrip("/")
    if config.kind not in kinds():
        return config
    known = profile(config.kind)
    path, root = known.chat_path, known.chat_url or root if root == known.url else root
    return replace(config, base_url=root + path) if path and not root.endswith("/v1") else config
