"""Workers on this machine, one detached process for each run."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Literal

import msgspec

from orchestrate.local import run as process
from orchestrate.local.run import JobState, RunDir, launcher, runs
from orchestrate.places.base import Hourly, Place, Placed, Resources, Usage


class ProcessPlace(Place):
    """Runs workers as processes on this machine. `home` is the folder that contains the run directories."""

    away = False

    def __init__(self, home: Path) -> None:
        self.home = home

    def require(self) -> None:
        """Check that the packages for training are installed. Raises `MissingExtra`."""
        launcher.require_packages()

    def start(self, run: RunDir, resources: Resources, ref: str) -> None:
        del resources, ref  # the machine is what it is, and the folder has the name
        launcher.start_worker(run)

    def find(self, ref: str | None = None) -> list[Placed]:
        if ref is None:
            return [_placed(run) for run in runs(self.home)]
        run = RunDir(self.home / ref)
        return [_placed(run)] if run.exists() else []

    def stop(self, ref: str) -> None:
        file = self.home / ref / "worker.json"
        with suppress(OSError, msgspec.MsgspecError):
            worker = process.WorkerId.from_json(file.read_bytes())
            if process.process_alive(file) and process.started(worker.pid) == worker.started:
                os.kill(worker.pid, signal.SIGKILL)

    def price(self, resources: Resources) -> Hourly | None:
        del resources
        return None

    def usage(self, ref: str) -> Usage | None:
        run = RunDir(self.home / ref)
        if not run.exists():
            return None
        return Usage(
            seconds=run.written_state().seconds, usd=None, source="training time measured by the worker"
        )


def _placed(run: RunDir) -> Placed:
    state = run.state()
    return Placed(
        id=run.ref,
        ref=run.ref,
        state=_word(run, state),
        raw_state=state.status,
        created_at=datetime.fromtimestamp((run.path / "job.json").stat().st_mtime).astimezone(),
        started_at=state.started_at,
        finished_at=state.finished_at,
        message=state.error.message if state.error else None,
    )


def _word(run: RunDir, state: JobState) -> Literal["waiting", "running", "ended"]:
    if run.alive():
        return "running"
    return "waiting" if state.status == "queued" else "ended"
