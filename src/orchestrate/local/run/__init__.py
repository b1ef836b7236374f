"""Training runs: the run directory, the worker process, the training loop, checkpoints and export."""

from __future__ import annotations

import atexit
import gc
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

import msgspec

from orchestrate import settings
from orchestrate.core.files import locked, opener, private_folder, whole_folder, write_whole
from orchestrate.errors import RunFailed, UsageError
from orchestrate.local.job import LocalJob
from orchestrate.types import Event, JobError, JobStatus, MetricPoint, Record

# Identify a job's worker process and check that it is alive. Process ids are reused, so the start time is
# stored too.


NO_COMPILER = "TORCHDYNAMO_DISABLE"
"""Environment variable that disables torch's compiler if set to 1."""
FOREIGN_HEARTBEAT_S = 120.0
"""Maximum age in seconds of a remote worker's heartbeat. A worker with an older heartbeat counts as dead,
because its process cannot be checked from here."""


class WorkerId(Record, frozen=True, kw_only=True):
    pid: int
    started: str
    """Start time of the process, in the system's own format. Used only to tell processes with the same id
    apart."""
    machine: str


def me() -> WorkerId:
    pid = os.getpid()
    return WorkerId(pid=pid, started=started(pid) or "", machine=socket.gethostname())


def started(pid: int) -> str | None:
    """Return the start time of a process, or `None` if the process does not exist or is a zombie."""
    if platform.system() == "Linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat[stat.rfind(")") + 2 :].split()  # the command's name may hold blanks and brackets
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env=settings.of_child(),
    ).stdout.strip()
    return None if not shown or shown.startswith("Z") else shown.partition(" ")[2].strip()


def process_alive(path: Path) -> bool:
    """Return whether the worker named in the file at `path` is alive. A worker on another machine counts as
    alive while its heartbeat is recent."""
    try:
        worker = WorkerId.from_json(path.read_bytes())
        age = time.time() - path.stat().st_mtime
    except (OSError, msgspec.MsgspecError):
        return False
    if worker.machine != socket.gethostname():
        return age < FOREIGN_HEARTBEAT_S
    return started(worker.pid) == worker.started


@contextmanager
def importing(*, freeze: bool = False) -> Generator[None]:
    """Pause garbage collection while the training libraries load. They create a million permanent objects,
    and scanning these would take a seventh of the loading time. With `freeze`, later collections skip them
    too, which saves 4% of a short run's CPU time. Use it only if nothing is loaded that must be freed later.
    Also keeps bitsandbytes from loading torch's compiler, which takes 2 s and 40 MB, and transformers from
    loading scipy, which takes 0.3 s and 40 MB. Neither is used. scipy and sklearn can be imported
    afterwards."""
    asked = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    # Older releases of transformers load scipy through sklearn. One that is loaded may know that it is there.
    known = {"scipy", "transformers"} & sys.modules.keys()
    hidden = set[str]() if known else {"scipy", "sklearn"} - sys.modules.keys()
    sys.modules.update({name: cast("Any", None) for name in hidden})
    gc.disable()
    try:
        yield
    finally:
        if freeze:
            gc.freeze()
        gc.enable()
        if asked is None:
            del os.environ[NO_COMPILER]
        else:
            os.environ[NO_COMPILER] = asked
        for name in hidden:
            sys.modules.pop(name, None)
        with suppress(KeyError, AttributeError):  # not loaded, or a release without a cache
            sys.modules["transformers.utils.import_utils"].is_scipy_available.cache_clear()


def leave(code: int) -> NoReturn:
    """Exit the process quickly, after waiting for non-daemon threads and running exit handlers. A normal exit
    would also free the libraries' million objects one by one, which takes more than a second."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # whoever read it has gone, or it was never there
            stream.flush()
    os._exit(code)


# The run directory, which contains everything about a local job. Torch-free.


R = TypeVar("R", bound=Record)

STATUSES: dict[str, JobStatus] = {
    "queued": JobStatus.QUEUED,
    "preparing": JobStatus.VALIDATING,
    "running": JobStatus.RUNNING,
    "paused": JobStatus.PAUSED,
    "interrupted": JobStatus.PAUSED,
    "saving": JobStatus.FINALIZING,
    "cancelling": JobStatus.CANCELLING,
    "succeeded": JobStatus.SUCCEEDED,
    "failed": JobStatus.FAILED,
    "cancelled": JobStatus.CANCELLED,
}
"""Maps the engine's status strings to job statuses. `interrupted` is never written. Readers report it if the
worker is dead or was never started."""

HEARTBEAT_S = 2.0
STARTING_S = 10.0
"""Seconds after the creation of a run directory within which its worker must start. After that, the process
that created it counts as dead."""


class JobState(Record, frozen=True, kw_only=True):
    """The state of a job. `seconds` is the total training time over all of the job's workers."""

    status: str
    updated_at: datetime
    stage: str | None = None
    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    trained_tokens: int = 0
    seconds: float = 0.0
    tokens_per_second: float | None = None
    remaining_seconds: float | None = None
    """Estimated remaining seconds of training. `None` if unknown."""
    started_at: datetime | None = None
    finished_at: datetime | None = None
    early_stopped: bool = False
    attempt: int = 0
    error: JobError | None = None
    result: str | None = None
    """Name of the folder with the tuned weights."""
    cost_usd: Decimal | None = None
    """Cost in USD so far, for a training session that is not billed hourly."""

    @property
    def terminal(self) -> bool:
        return STATUSES.get(self.status, JobStatus.UNKNOWN).terminal

    @property
    def eta_seconds(self) -> float | None:
        if self.remaining_seconds is not None:
            return self.remaining_seconds
        if not self.total_steps or not self.step or self.seconds <= 0:
            return None
        return self.seconds / self.step * (self.total_steps - self.step)


class RunDir:
    """The folder of a job. Reading never changes the folder. Only the worker writes status, events and
    metrics."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).resolve()

    @property
    def ref(self) -> str:
        return self.path.name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        return self.path / "worker.log"

    @property
    def proof(self) -> Path:
        return self.path / "proof.json"

    def exists(self) -> bool:
        return (self.path / "job.json").is_file()

    # -- the job ---------------------------------------------------------------------------------------------

    @classmethod
    def make(cls, home: Path, job: LocalJob) -> tuple[RunDir, bool]:
        """Create the folder `home/ref` with its job, atomically. Returns the folder, and True if this call
        created it. If two callers use the same ref, only one of them creates the folder."""
        ref = job.ref
        if not ref or ref.startswith(".") or Path(ref).name != ref or "\x00" in ref:
            raise UsageError(f"{ref!r} is not a valid name for a run directory")
        private_folder(home)
        run = cls(home / job.ref)
        if run.exists():
            return run, False
        try:
            with whole_folder(run.path, replace=False) as draft:
                write_whole(draft / "job.json", msgspec.json.format(job.to_json()))
                state = JobState(status="queued", updated_at=now())
                write_whole(draft / "status.json", state.to_json())
        except OSError:
            if not run.exists():
                raise
            return run, False
        return run, True

    def job(self) -> LocalJob:
        """Read the job. Raises `RunFailed` if job.json is missing or invalid."""
        path = self.path / "job.json"
        try:
            return LocalJob.from_json(path.read_bytes())
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise RunFailed(
                f"this version of Orchestrate cannot read the job in {path}: {error}",
                fix="submit the run again. You can delete the run's folder",
            ) from error

    # -- state -----------------------------------------------------------------------------------------------

    def state(self) -> JobState:
        """Return the last state that the worker wrote. The status is `interrupted` if the worker died before
        it wrote a final state, or was never started because its parent process died."""
        state = self.written_state()
        if state.terminal or state.status == "paused" or self.alive():
            return state
        # The worker may have written its final state and exited since the first read.
        state = self.written_state()
        if state.terminal or state.status == "paused":
            return state
        if state.status == "queued" and not self.had_worker():
            # A worker that starts even later does no harm, because the lock lets only one worker run.
            age_s = (now() - state.updated_at).total_seconds()
            if age_s < STARTING_S:
                return state
        return msgspec.structs.replace(state, status="interrupted")

    def written_state(self) -> JobState:
        try:
            return JobState.from_json((self.path / "status.json").read_bytes())
        except (OSError, msgspec.MsgspecError):
            return JobState(status="interrupted", updated_at=now())

    def write_state(self, state: JobState) -> None:
        write_whole(self.path / "status.json", state.to_json())

    def alive(self) -> bool:
        """Return whether a live worker is registered for this job."""
        return process_alive(self.path / "worker.json")

    def had_worker(self) -> bool:
        return (self.path / "worker.json").exists()

    def heartbeat_age(self) -> float | None:
        """Return the seconds since the worker's last heartbeat, or `None` before the first one."""
        try:
            return max(0.0, time.time() - (self.path / "worker.json").stat().st_mtime)
        except OSError:
            return None

    def claim(self) -> None:
        """Register this process as the worker."""
        write_whole(self.path / "worker.json", me().to_json())

    def keep_beating(self, stop: threading.Event) -> None:
        """Update the heartbeat until `stop` is set. The worker calls this in a separate thread."""
        mine = me().to_json()
        while not stop.wait(HEARTBEAT_S):
            try:
                if (self.path / "worker.json").read_bytes() == mine:
                    os.utime(self.path / "worker.json")
                else:
                    self.claim()
            except OSError:
                continue

    # -- steering --------------------------------------------------------------------------------------------

    def ask(self, word: str | None) -> None:
        """Ask the worker to `pause` or `cancel`. `None` withdraws the request. A pause request never replaces
        a cancel request."""
        path = self.path / "control"
        if word is None:
            path.unlink(missing_ok=True)
        elif self.asked() not in (word, "cancel"):
            write_whole(path, word.encode())

    def asked(self) -> str | None:
        try:
            return (self.path / "control").read_text(encoding="utf-8").strip() or None
        except OSError:
            return None

    def request_age_s(self) -> float:
        """Return the seconds since the pending request was made, or 0 if there is none."""
        try:
            return max(0.0, time.time() - (self.path / "control").stat().st_mtime)
        except OSError:
            return 0.0

    def steering(self) -> AbstractContextManager[bool]:
        """Hold the pause lock, so that pausing a job and canceling a pause request cannot overlap. The worker
        holds the lock from its last check for a pause request until it has recorded the pause. A process that
        cancels a pause request holds the lock while it checks the job's state."""
        return locked(self.path / "steering", wait_s=None)

    def lock(self, *, wait_s: float = 0.0) -> AbstractContextManager[bool]:
        """Lock the job against other workers. Yields False if another worker holds the lock."""
        return locked(self.path / "lock", wait_s=wait_s)

    # -- events and metrics ----------------------------------------------------------------------------------

    def events(self, after: str | None = None) -> list[Event]:
        first = int(after) if after and after.isdigit() else 0
        lines = read_lines(self.path / "events.jsonl")
        return [
            msgspec.structs.replace(event, id=str(number))
            for number, event in decode_lines(lines, Event)
            if number > first
        ]

    def metrics(self) -> list[MetricPoint]:
        """Return one point per step, merging the lines that belong to the same step."""
        found: list[MetricPoint] = []
        for _, point in decode_lines(read_lines(self.path / "metrics.jsonl"), MetricPoint):
            if found and found[-1].step == point.step:
                point = found.pop().updated(point)
            found.append(point)
        return found

    def add_event(
        self,
        message: str,
        *,
        level: str = "info",
        type: str = "message",
        step: int | None = None,
        **data: Any,
    ) -> None:
        event = Event(id="", at=now(), level=level, message=message, type=type, step=step, data=data)
        append_line(self.path / "events.jsonl", event.to_json())

    def add_metrics(self, step: int, values: dict[str, float], epoch: float | None = None) -> None:
        point = MetricPoint(step=step, values={}).updated(
            MetricPoint(step=step, values=values, at=now(), epoch=epoch)
        )
        append_line(self.path / "metrics.jsonl", point.to_json())

    def repair(self, last_step: int) -> None:
        """Prepare the event and metric files for resuming: remove incomplete lines, and the metrics of steps
        that will run again."""
        events = self.path / "events.jsonl"
        if events.exists():
            write_whole(events, b"".join(line + b"\n" for line in read_lines(events)))
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            kept = [p for p in self.metrics() if p.step <= last_step]
            write_whole(metrics, b"".join(p.to_json() + b"\n" for p in kept))


def now() -> datetime:
    return datetime.now(UTC)


def append_line(path: Path, line: bytes) -> None:
    with open(path, "ab", opener=opener) as out:
        out.write(line + b"\n")


def read_lines(path: Path) -> list[bytes]:
    """Read the complete lines of a file. Text after the last line feed is skipped, because it was cut off
    when a process was killed."""
    try:
        data = path.read_bytes()
    except OSError:
        return []
    return data[: data.rfind(b"\n") + 1].splitlines()


def decode_lines(lines: Iterable[bytes], kind: type[R]) -> Iterator[tuple[int, R]]:
    """Yield each record with its 1-based line number. Invalid lines are skipped."""
    for number, line in enumerate(lines, 1):
        try:
            yield number, kind.from_json(line)
        except msgspec.MsgspecError:
            continue


def runs(home: Path) -> list[RunDir]:
    """List all jobs below `home`, newest first."""
    if not home.is_dir():
        return []
    found = [RunDir(p) for p in home.iterdir() if not p.name.startswith(".") and (p / "job.json").is_file()]
    return sorted(found, key=lambda run: (run.path / "job.json").stat().st_mtime, reverse=True)
