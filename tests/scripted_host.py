"""A loopback HTTP server that answers as it is told and records what it was sent."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.http_server import Handler, serving


@dataclass(frozen=True)
class Sent:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Answer:
    """Bytes and text are sent as they are, as HTML where no type is given. `fault`: `hang_up` closes after
    the request was read, `half` in the middle of the body, `stall` never answers."""

    content: Any = None
    status: int = 200
    type: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None

    @property
    def bytes(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        return self.content.encode() if isinstance(self.content, str) else json.dumps(self.content).encode()


class Host:
    """`on(method, path, ...)`: answers in order, the last one for ever; anything else gets 404. One is an
    `Answer`, what it holds, or a function of `Sent` that returns one of these."""

    url = ""

    def __init__(self) -> None:
        self.sent: list[Sent] = []
        self.stop = threading.Event()
        self.routes: dict[tuple[str, str], deque[Any]] = {}

    def on(self, method: str, path: str, *answers: Any) -> None:
        self.routes[method, path] = deque(answers)

    def take(self, sent: Sent) -> Answer:
        self.sent.append(sent)
        queue = self.routes.get((sent.method, sent.path))
        if queue is None:
            return Answer({"error": {"message": f"no {sent.method} {sent.path}", "code": "not_found"}}, 404)
        found = queue.popleft() if len(queue) > 1 else queue[0]
        if isinstance(found, Callable):
            found = found(sent)
        return found if isinstance(found, Answer) else Answer(found)

    def calls(self, method: str, path: str) -> list[Sent]:
        return [s for s in self.sent if (s.method, s.path) == (method, path)]


class _Scripted(Handler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits until its head is acknowledged
    host: Host

    def _serve(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        answer = self.host.take(Sent(self.command, url.path, query, dict(self.headers), self.body()))
        if answer.fault == "stall":
            self.host.stop.wait(240)
        if answer.fault in ("hang_up", "stall"):
            self._hang_up()
            return
        body = answer.bytes
        kind = "text/html" if isinstance(answer.content, str | bytes) else "application/json"
        self.send_response(answer.status)
        for name, value in {"Content-Type": answer.type or kind, **answer.headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if answer.fault == "half" else body)
        if answer.fault == "half":
            self.wfile.flush()
            self._hang_up()

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve


@contextmanager
def scripted_host() -> Iterator[Host]:
    host = Host()
    with serving(_Scripted, host=host) as host.url:
        try:
            yield host
        finally:
            host.stop.set()
