"""`LocalProvider`: run directories below `home/local/runs`, one worker process for each job that trains."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from orchestrate import costing
from orchestrate.errors import Conflict, NotFound, ProviderError
from orchestrate.files import private_folder
from orchestrate.keys import masked
from orchestrate.local import machine
from orchestrate.local.job import Adapter, Hyper, LocalJob, Method
from orchestrate.local.plan import fitting, throughput
from orchestrate.local.run import launching
from orchestrate.local.run.rundir import STATUSES, RunDir, now, runs
from orchestrate.profile import Profile
from orchestrate.providers import offline, settings, standing
from orchestrate.providers.base import Progress, Provider
from orchestrate.providers.local import checking, reading, reinforcement, weights
from orchestrate.providers.local.profile import PROFILE
from orchestrate.providers.local.translation import translate
from orchestrate.types import (
    Account,
    Artifact,
    Billing,
    Checkpoint,
    Event,
    Feature,
    Job,
    JobError,
    JobHandle,
    JobStatus,
    MemoryPlan,
    Message,
    MetricPoint,
    Problem,
    Quote,
    RemoteDataset,
    Reply,
    Sheet,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.config import HostConfig
    from orchestrate.costing import Lookup, RateBook
    from orchestrate.data import TrainingData
    from orchestrate.local.answers.generation import Generator
    from orchestrate.spec import JobSpec

MOST_RESTARTS = 5
"""Automatic ones; a worker that dies this often would die again."""


class LocalProvider(Provider):
    """This machine. `config.options`: home (folder), threads, device (cpu, cuda), gpu_memory_gib (plan for
    a GPU of that size)."""

    profile: ClassVar[Profile] = PROFILE
    features: ClassVar[frozenset[Feature]] = frozenset(Feature) - {
        Feature.VISION,
        Feature.WANDB,
        Feature.DEPLOY,
        Feature.LIVE_PRICE,
    }
    missing: ClassVar[Mapping[Feature, str]] = {
        Feature.VISION: "the local engine trains on text only",
        Feature.WANDB: "metrics are kept in the run directory; nothing is sent anywhere",
        Feature.DEPLOY: "nothing is served from here; talk to the model with  orchestrate chat RUN",
        Feature.LIVE_PRICE: "your own machine has no host to ask for an estimate",
    }
    renders_rows: ClassVar[bool] = True
    status_map: ClassVar[Mapping[str, JobStatus]] = STATUSES

    def __init__(self, config: HostConfig) -> None:
        super().__init__(config)
        self._generators: dict[tuple[str, str | None], Generator] = {}
        """By job and checkpoint."""

    @property
    def host(self) -> str:
        return str(self.home)

    @property
    def home(self) -> Path:
        """Everything of this backend lives below."""
        given = self.config.options.get("home")
        if given is None:
            import platformdirs

            given = platformdirs.user_data_dir("orchestrate")
        return Path(str(given)).expanduser().resolve() / "local"

    # -- offline -------------------------------------------------------------------------------------------

    def translate(self, spec: JobSpec) -> Translation:
        told = translate(self._as_local(spec), self.config.options)
        return msgspec.structs.replace(told, provider=self.name)

    def _as_local(self, spec: JobSpec) -> JobSpec:
        """What the spec says for this instance under its own name, said for `local`."""
        kind = self.kind
        if self.name == kind:
            return spec
        options = spec.provider_options
        own = {**options.get(kind, {}), **options.get(self.name, {})}
        return spec.model_copy(
            update={"model": spec.model_for(self.name), "provider_options": {kind: own} if own else {}}
        )

    def memory(self, spec: JobSpec, data: TrainingData, translation: Translation) -> MemoryPlan | None:
        return checking.memory_of_rows(spec, data, translation, self.config.options)

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        spec = self._as_local(spec)
        found = offline.problems(self, spec, data, translation)
        if spec.method.type == "rft":
            found = [p for p in found if p.code != "too-long"]  # prompts are left out, not cut
            found += reinforcement.problems(self.name, spec, data)
        return checking.joined(
            found, checking.problems(self.name, spec, data, translation, self.config.options)
        )

    def quote(
        self,
        spec: JobSpec,
        data: TrainingData,
        translation: Translation,
        rates: RateBook,
        *,
        gpu_hours: Decimal | None = None,
    ) -> Quote:
        del gpu_hours  # the time is modelled
        for setting in translation.refused:
            if setting.name in offline.NO_QUOTE:
                return Quote(provider=self.name, model=translation.model, unavailable=setting.rule)
        spec = self._as_local(spec)
        resolved = self.resolve(spec)
        body = translation.body
        kind = throughput.kind_of(
            parameters=fitting.active_parameters(translation.model, resolved.params_b)
            or weights.parameters(translation.model),
            adapter=body["adapter"]["type"],
            method=msgspec.convert(body["method"], Method).word,
            precision=body["precision"],
            threads=body.get("threads"),
            device=body.get("device"),
        )
        speed = throughput.estimate(self.home, kind, load=machine.load())
        gpus = machine.gpus() if body.get("device") != "cpu" else ()
        return costing.quote_hours_job(
            costing.Work(self.name, self.profile, spec, data, translation, resolved),
            speed=costing.Speed(
                tokens_per_second=speed.tokens_per_second, source=speed.source, factor=speed.factor
            ),
            hourly=costing.local_rate(self.prices, gpus[0].name if gpus else "cpu", 1, book=rates),
            startup_seconds=(speed.besides.low, speed.besides.value, speed.besides.high),
            answers=reinforcement.answers(spec),
        )

    def lookup(self, spec: JobSpec) -> Lookup:
        found = machine.gpus() if self.config.options.get("device") != "cpu" else ()
        device = found[0].name if found else "cpu"
        return costing.lookup(spec, self.resolve(spec), self.prices, gpu=device)

    # -- whose jobs ----------------------------------------------------------------------------------------

    def account(self) -> Account:
        """The folder of the runs, by a mark that is kept in it: two machines may have folders of one name."""
        return Account(id=f"home {machine.mark(self.home)}", told=True)

    def holds(self, remote: RemoteDataset) -> bool:
        return Path(remote.train_id).is_relative_to(self.home) and Path(remote.train_id).exists()

    # -- submitting ----------------------------------------------------------------------------------------

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        folder = private_folder(self.home / "data")
        train = data.train.write(self.target, folder)
        validation = data.validation.write(self.target, folder) if data.validation else None
        if progress is not None:
            size = train.stat().st_size + (validation.stat().st_size if validation else 0)
            progress(size, size)
        return RemoteDataset(
            provider=self.name,
            digest=data.digest,
            train_id=str(train),
            validation_id=str(validation) if validation else None,
        )

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """The run directory named `ref` is made in one step; a second call with the ref finds it and starts
        nothing."""
        body = settings.body(translation)
        job = LocalJob(
            ref=ref,
            model=translation.model,
            model_name=spec.model_for(self.name),
            train=remote.train_id,
            validation=remote.validation_id,
            dataset_digest=remote.digest,
            method=msgspec.convert(body["method"], Method),
            adapter=msgspec.convert(body["adapter"], Adapter),
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
            created_at=now(),
        )
        try:
            run = launching.launch(job, self._runs)
        except OSError as error:
            raise ProviderError(self.name, f"the run directory cannot be made: {error}") from error
        there = run.job()
        if (there.spec, there.dataset_digest) != (job.spec, job.dataset_digest):
            raise Conflict(
                self.name, f"{run.path} belongs to another job", fix="submit again: a new run gets a new ref"
            )
        return reading.handle(run)

    def find(self, ref: str) -> list[JobHandle]:
        run = RunDir(self._runs / ref)
        return [reading.handle(run)] if run.exists() else []

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, job: JobHandle) -> Job:
        return reading.job(self._run(job))

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        for run in runs(self._runs):
            job = reading.job(run)
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
        """Workers on this machine: nobody sends a bill for them."""
        return standing.of_jobs(self, kind="worker", bills=False, note="electricity and wear of this machine")

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, job: JobHandle) -> None:
        run = self._run(job)
        run.ask("cancel")
        self._settle(run, "cancelled")

    def pause(self, job: JobHandle) -> None:
        run = self._run(job)
        run.ask("pause")
        self._settle(run, "paused")

    def resume(self, job: JobHandle) -> None:
        launching.resume(self._run(job))

    def recover(self, job: JobHandle) -> bool:
        """Restarts a worker that died without an end (killed, power cut); True when one was started.

        A job that someone paused stays paused. After `MOST_RESTARTS` deaths the job is failed instead.
        """
        run = self._run(job)
        state = run.state()
        if state.status != "interrupted":
            return False
        if state.attempt >= MOST_RESTARTS:
            error = JobError(
                code="worker_died", message=f"the worker died {state.attempt} times; see {run.log}"
            )
            self._settle(run, "failed", error=error)
            return False
        return launching.resume(run)

    def delete(self, job: JobHandle) -> None:
        """Cancels first; the folder goes once its worker has ended."""
        run = RunDir(self._runs / job.job_id)
        if not run.exists():
            return
        self._close(job.job_id)
        self.cancel(job)
        deadline = time.monotonic() + 60
        while run.alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        if run.alive():
            raise ProviderError(
                self.name, f"the worker of {run.ref} is not stopping", fix="try again in a minute"
            )
        shutil.rmtree(run.path, ignore_errors=True)

    def _settle(self, run: RunDir, status: str, **changes: Any) -> None:
        """Writes the status itself when there is no worker to do it."""
        with run.lock() as held:
            state = run.written_state()
            if not held or state.terminal or state.status == status:
                return
            end = {"finished_at": now()} if STATUSES[status].terminal else {}
            run.write_state(
                msgspec.structs.replace(state, status=status, stage=None, updated_at=now(), **end, **changes)
            )
            run.add_event(f"{status}; no worker was running", type=status, step=state.step)

    # -- the tuned model -----------------------------------------------------------------------------------

    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        run = self._run(job)
        source = weights.of(run, checkpoint, self.name)
        files = weights.copied(source, dest, progress)
        return Artifact(
            kind=source.name,
            folder=str(dest),
            files=files,
            base_model=run.job().model,
            provider=self.name,
            job_id=job.job_id,
        )

    def sheet(self, job: JobHandle) -> Sheet | None:
        with suppress(OSError, msgspec.MsgspecError):
            return Sheet.from_json(self._run(job).proof.read_bytes())
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

    def generator(self, job: JobHandle, *, checkpoint: str | None = None) -> Generator:
        """One process for each model that was asked for, until `close`."""
        from orchestrate.local.answers.generation import Generator

        key = (job.job_id, checkpoint)
        if key not in self._generators:
            run = self._run(job)
            local = run.job()
            folder = weights.of(run, checkpoint, self.name)
            self._generators[key] = Generator(local.model, folder, threads=local.threads, device=local.device)
        return self._generators[key]

    def _close(self, id: str) -> None:
        for key in [key for key in self._generators if key[0] == id]:
            self._generators.pop(key).close()

    # -- shared --------------------------------------------------------------------------------------------

    @property
    def _runs(self) -> Path:
        return self.home / "runs"

    def _run(self, job: JobHandle) -> RunDir:
        run = RunDir(self._runs / job.job_id)
        if not run.exists():
            raise NotFound(self.name, f"there is no run directory {run.path}")
        return run
