"""Resolve create requests whose response was lost, and cancel runs in any state."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from orchestrate.errors import NotFound, ProviderError, UsageError
from orchestrate.providers.base import Cancels, Provider, Restarts, capability
from orchestrate.runs.submitting import accounts
from orchestrate.store import transitions
from orchestrate.store.database import Lease, LeaseHeld
from orchestrate.store.runs import WITHDRAWN
from orchestrate.store.store import DEFAULT_TIMING, Store, Timing
from orchestrate.store.transitions import UNSENT, UNSETTLED, ImpossibleTransition
from orchestrate.types import Event, JobHandle, Run, SubmitPhase


@dataclass(frozen=True)
class Settler:
    """Resolves lost requests and cancels runs of one store on one backend."""

    store: Store
    provider: Provider
    timing: Timing = DEFAULT_TIMING

    # -- settling ------------------------------------------------------------------------------------------

    def find(self, run: Run) -> list[JobHandle]:
        """Find the host's jobs with the run's ref."""
        return self.provider.find(run.ref)

    def settle(self, run: Run) -> Run:
        """Resolve a create request whose response was lost, without changing anything on the host.

        Afterwards, the run either has its job, is back in phase `UPLOADED` because no job exists, or stays in
        `OUTCOME_UNKNOWN` because it is too early to know. Raises `ProviderError` if the host cannot be
        reached, and `OtherAccount` if no job is found and the key may belong to a different account.
        """
        self.require_host(run)
        try:
            with self.store.leases.hold(lease_name(run), self.timing.lease_s) as lease:
                run = self.store.runs.get(run.id)
                if run.phase not in UNSETTLED:
                    return run
                # Read before the search: only a search entirely after the settle time proves anything.
                waited = self.store.runs.waited(run.id)
                here = accounts.shows(self.store, self.provider, run)
                if here is not False and (handles := self.find(run)):
                    return self.adopt(run, handles)
                if not here:
                    raise accounts.other(self.store, self.provider, run)
                if waited < self.timing.settle_s(self.provider):
                    return self.apply(run, transitions.outcome_unknown, lease)
                run = self.apply(run, transitions.not_made, lease, note="the host has no job with this ref")
                return self._withdraw(run) if self.store.runs.cancel_requested(run.id) else run
        except LeaseHeld:
            return self.store.runs.get(run.id)  # another process is working on it

    def adopt(self, run: Run, handles: list[JobHandle]) -> Run:
        """Record the job that was found for a run. If several were found, the run keeps its current job if
        that is one of them. Otherwise, it gets the first one. An alert reports the others."""
        known = self.store.runs.get(run.id)
        accounts.prove(self.store, self.provider, known)
        handle = next((h for h in handles if h.job_id == known.job_id), handles[0])
        try:
            run = self.apply(run, lambda run, at: transitions.submitted(run, handle, at), None)
        except ImpossibleTransition:
            run = self.store.runs.get(run.id)
        others = {h.job_id for h in handles} - {run.job_id}
        if others:
            self.alarm(run, others)
        if self.store.runs.cancel_requested(run.id):
            return self._cancel_on_host(run, found=True)
        return run

    def alarm(self, run: Run, others: set[str]) -> Event | None:
        """Store an alert that a run has additional jobs. Returns the alert, or `None` if it was already
        stored."""
        names = ", ".join(sorted(others))
        return self._alert(
            run,
            f"doubled-{names}",
            "error",
            f"{self.provider.profile.title} has more than one job for ref {run.ref}: this store "
            f"tracks only {run.job_id}. The others may be billed: {names}. Cancel them there",
            {"tracked": run.job_id, "others": sorted(others)},
        )

    def _alert(self, run: Run, name: str, level: str, message: str, data: dict[str, Any]) -> Event | None:
        event = Event(
            id=f"orchestrate-{name}",
            at=self.store.clock.now(),
            level=level,
            type="alarm",
            message=message,
            data=data,
        )
        return next(iter(self.store.history.add_events(run.id, [event], from_host=False)), None)

    # -- cancelling ----------------------------------------------------------------------------------------

    def cancel(self, run: Run) -> Run:
        """Cancel a run in any state. Safe to repeat. A run that was not sent is withdrawn and will never be
        sent. While it is unknown whether a job exists, the cancel request is stored, and the process that
        finds the job cancels it."""
        self.require_host(run)
        run = self.store.runs.get(run.id)
        if run.phase is SubmitPhase.SUBMITTED and not run.status.terminal:
            self._require_account_or_request(run)
        self.store.runs.request_cancel(run.id)
        run = self.store.runs.get(run.id)
        if run.abandoned is not None and run.phase is SubmitPhase.SUBMITTED:
            return self._cancel_abandoned(run)
        if run.status.terminal:
            return run
        if run.phase in UNSENT:
            try:
                return self._withdraw(run)
            except ImpossibleTransition:
                run = self.store.runs.get(run.id)
        if run.phase is SubmitPhase.SUBMITTED:
            return self._cancel_on_host(run)
        return run if run.status.terminal else self.settle(run)

    def _require_account_or_request(self, run: Run) -> None:
        try:
            accounts.require(self.store, self.provider, run)
        except ProviderError:
            self.store.runs.request_cancel(run.id)  # sent by the next process that reaches the host
            raise

    def _cancel_abandoned(self, run: Run) -> Run:
        """Cancel a job that may still run, and be billed, although its run was abandoned."""
        accounts.require(self.store, self.provider, run)
        with suppress(NotFound):
            capability(self.provider, Cancels).cancel(run.handle)
        return run

    def _withdraw(self, run: Run) -> Run:
        # Safe: sending requires phase SUBMITTING, which a withdrawn run cannot enter.
        return self.apply(run, transitions.withdrawn, None, note=WITHDRAWN)

    def _cancel_on_host(self, run: Run, *, found: bool = False) -> Run:
        """Cancel the run's job on the host. With `found`, the job was found after its run was canceled.
        Otherwise raises `Unsupported` if the backend cannot cancel."""
        if run.status.terminal:
            return run
        if found and not isinstance(self.provider, Cancels):
            message = (
                f"job {run.job_id} was found after its run was canceled, and "
                f"{self.provider.profile.title} has no API to cancel it. It may be billed, so end it there"
            )
            self._alert(run, f"uncancelled-{run.job_id}", "warning", message, {"job": run.job_id})
            return run
        capability(self.provider, Cancels).cancel(run.handle)
        return self.apply(run, transitions.cancelling, None)

    # -- restarting ----------------------------------------------------------------------------------------

    def restart(self, run: Run) -> bool:
        """Restart a run whose work was interrupted. Returns True if it was restarted. Paused runs are not
        restarted. Neither are runs of other accounts, because this account would be billed for them. A lock
        prevents two processes from restarting the same run. Raises `ProviderError` if the host cannot be
        reached."""
        if run.raw_status == transitions.PAUSED:
            return False
        if accounts.is_here(self.store, self.provider, run.account) is False:
            return False
        with suppress(LeaseHeld), self.store.leases.hold(lease_name(run), self.timing.lease_s):
            return isinstance(self.provider, Restarts) and self.provider.recover(run.handle)
        return False

    def require_host(self, run: Run) -> None:
        if (run.provider, run.host) != (self.provider.config.name, self.provider.host):
            raise UsageError(
                f"run {run.id} is on {run.provider} at {run.host}, not at {self.provider.host}",
                fix="use the configuration and key with which the run was submitted",
            )

    # -- inside ---------------------------------------------------------------------------------------------

    def apply(
        self,
        run: Run,
        step: Callable[[Run, datetime], Run],
        lease: Lease | None,
        *,
        note: str | None = None,
    ) -> Run:
        at = self.store.clock.now()
        return self.store.runs.apply(run.id, lambda current: step(current, at), lease=lease, note=note)


def lease_name(run: Run) -> str:
    return f"run:{run.id}"
