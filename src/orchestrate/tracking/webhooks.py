"""Webhooks of hosts, taken as hints: they only make a run due, its state is then asked of the host itself.

OpenAI signs its deliveries by the Standard Webhooks convention; its own SDK checks them. A wrong signature,
an old timestamp, a repeat or an unknown job changes nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import msgspec

from orchestrate.config import Secret
from orchestrate.errors import OrchestrateError

if TYPE_CHECKING:
    from orchestrate.tracking.store import Store

MOST_BYTES = 1_000_000


class Untrusted(OrchestrateError):
    """The delivery is not from the host that it names."""


def take_openai_hint(store: Store, body: str, headers: Mapping[str, str], secret: Secret) -> str | None:
    """The id of the run that is due now, or `None` when the delivery is a repeat or of no run of ours. Raises
    `Untrusted` unless the signature is right and fresh."""
    from openai import InvalidWebhookSignatureError, OpenAI

    try:
        # The client only holds the SDK's check; it sends nothing and needs no real key.
        OpenAI(api_key="unused").webhooks.verify_signature(body, headers, secret=secret.reveal())
        delivery = msgspec.json.decode(body, type=_Delivery)
    except (InvalidWebhookSignatureError, ValueError) as error:
        raise Untrusted(f"a webhook was refused: {error}") from error
    if not delivery.type.startswith("fine_tuning.job.") or not store.watching.take_delivery(
        f"openai:{delivery.id}"
    ):
        return None
    run = store.watching.make_due("openai", delivery.data.id)
    return None if run is None else run.id


class _Subject(msgspec.Struct):
    id: str = ""


class _Delivery(msgspec.Struct):
    id: str
    type: str
    data: _Subject = msgspec.field(default_factory=_Subject)


@contextmanager
def listening(
    store: Store, secret: Secret, port: int, woken: Callable[[str], None], *, address: str = "127.0.0.1"
) -> Generator[int]:
    """Takes `POST /openai` on a port (0: any free one) for the length of the block; gives the port. `woken`
    is called with the id of each run that became due. A proxy in front of it brings TLS and the public
    address."""

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if self.path != "/openai":
                return self._answer(404)
            if not length.isdigit() or int(length) > MOST_BYTES:
                return self._answer(413)
            try:
                body = self.rfile.read(int(length)).decode()
                run_id = take_openai_hint(store, body, dict(self.headers.items()), secret)
            except (Untrusted, UnicodeDecodeError):
                return self._answer(401)
            except OrchestrateError:
                return self._answer(503)  # the host delivers it again
            if run_id is not None:
                woken(run_id)
            return self._answer(204)

        def _answer(self, status: int) -> None:
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing: a library does not print."""

    server = ThreadingHTTPServer((address, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="webhooks", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
