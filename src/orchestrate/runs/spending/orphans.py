"""Orphaned resources: workers whose run has ended or is not in this store, and deployments that this store
does not track. Orphans are listed before any is shut down, and each one is checked again just before its
shutdown.

Only resources with Orchestrate's label or name prefix are included. Resources that another user of the
account is known to have created are excluded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Literal

from orchestrate.errors import OrchestrateError
from orchestrate.providers.base import Deploys, Provider, StopsWorkers, capability
from orchestrate.runs.spending import AccountStatus, SpendingReport, left_session, unaccounted
from orchestrate.types import BilledResource, JobHandle, Record

if TYPE_CHECKING:
    from orchestrate.store.store import Store

MARK = "orc-"


class Orphan(Record, frozen=True, kw_only=True):
    item: BilledResource
    run: str | None = None
    """Id of the matching run in this store, if any."""
    reason: str
    """Reason why no record in this store accounts for the resource."""
    outcome: Literal["listed", "asked to end", "kept", "failed"] = "listed"
    """Outcome of the request to shut down the resource. Only the host can confirm the shutdown, so a resource
    that is still up is listed again next time."""
    told: str | None = None
    """Reason why the resource was kept, or the error message if shutting it down failed."""


class OrphanReport(Record, frozen=True, kw_only=True):
    """The result of a search for orphans. `gaps` lists accounts that could not be queried completely and may
    contain more orphans."""

    at: datetime
    orphans: tuple[Orphan, ...] = ()
    gaps: tuple[AccountStatus, ...] = ()

    @property
    def failed(self) -> bool:
        return any(one.outcome == "failed" for one in self.orphans)


class Orphans:
    """Implements `Orchestrator.orphans`."""

    def __init__(self, store: Store, provider: Callable[[str], Provider]) -> None:
        self.store, self.provider = store, provider

    def among(self, report: SpendingReport) -> OrphanReport:
        items = [found.item for found in report.standing]
        found = tuple(one for item in items if (one := self._orphan(item)) is not None)
        return OrphanReport(at=report.at, orphans=found, gaps=tuple(report.gaps))

    def end(self, report: OrphanReport, on_result: Callable[[Orphan], object] | None = None) -> OrphanReport:
        """Shut down each resource independently, so one failure does not affect the others. Idempotent and
        safe to call concurrently."""
        ended: list[Orphan] = []
        for one in report.orphans:
            ended.append(self._ended(one))
            if on_result is not None:
                on_result(ended[-1])
        return OrphanReport(at=report.at, orphans=tuple(ended), gaps=report.gaps)

    def _ended(self, one: Orphan) -> Orphan:
        item = one.item
        if self._orphan(item) is None:
            return _with(one, "kept", "this store now tracks the resource")
        try:
            provider = self.provider(item.provider)
            if item.kind == "deployment":
                capability(provider, Deploys).undeploy(
                    JobHandle(provider=item.provider, job_id=str(item.job_id))
                )
            elif isinstance(provider, StopsWorkers):
                provider.stop_workers(str(item.job_id))
        except OrchestrateError as error:
            return _with(one, "failed", error.message)
        except Exception as error:  # noqa: BLE001  a defect of one backend must not keep the others billing
            return _with(one, "failed", f"bug in the backend plug-in ({type(error).__name__})")
        return _with(one, "asked to end", None)

    def _orphan(self, item: BilledResource) -> Orphan | None:
        """Return the resource if it is an orphan, by the current store. A run is stored before its job is
        created."""
        if item.job_id is None or not self._marked(item):
            return None
        job = item.job_id.lower()
        run = self.store.runs.of_names([item.job_id]).get(job)
        reason = None
        if item.kind == "deployment":
            kept = [d for d in self.store.deployments.matching() if d.job_id.lower() == job]
            if all(d.state.over for d in kept):
                reason = (
                    "this store records the deployment as ended"
                    if kept
                    else "no deployment in this store matches the resource"
                )
        else:
            reason = unaccounted(run, self.store.clock.now())
            reason = reason or left_session(self.provider(item.provider), run)
        return None if reason is None else Orphan(item=item, run=run.id if run else None, reason=reason)

    def _marked(self, item: BilledResource) -> bool:
        if item.owner is not None:
            return False
        if item.kind == "deployment":
            job = str(item.job_id).lower()
            ours = {name for name in (job, MARK + job) if name.startswith(MARK)}
            return item.bills is not False and not ours.isdisjoint({_bare(item.name or ""), _bare(item.id)})
        ours = item.kind == "job" and str(item.job_id).startswith(MARK)
        return ours and isinstance(self.provider(item.provider), StopsWorkers)


def _bare(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _with(one: Orphan, outcome: Literal["asked to end", "kept", "failed"], detail: str | None) -> Orphan:
    return Orphan(item=one.item, run=one.run, reason=one.reason, outcome=outcome, told=detail)
