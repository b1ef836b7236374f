"""What a host leaves undone: a cancel that it answered, a job that it no longer has, one that stays paused.

Each is said once, as an event of the run and in the report of the sync, and asked again at every sync.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

from orchestrate.types import Event, Feature, Job, JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.tracking.store import Store

GRACE = timedelta(minutes=2)
"""So long a host may take to end a job that it was asked to end."""
_ENDING = frozenset({JobStatus.CANCELLING, JobStatus.FINALIZING, JobStatus.UNKNOWN})


def gone(store: Store, provider: Provider, run: Run) -> None:
    """Its host says that it has no such job, which ends nothing by itself."""
    told = (
        f"{provider.title} no longer has job {run.job_id}; it may have been deleted there, and what it "
        f"cost is not known; if so:  orchestrate abandon {run.id} --reason TEXT"
    )
    _say(store, run, "gone", told)


def uncancelled(store: Store, provider: Provider, run: Run, job: Job) -> bool:
    """Whether a job goes on long after its cancel was answered; its end is then asked for again. Raises
    `ProviderError`."""
    asked = run.status is JobStatus.CANCELLING and store.clock.now() - run.updated_at > GRACE
    if not asked or job.status.terminal or job.status in _ENDING or Feature.CANCEL not in provider.features:
        return False
    told = (
        f"{provider.title} was asked to cancel job {run.job_id}, and it is still {job.raw_status} and "
        f"billed; asked again at every sync. Look there, or  orchestrate abandon {run.id} --reason TEXT"
    )
    _say(store, run, "uncancelled", told)
    provider.cancel(run.handle)
    return True


def paused(store: Store, provider: Provider, run: Run) -> None:
    """The host holds its job."""
    told = (
        f"{provider.title} holds job {run.job_id}; it keeps its share of the budget until it ends: "
        f"orchestrate resume {run.id}, cancel or abandon"
    )
    _say(store, run, "paused", told)


def _say(store: Store, run: Run, what: str, told: str) -> None:
    event = Event(id=f"orchestrate-{what}", at=store.clock.now(), level="warning", type=what, message=told)
    store.history.add_events(run.id, [event], from_host=False)
