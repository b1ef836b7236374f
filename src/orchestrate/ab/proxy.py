"""An OpenAI-compatible proxy in front of two models.

Each user gets the model of their arm. If the tuned model fails, the base model answers. The proxy records the
outcomes.

Users are identified by the header `x-user-id`, or by `safety_identifier` or `user` in the body. Requests
without a user are answered by the base model and are not part of the experiment.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, cast

import anyio
import httpx
import msgspec
from anyio import to_thread
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from orchestrate.ab.experiment import Assignment, Experiment, Given, of_user
from orchestrate.ab.plan import COST, FAILED, FAILOVERS, LATENCY
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.http.web import Keyed, edge, no_model
from orchestrate.http.wire import HostError, json_body
from orchestrate.http.wire.openai import error_body, page
from orchestrate.http.wire.openai.chat import event
from orchestrate.serving.server.keys import Clients
from orchestrate.settings import Secret
from orchestrate.types import Arm, decoding

ITS_OWN_FAULT = frozenset({401, 403, 404, 408, 429})
"""HTTP statuses below 500 that count as a failure of the host, not of the request: unauthorized, forbidden,
not found, timeout, and too many requests."""
_KEPT = ("content-type", "retry-after")
"""Response headers that are forwarded to the client."""
_FAILURES, _COOL_S = 3, 10.0
_USED_S = 60.0
"""Minimum seconds between two calls of `Upstream.on_use`."""
_TAIL = 16_384


@dataclass
class Upstream:
    """A model at a URL with the chat completions API. `url` must end with `/v1`."""

    url: str
    model: str
    key: Secret | None = None
    on_use: Callable[[], None] | None = None
    """Callback that reports that the model is in use. Called after a response, at most once per minute. It
    may block."""
    _used_at: float = field(default=float("-inf"), init=False)
    _failed: int = field(default=0, init=False)
    _until: float = field(default=0.0, init=False)

    @property
    def resting(self) -> bool:
        """True if the model has failed several times in a row. Requests then skip it for 10 seconds, so users
        don't have to wait for each failure."""
        return time.monotonic() < self._until

    def record_result(self, *, failed: bool) -> None:
        self._failed = self._failed + 1 if failed else 0
        if self._failed >= _FAILURES:
            self._until = time.monotonic() + _COOL_S

    def used(self) -> None:
        if self.on_use is not None and time.monotonic() - self._used_at >= _USED_S:
            self._used_at = time.monotonic()
            self.on_use()


@dataclass
class ProxiedAnswer:
    """A model's answer, which may still be streaming. `status` is the HTTP status, or `None` if there was no
    valid answer."""

    status: int | None
    headers: dict[str, str] = field(default_factory=dict[str, str])
    body: bytes = b""
    """The complete answer, or the first chunk of a stream."""
    rest: AsyncGenerator[bytes] | None = None
    error: str = ""

    @property
    def good(self) -> bool:
        return self.status is not None and self.status < 400

    @property
    def failed(self) -> bool:
        """True if the model's host failed."""
        return self.status is None or self.status >= 500 or self.status in ITS_OWN_FAULT


async def ask(client: httpx.AsyncClient, at: Upstream, path: str, values: Mapping[str, Any]) -> ProxiedAnswer:
    """Forward a request to the upstream, with `model` set to the upstream's model name. Returns once the
    complete answer or the first chunk of a stream has arrived. Never raises."""
    headers = {"content-type": "application/json"}
    if at.key is not None:
        headers["authorization"] = f"Bearer {at.key.reveal()}"
    content = json.dumps({**values, "model": at.model}).encode("utf-8", "surrogatepass")
    try:
        request = client.build_request("POST", at.url + path, content=content, headers=headers)
        response = await client.send(request, stream=True)
        answer = await _begun(response, streamed=bool(values.get("stream")))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        answer = ProxiedAnswer(None, error=type(error).__name__)
    if answer.failed:
        at.record_result(failed=True)
    elif answer.good:
        at.record_result(failed=False)
    return answer


async def _begun(response: httpx.Response, *, streamed: bool) -> ProxiedAnswer:
    headers = {name: response.headers[name] for name in _KEPT if name in response.headers}
    if response.status_code >= 400 or not streamed:
        try:
            body = await response.aread()
        finally:
            await response.aclose()
        if response.status_code < 400 and not _answers(body):
            return ProxiedAnswer(
                None, error=f"HTTP {response.status_code}, but the response contained no completion"
            )
        return ProxiedAnswer(response.status_code, headers, body)
    rest = _pieces(response)
    try:
        first = await anext(rest)
    except StopAsyncIteration:
        return ProxiedAnswer(None, error="an empty stream")
    if "text/event-stream" not in headers.get("content-type", "") or says_error(first):
        await rest.aclose()
        return ProxiedAnswer(None, error=f"HTTP {response.status_code} without an answer in the body")
    return ProxiedAnswer(response.status_code, headers, first, rest)


def _answers(body: bytes) -> bool:
    """Return whether a body is an answer. A proxy in between may return status 200 with its own page."""
    found = _object(body)
    return bool(found) and not found.get("error")


_LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")


def says_error(data: bytes) -> bool:
    """Return whether the last complete event in a stream is an error."""
    for line in reversed(data.splitlines()):
        found = _object(line.removeprefix(b"data:")) if line.startswith(b"data:") else {}
        if found:
            return bool(found.get("error")) or found.get("type") in ("error", "response.failed")
    return False


def _object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object. Returns an empty one for anything else."""
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


def is_complete(data: bytes) -> bool:
    """Return whether a stream has sent its last event."""
    for line in reversed(data.splitlines()):
        if line.startswith(b"data:"):
            event = line.removeprefix(b"data:").strip()
            return event == b"[DONE]" or _object(event).get("type") in _LAST_EVENTS
    return False


async def watched(answer: ProxiedAnswer, tail: bytearray) -> AsyncGenerator[bytes]:
    """Yield all chunks of a stream, and store the last bytes in `tail`. Raises `httpx.HTTPError` if the
    stream is interrupted."""
    tail += answer.body
    yield answer.body
    if answer.rest is not None:
        async with aclosing(answer.rest) as rest:
            async for piece in rest:
                tail += piece
                del tail[:-_TAIL]
                yield piece


def tokens(data: bytes) -> tuple[int, int] | None:
    """Return the reported token usage of a response or stream, as (prompt tokens, completion tokens). Returns
    `None` if no usage is reported."""
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


USER_HEADER = "x-user-id"
NOBODY = "requests without a user, answered by the base"
BROKEN = "interrupted streams"
_USER_FIELDS = ("safety_identifier", "user")
_PATHS = ("/chat/completions", "/completions", "/responses")
_MOST_BODY = 32 << 20
_log = logging.getLogger(__name__)
STORE_S = 2.0
"""Seconds to wait for the store when looking up a user's model."""
SILENT_S = 10.0
"""Seconds during which the proxy doesn't access the store after a store error or timeout."""
_CONNECT_S = 5.0


@dataclass(frozen=True)
class ProxiedRequest:
    """A request in progress."""

    path: str
    values: dict[str, Any]
    user: str | None
    given: Assignment
    begun: float
    counts: list[str] = field(default_factory=list[str])
    """Names of events, other than metrics, to count for the report."""

    @property
    def streamed(self) -> bool:
        return bool(self.values.get("stream"))


@dataclass(frozen=True)
class ArmAnswer:
    """The response to one request, the arm that produced it, and whether the model of the user's own arm
    failed."""

    answer: ProxiedAnswer
    arm: Arm
    failed: bool


class Proxy:
    """A proxy that runs an experiment in front of two models. `timeout_s` limits the wait for the first chunk
    of an answer, and then for each further chunk. A model that exceeds this limit counts as failed."""

    def __init__(
        self,
        experiment: Experiment,
        base: Upstream,
        tuned: Upstream,
        *,
        clients: Clients,
        user_header: str = USER_HEADER,
        timeout_s: float = 60.0,
    ) -> None:
        self._experiment, self._at = experiment, {"base": base, "tuned": tuned}
        self._clients, self._user_header = clients, user_header
        self._timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s), pool=None)
        self._client: httpx.AsyncClient | None = None
        self._silent_until = 0.0
        # The store has its own threads, so a hanging store can't block the threads that answers need.
        self._asking_store = anyio.CapacityLimiter(8)

    def app(self, *, names: tuple[str, ...] = (), origins: tuple[str, ...] = ()) -> ASGIApp:
        """Build the ASGI app, with the same access checks as all local servers. The server must run the app's
        lifespan events."""
        routes = [Route(f"/v1{path}", self.answer, methods=["POST"]) for path in _PATHS]
        routes += [
            Route("/v1/models", self.models),
            Route("/v1/ab/outcomes", self.outcomes, methods=["POST"]),
            Route("/v1/ab/report", self.report),
            Route("/health", self.health),
        ]
        return edge(
            routes,
            door=lambda inner: Keyed(inner, self._clients.lately, open=("/health",)),
            names=names,
            origins=origins,
            max_body=_MOST_BODY,
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, app: object) -> AsyncGenerator[None]:
        del app
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64)
        async with httpx.AsyncClient(timeout=self._timeout, limits=limits) as client:
            self._client = client
            yield

    # -- answers -------------------------------------------------------------------------------------------

    async def answer(self, request: Request) -> Response:
        values = await json_body(request)
        name = self._experiment.plan.name
        if (asked := values.get("model")) != name:
            raise no_model(str(asked), [name])
        user = self._user(request, values)
        path = request.url.path.removeprefix("/v1")
        given = Assignment("base", 0, False) if user is None else await self._given(user)
        turn = ProxiedRequest(path, values, user, given, time.monotonic())
        if user is None:
            turn.counts.append(NOBODY)
        return self._respond(turn, await self._ask_models(turn))

    async def _given(self, user: str) -> Assignment:
        """Return the user's model, without waiting long for the store. If the store does not respond, the
        last known share decides, and the user's outcomes don't count."""
        if time.monotonic() >= self._silent_until:
            with anyio.move_on_after(STORE_S):
                try:
                    return await to_thread.run_sync(
                        self._experiment.assign, user, abandon_on_cancel=True, limiter=self._asking_store
                    )
                except OrchestrateError as error:
                    _log.warning("could not access the store of %s: %s", self._experiment.plan.name, error)
            self._silent_until = time.monotonic() + SILENT_S
            plan = self._experiment.plan.name
            _log.warning("the users of %s are not recorded for the next %.0f s", plan, SILENT_S)
        return self._experiment.guess(user)

    def _user(self, request: Request, values: dict[str, Any]) -> str | None:
        """Return the user id unchanged, because any text is a valid id. A number is its text, as in an
        outcome. Raises `HostError` 400 for anything else, as OpenAI does."""
        header = request.headers.get(self._user_header, "")
        with suppress(UnicodeDecodeError):
            # Clients send UTF-8, which Starlette decodes as Latin-1. Without this, the user of a header would
            # not be the same user in a body or an outcome.
            header = header.encode("latin-1").decode()
        if header:
            return header
        for name in _USER_FIELDS:
            found = values.get(name)
            if found is not None and type(found) not in (str, int):
                raise HostError(400, f"{name} must be a string, got {json.dumps(found)[:80]}", param=name)
            if found is not None and found != "":
                return of_user(found)
        return None

    async def _ask_models(self, turn: ProxiedRequest) -> ArmAnswer:
        assert self._client is not None  # noqa: S101  of the lifespan
        tried: ProxiedAnswer | None = None
        tuned, base = self._at["tuned"], self._at["base"]
        wanted = turn.given.arm == "tuned"
        if wanted and not tuned.resting:
            tried = await ask(self._client, tuned, turn.path, turn.values)
            if tried.good:
                return ArmAnswer(tried, "tuned", False)
        answer = await ask(self._client, base, turn.path, turn.values)
        if not wanted:
            return ArmAnswer(answer, "base", answer.failed)
        if answer.good:
            turn.counts.append(FAILOVERS)
        # If both models reject the request, the request is at fault, so the tuned model did not fail.
        return ArmAnswer(answer, "base", answer.good or tried is None or tried.failed)

    def _respond(self, turn: ProxiedRequest, answered: ArmAnswer) -> Response:
        answer = answered.answer
        headers = {"x-orchestrate-arm": turn.given.arm, "x-orchestrate-answered-by": answered.arm}
        if answer.status is None:
            words = f"no model answered ({answer.error}); try again in a moment"
            error = HostError(502, words, type="server_error", code="no_answer")
            done = self._done(turn, answered, b"")
            return JSONResponse(error_body(error), 502, headers=headers, background=done)
        headers |= answer.headers
        if answer.rest is None:
            done = self._done(turn, answered, answer.body)
            return Response(answer.body, answer.status, headers=headers, background=done)
        headers |= {"x-accel-buffering": "no", "cache-control": "no-store"}
        return StreamingResponse(self._stream(turn, answered), answer.status, headers=headers)

    def _done(self, turn: ProxiedRequest, answered: ArmAnswer, body: bytes) -> BackgroundTask:
        """Build the task that records outcomes after the answer was sent, so that no client waits for the
        store."""
        return BackgroundTask(self._observe, turn, answered, body, time.monotonic() - turn.begun)

    async def _stream(self, turn: ProxiedRequest, answered: ArmAnswer) -> AsyncGenerator[bytes]:
        """Forward a stream. If the stream is interrupted, it ends with an error event and counts as a
        failure."""
        tail = bytearray()
        cut, whole = "", False
        try:
            async with aclosing(watched(answered.answer, tail)) as pieces:
                try:
                    async for piece in pieces:
                        yield piece
                except httpx.HTTPError as error:
                    cut = f"the model's answer was cut off ({type(error).__name__})"
            if cut:
                yield event(error_body(HostError(502, cut, type="server_error", code="cut"))).encode()
            whole = True
        finally:
            # A client that disconnects leaves an unfinished answer, which is no outcome. But some disconnect
            # as soon as they have read the last event, before the model has closed its stream.
            if whole or cut or is_complete(bytes(tail)):
                await self._ended(turn, answered, bytes(tail), broken=bool(cut))

    async def _ended(self, turn: ProxiedRequest, answered: ArmAnswer, tail: bytes, *, broken: bool) -> None:
        seconds = time.monotonic() - turn.begun
        if broken or says_error(tail):
            answered = ArmAnswer(answered.answer, answered.arm, True)
            self._at[answered.arm].record_result(failed=True)
            turn.counts.append(BROKEN)
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(self._observe, turn, answered, tail, seconds)

    def _observe(self, turn: ProxiedRequest, answered: ArmAnswer, body: bytes, seconds: float) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            self._record(turn, answered, body, seconds)
        except OrchestrateError as error:
            _log.warning("could not record an outcome of %s: %s", self._experiment.plan.name, error)

    def _record(self, turn: ProxiedRequest, answered: ArmAnswer, body: bytes, seconds: float) -> None:
        if answered.answer.good:
            self._at[answered.arm].used()
        for what in turn.counts:
            self._experiment.count(what)
        if turn.user is None:
            return
        seen = {FAILED: float(answered.failed)}
        if answered.answer.good:
            seen[LATENCY] = seconds
        prices = self._experiment.plan.usd_per_mtok.get(answered.arm)
        if prices is not None and (used := tokens(body)):
            seen[COST] = float((used[0] * prices[0] + used[1] * prices[1]) / 1_000_000)
        self._experiment.observed(turn.user, turn.given, seen)

    # -- the experiment ------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        del request
        shown = {"id": self._experiment.plan.name, "object": "model", "created": 0, "owned_by": "orchestrate"}
        return JSONResponse(page([shown], more=False))

    async def outcomes(self, request: Request) -> Response:
        """Record the outcome in the request body, or all outcomes in the body's `outcomes` list."""
        values = await json_body(request)
        listed: Any = values.get("outcomes", [values])
        try:
            given = decoding.convert(listed, list[Given])
            taken = await run_in_threadpool(self._experiment.record_all, given)
        except (msgspec.ValidationError, UsageError) as error:
            raise HostError(400, str(error)) from error
        return JSONResponse(taken.to_dict())

    async def report(self, request: Request) -> Response:
        del request
        found = await run_in_threadpool(self._experiment.report)
        return JSONResponse(found.to_dict())

    async def health(self, request: Request) -> Response:
        del request
        resting = [arm for arm, at in self._at.items() if at.resting]
        return JSONResponse({"status": "ok", "resting": resting})
