"""A worker that something happens to after a step: `tests.mortal RUN_DIR STEP SHARE FATE`.

It is brought about from within, once the step's values are written and as long after as SHARE of a step
takes: so it comes at that step, however busy the machine is. `killed`: what a power cut does to it. `helper
killed`: to the process that helps it. `disk full`: no file may grow beyond what the metrics have.
"""

from __future__ import annotations

import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrate.local import RunDir
from orchestrate.local.run import worker


def main(path: str, step: str, share: str, fate: str) -> int:
    last = time.monotonic()
    coming: threading.Timer | None = None
    add_metrics, write_state = RunDir.add_metrics, RunDir.write_state

    def metrics(run: RunDir, at: int, *told: Any, **more: Any) -> None:
        nonlocal last, coming
        if coming is not None:
            coming.join()  # no step later, however late its thread is
        add_metrics(run, at, *told, **more)
        took, last = time.monotonic() - last, time.monotonic()
        if at >= int(step) and coming is None:
            coming = threading.Timer(float(share) * took, FATES[fate], [run])
            coming.start()
            if float(share) == 0:
                coming.join()

    def state(run: RunDir, *told: Any) -> None:
        nonlocal last
        write_state(run, *told)
        last = time.monotonic()

    RunDir.add_metrics, RunDir.write_state = metrics, state  # type: ignore[method-assign]
    return worker.main(path)


def killed(_run: RunDir) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def helper_killed(_run: RunDir) -> None:
    [helper] = [process for process in Path("/proc").iterdir() if process.name.isdigit() and mine(process)]
    os.kill(int(helper.name), signal.SIGKILL)


def mine(process: Path) -> bool:
    """Whether this process has started it."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid())
    except OSError:
        return False


def disk_full(run: RunDir) -> None:
    most = (run.path / "metrics.jsonl").stat().st_size + 400
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


FATES: dict[str, Callable[[RunDir], None]] = {
    "killed": killed,
    "helper killed": helper_killed,
    "disk full": disk_full,
}

if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
