"""Which projects may use a checkpoint: `fine_tuning/checkpoints/{name}/permissions`, kept and acted on by
nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.http.wire.openai import objects
from orchestrate.http.wire.openai.objects import page_with_ends
from orchestrate.http.wire.openai.tuning import Permit
from orchestrate.sandbox.host import Host, HostError, json_answer, json_body, parse, route
from orchestrate.sandbox.state import token

_KIND = "permission"


class Permissions:
    def __init__(self, host: Host, tuned: Callable[[str], object]) -> None:
        """`tuned` raises `HostError` for a name that no checkpoint has."""
        self.host = host
        self._tuned = tuned

    def routes(self) -> list[BaseRoute]:
        root = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
        return [
            route(root, "POST", self.create),
            route(root, "GET", self.list),
            route(f"{root}/{{id}}", "DELETE", self.delete),
        ]

    async def create(self, request: Request) -> Response:
        checkpoint = request.path_params["checkpoint"]
        self._tuned(checkpoint)
        made: list[dict[str, Any]] = []
        for project in parse(Permit, await json_body(request)).project_ids:
            id = f"cp_{token()}"
            permission = objects.permission(id, project, self.host.clock.now())
            self.host.state.put(self.host.name, _KIND, id, permission, tag=checkpoint)
            made.append(permission)
        return json_answer(page_with_ends(made, more=False))

    def list(self, request: Request) -> Response:
        project = request.query_params.get("project_id")
        found = self.host.state.all(self.host.name, _KIND, tag=request.path_params["checkpoint"])
        return json_answer(
            page_with_ends([p for p in found if project in (None, p["project_id"])], more=False)
        )

    def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not self.host.state.delete(self.host.name, _KIND, id):
            raise HostError(404, f"No permission {id}", code="not_found")
        return json_answer(objects.deleted(id, "checkpoint.permission"))
