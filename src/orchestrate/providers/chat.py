"""Client for models behind the chat completions API."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import msgspec

from orchestrate.errors import ConfigError, InvalidRequest, MissingKey, UnexpectedAnswer, UsageError
from orchestrate.profile import built_in, kinds, profile, this_machine
from orchestrate.providers.calls import CutShort, integer, plain, redact_text, rows, table, text
from orchestrate.providers.calls.hosted import Retry, Wire
from orchestrate.settings import config
from orchestrate.settings.config import HostConfig, Settings
from orchestrate.text import encodable
from orchestrate.types import Message, Reply

# Request options that a model rejects, which are left out of later requests.


UNSUPPORTED_CODES = frozenset({"unsupported_value", "unsupported_parameter"})
"""OpenAI's error codes for a request field (named in `param`) that the model does not support."""
OTHER_NAMES = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}
"""The two request fields for the output token limit, each mapped to the other. Older servers use
`max_tokens`, and reasoning models use `max_completion_tokens`."""
FREE = "temperature"
"""Option that is omitted if the model rejects it. The model then uses its default value."""


@dataclass
class RejectedOptions:
    """Options that a model rejects. Shared by all threads that use the model, so a rejected option is not
    sent again."""

    _replacements: dict[str, str | None] = field(default_factory=dict[str, "str | None"])
    """Rejected fields, as `{field: replacement}`. The replacement is `None` if the field is left out."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, options: dict[str, Any]) -> dict[str, Any]:
        """Return a copy of the options without those that the model is known to reject. A rejected option is
        renamed if the model accepts another name, and left out otherwise."""
        instead = {name: self._replacements.get(name, name) for name in options}
        return {new: options[name] for name, new in instead.items() if new is not None}

    def learn(self, error: InvalidRequest, sent: dict[str, Any]) -> bool:
        """Record an option that the model rejected. Returns True if a changed request may succeed."""
        refused = error.param
        if error.code not in UNSUPPORTED_CODES or refused is None or refused not in sent:
            return False
        with self._lock:
            if refused == FREE:
                self._replacements[FREE] = None
                return True
            other = OTHER_NAMES.get(refused)
            if other is None or self._replacements.get(other) == refused:
                return False
            self._replacements[refused] = other
            return True

    def notes(self, options: dict[str, Any]) -> tuple[str, ...]:
        """Describe which of these options were changed or omitted."""
        found: list[str] = []
        for name, other in self._replacements.items():
            if name in options and other is None:
                found.append(
                    f"{name} was not sent because the model does not support it. The model's default applies"
                )
            elif name in options:
                found.append(f"{other} was sent instead of {name}, which the model does not support")
        return tuple(found)


# Streamed answers of the chat completions API, to measure the time to the first token and to show text as it
# arrives.


_TEXT_FIELDS = ("content", "reasoning", "reasoning_content")


class Timed:
    """Replacement for an SDK client's `chat.completions.create` that measures the time to the first text. It
    requests a stream and returns the answer in its non-streaming form. `on_text` receives the text as it
    arrives."""

    def __init__(self, create: Callable[..., Any], on_text: Callable[[str], object] | None = None) -> None:
        self._create = create
        self._on_text = on_text
        self._local = threading.local()

    @property
    def first_seconds(self) -> float | None:
        """Seconds from the request to the first text, for the last answer in the current thread. `None` if
        that answer had no text."""
        return getattr(self._local, "first", None)

    def __call__(self, **options: Any) -> dict[str, Any]:
        """Send the request and time its answer. If the host or the SDK rejects `stream_options`, the request
        is repeated without this option, and token counts are missing."""
        more = {**options.get("extra_body", {}), "stream_options": {"include_usage": True}}
        try:
            answer = self._ask({**options, "stream": True, "extra_body": more})
        except Exception as error:
            if getattr(error, "status_code", None) not in (400, 422):
                raise
            answer = self._ask({**options, "stream": True})
        return answer

    def _ask(self, options: dict[str, Any]) -> dict[str, Any]:
        live = None if self._on_text is None else _LiveText(self._on_text)
        try:
            answer, self._local.first = _assembled(self._create, options, live)
        except Exception:
            if live is not None and live.started:
                live.on_text("\n(the answer was cut off here)\n")  # what is asked again begins anew
            raise
        return answer


class _LiveText:
    """Passes on the text of one answer, unless it starts with markup. Markup is reasoning or a tool call,
    which is parsed when complete."""

    def __init__(self, on_text: Callable[[str], object]) -> None:
        self.on_text = on_text
        self.started = False
        self._silent = False

    def __call__(self, piece: str) -> None:
        if not self.started:
            piece = piece.lstrip()
            self._silent = self._silent or piece.startswith(("<", "[TOOL"))
        if piece and not self._silent:
            self.started = True
            self.on_text(piece)


def _assembled(
    send: Callable[..., Iterable[Any]], options: dict[str, Any], live: _LiveText | None
) -> tuple[dict[str, Any], float | None]:
    started = time.monotonic()
    first: float | None = None
    message: dict[str, Any] = {"role": "assistant"}
    calls: dict[int, dict[str, Any]] = {}
    choice: dict[str, Any] = {"message": message}
    full_answer: dict[str, Any] = {"choices": [choice]}
    for piece in send(**options):
        chunk = plain(piece)
        full_answer |= {name: chunk[name] for name in ("model", "usage") if chunk.get(name)}
        for part in rows(chunk.get("choices"))[:1]:
            delta = table(part.get("delta"))
            for name in _TEXT_FIELDS:
                if said := text(delta.get(name)):
                    first = first if first is not None else time.monotonic() - started
                    message[name] = str(message.get(name, "")) + said
                    if live is not None and name == "content":
                        live(said)
            for call in rows(delta.get("tool_calls")):
                first = first if first is not None else time.monotonic() - started
                _add(calls, call)
            if part.get("finish_reason"):
                choice["finish_reason"] = part["finish_reason"]
    if "finish_reason" not in choice:
        raise CutShort  # what came is no answer of the model
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return full_answer, first


def _add(calls: dict[int, dict[str, Any]], piece: dict[str, Any]) -> None:
    """Add a piece of a tool call. The name arrives first, then pieces of the arguments."""
    index = integer(piece.get("index")) or 0
    call = calls.setdefault(index, {"type": "function", "function": {"name": "", "arguments": ""}})
    if id := text(piece.get("id")):
        call["id"] = id
    for name in ("name", "arguments"):
        call["function"][name] += text(table(piece.get("function")).get(name)) or ""


# Requests to the chat completions API, which all hosts implement.


@dataclass(frozen=True)
class Chat:
    """Chat client for one model. `create` is an SDK client's `chat.completions.create`, and `options` are
    sent with each request."""

    wire: Wire
    create: Callable[..., Any]
    model: str
    options: dict[str, Any] = field(default_factory=dict[str, Any])
    threads: int = 4
    """Maximum number of concurrent requests to the host."""
    calls: bool = True
    """True to look for tool calls in answers even if the request offered no tools."""
    rejected: RejectedOptions = field(default_factory=RejectedOptions, repr=False, compare=False)

    @property
    def retry(self) -> Retry:
        return self.wire.retry

    def ask_once(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Reply:
        """Send a conversation and return the reply, without retrying a request that may have been billed. Use
        this instead of `ask` if every request must be counted. If the model rejects an option, the request is
        sent again in a form that the model accepts. Raises `ProviderError` for any other failure."""
        return self._reply(messages, tools, self.wire.once)

    def ask(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Reply:
        """Send a conversation and return the reply. Can be called from several threads. Raises
        `ProviderError` if the request fails.

        A model that is still starting responds with 503 or 429, so requests are retried like reads. If the
        model does not support a temperature, or uses another name for the token limit, the request is
        repeated in a form that the model accepts, and the reply's notes describe the change."""
        return self._reply(messages, tools, self.wire.read)

    def _reply(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], send: Callable[..., Any]
    ) -> Reply:
        from orchestrate.data.tokens.answers import CUT_WITHIN_THINKING

        more = {"tools": [dict(tool) for tool in tools]} if tools else {}
        answer = self._answer([m.to_dict() for m in messages], more, send)
        choice, usage = next(iter(rows(answer.get("choices"))), None), table(answer.get("usage"))
        if choice is None:
            raise UnexpectedAnswer(self.wire.provider, "the chat response has no choices")
        finish = text(choice.get("finish_reason"))
        if finish == "error":
            # Hosts that forward requests respond with 200 even if the model's own host failed.
            why = text(table(choice.get("error")).get("message")) or "no reason given"
            raise UnexpectedAnswer(self.wire.provider, f"the chat response is an error: {redact_text(why)}")
        content, reasoning, calls = self._parsed(table(choice.get("message")), tools, cut=finish == "length")
        within = finish == "length" and reasoning and not content and not calls
        return Reply(
            content=content,
            model=text(answer.get("model")) or self.model,
            reasoning=reasoning,
            tool_calls=tuple(calls),
            prompt_tokens=integer(usage.get("prompt_tokens")),
            completion_tokens=integer(usage.get("completion_tokens")),
            logprobs=_logprobs(table(choice.get("logprobs"))),
            finish_reason=finish,
            notes=(*((CUT_WITHIN_THINKING,) if within else ()), *self.rejected.notes(self.options)),
        )

    def _answer(
        self, shaped: list[dict[str, Any]], more: dict[str, Any], send: Callable[..., Any]
    ) -> dict[str, Any]:
        while True:
            sent = self.rejected.of(self.options) | more
            ask = partial(self.create, model=self.model, messages=shaped, **sent)
            try:
                return encodable(plain(send(ask)))  # it is stored as UTF-8
            except InvalidRequest as error:
                if not self.rejected.learn(error, sent):
                    raise

    def _parsed(
        self, message: dict[str, Any], tools: Sequence[Mapping[str, Any]], *, cut: bool
    ) -> tuple[str, str | None, list[dict[str, Any]]]:
        """Return content, reasoning and tool calls, from the response's own fields if they are filled,
        otherwise from its text."""
        from orchestrate.data.tokens.answers import AnswerShape, read_answer

        content = text(message.get("content")) or ""
        reasoning = text(message.get("reasoning")) or text(message.get("reasoning_content")) or None
        calls = rows(message.get("tool_calls"))
        shape = AnswerShape(thinking=()) if reasoning else AnswerShape()
        search = not calls and (self.calls or bool(tools))
        said = read_answer(content, shape=shape, tools=tools, cut=cut, calls=search)
        calls = calls or [msgspec.to_builtins(call) for call in said.tool_calls]
        return said.content, reasoning or said.reasoning, calls

    def read_along(self, on_text: Callable[[str], object]) -> Chat:
        """Return a copy of this chat that calls `on_text` with each answer's text as it arrives."""
        return replace(self, create=Timed(self.create, on_text))

    def with_logprobs(self) -> Chat:
        """Return a copy of this chat that also requests the log-probabilities of the answers' tokens. If the
        host rejects the option, the request is repeated without it."""

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
        """Send up to `threads` requests at a time and return one reply for each conversation."""

        def ask(messages: Sequence[Message]) -> Reply:
            return self.ask(messages, tools)

        with ThreadPoolExecutor(max_workers=self.threads) as pool:
            return list(pool.map(ask, prompts))


def _logprobs(raw: Mapping[str, Any]) -> tuple[float, ...] | None:
    """Return the log-probabilities of the tokens, from OpenAI's format or from the older list of numbers."""
    content = [part.get("logprob") for part in rows(raw.get("content"))]
    numbers = content or cast("list[Any]", raw.get("token_logprobs") or [])
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
    """Create a chat with any host that implements the API. By default, failed requests are not retried.
    Messages may contain any content, including tool calls. Raises `MissingKey` if the host's key is not
    set."""
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
    """Return a host's configuration with the base URL of its chat API."""
    root = (config.base_url or "").rstrip("/")
    if config.kind not in kinds():
        return config
    known = profile(config.kind)
    path, root = known.chat_path, known.chat_url or root if root == known.url else root
    return replace(config, base_url=root + path) if path and not root.endswith("/v1") else config


# Models as users specify them: `MODEL`, `HOST=MODEL` or `https://ADDRESS=MODEL`.


@dataclass(frozen=True)
class ModelAt:
    """A model and its host."""

    model: str
    host: HostConfig

    @property
    def address(self) -> str:
        return self.host.base_url or self.host.name


def model_at(settings: Settings, written: str, key_variable: str | None = None) -> ModelAt:
    """Parse `MODEL`, `HOST=MODEL` or `https://ADDRESS=MODEL`. The default host is the first built-in one.
    `key_variable` names the environment variable with the key for a URL. Errors of `configured` and
    `addressed` propagate. Raises `UsageError` if no host is given and the first built-in host does not have
    the model."""
    if written.startswith(("http://", "https://")):
        address, equals, model = written.partition("=")
        if not equals or not model:
            raise UsageError(f"{written} does not contain a model name", fix="https://ADDRESS/v1=MODEL")
        return ModelAt(model, addressed(address, key_variable))
    name, equals, model = written.partition("=")
    if equals:
        return ModelAt(model, configured(settings, name))
    host = configured(settings, next(iter(built_in())))
    _require_there(host, written)
    return ModelAt(written, host)


def _require_there(host: HostConfig, name: str) -> None:
    """Check that the first host has this model. A user who names a local model or one of another
    host must not be prompted for this host's key. A user's own server at this host's address may have any
    model."""
    from orchestrate.catalog import lookup

    known, here = lookup(name), this_machine().kind
    elsewhere = Path(name).is_dir() if known is None else known.on(host.name) is None
    if not elsewhere or (host.base_url != built_in()[host.name].url and not host.sandbox):
        return
    ids = (
        {here: name} if known is None else {one: name if one == here else id for one, id in known.ids.items()}
    )
    raise UsageError(
        f"{name} is not a model of the default host, {host.name}",
        fix="specify the host: " + " or ".join(f"{one}={id}" for one, id in sorted(ids.items())),
    )


def configured(settings: Settings, name: str) -> HostConfig:
    """Return the configured host with this name. Raises `UsageError` for an unknown name."""
    host = settings.host(name)
    if host.base_url is None:
        raise UsageError(
            f"no host called {name!r} is configured",
            fix="use a backend listed by  orchestrate providers, or an https address",
        )
    return host


def addressed(address: str, key_variable: str | None = None) -> HostConfig:
    """Build the configuration of any OpenAI-compatible API, with the key in `key_variable` or without a key.
    A URL never gets the key of another host. Raises `UsageError` for an invalid URL, `MissingKey` if the
    variable is not set, and `ConfigError` if the key would be sent unencrypted."""
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(f"{address} is not an http or https address")
    key = config.Secret("none")
    if key_variable is not None:
        found = config.secret(url.hostname, key_variable)
        if found is None:
            raise MissingKey(url.hostname, key_variable)
        if url.scheme == "http" and not config.is_loopback(url.hostname):
            raise ConfigError(f"{address} would send the key unencrypted", fix="use https")
        key = found
    return replace(config.HostConfig(name=url.hostname), base_url=address.rstrip("/"), api_key=key)
