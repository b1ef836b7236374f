"""A Ray cluster, by its Jobs API. The run's ref is the submission id, which a cluster takes once; a later
attempt has its number behind it.

Options of `[hosts.ray.options]`: `address` (`http://127.0.0.1:8265` by default), `depot`, what a worker gets
of the cluster (`gpu`, `gpu_memory_gib`) and what an hour of that costs (`usd_per_hour`, 0 where nobody pays);
`packages`: `pinned` (the default: the worker's are those of here) or `image` (the cluster has all of them).

Of a run with several processes each is a worker of Ray Train with its share of what the run gets, on whatever
nodes have room (`_ray`); the one job is their driver and takes nothing itself.

Ray's own variables would take the place of the address without a word, and whoever reaches a cluster without
authentication may run anything on it: both are refused.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any, Literal, NoReturn
from urllib.parse import urlsplit

from orchestrate.core import require_recent
from orchestrate.errors import (
    AuthenticationFailed,
    ConfigError,
    HostUnavailable,
    InvalidRequest,
    MissingExtra,
    OrchestrateError,
    OutcomeUnknown,
    ProviderError,
)
from orchestrate.places import claim
from orchestrate.places.away import MACHINE_OPTIONS, AwayPlace, configured_machine, configured_price
from orchestrate.places.base import Hourly, Machine, Placed, Resources, Usage, newest_first
from orchestrate.places.order import MODULE, RUN_BOOT, WorkerOrder, pins, unexpanded
from orchestrate.profile import away
from orchestrate.settings.hosts import is_loopback

PROFILE = away("ray", "Ray", f"{__name__}:RayJobs", {*MACHINE_OPTIONS, "address", "packages"})
ADDRESS = "http://127.0.0.1:8265"
OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
STATUSES: Mapping[str, Literal["waiting", "running", "ended"]] = {
    "PENDING": "waiting",
    "RUNNING": "running",
    "STOPPED": "ended",
    "SUCCEEDED": "ended",
    "FAILED": "ended",
}
REF = "orchestrate-ref"
DRIVER = "orchestrate.places.kinds._ray.driver"
TRAIN = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
}
"""The workers of a group of which one is gone wait for it, and are not waited for. For up to 20 s Ray Train
takes a lost node for one that is there, and would wait a minute for room on it. That a node will be taken
away is announced to workers that ask, which ours need not: each step may be their last."""
TRAIN_PACKAGES = ("pandas", "pyarrow", "pydantic", "requests")
"""Packages that Ray Train imports besides what Ray itself needs; without Ray, which is the cluster's."""
ANSWER_S = 60
TIMED_OUT = 408
RAY_CLIENT = (
    "the Jobs API needs an http address. With a Ray Client address, Ray would ask the head node "
    "and use the address that the head sees, without TLS: through a tunnel, that address reaches "
    "nothing, or another cluster on this machine"
)


class RayJobs(AwayPlace):
    groups = True
    by_hand = frozenset({"STOPPED"})

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        super().__init__(name, options)
        self.address = str(options.get("address", ADDRESS)).rstrip("/")
        self._client: Any = None

    @property
    def own(self) -> bool:
        return is_loopback(urlsplit(self.address).hostname or "")

    def account(self) -> str:
        return f"cluster at {self.address}"

    def require(self) -> None:
        self._require_safe()
        super().require()

    def _require_safe(self) -> None:
        if find_spec("ray") is None or find_spec("aiohttp_cors") is None:
            raise MissingExtra("ray", "a Ray cluster", "ray[default,train]")
        require_recent("ray")
        for variable in OVERRIDES:
            if (given := os.environ.get(variable)) and given.rstrip("/") != self.address:
                raise ConfigError(
                    f"{variable} is {given}, and Ray would use it instead of {self.address}",
                    fix=f"unset {variable}, or set hosts.{self.name}.options.address to it",
                )
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            told, fix = _no_http(parts.scheme, parts.hostname or "HEAD")
            raise ConfigError(f"hosts.{self.name}.options.address is {self.address}: {told}", fix=fix)
        if self.own:
            return
        if parts.scheme != "https" or os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            raise ConfigError(
                f"{self.address} is not on this machine: it needs https and a token",
                fix="start the cluster with RAY_AUTH_MODE=token, set RAY_AUTH_MODE and RAY_AUTH_TOKEN "
                "here, or use a tunnel: ssh -L 8265:127.0.0.1:8265 HEAD",
            )

    # -- machines ------------------------------------------------------------------------------------------

    def machines(self) -> tuple[Machine, ...]:
        return (configured_machine(self.name, self.options),)

    def price(self, resources: Resources) -> Hourly | None:
        return configured_price(self.name, self.options)

    # -- jobs ----------------------------------------------------------------------------------------------

    def submit(self, order: WorkerOrder, resources: Resources, env: dict[str, str]) -> None:
        """Submit the attempt. The cluster rejects an id that it has already had, so of two submissions of one
        attempt, only one is accepted."""
        ref = order.job.ref
        earlier = self.find(ref)
        id = ref if not earlier else f"{ref}-{len(earlier) + 1}"
        more, alone = ("fsspec", *self.depot.packages), order.job.hyper.processes == 1
        runtime: dict[str, Any] = {"env_vars": {**env, **self.secrets}}
        if not alone:
            runtime["env_vars"] = {**TRAIN, **runtime["env_vars"], MODULE: DRIVER}
            more = (*more, *TRAIN_PACKAGES)
        runtime["env_vars"] = unexpanded(runtime["env_vars"])
        if self.options.get("packages", "pinned") != "image":
            runtime["uv"] = pins("local", more=more)
        with self._asked():
            client = self._jobs
        try:
            client.submit_job(
                entrypoint=f"python -c {shlex.quote(RUN_BOOT)}",
                submission_id=id,
                runtime_env=runtime,
                metadata={REF: ref},
                entrypoint_num_cpus=1 if alone else None,
                entrypoint_num_gpus=resources.count if resources.gpu and alone else None,
            )
        except Exception as error:
            if refused := _refusal(self.name, error):
                raise refused from error
            if isinstance(error, ConnectionError):  # of Ray's question for the version, which goes first
                raise HostUnavailable(self.name, str(error)) from error
            if not self._taken(ref, id):
                raise OutcomeUnknown(self.name, ref, f"{type(error).__name__}: {error}") from error

    def _taken(self, ref: str, id: str) -> bool:
        """Return whether this attempt is there: an id that the cluster has had is answered with a 500, as
        what broke is. That it is not there says nothing: the request may still be on its way."""
        try:
            return any(one.id == id for one in self.find(ref))
        except OrchestrateError:
            return False

    def find(self, ref: str | None = None) -> list[Placed]:
        with self._asked():
            jobs: list[Any] = [job for job in self._jobs.list_jobs() if job.submission_id]
        told: list[dict[str, str]] = [job.metadata or {} for job in jobs]
        refs = [one.get(REF, "") for one in told]
        ours = [(job, mine) for job, mine in zip(jobs, refs, strict=True) if mine and ref in (None, mine)]
        return newest_first(_placed(job, mine) for job, mine in ours)

    def stop(self, ref: str) -> None:
        for one in self.find(ref):
            if one.state != "ended":
                with self._asked():
                    self._jobs.stop_job(one.id)

    def usage(self, ref: str) -> Usage | None:
        """Return the usage by the cluster's clock for jobs that it has seen end, because the clock here
        may differ. For a job that runs, or that a new head node does not know, return what the workers
        have reported."""
        seen = sum(
            (one.finished_at - one.started_at).total_seconds()
            for one in self.find(ref)
            if one.started_at is not None and one.finished_at is not None
        )
        seconds = max(seen, claim.used_s(self.depot.run(ref)))
        hourly = configured_price(self.name, self.options)
        return Usage.at(hourly, seconds, "the cluster's times at the configured price")

    def output(self, ref: str) -> str:
        placed = self.state(ref)
        if placed is None:
            return ""
        with self._asked():
            return str(self._jobs.get_job_logs(placed.id))[-8000:]

    @property
    def _jobs(self) -> Any:
        if self._client is None:
            self._require_safe()
            self._client = _client(self.address)
        return self._client

    @contextmanager
    def _asked(self) -> Generator[None]:
        try:
            yield
        except OrchestrateError:
            raise
        except Exception as error:
            self._client = None
            if refused := _refusal(self.name, error):
                raise refused from error
            told = f"could not reach the cluster at {self.address}: {error}"
            raise HostUnavailable(self.name, told, fix="ray status; ray start --head") from error


def _no_http(scheme: str, head: str) -> tuple[str, str]:
    """Return why an address is not accepted, and how to get one that is."""
    if scheme == "ray" and is_loopback(head):
        return RAY_CLIENT, f'address = "{ADDRESS}", for the dashboard of a cluster on this machine'
    if scheme == "ray":
        fix = (
            f'ssh -L 8265:127.0.0.1:8265 {head}, then address = "{ADDRESS}"; or use the https address of its '
        )
        return RAY_CLIENT, f"{fix}dashboard, with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
    if scheme == "anyscale":
        return (
            "use the separate backend for Anyscale, whose jobs start their own machine",
            "-p anyscale, with [hosts.anyscale.options] in orchestrate.toml",
        )
    fix = f'for example "{ADDRESS}"; behind Kubernetes: kubectl port-forward svc/NAME-head-svc 8265'
    return "the Jobs API needs an http address", fix


class _Answered(Exception):
    """A request that was answered with an error. Ray's own error has the status only in a sentence."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"it answered with {status}: {text}")
        self.status = status


def _client(address: str) -> Any:
    """Create Ray's own client, keeping the status of an answer and never waiting for one indefinitely."""
    from ray.job_submission import JobSubmissionClient

    base: Any = JobSubmissionClient

    class Client(base):
        def _do_request(self, *args: Any, **more: Any) -> Any:
            return base._do_request(self, *args, **{"timeout": ANSWER_S, **more})

        def _raise_error(self, r: Any) -> NoReturn:
            raise _Answered(int(r.status_code), str(r.text))

    return Client(address)


def _refusal(name: str, error: Exception) -> ProviderError | None:
    """Return the error if the answer is known to be a refusal."""
    from ray.exceptions import AuthenticationError

    if isinstance(error, AuthenticationError):
        return AuthenticationFailed(name, str(error))
    if isinstance(error, _Answered) and 400 <= error.status < 500 and error.status != TIMED_OUT:
        return InvalidRequest(name, str(error), status=error.status)
    return None


def _placed(job: Any, ref: str) -> Placed:
    raw = str(getattr(job.status, "value", job.status))
    begun, ended = _time(job.start_time), _time(job.end_time)
    return Placed(
        id=str(job.submission_id),
        ref=ref,
        state=STATUSES.get(raw, "unknown"),
        raw_state=raw,
        created_at=begun,
        started_at=begun,
        finished_at=ended,
        message=_told(job.message),
    )


def _told(message: str | None) -> str | None:
    """Of an entrypoint that failed Ray tells with all that it printed, which `output` has: what it was, and
    the last line."""
    lines = [line for line in (message or "").splitlines() if line.strip()]
    if len(lines) < 2:
        return message
    return f"{lines[0].partition(', last available logs')[0]}: {lines[-1].strip()}"


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
