"""Resume a run, with its previous limits or with new ones.

Limits apply to the complete run. A higher limit is first reserved in the budget and stored, then sent to the
run's workers, and then a worker is started. A lower limit is sent to the workers first. If the call is
interrupted, repeat it to complete the change. Training never exceeds the amount reserved in the budget.
"""

from __future__ import annotations

from decimal import ROUND_CEILING, Decimal
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from msgspec.structs import replace

from orchestrate.errors import UsageError
from orchestrate.paid.limits import exceeds, reached, require_price
from orchestrate.providers.base import Limited, Provider, Resumes, capability
from orchestrate.runs.submitting.settler import lease_name
from orchestrate.store import transitions
from orchestrate.store.ledger import Limit
from orchestrate.text import duration, limit, money
from orchestrate.types import SESSION, Allowance, Event, JobStatus, Run, SubmitPhase, TrialState

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

_NO_HOURLY_PRICE = "the hourly price is unknown"
_CENT = Decimal("0.01")
_LEASE_S, _LOOK_S = 10.0, 0.2
"""How long the lease of a killed process stays valid, and how long to wait between checks of another
process's lease, in seconds."""


class RaisedLimits(NamedTuple):
    """The requested limits. `None` leaves a limit unchanged."""

    usd: Decimal | None = None
    hours: Decimal | None = None


class Resumed(Protocol):
    """Interface of objects that can be resumed, such as a `TrackedRun`."""

    record: Run

    @property
    def provider(self) -> Provider: ...
    @property
    def status(self) -> JobStatus: ...
    def refresh(self) -> Run: ...


def resume(ws: Workspace, handle: Resumed, asked: RaisedLimits) -> Run:
    """Resume a run. See `TrackedRun.resume`."""
    ws.settings.require_to_spend(handle.provider)
    for name, value in (("--max-cost", asked.usd), ("--max-hours", asked.hours)):
        if value is not None and (not value.is_finite() or value <= 0):
            raise UsageError(f"{name} must be a number above 0, got {value}")
    if handle.record.job_id is None:
        return _sent(ws, handle, asked)
    capability(handle.provider, Resumes)
    # The second of two concurrent calls waits for the first and finds the worker that it started.
    # Without the lease, each call would start a machine.
    name, wait = lease_name(handle.record), partial(ws.store.clock.sleep, _LOOK_S)
    with ws.store.leases.hold(name, _LEASE_S, wait=wait):
        _resumed(ws, handle, asked)
    return handle.refresh()


def _resumed(ws: Workspace, handle: Resumed, asked: RaisedLimits) -> None:
    provider, given = handle.provider, asked != RaisedLimits()
    require_going(handle.refresh(), "resume")
    if given:
        _give(ws, handle, asked)
    elif isinstance(provider, Limited) and handle.status is JobStatus.PAUSED:
        _catch_up(provider, handle.record)
    if handle.status is JobStatus.PAUSED or not given:
        capability(provider, Resumes).resume(handle.record.handle)
        if not transitions.at_rest(handle.refresh()):
            _reopen_trial(ws, handle.record)


def require_going(run: Run, verb: str) -> None:
    if run.status.terminal:
        raise UsageError(
            f"run {run.id} has already ended with status {run.status.value}, so there is nothing to {verb}",
            fix=f"orchestrate show {run.id}",
        )
    if run.status is JobStatus.CANCELLING:
        raise UsageError(f"run {run.id} is being canceled", fix=f"orchestrate show {run.id}")


def _sent(ws: Workspace, handle: Resumed, asked: RaisedLimits) -> Run:
    from orchestrate.runs.preparing.prepared import training_data
    from orchestrate.runs.submitting.repeats import stored_spec
    from orchestrate.runs.submitting.submit import Submitter

    run = handle.record
    if asked != RaisedLimits():
        raise UsageError(
            f"run {run.id} has no job yet, so its limits cannot be changed",
            fix=f"orchestrate cancel {run.id}, then submit again with other limits",
        )
    intent = run.phase is SubmitPhase.INTENT
    submitter = Submitter(ws.store, handle.provider, budget_usd=ws.settings.budget_usd)
    return submitter.resume(run, training_data(ws, stored_spec(run)) if intent else None)


def _give(ws: Workspace, handle: Resumed, asked: RaisedLimits) -> None:
    """Apply the requested limits. Raises `UsageError` and `OverBudget` before anything is changed."""
    run, provider = handle.record, handle.provider
    if not isinstance(provider, Limited):
        had = _at_host(ws, handle, asked)
        wanted = replace(had, max_usd=asked.usd)
        if run.job_kind == SESSION:  # its process uses the limit that it read at startup
            _require_paused(run, had, wanted)
        _keep(ws, run, had, wanted)
        return
    had = provider.allowance(run.handle)
    wanted = replace(
        had,
        max_hours=had.max_hours if asked.hours is None else float(asked.hours),
        max_usd=_own_usd(run, had) if asked.usd is None else asked.usd,
    )
    fix = f"orchestrate resume {run.id} --max-hours HOURS"
    require_price(provider.name, had.usd_per_hour, asked.usd, _NO_HOURLY_PRICE, fix)
    if wanted.used_up:
        raise UsageError(
            f"run {run.id} has already used {_used(had)}, so a total of "
            f"{_described(wanted)} would already be reached",
            fix=f"orchestrate resume {run.id} {wanted.least()}, or with a higher limit",
        )
    _require_paused(run, had, wanted)
    keep = partial(_keep, ws, run, had, wanted)
    allow = partial(provider.allow, run.handle, max_hours=wanted.max_hours, max_usd=wanted.max_usd)
    # Even if this is interrupted in between, no worker may spend more than the budget has reserved.
    for step in (allow, keep) if exceeds(had.most_usd, wanted.most_usd) else (keep, allow):
        step()


def _require_paused(run: Run, had: Allowance, wanted: Allowance) -> None:
    """Raise `UsageError` if the limits would change while a worker still uses the old ones."""
    if run.status is not JobStatus.PAUSED and wanted != had:
        raise UsageError(
            f"run {run.id} is {run.status.value}, and a running worker keeps the limits it was started with",
            fix=f"orchestrate pause {run.id}, then run the same command again",
        )


def _own_usd(run: Run, had: Allowance) -> Decimal | None:
    """Return the cost limit that the user set. A limit that comes from the quote changes with the hours."""
    return had.max_usd if run.allowed_usd is None else run.max_cost_usd


def _at_host(ws: Workspace, handle: Resumed, asked: RaisedLimits) -> Allowance:
    """Return the limits of a hosted run, which has only a cost limit that the watcher enforces. Raises
    `UsageError` for a limit in hours or one that is already used up."""
    run, provider = handle.record, handle.provider
    if asked.hours is not None:
        raise UsageError(
            f"--max-hours has no effect on {provider.name}, which cannot limit how long a run takes",
            fix=f"orchestrate resume {run.id}",
        )
    bill = ws.bill(run, provider.get(run.handle))
    used = Decimal(0) if bill is None else bill.usd
    if asked.usd is not None and reached(used, asked.usd):
        least = max(used + _CENT, run.quote.held_usd if run.quote else used)
        raise UsageError(
            f"run {run.id} has already cost {money(used)}, so a total of {limit(asked.usd)} "
            "would already be reached",
            fix=f"orchestrate resume {run.id} --max-cost {least.quantize(_CENT, ROUND_CEILING)}   (or more)",
        )
    return Allowance(max_usd=run.max_cost_usd, max_hours=run.max_hours)


def _keep(ws: Workspace, run: Run, had: Allowance, wanted: Allowance) -> None:
    """Store the new limits together with an event that reports them."""
    if (run.max_cost_usd, run.max_hours) == (wanted.max_usd, wanted.max_hours):
        return  # an earlier, interrupted call already stored them
    most, before = wanted.most_usd, had.most_usd
    if most is None and not run.sandbox:
        require_price(run.provider, most, ws.settings.budget_usd, _NO_HOURLY_PRICE)
    if run.allowed_usd is None and (before is None or not exceeds(most, before)):
        most = None  # the amount reserved in the budget doesn't change
    at = ws.store.clock.now()
    event = Event(
        id=f"orchestrate-limits-{at.isoformat()}",
        at=at,
        level="info",
        type="limits",
        message=f"the total limits changed from {_described(had)} to {_described(wanted)}"
        + (f". Used so far: {_used(wanted)}" if wanted.used_s else ""),
        data={"before": _data(had), "after": _data(wanted)},
    )
    ws.store.runs.commit(
        run.id,
        most,
        lambda now: transitions.given(now, at, wanted, most),
        ws.settings.budget_usd,
        limits=[] if most is None else _limits(ws, run, max(most, wanted.max_usd or most)),
        event=event if had != wanted else None,
        figure="the run's cost under the new limit",
    )


def _catch_up(provider: Limited, run: Run) -> None:
    """Send the limits that the user raised earlier, if they did not reach the workers."""
    if run.max_hours is None and run.allowed_usd is None:
        return
    had = provider.allowance(run.handle)
    hours = None if had.max_hours is None else max(had.max_hours, run.max_hours or 0.0)
    usd = None if had.max_usd is None else max(had.max_usd, run.max_cost_usd or Decimal(0))
    provider.allow(run.handle, max_hours=hours, max_usd=usd)


# -- sweeps ------------------------------------------------------------------------------------------------


def _limits(ws: Workspace, run: Run, usd: Decimal) -> list[Limit]:
    """Return the cost limit of the sweep that the run is a trial of."""
    found = ws.store.searches.of_run(run)
    if found is None:
        return []
    limit = ws.store.searches.limit(
        *found,
        figure="the maximum cost under the new limit",
        then="The run is unchanged",
        fix="start the same sweep again with a higher --max-cost, then run this command again",
    )
    return [] if limit is None else [limit._replace(wanted=usd)]


def _reopen_trial(ws: Workspace, run: Run) -> None:
    """Reopen a trial that its sweep gave up at the limit, so that it is scored once it ends."""
    found = ws.store.searches.of_run(run)
    if found is not None:
        ws.store.searches.change(
            found[0].id,
            found[1].number,
            lambda now: (
                replace(now, state=TrialState.OPEN, note=None) if now.state is TrialState.FAILED else now
            ),
        )


# -- words -------------------------------------------------------------------------------------------------


def _described(limits: Allowance) -> str:
    words = [] if limits.max_hours is None else [f"{limits.max_hours:g} hours"]
    words += [] if limits.max_usd is None else [limit(limits.max_usd)]
    return " and ".join(words) or "none"


def _used(limits: Allowance) -> str:
    usd = limits.used_usd
    return duration(limits.used_s) + (f" ({money(usd)})" if usd is not None else "")


def _data(limits: Allowance) -> dict[str, str | float | None]:
    usd = limits.max_usd
    return {"max_hours": limits.max_hours, "max_cost_usd": None if usd is None else str(usd)}
