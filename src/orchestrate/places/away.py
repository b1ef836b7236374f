"""Code shared by all remote places. Run directories are stored in a folder that both machines can reach, and
this machine keeps copies of them."""

from __future__ import annotations

import os
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from orchestrate import costing
from orchestrate.core.files import opener, write_whole
from orchestrate.errors import (
    AuthenticationFailed,
    ConfigError,
    HostUnavailable,
    InvalidRequest,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    QuotaExceeded,
    RateLimited,
)
from orchestrate.local import run as process
from orchestrate.local.run import JobState, RunDir, launcher, now
from orchestrate.paid.limits import require_within
from orchestrate.places import lease, storage
from orchestrate.places.base import (
    PRICE,
    SILENCE_S,
    Hourly,
    Machine,
    Place,
    Placed,
    Resources,
    Usage,
    WorkerLimits,
)
from orchestrate.places.manifest import (
    RunManifest,
    allowed,
    environment,
    parse_gpu,
    read_manifest,
    write_manifest,
)
from orchestrate.places.storage import RunStorage
from orchestrate.settings import Secret, redact_text
from orchestrate.text import duration
from orchestrate.types import Allowance, JobError, Record, decoding

NAME = "a worker"
MACHINE_OPTIONS = ("gpu", "gpu_memory_gib", "usd_per_hour")


def configured_machine(name: str, options: Mapping[str, Any]) -> Machine:
    """Read the machine from the options of the backend `name` (`MACHINE_OPTIONS`). Without the option `gpu`,
    the machine has no GPU."""
    gpu, count = parse_gpu(str(options["gpu"])) if options.get("gpu") else (None, 0)
    return Machine(
        name=NAME,
        gpu=gpu,
        count=count,
        memory_bytes=_memory(gpu, name, options) if gpu else None,
        hourly=configured_price(name, options),
    )


def configured_price(name: str, options: Mapping[str, Any]) -> Hourly | None:
    """Return the configured hourly price, or `None` if none is configured. Raises `ConfigError` if the value
    is not a valid price."""
    if options.get("usd_per_hour") is None:
        return None
    price = _number(name, options, "usd_per_hour")
    source = f"hosts.{name}.options.usd_per_hour"
    return Hourly(usd_per_hour=price, machine=NAME, source=source, as_of=datetime.now(UTC))


def _memory(gpu: str, name: str, options: Mapping[str, Any]) -> int | None:
    """Return the memory as configured, or of this GPU in general."""
    if options.get("gpu_memory_gib") is not None:
        return int(_number(name, options, "gpu_memory_gib") * 2**30)
    return costing.gpu_memory_bytes(gpu)


def _number(name: str, options: Mapping[str, Any], field: str) -> Decimal:
    try:
        found = Decimal(str(options[field]))
    except InvalidOperation:
        found = Decimal("NaN")
    if isinstance(options[field], bool) or not found.is_finite() or found < 0:
        raise ConfigError(
            f"hosts.{name}.options.{field} must be a non-negative number, got {options[field]!r}"
        )
    return found


MARGIN_S = 60.0
"""Seconds added to the worker's silence limit, because the worker and this machine check with a delay."""

FRESH_S = 30.0
"""Maximum age, in seconds, at which a worker's report still counts as current. While the newest report is
current, the place isn't queried."""

LEAST_S = 10.0
"""Minimum remaining time before a run's limit, in seconds. If less remains, no machine is started."""
RESPONSE_S = 300.0
"""Seconds that a worker has to pause after a pause request. After that, it is stopped even if it still
reports. This is twice the time allowed for saving a checkpoint."""

ENDED_THERE = "ended_there"
"""Error code of a run whose worker was stopped outside of Orchestrate, for example in the place's console."""

REFUSALS: Mapping[int, type[ProviderError]] = {
    401: AuthenticationFailed,
    402: QuotaExceeded,
    403: PermissionRefused,
    404: NotFound,
    429: RateLimited,
}
"""Error classes, keyed by HTTP status, for places with an HTTP API."""


class Starts(Record, frozen=True, kw_only=True):
    """Contents of `.starts.json` in this machine's copy of a run directory."""

    count: int = 0
    attempts: int = 0
    """Number of attempts before the last start. Reports of these attempts are ignored, because they don't
    show that the new worker is running."""
    known: tuple[str, ...] = ()
    """Ids of the workers that were listed before the last start. All of them have ended. The new worker is
    not listed until another id appears."""


class AwayPlace(Place):
    """A remote place. `name` is the name of the backend.

    `options` are `depot` (the URL of the storage folder for all runs), `silence_minutes`, `pass_env`
    (additional environment variables to pass to workers) and options specific to the place.
    """

    by_hand: ClassVar[frozenset[str]] = frozenset()
    """Statuses that this place reports for workers that a user stopped, as opposed to workers that
    crashed."""

    def __init__(self, name: str, options: Mapping[str, Any]) -> None:
        self.name, self.options = name, options
        self.silence_s = float(options.get("silence_minutes", SILENCE_S / 60)) * 60
        self._run_storage: RunStorage | None = None

    @property
    def storage_url(self) -> str:
        """URL of the storage folder. Raises `ConfigError` if it is not set."""
        if url := self.options.get("depot"):
            return str(url)
        raise ConfigError(
            f"{self.name} needs a storage folder that your workers can reach, for data and results",
            fix=f'[hosts.{self.name}.options] depot = "s3://bucket/runs"   in orchestrate.toml '
            "(or gs://..., hf://buckets/..., or file:///... for a shared disk)",
        )

    @property
    def depot_on_disk(self) -> bool:
        """True if the storage folder's URL is a path on this machine. Also true if no storage folder is set,
        because nothing is stored then."""
        return str(self.options.get("depot", "/")).startswith(("file://", "/"))

    @property
    def run_storage(self) -> RunStorage:
        if self._run_storage is None:
            self._run_storage = RunStorage(self.storage_url)
        return self._run_storage

    @property
    def secrets(self) -> dict[str, str]:
        """Environment variables of this machine that a worker needs to access the storage and gated models.
        They are sent through the place's own mechanism for secrets, and are never part of the run's
        manifest."""
        more: list[str] = self.options.get("pass_env", [])
        names = [*PASSED, *more]
        found = {name: os.environ[name] for name in names if os.environ.get(name)}
        for name, value in found.items():
            if _SECRET.search(name):
                Secret(value)  # is hidden from now on in all texts: what a platform says may hold it
        return found

    def require(self) -> None:
        _ = self.run_storage
        launcher.require_packages("pinning the worker's packages to the versions installed here")

    # -- implemented by each place ---------------------------------------------------------------------------

    @abstractmethod
    def submit(self, manifest: RunManifest, resources: Resources, env: dict[str, str]) -> None:
        """Start one worker, tagged with the manifest's ref. Its environment variables are `env` and the
        secrets that it needs. Called only if the run has no worker. Raises the same errors as `start`."""

    def paid(self, ref: str) -> Hourly | None:
        """Return the actual hourly price of the newest worker's machine, or `None` if only the price quoted
        before its start is known."""
        del ref
        return None

    # -- prices ----------------------------------------------------------------------------------------------

    def hourly(self, found: Iterable[Placed]) -> dict[str, Hourly]:
        """Return the hourly price of each worker, keyed by its id. Includes workers that other machines
        started. Leaves out workers with an unknown price."""
        prices = {one.id: self._hour_of(one) for one in found}
        return {id: price for id, price in prices.items() if price is not None}

    def _hour_of(self, one: Placed) -> Hourly | None:
        """Return the hourly price as the place reports it, else as it was read for this run, else the
        place's general price."""
        for ask in (self.paid, self.price_of):
            with suppress(OrchestrateError):
                if (found := ask(one.ref)) is not None:
                    return found
        with suppress(OrchestrateError):
            return self.price(Resources(machine=one.machine))
        return None

    def price_of(self, ref: str) -> Hourly | None:
        """Return the hourly price of the run's machine. Prefers the price that was read after the newest
        start over the one that was read before it. Raises `HostUnavailable` if the storage can't be read."""
        if (found := self.price_read(ref)) is not None:
            return found
        stored = self.run_storage.run(ref)
        manifest = read_manifest(stored) if stored.read("order.json") is not None else None
        if manifest is None or manifest.limits.usd_per_hour is None:
            return None
        return Hourly(
            usd_per_hour=manifest.limits.usd_per_hour,
            machine=decoding.convert(manifest.job.resources, Resources).machine or self.name,
            source="price fetched before the run started",
            as_of=manifest.job.created_at,
        )

    # -- runs started by other machines ----------------------------------------------------------------------

    @property
    def mark(self) -> str:
        """Id of this place, stored in the manifest of each of its runs. It tells the runs of several places
        apart that share one storage folder."""
        return f"{type(self).__name__}, {self.account()}"

    def stored(self) -> list[str]:
        """List the refs of this place's runs in the storage folder, including runs that the place no longer
        lists. Raises `HostUnavailable` if the storage can't be read."""
        mark, found = self.mark, list[str]()
        for ref in self.run_storage.names("runs"):
            with suppress(HostUnavailable):  # its order is of another version
                if read_manifest(self.run_storage.run(ref)).place == mark:
                    found.append(ref)
        return found

    def hard_end_s(self, limits: WorkerLimits) -> float | None:
        """Return the working time in seconds after which the place stops the machine even if its worker
        continues, or `None` if the place never stops it."""
        return limits.seconds

    # -- the interface of `Place` ----------------------------------------------------------------------------

    def start(self, run: RunDir, resources: Resources, ref: str) -> None:
        if _at_work(self.find(ref)):
            return
        stored = self.run_storage.run(ref)
        resources = self._priced(allowed(stored, resources))
        left = self._with_time_left(run, resources)
        manifest = write_manifest(self.run_storage, run.job(), resources.limits, self.mark)
        # The upload may have taken so long that another process has started a worker in the meantime.
        there = self.find(ref)
        if _at_work(there):
            return
        stored.write("control", (run.asked() or "").encode())
        stored.write(PRICE, b"")
        starts = _starts(run)
        before = lease.attempts(stored)
        known = tuple(one.id for one in there)
        kept = Starts(count=starts.count + 1, attempts=before, known=known)
        write_whole(run.path / ".starts.json", kept.to_json())
        self._await_it(run)
        state = run.written_state()
        if state.status == "paused":  # else whoever waits for it would take it for paused still
            queued = msgspec.structs.replace(state, status="queued", error=None, updated_at=now())
            self._say(run, queued)
        try:
            self.submit(manifest, left, environment(self.run_storage, manifest))
        except OutcomeUnknown as error:
            error.message = redact_text(error.message)
            raise
        except Exception as error:
            (run.path / "worker.json").unlink(missing_ok=True)
            with suppress(HostUnavailable):
                self._say(run, state)
            if isinstance(error, ProviderError):
                error.message = redact_text(error.message)
            raise
        with suppress(HostUnavailable):
            if stored.read("control"):  # asked meanwhile, by one who found no worker to end
                self.stop(ref)

    def _say(self, run: RunDir, state: JobState) -> None:
        if state != run.written_state():
            run.write_state(state)
            self.settle(run)

    def _with_time_left(self, run: RunDir, resources: Resources) -> Resources:
        """Set the remaining time as the limit that the platform enforces. Raises `InvalidRequest` if none
        remains, because a machine that starts only to stop is billed."""
        most, found = resources.limits.seconds, self._allowance(run, resources.limits)
        if most is None:
            return resources
        if not found.used_s:
            if most < LEAST_S:  # rounded to 0 s, it would be no limit at all to the platform
                message = f"a limit of {duration(most)} ends before a machine can train"
                raise InvalidRequest(self.name, message, fix="set a higher max_hours or max_cost_usd")
            return resources
        if not found.holds(found.used_s + LEAST_S):
            message = f"the run has used {duration(found.used_s)} of at most {duration(most)}"
            raise InvalidRequest(self.name, message, fix=f"orchestrate resume {run.ref} {found.least()}")
        hours = (most - found.used_s) / 3600
        limits = msgspec.structs.replace(resources.limits, max_usd=None, max_hours=hours)
        return msgspec.structs.replace(resources, limits=limits)

    def allowance(self, run: RunDir) -> Allowance:
        """Return the run's limits and usage. Uses the hourly price read after the newest start, or else the
        one read before it. Raises `HostUnavailable` if the storage can't be read."""
        limits, hourly = read_manifest(self.run_storage.run(run.ref)).limits, self.price_read(run.ref)
        if hourly is not None:
            limits = msgspec.structs.replace(limits, usd_per_hour=hourly.usd_per_hour)
        return self._allowance(run, limits)

    def _allowance(self, run: RunDir, limits: WorkerLimits) -> Allowance:
        """Return the allowance, with the usage by the workers' clocks, or by the place's clock, which
        also covers the time before they started."""
        used = self.usage(run.ref)
        return Allowance(
            max_hours=limits.max_hours,
            max_usd=limits.max_usd,
            usd_per_hour=limits.usd_per_hour,
            used_s=max(self.worked_s(run.ref), used.seconds if used else 0.0),
            remaining_s=run.written_state().eta_seconds,
        )

    def worked_s(self, ref: str) -> float:
        """Return the total working time of the run's workers in seconds, measured by their own clocks."""
        return lease.used_s(self.run_storage.run(ref))

    def _priced(self, resources: Resources) -> Resources:
        """Add the place's current price. Raises `OverBudget` if it is above `max_usd_per_hour`."""
        hourly, limits = self.price(resources), resources.limits
        if hourly is None:
            return resources
        require_within(
            self.name,
            hourly.usd_per_hour,
            limits.most_usd_per_hour,
            what="max_usd_per_hour",
            figure=f"one hour of {hourly.machine}",
            fix="raise max_usd_per_hour, or choose another gpu",
        )
        limits = msgspec.structs.replace(limits, usd_per_hour=hourly.usd_per_hour)
        return msgspec.structs.replace(resources, limits=limits)

    def usage(self, ref: str) -> Usage | None:
        """Return the run's usage, measured by its workers' own clocks. This is the default for places that
        don't measure usage, and the fallback for runs that a place no longer lists."""
        seconds = self.worked_s(ref)
        # A worker that never reported may still have been billed, so its cost is unknown rather than 0.
        return Usage.at(self.price_of(ref) if seconds else None, seconds, "time measured by the worker")

    # -- the run directory -----------------------------------------------------------------------------------

    def look(self, run: RunDir) -> None:
        reported = storage.look(run, self.run_storage.run(run.ref), _starts(run).attempts)
        state = run.written_state()
        fresh = reported and (run.heartbeat_age() or 0.0) < FRESH_S
        if fresh and state.status == "running":
            self._read_price(run)
        if fresh or state.terminal or state.status == "paused":
            return
        placed = self._newest(run)
        if placed is None or placed.state == "unknown":
            return
        if placed.state == "ended":
            if run.asked() is None and self._left(run, placed):
                return
            if not reported:
                self._report_early_end(run, placed)
            if run.had_worker():
                os.utime(run.path / "worker.json", (0, 0))
        elif not reported:
            self._await_it(run)

    def _read_price(self, run: RunDir) -> None:
        """Read the price once for each machine that got the run: a catalog may show less than what is
        charged. The worker reads it in the storage, and pauses the run where it is above the cap."""
        mark, worker = run.path / ".priced", (run.path / "worker.json").read_bytes()
        if mark.is_file() and mark.read_bytes() == worker:
            return
        with suppress(HostUnavailable):  # at the next look
            if (hourly := self.paid(run.ref)) is not None:
                self.run_storage.run(run.ref).write(PRICE, hourly.to_json())
            write_whole(mark, worker)

    def price_read(self, ref: str) -> Hourly | None:
        """Return the hourly price that was read after the newest start, or `None`."""
        return self.run_storage.run(ref).record(PRICE, Hourly)

    def _report_early_end(self, run: RunDir, placed: Placed) -> None:
        """Report, once for each worker that ended before its first report, what it printed: only its
        place has that."""
        mark = run.path / ".unreported"
        if mark.is_file() and mark.read_text() == placed.id:
            return
        printed = redact_text(self.output(run.ref))
        last = printed.strip().rpartition("\n")[2]
        reason = redact_text(placed.message or "") or last or placed.raw_state
        with open(run.log, "a", encoding="utf-8", opener=opener) as log:
            log.write(printed + "\n")
        run.add_event(
            f"the worker ended before its first report: {reason}", level="error", type="interrupted"
        )
        write_whole(mark, placed.id.encode())

    def _left(self, run: RunDir, placed: Placed) -> bool:
        """Return whether an ended worker's run is paused and left to its user. A user who ended the
        worker in the place's own console does not want another one started, and a worker that the place
        ended at its limit may not be followed by another."""
        found = self._at_limit(run)
        if found is not None:
            code = "limit"
            message = f"{self.name} stopped the worker because the run reached its limit: {found}"
        elif placed.raw_state in self.by_hand:
            code = ENDED_THERE
            message = f"{self.name} stopped its worker ({placed.raw_state.lower()}). "
            message += "To start another worker: orchestrate resume"
        else:
            return False
        error = JobError(code=code, message=message)
        state = msgspec.structs.replace(run.written_state(), status="paused", stage=None, error=error)
        self._say(run, msgspec.structs.replace(state, updated_at=now()))
        run.add_event(message, level="warning", type="paused", step=state.step)
        if run.had_worker():
            os.utime(run.path / "worker.json", (0, 0))
        return True

    def _at_limit(self, run: RunDir) -> str | None:
        """Return what was used if too little is left for another start, otherwise `None`."""
        with suppress(ProviderError):
            found = self.allowance(run)
            if found.used_s and not found.holds(found.used_s + LEAST_S):
                return duration(found.used_s)
        return None

    def forward_action(self, run: RunDir) -> None:
        """Forward this run's pause or cancel request to its worker.

        On a pause request, a worker that still reports gets time to save a checkpoint. A worker that has not
        reported recently, or has not paused in time, is stopped.
        """
        action = run.asked()
        self.run_storage.run(run.ref).write("control", (action or "").encode())
        placed = self.state(run.ref) if action == "pause" else None
        if placed is not None and placed.state != "ended" and not self._responds(run):
            self.stop(run.ref)

    def _responds(self, run: RunDir) -> bool:
        """Return True if the worker of the last start has reported recently and the request to it is not
        old."""
        silent_s = storage.silent_s(run, _starts(run).attempts)
        return (
            silent_s is not None
            and silent_s <= process.FOREIGN_HEARTBEAT_S
            and run.request_age_s() < RESPONSE_S
        )

    def settle(self, run: RunDir) -> None:
        """Upload the state of a run that has no worker, after this machine changed the state."""
        self.run_storage.run(run.ref).write("status.json", run.written_state().to_json())

    def bring(self, run: RunDir, folder: Path) -> None:
        storage.bring(run, self.run_storage.run(run.ref), folder)

    def lost(self, run: RunDir) -> bool:
        """Return True if no worker can still be running. A worker may be running even if the place doesn't
        list it. In that case, this returns True only once the last report is so old that the worker has
        stopped itself."""
        placed = self._newest(run)
        if placed is not None and placed.state != "unknown":
            return placed.state == "ended"
        age = run.heartbeat_age()
        return age is None or age > self.silence_s + MARGIN_S

    def _newest(self, run: RunDir) -> Placed | None:
        """Return the worker of the last start, or `None` while the place's list is older than that start."""
        placed = self.state(run.ref)
        return None if placed is not None and placed.id in _starts(run).known else placed

    def starts(self, run: RunDir) -> int:
        return _starts(run).count

    def forget(self, run: RunDir) -> None:
        self.run_storage.run(run.ref).remove()

    def _await_it(self, run: RunDir) -> None:
        """Record that a worker exists or is starting, but has not reported yet."""
        worker = process.WorkerId(pid=0, started="", machine=self.name)
        write_whole(run.path / "worker.json", worker.to_json())


def next_name(ref: str, names: Iterable[str]) -> str:
    """Return the name of a run's next attempt: the ref, then `REF-2` and so on. Counts from the highest
    number, because a place may have deleted its record of an earlier attempt, and a name that is in use
    would be taken for an attempt that has ended."""
    numbers = [int(name.removeprefix(ref).removeprefix("-") or 1) for name in names]
    return f"{ref}-{max(numbers) + 1}" if numbers else ref


def _at_work(found: Iterable[Placed]) -> bool:
    return any(one.state != "ended" for one in found)


def _starts(run: RunDir) -> Starts:
    try:
        return Starts.from_json((run.path / ".starts.json").read_bytes())
    except (OSError, msgspec.MsgspecError):
        return Starts()


_SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)
PASSED = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_ENDPOINT_URL",
    "AWS_ENDPOINT_URL_S3",
    "AWS_DEFAULT_REGION",
    "AWS_REGION",
    "HF_TOKEN",
    "HF_ENDPOINT",
)
"""Environment variables passed to workers, for S3 and compatible services and for the Hugging Face Hub.
Workers access a GCS bucket with their machine's own account."""
