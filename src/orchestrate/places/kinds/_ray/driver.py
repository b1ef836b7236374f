"""Driver of a job with several workers, which runs instead of `orchestrate.places.remote`. Ray Train runs the
workers on as many nodes as needed, and restarts them when one is lost.

The driver does not train. It holds the run's attempt and its watchdog, and Ray stops all workers when the
driver exits. Exit codes: 0 if the storage has the run's state, 75 if the storage could not be reached for too
long, and 1 otherwise."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from packaging.version import Version

from orchestrate.errors import HostUnavailable
from orchestrate.local.run import JobState, launcher
from orchestrate.places import lease, storage
from orchestrate.places.base import PRICE, Hourly, Resources
from orchestrate.places.lease import RunLease, Watchdog
from orchestrate.places.manifest import FETCH, read_manifest, room
from orchestrate.places.remote import GRACE_S, LOOK_S, REPORT_S, SILENT
from orchestrate.places.storage import Pulse, RunStorage, StoredRun
from orchestrate.text import count, duration
from orchestrate.types import JobError, decoding

LEAST = "2.55"
"""First version of Ray Train that accepts a range for the number of workers."""
FAILURES = 5
"""Number of failures after which Ray stops restarting the workers. A process that watches the run may still
start another job."""
RESIZE_S = 900.0
"""Interval, in seconds, at which Ray checks if the cluster has room for more workers. Each change of their
number loses the progress since the last checkpoint."""
START_S = 3600.0
"""Maximum time in seconds to wait for a report from a worker, at the start or after a worker was lost.
Includes starting machines and installing packages."""
LEAVE_S = 60.0
"""Seconds to wait for Ray to stop its workers after the run ends."""
NEVER_S = 365 * 86400
"""Maximum time in seconds that the other workers wait while the first one evaluates and saves. Practically
unlimited, because a crash of the first worker is detected separately."""
MAX_ERROR_CHARS = 600
"""Maximum number of characters of a worker's error to report."""
_log = logging.getLogger(__name__)


def work(given: dict[str, Any]) -> None:
    """Run one worker's process, which doesn't have our code yet, so this function is sent as it is."""
    exec(given["fetch"])  # noqa: S102  as `manifest.BOOT`
    from orchestrate.local.run import importing

    with importing():
        from orchestrate.places.kinds._ray import member

    member.main(given)


class Driver:
    """Drives the training. `fit` trains until no worker is left. `end` ends this process and can be called
    from any thread."""

    def __init__(
        self,
        stored: StoredRun,
        fit: Callable[[RunLease], object],
        *,
        report_s: float = REPORT_S,
        start_s: float = START_S,
        leave_s: float = LEAVE_S,
        end: Callable[[int], object] = os._exit,
    ) -> None:
        self.stored, self.fit, self.end = stored, fit, end
        self.report_s, self.start_s, self.leave_s = report_s, start_s, leave_s
        self.lease = RunLease(stored)
        self.watchdog = Watchdog(read_manifest(stored).limits, self.lease.earlier_s)
        self.fitted, self.superseded = threading.Event(), threading.Event()
        self.begun, self.settled = threading.Event(), threading.Event()
        self.last_report = self.watchdog.clock()
        """Time at which a worker last reported, in seconds on the watchdog's clock."""
        self.action = ""
        """Requested action, `pause` or `cancel`, if no worker can carry it out."""
        self.fault = ""

    def work(self) -> int:
        for task in (self._fit, self._keep_reporting):
            threading.Thread(target=task, daemon=True).start()
        code = self._watch()
        if not self.fitted.is_set():
            self.end(code)
        return code

    def _fit(self) -> None:
        try:
            self.fit(self.lease)
        except Exception as error:  # noqa: BLE001  Ray's own, of many kinds; the run storage holds the state
            self.fault = reason(error)
            _log.error("%s: %s", type(error).__name__, error)
            with suppress(HostUnavailable, OSError):
                self._report_failure()
        finally:
            self.fitted.set()

    def _report_failure(self) -> None:
        """Record the failure as an event. No worker is left to do so, and the job's log is on the cluster."""
        if self._settled():
            return
        starts = lease.attempts(self.stored) - self.lease.number
        message = f"Ray started the workers {count(starts, 'time')} in this job. Last failure: {self.fault}"
        storage.add_event(self.stored, message, level="error", type="interrupted")

    def _watch(self) -> int:
        """Watch the run. Contacts nothing, so a hanging call cannot delay the run's end."""
        over = left = None
        while not self.fitted.wait(LOOK_S):
            clock, due = self.watchdog.clock(), self.watchdog.due()
            if self.superseded.is_set():
                _log.error("this attempt stops because another one has taken over the run")
                return 1
            if due is not None:
                over = over or clock
                if due[0] == "silence":
                    _log.error("%s. Stopping this job and all its workers", due[1])
                    return SILENT
                # If a worker is running, the first one reports this itself, after saving a checkpoint.
                if not self.begun.is_set() or clock - over > 3 * GRACE_S:
                    message = f"the job stopped itself: {due[1]}"
                    return self._say("paused", JobError(code="limit", message=message))
            if self.action:
                return self._say("paused" if self.action == "pause" else "cancelled")
            if clock - self.last_report > self.start_s:
                message = (
                    f"no workers started within {duration(self.start_s)} because the cluster lacks "
                    "free resources"
                )
                return self._say("failed", JobError(code="no_room", message=f"{message} (ray status)"))
            if self.settled.is_set():
                left = left or clock
                if clock - left > self.leave_s:
                    return 0
        return 0 if self._settled() else 1

    def _say(self, status: str, error: JobError | None = None) -> int:
        """Record the run's state on behalf of its workers, in a thread that is awaited for a limited time."""
        _log.error("%s", error.message if error else status)
        writing = threading.Thread(target=self._write_status, args=(status, error), daemon=True)
        writing.start()
        writing.join(self.leave_s)
        return 0 if status != "failed" and not writing.is_alive() else 1

    def _write_status(self, status: str, error: JobError | None) -> None:
        """Write the status. A run that has trained and lost its place is paused: it resumes from its
        checkpoint when there is room again, which a failed run could not."""
        state = storage.state_of(self.stored)
        if state.terminal:
            return
        if status == "failed" and storage.newest_step(self.stored):
            status = "paused"
        storage.say(self.stored, state, status, error)

    # -- run storage -----------------------------------------------------------------------------------------

    def _keep_reporting(self) -> None:
        pulse: bytes | None = None
        while not self.fitted.wait(self.report_s):
            with suppress(HostUnavailable, OSError):  # the next one may go through
                if not self.lease.holds:
                    self.superseded.set()
                    return
                if price := self.stored.read(PRICE):
                    self.watchdog.costs(Hourly.from_json(price).usd_per_hour)
                self.lease.used(self.watchdog.used_s)
                if lease.attempts(self.stored) > self.lease.number:
                    self.begun.set()
                if (newest := self.stored.read("pulse.json")) != pulse:
                    pulse, self.last_report = newest, self.watchdog.clock()
                self._read_action()
                if self._settled():
                    self.settled.set()
                self.watchdog.reported()

    def _read_action(self) -> None:
        """Read the requested action while no first worker can."""
        if self.begun.is_set() and self.watchdog.clock() - self.last_report < GRACE_S:
            return
        action = (self.stored.read("control") or b"").decode("ascii", "replace").strip()
        if action in ("pause", "cancel"):
            self.action = action

    def _settled(self) -> bool:
        """Return whether the storage records how the run ended or paused, by the newest worker of this
        job."""
        try:
            pulse, status = self.stored.read("pulse.json"), self.stored.read("status.json")
        except (HostUnavailable, OSError):
            return False
        if not status or not pulse:
            return False
        last, state = Pulse.from_json(pulse), JobState.from_json(status)
        mine = last.ended and last.attempt > self.lease.number
        return mine and (state.terminal or state.status == "paused")


def fitting(stored: StoredRun, scratch: str) -> Callable[[RunLease], object]:
    """Return the function that runs the training. `scratch` is a folder that Ray Train requires. It stays
    empty."""
    import ray as installed
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    if Version(installed.__version__) < Version(LEAST):
        raise RuntimeError(
            f"the cluster has Ray {installed.__version__}, but training on several workers needs {LEAST} "
            "or newer"
        )
    ray: Any = installed
    manifest = read_manifest(stored)
    resources = decoding.convert(manifest.job.resources, Resources)
    processes, least = manifest.job.hyper.processes, resources.min_processes
    gpu = resources.gpu is not None
    each = {"CPU": float(manifest.job.threads or 1), **({"GPU": 1.0} if gpu else {})}
    here = launcher.worker_environment(manifest.job.threads)
    env = {name: value for name, value in here.items() if os.environ.get(name) != value}

    def fit(own: RunLease) -> object:
        ray.init(log_to_driver=True)
        if shortage := lacking(each, least or processes, ray.cluster_resources()):
            storage.add_event(stored, shortage, level="warning", type="waiting")
        given = {"fetch": FETCH, "under": own.token}
        return TorchTrainer(
            work,
            train_loop_config=given,
            torch_config=TorchConfig(backend="cpu:gloo,cuda:nccl" if gpu else "gloo", timeout_s=NEVER_S),
            scaling_config=ScalingConfig(
                num_workers=processes if least is None else (least, processes),
                use_gpu=gpu,
                resources_per_worker=each,
                elastic_resize_monitor_interval_s=RESIZE_S,
            ),
            run_config=RunConfig(
                name=stored.ref,
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=FAILURES),
                worker_runtime_env={"env_vars": env},
            ),
        ).fit()

    return fit


def lacking(each: dict[str, float], workers: int, there: dict[str, float]) -> str:
    """Describe which resources the cluster currently has too little of for this many workers. Empty if
    there is enough."""
    short = [
        f"{there.get(name, 0):g} of {amount * workers:g} {name}s for {count(workers, 'worker')}"
        for name, amount in each.items()
        if there.get(name, 0) < amount * workers
    ]
    return f"waiting for resources. The cluster has {' and '.join(short)} (see: ray status)" if short else ""


def reason(error: Exception) -> str:
    """Format the reason of each worker that failed, otherwise Ray's own, on one line."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    if not failures:
        return _brief(getattr(error, "controller_failure", error))
    return "; ".join(f"worker {rank + 1}: {_brief(one)}" for rank, one in sorted(failures.items()))


def _brief(error: BaseException) -> str:
    """Shorten an error to one line. Ray names an actor on separate lines and then its cause of death."""
    inner = getattr(error, "health_check_failure", error)
    lines = [line for line in str(inner).splitlines() if line.strip() and not line.startswith("\t")]
    return f"{type(inner).__name__}: {' '.join(lines)}"[:MAX_ERROR_CHARS]


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    stored = RunStorage(os.environ["ORCHESTRATE_DEPOT"]).run(os.environ["ORCHESTRATE_REF"])
    seconds = float(os.environ.get("ORCHESTRATE_REPORT_S", REPORT_S))
    start = float(os.environ.get("ORCHESTRATE_START_S", START_S))
    with room() as scratch:
        code = Driver(stored, fitting(stored, scratch), report_s=seconds, start_s=start).work()
    # Exit without waiting for threads that are blocked on the storage or on Ray.
    os._exit(code)


if __name__ == "__main__":
    main()
