"""The worker: `python -m orchestrate.local.run.worker RUN_DIR`. Each worker runs one job.
`orchestrate.local.run.launcher` starts it. The exit code is 0 if the worker wrote the outcome to the run
directory, and 1 if it could not."""

from __future__ import annotations

import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack, suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.errors import OrchestrateError
from orchestrate.local import run as process
from orchestrate.local.job import LocalJob
from orchestrate.local.plan import throughput
from orchestrate.local.run import RunDir, now
from orchestrate.local.space import disk_is_full
from orchestrate.text import duration
from orchestrate.types import JobError

if TYPE_CHECKING:
    from orchestrate.local.run.parallel import Met
    from orchestrate.local.run.session import Session


def main(path: str, met: Met | None = None) -> int:
    """Run the job in this process, and return the exit code. `met` is set only on rank 0 of a distributed
    run."""
    run = RunDir(path)
    with run.lock(wait_s=5.0) as held:
        if not held:
            print(f"another worker is using {run.path}", file=sys.stderr)  # noqa: T201  this is worker.log
            return 0
        if run.written_state().terminal:
            return 0
        stop = threading.Event()
        beating = threading.Thread(target=run.keep_beating, args=(stop,), daemon=True)
        run.claim()
        beating.start()
        try:
            return _work(run, met)
        finally:
            stop.set()
            beating.join()


def _work(run: RunDir, met: Met | None) -> int:
    interrupted = threading.Event()

    def stop(_signal: int, _frame: object) -> None:
        interrupted.set()

    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, stop)

    def asked() -> str | None:
        return run.asked() or ("pause" if interrupted.is_set() else None)

    try:
        with ExitStack() as ending:
            _train(run, run.job(), asked, ending, met)
    except Exception as error:  # noqa: BLE001  the run directory must say how it ended
        traceback.print_exc()
        if met is not None and met.processes > 1 and isinstance(error, RuntimeError):
            met.cut()
        fix = error.fix if isinstance(error, OrchestrateError) else f"see {run.log}"
        message = f"{error}" + (f" ({fix})" if fix else "")
        code = type(error).__name__
        try:
            if disk_is_full(error):
                _wait_for_space(run, message)
                return 0
            run.add_event(message, level="error", type="failed")
            _end(run, "failed", error=JobError(message=message, code=code))
        except OSError:
            return 1
    return 0


def _wait_for_space(run: RunDir, reason: str) -> None:
    """Pause the run instead of failing it, because training up to the newest checkpoint is saved."""
    message = f"the disk is full: {reason}. Free up some disk space, then run  orchestrate resume {run.ref}"
    with suppress(OSError):
        run.add_event(message, level="error", type="paused")
    _set(run, "paused", stage=None, error=JobError(message=message, code="disk_full"))


def _train(
    run: RunDir, job: LocalJob, asked: Callable[[], str | None], ending: ExitStack, met: Met | None
) -> None:
    """Train the job. `ending` collects the cleanup that must run in any case."""
    if asked() == "cancel":
        run.add_event("cancelled before training started", type="cancelled")
        _end(run, "cancelled")
        return
    state = run.written_state()
    _set(
        run,
        "preparing",
        stage="loading",
        started_at=state.started_at or now(),
        attempt=state.attempt + 1,
        error=None,
    )
    begun = time.monotonic()
    with process.importing(freeze=True):
        from orchestrate.local.run.loop import StopRequested
        from orchestrate.local.run.session import Session  # torch loads here

        if job.adapter.type != "full":
            import_module("peft")

    session: Session | None = None
    while True:
        try:
            if session is None:
                session = Session(
                    run, job, asked, set_stage=lambda stage: _set(run, "preparing", stage=stage), met=met
                )
                ending.push(partial(_close, session))
                run.add_event(
                    f"ready in {duration(time.monotonic() - begun)}: {session.summary}",
                    type="started",
                    **session.facts,
                )
                session.loop.restore()
                session.loop.report(force=True)
            session.loop.run()
            break
        except StopRequested as stopped:
            step = session.loop.progress.step if session else state.step
            if stopped.request == "pause" and (word := _pause(run, asked, step)) != "cancel":
                if word is None:
                    if session is not None:
                        session.go_on()
                    continue
                return
            run.add_event(f"cancelled at step {step}", type="cancelled", step=step)
            _end(run, "cancelled")
            return
    _set(run, "saving", stage="saving")
    result = session.publish()
    _keep_pace(run, job, session)
    session.save_fingerprint()
    run.add_event(f"done: {session.outcome}", type="succeeded", step=session.loop.progress.step)
    _end(run, "succeeded", result=result.name, early_stopped=session.loop.early_stopped)


def _close(session: Session, kind: object, *_: object) -> None:
    session.close(failed=kind is not None)


def _keep_pace(run: RunDir, job: LocalJob, session: Session) -> None:
    """Save the speed for the quotes of later runs, if one worker ran this run from start to end."""
    state = run.written_state()
    if job.paces is None or state.attempt != 1 or state.started_at is None:
        return
    with suppress(OSError):
        from orchestrate.local.run import run_speed  # torch loads there

        if pace := run_speed.of(session, (now() - state.started_at).total_seconds()):
            throughput.add(Path(job.paces), pace)


def _pause(run: RunDir, asked: Callable[[], str | None], step: int) -> str | None:
    """Record that the job is paused, unless the pause was withdrawn or replaced by a cancel. Returns the
    current request."""
    with run.steering():
        word = asked()
        if word == "pause":
            run.add_event(f"paused at step {step}", type="paused", step=step)
            _set(run, "paused", stage=None)
    return word


def _set(run: RunDir, status: str, **changes: Any) -> None:
    state = run.written_state()
    run.write_state(msgspec.structs.replace(state, status=status, updated_at=now(), **changes))


def _end(run: RunDir, status: str, **changes: Any) -> None:
    _set(run, status, stage=None, finished_at=now(), **changes)


if __name__ == "__main__":
    process.leave(main(str(Path(sys.argv[1]))))
