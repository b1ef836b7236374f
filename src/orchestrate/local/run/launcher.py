"""Start workers, detached from the terminal and from the parent process, which may exit."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import msgspec

from orchestrate import settings
from orchestrate.core import require_recent
from orchestrate.core.files import PRIVATE_UMASK, opener, write_whole
from orchestrate.errors import MissingExtra, RunFailed
from orchestrate.local import run as process
from orchestrate.local.job import LocalJob
from orchestrate.local.run import RunDir, now
from orchestrate.text import duration

KERNEL_CACHE = 128
"""Number of compiled kernels that oneDNN keeps in its cache on a CPU. Torch has a second cache of the same
size. Each kernel is compiled for one shape of its matrices. Most shapes of a step are rounded
(`kernels.even`), so they recur. With steps of 3 rows of up to 94 tokens of the bundled model, a worker
compiled 7,540 kernels in 400 steps with a cache of 64 (peak memory 572 MB), 2,172 with 128 (627 MB) and 655
with 256 (699 MB). With rows of up to 900 tokens, it peaked at 764, 858 and 996 MB after 80 steps, without
becoming faster."""
KEPT_TENSOR = 32 << 20
KEPT_MEMORY = 1 << 30
"""Maximum size in bytes of a tensor whose memory glibc keeps for later ones instead of returning it to the
system, and maximum size of all that it keeps. 32 MiB is the most that all its versions accept. Without these,
the tensors of each step get new pages, which the system clears first: with rows of 450 tokens, 725,000 pages
instead of 370,000 and 10% more processor time, or twice the time if glibc's own threshold stays low. The peak
is the same."""
ENDING_S = 60.0
"""Seconds within which the process of a paused worker must exit. In this time, it releases the GPU and ends
grader processes."""
PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "safetensors", "jinja2")


def require_packages(what: str = "training on this machine", extra: str = "local") -> None:
    """Raise `MissingExtra` for the first package that is not installed. Doesn't import packages."""
    for package in PACKAGES:
        if find_spec(package) is None:
            raise MissingExtra(extra, what, package)
        require_recent(package)


def launch(job: LocalJob, home: Path, start: Callable[[RunDir], None] | None = None) -> RunDir:
    """Create the run directory `home/job.ref` and start its worker. A second call with the same ref changes
    nothing. `start` replaces the function that starts the worker. Raises `MissingExtra` if the training
    packages are not installed, and `OSError` if the folder cannot be created."""
    require_packages()
    run, made = RunDir.make(home, job)
    if made or not run.had_worker():
        (start or start_worker)(run)
    return run


def resume(
    run: RunDir,
    start: Callable[[RunDir], None] | None = None,
    alive: Callable[[RunDir], bool] = RunDir.alive,
) -> bool:
    """Start a worker for a paused or interrupted job. Returns False if a worker is running or the job has
    ended. If a worker has just paused, waits until it exits, and raises `RunFailed` if it doesn't. `start`
    and `alive` replace the functions that start and check a worker, for workers on other machines."""
    if start is None:
        require_packages()
    with run.steering():
        if run.asked() == "pause":
            run.ask(None)
        state = run.state()
    if state.status not in ("paused", "interrupted", "queued"):
        return False
    if state.status == "paused":
        _wait_for_end(run, alive)
    if alive(run):
        return False
    if state.status == "interrupted":
        message = (
            f"the worker crashed at step {state.step}. A new one continues from the latest checkpoint"
            if run.had_worker()
            else "the submission was interrupted before it started a worker. Starting one now"
        )
        run.add_event(message, level="warning", type="interrupted", step=state.step)
    (start or start_worker)(run)
    return True


def _wait_for_end(run: RunDir, alive: Callable[[RunDir], bool]) -> None:
    deadline = time.monotonic() + ENDING_S
    while alive(run):
        if time.monotonic() > deadline:
            raise RunFailed(
                f"the worker of {run.ref} paused but did not exit within {duration(ENDING_S)}",
                fix=f"read {run.log}, kill the worker's process, then run orchestrate resume {run.ref}",
            )
        time.sleep(0.02)


def start_worker(run: RunDir, spawn: Callable[[RunDir, int], int] | None = None) -> None:
    """Start a detached worker process. If two workers are started for the same job, the job's lock lets only
    one of them run. `spawn` replaces the function that starts the process. It receives the log's file
    descriptor and returns the process id."""
    state = run.written_state()
    if not state.terminal:
        run.write_state(msgspec.structs.replace(state, status="queued", updated_at=now()))
    with open(run.log, "ab", opener=opener) as log:
        pid = (spawn or _spawn)(run, log.fileno())
    begun = process.started(pid)
    if begun is not None and not process.process_alive(run.path / "worker.json"):
        write_whole(
            run.path / "worker.json",
            msgspec.json.encode({**process.me().to_dict(), "pid": pid, "started": begun}),
        )


def _spawn(run: RunDir, log: int) -> int:
    env = worker_environment(run.job().threads)
    return spawn_module("orchestrate.local.run.worker", run, log, env=env)


def spawn_module(
    module: str, run: RunDir, log: int, *, env: dict[str, str], folder: Path | None = None
) -> int:
    """Start a detached process that runs `module` with the run's folder as its argument, and return the
    process id. `folder` is the working directory, by default the run's folder."""
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", module, str(run.path)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        cwd=folder or run.path,
        umask=PRIVATE_UMASK,
        env=env,
    )
    # Reap the worker if it exits before this process does.
    threading.Thread(target=worker.wait, daemon=True, name=f"reap-{run.ref}").start()
    return worker.pid


def worker_environment(threads: int | None) -> dict[str, str]:
    """Build a worker's environment. It contains only the variables that a worker needs, and no API keys.
    Thread counts must be set before the numeric libraries load. Workers send no telemetry and need no network
    to start."""
    env = settings.of_child()
    if threads is not None:
        env.update(dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads)))
    env.update(TOKENIZERS_PARALLELISM="false", HF_HUB_DISABLE_TELEMETRY="1", HF_HUB_DISABLE_PROGRESS_BARS="1")
    env.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    env.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # GPU 0 of the driver's tool, and so of the plan
    env.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it its sums may come in any order
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        env.setdefault(name, str(KERNEL_CACHE))
    env.setdefault("MALLOC_MMAP_THRESHOLD_", str(KEPT_TENSOR))
    env.setdefault("MALLOC_TRIM_THRESHOLD_", str(KEPT_MEMORY))
    return env
