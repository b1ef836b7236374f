"""A host on loopback HTTP that answers what a test tells it to, and records what it was asked."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Answer:
    body: Any = None
    """A dict or list is sent as JSON, bytes and str as they are."""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    drop: bool = False
    """Closes the connection without an answer, after the request was read."""


class Host:
    """`on("GET", "/v1/x", answer, answer, ...)`: one after the other, the last for ever."""

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.routes: dict[tuple[str, str], list[Any]] = {}
        host = self

        class Serve(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else a body waits until its head is acknowledged

            def answer(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = self._chunks()
                asked = Asked(
                    self.command, parts.path, dict(parse_qsl(parts.query)), dict(self.headers.items()), body
                )
                host.asked.append(asked)
                self._send(host.answer(asked))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def _chunks(self) -> bytes:
                body = b""
                while size := int(self.rfile.readline().strip() or b"0", 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
                return body

            def _send(self, answer: Answer) -> None:
                if answer.drop:
                    self.close_connection = True
                    return
                kind = "application/json" if isinstance(answer.body, dict | list) else "text/html"
                body = answer.body
                if isinstance(body, dict | list):
                    body = json.dumps(body).encode()
                elif isinstance(body, str):
                    body = body.encode()
                self.send_response(answer.status)
                for name, value in {"Content-Type": kind, **answer.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body or b"")))
                self.end_headers()
                self.wfile.write(body or b"")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serve)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def on(self, method: str, path: str, *answers: Any) -> None:
        """An answer is an `Answer`, a JSON value, or a function of `Asked` that gives one of these."""
        self.routes[method, path] = list(answers)

    def answer(self, asked: Asked) -> Answer:
        waiting = self.routes.get((asked.method, asked.path))
        if not waiting:
            return Answer({"error": {"message": f"no route {asked.method} {asked.path}"}}, status=404)
        found = waiting.pop(0) if len(waiting) > 1 else waiting[0]
        if isinstance(found, Callable):
            found = found(asked)
        return found if isinstance(found, Answer) else Answer(found)

    def sent(self, method: str, path: str) -> list[Asked]:
        return [a for a in self.asked if a.method == method and a.path == path]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
