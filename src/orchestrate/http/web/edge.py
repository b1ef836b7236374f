"""The edge of every server that speaks an API: who may come in, and refusals in the form of that API.

From the outside in: `Guard` (names, origins, size of a body), `Keyed` (keys of clients), the routes. What
goes wrong in a route is reported by `edge` in the one form that the server gives it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrate.errors import OrchestrateError
from orchestrate.http.web.guard import Guard
from orchestrate.http.wire.bodies import HostError
from orchestrate.http.wire.openai.objects import error_body

Tell = Callable[[HostError], Response]
"""A refusal in the form of one API."""
Admit = Callable[[Scope], Awaitable[object]]
"""Looks at the key that a request brings. Raises `HostError` 401."""
Endpoint = Callable[[Request], Awaitable[Response]]
"""A route."""

_log = logging.getLogger(__name__)


def told(error: HostError) -> Response:
    """In the form of OpenAI's API."""
    return JSONResponse(error_body(error), error.status, headers=error.headers)


def edge(
    routes: Sequence[BaseRoute],
    *,
    door: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    names: Collection[str] = (),
    origins: Collection[str] = (),
    max_body: int,
    tell: Tell = told,
    refusal: Callable[[OrchestrateError], HostError] | None = None,
    lifespan: Any = None,
) -> Guard:
    """An app of these routes behind the guard. `door` stands between the two; `refusal` puts our own errors
    into the API's terms where routes raise them; the rest as `Guard` and Starlette take it."""

    def refused(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, HostError)  # noqa: S101  registered for this class only
        return tell(error)

    def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, OrchestrateError) and refusal is not None  # noqa: S101  likewise
        return refused(request, refusal(error))

    def missing(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        words = f"{request.method} {request.url.path} is not served here"
        if status not in (404, 405):
            words = str(getattr(error, "detail", error))
        headers: Mapping[str, str] = getattr(error, "headers", None) or {}
        return tell(HostError(status, words, code="not_found", headers=headers))

    def broken(request: Request, error: Exception) -> Response:
        _log.error("%s %s", request.method, request.url.path, exc_info=error)
        words = f"the server failed: {type(error).__name__}; its log says more"
        return tell(HostError(500, words, type="server_error"))

    handlers: dict[Any, Any] = {HostError: refused, HTTPException: missing, Exception: broken}
    if refusal is not None:
        handlers[OrchestrateError] = ours
    inner = Starlette(routes=list(routes), exception_handlers=handlers, lifespan=lifespan)
    return Guard(
        door(inner),
        names=names,
        origins=origins,
        max_body=max_body,
        refuse=lambda status, text: tell(HostError(status, text)),
    )


class Keyed:
    """An ASGI app before another one, which sees only requests that are admitted. `open`: paths that need no
    key."""

    def __init__(self, app: ASGIApp, admit: Admit, *, open: Collection[str] = ()) -> None:
        self._app, self._admit, self._open = app, admit, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            try:
                await self._admit(scope)
            except HostError as error:
                await told(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def bearer(scope: Mapping[str, Any]) -> str | None:
    """The key that a request brings."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if kind.lower() == "bearer" else None
    return None


def no_key(words: str) -> HostError:
    headers = {"www-authenticate": "Bearer"}
    return HostError(401, words, code="invalid_api_key", type="authentication_error", headers=headers)


def no_model(name: str, known: list[str]) -> HostError:
    words = f"The model {name!r} does not exist; this server has {', '.join(known)}"
    return HostError(404, words, code="model_not_found", param="model")
