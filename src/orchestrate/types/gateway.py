"""Records of the gateway: the jobs that its clients requested, and their keys."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from orchestrate.types.jobs import JobError
from orchestrate.types.record import Record

Opens = Literal["gateway", "serve", "sessions"]
"""Kind of server that a key grants access to."""


class GatewayKey(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A client's API key for the gateway, model servers or training sessions. A limit that is `None` or an
    empty list allows everything."""

    name: str
    created_at: datetime
    opens: Opens = "gateway"
    """Kind of server that the key grants access to. `gateway` is the gateway, `serve` covers the model
    servers of `serve` and `ab serve`, and `sessions` covers training sessions."""
    project: str = "default"
    """Project of the key. Keys of one project see the same files, jobs and models."""
    backends: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Names of the models that clients may request."""
    map: dict[str, str] = {}
    """Model names that are mapped to `backend:model` for this key only. They take precedence over the
    configuration."""
    budget_usd: Decimal | None = None
    """Cost limit for all jobs and deployments of the key: the bills of ended jobs, the high ends of the
    quotes of all other jobs, and what deployments cost and may still cost. Simulated costs of sandboxes count
    like real costs."""
    per_minute: int | None = None
    """Maximum number of requests per minute."""
    concurrent: int | None = None
    """Maximum number of unfinished jobs at a time."""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class GatewayJob(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A job as requested by a client. Its state is stored in the job's run."""

    id: str
    key: str
    """Name of the client's key."""
    project: str
    created_at: datetime
    asked: dict[str, Any]
    """Body of the create request."""
    tuned: str
    """Name of the model that the job creates."""
    backend: str
    spec: dict[str, Any]
    boot: str = ""
    uptime_s: float = 0.0
    """Creation time on the machine's uptime clock, in seconds. Monotonic, so changes to the system clock
    don't affect it."""
    untuned: str = ""
    """Name of the base model, as the client requested it. If the job continues from a tuned model, this is
    the base model in the request for the first job of that chain."""
    files: tuple[str, ...] = ()
    """Hashes (sha256) of the training files' contents."""
    file_names: tuple[str, ...] = ()
    """The client's names for the training files, in the order of `files`."""
    quote_usd: Decimal | None = None
    """High end of the quote."""
    notes: tuple[str, ...] = ()
    """Notes on how the gateway handled the request, shown as the job's first events."""
    run_id: str | None = None
    attempt: int = 0
    """Number of the attempt. Only set in records of earlier versions, which created a new run for each
    attempt."""
    tries: int = 0
    """Number of failed attempts to submit the job so far, because the backend was temporarily unavailable."""
    again_at: datetime | None = None
    error: JobError | None = None
    """Reason why the job has no run."""
    cancel_asked: bool = False
    ended_as: str | None = None
    """Final status of the job, as reported to clients. It never changes, even if the run's status does."""
    ended_at: datetime | None = None
    told: bool = False
    """True once the webhook was notified of the job's end, or if there is no webhook to notify."""
    model_deleted: bool = False

    @property
    def base(self) -> str:
        """Name of the model without the tuned prefix. Earlier records only have the tuned name."""
        return self.untuned or self.tuned.split(":")[1]

    @property
    def outside(self) -> bool:
        """True if the job was created outside of the gateway, so the store has no record of the request."""
        return not self.key

    @property
    def run_key(self) -> str:
        """The idempotency key of the job's run."""
        return self.id if not self.attempt else f"{self.id}.{self.attempt}"


class AuditEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A request that changed something or was rejected, or a command that created or revoked a key."""

    at: datetime
    key: str
    method: str
    """HTTP method, or `COMMAND`."""
    path: str
    status: int
    """HTTP status, or 0 for a command."""
    by: str | None = None
    """User who ran the command, as `user@machine`."""
    subject: str | None = None
    """Id of the created or changed object."""
    code: str | None = None
    """Reason for the rejection."""
    address: str | None = None
    times: int = 1
    """Number of requests that this entry stands for. Similar rejections are combined into one entry."""
