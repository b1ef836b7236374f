"""Middleware for all requests, and the sandbox's own pages."""

from __future__ import annotations

import asyncio
import html
import json
import re
import threading
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from orchestrate.sandbox.accounts import HERE, account_of
from orchestrate.sandbox.host import LIST_LAG_S, NOTE, STALLS, Host, HostError
from orchestrate.sandbox.state import SandboxClock
from orchestrate.settings.config import SANDBOX_KEY_PREFIX
from orchestrate.types import decoding

# Faults that a test can request: failures that occur between a client and a host.


Kind = Literal[
    "error",
    "rate_limit",
    "timeout",
    "training_closed",
    "lost_request",
    "lost_answer",
    "refused_after",
    "no_list",
    "endless",
    "late_commit",
    "half_body",
    "bad_json",
    "html",
    "html_after",
    "slow",
    "list_lag",
    "stall",
    "unknown_status",
    "duplicate",
    "paused_capacity",
    "paused_rate_limit",
    "session_expired",
]


OF_SOME_HOSTS = frozenset({"paused_capacity", "paused_rate_limit", "session_expired"})


class Fault(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """See the module's docstring."""

    kind: Kind
    method: str | None = None
    path: str | None = None
    count: int = 1
    skip: int = 0
    status: int | None = None
    code: str | None = None
    type: str | None = None
    message: str | None = None
    param: str | None = None
    retry_after: float | None = None
    delay_s: float = 1.0
    word: str = "defrosting"
    content: Any = {}
    hits: int = 0
    """Number of requests that the fault has affected so far."""

    def matches(self, method: str, path: str) -> bool:
        return (self.method is None or self.method.upper() == method) and (
            self.path is None or re.search(self.path, path) is not None
        )


class FaultBook:
    """The pending faults of one host, in the order in which they were requested."""

    def __init__(self, own: frozenset[str] = frozenset()) -> None:
        """Set up the book. `own` lists the host-specific faults that this host supports."""
        self._own = own
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def add(self, faults: list[Fault]) -> None:
        """Add faults. Raises `ValidationError` for a kind that this host does not support."""
        if strange := [one.kind for one in faults if one.kind in OF_SOME_HOSTS - self._own]:
            raise msgspec.ValidationError(f"this host does not support the fault {strange[0]}")
        with self._lock:
            self._waiting.extend(faults)

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()

    def waiting(self) -> list[dict[str, Any]]:
        with self._lock:
            return [msgspec.to_builtins(fault) for fault in self._waiting]

    def take(self, method: str, path: str) -> Fault | None:
        """Return the fault to inject into this request and count it, or return `None`."""
        with self._lock:
            for fault in self._waiting:
                if not fault.matches(method, path):
                    continue
                if fault.skip > 0:
                    fault.skip -= 1
                    continue
                fault.hits += 1
                if fault.count > 0 and fault.hits >= fault.count:
                    self._waiting.remove(fault)
                return fault
        return None


# The sandbox's own pages: a description, faults, request counters, the clock and bulk job creation.


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} sandbox</title></head><body>
<h1>This is a sandbox, not {title}</h1>
<p>It serves {title}'s fine-tuning API on this machine. You can test programs without an API
key or a bill, and no data leaves the machine. {note}.</p>
<p>It only accepts keys that start with <code>sandbox-</code>.
Jobs: {jobs}. Trained on this machine: {train}.</p>
<ul>
<li><code>POST /_sandbox/faults</code> adds one fault or a list, <code>GET</code> lists the pending ones,
<code>DELETE</code> removes all</li>
<li><code>GET /_sandbox/requests</code> shows counters and the latest requests
(<code>?method=POST&amp;path=...</code>), <code>DELETE</code> resets them</li>
<li><code>GET /_sandbox/clock</code>, <code>POST {{"skip_s": 3600}}</code> or
<code>{{"speed": 10}}</code> changes the clock</li>
<li><code>POST /_sandbox/account {{"credit_usd": 5}}</code>
sets the maximum estimated price of a job</li>
<li><code>POST /_sandbox/jobs</code> creates jobs from a list of request bodies</li>
</ul></body></html>"""


def control_routes(host: Host, front: Front, clock: SandboxClock) -> list[BaseRoute]:
    """Build the routes `/` and `/_sandbox/...` of one host."""

    def index(request: Request) -> Response:
        page = _PAGE.format(
            title=html.escape(host.title),
            note=html.escape(NOTE),
            jobs=host.state.count(host.name, "job"),
            train="yes" if host.settings.train else "no",
        )
        return HTMLResponse(page)

    async def faults(request: Request) -> Response:
        if request.method == "DELETE":
            front.faults.clear()
        elif request.method == "POST":
            try:
                given = msgspec.json.decode(await request.body())
                front.faults.add(decoding.convert(given if isinstance(given, list) else [given], list[Fault]))
            except msgspec.MsgspecError as error:
                return _wrong(error)
        return JSONResponse({"sandbox": True, "faults": front.faults.waiting()})

    def requests(request: Request) -> Response:
        if request.method == "DELETE":
            front.log.clear()
        query = request.query_params
        return JSONResponse({"sandbox": True, **front.log.report(query.get("method"), query.get("path"))})

    async def time(request: Request) -> Response:
        if request.method == "POST":
            try:
                change = decoding.decode(await request.body(), type=_ClockChange)
            except msgspec.MsgspecError as error:
                return _wrong(error)
            clock.skip(change.skip_s)
            clock.speed = change.speed or clock.speed
        return JSONResponse({"sandbox": True, "now": clock.now(), "speed": clock.speed})

    return [
        Route("/", index, methods=["GET"]),
        Route("/_sandbox/faults", faults, methods=["GET", "POST", "DELETE"]),
        Route("/_sandbox/requests", requests, methods=["GET", "DELETE"]),
        Route("/_sandbox/clock", time, methods=["GET", "POST"]),
        Route("/_sandbox/account", _account(host), methods=["GET", "POST"]),
        Route("/_sandbox/jobs", _jobs(host), methods=["POST"]),
    ]


def _jobs(host: Host) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler that creates jobs in bulk."""

    async def jobs(request: Request) -> Response:
        try:
            bodies = msgspec.json.decode(await request.body(), type=list[dict[str, Any]])
        except msgspec.MsgspecError as error:
            return _wrong(error)
        try:
            ids = await run_in_threadpool(host.create_many, bodies)
        except HostError as error:
            return host.error(error)
        return JSONResponse({"sandbox": True, "ids": ids})

    return jobs


class _ClockChange(msgspec.Struct, forbid_unknown_fields=True):
    skip_s: float = 0.0
    speed: float | None = None


def _account(host: Host) -> Callable[[Request], Awaitable[Response]]:
    """Return the handler that reads or sets the account's credit limit."""

    async def account(request: Request) -> Response:
        if request.method == "POST":
            try:
                change = decoding.decode(await request.body(), type=_AccountChange)
            except msgspec.MsgspecError as error:
                return _wrong(error)
            host.settings.credit_usd = change.credit_usd
        return JSONResponse({"sandbox": True, "credit_usd": host.settings.credit_usd})

    return account


class _AccountChange(msgspec.Struct, forbid_unknown_fields=True):
    credit_usd: float


def _wrong(error: Exception) -> Response:
    return JSONResponse({"sandbox": True, "error": str(error)}, status_code=400)


# Middleware in front of a host: it counts requests, requires a sandbox key and injects faults.


_SECRET_FIELDS = {"wandb_key", "wandb_api_key", "hf_api_token", "apiKey", "api_key"}
_MAX_LOGGED_BODY = 65536
_PROXY_PAGE = "<html><head><title>502 Bad Gateway</title></head><body><h1>502 Bad Gateway</h1></body></html>"


class RequestLog:
    """Counters and the latest requests of one host. Headers, which contain keys, are not stored."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        with self._lock:
            self._counts: Counter[tuple[str, str]] = Counter()
            self._recent: deque[dict[str, Any]] = deque(maxlen=2000)

    def add(self, method: str, path: str, query: str, body: Any) -> dict[str, Any]:
        entry = {"at": time.time(), "method": method, "path": path, "query": query, "body": body}
        with self._lock:
            self._counts[method, path] += 1
            self._recent.append(entry)
        return entry

    def report(self, method: str | None, path: str | None) -> dict[str, Any]:
        """Count the requests by method and path, and list the latest ones in `recent`. Only includes requests
        that use `method` and whose path contains `path`. `None` includes all."""
        with self._lock:
            counts, recent = dict(self._counts), list(self._recent)
        chosen = [
            e for e in recent if (method in (None, e["method"])) and (path is None or path in e["path"])
        ]
        chosen_counts = {
            k: n for k, n in counts.items() if (method in (None, k[0])) and (path is None or path in k[1])
        }
        return {
            "total": sum(chosen_counts.values()),
            "by": [
                {"method": m, "path": p, "count": n}
                for (m, p), n in sorted(chosen_counts.items(), key=lambda item: -item[1])
            ],
            "recent": chosen,
        }


class Front:
    """ASGI application that wraps a host's application.

    own_key   the sandbox's own key. Every other key belongs to a separate account.
    app       application of the host
    control   application for `/` and `/_sandbox/...`
    """

    app: ASGIApp
    control: ASGIApp

    def __init__(self, host: Host, own_key: str) -> None:
        self.host, self.own_key = host, own_key
        self.faults = FaultBook(host.own_faults)
        self.log = RequestLog()
        self._late: set[asyncio.Task[None]] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        marked = self._marked(send)
        path: str = scope["path"]
        if path == "/" or path.startswith("/_sandbox"):
            await self.control(scope, receive, marked)
            return
        request = Request(scope)
        if path.startswith("/_signed/"):
            HERE.set(request.query_params.get("account"))
        elif refusal := self._check_key(request):
            await refusal(scope, receive, marked)
            return
        receive, body = await self._logged(request, receive)
        fault = self.faults.take(request.method, path)
        if fault is None:
            await self.app(scope, receive, marked)
        else:
            await self._suffer(fault, scope, receive, marked, body)

    def _marked(self, send: Send) -> Send:
        async def marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = {"x-orchestrate-sandbox": "1", **self.host.headers()}
                coded = [(name.encode(), value.encode()) for name, value in added.items()]
                message = {**message, "headers": [*message.get("headers", []), *coded]}
            await send(message)

        return marked

    def _check_key(self, request: Request) -> Response | None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").strip()
        given = given or request.headers.get("x-api-key", "") or request.headers.get("api-key", "")
        given = given.removeprefix(self.host.key_prefix)
        if given.startswith(SANDBOX_KEY_PREFIX):
            HERE.set(account_of(given, self.own_key))  # each request runs in a context of its own
            request.scope["key_name"] = HERE.get()
            denied = self.host.denied(request)
            return self.host.error(denied) if denied else None
        prefix = self.host.key_prefix + SANDBOX_KEY_PREFIX
        return self.host.error(
            HostError(
                401,
                f"This sandbox only accepts keys that start with {prefix!r}. Do not use a real key",
                code="invalid_api_key",
            )
        )

    async def _logged(self, request: Request, receive: Receive) -> tuple[Receive, bytes | None]:
        """Count the request. A JSON body is read, logged without secrets, and replayed to the host."""
        body: bytes | None = None
        parsed: Any = None
        if request.headers.get("content-type", "").startswith("application/json"):
            body = await Request(request.scope, receive).body()
            receive = _replay(body)
            if len(body) <= _MAX_LOGGED_BODY:
                try:
                    parsed = _without_secrets(json.loads(body or b"null"))
                except ValueError:
                    parsed = None
        self.log.add(request.method, request.url.path, request.url.query, parsed)
        return receive, body

    async def _suffer(
        self, fault: Fault, scope: Scope, receive: Receive, send: Send, body: bytes | None
    ) -> None:
        kind = fault.kind
        if kind in ("error", "rate_limit", "training_closed"):
            await self._refusal(fault)(scope, receive, send)
        elif kind == "no_list":
            await JSONResponse(fault.content)(scope, receive, send)
        elif kind == "html":
            await HTMLResponse(_PROXY_PAGE, fault.status or 200)(scope, receive, send)
        elif kind == "lost_request":
            await _hang_up(scope)
        elif kind == "late_commit":
            body = body if body is not None else await Request(scope, receive).body()
            task = asyncio.create_task(self._later(fault.delay_s, scope, body))
            self._late.add(task)
            task.add_done_callback(self._late.discard)
            await _hang_up(scope)
        elif kind == "list_lag":
            LIST_LAG_S.set(fault.delay_s)  # each request runs in a context of its own
            await self.app(scope, receive, send)
        elif kind in self.host.own_faults:
            answer = await self.host.suffer(kind, fault.delay_s)
            await (answer or self.app)(scope, receive, send)
        elif kind == "stall":
            STALLS.set(True)
            await self.app(scope, receive, send)
        else:
            await self._after(fault, scope, receive, send, body)

    async def _after(
        self, fault: Fault, scope: Scope, receive: Receive, send: Send, body: bytes | None
    ) -> None:
        """Inject faults after the host has handled the request."""
        body = body if body is not None else await Request(scope, receive).body()
        answer = await self._do(scope, body)
        match fault.kind:
            case "duplicate":
                answer = await self._do(scope, body)
                await answer(scope, receive, send)
            case "unknown_status":
                await _with_status(answer, self.host.status_field, fault.word)(scope, receive, send)
            case "endless":
                first = await self._do({**scope, "query_string": b""}, body)
                await _changed(first, lambda page: page.update(self.host.endless))(scope, receive, send)
            case "slow":
                await asyncio.sleep(fault.delay_s)
                await answer(scope, receive, send)
            case "html_after":
                await HTMLResponse(_PROXY_PAGE, fault.status or 200)(scope, receive, send)
            case "timeout" | "refused_after":
                await self._refusal(fault)(scope, receive, send)
            case "bad_json":
                content = bytes(answer.body)
                broken = Response(
                    content[: len(content) // 2], answer.status_code, media_type="application/json"
                )
                await broken(scope, receive, send)
            case "half_body":
                await _half(answer, send)
                await _hang_up(scope)
            case _:
                await _hang_up(scope)

    def _refusal(self, fault: Fault) -> Response:
        status, code, message = {
            "rate_limit": (429, "rate_limit_exceeded", "Rate limit reached (injected by a sandbox fault)"),
            "refused_after": (400, "", "Invalid request (injected by a sandbox fault)"),
            "timeout": (504, "timeout", "The gateway timed out (injected by a sandbox fault)"),
            "training_closed": (
                403,
                "training_not_available",
                "The fine-tuning platform is being wound down and your organization is no longer able to "
                "create new fine-tuning training jobs",
            ),
        }.get(fault.kind, (500, "server_error", "The server had an error (injected by a sandbox fault)"))
        wait = fault.retry_after if fault.retry_after is not None else 1.0
        timed = fault.kind == "rate_limit" or fault.retry_after is not None
        status = fault.status or status
        return self.host.error(
            HostError(
                status,
                fault.message or message,
                code=fault.code or code or None,
                type=fault.type or ("invalid_request_error" if status < 500 else "server_error"),
                param=fault.param,
                headers={"retry-after": f"{wait:g}"} if timed else None,
            )
        )

    async def _later(self, delay_s: float, scope: Scope, body: bytes) -> None:
        await asyncio.sleep(delay_s)
        await self._do(scope, body)

    async def _do(self, scope: Scope, body: bytes) -> Response:
        """Let the host handle the request, and hold back its response."""
        messages: list[Message] = []

        async def keep(message: Message) -> None:
            messages.append(message)

        await self.app(dict(scope), _replay(body), keep)
        start = next(m for m in messages if m["type"] == "http.response.start")
        content = b"".join(m.get("body", b"") for m in messages if m["type"] == "http.response.body")
        answer = Response(content, status_code=start["status"])
        answer.raw_headers = list(start["headers"])
        return answer


def _replay(body: bytes) -> Receive:
    sent = False

    async def receive() -> Message:
        nonlocal sent
        if sent:
            await asyncio.Event().wait()  # a client that stays connected has nothing more to say
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return receive


async def _hang_up(scope: Scope) -> None:
    """Close the connection during the request, like a failing network."""
    scope["state"]["transport"].abort()
    await asyncio.sleep(0.05)  # until the server has seen it, so that it does not answer in our place


async def _half(answer: Response, send: Send) -> None:
    content = bytes(answer.body)
    await send({"type": "http.response.start", "status": answer.status_code, "headers": answer.raw_headers})
    await send({"type": "http.response.body", "body": content[: len(content) // 2], "more_body": True})
    await asyncio.sleep(0.05)  # lets the half leave this machine before the connection goes


def _with_status(answer: Response, field: str, status: str) -> Response:
    """Replace the status of each job in the response."""

    def replace(content: dict[str, Any]) -> None:
        items: list[Any] = [content]
        for value in content.values():
            items.extend(value if isinstance(value, list) else ())  # pyright: ignore[reportUnknownArgumentType]
        for item in items:
            if isinstance(item, dict) and isinstance(item.get(field), str):  # pyright: ignore
                item[field] = status

    return _changed(answer, replace)


def _changed(answer: Response, change: Callable[[dict[str, Any]], None]) -> Response:
    """Change the JSON object of a response. Responses without one stay unchanged."""
    try:
        content: Any = json.loads(bytes(answer.body))
    except ValueError:
        return answer
    if isinstance(content, dict):
        change(content)  # pyright: ignore[reportUnknownArgumentType]
    headers = {
        k.decode(): v.decode() for k, v in answer.raw_headers if k not in (b"content-length", b"content-type")
    }
    return JSONResponse(content, status_code=answer.status_code, headers=headers)


def _without_secrets(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            k: ("***" if k in _SECRET_FIELDS else _without_secrets(v))
            for k, v in value.items()  # pyright: ignore[reportUnknownVariableType]
        }
    if isinstance(value, list):
        return [_without_secrets(v) for v in value]  # pyright: ignore[reportUnknownVariableType]
    return value
