"""Models, deployments and loaded addons of the Fireworks host."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from orchestrate.sandbox import shared
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.fireworks import aip_filter, paged, short
from orchestrate.sandbox.host import Body, Host, HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.jobs import Phase, SandboxJob
from orchestrate.sandbox.shared import base_model, context_of, weights
from orchestrate.sandbox.state import token

if TYPE_CHECKING:
    from collections.abc import Callable

# Fireworks' deployment shapes define which GPUs can serve a base model.


_ADDONS = "FULL_PRECISION"
"""Preset that a deployment shape must have to support LoRA addons."""


class _Deployment(BaseModel):
    baseModel: str
    enableAddons: bool = False


class _Request(BaseModel):
    deployment: _Deployment


class _Match(BaseModel):
    createDeploymentRequest: _Request


class Shapes:
    """Routes for deployment shapes, and for matching them to a model."""

    def __init__(self, job_of: Callable[[str], SandboxJob | None]) -> None:
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
        """Return the validated deployment shapes for a model. A tuned model has its base model's shapes."""
        body = await json_body(request)
        parsed = parse(_Match, body).createDeploymentRequest.deployment
        name = parsed.baseModel
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
            if shape["enableAddons"] or not parsed.enableAddons
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


# An adapter is uploaded to Fireworks in three steps: create the model, upload its files to signed URLs, and
# request the validation.


_VALID_ID = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


class PeftDetails(Body):
    baseModel: str
    r: Annotated[int, Field(ge=4, le=64)]
    targetModules: list[str]


class NewModel(Body):
    kind: Literal["HF_PEFT_ADDON"] = "HF_PEFT_ADDON"
    peftDetails: PeftDetails
    displayName: Annotated[str, Field(max_length=63)] | None = None
    description: Annotated[str, Field(max_length=999)] | None = None


class FireworksCreateModel(Body):
    modelId: str
    model: NewModel


class ModelUploadEndpoint(Body):
    filenameToSize: dict[str, str]
    enableResumableUpload: bool = False


class FireworksUploadRoutes:
    """Routes for uploading adapters to the Fireworks host."""

    def __init__(self, host: Host) -> None:
        self.host = host

    def routes(self) -> list[BaseRoute]:
        models = "/v1/accounts/{account}/models"
        return [
            route(models, "POST", self.create),
            route(f"{models}/{{id}}:getUploadEndpoint", "POST", self.endpoint),
            route(f"{models}/{{id}}:validateUpload", "GET", self.validate),
            route("/_signed/model/{ticket}", "PUT", self.receive),
        ]

    async def create(self, request: Request) -> Response:
        body = parse(FireworksCreateModel, await json_body(request))
        if not _VALID_ID.match(body.modelId):
            raise HostError(
                400, f"model id {body.modelId!r} may only contain lowercase letters, digits and -"
            )
        base = body.model.peftDetails.baseModel
        if base_model(base, "fireworks") is None:
            raise HostError(404, f"base model {base} was not found")
        if self.uploading(body.modelId) is not None:
            raise HostError(409, f"model {body.modelId} already exists")
        now = iso(self.host.clock.now())
        model = {
            "id": body.modelId,
            "name": f"accounts/{here()}/models/{body.modelId}",
            "kind": body.model.kind,
            "state": "UPLOADING",
            "status": {"code": "OK", "message": ""},
            "createTime": now,
            "updateTime": now,
            "public": False,
            "peftDetails": body.model.peftDetails.model_dump(),
            "sandbox": True,
        }
        self.host.state.put("fireworks", "model", body.modelId, model)
        return json_answer(model)

    def uploading(self, id: str) -> dict[str, Any] | None:
        """Return the uploaded model with this id, or `None` if there is none. Its files may still be
        incomplete."""
        return self.host.state.get("fireworks", "model", id)

    def _found(self, request: Request) -> dict[str, Any]:
        found = self.uploading(request.path_params["id"])
        if found is None:
            raise HostError(404, f"model {request.path_params['id']} was not found")
        return found

    async def endpoint(self, request: Request) -> Response:
        model = self._found(request)
        body = parse(ModelUploadEndpoint, await json_body(request))
        urls: dict[str, str] = {}
        for name, size in body.filenameToSize.items():
            if name not in shared.FILES:
                raise HostError(400, f"file {name} does not belong to an adapter")
            ticket = token()
            values = {"model": model["id"], "name": name, "size": int(size)}
            self.host.state.put("fireworks", "model-file", ticket, values)
            urls[name] = self.host.signed(f"model/{ticket}")
        return json_answer({"filenameToSignedUrls": urls})

    async def receive(self, request: Request) -> Response:
        slot = self.host.state.get("fireworks", "model-file", request.path_params["ticket"])
        if slot is None:
            raise HostError(403, "this signed URL is invalid or has expired")
        if "authorization" in request.headers:
            raise HostError(400, "do not send an API key to a signed URL")
        size = slot["size"]
        if request.headers.get("x-goog-content-length-range") != f"{size},{size}":
            raise HostError(
                400, f"the header x-goog-content-length-range must be {size},{size}, to match the signature"
            )
        data = await request.body()
        if len(data) != size:
            raise HostError(400, f"got {len(data)} bytes, but the URL was signed for {size}")
        (shared.folder_of(self.host, slot["model"]) / slot["name"]).write_bytes(data)
        return Response(status_code=200)

    def validate(self, request: Request) -> Response:
        model = self._found(request)
        job = shared.add(self.host, model["id"], model["name"], model["peftDetails"]["baseModel"])
        if job.lora_rank != model["peftDetails"]["r"]:
            self.host.state.delete("fireworks", shared.KIND, job.id)
            raise HostError(
                400,
                f"the adapter has rank {job.lora_rank}, but the request declared {model['peftDetails']['r']}",
            )
        return json_answer({"warnings": []})


_ID = re.compile(r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")


class FireworksModelRoutes:
    """Routes for tuned and base models, and for their deployments."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.bringing = FireworksUploadRoutes(host)

    def routes(self) -> list[BaseRoute]:
        account = "/v1/accounts/{account}"
        return [
            *self.bringing.routes(),
            route(f"{account}/models", "GET", self.list_models),
            route(f"{account}/models/{{id}}:getDownloadEndpoint", "GET", self.download_endpoint),
            route(f"{account}/models/{{id}}", "GET", self.get),
            route(f"{account}/models/{{id}}", "DELETE", self.delete),
            route(f"{account}/deployments", "POST", self.deploy),
            route(f"{account}/deployments", "GET", self.deployments),
            route(f"{account}/deployments/{{id}}:scale", "PATCH", self.scale),
            route(f"{account}/deployments/{{id}}", "GET", self.deployment),
            route(f"{account}/deployments/{{id}}", "PATCH", self.update),
            route(f"{account}/deployments/{{id}}", "DELETE", self.undeploy),
            *Shapes(self.job_of).routes(),
            route(f"{account}/deployedModels", "POST", self.load),
            route(f"{account}/deployedModels", "GET", self.loaded),
            route(f"{account}/deployedModels/{{id}}", "GET", self.one_loaded),
            route(f"{account}/deployedModels/{{id}}", "DELETE", self.unload),
            route("/_signed/weights/{job}/{file}", "GET", self.file),
        ]

    # -- models --------------------------------------------------------------------------------------------

    def _finished(self) -> Iterator[SandboxJob]:
        now = self.host.clock.now()
        for job in self.host.jobs():
            if job.phase(now) is Phase.SUCCEEDED and not job.body.get("sandbox_model_deleted"):
                yield job
        yield from shared.every(self.host)

    def job_of(self, name: str) -> SandboxJob | None:
        """Find the job that trained a tuned model, by its full or short name."""
        return next((job for job in self._finished() if name in (job.output, short(job.output))), None)

    def _job(self, name: str) -> SandboxJob:
        job = self.job_of(name)
        if job is None:
            raise HostError(404, f"model {name} was not found")
        return job

    def _tuned(self, job: SandboxJob) -> dict[str, Any]:
        return {
            "name": job.output,
            "displayName": short(job.output),
            "kind": "HF_PEFT_ADDON",
            "state": "READY",
            "status": {"code": "OK", "message": ""},
            "createTime": iso(job.finished_at or job.created_at),
            "updateTime": iso(job.finished_at or job.created_at),
            "fineTuningJob": job.id if job.kind != shared.KIND else None,
            "public": False,
            "peftDetails": {"baseModel": job.base, "r": job.lora_rank, "targetModules": []},
            "sandbox": True,
        }

    def _base(self, id: str, tunable: bool, params_b: float | None) -> dict[str, Any]:
        return {
            "name": id,
            "displayName": short(id),
            "kind": "HF_BASE_MODEL",
            "state": "READY",
            "public": True,
            "tunable": tunable,
            "rlTunable": tunable,
            "supportsLora": True,
            "trainingContextLength": context_of(id, "fireworks", "sft"),
            "baseModelDetails": {
                "tunable": tunable,
                "parameterCount": str(int(params_b * 1e9)) if params_b else None,
            },
            "sandbox": True,
        }

    def list_models(self, request: Request) -> Response:
        from orchestrate.catalog import search

        if request.path_params["account"] == "fireworks":
            found = [
                self._base(m.hosts["fireworks"].id, m.hosts["fireworks"].tunable != "no", m.params_b)
                for m in search(provider="fireworks")
            ]
        else:
            found = [self._tuned(job) for job in self._finished()]
        fields = ("state", "kind", "name", "displayName")
        chosen = aip_filter(iter(found), request, lambda m: {_snake(f): str(m[f]) for f in fields})
        return paged(request, "models", chosen, dict, key=lambda m: m["name"])

    def get(self, request: Request) -> Response:
        account, id = request.path_params["account"], request.path_params["id"]
        if account == here() and (job := self.job_of(id)) is not None:
            return json_answer(self._tuned(job))
        name = f"accounts/{account}/models/{id}"
        if (base := base_model(name, "fireworks")) is not None:
            from orchestrate.catalog import resolve

            return json_answer(self._base(name, base.tunable != "no", resolve(name, "fireworks").params_b))
        if account == here() and (uploading := self.bringing.uploading(id)) is not None:
            return json_answer(uploading)
        raise HostError(404, f"model {name} was not found")

    def delete(self, request: Request) -> Response:
        job = self._job(request.path_params["id"])

        def mark(job: SandboxJob, now: float) -> bool:
            job.body["sandbox_model_deleted"] = True
            return True

        self.host.change(job.id, mark)
        return json_answer({})

    def download_endpoint(self, request: Request) -> Response:
        job = self._job(request.path_params["id"])
        files = weights(self.host, job)
        urls = {file.name: self.host.signed(f"weights/{job.id}/{file.name}") for file in files}
        return json_answer({"filenameToSignedUrls": urls})

    def file(self, request: Request) -> Response:
        job = self.host.job(request.path_params["job"])
        for file in weights(self.host, job) if job else ():
            if file.name == request.path_params["file"]:
                return FileResponse(file, media_type="application/octet-stream")
        raise HostError(404, "the signed URL is invalid")

    # -- deployments ---------------------------------------------------------------------------------------

    async def deploy(self, request: Request) -> Response:
        body = await json_body(request)
        base = str(body.get("baseModel") or "")
        job = self.job_of(base)
        if job is None and base_model(base, "fireworks") is None:
            raise HostError(404, f"model {base} was not found")
        if not body.get("deploymentShape") and not body.get("acceleratorType"):
            raise HostError(400, "accelerator_type is required if deployment_shape is not set")
        id = request.query_params.get("deploymentId") or f"sandbox-{token(8).lower()}"
        if not _ID.match(id):
            raise HostError(400, f"deployment id {id!r} may only contain a-z, 0-9 and -")
        if self.host.state.get("fireworks", "deployment", id) is not None:
            raise HostError(409, f"deployment {id} already exists")
        now = self.host.clock.now()
        deployment = {
            **body,
            "id": id,
            "name": f"accounts/{here()}/deployments/{id}",
            "createTime": iso(now),
            "updateTime": iso(now),
            "acceleratorType": body.get("acceleratorType") or "NVIDIA_H100_80GB",
            "acceleratorCount": body.get("acceleratorCount") or 1,
            "sandbox": True,
            "sandbox_job": job.id if job else None,
            "sandbox_ready_at": now + self.host.wait("deploying"),
        }
        if request.query_params.get("validateOnly") != "true":
            self.host.state.put("fireworks", "deployment", id, deployment)
        return json_answer(self._render(deployment))

    def _render(self, deployment: dict[str, Any]) -> dict[str, Any]:
        ready = self.host.clock.now() >= deployment["sandbox_ready_at"]
        wanted = deployment.get("minReplicaCount", 0)
        return {
            **deployment,
            "state": "READY" if ready else "CREATING",
            "status": {"code": "OK", "message": ""},
            "replicaCount": 1 if ready else 0,
            "desiredReplicaCount": max(1, wanted),
        }

    def _found(self, request: Request) -> dict[str, Any]:
        deployment = self.host.state.get("fireworks", "deployment", request.path_params["id"])
        if deployment is None:
            raise HostError(404, f"deployment {request.path_params['id']} was not found")
        return deployment

    def deployments(self, request: Request) -> Response:
        found = self.host.state.all("fireworks", "deployment")
        chosen = aip_filter(
            found,
            request,
            lambda d: {"base_model": d["baseModel"], "state": self._render(d)["state"], "name": d["name"]},
        )
        return paged(request, "deployments", chosen, self._render, key=lambda d: d["id"])

    def deployment(self, request: Request) -> Response:
        return json_answer(self._render(self._found(request)))

    async def update(self, request: Request) -> Response:
        deployment = self._found(request)
        deployment |= await json_body(request)
        self.host.state.put("fireworks", "deployment", deployment["id"], deployment)
        return json_answer(self._render(deployment))

    async def scale(self, request: Request) -> Response:
        deployment = self._found(request)
        deployment["minReplicaCount"] = int((await json_body(request)).get("replicaCount") or 0)
        self.host.state.put("fireworks", "deployment", deployment["id"], deployment)
        return json_answer({})

    def undeploy(self, request: Request) -> Response:
        deployment = self._found(request)
        self.host.state.delete("fireworks", "deployment", deployment["id"])
        for addon in list(self.host.state.all("fireworks", "addon", tag=deployment["id"])):
            self.host.state.delete("fireworks", "addon", addon["id"])
        return json_answer({})

    # -- addons --------------------------------------------------------------------------------------------

    async def load(self, request: Request) -> Response:
        body = await json_body(request)
        job = self._job(str(body.get("model") or ""))
        deployment = self.host.state.get("fireworks", "deployment", short(str(body.get("deployment") or "")))
        if deployment is None:
            raise HostError(400, "LoRA addons require a dedicated deployment")
        if not deployment.get("enableAddons"):
            raise HostError(400, f"addons are not enabled on deployment {deployment['id']}")
        if deployment["baseModel"] != job.base:
            raise HostError(400, f"deployment {deployment['id']} serves a different base model")
        id = f"{short(job.output)}-{token(6).lower()}"
        now = self.host.clock.now()
        addon = {
            "id": id,
            "name": f"accounts/{here()}/deployedModels/{id}",
            "model": job.output,
            "deployment": deployment["name"],
            "createTime": iso(now),
            "updateTime": iso(now),
            "sandbox": True,
            "sandbox_job": job.id,
            "sandbox_ready_at": max(now, deployment["sandbox_ready_at"]) + self.host.wait("deploying") / 2,
        }
        self.host.state.put("fireworks", "addon", id, addon, tag=deployment["id"])
        return json_answer(self._addon(addon))

    def _addon(self, addon: dict[str, Any]) -> dict[str, Any]:
        ready = self.host.clock.now() >= addon["sandbox_ready_at"]
        return {
            **addon,
            "state": "DEPLOYED" if ready else "DEPLOYING",
            "status": {"code": "OK", "message": ""},
        }

    def loaded(self, request: Request) -> Response:
        found = self.host.state.all("fireworks", "addon")
        chosen = aip_filter(
            found,
            request,
            lambda a: {"model": a["model"], "deployment": a["deployment"], "state": self._addon(a)["state"]},
        )
        return paged(request, "deployedModels", chosen, self._addon, key=lambda a: a["id"])

    def _one(self, request: Request) -> dict[str, Any]:
        addon = self.host.state.get("fireworks", "addon", request.path_params["id"])
        if addon is None:
            raise HostError(404, f"deployed model {request.path_params['id']} was not found")
        return addon

    def one_loaded(self, request: Request) -> Response:
        return json_answer(self._addon(self._one(request)))

    def unload(self, request: Request) -> Response:
        self.host.state.delete("fireworks", "addon", self._one(request)["id"])
        return json_answer({})

    # -- inference -----------------------------------------------------------------------------------------

    def serving(self, name: str) -> SandboxJob | None:
        """Find the job that trained the weights served as `model#deployment`. Returns `None` for a base
        model. Raises `HostError` 404 if a tuned model has no deployment, and 503 while its deployment is
        starting."""
        model, _, deployment = name.partition("#")
        job = self.job_of(model)
        if job is None:
            if base_model(model, "fireworks") is None:
                raise HostError(404, f"Model not found, inaccessible, and/or not deployed: {model}")
            if deployment:
                self._require_ready(short(deployment))
            return None
        places = (
            [short(deployment)]
            if deployment
            else [d["id"] for d in self.host.state.all("fireworks", "deployment")]
        )
        for place in places:
            stored = self.host.state.get("fireworks", "deployment", place)
            addons = [
                a for a in self.host.state.all("fireworks", "addon", tag=place) if a["sandbox_job"] == job.id
            ]
            if stored is not None and (stored["sandbox_job"] == job.id or addons):
                self._require_ready(place)
                if addons and self._addon(addons[0])["state"] != "DEPLOYED":
                    raise HostError(503, "DEPLOYMENT_SCALING_UP", code="DEPLOYMENT_SCALING_UP")
                return job
        raise HostError(404, f"Model not found, inaccessible, and/or not deployed: {name}")

    def _require_ready(self, id: str) -> None:
        stored = self.host.state.get("fireworks", "deployment", id)
        if stored is None:
            raise HostError(404, f"deployment {id} was not found")
        if self._render(stored)["state"] != "READY":
            raise HostError(503, "DEPLOYMENT_SCALING_UP", code="DEPLOYMENT_SCALING_UP")


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda m: f"_{m[1].lower()}", name)
