"""OpenAI's models, base and tuned, and their answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.http.wire.openai import objects, responses
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.host import Host, HostError, json_answer, json_body, parse, route
from orchestrate.sandbox.jobs import Job, Phase
from orchestrate.sandbox.shared import answers
from orchestrate.sandbox.shared.billing import base_model
from orchestrate.sandbox.state import token


def organization() -> str:
    """Of the account of the current request."""
    return f"org-{here()}"


class OpenAIModels:
    """Routes over the models of the OpenAI host."""

    def __init__(
        self,
        host: Host,
        tuned: Callable[[str], tuple[Job, int | None]],
        asked: Callable[[str], tuple[Job | None, int | None]],
    ) -> None:
        self.host = host
        self._tuned, self._asked = tuned, asked

    def routes(self) -> list[BaseRoute]:
        return [
            route("/v1/models", "GET", self.models),
            route("/v1/models/{id:path}", "GET", self.model),
            route("/v1/models/{id:path}", "DELETE", self.delete_model),
            route("/v1/chat/completions", "POST", self.chat),
            route("/v1/responses", "POST", self.respond),
        ]

    def models(self, request: Request) -> Response:
        from orchestrate.catalog import search

        bases = [
            _base_model(m.hosts["openai"].id, m.hosts["openai"].shutdown) for m in search(provider="openai")
        ]
        now = self.host.clock.now()
        tuned = [
            _tuned_model(j)
            for j in self.host.jobs()
            if j.phase(now) is Phase.SUCCEEDED and not j.body.get("sandbox_model_deleted")
        ]
        return json_answer({"object": "list", "data": bases + tuned})

    def model(self, request: Request) -> Response:
        id = request.path_params["id"]
        if id.startswith("ft:"):
            return json_answer({**_tuned_model(self._tuned(id)[0]), "id": id})
        found = base_model(id, "openai", undated=True)
        if found is None:
            raise HostError(404, f"The model '{id}' does not exist", code="model_not_found", param="model")
        return json_answer(_base_model(found.id, found.shutdown))

    def delete_model(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not id.startswith("ft:"):
            raise HostError(403, "You have insufficient permissions for this operation.")
        job, _ = self._tuned(id)

        def mark(job: Job, now: float) -> bool:
            job.body["sandbox_model_deleted"] = True
            return True

        self.host.change(job.id, mark)
        return json_answer(objects.deleted(id, "model"))

    async def chat(self, request: Request) -> Response:
        asked = answers.parse_chat(await json_body(request))
        return await run_in_threadpool(self._chat, asked)

    async def respond(self, request: Request) -> Response:
        asked = parse(responses.ResponseRequest, await json_body(request))
        if asked.stream:
            raise HostError(400, "this sandbox does not stream responses", param="stream")
        reply = await run_in_threadpool(self._chat, answers.parse_chat(responses.chat_body(asked)))
        chat = json.loads(bytes(reply.body))
        shown = responses.of_chat(asked, chat, f"resp_{token()}")
        return json_answer({**shown, "sandbox": True, "sandbox_model": chat["sandbox_model"]})

    def _chat(self, asked: answers.ChatRequest) -> Response:
        job, step = self._asked(asked.model)
        return answers.complete(self.host, asked, job, step)


def _base_model(id: str, shutdown: date | None) -> dict[str, Any]:
    created = datetime(2024, 7, 18, tzinfo=UTC).timestamp()
    return objects.model(id, created, "sandbox", shutdown.isoformat() if shutdown else None)


def _tuned_model(job: Job) -> dict[str, Any]:
    shown = objects.model(job.output, job.finished_at or job.created_at, organization(), None)
    return {**shown, "sandbox": True}
