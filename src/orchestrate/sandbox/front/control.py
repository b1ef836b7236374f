"""The pages that are the sandbox's own: what it is, faults, request counters, the clock, jobs in bulk."""

from __future__ import annotations

import html
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from orchestrate.sandbox.front.faults import Fault
from orchestrate.sandbox.host import NOTE, HostError
from orchestrate.types import decoding

if TYPE_CHECKING:
    from orchestrate.sandbox.front.requests import Front
    from orchestrate.sandbox.host import Host
    from orchestrate.sandbox.state import Clock

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title} sandbox</title></head><body>
<h1>This is a sandbox, not {title}</h1>
<p>It speaks the fine-tuning API of {title} on this machine, so that programs can be tried without a key,
a bill or data leaving the machine. {note}.</p>
<p>It accepts only keys that begin with <code>sandbox-</code>. Jobs here: {jobs}; trained on this machine:
{train}.</p>
<ul>
<li><code>POST /_sandbox/faults</code> one fault or a list, <code>GET</code> those waiting,
<code>DELETE</code> all</li>
<li><code>GET /_sandbox/requests</code> counters and the last requests
(<code>?method=POST&amp;path=...</code>), <code>DELETE</code> to start again</li>
<li><code>GET /_sandbox/clock</code>, <code>POST {{"skip_s": 3600}}</code> or
<code>{{"speed": 10}}</code></li>
<li><code>POST /_sandbox/account {{"credit_usd": 5}}</code>
the most that one job may be estimated at</li>
<li><code>POST /_sandbox/jobs</code> a list of create bodies, made at once</li>
</ul></body></html>"""


def control_routes(host: Host, front: Front, clock: Clock) -> list[BaseRoute]:
    """`/` and `/_sandbox/...` of one host."""

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
                added = decoding.convert(given if isinstance(given, list) else [given], list[Fault])
            except msgspec.MsgspecError as error:
                return _wrong(error)
            front.faults.add(added)
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
    """Jobs in bulk."""

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
    """What the account may spend on one job."""

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
