"""Verify a model on a server with the chat completions API: vLLM, llama.cpp, Orchestrate's own, or any
other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, cast

import httpx
import msgspec

from orchestrate.errors import AuthenticationFailed, HostUnavailable, NotFound, UnexpectedAnswer, UsageError
from orchestrate.serving.proof.observations import MORE_TOKENS, ObservedAnswer, PromptView, along
from orchestrate.types import Canary, Probe, decoding

TIMEOUT_S = 120.0
NOBODY = "no-such-model-7f3a"
"""A model name that does not exist on any server."""
_NO_ROUTE = (404, 405)


class TokenLogprob(msgspec.Struct):
    logprob: float | None
    token: str = ""
    bytes: list[Annotated[int, msgspec.Meta(ge=0, le=255)]] | None = None


class Logprobs(msgspec.Struct):
    """The log-probabilities of a choice. Chat responses fill `content`. Completion responses fill the other
    fields."""

    content: list[TokenLogprob] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None


class ProbeMessage(msgspec.Struct):
    content: str | None = None


class ProbeChoice(msgspec.Struct):
    """The fields of a choice that the proof uses."""

    text: str | None = None
    message: ProbeMessage | None = None
    logprobs: Logprobs | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class ProbeCompletion(msgspec.Struct):
    choices: Annotated[list[ProbeChoice], msgspec.Meta(min_length=1)]


class UrlPlace:
    """A server at a URL, queried at temperature 0, one request at a time. Raises `HostUnavailable`,
    `AuthenticationFailed` or `UnexpectedAnswer` if a request fails, and `NotFound` if the server does not
    list the model."""

    def __init__(
        self,
        url: str,
        *,
        model: str,
        base: str | None = None,
        key: str | None = None,
        client: httpx.Client | None = None,
    ) -> None:
        """Open the URL. `base` is the base model's name at the URL. `None` uses the parent that the server
        reports."""
        root = url.rstrip("/")
        if not root.startswith(("http://", "https://")):
            raise UsageError(f"{url} is not a server URL")
        self._root = root.removesuffix("/v1")
        self.at, self.model = root, model
        self.notes: list[str] = []
        self._base = base
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = client or httpx.Client(timeout=TIMEOUT_S)
        self._headers = headers
        self._observed: dict[bool, list[ObservedAnswer] | None] = {}
        self._options: dict[tuple[str, bool], list[dict[str, Any]]] = {}
        """Options that the server may accept, by path and by whether there are tools."""

    def close(self) -> None:
        self._client.close()

    # -- served models ---------------------------------------------------------------------------------------

    @cached_property
    def _listed(self) -> dict[str, Mapping[str, Any]]:
        """Return the server's models, by name."""
        body = self._ask("GET", "/v1/models")
        found = body.get("data")
        if not isinstance(found, list):
            raise UnexpectedAnswer(self._root, "/v1/models did not return a list")
        try:
            entries = decoding.convert(found, list[dict[str, Any]])
        except msgspec.ValidationError as error:
            raise UnexpectedAnswer(self._root, f"/v1/models returned an invalid list: {error}") from error
        models: dict[str, Mapping[str, Any]] = {str(m.get("id")): m for m in entries}
        if self.model not in models:
            raise NotFound(
                self._root,
                f"the server has no model {self.model!r}. It lists {', '.join(models) or 'none'}",
                fix="pass the served name of the tuned model: --model NAME",
            )
        return models

    @property
    def engine(self) -> str:
        owners = {str(m.get("owned_by")) for m in self._listed.values()}
        known = {"vllm": "vLLM", "llamacpp": "llama.cpp", "orchestrate": "orchestrate"}
        return next((known[o] for o in owners if o in known), "unknown")

    @property
    def base(self) -> str | None:
        given = self._base or self._listed[self.model].get("parent")
        return str(given) if given in self._listed else None

    def answers_to_any_name(self) -> bool:
        """Return whether the server accepts a model name that does not exist."""
        body = {"model": NOBODY, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}
        return self._post("/v1/chat/completions", body).status_code == 200

    # -- prompts ---------------------------------------------------------------------------------------------

    def prompts(self, probes: Sequence[Probe]) -> list[PromptView]:
        if self.answers_to_any_name():
            self.notes.append("the server accepts any model name, so a mistyped name goes unnoticed")
        return [self._prompt(probe) for probe in probes]

    def _prompt(self, probe: Probe) -> PromptView:
        tools = {"tools": list(probe.tools)} if probe.tools else {}
        asked = {"model": self.model, "messages": list(probe.messages), **tools}
        return self._tokenized(asked) or self._counted(asked)

    def _tokenized(self, asked: dict[str, Any]) -> PromptView | None:
        """Ask for the token ids. Returns `None` if the server has no route for that, as behind a gateway."""
        if self.engine in ("vLLM", "orchestrate"):
            return self._ids("/tokenize", {**asked, "add_generation_prompt": True})
        if self.engine != "llama.cpp":
            return None
        rendered = self._post("/apply-template", asked)
        if rendered.status_code in _NO_ROUTE:
            return None
        if rendered.status_code != 200:
            return PromptView(refused=_message(rendered))
        text = self._body(rendered).get("prompt")
        return self._ids("/tokenize", {"content": text, "add_special": True, "parse_special": True})

    def _counted(self, asked: dict[str, Any]) -> PromptView:
        """Read the number of prompt tokens from the usage of a completion."""
        done = self._post("/v1/chat/completions", {**asked, "max_tokens": 1, "temperature": 0})
        if done.status_code != 200:
            return PromptView(refused=_message(done))
        usage: Any = self._body(done).get("usage")
        counted: Any = cast("dict[str, Any]", usage).get("prompt_tokens") if isinstance(usage, dict) else None
        return PromptView(count=counted if isinstance(counted, int) else None)

    def _ids(self, path: str, body: dict[str, Any]) -> PromptView | None:
        done = self._post(path, body)
        if done.status_code in _NO_ROUTE:
            return None
        if done.status_code != 200:
            return PromptView(refused=_message(done))
        try:
            return PromptView(ids=decoding.convert(self._body(done).get("tokens"), list[int]))
        except msgspec.ValidationError as error:
            raise UnexpectedAnswer(self._root, f"{path} returned no tokens: {error}") from error

    # -- answers ---------------------------------------------------------------------------------------------

    def answers(self, canaries: Sequence[Canary], *, base: bool) -> list[ObservedAnswer] | None:
        if base not in self._observed:
            name = self.base if base else self.model
            self._observed[base] = None if name is None else [self._answer(name, c) for c in canaries]
        return self._observed[base]

    def scores(self, canaries: Sequence[Canary], *, base: bool) -> list[Sequence[float | None]] | None:
        observed = self.answers(canaries, base=base)
        if observed is None or all(h.logprobs is None for h in observed):
            return None
        known = [c.base if base else c.tuned for c in canaries]
        return [along(h, said) for h, said in zip(observed, known, strict=True)]

    def _answer(self, name: str, canary: Canary) -> ObservedAnswer:
        body: dict[str, Any] = {
            "model": name,
            "max_tokens": len(canary.tuned.ids) + MORE_TOKENS,
            "temperature": 0,
            "seed": 0,
        }
        if canary.text is not None:
            path, own, logprobs = "/v1/completions", {"prompt": canary.text}, {"logprobs": 1}
        else:
            tools = {"tools": list(canary.tools), "tool_choice": "none"} if canary.tools else {}
            path, own = "/v1/chat/completions", {"messages": list(canary.messages), **tools}
            logprobs = {"logprobs": True}
        ids = {"return_token_ids": True} if self.engine in ("vLLM", "orchestrate") else {}
        # Some servers, and gateways in front of them, reject one of the two options or both.
        every = [{**logprobs, **ids}, logprobs, ids, {}] if ids else [logprobs, {}]
        # Remembered for requests of the same kind, once one of them succeeds without an option.
        kind = (path, bool(canary.tools))
        options = self._options.get(kind, every)
        done = self._post(path, {**body, **own, **options[0]})
        while done.status_code in (400, 422) and len(options) > 1:
            options = options[1:]
            done = self._post(path, {**body, **own, **options[0]})
        if done.status_code == 200:
            self._options[kind] = options
        if done.status_code != 200:
            raise UnexpectedAnswer(
                self._root, f"{name} rejected a prompt ({done.status_code}): {_message(done)}"
            )
        try:
            return _observed(decoding.convert(self._body(done), ProbeCompletion).choices[0])
        except msgspec.ValidationError as error:
            raise UnexpectedAnswer(self._root, f"{path} returned no answer: {error}") from error

    # -- HTTP ------------------------------------------------------------------------------------------------

    def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self._send("POST", path, body)

    def _ask(self, method: str, path: str) -> dict[str, Any]:
        done = self._send(method, path, None)
        if done.status_code != 200:
            raise UnexpectedAnswer(self._root, f"{path} returned {done.status_code}: {_message(done)}")
        return self._body(done)

    def _send(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            done = self._client.request(method, self._root + path, json=body, headers=self._headers)
        except httpx.HTTPError as error:
            raise HostUnavailable(
                self._root, f"no answer from {path}: {error or type(error).__name__}"
            ) from error
        if done.status_code in (401, 403):
            raise AuthenticationFailed(self._root, _message(done), status=done.status_code)
        if done.status_code in (429, 502, 503):
            raise HostUnavailable(self._root, _message(done), status=done.status_code)
        return done

    def _body(self, done: httpx.Response) -> dict[str, Any]:
        try:
            body = done.json()
        except ValueError as error:
            raise UnexpectedAnswer(self._root, f"{done.request.url.path} did not return JSON") from error
        if not isinstance(body, dict):
            raise UnexpectedAnswer(self._root, f"{done.request.url.path} did not return an object")
        return body  # pyright: ignore[reportUnknownVariableType]  # JSON objects have string keys


def _observed(choice: ProbeChoice) -> ObservedAnswer:
    logprobs = choice.logprobs or Logprobs()
    if logprobs.token_logprobs is not None:
        values, pieces = logprobs.token_logprobs, [t.encode() for t in logprobs.tokens or ()]
    else:
        entries = logprobs.content or []
        values = [e.logprob for e in entries]
        pieces = [e.token.encode() if e.bytes is None else bytes(e.bytes) for e in entries]
    numbers = [v for v in values if v is not None]
    text = choice.text if choice.message is None else choice.message.content
    return ObservedAnswer(
        text=text or "",
        ended=None if choice.finish_reason is None else choice.finish_reason == "stop",
        ids=choice.token_ids or None,
        pieces=pieces or None,
        logprobs=numbers if numbers and len(numbers) == len(values) else None,
    )


def _message(done: httpx.Response) -> str:
    try:
        body = done.json()
        error = body.get("error", body)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    except (ValueError, AttributeError):
        return done.text[:300]
