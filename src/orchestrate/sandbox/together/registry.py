"""Contents of a Together project: tuned weights, base models, hardware and its prices."""

from __future__ import annotations

import hashlib
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox import shared
from orchestrate.sandbox.host import Host, HostError, iso, json_answer, route
from orchestrate.sandbox.jobs import Phase, SandboxJob

PUBLIC = "proj-together"
"""Project that owns the base models."""
_DAY = 1_780_000_000.0
_HARDWARE = (
    ("1xnvidia-h100-80gb", "H100", 1, 80, 549),
    ("2xnvidia-h100-80gb", "H100", 2, 80, 1098),
    ("1xnvidia-h200-141gb", "H200", 1, 141, 629),
)


class Registry:
    """Routes for models, configurations and hardware on the Together host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def routes(self) -> list[BaseRoute]:
        return [
            route("/v2/public/inference-instance-types", "GET", self.hardware),
            route("/v2/supported-models", "GET", self.supported_models),
            route("/v2/projects/{project}/models", "GET", self.models),
            route("/v2/projects/{project}/models/{id}", "GET", self.model),
            route("/v2/projects/{project}/configs", "GET", self.configs),
        ]

    def hardware(self, request: Request) -> Response:
        data: list[dict[str, Any]] = [
            {
                "id": id,
                "name": id,
                "description": f"{count}x NVIDIA {gpu} (sandbox)",
                "gpuType": gpu,
                "gpuCount": count,
                "gpuMemoryGib": memory,
                "priceCentsPerHour": cents,
                "regions": [],
            }
            for id, gpu, count, memory, cents in _HARDWARE
        ]
        return listed(data)

    def supported_models(self, request: Request) -> Response:
        from orchestrate.catalog import search

        wanted = request.query_params.get("product") or request.query_params.get("products")
        words = request.query_params.get("search", "").lower()
        data = [
            _supported(id, model.title or model.name, model.context)
            for model in search(provider="together")
            if wanted in (None, "PRODUCT_FINE_TUNING", "PRODUCT_DEDICATED")
            and words in (id := model.hosts["together"].id).lower()
        ]
        return listed(data)

    def weights(self) -> dict[str, tuple[str, SandboxJob]]:
        """Map registry ids to (name, job) of all finished weights."""
        found: dict[str, tuple[str, SandboxJob]] = {}
        for job in self.host.jobs():
            if job.phase(self.host.clock.now()) is Phase.SUCCEEDED:
                ids = registry_of(job)
                found[ids["model_object_id"]] = (ids["model_object_name"], job)
                found[ids["adapter_object_id"]] = (ids["adapter_object_name"], job)
        return found | {job.id: (job.output, job) for job in shared.every(self.host)}

    def models(self, request: Request) -> Response:
        there = self.weights()
        data = [self._model(request, id, name, job) for id, (name, job) in there.items()]
        empty = [one for one in self.host.state.all("together", "registered") if one["id"] not in there]
        return listed(data + empty)

    def model(self, request: Request) -> Response:
        id = request.path_params["id"]
        for known, (name, job) in self.weights().items():
            if id in (known, name, name.rsplit("/", 1)[-1]):
                return json_answer(self._model(request, known, name, job))
        if (base := self.base_of(id)) is not None:
            at = iso(_DAY)
            return json_answer(
                {
                    "id": id,
                    "name": base,
                    "projectId": PUBLIC,
                    "createdAt": at,
                    "updatedAt": at,
                    "sandbox": True,
                }
            )
        raise HostError(404, f"model {id} was not found", code="not_found")

    def base_of(self, id: str) -> str | None:
        """Return the name of the base model with this registry id."""
        from orchestrate.catalog import search

        names = (model.hosts["together"].id for model in search(provider="together"))
        return next((name for name in names if object_id("ml", name) == id), None)

    def _model(self, request: Request, id: str, name: str, job: SandboxJob) -> dict[str, Any]:
        return {
            "id": id,
            "name": name,
            "projectId": request.path_params["project"],
            "baseModel": f"projects/{PUBLIC}/models/{object_id('ml', job.base)}",
            "baseModelId": object_id("ml", job.base),
            "createdAt": iso(job.finished_at or job.created_at),
            "updatedAt": iso(job.finished_at or job.created_at),
            "sandbox": True,
        }

    def configs(self, request: Request) -> Response:
        model = (
            request.query_params.get("reference_model") or request.query_params.get("referenceModel") or ""
        )
        data = [
            {
                "id": _config_id(id),
                "projectId": request.path_params["project"],
                "referenceModel": model,
                "referenceModelId": model,
                "certifications": [],
                # The SDK's command line joins the two to the name of the hardware.
                "selectors": [
                    {"key": "accelerator_type", "value": id.partition("x")[2]},
                    {"key": "accelerator_count", "value": str(count)},
                ],
            }
            for id, _, count, _, _ in _HARDWARE
        ]
        return listed(data)


def listed(data: list[dict[str, Any]]) -> Response:
    """Format a list of the v2 API, in one page."""
    return json_answer({"object": "list", "data": data, "next_cursor": None, "sandbox": True})


def registry_of(job: SandboxJob) -> dict[str, Any]:
    """Return the location of the finished weights in Together's model registry."""
    adapter = f"{job.output}-adapter"
    return {
        "model_object_id": object_id("ml", job.output),
        "model_object_name": job.output,
        "model_object_revision_id": object_id("rv", job.output),
        "adapter_object_id": object_id("ml", adapter),
        "adapter_object_name": adapter,
        "adapter_object_revision_id": object_id("rv", adapter),
    }


def object_id(prefix: str, *parts: str) -> str:
    return f"{prefix}_{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()[:20]}"


def _profile(id: str) -> dict[str, Any]:
    """Describe how a base model is deployed: on the first hardware."""
    hardware, gpu, count, _, _ = _HARDWARE[0]
    config = _config_id(hardware)
    return {
        "certifiedConfigRevisionId": config,
        "certifiedModelRevisionId": "rv_latest",
        "config": f"projects/{PUBLIC}/configs/{config}",
        "gpuCount": count,
        "gpuType": gpu,
        "model": f"projects/{PUBLIC}/models/{object_id('ml', id)}",
        "modelName": id,
        "parallelism": "TP1",
        "performanceBenchmarks": {},
        "profileId": config,
        "quantization": "",
    }


def _config_id(hardware: str) -> str:
    return f"cr_{hardware.replace('-', '')}"


def _supported(id: str, title: str, context: int | None) -> dict[str, Any]:
    at = iso(_DAY)
    return {
        "id": id,
        "name": id,
        "displayName": title,
        "displayType": "chat",
        "baseModel": id,
        "baseModelId": id,
        "capabilities": ["CAPABILITY_CHAT"],
        "contextLength": str(context) if context else None,
        "createdAt": at,
        "updatedAt": at,
        "deploymentProfiles": [_profile(id)],
        "inputModalities": ["MODALITY_TEXT"],
        "outputModalities": ["MODALITY_TEXT"],
        "products": ["PRODUCT_FINE_TUNING", "PRODUCT_DEDICATED"],
        "publisher": "sandbox",
        "status": "SUPPORTED_MODEL_STATUS_SUPPORTED",
        "sandbox": True,
    }
