"""The server's routes: the chat completions API and related endpoints, on top of an engine."""

from __future__ import annotations

import secrets
import time
from typing import Annotated, Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from orchestrate.http.web import Endpoint, Keyed, api_error_response, bearer, edge, no_model
from orchestrate.http.wire import Body, HostError, json_body, parse
from orchestrate.http.wire.openai import page
from orchestrate.http.wire.openai.chat import ChatRequest, CompletionRequest, TokenizeRequest
from orchestrate.serving.server.answers import Answering
from orchestrate.serving.server.conversation import chat_options, completion_options, message
from orchestrate.serving.server.engine import EngineClient
from orchestrate.serving.server.keys import Clients
from orchestrate.serving.server.load import ServerLoad
from orchestrate.serving.server.refusals import asking

OPEN = ("/health", "/ping")
"""Paths that require no key."""
MOST_BODY = 4 << 20


class NewAdapter(Body):
    """A request to load an adapter, in vLLM's format."""

    lora_name: Annotated[str, Field(min_length=1, max_length=256)]
    lora_path: str


class Api:
    """The state of a server. The engine manages the models."""

    def __init__(
        self,
        engine: EngineClient,
        *,
        base_name: str,
        load: ServerLoad,
        clients: Clients,
        admin_key: str | None = None,
    ) -> None:
        """Set up the server. Only `admin_key` may add and remove models."""
        self.engine, self.load = engine, load
        self.base_name, self.clients, self.admin_key = base_name, clients, admin_key
        self.created = int(time.time())
        self.answering = Answering(engine, load)

    def app(self, *, names: tuple[str, ...] = (), origins: tuple[str, ...] = ()) -> ASGIApp:
        """Build the app, behind the guard that all local servers use."""
        routes = [
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self._counted(self.chat), methods=["POST"]),
            Route("/v1/completions", self._counted(self.completions), methods=["POST"]),
            Route("/tokenize", self.tokenize, methods=["POST"]),
            Route("/health", self.health),
            Route("/ping", self.health),
            Route("/metrics", self.metrics),
            Route("/v1/load_lora_adapter", self.add, methods=["POST"]),
            Route("/v1/unload_lora_adapter", self.remove, methods=["POST"]),
        ]
        return edge(
            routes,
            door=lambda inner: Keyed(inner, self.clients.lately, open=OPEN),
            names=names,
            origins=origins,
            max_body=MOST_BODY,
        )

    # -- models and status ---------------------------------------------------------------------------------

    def names(self) -> list[str]:
        whole = list(self.engine.models) if self.whole else [self.base_name, *self.engine.models]
        return list(dict.fromkeys(whole))

    @property
    def whole(self) -> bool:
        """True if the server serves a single full or merged model. False if it serves a base model with
        adapters."""
        return self.base_name in self.engine.models

    def _shown(self, name: str) -> dict[str, Any]:
        parent = None if name == self.base_name else self.base_name
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "orchestrate",
            "parent": parent,
            "max_model_len": self.engine.context,
        }

    async def models(self, request: Request) -> Response:
        del request
        return JSONResponse(page([self._shown(name) for name in self.names()], more=False))

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.names():
            raise no_model(name, self.names())
        return JSONResponse(self._shown(name))

    async def health(self, request: Request) -> Response:
        del request
        status = "ok" if self.engine.up else "failing" if self.engine.failure else "starting"
        failure = self.engine.failure or "; ".join(self.engine.held_back.values()) or None
        body = {"status": status, "models": self.names(), "failure": failure}
        return JSONResponse(body, 200 if self.engine.up else 503)

    async def metrics(self, request: Request) -> Response:
        del request
        text = self.load.text(self.engine.up, self.engine.restarts)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")

    # -- answers -------------------------------------------------------------------------------------------

    def _counted(self, answer: Endpoint) -> Endpoint:
        """Count requests by model and status, for the metrics."""

        async def counted(request: Request) -> Response:
            try:
                done = await answer(request)
            except HostError as error:
                done = api_error_response(error)
            name = str(getattr(request.state, "model", ""))
            self.load.requests[name if name in self.names() else "", done.status_code] += 1
            return done

        return counted

    async def chat(self, request: Request) -> Response:
        asked = parse(ChatRequest, await json_body(request))
        self._require(asked.model, request)
        return (await self.answering.chat(request, asked, chat_options(asked))).written()

    async def completions(self, request: Request) -> Response:
        asked = parse(CompletionRequest, await json_body(request))
        self._require(asked.model, request)
        return (await self.answering.completions(request, asked, completion_options(asked))).written()

    def _require(self, name: str, request: Request) -> None:
        """Raise `HostError` for an unknown model name, so that no other model answers."""
        request.state.model = name
        if name not in self.names():
            raise no_model(name, self.names())

    async def tokenize(self, request: Request) -> Response:
        asked = parse(TokenizeRequest, await json_body(request))
        name = asked.model or self.names()[0]
        self._require(name, request)
        if (asked.messages is None) == (asked.prompt is None):
            raise HostError(400, "send messages or a prompt, not both", param="messages")
        given: dict[str, Any] = {"text": asked.prompt}
        if asked.messages is not None:
            given = {"messages": [message(m, n) for n, m in enumerate(asked.messages)], "tools": asked.tools}
        with asking():
            ids = (await self.engine.ask("tokenize", model=name, **given))["ids"]
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": self.engine.context})

    # -- adding and removing adapters ----------------------------------------------------------------------

    def _require_admin(self, request: Request) -> None:
        key = bearer(request.scope)
        if (
            self.admin_key is None
            or key is None
            or not secrets.compare_digest(key.encode(), self.admin_key.encode())
        ):
            raise HostError(403, "only the owner of this server can change the models", code="not_allowed")

    async def add(self, request: Request) -> Response:
        self._require_admin(request)
        asked = parse(NewAdapter, await json_body(request))
        with asking():
            seconds = await self.engine.load(asked.lora_name, asked.lora_path)
        return JSONResponse({"model": asked.lora_name, "seconds": seconds})

    async def remove(self, request: Request) -> Response:
        self._require_admin(request)
        name = str((await json_body(request)).get("lora_name"))
        with asking():
            await self.engine.unload(name)
        return JSONResponse({"model": name, "removed": True})
