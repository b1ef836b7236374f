"""Code shared by the hosts: the base class, responses and routes."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from orchestrate.http.wire import Body as Body
from orchestrate.http.wire import HostError as HostError
from orchestrate.http.wire import json_body as json_body
from orchestrate.http.wire import parse as parse
from orchestrate.http.wire.openai import number as number
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.jobs import JobFailure, Phase, SandboxJob, SandboxSettings
from orchestrate.sandbox.state import SandboxClock, SandboxState, token
from orchestrate.sandbox.uploads import AcceptedRows

if TYPE_CHECKING:
    from orchestrate.sandbox.training import Trainer

LIST_LAG_S: ContextVar[float] = ContextVar("list_lag_s", default=0.0)
"""Seconds before a new job appears in list responses. Set per request."""

STALLS: ContextVar[bool] = ContextVar("stalls", default=False)
"""True if the jobs that the current request creates should never finish."""

NOTE = "This is a sandbox, not the real service. Models are small substitutes trained on this machine"
SESSION_NOTICE = f"prices are in play money. {NOTE}"


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


class Host(ABC):
    """A simulated host. All hosts share the sandbox's state, clock and trainer."""

    name: ClassVar[str]
    title: ClassVar[str]
    status_field: ClassVar[str] = "status"
    place: ClassVar[int]
    """Position of the host in lists of hosts. Also determines the host's port."""
    taken: ClassVar[AcceptedRows]
    usual_rate: ClassVar[float]
    """Typical learning rate of the host's jobs, or the typical multiplier if the host uses learning rate
    multipliers."""
    endless: ClassVar[dict[str, Any]]
    """Fields to set in a list response so that the client requests another page. Used to simulate a list that
    never ends."""

    thinking_field: ClassVar[str | None] = None
    """Message field with the reasoning, or `None` if the host does not return it."""
    key_prefix: ClassVar[str] = ""
    """Prefix that the host's client requires in keys, such as `tml-`. In sandbox keys, `sandbox-` comes after
    it."""
    own_faults: ClassVar[frozenset[str]] = frozenset()
    """Kinds of faults that only this host supports."""
    life: Any = None
    """Lifespan context manager of the app, for background tasks."""

    def __init__(
        self, state: SandboxState, clock: SandboxClock, trainer: Trainer, settings: SandboxSettings
    ) -> None:
        self.state = state
        self.clock = clock
        self.trainer = trainer
        self.settings = settings
        self.base_url = ""
        self._creating = threading.Lock()

    @abstractmethod
    def routes(self) -> list[BaseRoute]: ...

    @abstractmethod
    def error(self, error: HostError) -> Response:
        """Format an error in the host's own form."""

    @abstractmethod
    def create_many(self, bodies: list[dict[str, Any]]) -> list[str]:
        """Create jobs from request bodies in one transaction and return their ids."""

    @abstractmethod
    def env(self, key: str) -> dict[str, str]:
        """Return the environment variables that a client needs."""

    def headers(self) -> dict[str, str]:
        """Return the headers of every response to the current request."""
        return {}

    def denied(self, request: Request) -> HostError | None:
        """Return an error if the account may not make this request, and `None` otherwise."""
        del request
        return None

    async def suffer(self, kind: str, delay_s: float) -> Response | None:
        """Inject one of `own_faults`. Returns the response, or `None` to handle the request as usual."""
        raise NotImplementedError(kind)

    def close(self) -> None:  # noqa: B027  most hosts hold nothing
        """Release the host's resources when the sandbox stops."""

    def signed(self, path: str) -> str:
        """Return a signed URL, which needs no API key, for a resource of the current account."""
        return f"{self.base_url}/_signed/{path}?account={here()}&signature={token()}"

    # -- jobs ----------------------------------------------------------------------------------------------

    def wait(self, name: str) -> float:
        return self.clock.wait(getattr(self.settings.waits, name))

    def save(self, job: SandboxJob) -> None:
        self.state.put(self.name, "job", job.id, job.to_dict(), tag=job.kind)

    def job(self, id: str) -> SandboxJob | None:
        values = self.state.get(self.name, "job", id)
        return SandboxJob.from_dict(values) if values else None

    def jobs(
        self, *, kind: str | None = None, after: str | None = None, where: tuple[str, str] | None = None
    ) -> Iterator[SandboxJob]:
        """Yield jobs, newest first. Excludes jobs younger than the list lag."""
        lag = LIST_LAG_S.get()
        newest = self.clock.now() - lag
        for values in self.state.all(self.name, "job", tag=kind, after=after, where=where):
            job = SandboxJob.from_dict(values)
            if lag <= 0 or job.created_at <= newest:
                yield job

    def change(self, id: str, act: Callable[[SandboxJob, float], bool]) -> tuple[SandboxJob, bool]:
        """Apply `act` to the stored job in one transaction, and save the job if `act` returns True. Returns
        the job and the result of `act`. Raises `KeyError` if the job does not exist."""
        with self.state.transaction():
            job = self.job(id)
            if job is None:
                raise KeyError(id)
            done = act(job, self.clock.now())
            if done:
                self.save(job)
        if done:
            self.trainer.wake()
        return job, done

    def start(self, job: SandboxJob) -> None:
        """Store a new job. Then queue it for training or, if it is not trained, schedule all of its state
        changes."""
        if STALLS.get():
            job.trained = False
        if job.trouble is not None:
            job.failed_at = job.validated_at
        elif not job.trained:
            job.plan(self.settings.waits, self.clock.speed, stalls=STALLS.get())
        self.save(job)
        if job.trained and job.trouble is None:
            self.trainer.take(job)

    def sandbox_fields(self, job: SandboxJob) -> dict[str, Any]:
        """Return the fields that only the sandbox adds to job objects, with a note on how the job is
        trained."""
        return {
            "sandbox": True,
            "sandbox_trained": job.trained,
            "sandbox_note": f"{NOTE}. {self.trainer.describe(job)}",
        }

    def trouble(self, job: SandboxJob, now: float) -> JobFailure | None:
        return job.trouble if job.phase(now) is Phase.FAILED else None


def page_of(items: Iterator[Any], limit: int) -> tuple[list[Any], bool]:
    """Return the first `limit` items and whether more follow."""
    taken: list[Any] = []
    for item in items:
        if len(taken) == limit:
            return taken, True
        taken.append(item)
    return taken, False


def json_answer(body: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(body, status_code=status, headers=dict(headers) if headers else None)


Endpoint = Callable[[Request], Any]


def route(path: str, method: str, endpoint: Endpoint) -> Route:
    return Route(path, endpoint, methods=[method])
