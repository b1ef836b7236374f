"""Pages of this machine: one look (`look.css`), one way to draw a conversation (`shared.js`), no text of
others as markup, nothing from outside."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterable, Callable
from html import escape
from importlib.resources import files
from typing import Any, TypeVar

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrate.errors import OrchestrateError
from orchestrate.types import decoding

Asked = TypeVar("Asked")


def page(path: str, package: str, name: str, *, back: Callable[[Request], str] | None = None) -> Route:
    """The page of an HTML file in a package. In it `NONCE` is the word that its styles and scripts need,
    `/*LOOK*/` stands for the shared style and `/*SHARED*/` for the shared script. `back` gives a path
    for a link at its head."""

    def answer(request: Request) -> HTMLResponse:
        nonce = secrets.token_urlsafe(16)
        text = _text(package, name)
        for word, file in (("LOOK", "look.css"), ("SHARED", "shared.js")):
            text = text.replace(f"/*{word}*/", _text("orchestrate.http.web", file))
        policy = (
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; img-src data:"
        )
        if back is not None:
            text = text.replace("<header>", f'<header>\n  <a href="{escape(back(request))}">Back</a>', 1)
        return HTMLResponse(text.replace("NONCE", nonce), headers={"content-security-policy": policy})

    return Route(path, answer, methods=["GET"])


def action(path: str, kind: type[Asked], act: Callable[[Asked, Request], Any]) -> Route:
    """A POST of a JSON body of this kind; what `act` gives is the JSON that is answered. `act` runs in a
    thread, beside others. A wrong body, or an error of ours, is 422 and `{"error": sentence}`."""

    async def answer(request: Request) -> Response:
        body = await request.body()
        try:
            asked = decoding.decode(body, type=kind)
            return json(await run_in_threadpool(act, asked, request))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return json({"error": str(error)}, 422)
        except OrchestrateError as error:
            return json({"error": error.message}, 422)

    return Route(path, answer, methods=["POST"])


def json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def event_stream(events: AsyncIterable[str]) -> StreamingResponse:
    """Server-sent events: each text is the `data` of one, sent as soon as it is there."""

    async def framed() -> AsyncIterable[str]:
        async for event in events:
            yield "".join(f"data: {line}\n" for line in event.split("\n")) + "\n"

    return StreamingResponse(framed(), media_type="text/event-stream", headers={"x-accel-buffering": "no"})


def _text(package: str, name: str) -> str:
    return files(package).joinpath(name).read_text(encoding="utf-8")
