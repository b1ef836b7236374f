"""Together's projects and dedicated endpoints (v2): models, hardware and prices, uploaded adapters, and
endpoints with deployments and traffic splits."""

from __future__ import annotations

import hashlib
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox import shared
from orchestrate.sandbox.host import Body, Host, HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.jobs import Phase, SandboxJob
from orchestrate.sandbox.shared import base_model
from orchestrate.sandbox.state import token

# -- the project's models and hardware -------------------------------------------------------------------


PUBLIC = "proj-together"
"""Id of the project that owns the base models."""
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
        wanted_text = request.query_params.get("search", "").lower()
        data = [
            _supported(id, model.title or model.name, model.context)
            for model in search(provider="together")
            if wanted in (None, "PRODUCT_FINE_TUNING", "PRODUCT_DEDICATED")
            and wanted_text in (id := model.hosts["together"].id).lower()
        ]
        return listed(data)

    def weights(self) -> dict[str, tuple[str, SandboxJob]]:
        """Return all finished weights, as {registry id: (name, job)}."""
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
                # The SDK's command line joins these two values to get the hardware's name.
                "selectors": [
                    {"key": "accelerator_type", "value": id.partition("x")[2]},
                    {"key": "accelerator_count", "value": str(count)},
                ],
            }
            for id, _, count, _, _ in _HARDWARE
        ]
        return listed(data)


def listed(data: list[dict[str, Any]]) -> Response:
    """Format items as a single-page list response of the v2 API."""
    return json_answer({"object": "list", "data": data, "next_cursor": None, "sandbox": True})


def registry_of(job: SandboxJob) -> dict[str, Any]:
    """Return the ids and names of a job's finished weights in Together's model registry."""
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


# -- uploaded adapters -----------------------------------------------------------------------------------


# An adapter is uploaded to Together in three steps: register the model, upload its files in parts of up to
# 20 MB, and complete the upload.


PART_BYTES = 20 * 1024 * 1024


class TogetherCreateModel(Body):
    base_model_id: Annotated[str, Field(alias="baseModelId")]
    name: Annotated[str, Field(pattern=r"^([a-z0-9-]+/)?[A-Za-z0-9._-]{1,96}$")]
    type: Literal["model", "adapter", "models", "adapters"]
    description: str | None = None


class FileToCome(Body):
    path: str
    hash: str
    numParts: Annotated[int, Field(ge=1)]


class TogetherCreateUpload(Body):
    objectId: str
    files: Annotated[list[FileToCome], Field(min_length=1)]


class PartDone(Body):
    partNumber: int
    hash: str


class Details(Body):
    uploadId: str
    parts: list[PartDone]


class FileDone(Body):
    path: str
    hash: str
    uploadDetails: Details | None = None
    skipUpload: bool = False


class TogetherCompleteUpload(Body):
    objectId: str
    files: list[FileDone]


class TogetherUploadRoutes:
    """Routes for uploaded adapters on the Together host."""

    def __init__(self, host: Host, registry: Registry) -> None:
        self.host, self.registry = host, registry

    def routes(self) -> list[BaseRoute]:
        root = "/v2/projects/{project}/models"
        return [
            route(root, "POST", self.create),
            route(f"{root}/upload/create", "POST", self.begin),
            route(f"{root}/upload/complete", "POST", self.complete),
            route("/_signed/model-part/{upload}/{number}", "PUT", self.receive),
        ]

    async def create(self, request: Request) -> Response:
        parsed = parse(TogetherCreateModel, await json_body(request))
        base = self.registry.base_of(parsed.base_model_id)
        if base is None:
            raise HostError(
                400, f"base model {parsed.base_model_id} is not supported", code="invalid_argument"
            )
        if not parsed.type.startswith("adapter"):
            raise HostError(400, "the sandbox only accepts adapters", code="invalid_argument")
        name = parsed.name if "/" in parsed.name else f"sandbox/{parsed.name}"
        id = object_id("ml", name)
        if self.host.state.get("together", "registered", id) is not None:
            raise HostError(409, f"model {name} already exists", code="already_exists")
        body: dict[str, Any] = {
            "id": id,
            "name": name,
            "projectId": request.path_params["project"],
            "organizationId": "org-sandbox",
            "visibility": "VISIBILITY_PRIVATE",
            "weights": {},
            "baseModel": f"projects/{PUBLIC}/models/{parsed.base_model_id}",
            "baseModelId": parsed.base_model_id,
            "description": parsed.description,
            "sandbox": True,
            "sandbox_base": base,
        }
        self.host.state.put("together", "registered", id, body)
        return json_answer(body)

    def _registered(self, id: str) -> dict[str, Any]:
        found = self.host.state.get("together", "registered", id)
        if found is None:
            raise HostError(404, f"model {id} was not found", code="not_found")
        return found

    async def begin(self, request: Request) -> Response:
        body = parse(TogetherCreateUpload, await json_body(request))
        self._registered(body.objectId)
        folder = shared.folder_of(self.host, body.objectId)
        shown: list[dict[str, Any]] = []
        for file in body.files:
            if file.path not in shared.FILES:
                raise HostError(
                    400, f"file {file.path} does not belong to an adapter", code="invalid_argument"
                )
            there = folder / file.path
            if there.is_file() and _etag(there.read_bytes()) == file.hash:
                shown.append({"path": file.path, "skipUpload": True})
                continue
            upload = token()
            values = {"object": body.objectId, "path": file.path, "parts": file.numParts}
            self.host.state.put("together", "upload", upload, values)
            parts = [
                {
                    "partNumber": n,
                    "url": self.host.signed(f"model-part/{upload}/{n}"),
                    "headers": {"x-part": str(n)},
                }
                for n in range(1, file.numParts + 1)
            ]
            shown.append({"path": file.path, "uploadId": upload, "parts": parts})
        return json_answer({"files": shown, "sandbox": True})

    async def receive(self, request: Request) -> Response:
        number = request.path_params["number"]
        upload = self.host.state.get("together", "upload", request.path_params["upload"])
        if upload is None or request.headers.get("x-part") != number:
            raise HostError(403, "the signed URL is invalid", code="permission_denied")
        if "authorization" in request.headers:
            raise HostError(400, "do not send an API key to a signed URL", code="invalid_argument")
        data = await request.body()
        if len(data) > PART_BYTES:
            raise HostError(400, "a part must be at most 20 MB", code="invalid_argument")
        self._part(request.path_params["upload"], int(number)).write_bytes(data)
        return Response(headers={"etag": f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'})

    def _part(self, upload: str, number: int) -> Any:
        return self.host.state.files / f"part-{upload}-{number}"

    async def complete(self, request: Request) -> Response:
        body = parse(TogetherCompleteUpload, await json_body(request))
        registered = self._registered(body.objectId)
        folder = shared.folder_of(self.host, body.objectId)
        for file in body.files:
            if file.skipUpload:
                continue
            details = file.uploadDetails
            upload = self.host.state.get("together", "upload", details.uploadId) if details else None
            if details is None or upload is None or upload["path"] != file.path:
                raise HostError(400, f"no upload of {file.path} was started", code="invalid_argument")
            numbers = [part.partNumber for part in details.parts]
            if numbers != list(range(1, upload["parts"] + 1)):
                raise HostError(
                    400, f"the request must list all parts of {file.path} in order", code="invalid_argument"
                )
            try:
                data = b"".join(self._part(details.uploadId, n).read_bytes() for n in numbers)
            except FileNotFoundError as error:
                raise HostError(
                    400, f"parts of {file.path} were not uploaded", code="invalid_argument"
                ) from error
            if _etag(data) != file.hash:
                raise HostError(400, f"{file.path} has a different hash", code="invalid_argument")
            (folder / file.path).write_bytes(data)
        shared.add(self.host, body.objectId, registered["name"], registered["sandbox_base"])
        return json_answer({"revisionId": object_id("rv", registered["name"]), "sandbox": True})


def _etag(data: bytes) -> str:
    """Compute the ETag as S3 does for an object of several parts."""
    sums = [
        hashlib.md5(data[at : at + PART_BYTES], usedforsecurity=False)
        for at in range(0, len(data), PART_BYTES)
    ]
    if len(sums) == 1:
        return sums[0].hexdigest()
    return f"{hashlib.md5(b''.join(s.digest() for s in sums), usedforsecurity=False).hexdigest()}-{len(sums)}"


class CreateEndpoint(Body):
    name: Annotated[str, Field(min_length=1, max_length=100)]
    visibility: Literal["VISIBILITY_PRIVATE", "VISIBILITY_INTERNAL"] = "VISIBILITY_PRIVATE"


class Split(Body):
    deploymentId: str
    weight: Annotated[float, Field(ge=0)]


class UpdateEndpoint(Body):
    name: str | None = None
    etag: str | None = None
    trafficSplit: list[Split] | None = None
    visibility: str | None = None


class CreateDeployment(Body):
    name: Annotated[str, Field(min_length=1)]
    autoscaling: dict[str, Any]
    model: str | None = None
    modelId: str | None = None
    modelRevisionId: str | None = None
    config: str | None = None
    configId: str | None = None
    inactiveTimeout: int | None = None
    maxConcurrentRequestsPerReplica: str | None = None
    placement: dict[str, Any] | None = None


class UpdateDeployment(Body):
    autoscaling: dict[str, Any] | None = None
    etag: str | None = None
    inactiveTimeout: int | None = None
    maxConcurrentRequestsPerReplica: str | None = None
    modelRevisionId: str | None = None
    trafficMode: str | None = None


EXPERIMENTS = ("abExperiments", "shadowExperiments", "rollouts")
"""Endpoint fields for experiments and rollouts, which the sandbox does not simulate."""


class Endpoints:
    """Routes for endpoints and deployments on the Together host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.registry = Registry(host)

    def routes(self) -> list[BaseRoute]:
        root = "/v2/projects/{project}/endpoints"
        below = f"{root}/{{endpoint}}/deployments"
        return [
            *TogetherUploadRoutes(self.host, self.registry).routes(),
            *self.registry.routes(),
            route(root, "POST", self.create),
            route(root, "GET", self.list_endpoints),
            route(f"{root}/{{endpoint}}", "GET", self.retrieve),
            route(f"{root}/{{endpoint}}", "PATCH", self.update),
            route(f"{root}/{{endpoint}}", "DELETE", self.delete),
            *(route(f"{root}/{{endpoint}}/{what}", "GET", self.no_experiments) for what in EXPERIMENTS),
            route(below, "POST", self.deploy),
            route(below, "GET", self.deployments),
            route(f"{below}/{{id}}", "GET", self.deployment),
            route(f"{below}/{{id}}", "PATCH", self.change),
            route(f"{below}/{{id}}", "DELETE", self.undeploy),
        ]

    # -- endpoints -----------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        body = parse(CreateEndpoint, await json_body(request))
        if any(e["name"] == _full(body.name) for e in self._all()):
            raise HostError(409, f"endpoint {body.name} already exists", code="already_exists")
        now = iso(self.host.clock.now())
        endpoint: dict[str, Any] = {
            "id": f"ep_{token(16)}",
            "name": _full(body.name),
            "projectId": request.path_params["project"],
            "visibility": body.visibility,
            "endpointType": "ENDPOINT_TYPE_DEDICATED",
            "trafficSplit": [],
            "createdAt": now,
            "updatedAt": now,
            "etag": token(8),
            "sandbox": True,
        }
        self._save("endpoint", endpoint)
        return json_answer(self._render(endpoint))

    def _all(self) -> list[dict[str, Any]]:
        return list(self.host.state.all("together", "endpoint"))

    def _save(self, kind: str, body: dict[str, Any], tag: str | None = None) -> None:
        self.host.state.put("together", kind, body["id"], body, tag=tag)

    def _found(self, request: Request) -> dict[str, Any]:
        wanted = request.path_params["endpoint"]
        for endpoint in self._all():
            if wanted in (endpoint["id"], endpoint["name"]):
                return endpoint
        raise HostError(404, f"endpoint {wanted} was not found", code="not_found")

    def _render(self, endpoint: dict[str, Any]) -> dict[str, Any]:
        weights = {s["deploymentId"]: s["weight"] for s in endpoint["trafficSplit"]}
        total = sum(weights.values()) or 1
        shown = [
            {
                **{
                    k: d[k]
                    for k in ("id", "autoscaling", "createdAt", "model", "modelId", "name", "trafficMode")
                },
                "estimatedEffectiveTrafficShare": weights.get(d["id"], 0) / total,
                "state": self._state(d),
                "hardware": d["hardware"],
                "desiredReplicas": _desired(d),
                "readyReplicas": _desired(d) if self._state(d) == "DEPLOYMENT_STATE_READY" else 0,
            }
            for d in self._below(endpoint["id"])
        ]
        return {**endpoint, "deployments": shown}

    def list_endpoints(self, request: Request) -> Response:
        data = [self._render(endpoint) for endpoint in self._all()]
        return listed(data)

    def retrieve(self, request: Request) -> Response:
        return json_answer(self._render(self._found(request)))

    async def update(self, request: Request) -> Response:
        endpoint = self._found(request)
        body = parse(UpdateEndpoint, await json_body(request))
        self._check_etag(endpoint, body.etag)
        if body.trafficSplit is not None:
            known = {d["id"] for d in self._below(endpoint["id"])}
            for split in body.trafficSplit:
                if split.deploymentId not in known:
                    raise HostError(400, f"deployment {split.deploymentId} does not belong to this endpoint")
            endpoint["trafficSplit"] = [split.model_dump() for split in body.trafficSplit]
        if body.name:
            endpoint["name"] = _full(body.name)
        endpoint |= {"etag": token(8), "updatedAt": iso(self.host.clock.now())}
        self._save("endpoint", endpoint)
        return json_answer(self._render(endpoint))

    def _check_etag(self, stored: dict[str, Any], given: str | None) -> None:
        if given is not None and given != stored["etag"]:
            raise HostError(409, "the object has changed since you read it", code="etag_mismatch")

    def delete(self, request: Request) -> Response:
        endpoint = self._found(request)
        if any(self._state(d) != "DEPLOYMENT_STATE_STOPPED" for d in self._below(endpoint["id"])):
            raise HostError(400, "the endpoint still has deployments", code="failed_precondition")
        self.host.state.delete("together", "endpoint", endpoint["id"])
        return json_answer({"id": endpoint["id"], "deleted": True, "sandbox": True})

    def no_experiments(self, request: Request) -> Response:
        self._found(request)
        return listed([])

    # -- deployments ---------------------------------------------------------------------------------------

    async def deploy(self, request: Request) -> Response:
        endpoint = self._found(request)
        body = parse(CreateDeployment, await json_body(request))
        name, job = self._deployable(body)
        now = self.host.clock.now()
        model_id = next((id for id, (known, _) in self.registry.weights().items() if known == name), name)
        deployment = {
            "id": f"dep_{token(16)}",
            "name": f"{endpoint['name']}/{body.name}",
            "endpointId": endpoint["id"],
            "projectId": request.path_params["project"],
            "model": body.model or f"projects/{request.path_params['project']}/models/{model_id}",
            "modelId": model_id,
            "modelRevisionId": body.modelRevisionId or "rv_latest",
            "config": body.config or "cr_1xnvidiah10080gb",
            "configId": body.configId or "cr_1xnvidiah10080gb",
            "autoscaling": body.autoscaling,
            "hardware": "1xnvidia-h100-80gb",
            "inactiveTimeout": body.inactiveTimeout,
            "trafficMode": "TRAFFIC_MODE_LIVE",
            "createdAt": iso(now),
            "updatedAt": iso(now),
            "etag": token(8),
            "sandbox": True,
            "sandbox_job": job.id if job else None,
            "sandbox_ready_at": now + self.host.wait("deploying"),
        }
        if (
            request.query_params.get("validateOnly") not in ("true", "True")
            and request.query_params.get("validate_only") != "true"
        ):
            self._save("deployment", deployment, endpoint["id"])
        return json_answer(self._deployment(deployment))

    def _deployable(self, body: CreateDeployment) -> tuple[str, SandboxJob | None]:
        wanted = body.model or body.modelId or ""
        key = (
            wanted.split("/models/")[-1].split("/revisions/")[0] if wanted.startswith("projects/") else wanted
        )
        for id, (name, job) in self.registry.weights().items():
            if key in (id, name, name.rsplit("/", 1)[-1], job.id):
                return name, job
        key = self.registry.base_of(key) or key
        if base_model(key, "together") is not None:
            return key, None
        raise HostError(
            400, f"model {wanted!r} was not found in this project", param="model", code="not_found"
        )

    def _state(self, deployment: dict[str, Any]) -> str:
        if deployment["autoscaling"].get("maxReplicas", 1) == 0:
            return "DEPLOYMENT_STATE_STOPPED"
        ready = self.host.clock.now() >= deployment["sandbox_ready_at"]
        return "DEPLOYMENT_STATE_READY" if ready else "DEPLOYMENT_STATE_PROVISIONING"

    def _below(self, endpoint: str) -> list[dict[str, Any]]:
        return list(self.host.state.all("together", "deployment", tag=endpoint))

    def _deployment(self, deployment: dict[str, Any]) -> dict[str, Any]:
        state = self._state(deployment)
        wanted = _desired(deployment)
        ready = wanted if state == "DEPLOYMENT_STATE_READY" else 0
        status = {"state": state, "message": "sandbox", "readyReplicas": ready, "scheduledReplicas": wanted}
        return {**deployment, "status": status, "desiredReplicas": wanted}

    def _one(self, request: Request) -> dict[str, Any]:
        endpoint = self._found(request)
        for deployment in self._below(endpoint["id"]):
            if request.path_params["id"] in (deployment["id"], deployment["name"]):
                return deployment
        raise HostError(404, f"deployment {request.path_params['id']} was not found", code="not_found")

    def deployments(self, request: Request) -> Response:
        data = [self._deployment(d) for d in self._below(self._found(request)["id"])]
        return listed(data)

    def deployment(self, request: Request) -> Response:
        return json_answer(self._deployment(self._one(request)))

    async def change(self, request: Request) -> Response:
        deployment = self._one(request)
        body = parse(UpdateDeployment, await json_body(request))
        self._check_etag(deployment, body.etag)
        if body.autoscaling is not None:
            deployment["autoscaling"] |= body.autoscaling
        deployment |= {"etag": token(8), "updatedAt": iso(self.host.clock.now())}
        self._save("deployment", deployment)
        return json_answer(self._deployment(deployment))

    def undeploy(self, request: Request) -> Response:
        deployment = self._one(request)
        self.host.state.delete("together", "deployment", deployment["id"])
        endpoint = self._found(request)
        kept = [s for s in endpoint["trafficSplit"] if s["deploymentId"] != deployment["id"]]
        self._save("endpoint", {**endpoint, "trafficSplit": kept})
        return json_answer({"id": deployment["id"], "deleted": True, "sandbox": True})

    def serving(self, model: str) -> SandboxJob | None:
        """Find the job that trained the weights that an endpoint serves. Returns `None` for a deployed base
        model. Raises `HostError` 400 if a tuned model has no dedicated endpoint, and 503 while the endpoint
        is starting."""
        for endpoint in self._all():
            if model not in (endpoint["name"], endpoint["name"].rsplit("/", 1)[-1], endpoint["id"]):
                continue
            routed = [s["deploymentId"] for s in endpoint["trafficSplit"] if s["weight"] > 0]
            for deployment in self._below(endpoint["id"]):
                if deployment["id"] in routed and self._state(deployment) == "DEPLOYMENT_STATE_READY":
                    id = deployment["sandbox_job"]
                    return (self.host.job(id) or shared.found(self.host, id)) if id else None
            raise HostError(
                503,
                f"endpoint {model} has no ready deployment with traffic",
                code="service_unavailable",
            )
        raise HostError(
            400,
            f"Unable to access non-serverless model {model}. Create and start a dedicated endpoint for it.",
            code="model_not_available",
        )


def _desired(deployment: dict[str, Any]) -> int:
    """Return how many replicas the autoscaler wants: the fewest, unless the stored deployment says more."""
    scaling = deployment["autoscaling"]
    least = max(scaling.get("minReplicas", 1), 1)
    return min(max(deployment.get("desiredReplicas", 1), least), scaling.get("maxReplicas", least))


def _full(name: str) -> str:
    return name if "/" in name else f"sandbox/{name}"
