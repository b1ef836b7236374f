"""Create exactly one job for each submit, even if a process dies at any point.

The run and each of its steps are recorded before anything is sent. Between SUBMITTING and the response, a job
may exist without the store having its id. Such a run is resolved by searching the host for jobs with the
run's ref. Nothing is sent again until the first request can no longer arrive or show up in a list. No SDK
sends an idempotency key, so this is the only protection against paying twice.

One gap remains that no client can close: if a process is suspended between its last check and the send, for
longer than the settle time, another process may resolve the run and send again. This raises an alert. It
cannot happen on hosts that let us choose the job's id (Fireworks, local).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING

from orchestrate.core.underway import BYTES, work
from orchestrate.costing import spending
from orchestrate.errors import (
    DataError,
    InvalidRequest,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    OverBudget,
    PermissionRefused,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    SetupError,
    StoreError,
    UsageError,
)
from orchestrate.paid.limits import exceeds, require_within
from orchestrate.providers.base import EstimatesPrice, Progress, Provider
from orchestrate.runs.submitting import accounts, repeats
from orchestrate.runs.submitting.repeats import KnownRun, Submission, SubmitRequest, stored_spec
from orchestrate.runs.submitting.settler import Settler, lease_name
from orchestrate.settings import is_masked
from orchestrate.spec import JobSpec
from orchestrate.store import transitions
from orchestrate.store.database import Lease, LeaseHeld
from orchestrate.store.ledger import Limit
from orchestrate.store.runs import Intent
from orchestrate.store.store import DEFAULT_TIMING, CrashPoint, Store, Timing, pass_by
from orchestrate.store.transitions import UNSENT, UNSETTLED, Withdrawn
from orchestrate.text import duration, money
from orchestrate.types import (
    Event,
    JobError,
    JobHandle,
    Quote,
    RemoteDataset,
    Run,
    SubmitPhase,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.data import TrainingData


@dataclass(frozen=True)
class Submitter(Settler):
    """Submits runs of one store to one backend."""

    reached: CrashPoint = pass_by
    budget_usd: Decimal | None = None
    """Budget for all runs and deployments in the store."""
    agree: Callable[[Quote], bool] = lambda live: False
    """Callback that receives the host's own estimate if it is above the high end of the quote. The job is
    created only if the callback returns True."""

    # -- sending -------------------------------------------------------------------------------------------

    def submit(self, asked: Submission, *, progress: Progress | None = None) -> Run:
        """Create one job and the run that tracks it, or continue the run that already has this idempotency
        key.

        Raises `OverBudget` before anything is written or created. Raises `AlreadySubmitted` if an identical
        run blocks this one. Raises `DataError` if a file has changed since the user reviewed it. Raises
        `OutcomeUnknown` if the response was lost. In that case, the run is stored, and `settle` or `sync`
        finds its job. Raises any other `ProviderError` if the host rejected the job.
        """
        request = SubmitRequest(asked.spec, asked.data.digest, self.provider, asked.idempotency_key)
        there = (
            None
            if request.known(self.store)
            else repeats.find_existing(self.provider, request, asked.translation)
        )
        intent = Intent(
            spec=asked.spec,
            provider=self.provider.config.name,
            model=_model(asked.spec, self.provider),
            dataset_digest=asked.data.digest,
            host=self.provider.host,
            account=accounts.account_of(self.store, self.provider),
            sandbox=self.provider.config.sandbox,
            translation=asked.translation,
            ref=request.ref,
            **asked.kept(),
        )
        try:
            run = self.store.runs.create(
                intent,
                budget_usd=self.budget_usd,
                limits=asked.limits,
                guard=request.guard(self.store, again=asked.again, made=there is not None, lease=asked.lease),
            )
        except KnownRun as known:
            return self.take_up(known.run, asked, progress=progress)
        self.reached("after-intent")
        if there is not None:
            return self._take_over(run, there)
        try:
            return self._go_on(run, asked, asked.data, progress)
        except LeaseHeld:  # by another process that was asked with the same key
            return self.store.runs.get(run.id)

    def _take_over(self, run: Run, there: repeats.ExistingJobs) -> Run:
        run = self.adopt(run, there.handles)
        event = repeats.event_of(run, self.provider, self.store.clock.now())
        self.store.history.add_events(run.id, [event], from_host=False)
        return self.apply(run, lambda run, at: transitions.observed(run, there.job, at), None)

    def take_up(
        self,
        run: Run,
        asked: Submission,
        *,
        progress: Progress | None = None,
        check: Callable[[Run], object] | None = None,
    ) -> Run:
        """Continue a run that an earlier call created. The returned run may still be in progress. If its job
        still has to be created, the limits of `asked` replace those of the earlier call, and `check` is
        called first and may raise an error. Raises the same errors as `submit`."""
        if run.idempotency_key is None:
            run = self.store.runs.apply(run.id, lambda run: repeats.acquired(run, asked))
        if self.store.leases.held(lease_name(run)):
            return run
        if run.phase in UNSETTLED:
            run = self.settle(run)
        if run.phase in UNSETTLED:
            raise OutcomeUnknown(
                self.provider.name, run.ref, "the outcome of an earlier attempt is not known yet"
            )
        try:
            return self._go_on(run, asked, asked.data, progress, again=True, check=check)
        except LeaseHeld:
            return self.store.runs.get(run.id)

    def resume(self, run: Run, data: TrainingData | None = None, *, progress: Progress | None = None) -> Run:
        """Continue a run that was interrupted before its job was created. Pass `data` if the store does not
        record the upload yet. If another copy of the store already created the job, attaches that job to the
        run and sends nothing. Raises the same errors as `submit`. Also raises `OtherAccount` if the run
        belongs to another account, and `LeaseHeld` if another process is working on the run."""
        return self._go_on(run, None, data, progress, again=True)

    def _go_on(
        self,
        run: Run,
        asked: Submission | None,
        data: TrainingData | None,
        progress: Progress | None,
        *,
        again: bool = False,
        check: Callable[[Run], object] | None = None,
    ) -> Run:
        """Continue a run. Without `asked`, sends the run's own spec, as far as it was stored."""
        self.require_host(run)
        with self.store.leases.hold(lease_name(run), self.timing.lease_s) as lease:
            run = self.store.runs.get(run.id)
            if run.phase in UNSETTLED:
                raise OutcomeUnknown(
                    self.provider.name, run.ref, "the outcome of an earlier attempt is not known yet"
                )
            if run.phase not in UNSENT:
                return run
            if run.released:
                held = partial(transitions.held, at=self.store.clock.now())
                run = self._reserved(run, lease, held, asked.limits if asked else ())
            if again:
                if there := self._there(run):
                    return there
                run = self.store.runs.get(run.id)  # its account is known now
                if check is not None:
                    check(run)
                run = self._reserved(run, lease, lambda run: repeats.limited(run, asked))
            spec = asked.spec if asked else stored_spec(run)
            translation = self._agreed(run, spec, asked)
            patient, whole = (asked.patient, asked.lease) if asked else (False, None)
            sent = _Sent(_within(spec, run), translation, patient, whole)
            remote = self._uploaded(run, sent, data, progress, lease)
            self._ask_price(run, sent, remote, lease)
            return self._send(run, sent, remote, lease, again=again)

    def _reserved(
        self, run: Run, lease: Lease, change: Callable[[Run], Run], limits: tuple[Limit, ...] = ()
    ) -> Run:
        """Change a run that an earlier call created, and reserve its cost in the budget, which may have been
        lowered since. Raises `OverBudget`."""
        return self.store.runs.commit(
            run.id,
            spending(change(run)).total_usd,
            change,
            self.budget_usd,
            lease=lease,
            limits=limits,
            figure="the run's possible cost",
            anew=True,
        )

    def _agreed(self, run: Run, spec: JobSpec, asked: Submission | None) -> Translation:
        """Return the stored translation that the user agreed to, because a later version may translate the
        same spec differently. It is only translated again if it lacks a secret or was not stored."""
        stored = self.store.history.translation(run.id)
        if stored is not None and not is_masked(stored.body):
            return stored
        return asked.translation if asked else self.provider.translate(spec)

    def _there(self, run: Run) -> Run | None:
        """Find and adopt the run's job if another copy of the store created it, or if the host created it
        although it had rejected the request. Raises `OtherAccount` if the absence of a job would prove
        nothing."""
        if run.account is None and run.phase is SubmitPhase.INTENT:  # nothing of it is anywhere
            self.store.runs.apply(
                run.id, lambda run: accounts.placed(run, accounts.account_of(self.store, self.provider))
            )
        else:
            accounts.require(self.store, self.provider, run)
        handles = self.find(run)
        return self.adopt(run, handles) if handles else None

    def _uploaded(
        self, run: Run, sent: _Sent, data: TrainingData | None, progress: Progress | None, lease: Lease
    ) -> RemoteDataset:
        remote = self._known_upload(run)
        if remote is None:
            if data is None or data.digest != run.dataset_digest:
                raise UsageError(
                    f"run {run.id} has not uploaded its data yet, and the data is missing or has changed",
                    fix=f"orchestrate cancel {run.id}, then submit again",
                )
            with accounts.alone(
                self.store,
                self.provider,
                run.account or "",
                data,
                lease_s=self.timing.lease_s,
                still_wanted=lambda: self._require_wanted(run),
            ):
                remote = self._known_upload(run) or self._upload(run, sent, data, progress, lease)
        self.apply(run, transitions.uploaded, lease)
        self.reached("after-uploaded")
        return remote

    def _upload(
        self, run: Run, sent: _Sent, data: TrainingData, progress: Progress | None, lease: Lease
    ) -> RemoteDataset:
        try:
            with work(f"uploading the data to {self.provider.name}", BYTES) as advance:
                remote = self.provider.upload(sent.spec, data, sent.translation, progress=progress or advance)
        except (ProviderError, SetupError, DataError) as error:
            self._refuse(run, error, lease, sent.patient)
            raise
        self.reached("after-upload")
        self.store.history.record_upload(run.provider, run.host, run.account or "", remote)
        return remote

    def _require_wanted(self, run: Run) -> None:
        if self.store.runs.get(run.id).status.terminal:
            raise Withdrawn(run)

    def _known_upload(self, run: Run) -> RemoteDataset | None:
        """Return the existing upload of this data in the run's account."""
        return self.store.history.upload(run.provider, run.host, run.account, run.dataset_digest)

    def _ask_price(self, run: Run, sent: _Sent, remote: RemoteDataset, lease: Lease) -> None:
        """Request the host's own estimate and store it with the run. Rejects the run if the estimate exceeds
        its limit, the account's limit or the budget, or if it exceeds the quote and neither the limit nor the
        user allows that. Without an estimate, the quote is used."""
        if not isinstance(self.provider, EstimatesPrice):
            return
        try:
            live = self.provider.live_price(sent.spec, remote, sent.translation)
            if live.price is not None:
                self._take_estimate(run, live, live.price.counted_usd, lease)
        except (OverBudget, QuotaExceeded) as error:
            self._refuse(run, error, lease)
            raise
        except OrchestrateError as error:
            level, note, usd = "warning", f"no live price: {error.message}", None
        else:
            level, usd = "info", live.counted_usd
            note = f"no live price: {live.why_none}" if usd is None else f"the host estimates {money(usd)}"
        event = Event(
            id="orchestrate-live-price",
            at=self.store.clock.now(),
            level=level,
            type="live_price",
            message=f"{self.provider.profile.title}: {note}",
            data={} if usd is None else {"usd": str(usd)},
        )
        self.store.history.add_events(run.id, [event], from_host=False)

    def _take_estimate(self, run: Run, live: Quote, usd: Decimal, lease: Lease) -> None:
        """Reserve the estimated amount. Raises `OverBudget`."""
        name, figure = self.provider.name, "the host's own estimate"
        limit, high = run.max_cost_usd, run.quote.high_usd if run.quote else None
        require_within(name, usd, limit, figure=figure)
        if limit is None and exceeds(usd, high) and not self.agree(live):
            fix = "if you accept the estimate, submit again with that amount as --max-cost"
            require_within(name, usd, high, what="the quote's high end", figure=figure, fix=fix)
        self.store.runs.commit(run.id, usd, transitions.estimated(usd), self.budget_usd, lease=lease)

    def _send(self, run: Run, sent: _Sent, remote: RemoteDataset, lease: Lease, *, again: bool) -> Run:
        patience = self.timing.patience_s
        while True:
            if again and (handles := self.find(run)):
                return self.adopt(run, handles)
            again = True
            self._begin(run, lease, sent.lease)
            try:
                handle = self.provider.create(sent.spec, remote, sent.translation, run.ref)
            except OutcomeUnknown as error:
                return self._query_again(run, error)
            except OrchestrateError as error:
                wait = _requested_wait(error)
                if wait is None or wait > patience:
                    if handles := self._made_after_all(run, error):
                        return self._record(run, handles)
                    self._refuse(run, error, lease, sent.patient)
                    raise
                self.apply(
                    run,
                    transitions.not_made,
                    lease,
                    note=f"the host is busy and asked us to wait {duration(wait)}",
                )
                patience -= wait
                self.store.clock.sleep(wait)
            except BaseException:
                with suppress(OrchestrateError):
                    self.apply(run, transitions.outcome_unknown, None, note="interrupted while sending")
                raise
            else:
                self.reached("after-post")
                run = self._record(run, [handle])
                self.reached("after-submitted")
                return run

    def _begin(self, run: Run, lease: Lease, whole: Lease | None) -> None:
        """Write SUBMITTING, and check at the last moment that this process may still send. Raises `Withdrawn`
        if the run was canceled."""
        for _ in range(3):
            begun = self.store.clock.uptime().seconds
            if self.store.runs.begin(run.id, lease, whole).status.terminal:
                raise Withdrawn(run)
            self.reached("after-submitting")
            # Fencing: this check fails if another process has taken over the run.
            self.store.leases.check(lease, self.timing.lease_s)
            self.reached("after-fence")
            if self.store.clock.uptime().seconds - begun <= self.timing.send_limit_s:
                return
            late = "writing to the store took too long, so nothing was sent"
            self.apply(run, transitions.not_made, lease, note=late)
        slow = StoreError(
            f"run {run.id}: writing to the run store took longer than {duration(self.timing.send_limit_s)}",
            fix=f"nothing was sent. When the machine is less busy: orchestrate resume {run.id}",
        )
        slow.retryable = True  # otherwise callers that retry would give up the run
        raise slow

    def _query_again(self, run: Run, error: OutcomeUnknown) -> Run:
        """Query the host again for the job after a lost response, and adopt it if it exists. Its absence
        proves nothing yet."""
        with suppress(OrchestrateError):  # SUBMITTING is settled in the same way
            self.apply(run, transitions.outcome_unknown, None, note=error.message)
        try:
            handles = self.find(run)
        except ProviderError:
            raise error from None
        if not handles:
            raise error
        return self._record(run, handles)

    def _made_after_all(self, run: Run, error: OrchestrateError) -> list[JobHandle]:
        """Query the host once for the job of a create request that was rejected with an unknown code, because
        the job may have been created first. A sync queries again."""
        if not isinstance(error, ProviderError) or error.status is None or error.certain:
            return []
        try:
            return self.find(run)
        except ProviderError:
            return []

    def _record(self, run: Run, handles: list[JobHandle]) -> Run:
        try:
            return self.adopt(run, handles)
        except StoreError as error:
            made = f"created job {handles[0].job_id} but could not record it: {error}"
            unknown = OutcomeUnknown(self.provider.name, run.ref, made)
            unknown.fix = (
                f"{error.fix or 'repair the run store'}. Then run  orchestrate sync  (do not submit again)"
            )
            raise unknown from error

    def _refuse(self, run: Run, error: OrchestrateError, lease: Lease, patient: bool = False) -> None:
        if patient and error.retryable:
            if self.store.runs.get(run.id).phase in UNSETTLED:
                self.apply(run, transitions.not_made, lease, note=error.message)
            return
        if isinstance(error, (InvalidRequest, NotFound, PermissionRefused)):
            # The host may have deleted the uploaded file, so the next submit must upload it again.
            for account in (run.account, None):
                self.store.history.forget_upload(run.provider, run.host, account, run.dataset_digest)
        reason = JobError(message=error.message, code=getattr(error, "code", None))
        self.apply(run, lambda run, at: transitions.refused(run, reason, at), lease)


@dataclass(frozen=True)
class _Sent:
    """Contents of the request to the host."""

    spec: JobSpec
    translation: Translation
    patient: bool
    lease: Lease | None
    """Lease of the sweep that the run belongs to."""


def _requested_wait(error: OrchestrateError) -> float | None:
    """Return the number of seconds to wait if the host rejected the request as too many. Returns `None` for
    any other error."""
    if not isinstance(error, RateLimited) or not error.retryable:
        return None
    # At least a second, because a host that asks for 0 each time would be asked without end.
    return 5.0 if error.retry_after_s is None else max(error.retry_after_s, 1.0)


def _within(spec: JobSpec, run: Run) -> JobSpec:
    """Limit the spec to the amount that is reserved in the budget."""
    return spec if run.allowed_usd is None else spec.model_copy(update={"max_cost_usd": run.allowed_usd})


def _model(spec: JobSpec, provider: Provider) -> str:
    """Return the model for this backend. The spec may use the configured name of the host or the name of its
    backend class."""
    if isinstance(spec.model, dict) and provider.config.name in spec.model:
        return spec.model[provider.config.name]
    return spec.model_for(provider.name)


def settle(store: Store, provider: Provider, run: Run, *, timing: Timing = DEFAULT_TIMING) -> Run:
    """Resolve a run whose create request got no response. See `Submitter.settle`."""
    return Submitter(store, provider, timing).settle(run)


def cancel(store: Store, provider: Provider, run: Run, *, timing: Timing = DEFAULT_TIMING) -> Run:
    """Cancel a run. See `Submitter.cancel`."""
    return Submitter(store, provider, timing).cancel(run)
