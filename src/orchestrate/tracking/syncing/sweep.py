"""Bringing the store up to date with the hosts: adopting, settling, sweeping. Changes nothing on a host, but
for runs that are to be cancelled: those that passed their cap, and those whose cancel has not reached the
host, because their job was not known or the one who asked for it died.

The sweep reads each host's list page by page, so that ten thousand runs cost as many requests as there are
pages. One by one it asks only for a few: jobs that the list does not show, which are not lost (lists lag,
filter and forget), and the events, metrics and checkpoints of runs that have ended.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, TypeVar

from orchestrate import costing
from orchestrate.errors import (
    NotFound,
    OrchestrateError,
    OtherAccount,
    PermissionRefused,
    ProviderError,
    StoreError,
    UnexpectedAnswer,
)
from orchestrate.providers.base import KeepsCheckpoints, Measures
from orchestrate.tracking import transitions
from orchestrate.tracking.hosting.upkeep import LOOK_BACK, Upkeep
from orchestrate.tracking.submitting.accounts import account_of, is_here, placed, prove, require
from orchestrate.tracking.submitting.settling import lease_name
from orchestrate.tracking.submitting.submit import Submitter
from orchestrate.tracking.syncing import cost_cap, unfinished
from orchestrate.tracking.syncing.cost_cap import BillHook
from orchestrate.tracking.syncing.report import Failure as Failure
from orchestrate.tracking.syncing.report import SyncReport as SyncReport
from orchestrate.tracking.timing import CLOCK_SKEW, DEFAULT_TIMING, Timing
from orchestrate.tracking.transitions import UNSENT, UNSETTLED
from orchestrate.types import Bill, Event, Feature, Job, JobHandle, JobStatus, Run, SubmitPhase

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.tracking.store import Store

T = TypeVar("T")

_BATCH = 500
_LOOKUPS = 20
"""At most so many jobs that the list did not show are asked for one by one in a sync."""
_REQUESTS = 150
"""What a sync may cost on a host with ten thousand runs."""
_PAGE = 100
"""Jobs of the shortest page."""
DETAIL_REQUESTS = 5
"""What `fetch_details` of one run costs on the dearest host, about."""
_BILL_PATIENCE = timedelta(days=7)
"""A host that has not told a final price by then never will."""


def sync(
    store: Store,
    provider: Callable[[str], Provider],
    *,
    only: Iterable[str] | None = None,
    bill: BillHook | None = None,
    timing: Timing = DEFAULT_TIMING,
    sandboxes: bool = True,
) -> SyncReport:
    """Settles, adopts and sweeps all open runs, of `only` some backends when they are named; without
    `sandboxes` no backend is asked for the sake of what is in one.

    `provider` gives the backend of a name. A backend that fails or cannot be made does not stop the others;
    it is in `failures`. Raises only `StoreError`.
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
            _Sweep(store, backend, report, bill, timing).run()
            if name in hosting:
                _keep_up(store, backend, report, timing)
        except StoreError:
            raise
        except OrchestrateError as error:
            report.failed(name, error)
        except Exception as error:  # noqa: BLE001  a plug-in's mistake must not leave the others unwatched
            told = f"a defect in this backend ({type(error).__name__}: {error})"
            report.failed(name, UnexpectedAnswer(name, told))
    return report


def _keep_up(store: Store, backend: Provider, report: SyncReport, timing: Timing) -> None:
    upkeep = Upkeep(store, backend, timing)
    upkeep.run()
    report.asked += upkeep.asked
    report.hosting += upkeep.told
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
    """Asks the host about one run and stores what is new: status, events, metrics, checkpoints, bill. A run
    that passed its cap is cancelled.

    Raises `OtherAccount`, and `ProviderError` when the host cannot be asked. A run that is not on the host
    yet is settled or returned as it is.
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
        unfinished.gone(store, provider, run)
        error.fix = f"if it was deleted there: orchestrate abandon {run.id} --reason TEXT"
        raise
    run = store.runs.apply(run.id, lambda current: transitions.observed(current, job, store.clock.now()))
    fetch_details(store, provider, run, on_event=on_event)
    if run.status.terminal:
        return conclude(store, provider, run, job, bill)
    if Feature.CANCEL in provider.features and run.id in store.watching.uncancelled(run.provider, run.host):
        run = Submitter(store, provider, timing).cancel(run)
    unfinished.uncancelled(store, provider, run, job)
    capped = cost_cap.enforce(store, provider, run, job, bill, timing)
    if capped is not None and on_event is not None:
        on_event(capped)
    return store.runs.get(run.id)


def fetch_details(
    store: Store, provider: Provider, run: Run, *, on_event: Callable[[Event], None] | None = None
) -> None:
    """Stores the events, metrics and checkpoints that are new. An ended run's events are read from the
    beginning: hosts write some late, behind the newest one that was seen."""
    after = None if run.status.terminal else store.history.last_event_id(run.id)
    if Feature.EVENTS in provider.features:
        added = store.history.add_events(run.id, provider.events(run.handle, after=after))
        for event in added:
            if on_event is not None:
                on_event(event)
    if isinstance(provider, Measures):
        store.history.add_metrics(run.id, provider.metrics(run.handle))
    if isinstance(provider, KeepsCheckpoints):
        store.history.set_checkpoints(run.id, provider.checkpoints(run.handle))


def conclude(store: Store, provider: Provider, run: Run, job: Job, bill: BillHook | None) -> Run:
    """Writes an ended run's bill and, once nothing more is to come, closes the run."""
    run = _bill(store, [(run, job)], bill)[run.id]
    ended = run.finished_at or run.updated_at
    # A host that only estimates, or a job that ended early, gets no better figure.
    better = run.status is JobStatus.SUCCEEDED and not run.early_stopped
    better = better and not provider.profile.figures_are_estimates
    waiting = bill is not None and (run.bill is None or (better and not run.bill.final))
    if not waiting or store.clock.now() - ended > _BILL_PATIENCE:
        store.runs.close(run.id)
    return run


def _bill(store: Store, ended: Iterable[tuple[Run, Job]], bill: BillHook | None) -> dict[str, Run]:
    """Writes what is new of their bills, all at once. Returns the runs as they are then, by id."""
    runs, new = dict[str, Run](), dict[str, Bill]()
    for run, job in ended:
        runs[run.id] = run = cost_cap.explained(store, run)
        made = bill(run, job) if bill else None
        if made is not None and made != run.bill:
            new[run.id] = made
    changed = store.runs.set_bills(new) if new else []
    for run in changed:
        cost_cap.told_at_end(store, run)
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
        self._look_for(unmade)
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

    def _look_for(self, unmade: list[Run]) -> None:
        """For jobs of runs of which this store knows none: another copy of the store may have sent it, or the
        host have made what it refused."""
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
            elif run.phase is SubmitPhase.REFUSED and waited >= self.timing.settle_s(self.provider):
                self.store.runs.close(run.id)

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
        self._look_up([run for run in tracked if run.id not in seen], seen)
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
            if known[run_id].max_cost_usd is not None:
                self._cap(run_id, job)

    def _left_undone(self, run: Run, job: Job) -> None:
        try:
            if job.status is JobStatus.PAUSED:
                unfinished.paused(self.store, self.provider, run)
                self.report.paused.append(run.id)
            if unfinished.uncancelled(self.store, self.provider, run, job):
                self.report.uncancelled.append(run.id)
        except ProviderError as error:
            self.report.failed(self.provider.config.name, error)

    def _adopt_by_ref(self, jobs: dict[str, Job]) -> None:
        """A ref of ours on a job that is not its run's: a run that was given up, or a job that is one too
        many."""
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

    def _look_up(self, missing: list[Run], seen: dict[str, Job]) -> None:
        capped = _some([run for run in missing if run.max_cost_usd is not None], _LOOKUPS)
        others = [run for run in missing if run.max_cost_usd is None]
        for run in (*capped, *_some(others, _LOOKUPS - len(capped))):
            self.report.asked += 1
            try:
                seen[run.id] = self.provider.get(run.handle)
            except (NotFound, PermissionRefused) as error:  # an answer's absence never ends a run
                mine = is_here(self.store, self.provider, run.account) or run.account is None
                if mine and isinstance(error, NotFound):
                    unfinished.gone(self.store, self.provider, run)
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
            if cost_cap.enforce(self.store, self.provider, run, job, self.bill, self.timing) is not None:
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
            # It stays open, and the next sync asks again.
            self.report.failed(self.provider.config.name, error)
            return
        conclude(self.store, self.provider, run, job, self.bill)


def _observation(job: Job, at: datetime, account: str) -> Callable[[Run], Run]:
    return lambda run: placed(transitions.observed(run, job, at), account)


def _some(all_of_them: list[T], most: int) -> list[T]:
    """Any few of many: those that are stuck must not keep the others out for ever."""
    return random.sample(all_of_them, most) if len(all_of_them) > most else all_of_them
