"""One request of a client: who sends it, and what it may do."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from orchestrate.tracking.gateway.objects import NoSuchPlace
from orchestrate.types import GatewayKey
from orchestrate.wire.bodies import HostError
from orchestrate.wire.openai.pages import no_place

MAX_JSON = 8 << 20
"""Bytes of a body that is no file."""


@dataclass
class Call:
    """`subject`, the id of what is made or changed, is for the log."""

    request: Request
    key: GatewayKey
    body: dict[str, Any] = field(default_factory=dict[str, Any])
    raw: bytes = b""

    @property
    def project(self) -> str:
        return self.key.project

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def query(self, name: str) -> str | None:
        """An empty one is as none."""
        return self.request.query_params.get(name) or None

    def about(self, id: str) -> None:
        self.request.state.subject = id


Act = Callable[[Call], Any]


@contextmanager
def placed() -> Generator[None]:
    """A list behind an id that is not in it is refused: an empty one would say that there is nothing more.
    Raises `HostError` 404."""
    try:
        yield
    except NoSuchPlace as error:
        raise no_place(str(error)) from error


def key_of(request: Request) -> GatewayKey:
    return cast("GatewayKey", request.scope["gateway_key"])


def retries(request: Request) -> int:
    """How often its client has sent it before, as the official ones count."""
    told = request.headers.get("x-stainless-retry-count", "0")
    return int(told) if told.isascii() and told.isdigit() and len(told) < 6 else 0


def endpoint(path: str, method: str, act: Act) -> Route:
    """`act` runs in a thread, beside others; what it gives is the JSON that is answered, or a `Response`."""

    async def answer(request: Request) -> Response:
        call = Call(request, key_of(request))
        if method == "POST":
            call.raw = await read(request)
            call.body = parsed(call.raw)
        found = await run_in_threadpool(act, call)
        return found if isinstance(found, Response) else JSONResponse(found)

    return Route(path, answer, methods=[method])


def streamed(path: str, method: str, act: Callable[[Call], Awaitable[Response]]) -> Route:
    """`act` reads the body itself, or answers bit by bit."""

    async def answer(request: Request) -> Response:
        return await act(Call(request, key_of(request)))

    return Route(path, answer, methods=[method])


async def read(request: Request) -> bytes:
    """Raises `HostError` 413."""
    found = bytearray()
    async for part in request.stream():
        found += part
        if len(found) > MAX_JSON:
            raise HostError(413, f"a body that is no file has at most {MAX_JSON:,} bytes")
    return bytes(found)


def parsed(raw: bytes) -> dict[str, Any]:
    """Raises `HostError` 422 when the body is not a JSON object; half of a character, NaN and numbers without
    an end are none, and could not be answered back."""
    try:
        values: Any = msgspec.json.decode(raw or b"{}")
    except (ValueError, RecursionError) as error:
        raise HostError(422, f"We could not parse the JSON body of your request: {error}") from error
    if not isinstance(values, dict):
        raise HostError(422, "the JSON body of the request must be an object")
    return cast("dict[str, Any]", values)


def anonymous(at: datetime) -> GatewayKey:
    """Whoever comes while there are no keys, from this machine alone."""
    return GatewayKey(name="local", created_at=at)
