"""One model to the outside, two behind it: an OpenAI-compatible proxy that gives each user their arm's model,
lets the base answer where the tuned one fails, and records what came of it.

The user is told by the header `x-user-id`, or by `safety_identifier` or `user` in the body. A request without
one is answered by the base, and is no part of the experiment.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import httpx
import msgspec
from anyio import to_thread
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrate.ab.experiment import Assignment, Experiment
from orchestrate.ab.outcomes import Given
from orchestrate.ab.plan import COST, FAILED, FAILOVERS, LATENCY
from orchestrate.ab.upstream import Answer, Upstream, ask, says_error, tokens, watched
from orchestrate.errors import OrchestrateError, UsageError
from orchestrate.serving.server.front import HANDLERS, Keyed, no_model, refused
from orchestrate.types import Arm, decoding
from orchestrate.web.guard import Guard
from orchestrate.wire.bodies import HostError, json_body
from orchestrate.wire.openai.chat import event
from orchestrate.wire.openai.errors import error_body
from orchestrate.wire.openai.pages import page

USER_HEADER = "x-user-id"
NOBODY = "requests without a user, answered by the base"
BROKEN = "streams that broke off"
_USER_FIELDS = ("safety_identifier", "user")
_PATHS = ("/chat/completions", "/completions", "/responses")
_MOST_BODY = 32 << 20
_log = logging.getLogger(__name__)
STORE_S = 2.0
"""For the store to say which model a user gets."""
SILENT_S = 10.0
"""It is left alone for, where it did not."""
_CONNECT_S = 5.0


@dataclass(frozen=True)
class Turn:
    """A request on its way."""

    path: str
    values: dict[str, Any]
    user: str | None
    given: Assignment
    begun: float
    counts: list[str] = field(default_factory=list[str])
    """Told in the report beside the metrics."""

    @property
    def streamed(self) -> bool:
        return bool(self.values.get("stream"))


@dataclass(frozen=True)
class Heard:
    """An answer, whose it is, and whether the user's own model failed to give it."""

    answer: Answer
    arm: Arm
    failed: bool


class Proxy:
    """An experiment in front of two models. `timeout_s`: for the first piece of an answer, and between two;
    then the model counts as failed."""

    def __init__(
        self,
        experiment: Experiment,
        base: Upstream,
        tuned: Upstream,
        *,
        keys: dict[str, str] | None = None,
        user_header: str = USER_HEADER,
        timeout_s: float = 60.0,
    ) -> None:
        self._experiment, self._at = experiment, {"base": base, "tuned": tuned}
        self._keys, self._user_header = keys or {}, user_header
        self._timeout = httpx.Timeout(timeout_s, connect=min(_CONNECT_S, timeout_s), pool=None)
        self._client: httpx.AsyncClient | None = None
        self._silent_until = 0.0
        # Threads of its own: a store that hangs does not take those that answers need.
        self._asking_store = anyio.CapacityLimiter(8)

    def app(self, *, names: tuple[str, ...] = (), origins: tuple[str, ...] = ()) -> Guard:
        """With the guard of all local servers before it; to be served with its lifespan."""
        routes = [Route(f"/v1{path}", self.answer, methods=["POST"]) for path in _PATHS]
        routes += [
            Route("/v1/models", self.models),
            Route("/v1/ab/outcomes", self.outcomes, methods=["POST"]),
            Route("/v1/ab/report", self.report),
            Route("/health", self.health),
        ]
        inner = Starlette(routes=routes, exception_handlers=HANDLERS, lifespan=self._lifespan)
        keyed = Keyed(inner, self._keys, open=("/health",))
        return Guard(keyed, names=names, origins=origins, max_body=_MOST_BODY, refuse=refused)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncGenerator[None]:
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
        turn = Turn(path, values, user, given, time.monotonic())
        if user is None:
            turn.counts.append(NOBODY)
        return self._told(turn, await self._heard(turn))

    async def _given(self, user: str) -> Assignment:
        """Nobody waits long for the store: while it says nothing, each user gets their model by what was last
        known, and that counts as nothing."""
        if time.monotonic() >= self._silent_until:
            with anyio.move_on_after(STORE_S):
                try:
                    return await to_thread.run_sync(
                        self._experiment.assign, user, abandon_on_cancel=True, limiter=self._asking_store
                    )
                except OrchestrateError as error:
                    _log.warning("the store of %s cannot be used: %s", self._experiment.plan.name, error)
            self._silent_until = time.monotonic() + SILENT_S
            _log.warning("users of %s are not counted for %.0f s", self._experiment.plan.name, SILENT_S)
        return self._experiment.guess(user)

    def _user(self, request: Request, values: dict[str, Any]) -> str | None:
        """As it is written: nothing in it means anything here."""
        found: list[Any] = [request.headers.get(self._user_header), *(values.get(f) for f in _USER_FIELDS)]
        return next((one for one in found if isinstance(one, str) and one), None)

    async def _heard(self, turn: Turn) -> Heard:
        assert self._client is not None  # noqa: S101  of the lifespan
        tried: Answer | None = None
        tuned, base = self._at["tuned"], self._at["base"]
        wanted = turn.given.arm == "tuned"
        if wanted and not tuned.resting:
            tried = await ask(self._client, tuned, turn.path, turn.values)
            if tried.good:
                return Heard(tried, "tuned", False)
        answer = await ask(self._client, base, turn.path, turn.values)
        if not wanted:
            return Heard(answer, "base", answer.failed)
        if answer.good:
            turn.counts.append(FAILOVERS)
        # What both refuse is the request's fault.
        return Heard(answer, "base", answer.good or tried is None or tried.failed)

    def _told(self, turn: Turn, heard: Heard) -> Response:
        answer = heard.answer
        headers = {"x-orchestrate-arm": turn.given.arm, "x-orchestrate-answered-by": heard.arm}
        if answer.status is None:
            words = f"no model answered ({answer.error}); ask again in a moment"
            error = HostError(502, words, type="server_error", code="no_answer")
            done = self._done(turn, heard, b"")
            return JSONResponse(error_body(error), 502, headers=headers, background=done)
        headers |= answer.headers
        if answer.rest is None:
            done = self._done(turn, heard, answer.body)
            return Response(answer.body, answer.status, headers=headers, background=done)
        headers |= {"x-accel-buffering": "no", "cache-control": "no-store"}
        return StreamingResponse(self._stream(turn, heard), answer.status, headers=headers)

    def _done(self, turn: Turn, heard: Heard, body: bytes) -> BackgroundTask:
        """After the answer was sent: nobody waits for the store."""
        return BackgroundTask(self._observe, turn, heard, body, time.monotonic() - turn.begun)

    async def _stream(self, turn: Turn, heard: Heard) -> AsyncGenerator[bytes]:
        """A stream that breaks off cannot be taken back: its end says so, and it counts as a failure."""
        tail = bytearray()
        cut = ""
        async with aclosing(watched(heard.answer, tail)) as pieces:
            try:
                async for piece in pieces:
                    yield piece
            except httpx.HTTPError as error:
                cut = f"the model's answer broke off ({type(error).__name__})"
        if cut or says_error(bytes(tail)):
            heard = Heard(heard.answer, heard.arm, True)
            self._at[heard.arm].heard(failed=True)
            turn.counts.append(BROKEN)
        if cut:
            yield event(error_body(HostError(502, cut, type="server_error", code="cut"))).encode()
        # Not reached where the client has left: what a model has not finished is no outcome.
        seconds = time.monotonic() - turn.begun
        with anyio.CancelScope(shield=True):
            await run_in_threadpool(self._observe, turn, heard, bytes(tail), seconds)

    def _observe(self, turn: Turn, heard: Heard, body: bytes, seconds: float) -> None:
        if time.monotonic() < self._silent_until:
            return
        try:
            self._record(turn, heard, body, seconds)
        except OrchestrateError as error:
            _log.warning("an outcome of %s is lost: %s", self._experiment.plan.name, error)

    def _record(self, turn: Turn, heard: Heard, body: bytes, seconds: float) -> None:
        if heard.answer.good:
            self._at[heard.arm].used()
        for what in turn.counts:
            self._experiment.count(what)
        if turn.user is None:
            return
        seen = {FAILED: float(heard.failed)}
        if heard.answer.good:
            seen[LATENCY] = seconds
        prices = self._experiment.plan.usd_per_mtok.get(heard.arm)
        if prices is not None and (used := tokens(body)):
            seen[COST] = float((used[0] * prices[0] + used[1] * prices[1]) / 1_000_000)
        self._experiment.observed(turn.user, turn.given, seen)

    # -- the experiment ------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        del request
        shown = {"id": self._experiment.plan.name, "object": "model", "created": 0, "owned_by": "orchestrate"}
        return JSONResponse(page([shown], more=False))

    async def outcomes(self, request: Request) -> Response:
        """One outcome, or several under `outcomes`."""
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
