"""The basis of all pages and APIs that this machine serves.

`serving` runs an ASGI app in a thread and stops it gracefully. `RequestGuard` controls access. `page` and
`action` build the routes of pages and their actions, all with the same style and protection."""

from __future__ import annotations

import asyncio
import errno
import json
import logging
import secrets
import socket
import threading
from collections.abc import AsyncIterable, Awaitable, Callable, Collection, Generator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from hmac import compare_digest
from html import escape
from importlib.resources import files
from ipaddress import ip_address
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import SplitResult, urlsplit

import h11
import msgspec
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrate.errors import OrchestrateError, SetupError
from orchestrate.http.wire import HostError
from orchestrate.http.wire.openai import error_body
from orchestrate.settings.hosts import is_loopback
from orchestrate.types import decoding

# Serve ASGI apps from a thread of this process for the duration of a `with` block.


LOOPBACK = "127.0.0.1"
_LONGEST_HEAD = 1 << 18
"""Maximum size of a request line with its headers, in bytes. A URL may list a thousand runs."""


class Patient(H11Protocol):
    """HTTP/1.1 protocol with time limits. Disconnects a client that doesn't start a request, doesn't finish
    its headers, or stalls while sending a body. Without these limits, uvicorn would wait forever, and each
    such client would occupy a connection."""

    head_s = 30.0
    """Time limit for the request line and headers, in seconds."""
    body_s = 30.0
    """Time limit in seconds for a body that arrives at less than `least_rate` bytes per second."""
    least_rate = 1000.0
    _hanging_up: asyncio.TimerHandle | None = None
    _body_timer: asyncio.TimerHandle | None = None
    _timed: Any = None
    _came = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        self._came += len(data)
        super().data_received(data)
        self._await_head()
        cycle: Any = self.cycle
        if self.conn.their_state is not h11.SEND_BODY:
            self._body_came()
        elif self._body_timer is None or self._timed is not cycle:
            self._body_came()
            self._await_body()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._head_came()
        self._body_came()

    def send_400_response(self, msg: str) -> None:
        """Send an error response to data that is not an HTTP request."""
        self._hang_up(400, msg, "not_http")

    def _hang_up(self, status: int, message: str, code: str) -> None:
        """Send an error in the format that clients of these servers expect, and disconnect."""
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        body = json.dumps({"error": error}).encode()
        again = "true" if status == 408 else "false"
        headers = {"content-type": "application/json", "x-should-retry": again, "connection": "close"}
        head = [(name.encode(), value.encode()) for name, value in headers.items()]
        head.append((b"content-length", str(len(body)).encode()))
        for event in (
            h11.Response(status_code=status, headers=head),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _await_body(self) -> None:
        self._timed = self.cycle
        self._body_timer = self.loop.call_later(self.body_s, self._judge_body, self._came)

    def _judge_body(self, came: int) -> None:
        self._body_timer = None
        cycle: Any = self.cycle
        if cycle.response_started or self.transport.is_closing():
            return  # it was answered without
        ours = self.flow.read_paused or cycle.waiting_for_100_continue  # the app does not read yet
        if ours or self._came - came >= self.body_s * self.least_rate:
            self._await_body()
            return
        cycle.disconnected = True  # to the app the client has gone
        cycle.message_event.set()
        self._hang_up(408, "the request body did not arrive in time", "body_stalled")

    def _body_came(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _await_head(self) -> None:
        """Start the time limit for the next request's head, unless a request is in progress."""
        cycle: Any = self.cycle  # none before the first request, though its type does not say so
        under_way = cycle is not None and not cycle.response_complete
        if under_way or self.transport.is_closing():
            self._head_came()
        elif self._hanging_up is None:
            self._hanging_up = self.loop.call_later(self.head_s, self.transport.close)

    def _head_came(self) -> None:
        if self._hanging_up is not None:
            self._hanging_up.cancel()
            self._hanging_up = None


@contextmanager
def serving(
    app: ASGIApp,
    *,
    host: str = LOOPBACK,
    port: int = 0,
    grace_s: float = 3.0,
    certificate: tuple[Path, Path] | None = None,
    lifespan: bool = False,
) -> Generator[str]:
    """Serve one app and yield its address, such as `http://127.0.0.1:8000`. Port 0 picks a free port. `host`
    is an address of this machine. Without a guard, only use an address that other machines can't reach.
    `certificate` (PEM files with a certificate and its key) enables TLS. Raises `SetupError` if the port is
    taken or the certificate cannot be used."""
    with (
        closing(listen(port, host)) as sock,
        running([(app, sock)], grace_s=grace_s, certificate=certificate, lifespan=lifespan),
    ):
        name = f"[{host}]" if ":" in host else host
        yield f"http{'s' if certificate else ''}://{name}:{sock.getsockname()[1]}"


def free_port(host: str = LOOPBACK) -> int:
    """Return a port that is currently free, for another program to use. Some other process may take it
    first."""
    with closing(listen(0, host)) as sock:
        return int(sock.getsockname()[1])


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """Return a socket that accepts connections. Raises `SetupError` if the port or the address is
    unavailable."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port > 65535:
            raise OSError(errno.EINVAL, "a port must be at most 65535")
        sock = socket.create_server((host, port), family=family)
    except OSError as error:
        raise SetupError(
            f"could not use port {port}: {error.strerror}",
            fix="use another --port, or --port 0 for any free port",
        ) from error
    # asyncio sets this option only on sockets with an explicit protocol, which `create_server` does not set.
    # Without it, the body of a response waits 40 ms until the client has acknowledged the headers.
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


@contextmanager
def running(
    apps: Sequence[tuple[ASGIApp, socket.socket]],
    *,
    protocol: type[asyncio.Protocol] | None = None,
    grace_s: float = 3.0,
    certificate: tuple[Path, Path] | None = None,
    lifespan: bool = False,
) -> Generator[None]:
    """Serve each app on its socket. All apps share one thread and its event loop. `protocol` replaces
    `Patient`. `lifespan` enables ASGI lifespan events. Raises `SetupError` if the certificate cannot be
    used."""
    chain, key = certificate or (None, None)
    servers = [
        uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol or Patient,
                ws="none",
                lifespan="on" if lifespan else "off",
                log_config=None,
                access_log=False,  # an address may hold a token
                server_header=False,
                h11_max_incomplete_event_size=_LONGEST_HEAD,
                # Keep idle connections longer than clients do, or a request sent just as the server closes
                # one is lost. httpx closes them after 5 seconds, and uvicorn's default is the same.
                timeout_keep_alive=60,
                timeout_graceful_shutdown=max(1, round(grace_s)),
                ssl_certfile=chain,
                ssl_keyfile=key,
            )
        )
        for app, _ in apps
    ]

    try:
        for server in servers:
            server.config.load()
    except (OSError, ValueError) as error:  # of the certificate
        raise SetupError(f"could not use {chain} and {key} for TLS: {error}") from error

    async def all_of_them() -> None:
        pairs = zip(servers, apps, strict=True)
        await asyncio.gather(*(server.serve(sockets=[sock]) for server, (_, sock) in pairs))

    thread = threading.Thread(target=lambda: asyncio.run(all_of_them()), daemon=True, name="web")
    thread.start()
    try:
        while not all(server.started for server in servers):
            if not thread.is_alive():
                raise RuntimeError("the server did not start")
            thread.join(0.01)
        yield
    finally:
        for server in servers:
            server.should_exit = True
        thread.join(grace_s + 10)


# Access control for this machine's servers.


_SAFE = ("GET", "HEAD", "OPTIONS")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""Default headers of every response."""


class RequestGuard:
    """ASGI middleware that forwards only permitted requests.

    tokens     Maps each token to its owner. The path of a request must start with a token. The app gets the
               rest of the path, and `holder` returns the owner. With `None`, the app checks keys itself.
    names      Host names of this machine other than `localhost` and its addresses. Each must be listed,
               because a name may resolve to any address.
    origins    Origins of other websites that may send requests, such as `https://app.example`.
    max_body   Maximum size of a request body in bytes. Larger requests get status 413.
    refuse     Converts (HTTP status, sentence) to a response. Default: JSON, `{"error": sentence}`.
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
        self._origins = _plain(origins)
        self._max_body = max_body
        self._refuse = refuse or _refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        if scope["type"] != "http":
            return
        answer = _SafeSend(send)

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
        """Return the scope that the app gets. Raises `_Refusal`."""
        headers = Headers(scope=scope)
        if self._tokens is not None:
            scope = self._holder(scope)
        here = headers.get("host", "").casefold()
        name = _parts(f"//{here}").hostname or ""
        if not (_is_address(name) or is_loopback(name) or name in self._names):
            raise _Refusal(404, "this server does not accept the host name in the URL")
        if scope["method"] not in _SAFE and not self._is_ours(headers, here):
            raise _Refusal(403, "requests from other sites are not allowed")
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
        """Return whether the request comes from an allowed site. Browsers report the site of the page that
        sends a request. Other programs report none."""
        origin = headers.get("origin")
        if origin is None:
            return headers.get("sec-fetch-site", "none") in ("none", "same-origin")
        return _parts(origin).netloc.casefold() == here or origin.casefold() in self._origins

    def _limited(self, receive: Receive, refuse: Callable[[int, str], Awaitable[None]]) -> Receive:
        """Limit the size of the request body. After a rejection, the app sees a disconnected client."""
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
        return f"request body too large: at most {self._max_body:,} bytes"


def _refused(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)


class _Refusal(Exception):
    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status, self.text = status, text


class _SafeSend:
    """Sends messages with the default headers, and drops messages after the end of the response."""

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


def _plain(origins: Collection[str]) -> list[str]:
    """Return origins as browsers send them."""
    return [origin.rstrip("/").casefold() for origin in origins]


def _parts(address: str) -> SplitResult:
    """Split an address that a client sent. One that cannot be read has no host."""
    try:
        return urlsplit(address)
    except ValueError:
        return urlsplit("")


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def holder(scope: Mapping[str, Any]) -> str:
    """Return the owner of the token in a request's path."""
    return scope["holder"]


# The outer layer of every API server: access control, and rejections in the API's format.


ErrorFormatter = Callable[[HostError], Response]
"""A function that converts an error to a response in the format of an API."""
Admit = Callable[[Scope], Awaitable[object]]
"""A function that checks a request's key. Raises `HostError` 401."""
Endpoint = Callable[[Request], Awaitable[Response]]
"""A function that handles requests to a route."""

_log = logging.getLogger(__name__)


def api_error_response(error: HostError) -> Response:
    """Convert an error to a response in the format of OpenAI's API."""
    return JSONResponse(error_body(error), error.status, headers=error.headers)


def edge(
    routes: Sequence[BaseRoute],
    *,
    door: Callable[[ASGIApp], ASGIApp] = lambda app: app,
    names: Collection[str] = (),
    origins: Collection[str] = (),
    max_body: int,
    format_error: ErrorFormatter = api_error_response,
    refusal: Callable[[OrchestrateError], HostError] | None = None,
    lifespan: Any = None,
) -> RequestGuard:
    """Build an app from `routes` and wrap it in a `RequestGuard`. `door` adds middleware between the guard
    and the app. `format_error` formats API errors as responses, and `refusal` converts Orchestrate errors to
    API errors. The other arguments are passed to `RequestGuard` and Starlette."""

    def refused(request: Request, error: Exception) -> Response:
        del request
        assert isinstance(error, HostError)  # noqa: S101  registered for this class only
        return format_error(error)

    def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, OrchestrateError) and refusal is not None  # noqa: S101  likewise
        return refused(request, refusal(error))

    def missing(request: Request, error: Exception) -> Response:
        status = getattr(error, "status_code", 404)
        words = f"{request.method} {request.url.path} is not available on this server"
        if status not in (404, 405):
            words = str(getattr(error, "detail", error))
        headers: Mapping[str, str] = getattr(error, "headers", None) or {}
        return format_error(HostError(status, words, code="not_found", headers=headers))

    def broken(request: Request, error: Exception) -> Response:
        _log.error("%s %s", request.method, request.url.path, exc_info=error)
        words = f"the server failed: {type(error).__name__}. See the server's log"
        return format_error(HostError(500, words, type="server_error"))

    handlers: dict[Any, Any] = {HostError: refused, HTTPException: missing, Exception: broken}
    if refusal is not None:
        handlers[OrchestrateError] = ours
    app = door(Starlette(routes=list(routes), exception_handlers=handlers, lifespan=lifespan))
    if origins:  # a browser asks before it sends a key, and lets a page read only what names the page's site
        allowed, methods = _plain(origins), ["GET", "POST"]
        app = CORSMiddleware(app, allow_origins=allowed, allow_methods=methods, allow_headers=["*"])
    return RequestGuard(
        app,
        names=names,
        origins=origins,
        max_body=max_body,
        refuse=lambda status, text: format_error(HostError(status, text)),
    )


class Keyed:
    """ASGI middleware that only forwards requests with a valid key. Paths in `open` require no key."""

    def __init__(self, app: ASGIApp, admit: Admit, *, open: Collection[str] = ()) -> None:
        self._app, self._admit, self._open = app, admit, open

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in self._open:
            try:
                await self._admit(scope)
            except HostError as error:
                await api_error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


def bearer(scope: Mapping[str, Any]) -> str | None:
    """Return the key in a request's headers, as OpenAI's or Tinker's clients send it."""
    headers = Headers(raw=scope["headers"])
    if "authorization" in headers:
        kind, _, key = headers["authorization"].partition(" ")
        return key.strip() if kind.lower() == "bearer" else None
    return headers.get("x-api-key")


def no_key(words: str) -> HostError:
    headers = {"www-authenticate": "Bearer"}
    return HostError(401, words, code="invalid_api_key", type="authentication_error", headers=headers)


def no_model(name: str, known: list[str]) -> HostError:
    words = f"The model {name!r} does not exist. This server has {', '.join(known)}"
    return HostError(404, words, code="model_not_found", param="model")


# Pages that this machine serves. They share a style (`look.css`) and a script that renders conversations
# (`shared.js`). They never insert untrusted text as markup, and load nothing from other servers.


Body = TypeVar("Body")


def page(path: str, package: str, name: str, *, back: Callable[[Request], str] | None = None) -> Route:
    """Build the route of an HTML page stored in a package. In the page, `NONCE` is replaced by the nonce for
    its styles and scripts, `/*LOOK*/` by the shared styles, and `/*SHARED*/` by the shared script. `back`
    returns the path of a link at the top of the page."""

    def answer(request: Request) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        text = _text(package, name)
        for word, file in (("LOOK", "look.css"), ("SHARED", "shared.js")):
            text = text.replace(f"/*{word}*/", _text("orchestrate.http.web", file))
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; img-src data:"
        )
        if back is not None:
            text = text.replace("<header>", f'<header>\n  <a href="{escape(back(request))}">Back</a>', 1)
        return HTMLResponse(text.replace("NONCE", nonce), headers={"content-security-policy": policy})

    return Route(path, answer, methods=["GET"])


def action(path: str, kind: type[Body], act: Callable[[Body, Request], Any]) -> Route:
    """Build a POST route with a JSON body of type `kind`. `act` runs in a thread, concurrently with other
    requests, and returns the JSON response. An invalid body or an Orchestrate error gets status 422 with
    `{"error": sentence}`."""

    async def answer(request: Request) -> Response:
        body = await request.body()
        try:
            asked = decoding.decode(body, type=kind)
            return json_answer(await run_in_threadpool(act, asked, request))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return json_answer({"error": str(error)}, 422)
        except OrchestrateError as error:
            return json_answer({"error": error.message}, 422)

    return Route(path, answer, methods=["POST"])


def json_answer(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def event_stream(events: AsyncIterable[str]) -> StreamingResponse:
    """Stream server-sent events. Each string is sent immediately as the `data` of one event."""

    async def framed() -> AsyncIterable[str]:
        async for event in events:
            yield "".join(f"data: {line}\n" for line in event.split("\n")) + "\n"

    return StreamingResponse(framed(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
