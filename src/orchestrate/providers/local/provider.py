"""`LocalProvider` trains on this machine. Run directories are below `home/local/runs`, and each training job
has one worker process."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from orchestrate.core.files import write_whole
from orchestrate.data.dialects import target
from orchestrate.errors import Conflict, ProviderError
from orchestrate.local import machine
from orchestrate.local.job import AdapterSettings, Hyper, LocalJob, Method
from orchestrate.local.plan import throughput
from orchestrate.local.run import RunDir, checkpoints, launcher, now, runs
from orchestrate.places.base import Place, Resources
from orchestrate.places.process import ProcessPlace
from orchestrate.profile import Profile
from orchestrate.providers import base as provider_base
from orchestrate.providers import rundirs as reading
from orchestrate.providers import settings
from orchestrate.providers.base import (
    AnswersHere,
    Cancels,
    Chats,
    Deletes,
    Downloads,
    HoldsFiles,
    KeepsCheckpoints,
    KeepsFingerprint,
    ListsBilled,
    Measures,
    NamesAccount,
    Pauses,
    Progress,
    Restarts,
    Resumes,
)
from orchestrate.providers.local import PROFILE, planned
from orchestrate.providers.local.planned import PlannedProvider
from orchestrate.settings import masked
from orchestrate.text import count
from orchestrate.types import (
    Account,
    Artifact,
    Billing,
    Checkpoint,
    Event,
    Feature,
    Fingerprint,
    Job,
    JobError,
    JobHandle,
    Message,
    MetricPoint,
    Record,
    RemoteDataset,
    Reply,
    Translation,
    decoding,
)

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.local.answers.generation import Generator
    from orchestrate.local.answers.worker import Worker
    from orchestrate.settings.config import HostConfig
    from orchestrate.spec import JobSpec

MOST_RESTARTS = 5
"""Maximum number of crashes without a newer checkpoint. After that, a run is no longer restarted, because its
worker would probably crash again."""
STATUS_AFTER: Mapping[str, str] = {"pause": "paused", "cancel": "cancelled"}
"""Status that a run without a worker gets after a pause or cancel request, as {request: status}."""


class LocalProvider(
    PlannedProvider,
    NamesAccount,
    ListsBilled,
    HoldsFiles,
    Cancels,
    Measures,
    KeepsCheckpoints,
    Pauses,
    Resumes,
    Restarts,
    Deletes,
    Downloads,
    KeepsFingerprint,
    Chats,
    AnswersHere,
):
    """Backend that trains on this machine. Options in `config.options`: `home` (folder), `threads`, `device`
    (`cpu` or `cuda`) and `gpu_memory_gib` (memory in GiB of the GPU to plan for)."""

    profile: ClassVar[Profile] = PROFILE
    features: ClassVar[frozenset[Feature]] = frozenset(Feature) - {
        Feature.VISION,
        Feature.WANDB,
        Feature.DEPLOY,
        Feature.LIVE_PRICE,
    }
    missing: ClassVar[Mapping[Feature, str]] = {
        Feature.VISION: "the local engine trains only on text",
        Feature.WANDB: "metrics are stored in the run directory and not sent anywhere",
        Feature.DEPLOY: "local models need no deployment to a host. To serve one:  orchestrate serve RUN",
        Feature.LIVE_PRICE: "no host estimates the price of local training",
    }

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._generators: dict[tuple[str, str | None], Generator] = {}
        """Loaded generators, by job id and checkpoint."""
        self.place = self._place()

    def _place(self) -> Place:
        return ProcessPlace(self._runs)

    @property
    def host(self) -> str:
        return str(self.home)

    # -- account -------------------------------------------------------------------------------------------

    def account(self) -> Account:
        """Return an account that represents this backend's home folder. A marker in the folder identifies the
        account, because folders on two machines may have the same path."""
        return Account(id=f"home {machine.mark(self.home)}", reported=True)

    def holds(self, remote: RemoteDataset) -> bool:
        return Path(remote.train_id).is_relative_to(self.home) and Path(remote.train_id).exists()

    # -- submitting ----------------------------------------------------------------------------------------

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        return reading.written_rows(
            self.home / "data", self.name, target(self.name, self.profile), data, progress
        )

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """Create the run directory named `ref` atomically and start its worker. A second call with the same
        ref finds the directory and does not start another worker."""
        body = settings.body(translation)
        resources = decoding.convert(body.get("resources", {}), Resources)
        # Only now is the run's limit certain: it may be a share of what the plan assumed.
        limits = msgspec.structs.replace(resources.limits, max_usd=spec.max_cost_usd)
        resources = msgspec.structs.replace(resources, limits=limits)
        job = LocalJob(
            ref=ref,
            model=translation.model,
            model_name=spec.model_for(self.name),
            train=remote.train_id,
            validation=remote.validation_id,
            dataset_digest=remote.digest,
            method=decoding.convert(body["method"], Method),
            adapter=decoding.convert(body["adapter"], AdapterSettings),
            hyper=Hyper.from_dict(body.get("hyper", {})),
            seed=body.get("seed", 0),
            threads=body.get("threads"),
            device=body.get("device"),
            engine=body.get("engine"),
            precision=body["precision"],
            continue_from=body.get("continue_from"),
            added_tokens=tuple(body.get("added_tokens", ())),
            chat_template=body.get("chat_template"),
            chat_template_kwargs=body.get("chat_template_kwargs", {}),
            spec=masked(spec.canonical()),
            paces=str(throughput.file_of(self.home)),
            resources=resources.to_dict() if self.place.away else {},
            created_at=now(),
        )
        self.place.require()
        try:
            run, made = RunDir.make(self._runs, job)
        except OSError as error:
            raise ProviderError(self.name, f"could not create the run directory: {error}") from error
        there = run.job()
        if (there.spec, there.dataset_digest) != (job.spec, job.dataset_digest):
            raise Conflict(
                self.name, f"{run.path} belongs to another job", fix="submit again. A new run gets a new ref"
            )
        unsent = self.place.away and not run.written_state().terminal and not self.place.find(ref)
        if made or unsent or not run.had_worker():
            self.place.start(run, resources, ref)
        return reading.handle(run, self.name)

    def find(self, ref: str) -> list[JobHandle]:
        handles = {
            found.ref: reading.handle(RunDir(self._runs / found.ref), self.name)
            for found in self.place.find(ref)
        }
        return list(handles.values())

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, job: JobHandle) -> Job:
        return self._job_of(self._run(job))

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        for run in runs(self._runs):
            if not run.written_state().terminal:
                self._settle_requests(run)
            job = self._job_of(run)
            if since is not None and job.created_at is not None and job.created_at < since:
                return
            yield job

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        yield from self._run(job).events(after)

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        return self._run(job).metrics()

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        return reading.checkpoint_list(self._run(job))

    def billing(self) -> Billing:
        """Report the workers on this machine, which are not billed."""
        return provider_base.of_jobs(self, kind="worker", bills=False, note="electricity and hardware wear")

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, job: JobHandle) -> None:
        self._ask(job, "cancel", "cancelled")

    def pause(self, job: JobHandle) -> None:
        self._ask(job, "pause", "paused")

    def _ask(self, job: JobHandle, what: str, state: str) -> None:
        run = self._run(job)
        run.ask(what)
        self.place.forward_action(run)
        self._settle(run, state)

    def resume(self, job: JobHandle) -> None:
        self._restart(self._run(job))

    def recover(self, job: JobHandle) -> bool:
        """Restart a run's worker if the worker was killed or the machine lost power. Returns True if a worker
        was started. A paused job stays paused, and a canceled one is not restarted. After `MOST_RESTARTS`
        crashes without a newer checkpoint, the job fails."""
        run = self._run(job)
        state = run.state()
        if run.job().session is not None or state.status != "interrupted" or not self.place.lost(run):
            return False
        died = deaths(run, max(state.attempt, self.place.starts(run)))
        if died >= MOST_RESTARTS:
            reason = (
                f"the worker crashed {count(died, 'time')} without saving a new checkpoint"
                f"{death_message(run)}. See {run.log}"
            )
            self._settle(run, "failed", error=JobError(code="worker_died", message=reason))
            return False
        return self._restart(run)

    def _restart(self, run: RunDir) -> bool:
        if run.asked() == "cancel":
            return False
        self.place.require()

        def start(run: RunDir) -> None:
            self.place.start(run, decoding.convert(run.job().resources, Resources), run.ref)

        return launcher.resume(run, start, self._at_work)

    def _at_work(self, run: RunDir) -> bool:
        self.place.look(run)
        return not self.place.lost(run)

    def _job_of(self, run: RunDir) -> Job:
        return reading.job(run, self.name)

    def delete(self, job: JobHandle) -> None:
        """Cancel the job, and delete its folder once its worker has ended."""
        run = RunDir(self._runs / job.job_id)
        if not run.exists():
            return
        self._close(job.job_id)
        self.cancel(job)
        deadline = time.monotonic() + 60
        while (at_work := self._at_work(run)) and time.monotonic() < deadline:
            time.sleep(0.05)
        if at_work:
            raise ProviderError(
                self.name, f"the worker of {run.ref} did not stop within 60 s", fix="try again in a minute"
            )
        self.place.forget(run)
        shutil.rmtree(run.path, ignore_errors=True)

    def _settle(self, run: RunDir, status: str, **changes: Any) -> None:
        """Write the status itself when there is no worker to do it."""
        with run.lock() as held:
            state = run.written_state()
            if not held or state.terminal or state.status == status:
                return
            if self.place.away:
                if not self.place.lost(run):
                    return
                self.place.look(run)  # what it reported last comes first
                state = run.written_state()
                if state.terminal or state.status == status:
                    return
            reading.settle(run, state, status, "no worker was running", **changes)
            self.place.settle(run)

    # -- the tuned model -----------------------------------------------------------------------------------

    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        run = self._run(job)
        source = planned.of(run, checkpoint, self.name)
        self.place.bring(run, source)
        files = planned.copied(source, dest, progress)
        return Artifact(
            kind=source.name,
            folder=str(dest),
            files=files,
            base_model=run.job().model,
            provider=self.name,
            job_id=job.job_id,
        )

    def fingerprint(self, job: JobHandle) -> Fingerprint | None:
        with suppress(OSError, msgspec.MsgspecError):
            return Fingerprint.from_json(self._run(job).proof.read_bytes())
        return None

    def generate(
        self,
        job: JobHandle,
        prompts: Sequence[Sequence[Message]],
        *,
        base: bool = False,
        max_tokens: int = 256,
        temperature: float = 0.0,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[Reply]:
        given = [dict(tool) for tool in tools] or None
        return self.generator(job).generate(
            prompts, base=base, max_tokens=max_tokens, temperature=temperature, tools=given
        )

    def close(self) -> None:
        for id, _ in list(self._generators):
            self._close(id)

    def generator(
        self, job: JobHandle, *, checkpoint: str | None = None, worker: Worker | None = None
    ) -> Generator:
        """Create a generator. Without a `worker`, each model runs in its own process until `close`."""
        from orchestrate.local.answers.generation import Generator

        key = (job.job_id, checkpoint)
        if worker is None and key in self._generators:
            return self._generators[key]
        run = self._run(job)
        local = run.job()
        folder = planned.of(run, checkpoint, self.name)
        self.place.bring(run, folder)
        made = Generator(
            local.model,
            folder,
            threads=local.threads,
            device=local.device,
            # A checkpoint has no provenance file, so the job says in which precision its base model is
            # loaded.
            four_bit=None if checkpoint is None else local.adapter.type == "qlora",
            worker=worker,
        )
        if worker is None:
            self._generators[key] = made
        return made

    def _close(self, id: str) -> None:
        for key in [key for key in self._generators if key[0] == id]:
            self._generators.pop(key).close()

    # -- shared --------------------------------------------------------------------------------------------

    @property
    def _runs(self) -> Path:
        return self.home / "runs"

    def _run(self, job: JobHandle) -> RunDir:
        run = reading.existing(self._runs, job, self.name)
        self._settle_requests(run)
        return run

    def _settle_requests(self, run: RunDir) -> None:
        """A run that lost its worker after it was asked for something has followed it."""
        self.place.look(run)
        if (asked := STATUS_AFTER.get(run.asked() or "")) and run.state().status == "interrupted":
            self._settle(run, asked)


# -- restarts ----------------------------------------------------------------------------------------------
# Counts how often a run's worker crashed since the latest checkpoint. A run that takes days may lose many
# machines, so only crashes without a new checkpoint suggest that the next worker would crash too.


class RestartsSeen(Record, frozen=True, kw_only=True):
    """Contents of `.restarts.json` in a run directory."""

    checkpoint: str = ""
    """Latest checkpoint at the time of the last crash."""
    before: int = 0
    """Number of attempts that ended before `checkpoint` was saved. Only later attempts count as crashes."""


def deaths(run: RunDir, attempts: int) -> int:
    """Count the workers of a run that crashed after its latest checkpoint. `attempts` is the run's total
    number of attempts."""
    path = run.path / ".restarts.json"
    try:
        seen = RestartsSeen.from_json(path.read_bytes())
    except (OSError, msgspec.MsgspecError):
        seen = RestartsSeen()
    newest = checkpoints.newest(run.checkpoints)
    if newest > seen.checkpoint:
        seen = RestartsSeen(checkpoint=newest, before=max(0, attempts - 1))
        write_whole(path, seen.to_json())
    return attempts - seen.before


def death_message(run: RunDir) -> str:
    """Return the logged message about the worker's crash, or an empty string if there is none."""
    said = [event.message for event in run.events() if (event.type, event.level) == ("interrupted", "error")]
    return f": {said[-1]}" if said else ""
