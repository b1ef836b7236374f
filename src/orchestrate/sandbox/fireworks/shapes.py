"""Deployment shapes of the Fireworks host: which GPUs serve which base model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox.fireworks.names import aip_filter, paged, short
from orchestrate.sandbox.host import HostError, json_answer, json_body, parse, route
from orchestrate.sandbox.shared.billing import base_model

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrate.sandbox.jobs import Job

_ADDONS = "FULL_PRECISION"
"""The preset that takes LoRA addons."""


class _Deployment(BaseModel):
    baseModel: str
    enableAddons: bool = False


class _Request(BaseModel):
    deployment: _Deployment


class _Match(BaseModel):
    createDeploymentRequest: _Request


class Shapes:
    """Routes over the shapes, and over their match for one model."""

    def __init__(self, job_of: Callable[[str], Job | None]) -> None:
        self._job_of = job_of

    def routes(self) -> list[BaseRoute]:
        account = "/v1/accounts/{account}"
        return [
            route(f"{account}/deploymentShapes", "GET", self.list_shapes),
            route(f"{account}/deploymentShapeVersions:match", "POST", self.match),
        ]

    def list_shapes(self, request: Request) -> Response:
        from orchestrate.catalog import search

        bases = (model.hosts["fireworks"].id for model in search(provider="fireworks"))
        found = (shape for base in bases for shape in shapes_of(base))
        chosen = aip_filter(
            found, request, lambda s: {"base_model": s["baseModel"], "preset_type": s["presetType"]}
        )
        return paged(request, "deploymentShapes", chosen, dict, key=lambda s: s["name"])

    async def match(self, request: Request) -> Response:
        """The validated shapes of a model, or of the base of a tuned one."""
        body = await json_body(request)
        asked = parse(_Match, body).createDeploymentRequest.deployment
        name = asked.baseModel
        job = self._job_of(name)
        if job is None and base_model(name, "fireworks") is None:
            raise HostError(404, f"model {name} was not found")
        versions = [
            {
                "name": f"{shape['name']}/versions/1",
                "snapshot": shape,
                "validated": True,
                "latestValidated": True,
                "public": True,
                "sandbox": True,
            }
            for shape in shapes_of(job.base if job else name)
            if shape["enableAddons"] or not asked.enableAddons
        ]
        return json_answer({"deploymentShapeVersions": versions, "sandbox": True})


def shapes_of(base: str) -> Iterator[dict[str, Any]]:
    for preset in ("MINIMAL", _ADDONS):
        yield {
            "name": f"accounts/fireworks/deploymentShapes/{short(base)}-{preset.lower()}",
            "baseModel": base,
            "acceleratorType": "NVIDIA_H100_80GB",
            "acceleratorCount": 1,
            "enableAddons": preset == _ADDONS,
            "precision": "BF16" if preset == _ADDONS else "FP8",
            "presetType": preset,
            "sandbox": True,
        }
