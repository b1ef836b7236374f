"""What stands at a host and bills, or could, and what we put there."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from orchestrate.types.jobs import JobHandle
from orchestrate.types.record import Record


class Standing(Record, frozen=True, kw_only=True):
    """One thing at a host that bills or could, whoever made it."""

    provider: str
    kind: Literal["job", "deployment", "endpoint", "worker", "storage"]
    """An endpoint is a name without a deployment behind it; a worker runs on a machine of the user's."""
    id: str
    """The host's own."""
    name: str | None = None
    """What people call it there."""
    state: str
    """The host's own word, in lower case and without its prefix."""
    bills: bool | None
    """Whether it bills now; `None` when that cannot be told."""
    usd_per_hour: Decimal | None = None
    """While it bills; of a deployment with all of its replicas up. `None` when no price is known."""
    rented: bool = False
    """A job whose machine is billed hourly, for as long as it is there."""
    job_id: str | None = None
    """The job that it is, or that it would be of by its name: whose it is only the store can tell."""
    created_at: datetime | None = None
    owner: str | None = None
    """Who made it, where that is certainly another than the owner of the key."""
    note: str | None = None
    payload: dict[str, Any] = {}


class Billing(Record, frozen=True, kw_only=True):
    """The resources of one account that bill or could, and the ones that could not be seen."""

    items: tuple[Standing, ...] = ()
    unseen: tuple[str, ...] = ()
    """What the host has no list of, or what could not be asked, a sentence each."""
    partial: bool = False
    """Whether one of them is a list that the host has and that could not be read now."""


class StoredItem(Record, frozen=True, kw_only=True):
    """One file or model that an account keeps, as the host lists it."""

    provider: str
    kind: Literal["file", "model"]
    id: str
    """The host's own."""
    name: str | None = None
    """The file's name, or what people call the model there."""
    bytes: int | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    """When the host deletes it, where it says so."""
    job_id: str | None = None
    """The job that made the model."""
    usd_per_month: Decimal | None = None
    """What keeping it costs, on a host that bills for storage."""
    run_id: str | None = None
    """The run of this store that it belongs to."""
    note: str | None = None

    def is_called(self, name: str) -> bool:
        """Return whether `name` means this item: its id, the last part of it, or its job's id."""
        return name in (self.id, self.id.rpartition("/")[2], self.job_id)


class Storage(Record, frozen=True, kw_only=True):
    """The files and models that one account stores, and what the host did not list."""

    items: tuple[StoredItem, ...] = ()
    unseen: tuple[str, ...] = ()
    """What could not be listed, a sentence each."""
    partial: bool = False
    """Whether a list that the host has could not be read now."""


ADAPTER_JOB = "adapter"
"""The kind of the `JobHandle` under which a host has an adapter that was uploaded to it: no job of it made
it."""


class Adapter(Record, frozen=True, kw_only=True):
    """A LoRA adapter on this machine, ready to be uploaded."""

    id: str
    """Its name at every host, made from its weights: the same weights are never uploaded twice."""
    folder: str
    """With adapter_config.json and adapter_model.safetensors, and nothing else."""
    base: str
    """The model that it was trained on, as the catalog or the hub calls it."""
    rank: int
    """The greatest of its matrices."""
    targets: tuple[str, ...]
    """Names of the adapted modules; empty where they are a pattern."""


class DeploymentState(StrEnum):
    """See `orchestrate.store.deployments` for the ways between them."""

    INTENT = "intent"
    CREATING = "creating"
    OUTCOME_UNKNOWN = "outcome_unknown"
    UP = "up"
    IDLE = "idle"
    ENDING = "ending"
    ENDED = "ended"
    LOST = "lost"
    ABANDONED = "abandoned"

    @property
    def over(self) -> bool:
        return self in (DeploymentState.ENDED, DeploymentState.LOST, DeploymentState.ABANDONED)

    @property
    def unproven(self) -> bool:
        """Return whether the host has not confirmed yet that the deployment exists or has ended."""
        return self in (DeploymentState.CREATING, DeploymentState.OUTCOME_UNKNOWN, DeploymentState.ENDING)


class Age(Record, frozen=True, kw_only=True):
    """The age of a deployment at one reading of a machine's clocks."""

    seconds: float
    """Since it was made. Measured by uptime, so that setting the wall clock changes nothing."""
    at: datetime
    """The wall clock at this reading."""
    boot: str
    """The start of the machine from which `uptime` counts."""
    uptime: float


class Deployment(Record, frozen=True, kw_only=True):
    """A tuned model at a host that serves it, tracked from the request until the host has confirmed its
    end."""

    id: str
    run_id: str
    provider: str
    host: str
    account: str | None
    """Id of the `Account` that it was made in."""
    sandbox: bool = False
    job_id: str
    """Of the run, or of its adapter where that was uploaded; by it the deployment is named, and found
    again."""
    job_kind: str | None = None
    model: str | None = None
    state: DeploymentState
    raw_state: str | None = None
    host_id: str | None = None
    """The host's own, once it was seen."""
    answered: bool = False
    """Whether the host has shown what the last request to make it came to."""
    complete: bool = False
    """Whether it gets requests: all steps of `deploy` are done."""
    options: dict[str, Any] = {}
    """Of the backend, as `deploy` was given them."""
    usd_per_hour: Decimal | None = None
    max_usd_per_hour: Decimal | None = None
    max_cost_usd: Decimal | None = None
    max_hours: Decimal | None = None
    """Since it was made."""
    made_by: str | None = None
    gateway_key: str | None = None
    """Key of the gateway whose request had it made."""
    gateway_model: str | None = None
    """Entry of the gateway's model map that allowed it."""
    cause: str | None = None
    """Why it ends or ended."""
    problem: str | None = None
    """What last went wrong with it."""
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None = None
    """When a model was last asked through it from this store."""
    missing_since: datetime | None = None
    """Since when the host does not show it, though nobody here ended it."""
    ended_at: datetime | None = None
    billed_s: float = 0.0
    """Seconds up to `billing_since`, or in all when it is not billing."""
    billed_by_month: dict[str, float] = {}
    """`billed_s` by month as `2026-11`, in UTC; what an earlier version counted is in none."""
    billing_since: datetime | None = None
    age: Age | None = None
    """By the last reading. All times above but `updated_at` are `created_at` plus an age."""

    @property
    def handle(self) -> JobHandle:
        return JobHandle(provider=self.provider, job_id=self.job_id, kind=self.job_kind)

    @property
    def limited(self) -> bool:
        return self.max_cost_usd is not None or self.max_hours is not None


class DeploymentOffer(Record, frozen=True, kw_only=True):
    """The offer that `deploy` would agree to: the price, and the limits that will apply, including those
    of an earlier call."""

    run_id: str
    provider: str
    title: str
    """The backend, as people call it."""
    sandbox: bool
    model: str
    deployment: str | None = None
    """Id of the deployment that is there already, and that is completed, started or changed."""
    options: dict[str, Any] = {}
    usd_per_hour: Decimal | None = None
    """With all replicas up, idle or not; `None` when it is not known."""
    max_cost_usd: Decimal | None = None
    max_hours: Decimal | None = None
    """Since the deployment was made."""
    hours_left: Decimal | None = None
    """Of `max_hours`."""
    most_usd: Decimal | None = None
    """What it may still cost before a limit ends it; `None` without a limit or a price."""
