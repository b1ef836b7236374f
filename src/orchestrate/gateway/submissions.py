"""Submit each job exactly once, even if several workers run or one is killed. When a job ends, call the
webhook."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING

from msgspec.structs import replace

from orchestrate.errors import DataError, OrchestrateError, OutcomeUnknown, ProviderError, StoreError
from orchestrate.gateway import job_objects
from orchestrate.gateway.calls import sentence
from orchestrate.gateway.files import Contents
from orchestrate.gateway.terms import GatewaySettings
from orchestrate.runs.preparing.prepared import Prepared, prepare
from orchestrate.runs.submit import submit
from orchestrate.runs.submitting.settler import lease_name
from orchestrate.runs.syncing.sweep import fetch_details
from orchestrate.runs.tracked import TrackedRun
from orchestrate.runs.watching.channels import NotDelivered, Webhook
from orchestrate.spec import JobSpec
from orchestrate.store.database import Lease, LeaseHeld, LeaseLost
from orchestrate.store.gateway import KeyCancelled
from orchestrate.store.transitions import UNSENT, UNSETTLED
from orchestrate.types import GatewayJob, JobError, JobStatus, Run, SubmitPhase

if TYPE_CHECKING:
    from orchestrate.runs.watching.watcher import Watcher
    from orchestrate.workspace import Workspace

_log = logging.getLogger(__name__)
_TURN_S = 0.5
_LEASE_S = 30.0
_VIEW_S = 30.0
_MOST_TRIES = 6
_ASK_AGAIN_S = 5.0
_LONGEST_PAUSE = timedelta(hours=1)
_NOTIFY_FOR = timedelta(days=1)
_DETAILS_FOR = timedelta(minutes=1)
_LONGEST_WAIT_S = 600.0
_SWEEP_S = 3600.0
Reached = Callable[[str], object]


class Submitting:
    """Submits jobs from `start` until `close`. Several processes that share a store may submit at the same
    time."""

    def __init__(
        self,
        ft: Workspace,
        terms: GatewaySettings,
        contents: Contents,
        watcher: Watcher,
        reached: Reached = lambda place: None,
        sweeps: Sequence[Callable[[], None]] = (),
    ) -> None:
        """Set up the submitter. `reached` is called with the current stage of a submit, which lets tests kill
        the process there. `sweeps` run at the start and every hour."""
        self._ft, self._terms, self._contents, self._watcher = ft, terms, contents, watcher
        self._reached, self._sweeps, self._sweep_at = reached, sweeps, 0.0
        self._jobs, self._runs = ft.store.gateway_jobs, ft.store.runs
        self._prepared: dict[str, Prepared] = {}
        self._at_work: set[str] = set()
        self._webhook_retries, self._cancels = RetrySchedule(ft), RetrySchedule(ft)
        self._viewed: dict[str, float] = {}
        self._looking: dict[str, tuple[float, Lease | None]] = {}
        self._lock = threading.Lock()
        self._stop, self._woken = threading.Event(), threading.Event()
        self._pool = ThreadPoolExecutor(max_workers=terms.threads, thread_name_prefix="submitting")
        self._threads = [
            threading.Thread(target=self._watch, daemon=True, name="gateway-watcher"),
            threading.Thread(target=self._turns, daemon=True, name="gateway-jobs"),
        ]
        url, secret = terms.webhook_url, terms.webhook_secret
        self._webhook = Webhook(url, secret) if url else None

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stop submitting, and wait for submissions in progress. The next worker continues with the other
        jobs."""
        self._stop.set()
        self._woken.set()
        self._watcher.wake()
        self._pool.shutdown(wait=True, cancel_futures=True)
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(15)

    def take(self, job: GatewayJob, prepared: Prepared) -> None:
        """Start submitting a new job whose data and quote are already prepared."""
        self._prepared[job.id] = prepared
        self._begin(job)

    def viewed(self, run: Run | None) -> None:
        """Record that a client is waiting for this run, so its host is polled more often."""
        if run is not None and not run.status.terminal:
            self._viewed[f"{run.provider}@{run.host}"] = self._ft.store.clock.uptime().seconds

    def _poll_viewed(self) -> None:
        now = self._ft.store.clock.uptime().seconds
        for account, at in list(self._viewed.items()):
            if now - at > _VIEW_S:
                self._viewed.pop(account, None)
            elif now >= self._looking.get(account, (0.0, None))[0]:
                lease = self._ft.store.watching.watch(account, self._looking.get(account, (0.0, None))[1])
                self._looking[account] = (now + _VIEW_S / 6, lease)

    def run_of(self, job: GatewayJob) -> Run | None:
        return self._runs.of_key(job.run_key)

    # -- turns ---------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        with suppress(StoreError):
            self._watcher.run(self._stop)

    def _turns(self) -> None:
        while not self._stop.is_set():
            try:
                for job in self._jobs.unended():
                    self._check(job)
                self._poll_viewed()
                self._sweep_now_and_then()
            except (StoreError, OSError) as error:
                _log.warning("%s", error)
            self._woken.wait(_TURN_S)
            self._woken.clear()

    def _sweep_now_and_then(self) -> None:
        now = self._ft.store.clock.uptime().seconds
        if now >= self._sweep_at:
            self._sweep_at = now + _SWEEP_S
            for sweep in self._sweeps:
                sweep()

    def _check(self, job: GatewayJob) -> None:
        if self._due(job, self.run_of(job)):
            self._begin(job)

    def _due(self, job: GatewayJob, run: Run | None) -> bool:
        """Return whether the job needs work now."""
        if job.ended_at is not None:
            return self._webhook_retries.due(job.id)
        if job.again_at is not None:
            left = job.again_at - self._ft.store.clock.now()
            # If more than the longest possible wait remains, the clock was set back, so the job is due.
            return job.cancel_asked or not timedelta() < left <= _LONGEST_PAUSE
        if job.error is not None or run is None or run.phase in UNSENT or run.id != job.run_id:
            return True
        return run.status.terminal or self._uncancelled(job, run)

    def _uncancelled(self, job: GatewayJob, run: Run) -> bool:
        """Return whether a requested cancellation has not reached the host: the process was killed in
        between, the host was unreachable, or the create request was still in progress."""
        if not job.cancel_asked or not self._cancels.due(job.id) or run.phase is not SubmitPhase.SUBMITTED:
            return False
        return job.ended_as is None or run.status is not JobStatus.CANCELLING

    def cancel(self, job: GatewayJob) -> tuple[GatewayJob, Run | None]:
        """Cancel a job as requested by a client. A job that was not sent yet is never sent. If the host
        cannot be reached, the cancellation is retried later. If the host rejects the cancellation, the job
        continues and is shown as running. In both cases, raises the host's `OrchestrateError`."""
        run = self.run_of(job)
        if run is not None and not run.status.terminal and run.status is not JobStatus.CANCELLING:
            try:
                run = TrackedRun(self._ft, run).cancel()
            except OrchestrateError as error:
                if error.retryable:
                    self._cancels.failed(job.id)
                else:
                    self._jobs.change(job.id, lambda job: replace(job, cancel_asked=False))
                raise
        self._cancels.over(job.id)
        taken = run is not None and run.status is JobStatus.CANCELLING
        if taken or job_objects.outcome(job, run) == "cancelled":
            job = self._jobs.change(job.id, lambda job: replace(job, ended_as=job.ended_as or "cancelled"))
        return job, run

    def sending(self, run: Run | None) -> bool:
        """Return whether the run's create request is in progress."""
        return run is not None and run.phase in UNSETTLED and self._ft.store.leases.held(lease_name(run))

    def _begin(self, job: GatewayJob) -> None:
        with self._lock:
            if job.id in self._at_work or self._stop.is_set():
                return
            self._at_work.add(job.id)
        try:
            self._pool.submit(self._work, job.id)
        except RuntimeError:  # it is being closed
            self._at_work.discard(job.id)

    def _work(self, id: str) -> None:
        try:
            with self._ft.store.leases.hold(f"gateway:{id}", _LEASE_S):
                self._step(id)
        except LeaseHeld:
            pass  # another worker is at it
        except OrchestrateError as error:
            _log.warning("%s: %s", id, error.message)
        except Exception:  # noqa: BLE001  a defect must not leave the job without an end
            _log.exception("%s", id)
            failed = JobError(message="internal error. See the gateway's log", code="server_error")
            with suppress(OrchestrateError):
                self._jobs.change(id, lambda job: replace(job, error=failed))
        finally:
            self._prepared.pop(id, None)
            self._at_work.discard(id)
            self._woken.set()

    # -- one job -------------------------------------------------------------------------------------------

    def _step(self, id: str) -> None:
        job = self._jobs.get(id)
        run = self.run_of(job) if job else None
        if job is None or job.told or not self._due(job, run):
            return
        if run is not None and run.id != job.run_id:
            job = self._jobs.change(id, lambda job: replace(job, run_id=run.id))
        unsent = run is None or run.phase in UNSENT
        over = run.status.terminal if run else job.cancel_asked
        waits = job.again_at is not None and not job.cancel_asked  # one that is not wanted is not sent again
        if job.ended_at is not None or job.error is not None or (over and not waits):
            self._end(job, run)
        elif run is not None and job.cancel_asked and (unsent or self._uncancelled(job, run)):
            self.cancel(job)
        elif unsent or job.again_at is not None:
            self._submit(job)

    def _submit(self, job: GatewayJob) -> None:
        if job.again_at is not None:
            job = self._jobs.change(job.id, lambda job: replace(job, again_at=None))
        self._reached("before-submit")
        try:
            run = self._run(job)
        except OutcomeUnknown:
            run = self.run_of(job)  # the watcher settles it
        except KeyCancelled:
            return  # the next turn ends it
        except (LeaseHeld, LeaseLost, StoreError):
            raise  # neither its data nor its backend is at fault: a later turn goes on
        except OrchestrateError as error:
            self._refused(job, error)
            return
        self._reached("after-submit")
        if run is not None:
            job = self._jobs.change(job.id, lambda job: replace(job, run_id=run.id))
            self._watcher.wake()
            if job.cancel_asked:
                self.cancel(job)

    def _run(self, job: GatewayJob) -> Run:
        spec = JobSpec.parse(job.spec)
        prepared = self._prepared.get(job.id) or prepare(self._ft, spec, job.backend)
        self._reached("prepared")
        return submit(
            self._ft,
            prepared,
            job.backend,
            idempotency_key=job.run_key,
            again=True,
            patient=job.tries < _MOST_TRIES,
            agree=lambda live: False,
        )

    def _refused(self, job: GatewayJob, error: OrchestrateError) -> None:
        """Schedule a retry after a temporary error, or store the error. A retry uses the existing run,
        because an older copy of the store that lacks this attempt would use its key and ref as well."""
        run = self.run_of(job)
        unsent = run is not None and run.phase in UNSENT
        refused = run is not None and run.phase is SubmitPhase.REFUSED
        sent = run is not None and not unsent and not refused
        if sent or (run is not None and run.status is JobStatus.CANCELLED):
            return
        if error.retryable and not refused and job.tries < _MOST_TRIES and isinstance(error, ProviderError):
            pause = _ASK_AGAIN_S if run is None else min(2.0 ** (job.tries + 1), 60.0)
            wait = max(error.retry_after_s or 0.0, pause)
            at = self._ft.store.clock.now() + min(timedelta(seconds=wait), _LONGEST_PAUSE)
            tries = job.tries + unsent
            self._jobs.change(job.id, lambda job: replace(job, again_at=at, tries=tries))
            return
        param = "training_file" if isinstance(error, DataError) else None
        code = getattr(error, "code", None) or ("invalid_training_file" if param else "refused")
        failed = JobError(message=job_objects.named(job, sentence(error)), code=str(code), param=param)
        self._jobs.change(job.id, lambda job: replace(job, error=failed))

    # -- ends ----------------------------------------------------------------------------------------------

    def _end(self, job: GatewayJob, run: Run | None) -> None:
        if job.ended_at is None:
            if run is not None and run.phase in UNSENT and not run.status.terminal:
                # The run will never be submitted, but still reserves a share of the budget.
                run = TrackedRun(self._ft, run).cancel()
            if run is not None and not self._complete(run):
                return
            now, ended_as = self._ft.store.clock.now(), job_objects.outcome(job, run)
            job = self._jobs.change(
                job.id, lambda job: replace(job, ended_at=now, ended_as=job.ended_as or ended_as)
            )
            for sha256 in job.files:
                self._contents.release(sha256)
        if self._notified(job, run):
            self._jobs.change(job.id, lambda job: replace(job, told=True))

    def _complete(self, run: Run) -> bool:
        """Return whether the last events, metrics and checkpoints were fetched, or are no longer expected."""
        store = self._ft.store
        if run.job_id is None or store.runs.is_closed(run.id):
            return True
        try:
            fetch_details(store, self._ft.provider(run.provider), run)
        except OrchestrateError as error:
            _log.warning("%s: %s", run.id, error.message)
            return store.clock.now() - (run.finished_at or run.updated_at) > _DETAILS_FOR
        return True

    def _notified(self, job: GatewayJob, run: Run | None) -> bool:
        """Return whether the webhook was notified of the end, or is no longer retried."""
        if self._webhook is None:
            return True
        ended = run.finished_at or run.updated_at if run else job.created_at
        status = job_objects.status_of(job, run)
        event = {
            "id": f"evt_{job.id.removeprefix('ftjob-')}{status}",
            "object": "event",
            "created_at": job_objects.seconds(ended),
            "type": f"fine_tuning.job.{status}",
            "data": {"id": job.id},
        }
        try:
            self._webhook.send_message(event)
        except NotDelivered as error:
            _log.warning("%s: %s", job.id, error.message)
            if self._ft.store.clock.now() - ended > _NOTIFY_FOR:
                return True
            self._webhook_retries.failed(job.id)
            return False
        self._webhook_retries.over(job.id)
        return True


class RetrySchedule:
    """The schedule for retries. The wait doubles after each failure."""

    def __init__(self, ft: Workspace) -> None:
        self._clock = ft.store.clock
        self._failed: dict[str, tuple[int, float]] = {}

    def due(self, id: str) -> bool:
        return self._clock.uptime().seconds >= self._failed.get(id, (0, 0.0))[1]

    def failed(self, id: str) -> None:
        tries, _ = self._failed.get(id, (0, 0.0))
        wait = min(2.0**tries, _LONGEST_WAIT_S)
        self._failed[id] = (tries + 1, self._clock.uptime().seconds + wait)

    def over(self, id: str) -> None:
        self._failed.pop(id, None)
