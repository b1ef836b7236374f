"""The gateway's routes, with what stands before them: who may come, how often, and the log of it."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrate.errors import OrchestrateError
from orchestrate.gateway import refusals
from orchestrate.gateway.audit import Audit
from orchestrate.gateway.calls import anonymous
from orchestrate.serving.server.front import bearer
from orchestrate.serving.server.load import Full, Load
from orchestrate.serving.server.refusals import full
from orchestrate.types import GatewayKey
from orchestrate.web.guard import Guard
from orchestrate.wire.bodies import HostError
from orchestrate.wire.openai.objects import MAX_FILE

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

_log = logging.getLogger(__name__)
_HEALTH = "/health"


def app(
    ft: Workspace, routes: Sequence[BaseRoute], names: Sequence[str], most_requests: int = 512
) -> ASGIApp:
    """`names`: host names by which it may be asked besides this machine's addresses. Beyond `most_requests`
    at once further ones are told to come later."""
    handlers: dict[Any, Any] = {
        HostError: _told,
        OrchestrateError: _told,
        HTTPException: _missing,
        Exception: _broken,
    }
    inner = Starlette(routes=list(routes), exception_handlers=handlers)
    return Guard(
        _Door(ft, inner, Load(most_requests, 0)), names=names, max_body=MAX_FILE + (1 << 20), refuse=_guarded
    )


class _Door:
    """Finds out whose key a request brings, counts it, and writes down what was changed or refused."""

    def __init__(self, ft: Workspace, inner: ASGIApp, load: Load) -> None:
        self._ft, self._inner, self._load = ft, inner, load
        self._keys, self._audit = ft.store.gateway_keys, Audit(ft.store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == _HEALTH:
            await Response('{"status":"ok"}', media_type="application/json")(scope, receive, send)
            return
        try:
            with self._load.taking():
                await self._take(scope, receive, send)
        except Full as error:
            await refusals.answer(full(error))(scope, receive, send)

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        key, code, noted = None, None, False

        async def note(status: int) -> None:
            nonlocal noted
            if not noted:
                noted = True
                await run_in_threadpool(self._audit.write, scope, key, status, code)

        async def noting(message: Message) -> None:
            """Before a client knows of what it did, it is in the log, whatever is killed then."""
            if message["type"] == "http.response.start":
                await note(message["status"])
            await send(message)

        try:
            key = await run_in_threadpool(self._admitted, scope)
            scope["gateway_key"], scope["state"] = key, {}
            await self._inner(scope, receive, noting)
        except HostError as error:
            code = error.code
            await refusals.answer(error)(scope, receive, noting)
        except OrchestrateError as error:
            await refusals.answer(refusals.refusal_of(error))(scope, receive, noting)
        finally:
            await note(500)

    def _admitted(self, scope: Scope) -> GatewayKey:
        """Raises `HostError` 401, 429."""
        given = bearer(scope)
        key = self._keys.of(given) if given else None
        now = self._ft.store.clock.now()
        if key is None:
            if self._keys.all():
                told = "the key is not known here" if given else "a key is needed: Authorization: Bearer KEY"
                raise _no_key(told)
            return anonymous(now)
        if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
            over = "was revoked" if key.revoked_at else f"is not taken since {key.expires_at:%Y-%m-%d}"
            raise _no_key(f"the key {key.name} {over}")
        if key.per_minute is not None:
            wait = self._ft.store.watching.take_tokens(
                f"gateway:{key.name}", 1, per_minute=key.per_minute, burst=float(key.per_minute)
            )
            if wait:
                told = f"the key {key.name} may send {key.per_minute} requests a minute"
                headers = {"retry-after": str(max(1, math.ceil(wait)))}
                raise HostError(
                    429, told, code="rate_limit_exceeded", type="rate_limit_error", headers=headers
                )
        return key


def _no_key(told: str) -> HostError:
    headers = {"www-authenticate": "Bearer"}
    return HostError(401, told, code="invalid_api_key", type="authentication_error", headers=headers)


def _guarded(status: int, text: str) -> Response:
    return refusals.answer(HostError(status, text))


def _told(request: Request, error: Exception) -> Response:
    del request
    if isinstance(error, HostError):
        return refusals.answer(error)
    assert isinstance(error, OrchestrateError)  # noqa: S101  registered for these two only
    return refusals.answer(refusals.refusal_of(error))


def _missing(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    told = f"{request.method} {request.url.path} is not served here"
    if status not in (404, 405):
        told = str(getattr(error, "detail", error))
    headers: dict[str, str] = getattr(error, "headers", None) or {}
    return refusals.answer(HostError(status, told, code="not_found", headers=headers))


def _broken(request: Request, error: Exception) -> Response:
    _log.error("%s %s", request.method, request.url.path, exc_info=error)
    told = f"the gateway failed: {type(error).__name__}; its log says more"
    return refusals.answer(HostError(500, told, type="server_error"))
