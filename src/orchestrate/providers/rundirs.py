"""Conversion of run directories to jobs, handles and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.core.files import private_folder
from orchestrate.errors import NotFound, ProviderError
from orchestrate.local.job import AdapterKind, AdapterSettings, LocalJob, Supervised
from orchestrate.local.run import STATUSES, JobState, RunDir, checkpoints, now, runs
from orchestrate.providers.sessions import SESSION, SessionOrder, journal_usd
from orchestrate.settings import masked
from orchestrate.text import duration
from orchestrate.types import Checkpoint, Job, JobError, JobHandle, JobStatus, RemoteDataset

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.data.rules import RowTarget
    from orchestrate.providers.base import Progress

SILENT_S = 30.0
"""Seconds without a heartbeat after which a worker counts as silent. Heartbeats normally arrive every two
seconds."""
STUCK_S = 900.0
STUCK_STEPS = 50.0
"""Number of average step times without a finished step after which a worker counts as stuck, but not before
`STUCK_S` seconds. The minimum leaves time for evaluations and sampling between steps."""


def of_session(
    home: Path, order: SessionOrder, provider: str, *, adapter: AdapterKind = "lora", **fields: Any
) -> RunDir:
    """Create the run directory of a session, or return the existing one. `fields` are additional fields of
    the job. Raises `ProviderError` if the directory cannot be created."""
    given: dict[str, Any] = {"train": "", "method": Supervised(), **fields}
    job = LocalJob(
        ref=order.ref,
        model=order.model,
        model_name=order.model_name,
        adapter=AdapterSettings(type=adapter, r=order.lora["rank"]),
        seed=order.lora["seed"] or 0,
        spec=masked(order.spec),
        session=order.to_dict(),
        created_at=now(),
        **given,
    )
    try:
        return RunDir.make(home, job)[0]
    except OSError as error:
        raise ProviderError(provider, f"could not create the run directory: {error}") from error


def written_rows(
    folder: Path, provider: str, target: RowTarget, data: TrainingData, progress: Progress | None
) -> RemoteDataset:
    """Write a job's data files to a folder on this machine, from which the job's process reads them. In the
    returned dataset, the ids are the files' paths."""
    private_folder(folder)
    train = data.train.write(target, folder)
    validation = data.validation.write(target, folder) if data.validation else None
    if progress is not None:
        size = train.stat().st_size + (validation.stat().st_size if validation else 0)
        progress(size, size)
    return RemoteDataset(
        provider=provider,
        digest=data.digest,
        train_id=str(train),
        validation_id=str(validation) if validation else None,
    )


def existing(home: Path, job: JobHandle, provider: str) -> RunDir:
    """Return a job's run directory. Raises `NotFound` if it does not exist."""
    run = RunDir(home / job.job_id)
    if not run.exists():
        raise NotFound(provider, f"the run directory {run.path} does not exist")
    return run


class SessionRuns:
    """Local run directories of sessions whose models are at a host."""

    def __init__(self, home: Path, provider: str) -> None:
        self.home, self.provider = home / provider / "runs", provider

    def make(self, order: SessionOrder, **fields: Any) -> RunDir:
        """See `of_session`."""
        return of_session(self.home, order, self.provider, **fields)

    def dir(self, job: JobHandle) -> RunDir:
        return existing(self.home, job, self.provider)

    def job(self, run: RunDir) -> Job:
        """Build a session's job from its run directory. The tuned model stays at the host."""
        state = run.state()
        return msgspec.structs.replace(job(run, self.provider), tuned_model=state.result)

    def find(self, ref: str) -> list[JobHandle]:
        run = RunDir(self.home / ref)
        return [handle(run, self.provider)] if run.exists() else []

    def all(self, since: datetime | None = None) -> Iterator[Job]:
        for one in map(self.job, runs(self.home)):
            if since is not None and one.created_at is not None and one.created_at < since:
                return
            yield one

    def checkpoints(self, handle: JobHandle) -> list[Checkpoint]:
        run = self.dir(handle)

        def at(one: Checkpoint) -> str:
            return str(msgspec.json.decode((run.checkpoints / one.id / "saved.json").read_bytes())["at"])

        return [msgspec.structs.replace(one, model=at(one)) for one in checkpoint_list(run)]

    def ask(self, handle: JobHandle, word: str, status: str) -> bool:
        """Send the request `word`, such as `pause`, to the program that runs the session. The program acts on
        it within seconds. If no program is running, set the run's status to `status` and return True."""
        run = self.dir(handle)
        run.ask(word)
        with run.lock() as held:
            state = run.written_state()
            if alone := held and not state.terminal:
                settle(run, state, status, "no program was running the session")
        return alone


def settle(run: RunDir, state: JobState, status: str, why: str, **changes: Any) -> None:
    """Set a run's status on behalf of its worker or program. The caller must hold the run's lock."""
    end = {"finished_at": now()} if STATUSES[status].terminal else {}
    run.write_state(
        msgspec.structs.replace(state, status=status, stage=None, updated_at=now(), **end, **changes)
    )
    run.add_event(f"{status}: {why}", type=status, step=state.step)


def handle(run: RunDir, provider: str = "local", *, session: bool | None = None) -> JobHandle:
    """Build the handle of a run directory. `session` is True if the run is a session. By default, this is
    read from the run directory. If the directory does not exist on this machine, the run is assumed to be a
    job."""
    if session is None:
        session = run.exists() and run.job().session is not None
    return JobHandle(provider=provider, job_id=run.ref, ref=run.ref, kind=SESSION if session else None)


def job(run: RunDir, provider: str = "local") -> Job:
    """Build the job from its run directory. If the worker died, the job shows as paused, with the reason in
    `error`. If the worker is alive but makes no progress, `error` is also set, but the job keeps its status,
    because the worker may continue."""
    state = run.state()
    stored = run.job()
    error = state.error
    if state.status == "interrupted" and stored.session is not None:
        error = _program_ended(stored, state)
    elif state.status == "interrupted":
        error = JobError(
            code="interrupted",
            message=f"the worker was killed or its machine went down at step {state.step}. The run "
            f"continues from its latest checkpoint"
            if run.had_worker()
            else "the submission was interrupted before it started a worker. To start one, use the command "
            "watch, worker or resume",
        )
    elif not state.terminal and state.status != "paused" and error is None:
        error = _still(run, state)
        own_loop = stored.session is not None and not stored.train
        if own_loop and error is not None and error.code == "no_progress":
            error = None  # its loop may take as long as it likes
    cost = state.cost_usd if stored.session is None else journal_usd(run.path) or state.cost_usd
    return Job(
        handle=handle(run, provider, session=stored.session is not None),
        status=STATUSES.get(state.status, JobStatus.UNKNOWN),
        raw_status=state.status,
        model=stored.model_name,
        created_at=stored.created_at,
        started_at=state.started_at,
        finished_at=state.finished_at,
        estimated_finish=_finish(run, state),
        tuned_model=str(run.path / state.result) if state.result else None,
        trained_tokens=state.trained_tokens or None,
        step=state.step,
        total_steps=state.total_steps,
        epoch=state.epoch,
        percent=100 * state.step / state.total_steps if state.total_steps else None,
        early_stopped=state.early_stopped,
        error=error,
        cost_usd=cost,
        cost_origin=None if cost is None else "as counted by the session",
        worked_seconds=state.seconds if stored.session is not None else None,
        payload={**state.to_dict(), "folder": str(run.path), "eta_seconds": state.eta_seconds},
    )


def _program_ended(job: LocalJob, state: JobState) -> JobError:
    message = f"the training program was killed or its machine went down at step {state.step}"
    how = "orchestrate resume RUN" if job.train else "ft.session(resume=...)"
    return JobError(code="caller_gone", message=f"{message}. To continue from the last checkpoint: {how}")


def _still(run: RunDir, state: JobState) -> JobError | None:
    """Return an error if a living worker has gone silent or is stuck, otherwise `None`."""
    end_it = f"See {run.log}. If you kill the worker, the run continues from its latest checkpoint"
    beat = run.heartbeat_age()
    if beat is not None and beat > SILENT_S:
        message = (
            f"the worker is alive but has not reported for {duration(beat)} (it may be "
            "suspended, or the machine may be swapping)"
        )
        return JobError(code="no_heartbeat", message=f"{message}. {end_it}")
    if state.status != "running" or not state.step:
        return None
    waited, usual = time.time() - _seen_at(run), state.seconds / state.step
    if waited > max(STUCK_S, STUCK_STEPS * usual):
        message = (
            f"no step has finished in the last {duration(waited)}, although a step usually takes "
            f"{duration(usual)}"
        )
        return JobError(code="no_progress", message=f"{message}. {end_it}")
    return None


def checkpoint_list(run: RunDir) -> list[Checkpoint]:
    """List the checkpoints that still exist, oldest first."""
    return [
        Checkpoint(
            id=whole.path.name,
            step=whole.progress.step,
            created_at=datetime.fromtimestamp(whole.path.stat().st_mtime, UTC),
            model=str(whole.weights),
            metrics=whole.progress.metrics,
        )
        for whole in checkpoints.listed(run.checkpoints)
    ]


def _finish(run: RunDir, state: JobState) -> datetime | None:
    if state.status != "running" or state.eta_seconds is None:
        return None
    return datetime.fromtimestamp(_seen_at(run) + state.eta_seconds, UTC)


def _seen_at(run: RunDir) -> float:
    """Return when the newest state arrived here, by the clock here: a remote worker's clock may differ."""
    return (run.path / "status.json").stat().st_mtime
