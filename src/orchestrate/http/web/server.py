"""ASGI apps served from a thread of this process, for as long as a `with` block lasts.

Requests run side by side, and an answer may be a stream. At the end of the block no new connection is taken,
what is under way has `grace_s` to finish, and what then still runs is cut off.
"""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import h11
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from orchestrate.errors import SetupError

LOOPBACK = "127.0.0.1"
_LONGEST_HEAD = 1 << 18
"""Bytes of a request before its body: an address may name a thousand runs."""


class Patient(H11Protocol):
    """HTTP/1.1 that hangs up on a client whose request does not begin, does not come to the end of its head,
    or whose body stalls: uvicorn would wait for ever, and each of them takes a connection from the others."""

    head_s = 30.0
    """Seconds for it."""
    body_s = 30.0
    """Seconds in which a body has to come to its end, or bring `least_rate` bytes for each."""
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
        """For what is no HTTP request."""
        self._hang_up(400, msg, "not_http")

    def _hang_up(self, status: int, told: str, code: str) -> None:
        """In the form in which clients of these servers look for a reason."""
        error = {"message": told, "type": "invalid_request_error", "param": None, "code": code}
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
        self._hang_up(408, "the body of the request did not come, or too slowly", "body_stalled")

    def _body_came(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()
            self._body_timer = None

    def _await_head(self) -> None:
        """From the first moment on at which no request is under way."""
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
    """Serves one app; gives its address, as `http://127.0.0.1:8000`. Port 0 takes any free one; `host` is an
    address of this machine, and without a guard nobody else's is safe. With a certificate and its key, as PEM
    files, it speaks TLS. Raises `SetupError`."""
    with (
        closing(listen(port, host)) as sock,
        running([(app, sock)], grace_s=grace_s, certificate=certificate, lifespan=lifespan),
    ):
        name = f"[{host}]" if ":" in host else host
        yield f"http{'s' if certificate else ''}://{name}:{sock.getsockname()[1]}"


def free_port(host: str = LOOPBACK) -> int:
    """A port that nobody has now, for another program; it may be taken by the time that one asks for it."""
    with closing(listen(0, host)) as sock:
        return int(sock.getsockname()[1])


def listen(port: int, host: str = LOOPBACK) -> socket.socket:
    """A socket that takes connections. Raises `SetupError` when the port or the address cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        if port > 65535:
            raise OSError(errno.EINVAL, "there are 65,535 ports")
        sock = socket.create_server((host, port), family=family)
    except OSError as error:
        raise SetupError(
            f"port {port} cannot be used: {error.strerror}",
            fix="another --port, or --port 0 for any free one",
        ) from error
    # asyncio does this itself only for sockets that name their protocol, as those of `create_server` do not.
    # Without it the body of an answer waits 40 ms for the client to acknowledge its head.
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
    """Serves each app on its socket; all share one thread and its event loop. `protocol` speaks HTTP in the
    place of `Patient`; with `lifespan` the apps are notified of the beginning and the end. Raises
    `SetupError` for a certificate that cannot be used."""
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
                # Above what clients keep a connection for: httpx lets go after 5 seconds, which are uvicorn's
                # own too, and a request that is sent just then is lost.
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
        raise SetupError(f"{chain} and {key} cannot be used for TLS: {error}") from error

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
