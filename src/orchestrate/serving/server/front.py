"""What stands before every server that speaks the API: keys of clients, and errors in its form."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrate.http.wire.bodies import HostError
from orchestrate.http.wire.openai.objects import error_body
from orchestrate.serving.server import keys as client_keys


class Keyed:
    """An ASGI app before another one, which sees only requests with a key, where there are any.

    keys      name -> hash
    admin     one more key
    open      paths that need none
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Mapping[str, str],
        *,
        admin: str | None = None,
        open: Collection[str] = (),
    ) -> None:
        self._app, self._keys, self._admin, self._open = app, keys, admin, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and (refusal := self._refusal(scope)):
            await told(refusal)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> HostError | None:
        if scope["path"] in self._open or not self._keys:
            return None
        key = bearer(scope)
        if key is not None and (key == self._admin or client_keys.holder(self._keys, key)):
            return None
        words = "a key is needed: Authorization: Bearer KEY" if key is None else "the key is not known here"
        return HostError(401, words, code="invalid_api_key", headers={"www-authenticate": "Bearer"})


def bearer(scope: Mapping[str, Any]) -> str | None:
    """The key that a request brings."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            kind, _, key = value.decode("latin-1").partition(" ")
            return key.strip() if kind.lower() == "bearer" else None
    return None


def no_model(name: str, known: list[str]) -> HostError:
    words = f"The model {name!r} does not exist; this server has {', '.join(known)}"
    return HostError(404, words, code="model_not_found", param="model")


def told(error: HostError) -> Response:
    return JSONResponse(error_body(error), error.status, headers=error.headers)


def refused(status: int, text: str) -> Response:
    return told(HostError(status, text))


def _host_error(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, HostError)  # noqa: S101  registered for this class only
    return told(error)


def _missing(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 404)
    return told(
        HostError(status, f"{request.method} {request.url.path} is not served here", code="not_found")
    )


def _broken(request: Request, error: Exception) -> Response:
    del request
    return told(HostError(500, f"the server failed: {type(error).__name__}", type="server_error"))


HANDLERS: dict[Any, Any] = {HostError: _host_error, 404: _missing, 405: _missing, 500: _broken}
"""Of Starlette's exceptions."""
