"""A run that passes its cap is cancelled once, and says so."""

from __future__ import annotations

import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy.event import listen
from tests.faults.paper_host import BoundHost, Paper, PaperHost
from tests.faults.submitting import submit
from tests.paths import BUNDLED

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.costing import bill_run
from orchestrate.errors import HostUnavailable
from orchestrate.profile import profile
from orchestrate.runs.syncing.sweep import refresh, sync
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.store.store import Store
from orchestrate.types import Bill, Event, Job, JobHandle, JobStatus, Quote, QuoteLine, Run

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()


@pytest.fixture
def host(tmp_path: Path) -> PaperHost:
    return PaperHost(tmp_path / "host")


def by_tokens(_run: Run, job: Job) -> Bill | None:
    """A dollar a token."""
    if job.trained_tokens is None:
        return None
    return Bill(usd=Decimal(job.trained_tokens), origin="tokens x rate", final=job.status.terminal)


def capped(store: Store, host: BoundHost, **values: Any) -> Run:
    run = submit(store, host, SPEC, DATA, max_cost_usd=Decimal(5))
    host.set(str(run.job_id), state="running", **values)
    return run


def said(store: Store, run: Run) -> list[Event]:
    return [event for event in store.history.events(run.id) if event.type == "over_cap"]


def test_the_watcher_cancels_once_and_the_record_says_why(store: Store, host: PaperHost) -> None:
    run, other = capped(store, host, tokens=5), submit(store, host, SPEC, DATA)
    host.set(str(other.job_id), state="running", tokens=1000)
    watcher = Watcher(store, lambda _: host, bill=by_tokens)
    watcher.turn()
    assert said(store, run) == [], "a bill at the cap is not above it"
    host.set(str(run.job_id), tokens=6)
    watcher.wake()
    [report] = watcher.turn()
    assert report.capped == [run.id]
    assert store.runs.get(run.id).status is JobStatus.CANCELLING
    for _ in range(2):
        watcher.wake()
        watcher.turn()
    assert host.requests.count("cancel") == 1
    ended = store.runs.get(run.id)
    assert (ended.status, ended.error and ended.error.code) == (JobStatus.CANCELLED, "over_cap")
    assert ended.bill is not None and (ended.bill.usd, ended.bill.final) == (6, True)
    [event] = said(store, run)
    assert "over its cap of $5.00: an estimated $6.00 so far (tokens x rate)" in event.message
    assert ended.error is not None and ended.error.message == event.message
    assert store.history.transitions(run.id)[-1].note == "over its cap"
    assert store.runs.get(other.id).status is JobStatus.RUNNING, "a run without a cap goes on"


def test_an_amount_that_a_machine_ends_at_is_kept_by_a_sync_too(store: Store, host: PaperHost) -> None:
    """It is announced without `--max-cost` as well."""
    run = submit(store, host, SPEC, DATA)
    store.runs.apply(run.id, lambda run: msgspec.structs.replace(run, allowed_usd=Decimal(5)))
    host.set(str(run.job_id), state="running", tokens=6)
    assert sync(store, lambda _: host, bill=by_tokens).capped == [run.id]


def test_a_refresh_cancels_too_and_tells(store: Store, host: PaperHost) -> None:
    run, heard = capped(store, host, tokens=6), list[Event]()
    after = refresh(store, host, run, bill=by_tokens, on_event=heard.append)
    assert after.status is JobStatus.CANCELLING
    assert [event.type for event in heard] == ["over_cap"]
    ended = refresh(store, host, run, bill=by_tokens, on_event=heard.append)
    assert ended.status is JobStatus.CANCELLED and ended.error is not None
    assert (len(heard), host.requests.count("cancel")) == (1, 1)


class Deaf(PaperHost):
    """Does not take a cancel, at first or ever."""

    def cancel(self, job: JobHandle) -> None:
        if self.faults.get("deaf"):
            self._log("cancel")
            raise HostUnavailable(self.name, "no answer", status=503)
        super().cancel(job)


def test_a_lost_cancel_is_tried_again_and_told_once(store: Store, tmp_path: Path) -> None:
    host = Deaf(tmp_path / "host", deaf=True)
    run = capped(store, host, tokens=6)
    report = sync(store, lambda _: host, bill=by_tokens)
    assert report.failures and store.runs.get(run.id).status is JobStatus.RUNNING
    host.faults.clear()
    for _ in range(2):
        sync(store, lambda _: host, bill=by_tokens)
    assert host.requests.count("cancel") == 2
    assert store.runs.get(run.id).status is JobStatus.CANCELLED
    assert len(said(store, run)) == 1


def test_what_cannot_be_cancelled_is_told_once(store: Store, tmp_path: Path) -> None:
    host = BoundHost(tmp_path / "host")
    run = capped(store, host, tokens=6)
    for _ in range(2):
        sync(store, lambda _: host, bill=by_tokens)
    assert "cancel" not in host.requests
    [event] = said(store, run)
    assert "cannot cancel the run" in event.message
    host.set(str(run.job_id), state="done")
    sync(store, lambda _: host, bill=by_tokens)
    ended = store.runs.get(run.id)
    assert (ended.status, ended.error) == (JobStatus.SUCCEEDED, None)


def test_a_job_found_after_its_cancel_is_reported_once_where_it_cannot_be_cancelled(
    store: Store, tmp_path: Path
) -> None:
    host = BoundHost(tmp_path / "host", lost=True)

    def cancels(reached: str) -> None:
        if reached == "after-fence":
            store.runs.request_cancel(store.runs.get("last").id)

    run = submit(store, host, SPEC, DATA, reached=cancels)
    for _ in range(2):
        sync(store, lambda _: host)
    assert (store.runs.get(run.id).status, run.job_id) == (JobStatus.QUEUED, host.jobs()[0]["id"])
    [event] = [event for event in store.history.events(run.id) if event.type == "alarm"]
    assert "Paper has no API to cancel it" in event.message


def test_a_sync_writes_the_bills_of_many_together(store: Store, tmp_path: Path) -> None:
    """Of those whose details come later: so many more, and not one transaction more."""
    commits, counted = list[object](), list[int]()
    listen(store.database.engine, "commit", commits.append)
    for name, ended in (("few", 27), ("many", 31)):
        host = PaperHost(tmp_path / name, name=name)
        runs = [submit(store, host, SPEC, DATA) for _ in range(ended)]
        for run in runs:
            host.set(str(run.job_id), state="done", tokens=6)
        commits.clear()
        report = sync(store, {name: host}.__getitem__, only=[name], bill=by_tokens)
        counted.append(len(commits))
        assert (len(report.ended), report.failures) == (ended, [])
        billed = store.runs.of_ids(run.id for run in runs)
        assert [run.bill.usd if run.bill else None for run in billed] == [6] * ended
    assert 0 < counted[0] == counted[1]


def test_the_user_cancelling_is_not_blamed_on_the_cap(store: Store, host: PaperHost) -> None:
    run = capped(store, host, tokens=1)
    host.cancel(run.handle)
    sync(store, lambda _: host, bill=by_tokens)
    ended = store.runs.get(run.id)
    assert (ended.status, ended.error, said(store, run)) == (JobStatus.CANCELLED, None, [])


@pytest.mark.slow
def test_a_local_run_at_a_high_hourly_price(tmp_path: Path) -> None:
    """A real worker, whose hour costs so much that a moment of it is above the cap."""
    spec = JobSpec.parse(
        {
            "model": str(BUNDLED / "tiny-chat"),
            "train": str(BUNDLED / "orders" / "train.jsonl"),
            "epochs": 100,
        }
    )
    hour = QuoteLine(
        component="rental",
        quantity=Decimal("0.000001"),
        unit="usd_per_hour",
        usd_per_unit=Decimal(3600),
        usd_low=Decimal("0.0036"),
        usd=Decimal("0.0036"),
        usd_high=Decimal("0.0036"),
        note="1 x H100 at your rental price",
    )
    quote = Quote(provider="local", model="tiny-chat", lines=(hour,), expected_usd=hour.usd)
    settings = config.load(env={"ORCHESTRATE_HOME": str(tmp_path / "home")}, cwd=tmp_path)
    with Orchestrator(settings) as ft:
        local = ft.provider("local")
        run = submit(ft.store, local, spec, ft.data(spec), quote=quote, max_cost_usd=Decimal("0.01"))
        handle = ft.run(run.id)
        deadline = time.monotonic() + 240
        while not handle.refresh().status.terminal and time.monotonic() < deadline:
            time.sleep(0.3)
        ended = handle.record
        [event] = said(ft.store, run)
        [kept] = ft.store.history.reconciliations(run.id)
        job = local.get(ended.handle)
    assert ended.status is JobStatus.CANCELLED
    assert ended.error is not None and ended.error.code == "over_cap"
    assert "over its cap of $0.01" in event.message and "measured hours times the rate" in event.message
    assert ended.bill is not None and ended.bill.final and ended.bill.usd > Decimal("0.01")
    assert ended.bill == bill_run(ended, job, profile=profile("local"))
    [part] = kept.components
    assert (part.component, part.quoted_usd, part.billed_usd) == ("rental", hour.usd, ended.bill.usd)
    assert kept.total.within_band is False
