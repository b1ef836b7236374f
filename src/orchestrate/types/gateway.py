"""What the gateway keeps: the jobs that its clients asked for, and who may ask."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from typing import Any, Literal

from orchestrate.types.jobs import JobError
from orchestrate.types.record import Record

Opens = Literal["gateway", "serve", "sessions"]
"""Which kind of server a key opens."""


class GatewayKey(Record, frozen=True, kw_only=True, omit_defaults=True):
    """The key of a client of the gateway, or of model servers. Limits that are `None`, and empty lists,
    allow everything."""

    name: str
    created_at: datetime
    opens: Opens = "gateway"
    """`serve`: what `serve` and `ab serve` put up, and nothing of the gateway; `sessions`: training
    sessions."""
    project: str = "default"
    """Keys of one project see the same files, jobs and models."""
    backends: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    """Names that clients may ask for."""
    map: dict[str, str] = {}
    """Names of this key's own, before those of the configuration: name -> `backend:model`."""
    budget_usd: Decimal | None = None
    """Over all its jobs: their bills, and of those that go on the quotes' high ends."""
    per_minute: int | None = None
    """Requests."""
    concurrent: int | None = None
    """Jobs that have not ended."""
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
    """The name of the model that it is to make."""
    backend: str
    spec: dict[str, Any]
    boot: str = ""
    uptime_s: float = 0.0
    """When it was made by the clock of the machine that made it, which nobody sets."""
    untuned: str = ""
    """The name that was asked for; where an earlier tuned model is trained on, the one that was asked for
    first."""
    files: tuple[str, ...] = ()
    """sha256 of the contents that are trained on."""
    file_names: tuple[str, ...] = ()
    """As its client calls them, in the same order."""
    quote_usd: Decimal | None = None
    """The quote's high end."""
    notes: tuple[str, ...] = ()
    """What was decided about it, told as its first events."""
    run_id: str | None = None
    attempt: int = 0
    """Of its key, in records of a time when each try was a run of its own."""
    tries: int = 0
    """How often its backend could not take it, for a reason that passes."""
    again_at: datetime | None = None
    error: JobError | None = None
    """Why it has no run."""
    cancel_asked: bool = False
    ended_as: str | None = None
    """The terminal status that its clients were given: it stays, whatever becomes of its run."""
    ended_at: datetime | None = None
    told: bool = False
    """Its end, to the webhook, where there is one."""
    model_deleted: bool = False

    @property
    def base(self) -> str:
        """`untuned`, of earlier records too, which have it in the tuned name only."""
        return self.untuned or self.tuned.split(":")[1]

    @property
    def outside(self) -> bool:
        """Return whether the job was created outside of the gateway. Then the store has no record of it."""
        return not self.key

    @property
    def run_key(self) -> str:
        """The idempotency key of its run."""
        return self.id if not self.attempt else f"{self.id}.{self.attempt}"


class AuditEntry(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A request that changed something, or was refused; or a command that made or revoked a key."""

    at: datetime
    key: str
    method: str
    """Of HTTP, or `COMMAND`."""
    path: str
    status: int
    """Of HTTP; 0 of a command."""
    by: str | None = None
    """Who ran the command, as `user@machine`."""
    subject: str | None = None
    """The id of what was made or changed."""
    code: str | None = None
    """Of the refusal."""
    address: str | None = None
    times: int = 1
    """How many like it there were since the one that was written down before."""
