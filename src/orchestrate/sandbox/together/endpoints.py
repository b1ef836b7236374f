"""Together's dedicated endpoints (v2): an endpoint, its deployments, and the traffic split between them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox.host import Body, Host, HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.jobs import Job
from orchestrate.sandbox.shared import brought
from orchestrate.sandbox.shared.billing import base_model
from orchestrate.sandbox.state import token
from orchestrate.sandbox.together.bringing import Bringing
from orchestrate.sandbox.together.registry import Registry, listed


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
"""What an endpoint has besides its deployments; none of it is made here."""


class Endpoints:
    """Routes over the endpoints and deployments of the Together host."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.registry = Registry(host)

    def routes(self) -> list[BaseRoute]:
        root = "/v2/projects/{project}/endpoints"
        below = f"{root}/{{endpoint}}/deployments"
        return [
            *Bringing(self.host, self.registry).routes(),
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
        asked = parse(CreateEndpoint, await json_body(request))
        if any(e["name"] == _full(asked.name) for e in self._all()):
            raise HostError(409, f"endpoint {asked.name} exists already", code="already_exists")
        now = iso(self.host.clock.now())
        endpoint: dict[str, Any] = {
            "id": f"ep_{token(16)}",
            "name": _full(asked.name),
            "projectId": request.path_params["project"],
            "visibility": asked.visibility,
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
        whole = sum(weights.values()) or 1
        shown = [
            {
                **{
                    k: d[k]
                    for k in ("id", "autoscaling", "createdAt", "model", "modelId", "name", "trafficMode")
                },
                "estimatedEffectiveTrafficShare": weights.get(d["id"], 0) / whole,
                "state": self._state(d),
                "hardware": d["hardware"],
                "readyReplicas": 1 if self._state(d) == "DEPLOYMENT_STATE_READY" else 0,
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
        asked = parse(UpdateEndpoint, await json_body(request))
        self._check_etag(endpoint, asked.etag)
        if asked.trafficSplit is not None:
            known = {d["id"] for d in self._below(endpoint["id"])}
            for split in asked.trafficSplit:
                if split.deploymentId not in known:
                    raise HostError(400, f"deployment {split.deploymentId} is not of this endpoint")
            endpoint["trafficSplit"] = [split.model_dump() for split in asked.trafficSplit]
        if asked.name:
            endpoint["name"] = _full(asked.name)
        endpoint |= {"etag": token(8), "updatedAt": iso(self.host.clock.now())}
        self._save("endpoint", endpoint)
        return json_answer(self._render(endpoint))

    def _check_etag(self, stored: dict[str, Any], given: str | None) -> None:
        if given is not None and given != stored["etag"]:
            raise HostError(409, "the object was changed meanwhile (etag)", code="etag_mismatch")

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
        asked = parse(CreateDeployment, await json_body(request))
        name, job = self._deployable(asked)
        now = self.host.clock.now()
        model_id = next((id for id, (known, _) in self.registry.weights().items() if known == name), name)
        deployment = {
            "id": f"dep_{token(16)}",
            "name": f"{endpoint['name']}/{asked.name}",
            "endpointId": endpoint["id"],
            "projectId": request.path_params["project"],
            "model": asked.model or f"projects/{request.path_params['project']}/models/{model_id}",
            "modelId": model_id,
            "modelRevisionId": asked.modelRevisionId or "rv_latest",
            "config": asked.config or "cr_1xnvidiah10080gb",
            "configId": asked.configId or "cr_1xnvidiah10080gb",
            "autoscaling": asked.autoscaling,
            "hardware": "1xnvidia-h100-80gb",
            "inactiveTimeout": asked.inactiveTimeout,
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

    def _deployable(self, asked: CreateDeployment) -> tuple[str, Job | None]:
        wanted = asked.model or asked.modelId or ""
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
        ready = int(state == "DEPLOYMENT_STATE_READY")
        status = {"state": state, "message": "sandbox", "readyReplicas": ready, "scheduledReplicas": 1}
        return {**deployment, "status": status, "desiredReplicas": 1}

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
        asked = parse(UpdateDeployment, await json_body(request))
        self._check_etag(deployment, asked.etag)
        if asked.autoscaling is not None:
            deployment["autoscaling"] |= asked.autoscaling
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

    def serving(self, model: str) -> Job | None:
        """The job whose weights answer to an endpoint's name; `None` for a deployed base model.

        Raises `HostError`: 400 for a tuned model without a dedicated endpoint, 503 while it starts.
        """
        for endpoint in self._all():
            if model not in (endpoint["name"], endpoint["name"].rsplit("/", 1)[-1], endpoint["id"]):
                continue
            routed = [s["deploymentId"] for s in endpoint["trafficSplit"] if s["weight"] > 0]
            for deployment in self._below(endpoint["id"]):
                if deployment["id"] in routed and self._state(deployment) == "DEPLOYMENT_STATE_READY":
                    id = deployment["sandbox_job"]
                    return (self.host.job(id) or brought.found(self.host, id)) if id else None
            raise HostError(
                503,
                f"endpoint {model} has no deployment that is ready and gets traffic",
                code="service_unavailable",
            )
        raise HostError(
            400,
            f"Unable to access non-serverless model {model}. Create and start a dedicated endpoint for it.",
            code="model_not_available",
        )


def _full(name: str) -> str:
    return name if "/" in name else f"sandbox/{name}"
