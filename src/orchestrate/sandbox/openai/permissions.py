"""Which projects may use a checkpoint: `fine_tuning/checkpoints/{name}/permissions`, kept and acted on by
nobody."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox.host import Body, Host, HostError, json_answer, json_body, parse, route
from orchestrate.sandbox.state import token

_KIND = "permission"


class Create(Body):
    project_ids: list[str] = Field(min_length=1)


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
        for project in parse(Create, await json_body(request)).project_ids:
            id = f"cp_{token()}"
            permission: dict[str, Any] = {
                "id": id,
                "object": "checkpoint.permission",
                "created_at": int(self.host.clock.now()),
                "project_id": project,
            }
            self.host.state.put(self.host.name, _KIND, id, permission, tag=checkpoint)
            made.append(permission)
        return json_answer(_listed(made))

    def list(self, request: Request) -> Response:
        project = request.query_params.get("project_id")
        found = self.host.state.all(self.host.name, _KIND, tag=request.path_params["checkpoint"])
        return json_answer(_listed([p for p in found if project in (None, p["project_id"])]))

    def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not self.host.state.delete(self.host.name, _KIND, id):
            raise HostError(404, f"No permission {id}", code="not_found")
        return json_answer({"id": id, "object": "checkpoint.permission", "deleted": True})


def _listed(found: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": found,
        "has_more": False,
        "first_id": found[0]["id"] if found else None,
        "last_id": found[-1]["id"] if found else None,
    }
