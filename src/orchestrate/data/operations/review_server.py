"""The page of `orchestrate data review`: one reviewer, this machine only.

The address holds a random token; nothing is answered without it, and nothing to a page of another site, which
could only know this server by a name that leads here. The page asks for nothing outside, and no text of a row
is ever markup: it is sent as JSON and set as text.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from hmac import compare_digest
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec

from orchestrate.config import is_loopback
from orchestrate.data.operations.review import Review, Word
from orchestrate.errors import DataError, OrchestrateError, SetupError, UsageError

LONGEST_BODY = 64 << 20


class Asked(msgspec.Struct):
    """The body of a POST."""

    action: Literal["show", "accepted", "edited", "rejected", "undo"]
    index: int | None = None
    """`show` without an index gives the first row without a decision."""
    text: str | None = None


@dataclass(frozen=True)
class Page:
    """A running review. `url` is the page's address."""

    url: str
    review: Review


@contextmanager
def serving(path: str, *, port: int = 0) -> Generator[Page]:
    """Serves the review of a file on 127.0.0.1 for the length of a `with` block; port 0 takes any free one.

    Raises `DataError` when the file cannot be read, `SetupError` when the port is taken."""
    review = Review(path)
    token = secrets.token_urlsafe(24)
    try:
        server = _Server(review, token, port)
    except OSError as error:
        raise SetupError(f"port {port} cannot be used: {error.strerror}", fix="leave --port out") from error
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True)
    thread.start()
    try:
        yield Page(f"http://127.0.0.1:{server.server_address[1]}/{token}/", review)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, review: Review, token: str, port: int) -> None:
        self.review, self.token = review, token
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]  # it is made by this class only
    timeout = 30

    def version_string(self) -> str:
        return "orchestrate"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the address holds the token."""

    def do_GET(self) -> None:
        if not self._known():
            return
        nonce = secrets.token_urlsafe(16)
        page = files("orchestrate.data.operations").joinpath("review.html").read_text(encoding="utf-8")
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; img-src data:"
        )
        self._answer(200, page.replace("NONCE", nonce).encode(), "text/html; charset=utf-8", policy)

    def do_POST(self) -> None:
        if not self._known():
            return
        length = self.headers.get("content-length", "")
        if not length.isdigit() or int(length) > LONGEST_BODY:
            self._json(413, {"error": "the row is too large"})
            return
        try:
            asked = msgspec.json.decode(self.rfile.read(int(length)), type=Asked)
            with self.server.lock:
                answer = act(self.server.review, asked)
        except (msgspec.DecodeError, UnicodeDecodeError, UsageError, DataError) as error:
            self._json(422, {"error": error.message if isinstance(error, OrchestrateError) else str(error)})
            return
        self._json(200, answer)

    def _known(self) -> bool:
        host = urlsplit(f"//{self.headers.get('host', '')}").hostname or ""
        if is_loopback(host) and compare_digest(self.path.encode(), f"/{self.server.token}/".encode()):
            return True
        self._answer(404, b"not found\n", "text/plain", "default-src 'none'")
        return False

    def _json(self, status: int, value: Any) -> None:
        self._answer(status, msgspec.json.encode(value), "application/json", "default-src 'none'")

    def _answer(self, status: int, body: bytes, kind: str, policy: str) -> None:
        self.send_response(status)
        for name, value in (
            ("content-type", kind),
            ("content-length", str(len(body))),
            ("content-security-policy", policy),
            ("cache-control", "no-store"),
            ("referrer-policy", "no-referrer"),
            ("x-content-type-options", "nosniff"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def act(review: Review, asked: Asked) -> dict[str, Any]:
    """Does what was asked and gives the row to show next: `file`, `counts` and, when there is one, `row`."""
    index = asked.index
    word: Word | None = None if asked.action in ("show", "undo") else asked.action
    if asked.action == "undo":
        index = review.undo()
        if index is None:
            raise UsageError("there is nothing to undo")
    elif word is not None:
        review.decide(-1 if index is None else index, word, asked.text)
    shown = review.first_pending() if index is None else index
    return {
        "file": Path(review.path).name,
        "counts": review.counts(),
        "row": review.row(shown) if len(review) else None,
    }
