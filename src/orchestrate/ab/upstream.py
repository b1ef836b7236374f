"""The two models behind the proxy: asking one, and leaving alone for a while one that keeps failing."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import httpx

from orchestrate.settings.keys import Secret

ITS_OWN_FAULT = frozenset({401, 403, 404, 408, 429})
"""Statuses below 500 that are not for what was asked: it is not there, not allowed, or has too much to do."""
_KEPT = ("content-type", "retry-after")
"""Headers of an answer that go on to the client."""
_FAILURES, _COOL_S = 3, 10.0
_USED_S = 60.0
"""Between two times that whoever keeps a model up is told of its use."""
_TAIL = 16_384


@dataclass
class Upstream:
    """A model at an address that speaks the chat completions API. `url` ends with its `/v1`."""

    url: str
    model: str
    key: Secret | None = None
    on_use: Callable[[], None] | None = None
    """Told that it has answered, now and then; it may wait for a store."""
    _told: float = field(default=float("-inf"), init=False)
    _failed: int = field(default=0, init=False)
    _until: float = field(default=0.0, init=False)

    @property
    def resting(self) -> bool:
        """It failed several times in a row: it is not asked for some seconds, so that users do not wait for
        each of its failures."""
        return time.monotonic() < self._until

    def heard(self, *, failed: bool) -> None:
        self._failed = self._failed + 1 if failed else 0
        if self._failed >= _FAILURES:
            self._until = time.monotonic() + _COOL_S

    def used(self) -> None:
        if self.on_use is not None and time.monotonic() - self._told >= _USED_S:
            self._told = time.monotonic()
            self.on_use()


@dataclass
class Answer:
    """An answer that has begun. `status` is `None` where there is none at all."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    """All of it; of a stream its first piece."""
    rest: AsyncGenerator[bytes] | None = None
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status is not None and self.status < 400

    @property
    def failed(self) -> bool:
        """By a fault of the model's place."""
        return self.status is None or self.status >= 500 or self.status in ITS_OWN_FAULT


async def ask(client: httpx.AsyncClient, at: Upstream, path: str, values: Mapping[str, Any]) -> Answer:
    """Sends a request on under the model's own name. Returns when a whole answer is there, or the first piece
    of a stream; raises nothing."""
    headers = {"content-type": "application/json"}
    if at.key is not None:
        headers["authorization"] = f"Bearer {at.key.reveal()}"
    content = json.dumps({**values, "model": at.model}).encode("utf-8", "surrogatepass")
    try:
        request = client.build_request("POST", at.url + path, content=content, headers=headers)
        response = await client.send(request, stream=True)
        answer = await _begun(response, streamed=bool(values.get("stream")))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        answer = Answer(None, error=type(error).__name__)
    if answer.failed:
        at.heard(failed=True)
    elif answer.good:
        at.heard(failed=False)
    return answer


async def _begun(response: httpx.Response, *, streamed: bool) -> Answer:
    headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
    if response.status_code >= 400 or not streamed:
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        if response.status_code < 400 and not _answers(body):
            return Answer(None, error=f"HTTP {response.status_code} with no answer in it")
        return Answer(response.status_code, headers, body)
    rest = _pieces(response)
    try:
        first = await anext(rest)
    except StopAsyncIteration:
        return Answer(None, error="an empty stream")
    if "text/event-stream" not in headers.get("content-type", "") or says_error(first):
        await rest.aclose()
        return Answer(None, error=f"HTTP {response.status_code} with no answer in it")
    return Answer(response.status_code, headers, first, rest)


def _answers(body: bytes) -> bool:
    """Whether a body is an answer: what stands between may say 200 and show a page of its own."""
    found = _object(body)
    return bool(found) and not found.get("error")


def says_error(data: bytes) -> bool:
    """Whether the last whole event of these bytes of a stream is an error."""
    for line in reversed(data.splitlines()):
        found = _object(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
        if found:
            return bool(found.get("error")) or found.get("type") in ("error", "response.failed")
    return False


def _object(data: bytes) -> dict[str, Any]:
    """Empty for what is no JSON object."""
    try:
        found: Any = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


async def _pieces(response: httpx.Response) -> AsyncGenerator[bytes]:
    try:
        async for piece in response.aiter_bytes():
            if piece:
                yield piece
    finally:
        with anyio.CancelScope(shield=True):
            await response.aclose()


async def watched(answer: Answer, tail: bytearray) -> AsyncGenerator[bytes]:
    """All pieces of a stream; the last bytes of it are kept in `tail`. Raises `httpx.HTTPError` where it
    breaks off."""
    tail += answer.body
    yield answer.body
    if answer.rest is not None:
        async with aclosing(answer.rest) as rest:
            async for piece in rest:
                tail += piece
                del tail[:-_TAIL]
                yield piece


def tokens(data: bytes) -> tuple[int, int] | None:
    """Of prompt and answer, as an answer or the end of a stream tells them."""
    lines = data.splitlines() if b"data:" in data else [data]
    for line in reversed(lines):
        if b'"usage"' not in line:
            continue
        body = _object(line.removeprefix(b"data:"))
        for holder in (body, _field(body, "response")):
            for names in (("prompt_tokens", "completion_tokens"), ("input_tokens", "output_tokens")):
                found = [_field(_field(holder, "usage"), name) for name in names]
                if all(isinstance(number, int) for number in found):
                    return found[0], found[1]
    return None


def _field(value: Any, name: str) -> Any:
    return cast("dict[str, Any]", value).get(name) if isinstance(value, dict) else None
