"""Receive the hosts' webhooks and use them as hints. A hint marks a run as due for a check, and the
run's state is then queried from the host.

Repeated deliveries and deliveries with an invalid signature, an old timestamp or an unknown job change
nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

from orchestrate.errors import OrchestrateError
from orchestrate.profile import Profile
from orchestrate.settings.config import Secret

if TYPE_CHECKING:
    from orchestrate.store.store import Store

MOST_BYTES = 1_000_000


class Untrusted(OrchestrateError):
    """Raised if a webhook delivery can't be verified as coming from the host that it names."""


@dataclass(frozen=True)
class Sender:
    """A host that sends webhooks, with its signing secret."""

    profile: Profile
    secret: Secret


def take_hint(store: Store, body: str, headers: Mapping[str, str], sender: Sender) -> str | None:
    """Verify a webhook delivery and return the id of the run to sync. Returns `None` if the delivery is a
    duplicate, or if its job belongs to no run in this store. Raises `Untrusted` if the signature is invalid
    or too old."""
    host, read = sender.profile.kind, sender.profile.delivery
    if read is None:
        raise Untrusted(f"{host} does not send webhooks")
    try:
        delivery = read(body, headers, sender.secret.reveal())
    except ValueError as error:
        raise Untrusted(f"a webhook was rejected: {error}") from error
    if delivery.job_id is None or not store.watching.take_delivery(f"{host}:{delivery.id}"):
        return None
    run = store.watching.make_due(host, delivery.job_id)
    return None if run is None else run.id


@contextmanager
def listening(
    store: Store,
    senders: Sequence[Sender],
    port: int,
    woken: Callable[[str], None],
    *,
    address: str = "127.0.0.1",
) -> Generator[list[str]]:
    """Receive the senders' webhooks until the `with` block ends, and yield their URLs, one for each sender.

    Each sender posts to `/KIND` on the same port (0 picks a free one). `woken` is called with the id of each
    run that became due. To receive webhooks from the internet, you need a reverse proxy with a public address
    and TLS.
    """
    paths = {f"/{sender.profile.kind}": sender for sender in senders}

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            length = self.headers.get("content-length", "")
            if (sender := paths.get(self.path)) is None:
                return self._answer(404)
            if not length.isdecimal() or len(length) > len(str(MOST_BYTES)) or int(length) > MOST_BYTES:
                return self._answer(413)
            try:
                body = self.rfile.read(int(length)).decode()
                run_id = take_hint(store, body, dict(self.headers.items()), sender)
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
            """Do nothing: a library does not print."""

    server = ThreadingHTTPServer((address, port), Handler)
    thread = threading.Thread(target=server.serve_forever, name="webhooks", daemon=True)
    thread.start()
    try:
        yield [f"http://{address}:{server.server_address[1]}{path}" for path in paths]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
