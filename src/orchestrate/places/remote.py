"""The remote worker: `python -m orchestrate.places.remote`, with the environment variables from
`manifest.environment`.

It downloads the run's manifest, continues from the newest checkpoint of earlier attempts, starts the training
worker in a run directory on its machine, and reports to the storage.

Exit codes: 0 if the storage has the run's outcome, 75 if reports failed for too long, and 1 otherwise. After
1, another attempt resumes the run from its newest checkpoint.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import msgspec

from orchestrate.core.files import PRIVATE_UMASK, write_whole
from orchestrate.errors import HostUnavailable, OrchestrateError
from orchestrate.local import run
from orchestrate.local.job import LocalJob
from orchestrate.local.plan import throughput
from orchestrate.local.run import JobState, RunDir, launcher, now
from orchestrate.places.base import PRICE, Hourly
from orchestrate.places.lease import RunLease, Watchdog, boot_time
from orchestrate.places.manifest import RunManifest, read_manifest, room, unpack
from orchestrate.places.storage import Pulse, Reporter, RunStorage, restore
from orchestrate.types import JobError

REPORT_S = 10.0
GRACE_S = 120.0
"""Seconds that the training process gets to save a checkpoint before the worker stops."""
LOOK_S = 0.2
SILENT = 75
ENGINE = (sys.executable, "-P", "-m", "orchestrate.places.parent_watch")
_log = logging.getLogger(__name__)


class TrainingProcess(Protocol):
    """The process that trains in a run directory."""

    def running(self) -> bool: ...

    def kill(self) -> None:
        """Kill the process immediately, without waiting for it."""

    def close(self) -> None: ...


class RemoteProcess:
    """A child process."""

    def __init__(self, command: Sequence[str], log: Path, threads: int | None) -> None:
        with log.open("ab") as out:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                umask=PRIVATE_UMASK,
                env=launcher.worker_environment(threads),
            )

    def running(self) -> bool:
        return self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()

    def close(self) -> None:
        self._process.communicate()  # closes its line


class TrainingAttempt:
    """One attempt at training a run. `engine` is the command that trains in a run directory. `end` terminates
    this process and can be called from any thread."""

    def __init__(
        self,
        run_storage: RunStorage,
        ref: str,
        folder: Path,
        *,
        engine: Sequence[str] = ENGINE,
        report_s: float = REPORT_S,
        grace_s: float = GRACE_S,
        end: Callable[[int], object] = os._exit,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self.run_storage, self.stored = run_storage, run_storage.run(ref)
        self.run = RunDir(folder / ref)
        self.engine, self.report_s, self.grace_s, self.end = engine, report_s, grace_s, end
        self.manifest: RunManifest = read_manifest(self.stored)
        self.lease = self._acquired()
        self.watchdog = Watchdog(self.manifest.limits, self.lease.earlier_s, clock)
        self.preempted = threading.Event()
        """Set when a signal announces that the machine is being reclaimed."""
        self._superseded, self._ending, self._reported = (
            threading.Event(),
            threading.Event(),
            threading.Event(),
        )
        self._number = 0
        self._reporter: Reporter | None = None
        self._worker: TrainingProcess | None = None

    def work(self) -> int:
        for task in (self._guard, self._keep_reporting):
            threading.Thread(target=task, daemon=True).start()
        try:
            settled = self._train()
        except HostUnavailable:
            _log.exception("could not download the run's files")
            return 1
        except OrchestrateError as error:
            self._fail(error)
            settled = True
        self._ending.set()
        while not self._reported.wait(LOOK_S):
            if self._superseded.is_set():
                _log.error("this attempt stops because another one has taken over the run")
                return 1
        return 0 if settled else 1

    def _train(self) -> bool:
        """Train, and return whether the run is settled: it ended, or is paused."""
        restore(self.run, self.stored)
        job = unpack(self.manifest, self.run_storage, self.run.path.parent / "given")
        job = msgspec.structs.replace(job, paces=str(throughput.file_of(self.run.path)))
        write_whole(self.run.path / "job.json", msgspec.json.format(self._fitted(job).to_json()))
        if not (self.run.path / "status.json").exists():
            self.run.write_state(JobState(status="queued", updated_at=now()))
        self._reporter = Reporter(self.run, self.stored)
        if self.run.written_state().terminal:
            return True
        self._worker = self._begun()
        try:
            why = self._watch(self._worker)
        finally:
            self._worker.kill()
            self._worker.close()
        state = self.run.written_state()
        if why is not None and not state.terminal:
            self._left(why)
            return bool(why)
        return state.terminal or state.status == "paused"

    def _acquired(self) -> RunLease:
        return RunLease(self.stored)

    def _fitted(self, job: LocalJob) -> LocalJob:
        """Return the job as adapted to this worker."""
        return job

    def _begun(self) -> TrainingProcess:
        return RemoteProcess([*self.engine, str(self.run.path)], self.run.log, self.manifest.job.threads)

    def _watch(self, worker: TrainingProcess) -> str | None:
        """Watch until the worker has ended. Returns why it was requested to end, an empty string for a
        reclaimed machine, or `None` without such a request."""
        why, until = None, 0.0
        while worker.running() and not self._superseded.is_set():
            time.sleep(LOOK_S)
            found = self.watchdog.due()
            if why is None and (found is not None or self.preempted.is_set()):
                why, until = found[1] if found else "", self.watchdog.clock() + self.grace_s
                self.run.ask("pause")
            if why is not None and self.watchdog.clock() > until:
                break
        return why

    def _guard(self) -> None:
        """Guard the limits. Contacts and awaits nothing, so a hanging call cannot delay the worker's end."""
        over: float | None = None
        while not self._reported.wait(LOOK_S) and not self._superseded.is_set():
            found = self.watchdog.due()
            if found is None:
                continue
            over = over or self.watchdog.clock()
            if found[0] == "silence" or self.watchdog.clock() - over > 2 * self.grace_s:
                _log.error("%s. Stopping this worker", found[1])
                if self._worker is not None:
                    self._worker.kill()
                self.end(SILENT)
                return

    def _left(self, reason: str) -> None:
        """Record why training stopped. At a limit the run is paused, and the user may raise the limit. After
        a reclaimed machine, another one continues the run."""
        state = self.run.written_state()
        if reason:
            error = JobError(code="limit", message=f"the worker stopped itself: {reason}")
            changed = msgspec.structs.replace(
                state, status="paused", stage=None, updated_at=now(), error=error
            )
            self.run.add_event(error.message, level="warning", type="paused", step=state.step)
        else:
            changed = msgspec.structs.replace(state, status="running", stage=None, updated_at=now())
            self.run.add_event(
                "the cloud is reclaiming the machine", level="warning", type="preempted", step=state.step
            )
        self.run.write_state(changed)

    # -- reporting -----------------------------------------------------------------------------------------

    def _keep_reporting(self) -> None:
        """Report regularly, and after the end until the last report has succeeded."""
        while True:
            last = self._ending.is_set()
            with suppress(HostUnavailable, OSError):  # if none succeeds, the watchdog ends this process
                if not self._report(ended=last):
                    self._superseded.set()
                    return
                if last:
                    self._reported.set()
                    return
            if last:
                time.sleep(min(self.report_s, 1.0))
            else:
                self._ending.wait(self.report_s)

    def _report(self, *, ended: bool) -> bool:
        """Report. Returns False, with nothing sent, if another attempt owns the run."""
        if not self.lease.holds:
            return False
        action = (self.stored.read("control") or b"").decode("ascii", "replace").strip()
        if action in ("pause", "cancel") and self.run.path.is_dir() and self.run.asked() != action:
            self.run.ask(action)
        if price := self.stored.read(PRICE):
            self.watchdog.costs(Hourly.from_json(price).usd_per_hour)
        if self._reporter is not None:
            self._reporter.report()
        self.lease.used(self.watchdog.used_s)
        self._pulse(ended=ended)
        self.watchdog.reported()
        return True

    def _pulse(self, *, ended: bool) -> None:
        me = run.me()
        self._number += 1
        pulse = Pulse(
            attempt=self.lease.number,
            number=self._number,
            pid=me.pid,
            started=me.started,
            machine=me.machine,
            ended=ended,
        )
        self.stored.write("pulse.json", pulse.to_json())

    def _fail(self, error: OrchestrateError) -> None:
        problem = JobError(code=type(error).__name__, message=f"{error}")
        self.run.path.mkdir(parents=True, exist_ok=True)
        state = self.run.written_state()
        self.run.write_state(
            msgspec.structs.replace(
                state, status="failed", updated_at=now(), finished_at=now(), error=problem
            )
        )
        self.run.add_event(problem.message, level="error", type="failed")
        self._reporter = self._reporter or Reporter(self.run, self.stored)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    run_storage = RunStorage(os.environ["ORCHESTRATE_DEPOT"])
    seconds = float(os.environ.get("ORCHESTRATE_REPORT_S", REPORT_S))
    with room() as folder:
        attempt = TrainingAttempt(run_storage, os.environ["ORCHESTRATE_REF"], Path(folder), report_s=seconds)
        signal.signal(signal.SIGTERM, lambda _signal, _frame: attempt.preempted.set())
        code = attempt.work()
    if code:
        # Exit without joining the threads, because they may be blocked on storage that does not respond.
        sys.stdout.flush()
        os._exit(code)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
