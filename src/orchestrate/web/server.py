"""ASGI apps served from a thread of this process, for as long as a `with` block lasts.

Requests run side by side, and an answer may be a stream. At the end of the block no new connection is taken,
what is under way has `grace_s` to finish, and what then still runs is cut off.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import threading
from collections.abc import Generator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from orchestrate.errors import SetupError

LOOPBACK = "127.0.0.1"
_LONGEST_HEAD = 1 << 18
"""Bytes of a request before its body: an address may name a thousand runs."""


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
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise SetupError(
            f"port {port} cannot be used: {error.strerror}",
            fix="another --port, or --port 0 for any free one",
        ) from error


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
    place of uvicorn's own; with `lifespan` the apps are told of the beginning and the end. Raises
    `SetupError` for a certificate that cannot be used."""
    chain, key = certificate or (None, None)
    servers = [
        uvicorn.Server(
            uvicorn.Config(
                app,
                http=protocol or "auto",
                ws="none",
                lifespan="on" if lifespan else "off",
                log_config=None,
                access_log=False,  # an address may hold a token
                server_header=False,
                h11_max_incomplete_event_size=_LONGEST_HEAD,
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
