"""A loopback HTTP server that answers as it is told and records what it was sent."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass(frozen=True)
class Sent:
    method: str
    path: str
    query: dict[str, list[str]]
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)


@dataclass(frozen=True)
class Answer:
    """`fault`: `hang_up` closes after the request was read, `half` in the middle of the body, `stall` never
    answers."""

    content: Any = None
    status: int = 200
    type: str = "application/json"
    headers: dict[str, str] = field(default_factory=dict)
    fault: str | None = None

    @property
    def bytes(self) -> bytes:
        if isinstance(self.content, bytes):
            return self.content
        return self.content.encode() if isinstance(self.content, str) else json.dumps(self.content).encode()


class ScriptedHost:
    """`answers[(method, path)]` are given in order, the last one for ever; anything else gets 404."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.sent: list[Sent] = []
        self.stop = threading.Event()
        self._answers: dict[tuple[str, str], deque[Answer]] = {}

    def on(self, method: str, path: str, *answers: Answer | Any) -> None:
        wrapped = [a if isinstance(a, Answer) else Answer(a) for a in answers]
        self._answers[method, path] = deque(wrapped)

    def take(self, sent: Sent) -> Answer:
        self.sent.append(sent)
        queue = self._answers.get((sent.method, sent.path))
        if queue is None:
            return Answer({"error": {"message": f"no {sent.method} {sent.path}", "code": "not_found"}}, 404)
        return queue.popleft() if len(queue) > 1 else queue[0]

    def calls(self, method: str, path: str) -> list[Sent]:
        return [s for s in self.sent if (s.method, s.path) == (method, path)]


@contextmanager
def scripted_host() -> Iterator[ScriptedHost]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else a body waits until its head is acknowledged

        def _serve(self) -> None:
            url = urlsplit(self.path)
            raw = self._body()
            sent = Sent(self.command, url.path, parse_qs(url.query), dict(self.headers), raw)
            answer = host.take(sent)
            if answer.fault == "stall":
                host.stop.wait(240)
            if answer.fault in ("hang_up", "stall"):
                self._hang_up()
                return
            body = answer.bytes
            self.send_response(answer.status)
            for name, value in {"content-type": answer.type, **answer.headers}.items():
                self.send_header(name, value)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if answer.fault == "half" else body)
            if answer.fault == "half":
                self.wfile.flush()
                self._hang_up()

        def _body(self) -> bytes:
            if self.headers.get("transfer-encoding") == "chunked":
                parts = []
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("content-length", 0)))

        def _hang_up(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        do_GET = do_POST = do_DELETE = do_PUT = do_PATCH = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, request: Any, client_address: Any) -> None:
            pass  # a client that went away in the middle of an answer is what some tests are about

    server = Server(("127.0.0.1", 0), Handler)
    host = ScriptedHost(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield host
    finally:
        host.stop.set()
        server.shutdown()
        thread.join()
        server.server_close()
