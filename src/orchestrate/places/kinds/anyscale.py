"""Anyscale jobs: each runs one worker on one cloud machine.

Each job uses its run's ref as its name and as a tag. Anyscale doesn't require names or tags to be unique, so
Orchestrate searches for existing jobs first. If two jobs have the same ref, Orchestrate stops the newer one.

Options in `[hosts.anyscale.options]`:

- `depot`: URL of the storage folder
- `instance`: the cloud's name for the machine type
- `gpu`, `gpu_memory_gib`: hardware of this machine type
- `usd_per_hour`: hourly price of the machine, including Anyscale's fee
- `cloud`, `project`: their names on Anyscale
- `image`: URI of the container image

Set the token with ANYSCALE_CLI_TOKEN or `orchestrate keys set anyscale`.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import msgspec

from orchestrate.core import require_recent
from orchestrate.core.files import write_whole
from orchestrate.errors import (
    ConfigError,
    HostUnavailable,
    InvalidRequest,
    MissingExtra,
    MissingKey,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    ProviderError,
    SetupError,
    UnexpectedAnswer,
)
from orchestrate.local.run import RunDir
from orchestrate.places.away import (
    MACHINE_OPTIONS,
    NAME,
    REFUSALS,
    AwayPlace,
    configured_machine,
    configured_price,
)
from orchestrate.places.base import Hourly, Machine, Placed, Resources, Usage, newest_first, ran_s
from orchestrate.places.kinds._anyscale import Client, ErrorResponse, never_sent, unreachable
from orchestrate.places.manifest import RUN_BOOT, RunManifest, pins
from orchestrate.profile import away
from orchestrate.settings import redact_text
from orchestrate.settings.hosts import HostConfig

ADDRESS = "https://console.anyscale.com"
TOKEN = "ANYSCALE_CLI_TOKEN"  # noqa: S105  a variable's name
PROFILE = away(
    "anyscale",
    "Anyscale",
    f"{__name__}:AnyscaleJobs",
    {*MACHINE_OPTIONS, "cloud", "image", "instance", "project"},
    url=ADDRESS,
    key_variable=TOKEN,
)
ADDRESS_VARIABLE = "ANYSCALE_HOST"
WORKSPACE_VARIABLE = "ANYSCALE_EXPERIMENTAL_WORKSPACE_ID"
TAG = "orchestrate-ref"
OURS = ("orchestrate", "run")
Word = Literal["waiting", "running", "ended", "unknown"]
STATES: Mapping[str, Word] = {
    "PENDING": "waiting",
    "AWAITING_CLUSTER_START": "waiting",
    "UPDATING": "running",
    "RUNNING": "running",
    "RESTARTING": "running",
    "ERRORED": "running",
    "CLEANING_UP": "running",
    "SUCCESS": "ended",
    "TERMINATED": "ended",
    "BROKEN": "ended",
    "OUT_OF_RETRIES": "ended",
}
"""Maps the statuses that Anyscale's client returns to job states. ERRORED is only transitional."""
TIMED_OUT = 408


class AnyscaleJobs(AwayPlace):
    by_hand = frozenset({"TERMINATED"})

    def __init__(self, name: str, options: Mapping[str, Any], config: HostConfig) -> None:
        super().__init__(name, options)
        self.config = config
        self.address = (config.base_url or ADDRESS).rstrip("/")
        self._client: Client | None = None
        self._me: tuple[str, str] | None = None

    def account(self) -> str:
        """Return the organization and the user. The user is included because the organization may have jobs
        that only other users can see."""
        return "organization {}, user {}".format(*self._user)

    @property
    def _user(self) -> tuple[str, str]:
        if self._me is None:
            with self._converted_errors(self._reading) as client:
                self._me = client.user()
        return self._me

    def require(self) -> None:
        self._require_safe()
        if self.config.api_key is None:
            raise MissingKey(self.name, self.config.key_variable or TOKEN)
        if not self.options.get("instance"):
            raise ConfigError(
                f"hosts.{self.name}.options.instance (the cloud's machine type) is not set",
                fix=f'for example: [hosts.{self.name}.options] instance = "g6.2xlarge", gpu = "L4"',
            )
        super().require()

    def _require_safe(self) -> None:
        if find_spec("anyscale") is None:
            raise MissingExtra("anyscale", "Anyscale", "anyscale")
        require_recent("anyscale")
        given = os.environ.get(ADDRESS_VARIABLE)
        if given and given.rstrip("/") != self.address:
            raise ConfigError(
                f"{ADDRESS_VARIABLE} is {given}, but the configured address is {self.address}",
                fix=f"unset {ADDRESS_VARIABLE}, or set hosts.{self.name}.base_url to the same address",
            )
        if os.environ.get(WORKSPACE_VARIABLE):
            raise ConfigError(
                f"{WORKSPACE_VARIABLE} is set, as in an Anyscale workspace. Anyscale's client would then "
                "send the current folder and the workspace's variables with each job",
                fix=f"env -u {WORKSPACE_VARIABLE} orchestrate ...",
            )

    # -- machines ------------------------------------------------------------------------------------------

    def machines(self) -> tuple[Machine, ...]:
        found = configured_machine(self.name, self.options)
        return (msgspec.structs.replace(found, name=self._instance, hourly=self._hourly()),)

    def price(self, resources: Resources) -> Hourly | None:
        return self._hourly()

    def _hourly(self) -> Hourly | None:
        found = configured_price(self.name, self.options)
        return None if found is None else msgspec.structs.replace(found, machine=self._instance)

    @property
    def _instance(self) -> str:
        return str(self.options.get("instance") or NAME)

    # -- jobs ----------------------------------------------------------------------------------------------

    def start(self, run: RunDir, resources: Resources, ref: str) -> None:
        super().start(run, resources, ref)
        self._keep_one(run)

    def look(self, run: RunDir) -> None:
        super().look(run)
        self._keep_one(run)

    def _keep_one(self, run: RunDir) -> None:
        """Stop the newer of two jobs with the same ref. Two stores that submit at the same time each create a
        job, and both then stop the newer one. Runs once after each start, or at the next poll if the list is
        unavailable."""
        mark, starts = run.path / ".one", str(self.starts(run)).encode()
        if mark.is_file() and mark.read_bytes() == starts:
            return
        with suppress(ProviderError):
            alive = [one for one in self.find(run.ref) if one.state != "ended"]
            for one in alive[:-1]:
                self._end(one)
                message = f"stopped {one.id}, a second job of this run. {alive[-1].id} continues"
                run.add_event(message, level="warning", type="doubled")
            write_whole(mark, starts)

    def submit(self, manifest: RunManifest, resources: Resources, env: dict[str, str]) -> None:
        config = self.job(manifest.job.ref, resources, env)
        with self._converted_errors(self._new(), unknown=manifest.job.ref) as client:
            client.submit(config)

    def job(self, ref: str, resources: Resources, env: Mapping[str, str]) -> dict[str, Any]:
        """Build Anyscale's `JobConfig`.

        The worker runs on the head node of a single-machine cluster, where Ray itself starts nothing. The
        client's own `requirements` option is not used, because it requires the image to have this machine's
        Python version.
        """
        models: Any = import_module("anyscale.compute_config.models")
        seconds = self.hard_end_s(resources.limits)
        command = ["uv", "run", "--python", ".".join(platform.python_version_tuple()[:2])]
        for pin in pins("local", more=("fsspec", *self.run_storage.packages)):
            command += ["--with", pin]
        command += ["python", "-c", RUN_BOOT]
        given = {
            "cloud": self.options.get("cloud"),
            "project": self.options.get("project"),
            "image_uri": self.options.get("image"),
            "timeout_s": None if seconds is None else int(seconds),
        }
        head = models.HeadNodeConfig(instance_type=self._instance)
        uv = "command -v uv >/dev/null || python -m pip install -q uv"
        return {
            "name": ref,
            "entrypoint": f"{uv}; exec {shlex.join(command)}",
            "env_vars": {**env, **self.secrets},
            "compute_config": models.ComputeConfig(head_node=head, worker_nodes=[]),
            "max_retries": 0,
            "tags": {TAG: ref, OURS[0]: OURS[1]},
            **{name: value for name, value in given.items() if value is not None},
        }

    def find(self, ref: str | None = None) -> list[Placed]:
        me = self._user[1] if ref is None else None
        return newest_first(_placed(job, me) for job in self._jobs(ref))

    def state(self, ref: str) -> Placed | None:
        """Return the newest worker that is still running, or else the newest worker."""
        found = self.find(ref)
        return next((one for one in found if one.state != "ended"), next(iter(found), None))

    def stop(self, ref: str) -> None:
        """Try to stop all of the run's jobs. If one can't be stopped, continue with the others, then raise
        the error."""
        failed: ProviderError | None = None
        for one in self.find(ref):
            if one.state != "ended":
                try:
                    self._end(one)
                except ProviderError as error:
                    failed = error
        if failed is not None:
            raise failed

    def _end(self, one: Placed) -> None:
        """End a job. Ignores errors if the job has already ended."""
        try:
            with self._converted_errors(self._reading) as client:
                client.terminate(one.id)
        except (InvalidRequest, NotFound):
            if any(each.id == one.id and each.state != "ended" for each in self.find(one.ref)):
                raise

    def usage(self, ref: str) -> Usage | None:
        """Return the running time of the jobs, which excludes the time to start and stop the machine."""
        if not (found := self.find(ref)):
            return super().usage(ref)
        source = "run times reported by Anyscale, at the configured price"
        return Usage.at(self._hourly(), ran_s(found), source)

    def output(self, ref: str) -> str:
        """Read the log from the cloud's bucket. Runs don't depend on the log, so this machine doesn't need
        access to the bucket."""
        runs = [job.last_job_run for job in self._jobs(ref) if job.last_job_run is not None]
        if not runs:
            return ""
        newest = max(runs, key=lambda one: _time(one.created_at) or datetime.min.replace(tzinfo=UTC))
        try:
            with self._converted_errors(self._reading) as client:
                return client.printed(newest.id, 40)
        except ProviderError as error:
            return f"could not read the log: {error}"

    def _jobs(self, ref: str | None) -> list[Any]:
        with self._converted_errors(self._reading) as client:
            found = client.jobs(TAG, ref) if ref is not None else client.jobs(*OURS)
        # Check again here. If the server ever ignored the filter, another run's job would be mistaken for
        # this one.
        return [job for job in found if (job.name == ref if ref is not None else _is_ref(job.name))]

    # -- asking --------------------------------------------------------------------------------------------

    @property
    def _reading(self) -> Client:
        if self._client is None:
            self._client = self._new()
        return self._client

    def _new(self) -> Client:
        self._require_safe()
        token = self.config.require_key().reveal()
        if not re.fullmatch(r"[!-~]+", token):
            message = f"the key of {self.name} contains an invalid character, such as a space or a line break"
            raise ConfigError(message, fix=f"orchestrate keys set {self.name}")
        try:
            return Client(self.address, token, self.config.timeout_s)
        except (ImportError, AttributeError, TypeError) as error:
            message = f"Orchestrate does not support the installed version of anyscale: {error}"
            raise SetupError(message, fix="pip install -U 'orchestrate-ft[anyscale]'") from error

    @contextmanager
    def _converted_errors(self, client: Client, unknown: str | None = None) -> Generator[Client]:
        """Convert errors. `unknown` is the ref of a request that creates something. Once it is sent, anything
        but a known rejection raises `OutcomeUnknown`."""
        try:
            yield client
        except OrchestrateError:
            raise
        except ErrorResponse as error:
            refused = 400 <= error.status < 500 and error.status != TIMED_OUT
            if client.creating and unknown is not None and not refused:
                raise OutcomeUnknown(self.name, unknown, str(error)) from error
            kind = REFUSALS.get(error.status, InvalidRequest if refused else HostUnavailable)
            raise kind(self.name, error.text, status=error.status) from error
        except Exception as error:
            detail = redact_text(str(error))  # an address of a log is as good as a key while it lasts
            if client.creating and unknown is not None and not never_sent(error):
                raise OutcomeUnknown(self.name, unknown, f"{type(error).__name__}: {detail}") from error
            if unreachable(error):
                message = f"could not reach {self.address}: {detail}"
                raise HostUnavailable(self.name, message) from error
            if unknown is not None and isinstance(error, (ValueError, RuntimeError)):
                # Raised while looking up what the job needs, such as a project, before the job was requested.
                raise InvalidRequest(self.name, detail) from error
            message = f"unexpected response: {type(error).__name__}: {detail}"
            raise UnexpectedAnswer(self.name, message) from error


def _is_ref(name: str) -> bool:
    return re.fullmatch(r"orc-[a-z0-9]{12}", name) is not None


def _placed(job: Any, me: str | None = None) -> Placed:
    """Parse a job. `me` is the id of the token's user."""
    raw = str(job.state.current_state)
    state: Word = STATES.get(raw, "unknown")
    run = job.last_job_run
    ended = (run and run.finished_at) or job.state.state_transitioned_at
    return Placed(
        id=str(job.id),
        ref=str(job.name),
        state=state,
        raw_state=raw,
        created_at=_time(job.created_at),
        started_at=_time(run.created_at) if run else None,
        finished_at=_time(ended) if state == "ended" else None,
        message=job.state.error or job.state.operation_message,
        owner=job.creator.email if me is not None and job.creator_id != me else None,
    )


def _time(at: datetime | None) -> datetime | None:
    """Convert a time to UTC. A time without a zone is already UTC."""
    return None if at is None else at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
