"""A Ray cluster, used through its Jobs API. The submission id is the run's ref, and a cluster accepts each id
only once. The ids of later attempts end with the attempt's number.

Options in `[hosts.ray.options]`:

- `address`: URL of the cluster (default: `http://127.0.0.1:8265`)
- `depot`: URL of the storage folder
- `gpu`, `gpu_memory_gib`: hardware of each worker
- `usd_per_hour`: hourly price of a worker, 0 if nothing is billed
- `packages`: `pinned` (default) to install the same versions as on this machine, or `image` if the cluster
  already has all packages

If a run has several processes, each is a Ray Train worker with its share of the run's resources, on any node
with free resources (`_ray`). The job itself only drives them and needs no resources.

Orchestrate does not use a cluster if one of Ray's environment variables would silently replace the address.
It also rejects remote clusters without authentication, because anyone who can reach such a cluster can run
code on it.
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
from orchestrate.places import lease
from orchestrate.places.away import (
    MACHINE_OPTIONS,
    AwayPlace,
    configured_machine,
    configured_price,
    next_name,
)
from orchestrate.places.base import Hourly, Machine, Placed, Resources, Usage, newest_first
from orchestrate.places.manifest import MODULE, RUN_BOOT, RunManifest, pins, unexpanded
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
"""Environment variables that configure Ray Train.

If a worker is lost, the other workers keep waiting for it, so Ray must not wait for them to finish. For up to
20 s after a node is lost, Ray Train may treat it as available, and would then wait a minute for its
resources. The preemption watcher is off, because it only informs workers that check for preemption.
Orchestrate's workers don't need to check, because they can stop after any step.
"""
TRAIN_PACKAGES = ("pandas", "pyarrow", "pydantic", "requests")
"""Packages that Ray Train imports in addition to Ray's own dependencies. The cluster provides Ray itself."""
ANSWER_S = 60
TIMED_OUT = 408
RAY_CLIENT = (
    "the Jobs API needs an http address. Given a Ray Client address, Ray connects without TLS to the "
    "address that the head node reports. From behind a tunnel, that address is unreachable or belongs "
    "to another cluster"
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
                    f"{variable} is {given}, which Ray would use instead of {self.address}",
                    fix=f"unset {variable}, or set hosts.{self.name}.options.address to the same address",
                )
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            problem, fix = _no_http(parts.scheme, parts.hostname or "HEAD")
            raise ConfigError(f"hosts.{self.name}.options.address is {self.address}: {problem}", fix=fix)
        if self.own:
            return
        if parts.scheme != "https" or os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
            raise ConfigError(
                f"{self.address} is not on this machine, so it needs https and a token",
                fix="start the cluster with RAY_AUTH_MODE=token, and set RAY_AUTH_MODE and RAY_AUTH_TOKEN "
                "here. Or use a tunnel: ssh -L 8265:127.0.0.1:8265 HEAD",
            )

    # -- machines ------------------------------------------------------------------------------------------

    def machines(self) -> tuple[Machine, ...]:
        return (configured_machine(self.name, self.options),)

    def price(self, resources: Resources) -> Hourly | None:
        return configured_price(self.name, self.options)

    # -- jobs ----------------------------------------------------------------------------------------------

    def submit(self, manifest: RunManifest, resources: Resources, env: dict[str, str]) -> None:
        """Submit the attempt. The cluster rejects an id that was already used, so an attempt can't be
        submitted twice."""
        ref = manifest.job.ref
        id = next_name(ref, (one.id for one in self.find(ref)))
        more, alone = ("fsspec", *self.run_storage.packages), manifest.job.hyper.processes == 1
        runtime: dict[str, Any] = {"env_vars": {**env, **self.secrets}}
        if not alone:
            runtime["env_vars"] = {**TRAIN, **runtime["env_vars"], MODULE: DRIVER}
            more = (*more, *TRAIN_PACKAGES)
        runtime["env_vars"] = unexpanded(runtime["env_vars"])
        if self.options.get("packages", "pinned") != "image":
            runtime["uv"] = pins("local", more=more)
        with self._converted_errors():
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
        """Return True if this attempt exists. The cluster returns a 500 both for a used id and for a failure.
        False proves nothing, because the request may still be on its way."""
        try:
            return any(one.id == id for one in self.find(ref))
        except OrchestrateError:
            return False

    def find(self, ref: str | None = None) -> list[Placed]:
        with self._converted_errors():
            jobs: list[Any] = [job for job in self._jobs.list_jobs() if job.submission_id]
        metadata: list[dict[str, str]] = [job.metadata or {} for job in jobs]
        refs = [one.get(REF, "") for one in metadata]
        ours = [(job, mine) for job, mine in zip(jobs, refs, strict=True) if mine and ref in (None, mine)]
        return newest_first(_placed(job, mine) for job, mine in ours)

    def stop(self, ref: str) -> None:
        for one in self.find(ref):
            if one.state != "ended":
                with self._converted_errors():
                    self._jobs.stop_job(one.id)

    def usage(self, ref: str) -> Usage | None:
        """Return the run's usage. Its time is the larger of two values: the time of its ended jobs by the
        cluster's clock, and the time that its workers reported. Only the latter includes running jobs and
        jobs that are unknown to a new head node."""
        seen = sum(
            (one.finished_at - one.started_at).total_seconds()
            for one in self.find(ref)
            if one.started_at is not None and one.finished_at is not None
        )
        seconds = max(seen, lease.used_s(self.run_storage.run(ref)))
        hourly = configured_price(self.name, self.options)
        return Usage.at(hourly, seconds, "run times reported by the cluster, at the configured price")

    def output(self, ref: str) -> str:
        placed = self.state(ref)
        if placed is None:
            return ""
        with self._converted_errors():
            return str(self._jobs.get_job_logs(placed.id))[-8000:]

    @property
    def _jobs(self) -> Any:
        if self._client is None:
            self._require_safe()
            self._client = _client(self.address)
        return self._client

    @contextmanager
    def _converted_errors(self) -> Generator[None]:
        try:
            yield
        except OrchestrateError:
            raise
        except Exception as error:
            self._client = None
            if refused := _refusal(self.name, error):
                raise refused from error
            message = f"could not reach the cluster at {self.address}: {error}"
            raise HostUnavailable(
                self.name, message, fix="to check the cluster: ray status. To start one: ray start --head"
            ) from error


def _no_http(scheme: str, head: str) -> tuple[str, str]:
    """Return why an address is not accepted, and how to get one that is."""
    if scheme == "ray" and is_loopback(head):
        return RAY_CLIENT, f'for a cluster on this machine, set address = "{ADDRESS}"'
    if scheme == "ray":
        fix = (
            f'open a tunnel with `ssh -L 8265:127.0.0.1:8265 {head}`, and set address = "{ADDRESS}". Or use '
        )
        return (
            RAY_CLIENT,
            f"{fix}the https address of the cluster's dashboard, with RAY_AUTH_MODE=token and RAY_AUTH_TOKEN",
        )
    if scheme == "anyscale":
        return (
            "Anyscale has its own backend, which starts a machine for each job",
            "use -p anyscale, with [hosts.anyscale.options] in orchestrate.toml",
        )
    fix = f'for example "{ADDRESS}". On Kubernetes, first: kubectl port-forward svc/NAME-head-svc 8265'
    return "the Jobs API needs an http address", fix


class _Answered(Exception):
    """Raised for an error response. Ray's own error contains the status only as part of its message."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(f"the cluster returned {status}: {text}")
        self.status = status


def _client(address: str) -> Any:
    """Create Ray's own client, but keep the status of error responses and set a timeout."""
    from ray.job_submission import JobSubmissionClient

    base: Any = JobSubmissionClient

    class JobsClient(base):
        def _do_request(self, *args: Any, **more: Any) -> Any:
            return base._do_request(self, *args, **{"timeout": ANSWER_S, **more})

        def _raise_error(self, r: Any) -> NoReturn:
            raise _Answered(int(r.status_code), str(r.text))

    return JobsClient(address)


def _refusal(name: str, error: Exception) -> ProviderError | None:
    """Return our error if the response is known to reject the request, otherwise `None`."""
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
        message=_last_line(job.message),
    )


def _last_line(message: str | None) -> str | None:
    """Shorten the message of a failed entrypoint, which includes all its output, to the cause and the last
    line. `output` has the rest."""
    lines = [line for line in (message or "").splitlines() if line.strip()]
    if len(lines) < 2:
        return message
    return f"{lines[0].partition(', last available logs')[0]}: {lines[-1].strip()}"


def _time(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
