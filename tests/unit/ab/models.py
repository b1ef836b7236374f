"""A model at an address, which a test can make fail, hang, or break off."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from orchestrate.http.web import serving
from orchestrate.http.wire.openai import chat

HANGS_S = 8.0


@dataclass
class Model:
    name: str
    url: str = ""
    fault: str | int | None = None
    """An HTTP status, `hang`, `cut` (in the midst of a stream), `drop` (no answer), `page` (of what stands
    between, which says 200), `error` (in an answer that says 200), `late error` (in the midst, once `read` is
    set), `error at once` (with the first word), or `lingers` (open after the last event)."""
    read: threading.Event = field(default_factory=threading.Event)
    """Set by a test that has read the first word: sent before, the error might arrive together with it."""
    bodies: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    keys: list[str | None] = field(default_factory=list["str | None"])

    async def answer(self, request: Request) -> Response:
        body: dict[str, Any] = await request.json()
        self.bodies.append(body)
        self.keys.append(request.headers.get("authorization"))
        if self.fault == "hang":
            await asyncio.sleep(HANGS_S)
        if self.fault == "page":
            return HTMLResponse("<h1>Please log in</h1>")
        if self.fault == "error" and not body.get("stream"):
            return JSONResponse({"error": {"message": "overloaded"}})
        if isinstance(self.fault, int):
            return JSONResponse({"error": {"message": f"refused with {self.fault}"}}, self.fault)
        if body["model"] != self.name:
            return JSONResponse({"error": {"message": "no such model"}}, 404)
        said = f"{self.name} says: {body['messages'][-1]['content']}"
        if body.get("stream"):
            return StreamingResponse(self._pieces(said), media_type="text/event-stream")
        choice = chat.choice(0, chat.message(said), "stop")
        return JSONResponse(chat.completion("id", 1, self.name, [choice], chat.usage(1000, 100)))

    async def _pieces(self, text: str) -> AsyncGenerator[str]:
        if self.fault == "drop":
            raise ConnectionResetError
        for number, word in enumerate(text.split(" ")):
            if self.fault == "cut" and number == 2:
                raise ConnectionResetError
            error = chat.event({"error": {"message": "overloaded", "type": "server_error"}})
            if self.fault == ("late error" if number else "error"):
                if number:
                    await asyncio.to_thread(self.read.wait, 240)
                yield error
                return
            said = chat.event(chat.chunk("id", 1, self.name, [chat.piece(0, {"content": f"{word} "}, None)]))
            if self.fault == "error at once":
                yield said + error
                return
            yield said
        yield chat.event(chat.chunk("id", 1, self.name, [chat.piece(0, {}, "stop")]))
        yield chat.event(chat.chunk("id", 1, self.name, [], chat.usage(1000, 100)))
        yield chat.DONE
        if self.fault == "lingers":
            await asyncio.sleep(HANGS_S)


@contextmanager
def model(name: str) -> Generator[Model]:
    made = Model(name)
    app = Starlette(routes=[Route("/v1/chat/completions", made.answer, methods=["POST"])])
    with serving(app, grace_s=1.0) as root:
        made.url = f"{root}/v1"
        yield made


def words(text: str) -> Any:
    return [{"role": "user", "content": text}]
