"""Who may talk to a server of this machine.

A page of the web, open in the user's browser, can send requests to any port here. It cannot choose the Host
or the Origin that they carry, so what came under a name of somebody else, or from another site's page, is
refused. It cannot know a token either, which is the first part of the path where there are tokens.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import suppress
from hmac import compare_digest
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrate.settings.hosts import is_loopback

_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Of each answer that does not say otherwise."""


class Guard:
    """An ASGI app before another one, which sees only what may come in.

    tokens     token -> who has it. Without one of them as the first part of the path nothing is answered;
               the app sees the rest of the path, and `holder` tells who it is. `None`: the app asks for keys
               itself.
    names      host names of this machine besides `localhost` and its addresses; a name may lead anywhere,
               so each must be said.
    origins    other sites whose pages may send requests, as `https://app.example`.
    max_body   bytes of a request. 413 beyond it.
    refuse     (HTTP status, sentence) -> the answer that refuses; by default JSON, `{"error": sentence}`.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        tokens: Mapping[str, str] | None = None,
        names: Collection[str] = (),
        origins: Collection[str] = (),
        max_body: int = 1 << 20,
        refuse: Callable[[int, str], Response] | None = None,
    ) -> None:
        self._app, self._tokens = app, tokens
        self._names = {name.casefold() for name in names}
        self._origins = {origin.rstrip("/").casefold() for origin in origins}
        self._max_body = max_body
        self._refuse = refuse or _refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        answer = _Answer(send)

        async def refuse(status: int, text: str) -> None:
            if not answer.started:
                await self._refuse(status, text)(scope, receive, answer)
            answer.closed = True

        try:
            inner = self._let_in(scope)
        except _Refusal as refusal:
            await refuse(refusal.status, refusal.text)
            return
        with suppress(ClientDisconnect):
            await self._app(inner, self._limited(receive, refuse), answer)

    def _let_in(self, scope: Scope) -> Scope:
        """What the app is to see. Raises `_Refusal`."""
        headers = Headers(scope=scope)
        if self._tokens is not None:
            scope = self._holder(scope)
        here = headers.get("host", "").casefold()
        name = urlsplit(f"//{here}").hostname or ""
        if not (_is_address(name) or is_loopback(name) or name in self._names):
            raise _Refusal(404, "this server is not known under the name in the address")
        if scope["method"] not in _SAFE and not self._is_ours(headers, here):
            raise _Refusal(403, "pages of other sites may not send requests here")
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > self._max_body:
            raise _Refusal(413, self._too_large)
        return scope

    def _holder(self, scope: Scope) -> Scope:
        first, slash, _ = scope["path"].removeprefix("/").partition("/")
        found = [
            (token, who)
            for token, who in (self._tokens or {}).items()
            if compare_digest(first.encode("utf-8", "surrogatepass"), token.encode())
        ]
        if not found or not slash:
            raise _Refusal(404, "not found")
        token, who = found[0]
        return {**scope, "root_path": f"{scope.get('root_path', '')}/{token}", "holder": who}

    def _is_ours(self, headers: Headers, here: str) -> bool:
        """Browsers tell the site of the page that sends; other programs have none."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        return urlsplit(origin).netloc.casefold() == here or origin.casefold() in self._origins

    def _limited(self, receive: Receive, refuse: Callable[[int, str], Awaitable[None]]) -> Receive:
        """To the app a client that is refused has gone."""
        size = 0

        async def limited() -> Message:
            nonlocal size
            message = await receive()
            if message["type"] == "http.request":
                size += len(message.get("body", b""))
            if size > self._max_body:
                await refuse(413, self._too_large)
                return {"type": "http.disconnect"}
            return message

        return limited

    @property
    def _too_large(self) -> str:
        return f"a request takes at most {self._max_body:,} bytes"


def _refused(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


class _Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _Answer:
    """Sends, with the headers that each answer has; what comes after the end is dropped."""

    def __init__(self, send: Send) -> None:
        self._send, self.started, self.closed = send, False, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
        if not self.closed:
            await self._send(message)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def holder(scope: Mapping[str, Any]) -> str:
    """Who sent a request, by the token in its path."""
    return scope["holder"]
