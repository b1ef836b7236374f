"""Dedicated endpoints (API v2). Together serves tuned models only on dedicated endpoints, and bills them
hourly.

Each job has one endpoint `orc-<job id>` with one deployment `tuned`. The fixed names make every step
repeatable: existing objects are found by name, and the host rejects duplicates (409). The host merges a LoRA
adapter into its base when the deployment starts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate.errors import Conflict, InvalidRequest, NotFound, ProviderError, UnexpectedAnswer, UsageError
from orchestrate.providers import adapters, files
from orchestrate.providers.adapters import DEPLOY_FIX, Replicas
from orchestrate.providers.calls import integer, items, money, number, payload, plain, rows, table, text, when
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.together import PROFILE
from orchestrate.types import Adapter, BilledResource, Endpoint

if TYPE_CHECKING:
    import httpx
    from together import Together

DEPLOYMENT = "tuned"
IDLE_MINUTES = 60
_PREFIX = "orc-"
_DOWN = ("stopped", "stopping")
_BILLS = {
    "provisioning": True,
    "ready": True,
    "scaling": True,
    "degraded": True,
    "stopping": True,
    "stopped": False,
}
"""Billing by deployment state: True if deployments in this state are billed. Running deployments are billed
even when idle. Failed deployments are left out, because Together does not document whether it bills them."""


class TogetherDeployOptions(Replicas, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of `deploy`."""

    shape: str | None = None
    """Configuration (`cr_...`) or hardware (`1xnvidia-h100-80gb`). Default: the cheapest that fits."""
    idle_minutes: int = IDLE_MINUTES
    """Minutes without a request after which the deployment stops (30 to 1440). If 0, it never stops when
    idle."""

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> TogetherDeployOptions:
        wanted = cls.read("together", options)
        if wanted.idle_minutes and not 30 <= wanted.idle_minutes <= 1440:
            raise UsageError(
                f"idle_minutes must be 0 or between 30 and 1440 at Together (got {wanted.idle_minutes})"
            )
        return wanted


class TogetherDeployments:
    def __init__(
        self,
        name: str,
        client: Callable[[], Together],
        wire: Wire,
        project: str | None,
        inference_url: str,
    ) -> None:
        self._provider = name
        self._client = client
        self._wire = wire
        self._given_project = project
        self._inference_url = inference_url
        self._found_project: str | None = None

    def price(self, id: str, made: Mapping[str, Any], options: Mapping[str, Any] | None) -> Decimal | None:
        """Return the hourly price of the existing deployment in US dollars. If there is none, returns the
        price of the deployment that `deploy` would create. Changes nothing."""
        wanted = TogetherDeployOptions.of(options)
        there = _ours(self._find(id))
        if there is None:
            usd, _ = self._configuration(self._model(id, made), wanted)
            return usd
        return _per_hour(there, self._prices(), wanted)

    def price_on(self, id: str, base_model_id: str, options: Mapping[str, Any] | None) -> Decimal | None:
        """Return the hourly price, in US dollars, of deploying an adapter. The price is computed from the
        base model, so the adapter need not be uploaded yet."""
        wanted, there = TogetherDeployOptions.of(options), _ours(self._find(id))
        if there is not None:
            return _per_hour(there, self._prices(), wanted)
        return self._configuration({"id": base_model_id, "name": id}, wanted)[0]

    def deploy(self, id: str, made: Mapping[str, Any], options: Mapping[str, Any] | None) -> Endpoint:
        """Create the endpoint and its deployment, start the deployment and route traffic to it. Steps that an
        earlier call completed are skipped."""
        wanted = TogetherDeployOptions.of(options)
        there = self._find(id)
        deployment, endpoint = _ours(there), there or {}
        if deployment is None:
            model = self._model(id, made)
            usd, config = self._configuration(model, wanted)
            wanted.require(self._provider, usd)
            endpoint = there or self._make_endpoint(id)
            deployment = self._make_deployment(id, endpoint, model, config, wanted, fresh=there is None)
        elif _state(deployment) in _DOWN:
            wanted.require(self._provider, _per_hour(deployment, self._prices(), wanted))
            self._scale(str(endpoint["id"]), str(deployment["id"]), wanted.min_replicas, wanted.max_replicas)
        self._route(endpoint, str(deployment["id"]))
        return self._endpoint(self._retrieve(str(endpoint["id"])))

    def find(self, job_id: str) -> Endpoint | None:
        there = self._find(job_id)
        return self._endpoint(there) if there is not None and there.get("deployments") else None

    def model_of(self, job_id: str) -> str:
        """Return the model's name for requests. Raises `UsageError` if the model is not deployed."""
        endpoint = self.find(job_id)
        if endpoint is None:
            raise UsageError(
                f"{job_id} is not deployed. Together serves tuned models only on dedicated endpoints",
                fix=DEPLOY_FIX,
            )
        return endpoint.model

    def remove(self, id: str) -> None:
        """Stop routing, stop and delete the deployments, and delete the endpoint, as far as the host allows.
        If something remains, call this again."""
        there = self._find(id)
        if there is None:
            return
        at, endpoint_id = self._at(), str(there["id"])
        api = self._client().endpoints
        deployments = rows(there.get("deployments"))
        if deployments:
            self._attempt(lambda: api.update(endpoint_id, traffic_split=[], update_mask="trafficSplit", **at))
        for deployment in deployments:
            one = str(deployment["id"])
            self._attempt(lambda i=one: self._scale(endpoint_id, i, 0, 0))
            self._attempt(lambda i=one: api.deployments.delete(i, endpoint_id=endpoint_id, **at))
        self._attempt(lambda: api.delete(endpoint_id, **at))

    def billing_items(self) -> Iterator[BilledResource]:
        """List all endpoints and deployments in the project, regardless of who created them."""
        prices: dict[str, Decimal] | None = None
        for raw in self._all():
            name = str(raw.get("name"))
            deployments = rows(raw.get("deployments"))
            if not deployments:
                yield BilledResource(
                    provider=self._provider,
                    kind="endpoint",
                    id=str(raw["id"]),
                    name=name,
                    state="none",
                    bills=False,
                    job_id=_job_id(name),
                    created_at=when(raw.get("createdAt")),
                )
            elif prices is None:
                prices = self._prices_if_known()
            for entry in deployments:
                price = (prices or {}).get(text(entry.get("hardware")) or "")
                state = _state(entry)
                yield BilledResource(
                    provider=self._provider,
                    kind="deployment",
                    id=f"{raw['id']}/{entry.get('id')}",
                    name=name,
                    job_id=_job_id(name),
                    state=state,
                    bills=_BILLS.get(state),
                    usd_per_hour=price * _most_replicas(entry) if price is not None else None,
                    created_at=when(entry.get("createdAt")),
                    note=text(entry.get("hardware")),
                    payload=payload(entry),
                )

    # -- steps ---------------------------------------------------------------------------------------------

    def _make_endpoint(self, job_id: str) -> dict[str, Any]:
        """Create the endpoint, which costs nothing on its own. If the response was lost or another process
        created it, find it by name."""
        api, at = self._client().endpoints, self._at()
        try:
            return plain(self._wire.once(lambda: api.create(name=_name(job_id), **at)))
        except ProviderError:
            there = self._find(job_id)
            if there is None:
                raise
            return there

    def _make_deployment(
        self,
        job_id: str,
        endpoint: Mapping[str, Any],
        model: dict[str, Any],
        config: dict[str, Any],
        wanted: TogetherDeployOptions,
        *,
        fresh: bool,
    ) -> dict[str, Any]:
        """Create the deployment, which bills from now on. Raises `OutcomeUnknown` if the response was
        lost."""
        api, at, endpoint_id = self._client().endpoints, self._at(), str(endpoint["id"])
        try:
            answer = self._wire.send_once(
                _name(job_id),
                lambda: api.deployments.create(
                    endpoint_id,
                    name=DEPLOYMENT,
                    model=f"projects/{model['projectId']}/models/{model['id']}",
                    config=f"projects/{config['projectId']}/configs/{config['id']}",
                    autoscaling={"min_replicas": wanted.min_replicas, "max_replicas": wanted.max_replicas},
                    inactive_timeout=wanted.idle_minutes,
                    **at,
                ),
                lambda answer: text(plain(answer).get("id")),
            )
        except ProviderError as error:
            # The deployment may exist despite the error, created by this request or by another process.
            there = _ours(self._retrieve(endpoint_id))
            if there is not None:
                return there
            if fresh and not error.retryable:
                with suppress(ProviderError):  # an endpoint without a deployment costs nothing
                    self._wire.read(lambda: api.delete(endpoint_id, **at))
            raise
        return plain(answer)

    def _route(self, endpoint: Mapping[str, Any], deployment_id: str) -> None:
        split = rows(endpoint.get("trafficSplit"))
        if any(s.get("deploymentId") == deployment_id and number(s.get("weight")) for s in split):
            return
        api, at, endpoint_id = self._client().endpoints, self._at(), str(endpoint["id"])
        routed = [{"deployment_id": deployment_id, "weight": 1.0}]
        self._wire.read(
            lambda: api.update(endpoint_id, traffic_split=routed, update_mask="trafficSplit", **at)  # pyright: ignore[reportArgumentType]
        )

    def _scale(self, endpoint_id: str, deployment_id: str, least: int, most: int) -> None:
        """Set the number of replicas. 0 stops the deployment."""
        api, at = self._client().endpoints.deployments, self._at()
        self._wire.read(
            lambda: api.update(
                deployment_id,
                endpoint_id=endpoint_id,
                autoscaling={"min_replicas": least, "max_replicas": most},
                update_mask="autoscaling",
                **at,
            )
        )

    def _attempt(self, act: Callable[[], object]) -> None:
        """Try one step of the removal. Ignores what is already deleted or cannot be deleted yet."""
        with suppress(NotFound, InvalidRequest, Conflict):
            self._wire.read(act, expect=object)

    def _retrieve(self, endpoint_id: str) -> dict[str, Any]:
        at = self._at()
        return plain(self._wire.read(lambda: self._client().endpoints.retrieve(endpoint_id, **at)))

    def _all(self) -> Iterator[dict[str, Any]]:
        at = self._at()
        for page in self._wire.pages(lambda: self._client().endpoints.list(limit=100, **at)):
            yield from items(page)

    def _find(self, job_id: str) -> dict[str, Any] | None:
        wanted = _name(job_id)
        return next((e for e in self._all() if str(e.get("name")).rsplit("/", 1)[-1] == wanted), None)

    def _model(self, job_id: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """Return the registry's record of the tuned weights: merged if they exist, else the adapter."""
        model_id = text(job.get("model_object_id")) or text(job.get("adapter_object_id"))
        if model_id is None:
            raise UsageError(
                f"Together's registry has no model for job {job_id} (status {job.get('status')})",
                fix="wait until the job succeeds",
            )
        return plain(self._wire.read(lambda: self._client().models.retrieve(model_id, **self._at())))

    def _configuration(
        self, model: Mapping[str, Any], wanted: TogetherDeployOptions
    ) -> tuple[Decimal | None, dict[str, Any]]:
        """Return (US dollars per hour of all replicas, configuration), for the cheapest configuration."""
        reference = str(model.get("baseModelId") or model["id"])
        at = self._at()
        pages = self._wire.pages(
            lambda: self._client().models.configs.list(reference_model_id=reference, **at)
        )
        found = [entry for page in pages for entry in items(page)]
        shape, prices = (wanted.shape or "").rsplit("/", 1)[-1], self._prices()
        fitting = [c for c in found if not shape or shape in (c.get("id"), _hardware(c))]
        if not fitting:
            known = ", ".join(f"{c.get('id')} ({_hardware(c)})" for c in found) or "none"
            raise UsageError(
                f"Together has no configuration {shape} to serve {model.get('name')}. Available: {known}"
            )
        priced = [(prices.get(_hardware(c) or ""), c) for c in fitting]
        usd, config = min(priced, key=lambda p: (p[0] is None, p[0] or Decimal(0)))
        return (usd * wanted.max_replicas if usd is not None else None), config

    def _prices_if_known(self) -> dict[str, Decimal]:
        """Return the prices, or none if they cannot be read. Deployments are listed even then."""
        try:
            return self._prices()
        except ProviderError:
            return {}

    def _prices(self) -> dict[str, Decimal]:
        """Return the US dollars per hour of one replica, by hardware name and id."""
        listed = self._wire.entries(lambda: self._client().endpoints.hardware.list(), "data")
        prices: dict[str, Decimal] = {}
        for entry in listed:
            cents = money(entry.get("priceCentsPerHour"))
            for key in ("name", "id"):
                if cents is not None and (name := text(entry.get(key))):
                    prices[name] = cents / 100
        return prices

    def _endpoint(self, raw: Mapping[str, Any]) -> Endpoint:
        deployments = rows(raw.get("deployments"))
        prices, per_hour = self._prices_if_known(), Decimal(0)
        for entry in deployments:
            price, replicas = prices.get(text(entry.get("hardware")) or ""), _most_replicas(entry)
            if price is None and replicas:  # a part of the sum would pass for all of it
                per_hour = Decimal(0)
                break
            per_hour += (price or Decimal(0)) * replicas
        return Endpoint(
            provider=self._provider,
            id=str(raw["id"]),
            model=str(raw["name"]),
            state=_state(deployments[0]) if deployments else "none",
            base_url=self._inference_url,
            usd_per_hour=per_hour or None,
            payload=payload(dict(raw)),
        )

    def _at(self) -> dict[str, Any]:
        return {"project_id": self.project()}

    def project(self) -> str:
        """Return the project from the configuration, the SDK's environment variable or the key, in this
        order."""
        if self._given_project:
            return self._given_project
        if self._found_project is None:
            self._found_project = self._client().project_id or self._own_project()
        return self._found_project

    def _own_project(self) -> str:
        who = plain(self._wire.read(lambda: self._client().whoami()))
        project = text(table(who.get("project")).get("id"))
        if project is None:
            raise UsageError(
                "the Together key is not limited to a single project",
                fix='set the project in orchestrate.toml:  [hosts.together] project = "..."',
            )
        return project


def _name(job_id: str) -> str:
    return f"{_PREFIX}{job_id}".lower()


def _job_id(name: str) -> str | None:
    """Return the job id from an endpoint's name if it follows our scheme."""
    bare = name.rsplit("/", 1)[-1]
    return bare.removeprefix(_PREFIX) if bare.startswith(_PREFIX) else None


def _ours(endpoint: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the deployment with our name on one of our endpoints."""
    below = rows(endpoint.get("deployments")) if endpoint is not None else []
    return next((d for d in below if str(d.get("name")).rsplit("/", 1)[-1] == DEPLOYMENT), None)


def _per_hour(
    deployment: Mapping[str, Any], prices: Mapping[str, Decimal], wanted: TogetherDeployOptions
) -> Decimal | None:
    """Return the hourly price of a deployment with all replicas up, or if it is stopped, of those that may
    start."""
    price = prices.get(text(deployment.get("hardware")) or "")
    down = _state(deployment) in _DOWN
    return (
        price * (wanted.max_replicas if down else _most_replicas(deployment)) if price is not None else None
    )


def _state(deployment: Mapping[str, Any]) -> str:
    word = text(deployment.get("state")) or text(table(deployment.get("status")).get("state")) or "unknown"
    return word.removeprefix("DEPLOYMENT_STATE_").lower()


def _most_replicas(deployment: Mapping[str, Any]) -> int:
    """Return the maximum number of replicas, because the autoscaler may start them without notice. Replicas
    that the host still wants or runs after the maximum was lowered count too."""
    most, status = integer(table(deployment.get("autoscaling")).get("maxReplicas")), deployment.get("status")
    running = [table(status).get(name) for name in ("scheduledReplicas", "readyReplicas")]
    counts = [integer(count) or 0 for count in (deployment.get("desiredReplicas"), *running)]
    return max(1 if most is None else most, *counts)


def _hardware(config: Mapping[str, Any]) -> str | None:
    """Build `1xnvidia-h100-80gb` from the configuration's selectors, like the SDK's command line."""
    selectors = {str(s.get("key")): text(s.get("value")) for s in rows(config.get("selectors"))}
    count, kind = selectors.get("accelerator_count"), selectors.get("accelerator_type")
    return f"{count}x{kind}" if count and kind else None


# -- adapters trained elsewhere ----------------------------------------------------------------------------
# Adapters that were trained elsewhere are registered in the project, uploaded in parts, and deployed like
# Together's own. The requests are the same as those of the SDK's command line (`models create` and
# `models upload`), because the SDK has no method for the upload itself.


PART_BYTES = 20 << 20
"""Part size in bytes, as in the SDK's command line. The host compares hashes that depend on the part size."""


class TogetherAdapters(adapters.Adapters):
    def __init__(
        self, name: str, client: Callable[[], Together], wire: Wire, serving: TogetherDeployments
    ) -> None:
        self._provider, self._client, self._wire, self._serving = name, client, wire, serving

    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        base = self._base_id(adapter)
        return self._serving.price_on(adapter.id, base, options)

    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        registered = self.find(adapter.id) or self._register(adapter)
        object_id = str(registered["id"])
        local = {file.name: _PartedFile(file) for file in adapters.files(adapter)}
        listed = [{"path": n, "hash": f.hash, "numParts": len(f.parts)} for n, f in local.items()]
        upload = self._send("upload/create", {"objectId": object_id, "files": listed})
        total, done, sent = sum(f.size for f in local.values()), 0, list[dict[str, Any]]()
        import httpx

        # This client never sends the API key.
        with httpx.Client(timeout=httpx.Timeout(600.0, connect=30.0)) as http:
            for remote in rows(upload.get("files")):
                file = local.get(str(remote.get("path")))
                if file is None:
                    raise UnexpectedAnswer(
                        self._provider,
                        f"Together requested {remote.get('path')!r}, but the adapter has no such file",
                    )
                sent.append(self._sent(http, file, remote))
                done += file.size
                if progress is not None:
                    progress(done, total)
        self._send("upload/complete", {"objectId": object_id, "files": sent})

    def _sent(self, http: httpx.Client, file: _PartedFile, remote: Mapping[str, Any]) -> dict[str, Any]:
        """Upload one file and return its entry for the request that completes the upload."""
        entry: dict[str, Any] = {"path": file.path.name, "hash": file.hash}
        if remote.get("skipUpload"):
            return {**entry, "skipUpload": True}
        parts = [self._part(http, file, part) for part in rows(remote.get("parts"))]
        if len(parts) != len(file.parts):
            raise UnexpectedAnswer(
                self._provider,
                f"Together requested {len(parts)} parts of {file.path.name}, but it has {len(file.parts)}",
            )
        return {**entry, "uploadDetails": {"uploadId": text(remote.get("uploadId")) or "", "parts": parts}}

    def find(self, id: str) -> dict[str, Any] | None:
        """Find an adapter in Together's registry by its name."""
        client, project = self._client(), self._serving.project()
        for page in self._wire.pages(lambda: client.models.list(project_id=project, limit=100)):
            for raw in items(page):
                if str(raw.get("name")).rsplit("/", 1)[-1] == id:
                    return raw
        return None

    def as_job(self, id: str) -> dict[str, Any]:
        """Return an adapter in the form of a job record. Raises `UsageError` if the adapter doesn't exist."""
        found = self.find(id)
        if found is None:
            raise UsageError(f"{self._provider} has no adapter {id}", fix="orchestrate deploy RUN --to ...")
        base = text(found.get("baseModelId"))
        name = None
        if base is not None:
            # `projects/{baseProject}/models/{baseModelId}`, or else our own project.
            parts = str(found.get("baseModel") or "").split("/")
            project = parts[1] if len(parts) == 4 else self._serving.project()
            name = plain(self._wire.read(lambda: self._client().models.retrieve(base, project_id=project)))
        return {
            "id": id,
            "status": "completed",
            "adapter_object_id": found["id"],
            "model": table(name).get("name"),
        }

    # -- steps ---------------------------------------------------------------------------------------------

    def _base_id(self, adapter: Adapter) -> str:
        """Return the id of the host's deployable base model with this name. Searches like the SDK's command
        line."""
        name = adapters.base_at(PROFILE, adapter)
        found: set[str] = set()
        for page in self._wire.pages(lambda: self._client().models.list_supported(search=name)):
            for model in items(page):
                for profile in rows(model.get("deploymentProfiles")):
                    parts = str(profile.get("model")).split("/")
                    if profile.get("modelName") == name and len(parts) >= 4:
                        found.add(parts[3])
        if len(found) != 1:
            raise UsageError(
                f"Together does not serve adapters for {name}"
                if not found
                else f"Together has several base models called {name}",
                fix="to list the models that Together deploys: tg models public --search NAME",
            )
        return found.pop()

    def _register(self, adapter: Adapter) -> dict[str, Any]:
        """Register the adapter, which costs nothing. If the response was lost or another process registered
        it, find it by name."""
        client, base = self._client(), self._base_id(adapter)
        project = self._serving.project()
        try:
            made = self._wire.once(
                lambda: client.models.create(
                    project_id=project, base_model_id=base, name=adapter.id, type="adapter"
                )
            )
        except ProviderError:
            there = self.find(adapter.id)
            if there is None:
                raise
            return there
        return plain(made)

    def _send(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send a request that starts or completes an upload. Both may be repeated."""
        from together._utils import path_template

        project, client = self._serving.project(), self._client()
        url = path_template("/v2/projects/{project_id}/models/", project_id=project) + path
        return plain(self._wire.read(lambda: client.post(url, cast_to=object, body=body), expect=object))

    def _part(self, http: httpx.Client, file: _PartedFile, remote: Mapping[str, Any]) -> dict[str, Any]:
        number = integer(remote.get("partNumber"))
        if number is None or not 1 <= number <= len(file.parts):
            raise UnexpectedAnswer(
                self._provider, f"Together requested part {number} of a file with {len(file.parts)} parts"
            )
        offset, size = file.parts[number - 1]
        url = files.safe_url(self._provider, remote.get("url"))
        headers = {str(k): str(v) for k, v in table(remote.get("headers")).items()}

        def put() -> httpx.Response:
            with file.path.open("rb") as opened:
                opened.seek(offset)
                answer = http.put(url, content=opened.read(size), headers=headers)
            answer.raise_for_status()
            return answer

        tag = self._wire.read(put).headers.get("etag", "").strip().strip('"')
        if not tag:
            raise UnexpectedAnswer(
                self._provider, f"Together did not confirm part {number} of {file.path.name} (no ETag)"
            )
        return {"partNumber": number, "hash": tag}


class _PartedFile:
    """Parts of a file as (offset, bytes), and the hash of the object that they form."""

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, path.stat().st_size
        self.parts = [(at, min(PART_BYTES, self.size - at)) for at in range(0, self.size, PART_BYTES)]
        sums: list[bytes] = []
        with path.open("rb") as file:
            while piece := file.read(PART_BYTES):
                sums.append(hashlib.md5(piece, usedforsecurity=False).digest())
        joined = hashlib.md5(b"".join(sums), usedforsecurity=False).hexdigest()
        self.hash = sums[0].hex() if len(sums) == 1 else f"{joined}-{len(sums)}"
