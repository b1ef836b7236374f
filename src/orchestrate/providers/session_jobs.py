"""Hosts that support both jobs and training sessions. The run directories of sessions are on this machine."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from msgspec.structs import replace

from orchestrate.errors import ProviderError, Unsupported, UsageError
from orchestrate.local.run import RunDir
from orchestrate.providers.base import Cancels, Deletes, Measures, Sessions, StopsWorkers
from orchestrate.providers.hosted import HostedProvider
from orchestrate.providers.rented import RentedMachines
from orchestrate.providers.rundirs import SessionRuns
from orchestrate.providers.sessions import SESSION, SessionOrder
from orchestrate.types import Billing, Checkpoint, Event, Job, JobHandle, JobStatus, MetricPoint

# pyright: reportAbstractUsage=false
# `super()` refers to the provider that this class is mixed into, which pyright can't know.


class JobsAndSessions(HostedProvider, Cancels, Measures, Deletes, Sessions, StopsWorkers):
    """Mixin that adds training sessions to a provider of jobs. List it before the provider among the base
    classes."""

    @cached_property
    def _runs(self) -> SessionRuns:
        return SessionRuns(Path(str(self.config.options["home"])), self.name)

    def session_dir(self, order: SessionOrder) -> RunDir:
        return self._runs.make(order)

    @cached_property
    @abstractmethod
    def machines(self) -> RentedMachines: ...

    def stop_workers(self, ref: str) -> None:
        self.machines.end_by_ref(ref)

    def _session_job(self, job: JobHandle) -> Job:
        """Read the run directory, and query the host for the billed time of machines that are still up."""
        run = self._runs.dir(job)
        found = self._runs.job(run)
        if found.status.terminal or found.status is JobStatus.PAUSED:
            billed = self.machines.seconds(run)
            found = replace(found, worked_seconds=max(found.worked_seconds or 0.0, billed))
        return found

    def get(self, job: JobHandle) -> Job:
        return self._session_job(job) if job.kind == SESSION else super().get(job)

    def find(self, ref: str) -> list[JobHandle]:
        return self._runs.find(ref) or super().find(ref)

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        if job.kind != SESSION:
            yield from super().events(job, after=after)
        else:
            yield from self._runs.dir(job).events(after)

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        return self._runs.dir(job).metrics() if job.kind == SESSION else super().metrics(job)

    def _job_checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        del job
        return []

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        return self._runs.checkpoints(job) if job.kind == SESSION else self._job_checkpoints(job)

    def cancel(self, job: JobHandle) -> None:
        if job.kind != SESSION:
            super().cancel(job)
        elif self._runs.ask(job, "cancel", "cancelled"):
            self.machines.end(self._runs.dir(job))

    def pause(self, job: JobHandle) -> None:
        if job.kind != SESSION:
            raise Unsupported(self.name, "pause", f"{self.profile.title} cannot pause a job")
        if self._runs.ask(job, "pause", "paused"):
            self.machines.end(self._runs.dir(job))

    def delete(self, job: JobHandle) -> None:
        if job.kind == SESSION:
            raise UsageError(
                f"{self.profile.title} has no API for deleting checkpoints of training sessions",
                fix=f"delete them on {self.profile.title}'s website",
            )
        super().delete(job)

    def billing(self) -> Billing:
        found = super().billing()
        try:
            return replace(found, items=(*found.items, *self.machines.billing_items()))
        except ProviderError as error:
            message = f"could not list the machines of training sessions: {error.message}"
            return replace(found, partial=True, unseen=(*found.unseen, message))
