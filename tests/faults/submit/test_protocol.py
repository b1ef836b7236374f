"""The submit protocol on one machine: what is sent, what is written down, what is told."""

from __future__ import annotations

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest
from msgspec.structs import replace
from tests import leases
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.submitting import submit

from orchestrate.errors import (
    HostUnavailable,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    OverBudget,
    PermissionRefused,
    ProviderError,
    QuotaExceeded,
    RateLimited,
    StoreError,
    UsageError,
)
from orchestrate.paid.limits import UnknownPrice
from orchestrate.runs.submitting import accounts
from orchestrate.runs.submitting.repeats import Submission
from orchestrate.runs.submitting.submit import Submitter, cancel, settle
from orchestrate.runs.syncing.recovery import recover
from orchestrate.runs.syncing.sweep import refresh, sync
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, Uptime, gateway
from orchestrate.store.database import LeaseHeld, LeaseLost
from orchestrate.store.store import Store, Timing
from orchestrate.store.transitions import ImpossibleTransition, Withdrawn
from orchestrate.types import (
    Bill,
    JobHandle,
    JobStatus,
    Outcome,
    Quote,
    RemoteDataset,
    Run,
    Setting,
    SubmitPhase,
    Translation,
)

SPEC = JobSpec(model="m", train="rows.jsonl")
QUICK = Timing(send_limit_s=0.2, requests=1, margin_s=0.1, lease_s=5.0, patience_s=4.0)
SENDING = replace(QUICK, send_limit_s=60.0)  # a machine that is busy is no process that slept
OPEN = replace(SENDING, margin_s=600.0)  # what is not known stays so, however busy the machine is
DATA: Any = Paper()


def settled(store: Store, host: PaperHost, run: Run) -> Run:
    time.sleep(QUICK.settle_s(host))
    return settle(store, host, run, timing=QUICK)


def test_a_submit_makes_one_job_and_uploads_equal_data_once(store: Store, host: PaperHost) -> None:
    first = submit(store, host, SPEC, DATA)
    second = submit(store, host, SPEC, DATA)
    assert host.requests == ["upload", "create", "create"]
    for run in (first, second):
        assert (run.phase, run.host) == (SubmitPhase.SUBMITTED, host.host)
        assert [job["id"] for job in host.jobs(run.ref)] == [run.job_id]


class Later(PaperHost):
    """The host as a later version of this program knows it: the same spec becomes another request there."""

    rate: ClassVar[float] = 9e-9

    def translate(self, spec: JobSpec) -> Translation:
        setting = Setting(name="learning_rate", outcome=Outcome.MAPPED, asked=1, sent=self.rate)
        return msgspec.structs.replace(
            super().translate(spec), settings=(setting,), body={"learning_rate": self.rate}
        )

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        self.faults.setdefault("bodies", []).append(translation.body)
        return super().create(spec, remote, translation, ref)


class Earlier(Later):
    rate: ClassVar[float] = 1e-5


def test_what_was_agreed_to_is_sent_by_a_later_version_too(store: Store, host: PaperHost) -> None:
    def killed(point: str) -> None:
        if point == "after-intent":
            raise KeyboardInterrupt

    before, after = Earlier(host.folder), Later(host.folder)
    with pytest.raises(KeyboardInterrupt):
        submit(store, before, SPEC, DATA, reached=killed)
    [run] = store.runs.matching()
    assert submit(store, after, SPEC, DATA, run_id=run.id).phase is SubmitPhase.SUBMITTED
    assert after.faults["bodies"] == [{"learning_rate": 1e-5}]
    stored = store.history.translation(run.id)
    assert stored == before.translate(SPEC) != after.translate(SPEC)


def test_a_limit_is_kept_before_anything_is_written_or_sent(store: Store, host: PaperHost) -> None:
    quote = Quote(provider="paper", model="m", high_usd=Decimal(3))
    with pytest.raises(OverBudget):
        submit(store, host, SPEC, DATA, quote=quote, max_cost_usd=Decimal("2.99"))
    with pytest.raises(OverBudget):
        submit(store, host, SPEC, DATA, quote=quote, budget_usd=Decimal("2.99"))
    with pytest.raises(UsageError, match="cannot be enforced"):
        no_price = Quote(provider="paper", model="m", unavailable="no rate")
        submit(store, host, SPEC, DATA, quote=no_price, max_cost_usd=Decimal(9))
    for quote in (no_price, None):
        with pytest.raises(UnknownPrice):
            submit(store, host, SPEC, DATA, quote=quote, budget_usd=Decimal(9))
    assert (host.requests, store.runs.matching()) == ([], [])


def test_a_refusal_ends_the_run_with_its_reason_and_forgets_the_upload(store: Store, host: PaperHost) -> None:
    host.faults["refused"] = True
    with pytest.raises(InvalidRequest):
        submit(store, host, SPEC, DATA)
    run = store.runs.get("last")
    assert (run.phase, run.status) == (SubmitPhase.REFUSED, JobStatus.FAILED)
    assert run.error is not None
    assert (run.error.code, "no such model" in run.error.message) == ("bad", True)
    assert store.history.upload("paper", host.host, host.account().id, DATA.digest) is None
    assert sync(store, lambda _: host, timing=OPEN).adopted == []
    assert store.runs.matching(closed=False) == [run], "it is too early to tell that the host did not make it"
    time.sleep(QUICK.settle_s(host))
    sync(store, lambda _: host, timing=QUICK)
    assert store.runs.matching(closed=False) == []


@pytest.mark.parametrize(
    ("refusal", "uploads"),
    [(PermissionRefused, 2), (NotFound, 2), (InvalidRequest, 2), (QuotaExceeded, 1)],
)
def test_a_file_that_the_key_may_not_use_is_brought_again(
    store: Store, host: PaperHost, refusal: type[ProviderError], uploads: int
) -> None:
    """It may be another project's, or deleted; an account without credit says nothing of it."""
    host.faults["raises"] = refusal(host.name, "no", status=403)
    with pytest.raises(refusal):
        submit(store, host, SPEC, DATA)
    host.faults.clear()
    submit(store, host, SPEC, DATA)
    assert host.requests.count("upload") == uploads


def test_a_busy_host_is_waited_for_as_long_as_it_asks(store: Store, host: PaperHost) -> None:
    host.faults["busy"] = 3
    run = submit(store, host, SPEC, DATA, timing=SENDING)
    assert [job["id"] for job in host.jobs()] == [run.job_id]
    assert [t.attempt for t in store.history.transitions(run.id)][-1] == 4
    host.faults |= {"busy": 1, "retry_after_s": 3600.0}
    with pytest.raises(RateLimited):
        submit(store, host, SPEC, DATA, timing=SENDING)
    assert len(host.jobs()) == 1


def test_a_lost_answer_is_settled_at_once_when_the_job_shows(store: Store, host: PaperHost) -> None:
    host.faults["lost"] = True
    run = submit(store, host, SPEC, DATA)
    assert (run.phase, [job["id"] for job in host.jobs()]) == (SubmitPhase.SUBMITTED, [run.job_id])
    assert host.requests == ["upload", "create", "find"]


def test_a_job_that_shows_late_is_adopted_and_nothing_is_sent_twice(store: Store, host: PaperHost) -> None:
    host.faults["late_s"] = 1e6
    with pytest.raises(OutcomeUnknown):
        submit(store, host, SPEC, DATA, timing=OPEN)
    run = store.runs.get("last")
    assert run.phase is SubmitPhase.OUTCOME_UNKNOWN
    with pytest.raises(OutcomeUnknown, match="not known yet"):
        submit(store, host, SPEC, DATA, run_id=run.id, timing=OPEN)
    assert sync(store, lambda _: host, timing=OPEN).unsettled == [run.id]
    host.show()
    report = sync(store, lambda _: host, timing=OPEN)
    assert report.adopted == [run.id]
    assert store.runs.get(run.id).job_id == host.jobs()[0]["id"]
    assert host.posts() == 1


def test_a_request_that_never_arrived_is_settled_after_the_settle_time_only(
    store: Store, host: PaperHost
) -> None:
    host.faults["raises"] = OutcomeUnknown("paper", "r", "reset")
    with pytest.raises(OutcomeUnknown):
        submit(store, host, SPEC, DATA, timing=SENDING)
    run = store.runs.get("last")
    assert settle(store, host, run, timing=Timing()).phase is SubmitPhase.OUTCOME_UNKNOWN
    run = settled(store, host, run)
    assert run.phase is SubmitPhase.UPLOADED
    del host.faults["raises"]
    run = submit(store, host, SPEC, DATA, run_id=run.id)
    assert [job["id"] for job in host.jobs()] == [run.job_id]
    assert host.requests.count("upload") == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug in the SDK")])
def test_whatever_breaks_the_send_leaves_its_outcome_open(
    store: Store, host: PaperHost, error: BaseException
) -> None:
    host.faults["raises"] = error
    with pytest.raises(type(error)):
        submit(store, host, SPEC, DATA)
    assert store.runs.get("last").phase is SubmitPhase.OUTCOME_UNKNOWN


class Moved(Clock):
    """The wall clock goes back or ahead, by as many days, at a wanted moment."""

    days = 0
    jump_s = 0.0

    def now(self) -> Any:
        return super().now() + timedelta(days=self.days)

    def uptime(self) -> Uptime:
        up = super().uptime()
        return Uptime(up.boot, up.seconds + self.jump_s)


@pytest.mark.parametrize("days", [-1, 1])
def test_a_clock_that_is_set_a_day_off_changes_nothing(store_url: str, host: PaperHost, days: int) -> None:
    clock = Moved()
    with Store.open(store_url, clock=clock) as store:
        host.faults["late_s"] = 1e6
        with pytest.raises(OutcomeUnknown):
            submit(store, host, SPEC, DATA, timing=OPEN)
        clock.days = days
        run = settle(store, host, store.runs.get("last"), timing=OPEN)
        assert run.phase is SubmitPhase.OUTCOME_UNKNOWN, "a day on the wall is not the settle time"
        host.show()
        run = settled(store, host, run)
        assert run.job_id == host.jobs()[0]["id"]
        host.set(str(run.job_id), state="done")
        assert sync(store, lambda _: host).ended == [run.id]
        assert host.posts() == 1


def test_a_process_that_slept_past_the_send_limit_sends_nothing_before_it_has_looked_again(
    store_url: str, host: PaperHost
) -> None:
    clock = Moved()
    slept: list[str] = []

    def sleeps(point: str) -> None:
        if point == "after-fence" and not slept:
            slept.append(point)
            clock.jump_s += 100.0

    with Store.open(store_url, clock=clock) as store:
        run = submit(store, host, SPEC, DATA, timing=SENDING, reached=sleeps)
        notes = [t.note for t in store.history.transitions(run.id) if t.note]
        assert notes == ["intent", "writing to the store took too long, so nothing was sent"]
        assert host.posts() == 1


def test_a_process_that_lost_its_lease_sends_nothing(store: Store, store_url: str, host: PaperHost) -> None:
    def taken_over(point: str) -> None:
        if point == "after-submitting":
            # As another process sees it when this one has slept past its lease.
            leases.expire(store_url)
            run = store.runs.get("last")
            time.sleep(QUICK.settle_s(host))
            other = Store(store.database.engine)  # never closed: the connections are the first one's too
            assert settle(other, host, run, timing=QUICK).phase is SubmitPhase.UPLOADED
            assert submit(other, host, SPEC, DATA, run_id=run.id, timing=SENDING).job_id

    with pytest.raises((LeaseLost, ImpossibleTransition)):
        submit(store, host, SPEC, DATA, timing=SENDING, reached=taken_over)
    assert host.posts() == 1
    assert store.runs.get("last").job_id == host.jobs()[0]["id"]


def test_a_store_that_is_too_slow_to_send_gives_no_run_up(store: Store, host: PaperHost) -> None:
    with pytest.raises(StoreError, match="took longer") as caught:
        submit(store, host, SPEC, DATA, timing=replace(QUICK, send_limit_s=-1.0))
    run = store.runs.get("last")
    assert (caught.value.retryable, run.phase, host.requests) == (True, SubmitPhase.UPLOADED, ["upload"])
    assert submit(store, host, SPEC, DATA, run_id=run.id).job_id == host.jobs()[0]["id"]


def test_two_jobs_of_one_ref_are_an_alarm_and_the_tracked_one_stays(store: Store, host: PaperHost) -> None:
    run = submit(store, host, SPEC, DATA)
    twin = host.add(run.ref)
    report = sync(store, lambda _: host)
    assert [alarm.data["others"] for alarm in report.alarms] == [[twin.job_id]]
    assert store.runs.get(run.id).job_id == run.job_id
    assert sync(store, lambda _: host).alarms == [], "an alarm is told once"
    assert [e.type for e in store.history.events(run.id)] == ["alarm"]


def test_a_job_of_a_run_that_was_given_up_is_adopted_when_it_shows(store: Store, host: PaperHost) -> None:
    host.faults["raises"] = OutcomeUnknown("paper", "r", "reset")
    with pytest.raises(OutcomeUnknown):
        submit(store, host, SPEC, DATA, timing=SENDING)
    run = settled(store, host, store.runs.get("last"))
    run = cancel(store, host, run, timing=QUICK)
    assert (run.status, store.runs.matching(closed=False)) == (JobStatus.CANCELLED, [run])
    sync(store, lambda _: host, timing=QUICK)
    assert store.runs.matching(closed=False) == [], "it was looked for once more"
    late = host.add(run.ref)
    del host.faults["raises"]
    submit(store, host, SPEC, DATA)  # another run is open, so the host is swept
    assert sync(store, lambda _: host).adopted == [run.id]
    assert store.runs.get(run.id).job_id == late.job_id
    assert [job["state"] for job in host.jobs(run.ref)] == ["stopped"], "the wish to cancel outlived its run"


# -- cancelling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "point",
    [
        "after-intent",
        "after-upload",
        "after-uploaded",
        "after-submitting",
        "after-fence",
        "after-post",
        "after-submitted",
    ],
)
def test_a_cancel_that_races_the_submit_leaves_no_job_running(
    store: Store, host: PaperHost, point: str
) -> None:
    def cancels(reached: str) -> None:
        if reached == point:
            cancel(store, host, store.runs.get("last"), timing=QUICK)

    with contextlib.suppress(ImpossibleTransition):
        submit(store, host, SPEC, DATA, timing=SENDING, reached=cancels)
    sync(store, lambda _: host)
    run = store.runs.get("last")
    assert run.status is JobStatus.CANCELLED
    assert [job["state"] for job in host.jobs() if job["state"] != "stopped"] == []
    sent = point in ("after-submitting", "after-fence", "after-post", "after-submitted")
    assert len(host.jobs()) == int(sent)


class Exclusive(PaperHost):
    """A second upload breaks the first, as where the signed URLs of one replace those of the other."""

    inside: ClassVar[list[str]] = []

    def upload(self, *given: Any, **more: Any) -> Any:
        self.inside.append("here")
        time.sleep(0.2)
        alone = len(self.inside) == 1
        self.inside.pop()
        if not alone:
            raise PermissionRefused(self.name, "this signed URL is invalid", status=403)
        return super().upload(*given, **more)


@pytest.mark.slow
def test_many_submits_of_new_data_at_once_upload_it_once(store: Store, tmp_path: Path) -> None:
    host = Exclusive(tmp_path / "exclusive")
    with ThreadPoolExecutor(6) as pool:
        runs = list(pool.map(lambda _: submit(store, host, SPEC, DATA), range(6)))
    assert [run.phase for run in runs] == [SubmitPhase.SUBMITTED] * 6
    assert (host.requests.count("upload"), len(host.jobs())) == (1, 6)


def test_a_run_that_waits_for_an_upload_of_another_can_be_cancelled(store: Store, host: PaperHost) -> None:
    with ThreadPoolExecutor(1) as pool, accounts.alone(store, host, host.account().id, DATA):
        sent = pool.submit(submit, store, host, SPEC, DATA)
        while not (runs := store.runs.matching()):
            time.sleep(0.01)
        cancel(store, host, runs[0], timing=QUICK)
        with contextlib.suppress(Withdrawn):  # it gives the run where the cancel has its lease just then
            sent.result(30)
    assert (host.requests, store.runs.get("last").status) == ([], JobStatus.CANCELLED)


@pytest.mark.parametrize("patient", [False, True])
def test_a_cancel_while_a_busy_host_refuses_the_create_prevents_the_next_one(
    store: Store, host: PaperHost, patient: bool
) -> None:
    host.faults |= {"busy": 1, "retry_after_s": 3600.0 if patient else 0.01}
    asked = Submission(
        spec=SPEC, translation=host.translate(SPEC), data=DATA, idempotency_key="k", patient=patient
    )

    def cancels(reached: str) -> None:
        if reached == "after-submitting":
            cancel(store, host, store.runs.get("last"), timing=QUICK)

    with pytest.raises((Withdrawn, RateLimited)):
        Submitter(store, host, SENDING, cancels).submit(asked)
    with contextlib.suppress(Withdrawn):
        Submitter(store, host, SENDING).submit(asked)
    assert (host.posts(), host.jobs(), store.runs.get("last").status) == (1, [], JobStatus.CANCELLED)


def test_a_key_that_was_cancelled_before_its_run_was_made_sends_nothing(
    store: Store, host: PaperHost
) -> None:
    with store.database.writing() as connection:
        gateway.request_cancel(store.database, connection, "k")
    for key, jobs in (("k", 0), ("other", 1)):
        asked = Submission(spec=SPEC, translation=host.translate(SPEC), data=DATA, idempotency_key=key)
        with contextlib.suppress(gateway.KeyCancelled):
            Submitter(store, host, SENDING).submit(asked)
        assert (len(host.jobs()), len(store.runs.matching())) == (jobs, jobs)


class Deaf(PaperHost):
    """Dies, or does not answer, when it is to cancel."""

    def cancel(self, job: JobHandle) -> None:
        if raised := self.faults.pop("deaf", None):
            raise raised
        super().cancel(job)


@pytest.mark.parametrize("by", ["sync", "refresh"])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), HostUnavailable("paper", "no answer", status=503)])
def test_a_cancel_that_did_not_reach_the_host_is_carried_out_by_the_next_look(
    store: Store, tmp_path: Path, error: BaseException, by: str
) -> None:
    host = Deaf(tmp_path / "host")
    run = submit(store, host, SPEC, DATA)
    other = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="running")
    host.faults["deaf"] = error
    with pytest.raises(type(error)):
        cancel(store, host, run)
    for _ in range(2):
        refresh(store, host, run) if by == "refresh" else sync(store, lambda _: host)
    refresh(store, host, other)
    assert store.runs.get(run.id).status is JobStatus.CANCELLED
    assert store.runs.get(other.id).status is JobStatus.QUEUED
    assert host.requests.count("cancel") == 1


def test_cancelling_twice_asks_and_changes_nothing_more(store: Store, host: PaperHost) -> None:
    run = submit(store, host, SPEC, DATA)
    assert cancel(store, host, run).status is JobStatus.CANCELLING
    assert refresh(store, host, run).status is JobStatus.CANCELLED
    requests = len(host.requests)
    assert cancel(store, host, run).status is JobStatus.CANCELLED
    assert len(host.requests) == requests


def test_a_run_is_never_asked_of_another_host(store: Store, host: PaperHost, tmp_path: Path) -> None:
    run = submit(store, host, SPEC, DATA)
    other = PaperHost(tmp_path / "other")
    with pytest.raises(UsageError, match="is on paper at"):
        cancel(store, other, run)
    assert sync(store, lambda _: other).checked == 0
    assert other.requests == []


# -- sync and refresh --------------------------------------------------------------------------------------


def test_a_sweep_costs_one_list_however_many_runs_there_are(store: Store, host: PaperHost) -> None:
    for _ in range(12):
        submit(store, host, SPEC, DATA)
    host.requests.clear()
    for job in host.jobs():
        host.set(job["id"], state="running")
    assert len(sync(store, lambda _: host).changed) == 12
    assert host.requests == ["list"]


def test_an_estimate_that_gets_no_better_keeps_no_run_open(store: Store, host: PaperHost) -> None:
    """Of a job that ended early no host tells the price."""
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="stopped")
    estimate = Bill(usd=Decimal(1), origin="3 of 10 steps x total_price", final=False)
    sync(store, lambda _: host, bill=lambda _run, _job: estimate)
    assert store.runs.get(run.id).bill == estimate and store.runs.matching(closed=False) == []


def test_an_ended_run_gets_its_last_events_metrics_and_bill_and_is_then_left_alone(
    store: Store, host: PaperHost
) -> None:
    run = submit(store, host, SPEC, DATA)
    host.set(
        str(run.job_id),
        state="done",
        model="ft:m",
        tokens=10,
        events=[{"id": "e1", "message": "one"}, {"id": "e2", "message": "two"}],
        metrics=[{"step": 1, "values": {"train_loss": 1.0}}],
        checkpoints=[{"id": "c1", "step": 1}],
    )
    bills = iter(
        [None, Bill(usd=Decimal(1), origin="guess", final=False), Bill(usd=Decimal(2), origin="host")]
    )
    for still_open in (True, True, False):
        report = sync(store, lambda _: host, bill=lambda _run, _job: next(bills))
        assert bool(store.runs.matching(closed=False)) is still_open
    assert report.ended == []
    run = store.runs.get(run.id)
    assert (run.status, run.tuned_model, run.trained_tokens) == (JobStatus.SUCCEEDED, "ft:m", 10)
    assert run.bill == Bill(usd=Decimal(2), origin="host")
    assert [e.id for e in store.history.events(run.id)] == ["e1", "e2"]
    assert len(store.history.metrics(run.id)) == len(store.history.checkpoints(run.id)) == 1
    host.requests.clear()
    assert sync(store, lambda _: host).checked == 0
    assert host.requests == []


def test_absence_from_a_list_ends_nothing(store: Store, host: PaperHost) -> None:
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), appears=time.time() + 3600, state="running")
    assert sync(store, lambda _: host).changed == [run.id], "the job was asked for by its id"
    (host.folder / "jobs" / f"{run.job_id}.json").unlink()
    report = sync(store, lambda _: host)
    assert (report.changed, report.failures) == ([], [])
    assert store.runs.get(run.id).status is JobStatus.RUNNING


def test_a_host_that_is_down_stops_no_other(store: Store, host: PaperHost, tmp_path: Path) -> None:
    down = PaperHost(tmp_path / "down", name="down")
    hosts = {"paper": host, "down": down}
    ours, theirs = submit(store, host, SPEC, DATA), submit(store, down, SPEC, DATA)
    down.faults["down"] = True
    host.set(str(ours.job_id), state="done")
    report = sync(store, hosts.__getitem__)
    assert report.ended == [ours.id]
    assert [(f.provider, f.retryable) for f in report.failures] == [("down", True)]
    assert store.runs.get(theirs.id).status is JobStatus.SUBMITTING


def test_refresh_tells_new_events_only(store: Store, host: PaperHost) -> None:
    run = submit(store, host, SPEC, DATA)
    told: list[str] = []
    for count in (1, 1, 3):
        events = [{"id": f"e{n}", "message": "m"} for n in range(count)]
        host.set(str(run.job_id), state="running", events=events)
        refresh(store, host, run, on_event=lambda event: told.append(event.id))
    assert told == ["e0", "e1", "e2"]


# -- many at once ------------------------------------------------------------------------------------------


def test_of_many_that_go_on_with_one_run_one_sends(store: Store, host: PaperHost) -> None:
    host.faults["raises"] = OutcomeUnknown("paper", "r", "reset")
    with pytest.raises(OutcomeUnknown):
        submit(store, host, SPEC, DATA, timing=SENDING)
    run = settled(store, host, store.runs.get("last"))
    del host.faults["raises"]
    start = threading.Barrier(6)

    def goes_on() -> None:
        start.wait()
        with contextlib.suppress(LeaseHeld, OutcomeUnknown):
            Submitter(store, host, SENDING).resume(run)

    threads = [threading.Thread(target=goes_on) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(host.jobs()) == 1


def test_interrupted_before_the_upload_needs_the_same_data_to_go_on(store: Store, host: PaperHost) -> None:
    class Dies(Exception):
        pass

    def dies(point: str) -> None:
        if point == "after-intent":
            raise Dies

    with pytest.raises(Dies):
        submit(store, host, SPEC, DATA, reached=dies)
    run = store.runs.get("last")
    assert sync(store, lambda _: host).unsent == [run.id]
    with pytest.raises(
        UsageError, match="has not uploaded its data yet, and the data is missing or has changed"
    ):
        Submitter(store, host).resume(run)
    other: Any = Paper()
    other.digest = "e" * 64
    with pytest.raises(UsageError):
        Submitter(store, host).resume(run, other)
    assert Submitter(store, host).resume(run, DATA).job_id == host.jobs()[0]["id"]


def test_a_job_that_could_not_be_written_down_is_found_again(tmp_path: Path, host: PaperHost) -> None:
    import resource

    path = tmp_path / "home" / "runs.sqlite3"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills(point: str) -> None:
        if point == "after-post":
            size = path.with_name(path.name + "-wal").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with Store.open(f"sqlite:///{path}") as store:
        try:
            with pytest.raises(OutcomeUnknown, match="but could not record it:"):
                submit(store, host, SPEC, DATA, reached=fills, timing=replace(SENDING, lease_s=0.3))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        while store.leases.held(f"run:{store.runs.get('last').id}"):
            time.sleep(0.01)  # it could not be given back either; it runs out
        assert sync(store, lambda _: host).adopted == [store.runs.get("last").id]
        assert [job["id"] for job in host.jobs()] == [store.runs.get("last").job_id]


@pytest.mark.parametrize("swap", ["removed", "replaced"])
@pytest.mark.parametrize("point", ["after-intent", "after-upload", "after-uploaded", "after-submitting"])
def test_a_store_that_is_taken_away_before_the_post_refuses_it(
    tmp_path: Path, host: PaperHost, point: str, swap: str
) -> None:
    path = tmp_path / "home" / "runs.sqlite3"

    def takes(reached: str) -> None:
        if reached == point:
            for file in path.parent.iterdir():
                file.unlink()
            if swap == "replaced":
                Store.open(f"sqlite:///{path}").close()

    with Store.open(f"sqlite:///{path}") as store, pytest.raises(StoreError) as caught:
        submit(store, host, SPEC, DATA, reached=takes)
    assert caught.value.fix
    assert host.jobs() == []


def test_a_store_that_is_taken_away_after_the_post_is_rebuilt(tmp_path: Path, host: PaperHost) -> None:
    path = tmp_path / "home" / "runs.sqlite3"

    def takes(reached: str) -> None:
        if reached == "after-post":
            for file in path.parent.iterdir():
                file.unlink()

    with Store.open(f"sqlite:///{path}") as store:
        run = submit(store, host, SPEC, DATA, reached=takes)
    twin = host.add(run.ref)
    with Store.open(f"sqlite:///{path}") as store:
        report = recover(store, [host])
        assert (report.recovered, report.doubled) == ([run.id], [run.ref])
        found = store.runs.get(run.id)
        [alarm] = store.history.alarms(run.id)
        assert {str(found.job_id), *alarm.data["others"]} == {str(run.job_id), twin.job_id}
        assert sync(store, lambda _: host).alarms == [], "told once"


@pytest.mark.parametrize("point", ["after-intent", "after-upload", "after-uploaded", "after-submitting"])
def test_no_room_before_the_post_refuses_it(tmp_path: Path, host: PaperHost, point: str) -> None:
    import resource

    path = tmp_path / "home" / "runs.sqlite3"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills(reached: str) -> None:
        if reached == point:
            size = path.with_name(path.name + "-wal").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    with Store.open(f"sqlite:///{path}") as store:
        try:
            # The fence is a write too, so that a disk which filled up after SUBMITTING is noticed by it.
            with pytest.raises(StoreError):
                submit(store, host, SPEC, DATA, reached=fills)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert host.jobs() == []
