"""Start and stop the gateway."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from starlette.concurrency import run_in_threadpool
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrate.core.files import private_folder
from orchestrate.errors import MissingExtra, OrchestrateError, UsageError
from orchestrate.gateway import calls
from orchestrate.gateway.answers import Engines, InferenceRoutes
from orchestrate.gateway.calls import anonymous
from orchestrate.gateway.files import Contents, FileRoutes, Uploads
from orchestrate.gateway.jobs import Jobs, Outside
from orchestrate.gateway.models import ModelRoutes
from orchestrate.gateway.submissions import Reached, Submitting
from orchestrate.gateway.terms import GatewaySettings
from orchestrate.http.web import edge, serving
from orchestrate.http.wire import HostError
from orchestrate.http.wire.openai import MAX_FILE
from orchestrate.providers.base import Deploys, Downloads, capability
from orchestrate.serving.server.keys import Clients
from orchestrate.serving.server.load import ServerBusy, ServerLoad
from orchestrate.serving.server.refusals import full
from orchestrate.settings.hosts import is_loopback
from orchestrate.store.store import Store
from orchestrate.types import AuditEntry, GatewayKey

if TYPE_CHECKING:
    from orchestrate.runs.watching.watcher import Watcher
    from orchestrate.workspace import Workspace


_log = logging.getLogger(__name__)
_READS = ("GET", "HEAD")
_ALIKE_S = 60.0
_MOST = 1000
"""Maximum number of different rejections to count within `_ALIKE_S` seconds."""


@dataclass
class _Alike:
    since: float
    unwritten: int = 0


class Audit:
    """The audit log. Combines similar rejections into one entry per minute with a count. Thread-safe."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refusals: dict[tuple[str, ...], _Alike] = {}
        self._lock = threading.Lock()

    def write(self, scope: Scope, key: GatewayKey | None, status: int, code: str | None) -> None:
        if scope["method"] in _READS and status < 400:
            return
        address = scope["client"][0] if scope.get("client") else None
        times = 1
        if status >= 400:
            # Clients without a key may send any method and path, so count their rejections by address.
            what = (key.name, scope["method"], scope["path"]) if key else ("", str(address))
            times = self._times((*what, str(status)))
        if not times:
            return
        entry = AuditEntry(
            at=self._store.clock.now(),
            key=key.name if key else "",
            method=scope["method"][:20],
            path=str(scope["path"])[:500],
            status=status,
            subject=scope.get("state", {}).get("subject"),
            code=code,
            address=address,
            times=times,
        )
        try:
            self._store.gateway_keys.log(entry)
        except OrchestrateError as error:
            _log.warning("could not write to the gateway's audit log: %s", error.message)

    def _times(self, alike: tuple[str, ...]) -> int:
        """Return how many rejections the next log entry stands for. 0 means that no entry is written."""
        now = self._store.clock.uptime().seconds
        with self._lock:
            known = self._refusals.get(alike)
            if known is not None and now - known.since < _ALIKE_S:
                known.unwritten += 1
                return 0
            if known is None and len(self._refusals) >= _MOST:
                self._forget(now)
                if len(self._refusals) >= _MOST:
                    return 0
            self._refusals[alike] = _Alike(now)
            return 1 + (known.unwritten if known else 0)

    def _forget(self, now: float) -> None:
        old = [alike for alike, known in self._refusals.items() if now - known.since >= _ALIKE_S]
        for alike in old:
            del self._refusals[alike]


_HEALTH = "/health"


def app(
    ft: Workspace,
    routes: Sequence[BaseRoute],
    clients: Clients,
    names: Sequence[str],
    most_requests: int = 512,
) -> ASGIApp:
    """Build the gateway's app. `names` are host names that it accepts in addition to this machine's
    addresses. If more than `most_requests` requests are in progress, new ones are rejected with a
    `Retry-After` header."""
    return edge(
        routes,
        door=lambda inner: _Door(ft, inner, clients, ServerLoad(most_requests, 0)),
        names=names,
        max_body=MAX_FILE + (1 << 20),
        format_error=calls.answer,
        refusal=calls.refusal_of,
    )


class _Door:
    """Finds the key of each request, limits the number of requests, and logs changes and rejections."""

    def __init__(self, ft: Workspace, inner: ASGIApp, clients: Clients, load: ServerLoad) -> None:
        self._ft, self._inner, self._clients, self._load = ft, inner, clients, load
        self._audit = Audit(ft.store)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == _HEALTH:
            await Response('{"status":"ok"}', media_type="application/json")(scope, receive, send)
            return
        try:
            with self._load.taking():
                await self._take(scope, receive, send)
        except ServerBusy as error:
            await calls.answer(full(error))(scope, receive, send)

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        key, code, noted = None, None, False

        async def note(status: int) -> None:
            nonlocal noted
            if not noted:
                noted = True
                await run_in_threadpool(self._audit.write, scope, key, status, code)

        async def noting(message: Message) -> None:
            """Log what a client did before the client hears of it: a kill in between loses nothing."""
            if message["type"] == "http.response.start":
                await note(message["status"])
            await send(message)

        try:
            key = await run_in_threadpool(self._admitted, scope)
            scope["gateway_key"], scope["state"] = key, {}
            await self._inner(scope, receive, noting)
        except HostError as error:
            code = error.code
            await calls.answer(error)(scope, receive, noting)
        except OrchestrateError as error:
            await calls.answer(calls.refusal_of(error))(scope, receive, noting)
        finally:
            await note(500)

    def _admitted(self, scope: Scope) -> GatewayKey:
        """Return the key of a request. Raises `HostError` 401, 429."""
        key = self._clients.admitted(scope)
        if key is None:
            return anonymous(self._ft.store.clock.now())
        if key.per_minute is not None:
            wait = self._ft.store.watching.take_tokens(
                f"gateway:{key.name}", 1, per_minute=key.per_minute, burst=float(key.per_minute)
            )
            if wait:
                message = f"the key {key.name} is limited to {key.per_minute} requests per minute"
                headers = {"retry-after": str(max(1, math.ceil(wait)))}
                raise HostError(
                    429, message, code="rate_limit_exceeded", type="rate_limit_error", headers=headers
                )
        return key


@dataclass(frozen=True)
class RunningGateway:
    """A running gateway."""

    url: str
    """The base URL for clients."""


@contextmanager
def serve(
    ft: Workspace, terms: GatewaySettings, watcher: Watcher, reached: Reached = lambda place: None
) -> Generator[RunningGateway]:
    """Serve the gateway while the block runs, and continue the jobs of an earlier gateway. `watcher` follows
    the runs. Raises `UsageError` if other machines could connect without a key or keys would be sent
    unencrypted, and `SetupError` if the port is taken."""
    if find_spec("python_multipart") is None:
        raise MissingExtra("gateway", "the gateway", "python-multipart")
    clients = _require_safe(ft, terms)
    for target in terms.models.values():
        if target.run is None:
            ft.backends(target.backend)
        else:
            ft.store.runs.get(target.run)
        backend = target.backend or ft.store.runs.get(str(target.run)).provider
        if target.on == "here":
            capability(ft.provider(backend), Downloads)
        if target.deploy is not None:
            capability(ft.provider(backend), Deploys)
    contents = Contents(private_folder(terms.files), ft.store)
    outside = Outside(ft, terms.models)
    files, models = FileRoutes(ft.store, contents), ModelRoutes(ft, terms, outside)
    uploads = Uploads(ft.store, files)
    sweeps = (files.sweep, uploads.sweep, contents.sweep, ft.store.gateway_keys.sweep)
    submitting = Submitting(ft, terms, contents, watcher, reached, sweeps)
    jobs = Jobs(ft, terms, files, outside, submitting, reached)
    engines = Engines(ft)
    answers = InferenceRoutes(ft, models, engines)
    routes = [*files.routes(), *uploads.routes(), *jobs.routes(), *answers.routes(), *models.routes()]
    try:
        with serving(
            app(ft, routes, clients, terms.names, terms.most_requests),
            host=terms.host,
            port=terms.port,
            grace_s=terms.grace_s,
            certificate=terms.certificate,
        ) as url:
            submitting.start()
            yield RunningGateway(f"{url}/v1")
    finally:
        submitting.close()
        engines.close()


def _require_safe(ft: Workspace, terms: GatewaySettings) -> Clients:
    if not is_loopback(terms.host) and terms.certificate is None and not terms.behind_proxy:
        raise UsageError(
            f"other machines can reach {terms.host}, and keys would be sent unencrypted",
            fix="use --tls-certificate and --tls-key, or --behind-proxy if a proxy terminates TLS",
        )
    clients = Clients(ft.store, "gateway")
    clients.require(
        terms.host, "add a key with: orchestrate gateway keys add NAME", behind_proxy=terms.behind_proxy
    )
    return clients
