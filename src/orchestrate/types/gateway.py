"""What the gateway keeps: the jobs that its clients asked for, and who may ask."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from orchestrate.types.jobs import JobError
from orchestrate.types.record import Record

Opens = Literal["gateway", "serve", "sessions"]
"""The kind of server that a key opens."""


class GatewayKey(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The key of a client of the gateway, or of model servers. Limits that are `None`, and empty lists, allow
    everything."""

    name: str
    created_at: datetime
    opens: Opens = "gateway"
    """`serve`: models of `serve` and `ab serve`, and nothing of the gateway; `sessions`: training
    sessions."""
    project: str = "default"
    """Keys of one project see the same files, jobs and models."""
    backends: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Names that clients may request."""
    map: dict[str, str] = {}
    """This key's own names, before those of the configuration: name -> `backend:model`."""
    budget_usd: Decimal | None = None
    """Cost limit over all its jobs: bills of ended ones, and the quotes' high ends of open ones."""
    per_minute: int | None = None
    """Requests."""
    concurrent: int | None = None
    """Limit on jobs that have not ended."""
    expires_at: datetime | None = None
    revoked_at: datetime | None = None


class GatewayJob(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A job as a client requested it. Its run has the state."""

    id: str
    key: str
    """Name of the client's key."""
    project: str
    created_at: datetime
    asked: dict[str, Any]
    """The create request's body."""
    tuned: str
    """The name of the model that it creates."""
    backend: str
    spec: dict[str, Any]
    boot: str = ""
    uptime_s: float = 0.0
    """Creation time by that machine's uptime clock, which nobody sets."""
    untuned: str = ""
    """The requested model name; if an earlier tuned model is trained further, the name that was requested
    first."""
    files: tuple[str, ...] = ()
    """sha256 of the training files' contents."""
    file_names: tuple[str, ...] = ()
    """The client's names for them, in the same order."""
    quote_usd: Decimal | None = None
    """The quote's high end."""
    notes: tuple[str, ...] = ()
    """What was decided about it, shown as its first events."""
    run_id: str | None = None
    attempt: int = 0
    """Attempt number of its key, in records from when each attempt was a separate run."""
    tries: int = 0
    """How often its backend could not accept it, for a temporary reason."""
    again_at: datetime | None = None
    error: JobError | None = None
    """Why it has no run."""
    cancel_asked: bool = False
    ended_as: str | None = None
    """The terminal status that its clients received: it stays, whatever becomes of its run."""
    ended_at: datetime | None = None
    told: bool = False
    """Whether its end was sent to the webhook, if there is one."""
    model_deleted: bool = False

    @property
    def base(self) -> str:
        """The model's name without the tuned prefix, also for earlier records that only have the tuned
        name."""
        return self.untuned or self.tuned.split(":")[1]

    @property
    def outside(self) -> bool:
        """Return whether the job was created outside of the gateway, so the store has no record of it."""
        return not self.key

    @property
    def run_key(self) -> str:
        """The idempotency key of its run."""
        return self.id if not self.attempt else f"{self.id}.{self.attempt}"


class AuditEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A request that changed something or was refused, or a command that created or revoked a key."""

    at: datetime
    key: str
    method: str
    """HTTP method, or `COMMAND`."""
    path: str
    status: int
    """HTTP status; 0 for a command."""
    by: str | None = None
    """Who ran the command, as `user@machine`."""
    subject: str | None = None
    """The id of what was created or changed."""
    code: str | None = None
    """Reason of the refusal."""
    address: str | None = None
    times: int = 1
    """Number of similar ones since the previous recorded entry."""
