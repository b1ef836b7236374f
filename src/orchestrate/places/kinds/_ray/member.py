"""One of several workers that Ray Train has started. torch.distributed is set up, and Ray assigns rank, world
size and device. The first worker has the run directory and reports to the storage, like a single worker. The
others help it.

Any error ends the worker. Ray then stops the others and restarts all of them, and the first checks in the
storage whether anything is left to do."""

# torch is only partly typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from orchestrate.core.files import write_whole
from orchestrate.errors import HostUnavailable, OrchestrateError, RunFailed
from orchestrate.local.job import LocalJob
from orchestrate.local.run import JobState, RunDir, helper, worker
from orchestrate.local.run.parallel import LESS, Met
from orchestrate.local.space import disk_is_full
from orchestrate.places import storage
from orchestrate.places.lease import RunLease, Signs, Superseded, boot_time
from orchestrate.places.manifest import read_manifest, room, unpack
from orchestrate.places.remote import REPORT_S, SILENT, TrainingAttempt, TrainingProcess
from orchestrate.places.storage import Pulse, RunStorage, StoredRun, restore
from orchestrate.types import JobError

ALIKE = ("torch", "transformers", "tokenizers", "peft")
"""Packages that determine a run's rows and weights. All workers must have the same versions."""


class MemberProcess:
    """The training engine in this process, which has joined the other workers. Killing it ends the entire
    process."""

    def __init__(self, run: RunDir, met: Met, device: torch.device, end: Callable[[int], object]) -> None:
        self.run, self.met, self.device, self.end = run, met, device, end
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        with self.run.log.open("a") as log, redirect_stdout(log), redirect_stderr(log):
            worker.main(str(self.run.path), self.met)

    def running(self) -> bool:
        return self._thread.is_alive()

    def kill(self) -> None:
        if self.running():
            self.end(1)

    def close(self) -> None:
        self._thread.join()


class FirstWorker(TrainingAttempt):
    """The first of several workers, which owns the run."""

    def __init__(
        self, lease: RunLease, folder: Path, met: Met, device: torch.device, report_s: float, apart: str = ""
    ) -> None:
        """Prepare the attempt. `apart` states why the workers can't train together. It is empty if they
        can."""
        self._taken, self.met, self.device, self._apart = lease, met, device, apart
        super().__init__(lease.stored.run_storage, lease.stored.ref, folder, report_s=report_s)

    def _acquired(self) -> RunLease:
        return self._taken

    def _fitted(self, job: LocalJob) -> LocalJob:
        if self._apart:
            raise RunFailed(
                self._apart, fix="use the same image on all nodes of the cluster, or set packages = pinned"
            )
        return fitted(job, self.met)

    def _begun(self) -> TrainingProcess:
        return MemberProcess(self.run, self.met, self.device, self.end)


def fitted(job: LocalJob, met: Met) -> LocalJob:
    """Set the job's number of processes to the number of workers that have joined. A step keeps its
    examples, and each worker gets more or fewer of them."""
    return msgspec.structs.replace(job, hyper=msgspec.structs.replace(job.hyper, processes=met.processes))


def main(given: dict[str, Any]) -> None:
    """Run the job in this worker. `given["under"]` is the token of the job's attempt."""
    import ray.train
    import ray.train.torch

    context: Any = ray.train.get_context()
    device: Any = ray.train.torch.get_device()
    met = Met(context.get_world_rank(), context.get_world_size())
    stored = RunStorage(os.environ["ORCHESTRATE_DEPOT"]).run(os.environ["ORCHESTRATE_REF"])
    report_s = float(os.environ.get("ORCHESTRATE_REPORT_S", REPORT_S))
    lease = acquired(stored, given["under"]) if met.rank == 0 else None
    shared: list[Any] = [lease and lease.number]
    dist.broadcast_object_list(shared, src=0)
    if shared[0] is None:
        return
    silence_s = read_manifest(stored).limits.silence_s
    guarded = (stored, given["under"], shared[0], report_s, silence_s)
    threading.Thread(target=_guard, args=guarded, daemon=True).start()
    versions: list[dict[str, str]] = [{}] * met.processes
    dist.all_gather_object(versions, {name: version(name) for name in ALIKE})
    with room() as folder:
        if lease is None:
            _help(stored, Path(folder), met)
            return
        code = FirstWorker(lease, Path(folder), met, device, report_s, differing(versions)).work()
        if code or (met.processes > 1 and not met.released):
            raise RuntimeError(f"the first worker exited with code {code}, so all others are stopped")


def differing(versions: list[dict[str, str]]) -> str:
    """Describe packages whose versions differ between workers, because rows or weights would then differ
    too."""
    first = versions[0]
    found = [
        f"worker {number} has {name} {there[name]}, but the first worker has {first[name]}"
        for number, there in enumerate(versions, 1)
        for name in first
        if there[name] != first[name]
    ]
    return "; ".join(found)


def acquired(stored: StoredRun, under: str) -> RunLease | None:
    """Claim the run. Returns `None` if nothing remains to be done, because an earlier start of the workers
    finished the run, or another job has it. A run that an earlier job paused is resumed, however often
    this job has to start."""
    pulse = stored.read("pulse.json")
    try:
        lease = RunLease(stored, under)
    except Superseded:
        return None
    status = stored.read("status.json")
    state = JobState.from_json(status) if status else None
    if state is None:
        return lease
    report = Pulse.from_json(pulse) if pulse else None
    ended = report is not None and report.ended and report.attempt >= lease.first
    return None if state.terminal or (state.status == "paused" and ended) else lease


def _help(stored: StoredRun, folder: Path, met: Met) -> None:
    try:
        _assist(stored, folder, met)
    except BaseException as error:
        record_error(stored, met, error)
        raise


def record_error(stored: StoredRun, met: Met, error: BaseException) -> None:
    """Record errors that would recur however often the workers are restarted, on the first worker. Ray
    reports all other errors to the job."""
    code, status, fix = type(error).__name__, "failed", getattr(error, "fix", None)
    if disk_is_full(error):
        code, status = "disk_full", "paused"
    elif isinstance(error, SystemExit):
        error = RunFailed("ran out of memory")
        code, fix = "RunFailed", LESS
    elif not isinstance(error, OrchestrateError) or error.retryable:
        return
    message = f"worker {met.rank + 1} of {met.processes}: {error}" + (f" ({fix})" if fix else "")
    storage.say(stored, storage.state_of(stored), status, JobError(code=code, message=message))


def _assist(stored: StoredRun, folder: Path, met: Met) -> None:
    run, manifest = helper.Silent(folder / stored.ref), read_manifest(stored)
    if manifest.job.hyper.sharded:
        restore(run, stored)
    run.path.mkdir(exist_ok=True)
    job = fitted(unpack(manifest, stored.run_storage, folder / "given"), met)
    write_whole(run.path / "job.json", msgspec.json.format(job.to_json()))
    helper.assist(run, met)


def _guard(stored: StoredRun, under: str, number: int, report_s: float, silence_s: float) -> None:
    """End this worker when the job that started it has ended or other workers have replaced it, independently
    of Ray."""
    signs, last_contact = None, boot_time()
    while True:
        try:
            signs = signs or Signs(stored, under, number, boot_time)
            if not signs.newest or signs.silent_s > silence_s:
                os._exit(1)
            last_contact = boot_time()
        except Superseded:
            os._exit(1)
        except (HostUnavailable, OSError):  # the next look may go through
            pass
        if boot_time() - last_contact > silence_s:
            os._exit(SILENT)
        time.sleep(report_s)
