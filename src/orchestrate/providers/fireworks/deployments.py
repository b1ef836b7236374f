"""Deployments at Fireworks. Fireworks serves tuned models only on deployments, and bills them by GPU-second
while they are up.

A deployment has the job's id, so it can be found again and is never created twice. There are two modes
(`mode`):

- `merge`: a deployment of the tuned model, with the adapter merged into its base.
- `addons`: a deployment of the base model that accepts adapters, with the tuned adapter loaded.

In both modes, the model's name in requests is `<model>#<deployment>`. Deployments scale to zero when idle,
and are billed at the rate of their GPUs. The API reports no price, so the rates come from the price page."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast

from orchestrate import costing
from orchestrate.core import days
from orchestrate.errors import Conflict, InvalidRequest, NotFound, ProviderError, UnexpectedAnswer, UsageError
from orchestrate.providers import adapters
from orchestrate.providers.adapters import DEPLOY_FIX, Replicas
from orchestrate.providers.calls import integer, items, payload, plain, rows, table, text, when
from orchestrate.providers.calls.hosted import Wire
from orchestrate.providers.fireworks import PROFILE, region_factor
from orchestrate.providers.fireworks.connection import Connection, put_signed, require_safe
from orchestrate.providers.hosted import awaited
from orchestrate.types import Adapter, BilledResource, Endpoint

if TYPE_CHECKING:
    from fireworks import Fireworks

DELETED_STATES = ("DELETING", "DELETED")
MULTI_REGIONS = ("GLOBAL", "US", "EUROPE", "APAC")


class FireworksDeployOptions(Replicas, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of `deploy`."""

    mode: Literal["merge", "addons"] = "merge"
    shape: str | None = None
    """Deployment shape (`accounts/.../deploymentShapes/...`, or `default` for the host's choice). Default:
    the cheapest validated shape that fits."""
    min_replicas: int = 0
    idle_minutes: int = 60
    """Minutes without a request after which the deployment scales to zero (at least 5)."""
    region: str | None = None
    """Location of the GPUs: US, EUROPE, APAC or one of the host's regions, at 1.5 times the price. Default:
    anywhere (GLOBAL)."""

    @property
    def placement(self) -> dict[str, str] | None:
        if self.region is None:
            return None
        return {"multi_region" if self.region in MULTI_REGIONS else "region": self.region}

    @classmethod
    def of(cls, options: Mapping[str, Any] | None) -> FireworksDeployOptions:
        wanted = cls.read("fireworks", options)
        if wanted.idle_minutes < 5:
            raise UsageError(f"idle_minutes must be at least 5 at Fireworks (got {wanted.idle_minutes})")
        return wanted


class TunedPair(NamedTuple):
    """The host's names for a tuned model and its base model."""

    model: str
    base: str


class FireworksDeployments:
    def __init__(
        self,
        name: str,
        client: Callable[[], Fireworks],
        account: Callable[[], str],
        wire: Wire,
        inference_url: str,
    ) -> None:
        self._provider = name
        self._client = client
        self._account = account
        self._wire = wire
        self._inference_url = inference_url

    def price(self, id: str, made: TunedPair, options: Mapping[str, Any] | None) -> Decimal | None:
        """Return the hourly price of the existing deployment in US dollars. If there is none, returns the
        price of the deployment that `deploy` would create. Changes nothing."""
        wanted = FireworksDeployOptions.of(options)
        there = self._get(id)
        if there is None or there.get("state") in DELETED_STATES:
            served, addons = _served(made, wanted)
            return self._shape(served, addons, wanted)[1]
        return _per_hour(there)

    def deploy(self, id: str, made: TunedPair, options: Mapping[str, Any] | None) -> Endpoint:
        """Create the deployment. In `addons` mode, also load the adapter onto it. Steps that an earlier call
        completed are skipped."""
        wanted = FireworksDeployOptions.of(options)
        there = self._get(id)
        if there is not None and there.get("state") == "DELETING":
            raise Conflict(
                self._provider,
                f"Fireworks is still deleting the deployment {id}",
                status=409,
                fix="try again in a few minutes",
            )
        if there is None or there.get("state") == "DELETED":
            served, addons = _served(made, wanted)
            shape, per_hour = self._shape(served, addons, wanted)
            wanted.require(self._provider, per_hour)
            there = self._create(id, served, addons, str(shape["name"]), wanted)
        if there.get("enableAddons") is True:
            self._load(made.model, there)
        return self._endpoint(there, made.model)

    def find(self, deployment_id: str, tuned: str) -> Endpoint | None:
        there = self._get(deployment_id)
        if there is None or there.get("state") in DELETED_STATES:
            return None
        return self._endpoint(there, tuned)

    def model_of(self, deployment_id: str, tuned: str) -> str:
        """Return the model's name for requests. Raises `UsageError` if the model is not deployed."""
        endpoint = self.find(deployment_id, tuned)
        if endpoint is None:
            raise UsageError(
                f"{deployment_id} is not deployed. Fireworks serves tuned models only on deployments",
                fix=DEPLOY_FIX,
            )
        return endpoint.model

    def remove(self, id: str) -> None:
        """Unload the model and delete the deployment, even if it was just used. If the removal was
        interrupted, a second call finishes it."""
        there = self._get(id)
        if there is None or there.get("state") in DELETED_STATES:
            return
        api, account = self._client(), self._account()
        if there.get("enableAddons") is True:
            for loaded in self._loaded(there):
                with suppress(NotFound):
                    loaded_id = str(loaded.get("name")).rsplit("/", 1)[-1]
                    self._wire.read(lambda i=loaded_id: api.lora.unload(i, account_id=account), expect=object)
        with suppress(NotFound):
            self._wire.read(
                lambda: api.deployments.delete(id, account_id=account, ignore_checks=True),
                expect=object,
            )

    def deployed(self, deployment_id: str) -> list[BilledResource]:
        """Look up a deployment by its id. If nothing is found, search the list of all deployments. The list
        alone is not enough, because Fireworks' responses don't distinguish an empty list from a missing
        one."""
        there = self._get(deployment_id)
        if there is not None:
            return [] if there.get("state") == "DELETED" else [self._billing_item(there)]
        return [item for item in self.billing_items() if item.job_id == deployment_id]

    def billing_items(self) -> Iterator[BilledResource]:
        """List all deployments of the account, regardless of who created them."""
        api, account = self._client().deployments, self._account()
        # Protobuf's JSON omits empty lists, so an account without deployments returns an empty object.
        for page in self._wire.pages(lambda: api.list(account_id=account, page_size=200), omits_empty=True):
            for raw in items(page):
                if raw.get("state") != "DELETED":
                    yield self._billing_item(raw)

    def _billing_item(self, raw: Mapping[str, Any]) -> BilledResource:
        name = str(raw.get("name"))
        return BilledResource(
            provider=self._provider,
            kind="deployment",
            id=name,
            name=text(raw.get("displayName")) or text(raw.get("baseModel")),
            state=str(raw.get("state") or "unknown").lower(),
            bills=_bills(raw),
            usd_per_hour=_per_hour(raw),
            job_id=name.rsplit("/", 1)[-1],
            created_at=when(raw.get("createTime")),
            note=text(raw.get("acceleratorType")),
            payload=payload(dict(raw)),
        )

    # -- steps ---------------------------------------------------------------------------------------------

    def _get(self, deployment_id: str) -> dict[str, Any] | None:
        api = self._client().deployments
        account = self._account()
        try:
            found = plain(self._wire.read(lambda: api.get(deployment_id, account_id=account)))
        except NotFound:
            return None
        if str(found.get("name")).rsplit("/", 1)[-1] != deployment_id:
            raise UnexpectedAnswer(self._provider, f"no deployment {deployment_id} in the response")
        return found

    def _create(
        self, deployment_id: str, served: str, addons: bool, shape: str, wanted: FireworksDeployOptions
    ) -> dict[str, Any]:
        from fireworks import omit

        """Everything after this bills. Raises `OutcomeUnknown` if the response is lost."""
        api, account = self._client().deployments, self._account()
        try:
            answer = self._wire.send_once(
                deployment_id,
                lambda: api.create(
                    account_id=account,
                    base_model=served,
                    deployment_id=deployment_id,
                    deployment_shape=shape,
                    enable_addons=True if addons else omit,
                    min_replica_count=wanted.min_replicas,
                    max_replica_count=wanted.max_replicas,
                    placement=cast("Any", wanted.placement or omit),
                    autoscaling_policy={"scale_to_zero_window": f"{wanted.idle_minutes * 60}s"},
                ),
                lambda answer: text(plain(answer).get("name")),
            )
        except ProviderError:
            # After an error, the deployment may still exist, created by this request or by another process.
            there = self._get(deployment_id)
            if there is not None and there.get("state") == "DELETED":
                raise Conflict(
                    self._provider,
                    f"Fireworks reserves the name of the deleted deployment {deployment_id} until "
                    f"{there.get('purgeTime') or 'it is purged'}",
                    status=409,
                    fix="undelete it at Fireworks, or delete it permanently",
                ) from None
            if there is None or there.get("state") in DELETED_STATES:
                raise
            return there
        return plain(answer)

    def _load(self, tuned: str, deployment: Mapping[str, Any]) -> None:
        if any(entry.get("model") == tuned for entry in self._loaded(deployment)):
            return
        api, account, name = self._client().lora, self._account(), str(deployment["name"])
        with suppress(Conflict):
            self._wire.read(lambda: api.load(account_id=account, model=tuned, deployment=name))

    def _loaded(self, deployment: Mapping[str, Any]) -> list[dict[str, Any]]:
        api, account = self._client().lora, self._account()
        entries = [
            entry
            for page in self._wire.pages(
                lambda: api.list(account_id=account, page_size=200), omits_empty=True
            )
            for entry in items(page)
        ]
        return [e for e in entries if e.get("deployment") == deployment.get("name")]

    def _shape(
        self, served: str, addons: bool, wanted: FireworksDeployOptions
    ) -> tuple[dict[str, Any], Decimal | None]:
        """Return the shape to use and what it costs per hour with all replicas up."""
        if wanted.shape == "default":
            return {"name": "default"}, None
        api = self._client().deployment_shape_versions
        try:
            answer = plain(
                self._wire.read(
                    lambda: api.match_for_model(served, account_id=self._account(), enable_addons=addons)
                )
            )
        except NotFound:
            # This call is newer than the gateway's API description. Without it, the host chooses the shape
            # and the price is unknown.
            return {"name": wanted.shape or "default"}, None
        shapes = [table(v.get("snapshot")) for v in rows(answer.get("deploymentShapeVersions"))]
        found = [(_hourly(s), s) for s in shapes if text(s.get("name"))]
        if wanted.shape is not None:
            found = [f for f in found if str(f[1]["name"]).startswith(wanted.shape)]
        if not found:
            known = ", ".join(str(s.get("name")) for s in shapes) or "none"
            raise UsageError(
                f"Fireworks has no validated shape {wanted.shape or ''} for {served}. Available: {known}",
                fix="to let the host choose: --shape default",
            )
        price, shape = min(found, key=lambda f: (f[0] is None, f[0] or Decimal(0)))
        if price is None:
            return shape, None
        return shape, price * wanted.max_replicas * region_factor(wanted.region)

    def _endpoint(self, raw: Mapping[str, Any], tuned: str) -> Endpoint:
        name = str(raw.get("name"))
        return Endpoint(
            provider=self._provider,
            id=name,
            model=f"{tuned}#{name}",
            state=str(raw.get("state") or "unknown").lower(),
            base_url=self._inference_url,
            usd_per_hour=_per_hour(raw),
            payload=payload(dict(raw)),
        )


def _bills(raw: Mapping[str, Any]) -> bool | None:
    """Return True if a deployment bills, judging by its replicas. Fireworks bills GPUs while they start, run
    or stop."""
    counts = [integer(raw.get(name)) for name in ("replicaCount", "desiredReplicaCount")]
    if any(counts) or raw.get("state") in ("CREATING", "UPDATING", "DELETING"):
        return True
    return False if raw.get("state") == "READY" and counts != [None, None] else None


def _served(made: TunedPair, wanted: FireworksDeployOptions) -> tuple[str, bool]:
    """Return the model that is loaded onto the GPUs, and whether it takes adapters."""
    return (made.base, True) if wanted.mode == "addons" else (made.model, False)


def _per_hour(raw: Mapping[str, Any]) -> Decimal | None:
    """Return the US dollars per hour with all replicas up."""
    price, placement = _hourly(raw), table(raw.get("placement"))
    if price is None:
        return None
    region = text(placement.get("region")) or text(placement.get("multiRegion"))
    return price * (integer(raw.get("maxReplicaCount")) or 1) * region_factor(region)


def _hourly(raw: Mapping[str, Any]) -> Decimal | None:
    """Return the US dollars per hour of one replica, by the rates of its GPUs, or `None` where they are
    unknown."""
    kind, count = text(raw.get("acceleratorType")), integer(raw.get("acceleratorCount"))
    if kind is None or not count:
        return None
    gpu = kind.removeprefix("NVIDIA_").removeprefix("AMD_").split("_", 1)[0]
    rate = costing.built_in().find("fireworks", "deployment", gpu=gpu, on=days.today())
    return rate.usd * count if rate is not None else None


# -- adapters trained elsewhere ------------------------------------------------------------------------------
# Uploads of these adapters: create a model resource, upload its files over signed URLs, and have the host
# validate them.


RANKS = (4, 64)
"""Smallest and largest LoRA rank (`PeftDetails.r`) that the host's API accepts."""
MODEL_READY = "READY"
MODEL_WAIT_S = 900.0


class FireworksAdapters(adapters.Adapters):
    def __init__(
        self,
        at: Connection,
        wire: Wire,
        serving: FireworksDeployments,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._at, self._wire, self._serving, self._sleep = at, wire, serving, sleep

    def price(self, adapter: Adapter, options: Mapping[str, Any] | None) -> Decimal | None:
        base = self._base(adapter)
        if (self.find(adapter.id) or {}).get("state") == MODEL_READY:
            return self._serving.price(adapter.id, TunedPair(self.name(adapter.id), base), options)
        return self._serving.price(adapter.id, TunedPair(base, base), options)

    def upload(self, adapter: Adapter, progress: Callable[[int, int], None] | None = None) -> None:
        there = self.find(adapter.id)
        if there is not None and there.get("state") == MODEL_READY:
            return
        if there is None:
            self._create(adapter)
        api, account = self._at.client().models, self._at.account()
        files = adapters.files(adapter)
        sizes = {file.name: str(file.stat().st_size) for file in files}
        answer = self._wire.read(
            lambda: api.get_upload_endpoint(adapter.id, account_id=account, filename_to_size=sizes)
        )
        urls = table(plain(answer).get("filenameToSignedUrls"))
        total, done = sum(map(int, sizes.values())), 0
        for file in files:
            self._put(require_safe(urls.get(file.name)), file)
            done += int(sizes[file.name])
            if progress is not None:
                progress(done, total)
        try:
            self._wire.read(lambda: api.validate_upload(adapter.id, account_id=account))
        except InvalidRequest as error:
            error.fix = "to export a full model for another host: orchestrate export RUN DIR --to merged"
            raise
        self._ready(adapter.id)

    def find(self, id: str) -> dict[str, Any] | None:
        api, account = self._at.client().models, self._at.account()
        with suppress(NotFound):
            return plain(self._wire.read(lambda: api.get(id, account_id=account)))
        return None

    def name(self, id: str) -> str:
        return f"accounts/{self._at.account()}/models/{id}"

    def as_job(self, id: str) -> dict[str, Any]:
        """Return an adapter in the form of a job record. Raises `NotFound` if the adapter does not exist."""
        found = self.find(id)
        if found is None:
            raise NotFound(self._wire.provider, f"adapter {id} does not exist", status=404)
        base = table(found.get("peftDetails")).get("baseModel")
        # The record needs a job state. A model that is not ready counts as running, so it has no endpoint
        # yet.
        state = "JOB_STATE_COMPLETED" if found.get("state") == MODEL_READY else "JOB_STATE_RUNNING"
        return {"name": self.name(id), "outputModel": self.name(id), "baseModel": base, "state": state}

    # -- steps ---------------------------------------------------------------------------------------------

    def _base(self, adapter: Adapter) -> str:
        """Return the base's name. Raises `UsageError` for a base that the host has but does not serve
        adapters on."""
        base = adapters.base_at(PROFILE, adapter)
        least, most = RANKS
        if not least <= adapter.rank <= most:
            raise UsageError(
                f"Fireworks accepts adapters of rank {least} to {most}, but this one has rank {adapter.rank}",
                fix="to export a full model for another host: orchestrate export RUN DIR --to merged",
            )
        _, account, _, id = base.split("/")
        api = self._at.client().models
        try:
            found = plain(self._wire.read(lambda: api.get(id, account_id=account)))
        except NotFound as error:
            raise UsageError(f"Fireworks currently has no model {base}") from error
        if found.get("supportsLora") is False:
            raise UsageError(f"Fireworks does not serve adapters for {base}")
        return base

    def _create(self, adapter: Adapter) -> None:
        api, account = self._at.client().models, self._at.account()
        details: Any = {
            "base_model": self._base(adapter),
            "r": adapter.rank,
            "target_modules": list(adapter.targets),
        }
        with suppress(Conflict):  # made by an earlier try, or by another process with the same weights
            self._wire.read(
                lambda: api.create(
                    account_id=account,
                    model_id=adapter.id,
                    model={"kind": "HF_PEFT_ADDON", "peft_details": details},
                )
            )

    def _put(self, url: str, file: Path) -> None:
        self._wire.read(lambda: put_signed(self._at.plain(), url, file))

    def _ready(self, id: str) -> None:
        def query() -> tuple[object, object]:
            found = self.find(id)
            if found is None:
                raise UnexpectedAnswer(self._wire.provider, f"the adapter {id} disappeared after its upload")
            status = table(found.get("status"))
            if text(status.get("code")) not in (None, "OK"):
                raise InvalidRequest(
                    self._wire.provider,
                    f"Fireworks rejected the adapter: {status.get('message')}",
                    status=400,
                )
            return (found if found.get("state") == MODEL_READY else None), found.get("state")

        awaited(
            query,
            provider=self._wire.provider,
            what=f"the adapter {id}",
            sleep=self._sleep,
            within_s=MODEL_WAIT_S,
            fix="deploy again later. Orchestrate reuses the uploaded files",
        )
