"""Sync the store with the hosts: find the jobs of runs, resolve lost responses, and update all open runs.

Changes nothing on a host, with two exceptions. A sync ends what has exceeded its limit (cancels or pauses
runs, takes down deployments). It also sends cancel requests that have not reached the host, because the run's
job was unknown or the process that requested the cancellation died.

A sync reads each host's list page by page, so ten thousand runs cost as many requests as there are pages. It
requests only a few jobs individually: jobs missing from the list (lists lag, filter and drop jobs, so these
may still exist), and events, metrics and checkpoints of runs that have ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TypeVar

import msgspec

from orchestrate import costing
from orchestrate.costing import cap_of, spending
from orchestrate.errors import (
    NotFound,
    OrchestrateError,
    OtherAccount,
    PermissionRefused,
    ProviderError,
    StoreError,
    UnexpectedAnswer,
)
from orchestrate.paid.limits import exceeds
from orchestrate.providers.base import (
    Cancels,
    KeepsCheckpoints,
    Limited,
    Measures,
    Provider,
    Sessions,
    capability,
    pausing,
)
from orchestrate.providers.sessions import SESSION
from orchestrate.runs.hosting.upkeep import LOOK_BACK, Upkeep
from orchestrate.runs.submitting.accounts import account_of, is_here, placed, prove, require
from orchestrate.runs.submitting.settler import lease_name
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.runs.syncing.leftovers import settle_answers
from orchestrate.runs.syncing.stalls import Stall, Stalls
from orchestrate.store import transitions
from orchestrate.store.database import LeaseHeld
from orchestrate.store.store import CLOCK_SKEW, DEFAULT_TIMING, Store, Timing
from orchestrate.store.transitions import UNSENT, UNSETTLED
from orchestrate.text import count, limit, money
from orchestrate.types import Bill, Event, Feature, Job, JobError, JobHandle, JobStatus, Run, SubmitPhase

_NAMED = (
    "adopted",
    "not_made",
    "unsettled",
    "unsent",
    "released",
    "elsewhere",
    "gone",
    "uncancelled",
    "paused",
    "changed",
    "ended",
    "capped",
)

_WORDS = {
    "released": "not counted in any budget until sent",
    "elsewhere": "in another account, or not visible to this key",
}


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """A host that could not be reached. Its runs are unchanged."""

    provider: str
    message: str
    retryable: bool
    retry_after_s: float | None = None


class SyncReport(msgspec.Struct, kw_only=True):
    """The results of a sync, with runs by id."""

    checked: int = 0
    adopted: list[str] = []
    """Runs whose job was found by its ref."""
    not_made: list[str] = []
    """Runs that have no job on the host. You can send them again."""
    unsettled: list[str] = []
    """Runs whose lost request cannot be resolved yet."""
    unsent: list[str] = []
    """Runs whose submit was interrupted before anything was sent. You can send them again."""
    released: list[str] = []
    """Unsent runs whose budget reservation was released. They reserve budget again when they are sent."""
    settled: int = 0
    """Number of budget reservations for answers that were settled because their commands had ended."""
    corrected: bool = False
    """True if another program had changed the store's kept sums of costs. They are correct now."""
    elsewhere: list[str] = []
    """Runs that belong to another account or that the API key has no access to. Their state is unchanged."""
    gone: list[str] = []
    """Runs whose job is no longer on the host."""
    uncancelled: list[str] = []
    """Runs whose job still runs although the host confirmed the cancellation. It was canceled again."""
    paused: list[str] = []
    changed: list[str] = []
    ended: list[str] = []
    capped: list[str] = []
    """Runs that exceeded their cost cap and are being ended."""
    stalled: list[Stall] = []
    """Runs in progress without updates for much longer than usual."""
    alarms: list[Event] = []
    hosting: list[str] = []
    """Messages about deployments, one sentence each."""
    ending: list[str] = []
    """Ids of runs whose deployment is being shut down but is still listed by the host."""
    failures: list[Failure] = []
    asked: int = 0
    """Approximate number of requests to hosts: list pages and individual requests."""

    def failed(self, provider: str, error: OrchestrateError) -> None:
        failure = Failure(
            provider=provider,
            message=error.message,
            retryable=error.retryable,
            retry_after_s=getattr(error, "retry_after_s", None),
        )
        if failure not in self.failures:
            self.failures.append(failure)

    def __str__(self) -> str:
        parts = [f"{count(self.checked, 'open run')} checked"]
        for name in _NAMED:
            if runs := getattr(self, name):
                what = _WORDS.get(name, name.replace("_", " "))
                parts.append(f"{what}: {', '.join(runs)}")
        for stall in self.stalled:
            parts.append(f"{stall.run} {'canceled: ' if stall.cancelled else 'stalled: '}{stall.message}")
        parts += self.hosting
        if self.settled:
            left = count(self.settled, "budget reservation")
            parts.append(f"resolved: {left} left behind by ended commands")
        if self.corrected:
            parts.append("corrected: another program had changed the store's kept sums of costs")
        if self.ending:
            parts.append(f"shutdown requested but still up: {', '.join(self.ending)}")
        parts += [f"ALARM: {alarm.message}" for alarm in self.alarms]
        parts += [f"could not reach {failure.provider}: {failure.message}" for failure in self.failures]
        return "\n".join(parts)


# Problems that persist on a host: a confirmed cancel without effect, a missing job, a job that stays paused.
# Each is stored once as an event of the run and checked again by every sync.

GRACE = timedelta(minutes=2)
"""Time that a host may take to end a job after a cancel request."""
_ENDING = frozenset({JobStatus.CANCELLING, JobStatus.FINALIZING, JobStatus.UNKNOWN})


def record_missing_job(store: Store, provider: Provider, run: Run) -> None:
    """Record that the host no longer has the run's job. This alone does not end the run."""
    message = (
        f"{provider.profile.title} no longer has job {run.job_id}. It may have been deleted there, and "
        f"its cost is unknown. If it was deleted:  orchestrate abandon {run.id} --reason TEXT"
    )
    _say(store, run, "gone", message)


def uncancelled(store: Store, provider: Provider, run: Run, job: Job) -> bool:
    """Check whether a job still runs long after its host confirmed the cancellation. If so, cancel the job
    again and return True. Raises `ProviderError` if the host rejects the request or cannot be reached."""
    asked = run.status is JobStatus.CANCELLING and store.clock.now() - run.updated_at > GRACE
    if not asked or job.status.terminal or job.status in _ENDING or not isinstance(provider, Cancels):
        return False
    message = (
        f"Orchestrate asked {provider.profile.title} to cancel job {run.job_id}, but the job is still "
        f"{job.raw_status} and still being billed. Orchestrate repeats the request at each sync. Check the "
        f"job on the host, or stop tracking it: orchestrate abandon {run.id} --reason TEXT"
    )
    _say(store, run, "uncancelled", message)
    provider.cancel(run.handle)
    return True


def paused(store: Store, provider: Provider, run: Run) -> None:
    """Record that the host has paused the run's job."""
    message = (
        f"{provider.profile.title} paused job {run.job_id}. The run's share of the budget stays reserved "
        f"until it ends. To continue it: orchestrate resume {run.id}"
    )
    if run.dormant:
        how = f'ft.session(resume="{run.id}")' if run.own_loop else f"orchestrate resume {run.id}"
        message = f"the budget now reserves only the cost so far. To reserve the full limit again: {how}"
    _say(store, run, "paused", message)


def settled_session(store: Store, run: Run, job: Job, bill: BillHook | None) -> Run:
    """Store the cost of a training session that no program uses anymore. The unused part of the session's
    cost limit is released until the session is resumed."""
    so_far = bill(run, job) if bill is not None and run.dormant else None
    changed = [] if so_far is None else store.runs.set_bills({run.id: so_far})
    return changed[0] if changed else run


def _say(store: Store, run: Run, what: str, message: str) -> None:
    event = Event(id=f"orchestrate-{what}", at=store.clock.now(), level="warning", type=what, message=message)
    store.history.add_events(run.id, [event], from_host=False)


# Runs above their cost cap are ended and reported once. A run on a rented machine is paused instead: its
# checkpoints are kept, and `resume` can raise the cap.

BillHook = Callable[[Run, Job], Bill | None]
"""A function that returns the cost of a run so far, or `None` while it is unknown."""

OVER_CAP = "over_cap"
"""Type of the event stored when a run exceeds its cost cap. Also the error code of a run that was ended for
this reason."""

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
    """Cancel or pause a job whose cost so far exceeds the run's cap. Returns a new event that reports this.
    Returns `None` if the cap holds or the event is already stored.

    If the backend cannot cancel, the event asks the user to do so. Raises `ProviderError` if the host cannot
    be reached. Call it again to retry.
    """
    cap = cap_of(run)
    if cap is None or bill is None or run.status.terminal or run.status in _LEFT_ALONE:
        return None
    so_far = bill(run, job)
    if so_far is None or not exceeds(so_far.usd, cap):
        return None
    rented = isinstance(provider, Limited) or run.job_kind == SESSION
    able = Feature.CANCEL in provider.features
    by_hand = f"{provider.profile.title} cannot cancel the run, so end it there"
    done = "The run is being canceled" if able else by_hand
    event = Event(
        # A paused run can be resumed with a higher cap and exceed that too.
        id=f"{_EVENT}-{cap}" if rented else _EVENT,
        at=store.clock.now(),
        level="warning",
        type=OVER_CAP,
        message=f"over its cap of {limit(cap)}: an estimated {money(so_far.usd)} so far "
        f"({so_far.origin}). {'The run is being paused' if rented else done}",
        data={"usd": str(so_far.usd), "max_cost_usd": str(cap)},
    )
    # Store the event first. If this process dies in between, the next check still ends the job.
    added = store.history.add_events(run.id, [event], from_host=False)
    if rented:
        capability(provider, pausing(run)).pause(run.handle)
    elif able:
        Submitter(store, provider, timing).cancel(run)
    return next(iter(added), None)


def record_over_cap(store: Store, run: Run) -> None:
    """Record that an ended run cost more than its cap allowed."""
    cap, bill = run.max_cost_usd, run.bill
    if cap is None or bill is None or not exceeds(bill.usd, cap):
        return
    usd = money(bill.usd) if bill.final else f"an estimated {money(bill.usd)}"
    event = Event(
        id="orchestrate-ended-over-cap",
        at=store.clock.now(),
        level="warning",
        type="ended_over_cap",
        message=f"ended above its cap of {limit(cap)}: {usd} ({bill.origin})",
        data={"usd": str(bill.usd), "max_cost_usd": str(cap)},
    )
    store.history.add_events(run.id, [event], from_host=False)


def explained(store: Store, run: Run) -> Run:
    """Add an error to a run that was canceled for exceeding its cost cap. Returns the run."""
    if run.max_cost_usd is None or run.status is not JobStatus.CANCELLED or run.error is not None:
        return run
    said = next((e for e in store.history.events(run.id) if e.id == _EVENT), None)
    if said is None:
        return run
    error = JobError(message=said.message, code=OVER_CAP)
    return store.runs.apply(
        run.id, lambda now: msgspec.structs.replace(now, error=error), note="over its cap"
    )


T = TypeVar("T")

_BATCH = 500
_LOOKUPS = 20
"""Maximum number of jobs that a sync requests individually because they are missing from the list."""
_REQUESTS = 150
"""Maximum number of requests that a sync sends to one host, even if the host has 10,000 runs."""
_PAGE = 100
"""Smallest page size of any host's job list."""
DETAIL_REQUESTS = 5
"""Approximate number of requests that `fetch_details` sends for one run, on the host that needs the most."""
_BILL_PATIENCE = timedelta(days=7)
"""Time to wait for a host's final price. A host that has not reported a price by then never will."""


def sync(
    store: Store,
    provider: Callable[[str], Provider],
    *,
    only: Iterable[str] | None = None,
    bill: BillHook | None = None,
    timing: Timing = DEFAULT_TIMING,
    sandboxes: bool = True,
    stalled_after_s: float | None = None,
    cancel_stalled: bool = False,
) -> SyncReport:
    """Resolve and update all open runs. `only` limits this to runs of some backends. With `sandboxes=False`,
    backends that have only sandbox runs are not contacted.

    `provider` is a function that returns a backend by its name. If a backend fails or cannot be created, it
    is listed in `failures` and the others are still synced. Runs without updates for `stalled_after_s`
    (default: far longer than earlier runs took) are listed in `stalled`. With `cancel_stalled`, runs that are
    still stalled at the next check are canceled. Raises only `StoreError`.
    """
    report = SyncReport()
    wanted = None if only is None else set(only)
    hosting = store.deployments.open_providers(store.clock.now() - LOOK_BACK, sandboxes=sandboxes)
    for name in sorted({*store.runs.open_providers(sandboxes=sandboxes), *hosting}):
        if wanted is not None and name not in wanted:
            continue
        try:
            backend = provider(name)
        except OrchestrateError as error:
            report.failed(name, error)
            continue
        try:
            _Sweep(store, backend, report, bill, timing, stalled_after_s, cancel_stalled).run()
            if name in hosting:
                _keep_up(store, backend, report, timing)
        except StoreError:
            raise
        except OrchestrateError as error:
            report.failed(name, error)
        except Exception as error:  # noqa: BLE001  a plug-in's mistake must not leave the others unwatched
            message = f"a bug in this backend plug-in ({type(error).__name__}: {error})"
            report.failed(name, UnexpectedAnswer(name, message))
    if wanted is None:
        report.settled = settle_answers(store)
        report.corrected = store.ledger.recount(every=timedelta(days=1))  # it reads the costs of all runs
    return report


def _keep_up(store: Store, backend: Provider, report: SyncReport, timing: Timing) -> None:
    upkeep = Upkeep(store, backend, timing)
    upkeep.run()
    report.asked += upkeep.asked
    report.hosting += upkeep.messages
    report.ending += upkeep.ending
    for error in upkeep.failures:
        report.failed(backend.config.name, error)


def refresh(
    store: Store,
    provider: Provider,
    run: Run,
    *,
    bill: BillHook | None = None,
    timing: Timing = DEFAULT_TIMING,
    on_event: Callable[[Event], None] | None = None,
) -> Run:
    """Update one run from its host: status, events, metrics, checkpoints and bill. Cancels a run above its
    cap.

    A run without a known job is resolved or returned unchanged. Raises `OtherAccount` if the key is not known
    to belong to the run's account, and `ProviderError` if the host cannot be reached.
    """
    run = store.runs.get(run.id)
    if run.phase in UNSETTLED:
        run = Submitter(store, provider, timing).settle(run)
    if run.phase is not SubmitPhase.SUBMITTED:
        return run
    require(store, provider, run)
    try:
        job = provider.get(run.handle)
    except NotFound as error:
        record_missing_job(store, provider, run)
        error.fix = f"if it was deleted there: orchestrate abandon {run.id} --reason TEXT"
        raise
    run = store.runs.apply(run.id, lambda current: transitions.observed(current, job, store.clock.now()))
    fetch_details(store, provider, run, on_event=on_event)
    if run.status.terminal:
        return conclude(store, provider, run, job, bill)
    if Feature.CANCEL in provider.features and run.id in store.watching.uncancelled(run.provider, run.host):
        run = Submitter(store, provider, timing).cancel(run)
    uncancelled(store, provider, run, job)
    run = settled_session(store, run, job, bill)
    capped = enforce(store, provider, run, job, bill, timing)
    if capped is not None and on_event is not None:
        on_event(capped)
    return store.runs.get(run.id)


def fetch_details(
    store: Store, provider: Provider, run: Run, *, on_event: Callable[[Event], None] | None = None
) -> None:
    """Store new events, metrics and checkpoints. Reads the events of an ended run from the start, because
    hosts add some late, with earlier timestamps."""
    after, new = None if run.status.terminal else store.history.last_event_id(run.id), 0
    if Feature.EVENTS in provider.features:
        added = store.history.add_events(run.id, provider.events(run.handle, after=after))
        new += len(added)
        for event in added:
            if on_event is not None:
                on_event(event)
    if isinstance(provider, Measures):
        new += store.history.add_metrics(run.id, provider.metrics(run.handle))
    if new:
        store.watching.end_silence(run.id)
    if isinstance(provider, Sessions if run.job_kind == SESSION else KeepsCheckpoints):
        store.history.set_checkpoints(run.id, provider.checkpoints(run.handle))


def conclude(store: Store, provider: Provider, run: Run, job: Job, bill: BillHook | None) -> Run:
    """Store an ended run's bill. Close the run once no more data is expected."""
    run = _bill(store, [(run, job)], bill)[run.id]
    ended = run.finished_at or run.updated_at
    # No better figure will come from a host that only estimates, or for a job that ended early.
    better = run.status is JobStatus.SUCCEEDED and not run.early_stopped
    better = better and not provider.profile.figures_are_estimates
    waiting = bill is not None and (run.bill is None or (better and not run.bill.final))
    if not waiting or store.clock.now() - ended > _BILL_PATIENCE:
        store.runs.close(run.id)
    return run


def _bill(store: Store, ended: Iterable[tuple[Run, Job]], bill: BillHook | None) -> dict[str, Run]:
    """Store new bills of ended runs atomically. Returns the updated runs by id."""
    runs, new = dict[str, Run](), dict[str, Bill]()
    for run, job in ended:
        runs[run.id] = run = explained(store, run)
        made = bill(run, job) if bill else None
        if made is not None and made != run.bill:
            new[run.id] = made
    changed = store.runs.set_bills(new) if new else []
    for run in changed:
        record_over_cap(store, run)
    store.history.add_reconciliations(filter(None, map(costing.reconcile, changed)))
    return runs | {run.id: run for run in changed}


@dataclass
class _Sweep:
    """One backend's open runs."""

    store: Store
    provider: Provider
    report: SyncReport
    bill: BillHook | None
    timing: Timing
    stalled_after_s: float | None = None
    cancel_stalled: bool = False

    def run(self) -> None:
        name, host = self.provider.config.name, self.provider.host
        runs = self.store.runs.matching(provider=name, host=host, closed=False)
        self.report.checked += len(runs)
        places = {
            account: is_here(self.store, self.provider, account) for account in {r.account for r in runs}
        }
        self.report.elsewhere += [run.id for run in runs if places[run.account] is False]
        runs = [run for run in runs if places[run.account] is not False]
        unmade: list[Run] = []
        for run in runs:
            if run.phase in UNSETTLED:
                self._settle(run)
            elif run.phase is not SubmitPhase.SUBMITTED and not self.store.leases.held(lease_name(run)):
                unmade.append(run)
        self._search_for(unmade)
        tracked = [run for run in runs if run.phase is SubmitPhase.SUBMITTED]
        if not tracked:
            return
        jobs: dict[str, Job] = {}
        try:
            jobs = self._listed(min(run.created_at for run in tracked))
        except UnexpectedAnswer as error:
            self.report.failed(name, error)  # the jobs themselves may still be asked for
        except ProviderError as error:
            self.report.failed(name, error)
            return
        self._match(tracked, jobs)

    def _search_for(self, unmade: list[Run]) -> None:
        """Search for jobs of runs without a known job. Another copy of the store may have submitted them, or
        the host may have created a job that it had rejected."""
        self.report.unsent += [run.id for run in unmade if run.phase in UNSENT]
        for run in _some(unmade, _LOOKUPS):
            self.report.asked += 1
            submitter = Submitter(self.store, self.provider, self.timing)
            waited = self.store.runs.waited(run.id)
            try:
                handles = submitter.find(run)
            except ProviderError as error:
                self.report.failed(self.provider.config.name, error)
                return
            if handles:
                submitter.adopt(run, handles)
                self.report.adopted.append(run.id)
                self.report.unsent = [run_id for run_id in self.report.unsent if run_id != run.id]
            elif run.phase in UNSENT and waited >= self.timing.settle_s(self.provider):
                self._release(run)
            elif run.phase is SubmitPhase.REFUSED and waited >= self.timing.settle_s(self.provider):
                self.store.runs.close(run.id)

    def _release(self, run: Run) -> None:
        """Release the run's reservation under its lease, so a process that resumes later loses the lease and
        sends nothing."""
        if not spending(run).total_usd:
            return
        with suppress(LeaseHeld), self.store.leases.hold(lease_name(run), self.timing.lease_s) as lease:
            now = self.store.clock.now()
            with suppress(transitions.ImpossibleTransition):
                self.store.runs.apply(run.id, lambda run: transitions.released(run, now), lease=lease)
                self.report.released.append(run.id)

    def _settle(self, run: Run) -> None:
        self.report.asked += 1
        try:
            after = Submitter(self.store, self.provider, self.timing).settle(run)
        except ProviderError as error:
            self.report.failed(self.provider.config.name, error)
            self.report.unsettled.append(run.id)
            return
        except OtherAccount:
            self.report.elsewhere.append(run.id)
            return
        if after.phase is SubmitPhase.SUBMITTED:
            self.report.adopted.append(run.id)
        elif after.phase is SubmitPhase.UPLOADED:
            self.report.not_made.append(run.id)
        else:
            self.report.unsettled.append(run.id)

    def _listed(self, oldest: datetime) -> dict[str, Job]:
        self.report.asked += 1
        jobs = {job.handle.job_id: job for job in self.provider.list(since=oldest - CLOCK_SKEW)}
        self.report.asked += len(jobs) // _PAGE
        return jobs

    def _match(self, tracked: list[Run], jobs: dict[str, Job]) -> None:
        self._adopt_by_ref(jobs)
        known = {run.id: run for run in tracked}
        seen = {run.id: jobs[run.job_id] for run in tracked if run.job_id in jobs}
        self._query_missing([run for run in tracked if run.id not in seen], seen)
        for account in {run.account for run in tracked if run.id in seen and run.account is not None}:
            prove(
                self.store, self.provider, next(r for r in tracked if r.id in seen and r.account == account)
            )
        self._observe(seen)
        if Feature.CANCEL in self.provider.features:
            for run_id in self.store.watching.uncancelled(self.provider.config.name, self.provider.host):
                self._cancel(run_id)
        ended = {i: job for i, job in seen.items() if job.status.terminal or known[i].status.terminal}
        self._conclude(ended, few=(_REQUESTS - _LOOKUPS - -(-len(tracked) // _PAGE)) // DETAIL_REQUESTS)
        for run_id, job in ((i, job) for i, job in seen.items() if i not in ended):
            self._left_undone(known[run_id], job)
            if cap_of(known[run_id]) is not None:
                self._cap(run_id, job)
        self._stalled([run for run in tracked if run.id in seen and run.id not in ended])

    def _stalled(self, runs: list[Run]) -> None:
        """Report stalled runs, by their state after this sync."""
        moved = {i for i in self.report.changed}
        runs = [r for r in runs if r.id not in moved] + self.store.runs.of_ids(
            [r.id for r in runs if r.id in moved]
        )
        stalls = Stalls(self.store, self.provider, self._fetch, self.stalled_after_s)
        try:
            for stall in stalls.found(runs):
                ended = stalls.end(stall, self.timing) if self.cancel_stalled else stall
                self.report.stalled.append(ended)
        except ProviderError as error:
            self.report.failed(self.provider.config.name, error)

    def _fetch(self, run: Run) -> None:
        self.report.asked += DETAIL_REQUESTS
        fetch_details(self.store, self.provider, run)

    def _left_undone(self, run: Run, job: Job) -> None:
        try:
            if job.status is JobStatus.PAUSED:
                run = settled_session(self.store, self.store.runs.get(run.id), job, self.bill)
                paused(self.store, self.provider, run)
                self.report.paused.append(run.id)
            if uncancelled(self.store, self.provider, run, job):
                self.report.uncancelled.append(run.id)
        except ProviderError as error:
            self.report.failed(self.provider.config.name, error)

    def _adopt_by_ref(self, jobs: dict[str, Job]) -> None:
        """Handle jobs with our refs that are not their run's job: jobs of abandoned runs, and duplicates."""
        by_ref: dict[str, list[JobHandle]] = {}
        for job in jobs.values():
            if job.handle.ref:
                by_ref.setdefault(job.handle.ref, []).append(job.handle)
        for run in self.store.runs.of_refs(by_ref):
            handles = by_ref[run.ref]
            if [h.job_id for h in handles] == [run.job_id] or run.host != self.provider.host:
                continue
            if is_here(self.store, self.provider, run.account) is False:
                continue
            submitter = Submitter(self.store, self.provider, self.timing)
            before = {event.id for event in self.store.history.alarms(run.id)}
            if submitter.adopt(run, handles).job_id != run.job_id:
                self.report.adopted.append(run.id)
            self.report.alarms.extend(e for e in self.store.history.alarms(run.id) if e.id not in before)

    def _query_missing(self, missing: list[Run], seen: dict[str, Job]) -> None:
        capped = _some([run for run in missing if cap_of(run) is not None], _LOOKUPS)
        others = [run for run in missing if cap_of(run) is None]
        for run in (*capped, *_some(others, _LOOKUPS - len(capped))):
            self.report.asked += 1
            try:
                seen[run.id] = self.provider.get(run.handle)
            except (NotFound, PermissionRefused) as error:  # an answer's absence never ends a run
                mine = is_here(self.store, self.provider, run.account) or run.account is None
                if mine and isinstance(error, NotFound):
                    record_missing_job(self.store, self.provider, run)
                    self.report.gone.append(run.id)
                else:
                    self.report.elsewhere.append(run.id)
            except ProviderError as error:
                self.report.failed(self.provider.config.name, error)
                return

    def _observe(self, seen: dict[str, Job]) -> None:
        at, account = self.store.clock.now(), account_of(self.store, self.provider)
        changes = [(run_id, _observation(job, at, account)) for run_id, job in seen.items()]
        for start in range(0, len(changes), _BATCH):
            for run in self.store.runs.apply_many(changes[start : start + _BATCH]):
                self.report.changed.append(run.id)
                if run.status.terminal:
                    self.report.ended.append(run.id)

    def _cancel(self, run_id: str) -> None:
        try:
            Submitter(self.store, self.provider, self.timing).cancel(self.store.runs.get(run_id))
        except OtherAccount:
            return
        except ProviderError as error:
            self.report.failed(self.provider.config.name, error)

    def _cap(self, run_id: str, job: Job) -> None:
        run = self.store.runs.get(run_id)
        try:
            if enforce(self.store, self.provider, run, job, self.bill, self.timing) is not None:
                self.report.capped.append(run_id)
        except ProviderError as error:
            self.report.failed(self.provider.config.name, error)

    def _conclude(self, ended: dict[str, Job], *, few: int) -> None:
        detailed = _some([*ended], max(1, few))
        plain = [*(ended.keys() - detailed)]  # they stay open, for a later sync
        for start in range(0, len(plain), _BATCH):
            runs = self.store.runs.of_ids(plain[start : start + _BATCH])
            _bill(self.store, [(run, ended[run.id]) for run in runs], self.bill)
        for run in self.store.runs.of_ids(detailed):
            self._close(run, ended[run.id])

    def _close(self, run: Run, job: Job) -> None:
        self.report.asked += DETAIL_REQUESTS
        try:
            fetch_details(self.store, self.provider, run)
        except ProviderError as error:
            self.report.failed(self.provider.config.name, error)  # the run stays open for the next sync
            return
        conclude(self.store, self.provider, run, job, self.bill)


def _observation(job: Job, at: datetime, account: str) -> Callable[[Run], Run]:
    return lambda run: placed(transitions.observed(run, job, at), account)


def _some(all_of_them: list[T], most: int) -> list[T]:
    """Return a random sample, so items that are stuck don't block the others forever."""
    return random.sample(all_of_them, most) if len(all_of_them) > most else all_of_them
