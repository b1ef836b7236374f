"""Ending runs that have become more expensive than their own cap: once each, and said so. A run on a rented
machine is paused: its checkpoints are kept, and `resume` may give it more."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from orchestrate.costing import cap_of
from orchestrate.providers.base import Limited, Pauses, capability
from orchestrate.text import limit, money
from orchestrate.tracking.submitting.submit import Submitter
from orchestrate.tracking.timing import DEFAULT_TIMING, Timing
from orchestrate.types import Bill, Event, Feature, Job, JobError, JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.tracking.store import Store

BillHook = Callable[[Run, Job], Bill | None]
"""What a run cost, or has cost so far, or `None` while that is not known."""

OVER_CAP = "over_cap"
"""The type of the event that tells of it, and the code of the ended run's error."""

_EVENT = "orchestrate-over-cap"
_LEFT_ALONE = frozenset({JobStatus.SUBMITTING, JobStatus.PAUSED, JobStatus.CANCELLING})


def enforce(
    store: Store,
    provider: Provider,
    run: Run,
    job: Job,
    bill: BillHook | None,
    timing: Timing = DEFAULT_TIMING,
) -> Event | None:
    """Cancels a job whose bill so far is above the run's cap, or pauses it. Returns the event that says so
    when it is new.

    Where the backend cannot cancel, the event asks the user to. Raises `ProviderError` when the host cannot
    be asked; the next call tries again.
    """
    cap = cap_of(run)
    if cap is None or bill is None or run.status.terminal or run.status in _LEFT_ALONE:
        return None
    so_far = bill(run, job)
    if so_far is None or so_far.usd <= cap:
        return None
    rented, able = isinstance(provider, Limited), Feature.CANCEL in provider.features
    done = "it is being cancelled" if able else f"{provider.title} cannot cancel it, so end it there"
    event = Event(
        # A paused run may be given more, and come to that.
        id=f"{_EVENT}-{cap}" if rented else _EVENT,
        at=store.clock.now(),
        level="warning",
        type=OVER_CAP,
        message=f"over its cap of {limit(cap)}: an estimated {money(so_far.usd)} so far "
        f"({so_far.origin}); {'it is being paused' if rented else done}",
        data={"usd": str(so_far.usd), "max_cost_usd": str(cap)},
    )
    # The event first: should this process end in between, the next look finds the job running and goes on.
    added = store.history.add_events(run.id, [event], from_host=False)
    if rented:
        capability(provider, Pauses).pause(run.handle)
    elif able:
        Submitter(store, provider, timing).cancel(run)
    return next(iter(added), None)


def told_at_end(store: Store, run: Run) -> None:
    """Says that an ended run cost more than its cap allowed."""
    cap, bill = run.max_cost_usd, run.bill
    if cap is None or bill is None or bill.usd <= cap:
        return
    usd = money(bill.usd) if bill.final else f"an estimated {money(bill.usd)}"
    event = Event(
        id="orchestrate-ended-over-cap",
        at=store.clock.now(),
        level="warning",
        type="ended_over_cap",
        message=f"it ended above its cap of {limit(cap)}: {usd} ({bill.origin})",
        data={"usd": str(bill.usd), "max_cost_usd": str(cap)},
    )
    store.history.add_events(run.id, [event], from_host=False)


def explained(store: Store, run: Run) -> Run:
    """A cancelled run with the cap as its reason, when it was that."""
    if run.max_cost_usd is None or run.status is not JobStatus.CANCELLED or run.error is not None:
        return run
    said = next((e for e in store.history.events(run.id) if e.id == _EVENT), None)
    if said is None:
        return run
    error = JobError(message=said.message, code=OVER_CAP)
    return store.runs.apply(
        run.id, lambda now: msgspec.structs.replace(now, error=error), note="over its cap"
    )
