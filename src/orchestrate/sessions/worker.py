"""Run a submitted recipe in its own process: `python -m orchestrate.sessions.worker RUN_DIR`. The process
controls a session until the recipe ends, and records the outcome in the run directory."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from orchestrate.errors import OrchestrateError, ProviderError, RunFailed, SetupError
from orchestrate.local.job import LocalJob
from orchestrate.local.run import RunDir, leave
from orchestrate.providers import rundirs
from orchestrate.sessions import recipes
from orchestrate.sessions.recipes import RecipeJob
from orchestrate.sessions.record import SessionRecord
from orchestrate.sessions.session import TrainingSession
from orchestrate.store import run_id_of
from orchestrate.types import JobError, Run
from orchestrate.workspace import Workspace

SUBMIT_S, CHECK_S, ENDING_S = 120.0, 0.2, 10.0
"""Times in seconds. `SUBMIT_S`: how long to wait for the submit command to store the job. `CHECK_S`: the
interval between checks. `ENDING_S`: how long this process may keep running after its session has ended."""
LATER = (ProviderError, SetupError, OSError)
"""Errors that may be temporary: problems with the host, the store or a key, or a full disk."""
NAME = "job"
"""Name of the recipe's folder in the run directory."""


def main(path: str) -> int:
    run = RunDir(path)
    if (state := run.written_state()).terminal or state.status == "paused":
        return 0
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda _signal, _frame: run.ask("pause"))
    try:
        with Workspace() as ws:
            _drive(ws, run)
    except Exception as error:  # noqa: BLE001  the run directory must say how it ended
        traceback.print_exc()
        _settle(run, error)
    return 0


def _drive(ws: Workspace, run: RunDir) -> None:
    record = SessionRecord.of_job(ws, _submitted(ws, run))
    threading.Thread(target=_leave_after, args=(record,), daemon=True).start()
    session = TrainingSession(record)
    try:
        recipes.train(session, _recipe(run.job()))
    except Exception as error:
        if session.ended:  # it was paused or cancelled, or its limit was reached: the run says so
            record.wait_for_end()
            return
        if isinstance(error, LATER):
            session.__exit__(type(error), error)
            return
        session.fail(error)
        raise
    session.close()


def _leave_after(record: SessionRecord) -> None:
    """End this process even if its main thread waits for a host that no longer responds."""
    record.wait_for_end()
    time.sleep(ENDING_S)
    os._exit(0)


def _recipe(job: LocalJob) -> RecipeJob:
    return RecipeJob(
        name=NAME,
        method=job.method,
        train=job.train,
        validation=job.validation,
        hyper=job.hyper,
        seed=job.seed,
        loss=job.objective or recipes.OBJECTIVE,
    )


def _submitted(ws: Workspace, run: RunDir) -> Run:
    """Return the run once the store has its job. Raises `RunFailed` if the submit command was interrupted."""
    id, deadline = run_id_of(run.ref), time.monotonic() + SUBMIT_S
    while (found := ws.store.runs.get(id)).job_id is None:
        if time.monotonic() > deadline:
            raise RunFailed("the submit command was interrupted", fix=f"orchestrate resume {id}")
        time.sleep(CHECK_S)
    return found


def _settle(run: RunDir, error: Exception) -> None:
    """Record how the job ended, unless a session has recorded it or another process controls the job.
    `resume` tries again."""
    failure = JobError(message=f"{error}", code=type(error).__name__)
    with run.lock() as held:
        state = run.written_state()
        if held and not state.terminal and state.status != "paused":
            resumable = isinstance(error, OrchestrateError | OSError)
            rundirs.settle(run, state, "paused" if resumable else "failed", failure.message, error=failure)


if __name__ == "__main__":
    leave(main(str(Path(sys.argv[1]))))
