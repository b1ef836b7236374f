"""`AwayProvider` runs the training engine on a cluster or a GPU cloud. The backend's profile determines which
one. Specs, rows, run directories and commands are the same as for local training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate import costing
from orchestrate.core.files import locked, write_whole
from orchestrate.errors import (
    HostUnavailable,
    NotFound,
    OrchestrateError,
    ProviderError,
    SetupError,
    UsageError,
)
from orchestrate.local.job import LocalJob
from orchestrate.local.machine import cores
from orchestrate.local.plan import throughput
from orchestrate.local.plan.throughput import KnownLog, ThroughputKey
from orchestrate.local.run import STATUSES, RunDir, runs
from orchestrate.places import manifest, storage
from orchestrate.places.away import AwayPlace
from orchestrate.places.base import Hourly, Machine, Placed, Resources
from orchestrate.providers import rundirs as reading
from orchestrate.providers.base import Limited, RecoversJobs
from orchestrate.providers.local import checks, rented_machines
from orchestrate.providers.local.provider import LocalProvider
from orchestrate.settings import redact_text
from orchestrate.text import duration
from orchestrate.types import (
    Account,
    Allowance,
    BilledResource,
    Billing,
    Checkpoint,
    Confidence,
    Event,
    Job,
    JobError,
    JobHandle,
    JobRecovery,
    JobStatus,
    MemoryPlan,
    MetricPoint,
    Outcome,
    Problem,
    Quote,
    ReportedSettings,
    Setting,
    Severity,
    TokensFrom,
    Translation,
    decoding,
)

if TYPE_CHECKING:
    from orchestrate.costing import RateBook
    from orchestrate.data import TrainingData
    from orchestrate.spec import JobSpec

STARTUP = KnownLog(log=5.7, off=0.7)
"""Log-normal distribution of the startup time in seconds: starting a machine, installing packages and loading
the model's weights. The median is about five minutes."""


def _there(kind: ThroughputKey, gpu: str | None, threads: int) -> ThroughputKey:
    return msgspec.structs.replace(kind, device=gpu or "cpu", threads=threads if gpu is None else 1)


class AwayProvider(LocalProvider, RecoversJobs, Limited):
    """Backend that trains on a cluster or a GPU cloud. `config.options` contains `home` and the options of
    the cluster or cloud, which are documented in its module."""

    place: AwayPlace

    def _place(self) -> AwayPlace:
        module, _, name = self.profile.place.partition(":")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise SetupError(f"could not load the backend {self.profile.kind!r}: {error}") from error
        reached = () if self.profile.keyless else (self.config,)
        return found(self.name, self.config.options, *reached)

    @property
    def home(self) -> Path:
        return super().home.with_name("places") / self.name

    @property
    def host(self) -> str:
        return self.profile.title

    # -- offline -------------------------------------------------------------------------------------------

    def translate(self, spec: JobSpec) -> Translation:
        """Translate the spec as for local training, but plan memory for the requested machine's GPU."""
        asked, engine = self._requested_machine(spec), self._as_local(spec)
        own = {**self._engine_options, "gpu_memory_gib": 1} if self._may_have_gpu(asked) else self._on_cpu
        first = self._engine_translation(engine, own)
        try:
            machine, why = self._machine(spec, asked, first)
            found = rented_machines.resources(asked, machine, spec)
        except UsageError as error:
            reason = error.message + (f": {error.fix}" if error.fix else "")
            row = Setting(
                name="provider_options.gpu", asked=asked.get("gpu"), outcome=Outcome.REFUSED, rule=reason
            )
            return msgspec.structs.replace(first, settings=(*first.settings, row), memory=None)
        if found.gpu and found.count > 1:
            # One process for each GPU, unless the spec says otherwise.
            kind = LocalProvider.profile.kind
            own = {"processes": found.count, **engine.provider_options.get(kind, {})}
            engine = engine.model_copy(update={"provider_options": {kind: own}})
        whole = self._engine_translation(engine, self._planned_for(machine, found))
        rows = rented_machines.rows(asked, found, machine, why)
        if row := rented_machines.apart(found, whole.body.get("hyper", {}), groups=self.place.groups):
            rows = [*(one for one in rows if one.name != row.name), row]
            kept = tuple(one for one in whole.settings if one.name != row.name)
            whole = msgspec.structs.replace(whole, settings=kept)
        body = {**whole.body, "resources": found.to_dict(), "device": "cuda" if found.gpu else "cpu"}
        return msgspec.structs.replace(whole, settings=(*whole.settings, *rows), body=body)

    def _engine_translation(self, engine: JobSpec, options: Mapping[str, Any]) -> Translation:
        from orchestrate.providers.local.translation import translate

        return msgspec.structs.replace(translate(engine, options), provider=self.name)

    def _requested_machine(self, spec: JobSpec) -> dict[str, Any]:
        """Return the machine's options: the spec's own, which override those that the configuration sets
        for all runs."""
        given = self._given(spec)
        said = {
            name: self.config.options[name] for name in rented_machines.OPTIONS if name in self.config.options
        }
        asked = {
            **said,
            **{name: value for name, value in given.items() if name in rented_machines.MACHINE_OPTIONS},
        }
        if asked.get(rented_machines.DEVICE) == "cpu" and asked.get("gpu", "auto") == "auto":
            asked["gpu"] = "none"
        return asked

    def _given(self, spec: JobSpec) -> dict[str, Any]:
        options = spec.provider_options
        return {**options.get(self.profile.kind, {}), **options.get(self.name, {})}

    def _as_local(self, spec: JobSpec) -> JobSpec:
        given = self._given(spec)
        own = {name: value for name, value in given.items() if name not in rented_machines.MACHINE_OPTIONS}
        options = {LocalProvider.profile.kind: own} if own else {}
        return spec.model_copy(update={"model": spec.model_for(self.name), "provider_options": options})

    @property
    def _engine_options(self) -> dict[str, Any]:
        return {"allow_grader_code": self.config.options.get("allow_grader_code") is True}

    @property
    def _on_cpu(self) -> dict[str, Any]:
        return {**self._engine_options, "device": "cpu"}

    def _may_have_gpu(self, asked: Mapping[str, Any]) -> bool:
        machines = self.place.machines()
        return asked.get("gpu", "auto") != "none" and (not machines or any(one.gpu for one in machines))

    def _machine(
        self, spec: JobSpec, asked: Mapping[str, Any], first: Translation
    ) -> tuple[Machine | None, str]:
        """Raises `UsageError`."""
        if first.refused:
            return None, "fix the rejected settings first"
        billions, kind = self.resolve(self._as_local(spec)).params_b, self._work_kind(spec, first)

        def operations(gpu: str) -> float:
            there = _there(kind, gpu, 1)
            return throughput.estimate(self.home, there).tokens_per_second * there.operations

        found = rented_machines.fits(self.place.machines(), first.model, first.body, billions, operations)
        return rented_machines.chosen(asked, found)

    def _planned_for(self, machine: Machine | None, found: Resources) -> dict[str, Any]:
        if found.gpu is None:
            return self._on_cpu
        size = machine.memory_bytes if machine else None
        known = {"gpu_capability": rented_machines.CAPABILITY.get(found.gpu.upper())}
        return {**self._engine_options, **known, **({"gpu_memory_gib": size / 2**30} if size else {})}

    def _plan_options(self, translation: Translation) -> Mapping[str, Any]:
        plan = translation.memory
        size = plan.available_bytes if plan else None
        on_gpu = size is not None and plan is not None and plan.device == "cuda"
        return {**self._engine_options, **({"gpu_memory_gib": size / 2**30} if on_gpu and size else {})}

    def memory(self, spec: JobSpec, data: TrainingData, translation: Translation) -> MemoryPlan | None:
        options = self._plan_options(translation)
        return checks.memory_of_rows(self._as_local(spec), data, translation, options)

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        found = super().check(spec, data, translation)
        try:
            self.place.require()
        except SetupError as error:
            found.append(
                Problem(
                    code="place-not-ready",
                    message=error.message,
                    severity=Severity.ERROR,
                    providers=(self.name,),
                    fix=error.fix,
                )
            )
        return found + self._too_long(spec, data, translation)

    def _too_long(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        """Warn about a run that is expected to take longer than its limit, and would be paused in the
        middle."""
        if translation.refused or data.train.tokens_from is TokensFrom.NONE:
            return []
        seconds = self.quote(spec, data, translation, costing.RateBook(())).train_seconds
        most = decoding.convert(translation.body.get("resources", {}), Resources).limits.working_s()
        if seconds is None or most is None or seconds <= most:
            return []
        speed = self.speed(spec, translation)
        pace = f"at {speed.tokens_per_second:,.0f} tokens per second, {speed.source}"
        return [
            Problem(
                code="longer-than-its-limits",
                message=f"the run is expected to take {duration(seconds)} ({pace}), but will be paused after "
                f"{duration(most)} because of its time or cost limit",
                severity=Severity.WARNING,
                providers=(self.name,),
                fix="set a higher max_hours or max_cost_usd, or use a faster gpu",
            )
        ]

    def quote(
        self,
        spec: JobSpec,
        data: TrainingData,
        translation: Translation,
        rates: RateBook,
        *,
        gpu_hours: Decimal | None = None,
    ) -> Quote:
        found = super().quote(spec, data, translation, rates, gpu_hours=gpu_hours)
        return msgspec.structs.replace(found, ends_usd=self.ends_usd(spec, translation, found))

    def ends_usd(self, spec: JobSpec, translation: Translation, quote: Quote) -> Decimal | None:
        limits = decoding.convert(translation.body.get("resources", {}), Resources).limits
        if quote.high_usd is None or not limits.usd_per_hour or limits.max_hours is None:
            return None
        hours = limits.usd_per_hour * Decimal(str(limits.max_hours))
        if spec.max_cost_usd is not None:
            return min(spec.max_cost_usd, hours)
        return (
            hours
            if self._requested_machine(spec).get("max_hours") is not None
            else min(quote.high_usd, hours)
        )

    def _speed(self, kind: ThroughputKey, body: Mapping[str, Any]) -> throughput.Throughput:
        gpu = decoding.convert(body.get("resources", {}), Resources).gpu
        there = _there(kind, gpu, kind.threads)
        found = throughput.estimate(self.home, there, place=self.name)
        began = [*throughput.startups(there, throughput.read_pace(throughput.file_of(self.home))), STARTUP]
        return msgspec.structs.replace(found, besides=throughput.combined(began, least=throughput.UNPROVED))

    def _keep_pace(self, run: RunDir) -> None:
        """Save what its worker measured, for the quotes of later runs, once. It is saved under the
        requested machine, because quotes know no other, with all the time that is paid for."""
        mark = run.path / ".paced"
        if run.written_state().status != "succeeded" or mark.is_file():
            return
        with locked(run.path / ".look", wait_s=None):
            if mark.is_file():
                return
            job, used = run.job(), self.place.usage(run.ref)
            for pace in throughput.read_pace(throughput.file_of(run.path)):
                gpu = decoding.convert(job.resources, Resources).gpu
                kind = _there(pace.kind, gpu, job.threads or cores())
                known = throughput.estimate(self.home, kind)
                besides = pace.besides_seconds if used is None else max(0.0, used.seconds - pace.seconds)
                kept = msgspec.structs.replace(pace, kind=kind, besides_seconds=besides)
                kept = msgspec.structs.replace(kept, told=known.tokens_per_second, told_by=known.told_by)
                throughput.add(throughput.file_of(self.home), kept)
            write_whole(mark, b"")

    def _hourly(self, body: Mapping[str, Any], rates: RateBook) -> costing.HourlyRate | None:
        del rates  # the place has its own
        found = decoding.convert(body.get("resources", {}), Resources)
        for machine in self.place.machines():
            hourly = machine.spot if found.spot else machine.hourly
            if machine.name == found.machine and hourly is not None:
                return costing.HourlyRate(
                    component="rental",
                    usd_per_hour=hourly.usd_per_hour,
                    label=f"{found.description}{', spot' if found.spot else ''} ({hourly.machine})",
                    source=hourly.source,
                    as_of=hourly.as_of.date().isoformat(),
                    confidence=Confidence.QUOTED,
                    low_usd_per_hour=hourly.usd_per_hour,
                    high_usd_per_hour=hourly.usd_per_hour,
                )
        return None

    def device(self) -> str:
        return "cpu"

    @property
    def own(self) -> bool:
        """True if all data, including the stored rows, stays on the user's own machines."""
        return self.config.own or (self.place.own and self.place.depot_on_disk)

    # -- account -------------------------------------------------------------------------------------------

    def account(self) -> Account:
        return Account(id=self.place.account() or f"runs in {self.place.storage_url}", reported=True)

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, job: JobHandle) -> None:
        """Cancel the job. The host stops the worker first, because a hung worker ignores requests but is
        still billed. Then the cancel request is written to the storage. If either step fails, raises its
        error so the user can try again. If the storage is unavailable, the run's status becomes canceled once
        the storage is back."""
        failed: ProviderError | None = None
        try:
            self.place.stop(job.job_id)
        except ProviderError as error:
            failed = error
        run = RunDir(self._runs / job.job_id)
        if run.exists():
            run.ask("cancel")
        try:
            super().cancel(job)
        except _Unstored:
            pass  # no worker of it reads a word
        except HostUnavailable as error:
            if failed is None:
                error.message += f". The worker at {self.profile.title} was stopped"
            raise (failed or error) from error
        if failed is not None:
            raise failed

    def allowance(self, job: JobHandle) -> Allowance:
        return self.place.allowance(self._run(job))

    def allow(self, job: JobHandle, *, max_hours: float | None, max_usd: Decimal | None) -> None:
        manifest.allow(self.place.run_storage.run(job.job_id), max_hours, max_usd)

    # -- reading -------------------------------------------------------------------------------------------

    def get(self, job: JobHandle) -> Job:
        try:
            return super().get(job)
        except _Unstored:
            if (placed := self.place.state(job.job_id)) is None:
                raise
            return self._listed(placed.ref, placed)

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        with suppress(_Unstored):
            yield from super().events(job, after=after)

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        with suppress(_Unstored):
            return super().metrics(job)
        return []

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        with suppress(_Unstored):
            return super().checkpoints(job)
        return []

    def _run(self, job: JobHandle) -> RunDir:
        """Return the run directory. A run that was started from another machine, or whose copy here was
        deleted, is in the storage."""
        run = RunDir(self._runs / job.job_id)
        if not run.exists():
            stored = self.place.run_storage.run(job.job_id)
            if stored.read("order.json") is None:
                reason = f"{job.job_id} was found neither in {run.path} nor in {self.place.storage_url}"
                raise _Unstored(self.name, reason)
            RunDir.make(self._runs, manifest.read_manifest(stored).job)
        return super()._run(job)

    def _job_of(self, run: RunDir) -> Job:
        """Add the cost that the place reports, once the run has ended."""
        self._keep_pace(run)
        job = reading.job(run, self.name)
        with suppress(HostUnavailable):  # without run storage, there is nothing to fetch
            job = msgspec.structs.replace(job, worked_seconds=self.place.worked_s(run.ref) or None)
        used = self.place.usage(run.ref)
        if used is None:
            return job
        usd = used.usd if job.status.terminal else None
        return msgspec.structs.replace(
            job,
            cost_usd=usd,
            cost_origin=None if usd is None else used.source,
            payload={**job.payload, "used_seconds": used.seconds},
        )

    # -- jobs started from other machines ------------------------------------------------------------------

    def recoverable(self, *, since: datetime | None = None) -> Iterator[Job]:
        """List the jobs that Orchestrate started on this backend. Jobs are found by Orchestrate's label, by a
        marker in the storage, or by a run directory on this machine. The marker remains even if the backend
        no longer lists the job."""
        failed: OrchestrateError | None = None
        placed: dict[str, Placed] = {}
        refs: list[str] = []
        try:
            for one in self.place.find():
                if one.owner is None:
                    placed.setdefault(one.ref, one)
        except OrchestrateError as error:
            failed = error
        try:
            refs = self.place.stored()
        except OrchestrateError as error:
            failed = failed or error
        here = {run.ref for run in runs(self._runs)}
        for ref in dict.fromkeys([*placed, *refs, *sorted(here)]):
            handle, job = JobHandle(provider=self.name, job_id=ref, ref=ref), None
            with suppress(OrchestrateError):  # as with a job that is not here yet: a sync reports its error
                job = self.get(handle) if ref in here else None
            job = job or self._listed(ref, placed.get(ref))
            if since is None or job.created_at is None or job.created_at >= since:
                yield job
        if failed is not None:
            raise failed

    def taken_over(self, job: Job) -> Job:
        return self.get(job.handle)

    def recover_job(self, job: Job) -> JobRecovery:
        limits = manifest.read_manifest(self.place.run_storage.run(job.handle.job_id)).limits
        hourly = self.place.price_of(job.handle.job_id)
        if hourly is not None:
            limits = msgspec.structs.replace(limits, usd_per_hour=hourly.usd_per_hour)
        return JobRecovery(
            usd_per_hour=hourly.usd_per_hour if hourly else None,
            price_source=hourly.source if hourly else None,
            most_seconds=self.place.hard_end_s(limits),
        )

    def reported_settings(self, job: Job) -> ReportedSettings:
        try:
            found = manifest.read_manifest(self.place.run_storage.run(job.handle.job_id))
        except OrchestrateError:  # the storage is closed, or holds no run: `recover_job` says which
            return ReportedSettings()
        return ReportedSettings(
            spec=found.job.spec,
            dataset_digest=found.job.dataset_digest,
            max_cost_usd=found.limits.max_usd,
        )

    def _listed(self, ref: str, placed: Placed | None) -> Job:
        """Build the job from its place's list and its storage, without fetching its files."""
        made: LocalJob | None = None
        state, error = None, None
        try:
            made = manifest.read_manifest(self.place.run_storage.run(ref)).job
            state = storage.state_of(self.place.run_storage.run(ref))
        except OrchestrateError as problem:
            reason = f"{problem.message}. You can cancel the run, but not follow it or download its model"
            error = JobError(code="not_stored", message=reason)
        raw = placed.raw_state.lower() if placed else "unknown"
        status = _PLACED.get(placed.state if placed else "", JobStatus.UNKNOWN)
        if state is not None and (state.terminal or status is JobStatus.UNKNOWN):
            raw = state.status
            status = STATUSES.get(raw, JobStatus.UNKNOWN)
        return Job(
            handle=JobHandle(provider=self.name, job_id=ref, ref=ref),
            status=status,
            raw_status=raw,
            model=made.model_name if made else None,
            created_at=made.created_at if made else placed.created_at if placed else None,
            started_at=state.started_at if state else None,
            finished_at=state.finished_at if state else None,
            error=error,
        )

    # -- billing -------------------------------------------------------------------------------------------

    def stop_workers(self, ref: str) -> None:
        self.place.stop(ref)

    def billing(self) -> Billing:
        """Report all Orchestrate workers at this place, including ones started from other machines."""
        found = [one for one in self.place.find() if one.state != "ended"]
        unpriced: str | None = None
        prices: Mapping[str, Hourly] = {}
        try:
            prices = self.place.hourly(found)
        except OrchestrateError as error:
            unpriced = f"could not look up the cost of the machines: {error.message}"
        items = tuple(self._billing_item(one, prices.get(one.id)) for one in found)
        return Billing(items=items, unseen=() if unpriced is None else (unpriced,))

    def _billing_item(self, one: Placed, hourly: Hourly | None) -> BilledResource:
        return BilledResource(
            provider=self.name,
            kind="job",
            id=one.id,
            name=one.ref,
            state=one.raw_state.lower(),
            bills=None if one.state == "unknown" else one.state == "running",
            usd_per_hour=hourly.usd_per_hour if hourly else None,
            rented=not self.place.own and (hourly is None or hourly.usd_per_hour > 0),
            job_id=one.ref,
            created_at=one.created_at,
            owner=one.owner,
            note=redact_text(one.message) if one.message else None,
        )


_PLACED = {"waiting": JobStatus.QUEUED, "running": JobStatus.RUNNING}
"""Maps the states that a cluster or cloud reports for a worker to job statuses. Ended workers are not
included, because the reported state does not show whether they succeeded."""


class _Unstored(NotFound):
    """Neither this machine nor the storage has anything of the run."""
