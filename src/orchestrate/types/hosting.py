"""Records of a host's resources that are or may be billed, and of deployments."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from typing import Any, Literal

from orchestrate.types.jobs import JobHandle
from orchestrate.types.record import Record


class BilledResource(Record, frozen=True, kw_only=True):
    """A resource at a host that is or may be billed, regardless of who created it."""

    provider: str
    kind: Literal["job", "deployment", "endpoint", "worker", "storage"]
    """Kind of resource. An endpoint is a name without a deployment, and a worker runs on one of the user's
    machines."""
    id: str
    """The host's own id."""
    name: str | None = None
    """Display name at the host."""
    state: str
    """The host's own status, in lower case and without a prefix."""
    bills: bool | None
    """True if the resource is billed now. `None` if unknown."""
    usd_per_hour: Decimal | None = None
    """Hourly price while the resource is billed, with all replicas that a deployment may have. `None` if
    unknown."""
    rented: bool = False
    """True for a job on a machine that is billed hourly until the job is removed."""
    session: bool = False
    """True if the resource is the machine of a training session. `recover` can't rebuild a session without
    its run directory."""
    job_id: str | None = None
    """Id of the job. For a resource that is not a job, the job id in the resource's name. A job id in a name
    doesn't prove that Orchestrate created the job. Look it up in the store."""
    created_at: datetime | None = None
    owner: str | None = None
    """The creator, if known to be someone other than the key's owner."""
    note: str | None = None
    payload: dict[str, Any] = {}


class Billing(Record, frozen=True, kw_only=True):
    """The resources of one account that are or may be billed, and those that could not be checked."""

    items: tuple[BilledResource, ...] = ()
    unseen: tuple[str, ...] = ()
    """Resources that are missing from `items`, because the host cannot list them or could not be queried. One
    sentence each."""
    partial: bool = False
    """True if one of the host's lists could not be read."""


class StoredItem(Record, frozen=True, kw_only=True):
    """A file or model that an account stores, as the host lists it."""

    provider: str
    kind: Literal["file", "model"]
    id: str
    """The host's own id."""
    name: str | None = None
    """Name of the file, or display name of the model at the host."""
    bytes: int | None = None
    created_at: datetime | None = None
    expires_at: datetime | None = None
    """Time at which the host deletes the item, if the host reports one."""
    job_id: str | None = None
    """The job that created the model."""
    usd_per_month: Decimal | None = None
    """Monthly storage price, on a host that bills for storage."""
    run_id: str | None = None
    """The run in this store that the item belongs to."""
    note: str | None = None

    def is_called(self, name: str) -> bool:
        """Return whether `name` refers to this item, as its id, the last part of its id, or its job's id."""
        return name in (self.id, self.id.rpartition("/")[2], self.job_id)


class Storage(Record, frozen=True, kw_only=True):
    """The files and models that one account stores, and notes on what could not be listed."""

    items: tuple[StoredItem, ...] = ()
    unseen: tuple[str, ...] = ()
    """Files or models that could not be listed, one sentence each."""
    partial: bool = False
    """True if one of the host's lists could not be read."""


ADAPTER_JOB = "adapter"
"""Kind of `JobHandle` for an adapter that was uploaded to a host and has no job there."""


class Adapter(Record, frozen=True, kw_only=True):
    """A LoRA adapter on this machine, ready to be uploaded."""

    id: str
    """Name used on every host. It is derived from the weights, so the same weights are never uploaded
    twice."""
    folder: str
    """Folder with only adapter_config.json and adapter_model.safetensors."""
    base: str
    """Catalog name or Hugging Face id of the adapter's base model."""
    rank: int
    """The highest rank of the adapter's matrices."""
    targets: tuple[str, ...]
    """Names of the adapted modules. Empty if the configuration has a pattern instead."""


class DeploymentState(StrEnum):
    """The states of a deployment. See `orchestrate.store.deployments` for the transitions."""

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
        """True if the host has yet to confirm that the deployment exists or that it has ended."""
        return self in (DeploymentState.CREATING, DeploymentState.OUTCOME_UNKNOWN, DeploymentState.ENDING)


class Age(Record, frozen=True, kw_only=True):
    """The age of a deployment at its last measurement, and the clock readings at that moment."""

    seconds: float
    """Seconds since the deployment's creation, measured by uptime, so changes to the wall clock have no
    effect."""
    at: datetime
    """Wall-clock time of the reading."""
    boot: str
    """Id of the boot that `uptime` is counted from."""
    uptime: float


class Deployment(Record, frozen=True, kw_only=True):
    """A tuned model deployed at a host, tracked from the request until the host has confirmed its end."""

    id: str
    run_id: str
    provider: str
    host: str
    account: str | None
    """Id of the `Account` in which the deployment was created."""
    sandbox: bool = False
    job_id: str
    """The run's job, or the job of its adapter if the adapter was uploaded. The deployment's name contains
    this id, so the deployment can be found again."""
    job_kind: str | None = None
    model: str | None = None
    state: DeploymentState
    raw_state: str | None = None
    host_id: str | None = None
    """The host's own id, once the host has reported it."""
    answered: bool = False
    """True if the host has confirmed the outcome of the last request to create the deployment."""
    complete: bool = False
    """True if all steps of `deploy` are complete, so the deployment can get requests."""
    options: dict[str, Any] = {}
    """The backend's options, as passed to `deploy`."""
    usd_per_hour: Decimal | None = None
    max_usd_per_hour: Decimal | None = None
    max_cost_usd: Decimal | None = None
    max_hours: Decimal | None = None
    """Maximum number of hours, counted from the deployment's creation."""
    made_by: str | None = None
    gateway_key: str | None = None
    """Gateway key of the request that created the deployment."""
    gateway_model: str | None = None
    """Entry in the gateway's model map that allowed the deployment."""
    cause: str | None = None
    """Reason why the deployment is ending or has ended."""
    problem: str | None = None
    """The last error."""
    created_at: datetime
    updated_at: datetime
    used_at: datetime | None = None
    """Time of the last request that this store sent to the deployment."""
    missing_since: datetime | None = None
    """Time at which the host stopped listing the deployment, although this store did not end it."""
    ended_at: datetime | None = None
    billed_s: float = 0.0
    """Billed seconds of all billing periods that have ended. The current period, which started at
    `billing_since`, is not included."""
    billed_by_month: dict[str, float] = {}
    """Billed seconds by month, such as `2026-11` in UTC. Seconds counted by earlier versions are not
    included."""
    billing_since: datetime | None = None
    earlier_usd: Decimal = Decimal(0)
    """Cost up to the last time at which the hourly price fell."""
    earlier_s: float = 0.0
    """Billed seconds up to that time. They are part of `billed_s` and of the current period."""
    age: Age | None = None
    """The last recorded age. All times above except `updated_at` are on the deployment's own clock: each is
    `created_at` plus the deployment's age at that moment."""

    @property
    def handle(self) -> JobHandle:
        return JobHandle(provider=self.provider, job_id=self.job_id, kind=self.job_kind)

    @property
    def limited(self) -> bool:
        return self.max_cost_usd is not None or self.max_hours is not None


class DeploymentOffer(Record, frozen=True, kw_only=True):
    """What `deploy` would do: the price, and the limits that would apply. Limits from an earlier call stay in
    effect."""

    run_id: str
    provider: str
    title: str
    """The backend's display name."""
    sandbox: bool
    model: str
    deployment: str | None = None
    """Id of the existing deployment that `deploy` would complete, start or change."""
    options: dict[str, Any] = {}
    usd_per_hour: Decimal | None = None
    """Hourly price with all replicas, idle or not. `None` if unknown."""
    max_cost_usd: Decimal | None = None
    max_hours: Decimal | None = None
    """Maximum number of hours, counted from the deployment's creation."""
    hours_left: Decimal | None = None
    """Remaining hours of `max_hours`."""
    most_usd: Decimal | None = None
    """Maximum additional cost before the deployment reaches a limit. `None` without a limit or a price."""
