"""Dedicated endpoints (API v2): the only way in which Together serves a tuned model. They bill by the hour.

One endpoint `orc-<job id>` with one deployment `tuned` for each job. The names make every step repeatable:
what exists already is found, and a second one is refused by the host (409). A LoRA adapter is merged into its
base by the host when the deployment starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrate.errors import Conflict, NotFound, OverBudget, ProviderError, UsageError
from orchestrate.providers.hosted import Wire
from orchestrate.providers.payloads import payload
from orchestrate.providers.values import items, money, plain, rows, table, text, when, whole
from orchestrate.types import Endpoint, Record, Standing

if TYPE_CHECKING:
    from together import Together

DEPLOYMENT = "tuned"
IDLE_MINUTES = 60
_PREFIX = "orc-"
_BILLS = {
    "provisioning": True,
    "ready": True,
    "scaling": True,
    "degraded": True,
    "stopping": True,
    "stopped": False,
}
"""Whether a deployment in this state bills: while it runs, idle or not. What it takes for one that has failed
Together does not say."""


class DeployOptions(Record, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `deploy` takes."""

    dry_run: bool = False
    """Only tell what it would be and cost; nothing is made."""
    config: str | None = None
    """A configuration (`cr_...`); without one the cheapest that fits is taken."""
    min_replicas: int = 1
    max_replicas: int = 1
    idle_minutes: int = IDLE_MINUTES
    """Stops after so many minutes without a request (30 to 1440; 0: never)."""
    max_usd_per_hour: Decimal | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> DeployOptions:
        import msgspec

        try:
            return msgspec.convert(dict(options or {}), cls, strict=False)
        except msgspec.ValidationError as error:
            known = ", ".join(cls.__struct_fields__)
            raise UsageError(f"deploy options for together: {error}; known: {known}") from error


class Serving:
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

    def deploy(self, job_id: str, job: Mapping[str, Any], options: Mapping[str, Any] | None) -> Endpoint:
        wanted = DeployOptions.of(options)
        if (there := self._find(job_id)) and there.get("deployments"):
            return self._endpoint(there)
        model = self._model(job_id, job)
        usd, config, hardware = self._configuration(model, wanted)
        per_hour = usd * wanted.max_replicas if usd is not None else None
        if wanted.dry_run:
            plan = {"config": config["id"], "hardware": hardware, "replicas": wanted.max_replicas}
            return Endpoint(
                provider=self._provider,
                id=_name(job_id),
                model=str(model.get("name")),
                state="planned",
                usd_per_hour=per_hour,
                payload=plan,
            )
        if wanted.max_usd_per_hour is not None and (per_hour is None or per_hour > wanted.max_usd_per_hour):
            raise OverBudget(
                self._provider,
                per_hour or Decimal(0),
                wanted.max_usd_per_hour,
                what="max_usd_per_hour",
                figure="an hour",
            )
        return self._create(job_id, there, model, config, wanted)

    def find(self, job_id: str) -> Endpoint | None:
        there = self._find(job_id)
        return self._endpoint(there) if there is not None and there.get("deployments") else None

    def remove(self, job_id: str) -> None:
        """Ends routing, stops and deletes the deployments, deletes the endpoint. Repeating does nothing."""
        there = self._find(job_id)
        if there is None:
            return
        at = self._at()
        endpoint_id = str(there["id"])
        api = self._client().endpoints
        with suppress(NotFound):
            self._wire.read(
                lambda: api.update(endpoint_id, traffic_split=[], update_mask="trafficSplit", **at)
            )
            for deployment in rows(there.get("deployments")):
                self._remove_deployment(endpoint_id, str(deployment["id"]))
            self._wire.read(lambda: api.delete(endpoint_id, **at))

    def standing(self) -> Iterator[Standing]:
        """All endpoints and deployments of the project, whoever made them."""
        prices: dict[str, Decimal] | None = None
        for raw in self._all():
            name = str(raw.get("name"))
            deployments = rows(raw.get("deployments"))
            if not deployments:
                yield Standing(
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
                prices = self._prices_if_told()
            for entry in deployments:
                price = (prices or {}).get(text(entry.get("hardware")) or "")
                state = _state(entry)
                yield Standing(
                    provider=self._provider,
                    kind="deployment",
                    id=f"{raw['id']}/{entry.get('id')}",
                    name=name,
                    job_id=_job_id(name),
                    state=state,
                    bills=_BILLS.get(state),
                    usd_per_hour=price * _replicas(entry) if price is not None else None,
                    created_at=when(entry.get("createdAt")),
                    note=text(entry.get("hardware")),
                    payload=payload(entry),
                )

    # -- steps ---------------------------------------------------------------------------------------------

    def _create(
        self,
        job_id: str,
        there: dict[str, Any] | None,
        model: dict[str, Any],
        config: dict[str, Any],
        wanted: DeployOptions,
    ) -> Endpoint:
        api, at = self._client().endpoints, self._at()
        fresh = there is None
        if there is None:
            try:
                there = plain(self._wire.once(lambda: api.create(name=_name(job_id), **at)))
            except Conflict:
                there, fresh = self._find(job_id), False
                if there is None:
                    raise
        endpoint_id = str(there["id"])
        try:
            deployment = plain(
                self._wire.once(
                    lambda: api.deployments.create(
                        endpoint_id,
                        name=DEPLOYMENT,
                        model=f"projects/{model['projectId']}/models/{model['id']}",
                        config=f"projects/{config['projectId']}/configs/{config['id']}",
                        autoscaling={
                            "min_replicas": wanted.min_replicas,
                            "max_replicas": wanted.max_replicas,
                        },
                        inactive_timeout=wanted.idle_minutes,
                        **at,
                    )
                )
            )
        except ProviderError as error:
            if fresh and not error.retryable:
                with suppress(ProviderError):  # an endpoint without a deployment costs nothing
                    self._wire.read(lambda: api.delete(endpoint_id, **at))
            raise
        routed = [{"deployment_id": str(deployment["id"]), "weight": 1.0}]
        self._wire.read(
            lambda: api.update(endpoint_id, traffic_split=routed, update_mask="trafficSplit", **at)  # pyright: ignore[reportArgumentType]
        )
        return self._endpoint(plain(self._wire.read(lambda: api.retrieve(endpoint_id, **at))))

    def _remove_deployment(self, endpoint_id: str, deployment_id: str) -> None:
        api, at = self._client().endpoints.deployments, self._at()
        with suppress(NotFound):
            self._wire.read(
                lambda: api.update(
                    deployment_id,
                    endpoint_id=endpoint_id,
                    autoscaling={"min_replicas": 0, "max_replicas": 0},
                    update_mask="autoscaling",
                    **at,
                )
            )
            self._wire.read(lambda: api.delete(deployment_id, endpoint_id=endpoint_id, **at))

    def _all(self) -> Iterator[dict[str, Any]]:
        at = self._at()
        for page in self._wire.pages(lambda: self._client().endpoints.list(limit=100, **at)):
            yield from items(page)

    def _find(self, job_id: str) -> dict[str, Any] | None:
        wanted = _name(job_id)
        return next((e for e in self._all() if str(e.get("name")).rsplit("/", 1)[-1] == wanted), None)

    def _model(self, job_id: str, job: Mapping[str, Any]) -> dict[str, Any]:
        """The registry's record of the tuned weights: merged where there are such, else the adapter."""
        model_id = text(job.get("model_object_id")) or text(job.get("adapter_object_id"))
        if model_id is None:
            raise UsageError(
                f"{job_id} has no model in Together's registry (status {job.get('status')})",
                fix="wait until it has succeeded",
            )
        return plain(self._wire.read(lambda: self._client().models.retrieve(model_id, **self._at())))

    def _configuration(
        self, model: Mapping[str, Any], wanted: DeployOptions
    ) -> tuple[Decimal | None, dict[str, Any], str | None]:
        """(US dollars per hour of one replica, configuration, hardware), the cheapest first."""
        reference = str(model.get("baseModelId") or model["id"])
        at = self._at()
        found = [
            plain(config)
            for page in self._wire.pages(
                lambda: self._client().models.configs.list(reference_model_id=reference, **at)
            )
            for config in page.data
        ]
        prices = self._prices()
        priced = [(prices.get(_hardware(c) or ""), c, _hardware(c)) for c in found]
        if wanted.config is not None:
            priced = [p for p in priced if p[1].get("id") == wanted.config.rsplit("/", 1)[-1]]
        if not priced:
            known = ", ".join(str(c.get("id")) for c in found) or "none"
            raise UsageError(
                f"Together has no configuration {wanted.config or ''} to serve {model.get('name')}; "
                f"there are: {known}"
            )
        return min(priced, key=lambda p: (p[0] is None, p[0] or Decimal(0)))

    def _prices_if_told(self) -> dict[str, Decimal]:
        """What runs is to be seen also while its price is not."""
        try:
            return self._prices()
        except ProviderError:
            return {}

    def _prices(self) -> dict[str, Decimal]:
        """US dollars per hour of one replica, by hardware name and id."""
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
        per_hour = Decimal(0)
        prices = self._prices_if_told()
        for entry in deployments:
            price = prices.get(text(entry.get("hardware")) or "")
            per_hour += (price or Decimal(0)) * _replicas(entry)
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
        return {"project_id": self._project()}

    def _project(self) -> str:
        """The project of the configuration, else of the SDK's environment, else of the key."""
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
                "the Together key belongs to no single project",
                fix='name it in orchestrate.toml:  [hosts.together] project = "..."',
            )
        return project


def _name(job_id: str) -> str:
    return f"{_PREFIX}{job_id}".lower()


def _job_id(name: str) -> str | None:
    """Of an endpoint that is named as we name them."""
    bare = name.rsplit("/", 1)[-1]
    return bare.removeprefix(_PREFIX) if bare.startswith(_PREFIX) else None


def _state(deployment: Mapping[str, Any]) -> str:
    word = text(deployment.get("state")) or text(table(deployment.get("status")).get("state")) or "unknown"
    return word.removeprefix("DEPLOYMENT_STATE_").lower()


def _replicas(deployment: Mapping[str, Any]) -> int:
    """As many as the host wants now; when it does not tell, or wants none now, as many as there can be."""
    most = whole(table(deployment.get("autoscaling")).get("maxReplicas"))
    return whole(deployment.get("desiredReplicas")) or (1 if most is None else most)


def _hardware(config: Mapping[str, Any]) -> str | None:
    """`1xnvidia-h100-80gb`, from the configuration's selectors, as the SDK's command line does."""
    told = {str(s.get("key")): text(s.get("value")) for s in rows(config.get("selectors"))}
    count, kind = told.get("accelerator_count"), told.get("accelerator_type")
    return f"{count}x{kind}" if count and kind else None
