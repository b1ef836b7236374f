"""Runs under way of which nothing new comes: found in time, told once, ended when asked and seen twice."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.shop import Shop
from tests.faults.submitting import submit

from orchestrate.runs.syncing.stalls import FACTOR, LEAST_S, UNKNOWN_S, Stalls
from orchestrate.runs.syncing.sweep import SyncReport, sync
from orchestrate.runs.watching.channels import NotDelivered
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, Uptime
from orchestrate.store.store import Store
from orchestrate.types import JobHandle, JobStatus, MetricPoint, Run

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()
BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


class Hands(Clock):
    """Both clocks stand until they are moved."""

    def __init__(self) -> None:
        self.wall, self.up, self.boot = super().now(), 1000.0, "boot-1"

    def now(self) -> datetime:
        return self.wall

    def uptime(self) -> Uptime:
        return Uptime(self.boot, self.up)

    def sleep(self, seconds: float) -> None:
        self.pass_(seconds)

    def pass_(self, seconds: float) -> None:
        self.up += seconds
        self.wall += timedelta(seconds=seconds)


class TimedHost(PaperHost):
    """Tells when its steps were: `ticks`, seconds after the begin."""

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        ticks = self._read(job).get("ticks", [])
        times = [BEGIN + timedelta(seconds=tick) for tick in ticks]
        return [MetricPoint(step=n + 1, values={"train_loss": 1.0}, at=at) for n, at in enumerate(times)]

    def _job(self, body: dict[str, Any]) -> Any:
        import msgspec

        ends = {"finished_at": BEGIN + timedelta(seconds=body["took"])} if "took" in body else {}
        return msgspec.structs.replace(super()._job(body), started_at=BEGIN, **ends)


@pytest.fixture
def clock() -> Hands:
    return Hands()


@pytest.fixture
def store(store_url: str, clock: Hands) -> Iterator[Store]:
    with Store.open(store_url, clock=clock) as opened:
        yield opened


@pytest.fixture
def host(tmp_path: Path) -> TimedHost:
    return TimedHost(tmp_path / "host")


def look(store: Store, host: PaperHost, **more: Any) -> SyncReport:
    return sync(store, lambda _: host, **more)


def running(store: Store, host: PaperHost) -> Run:
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="running")
    look(store, host)
    return run


def told(store: Store, run: Run) -> list[str]:
    return [event.message for event in store.history.events(run.id) if event.type == "stalled"]


def test_a_stall_is_told_once_at_its_time_and_not_before(store: Store, host: TimedHost, clock: Hands) -> None:
    run = running(store, host)
    clock.pass_(UNKNOWN_S - 1)
    assert look(store, host).stalled == [] and store.watching.stalled() == set()
    clock.pass_(1)
    [first] = look(store, host).stalled
    [second] = look(store, host).stalled
    assert (first.run, first.new, second.new) == (run.id, True, False)
    assert len(told(store, run)) == 1 and store.watching.stalled() == {run.id}
    assert store.runs.get(run.id).status is JobStatus.RUNNING


def test_waiting_in_the_queue_is_no_stall(store: Store, host: TimedHost, clock: Hands) -> None:
    submit(store, host, SPEC, DATA)
    look(store, host)
    clock.pass_(100 * UNKNOWN_S)
    assert look(store, host, cancel_stalled=True).stalled == []


@pytest.mark.parametrize("sign", ["step", "event", "metric"])
def test_any_sign_begins_the_silence_again(store: Store, host: TimedHost, clock: Hands, sign: str) -> None:
    run = running(store, host)
    clock.pass_(UNKNOWN_S)
    assert [stall.run for stall in look(store, host).stalled] == [run.id]
    new = {
        "step": {"tokens": 5},
        "event": {"events": [{"id": "e1", "message": "on"}]},
        "metric": {"ticks": [9]},
    }
    host.set(str(run.job_id), **new[sign])
    assert look(store, host, cancel_stalled=True).stalled == []
    assert store.watching.stalled() == set() and "cancel" not in host.requests
    clock.pass_(UNKNOWN_S)
    [again] = look(store, host).stalled
    assert again.new and len(told(store, run)) == 2


def test_it_is_cancelled_only_when_asked_and_at_a_later_look(
    store: Store, host: TimedHost, clock: Hands
) -> None:
    run = running(store, host)
    clock.pass_(50 * UNKNOWN_S)
    look(store, host)
    assert not look(store, host, cancel_stalled=True).stalled[0].cancelled, "seen twice at one moment"
    clock.pass_(601)
    assert not look(store, host).stalled[0].cancelled
    [ended] = look(store, host, cancel_stalled=True).stalled
    assert ended.cancelled and host.requests.count("cancel") == 1
    assert look(store, host, cancel_stalled=True).stalled == [] and host.requests.count("cancel") == 1
    assert store.runs.get(run.id).status is JobStatus.CANCELLED


def test_no_clock_ends_a_run(store: Store, host: TimedHost, clock: Hands) -> None:
    """The wall clock jumps, the machine restarts: neither is a silence."""
    running(store, host)
    for jump in (timedelta(days=400), timedelta(days=-800)):
        clock.wall += jump
        assert look(store, host, cancel_stalled=True).stalled == []
    clock.boot, clock.up = "boot-2", 10.0
    assert look(store, host, cancel_stalled=True).stalled == []
    clock.up = 1e6
    clock.boot = "boot-1"  # a restored copy of this machine
    look(store, host, cancel_stalled=True)
    assert "cancel" not in host.requests


def test_a_run_that_moves_at_the_last_moment_is_not_cancelled(
    store: Store, tmp_path: Path, clock: Hands
) -> None:
    class Lagging(TimedHost):
        """Its list shows jobs as they were."""

        def get(self, job: JobHandle) -> Any:
            self.set(job.job_id, tokens=7)
            return super().get(job)

    host = Lagging(tmp_path / "host")
    run = running(store, host)
    for _ in range(2):
        clock.pass_(UNKNOWN_S)
        look(store, host, cancel_stalled=True)
    assert len(told(store, run)) == 1 and "cancel" not in host.requests


def test_what_is_usual_is_the_median_of_earlier_runs(store: Store, host: TimedHost, clock: Hands) -> None:
    """By hand: the longest silences are 400, 900 and 500 s, their median 500 s, five times that 2,500 s."""
    for ticks, took in (([300, 700], 800), ([900], 1000), ([100, 600], 1100)):
        run = running(store, host)
        host.set(str(run.job_id), ticks=ticks)
        look(store, host)
        host.set(str(run.job_id), state="done", took=took)
        look(store, host)
    run = running(store, host)
    usual = Stalls(store, host, lambda _: None).usual(store.runs.get(run.id))
    assert (usual.runs, usual.silent_s, usual.phase_s) == (3, 500.0, 1000.0)
    clock.pass_(FACTOR * 500.0 - 1)
    assert look(store, host).stalled == [] and FACTOR * 500 > LEAST_S
    clock.pass_(1)
    [stall] = look(store, host).stalled
    assert stall.limit_s == FACTOR * 500.0 and "500" not in stall.message and "8m 20s" in stall.message
    # A run that was as silent before, and went on, is given as many times its own silence.
    host.set(str(run.job_id), ticks=[10, 2010])
    look(store, host)
    clock.pass_(FACTOR * 2000.0 - 1)
    assert look(store, host).stalled == []
    clock.pass_(1)
    assert [one.limit_s for one in look(store, host).stalled] == [FACTOR * 2000.0]


class Heard:
    name, repeatable = "heard", True

    def __init__(self, fails: int) -> None:
        self.fails, self.told = fails, list[Any]()

    def send(self, run: Run) -> None:
        self.send_message({"run": run.id})

    def send_message(self, told: Any) -> None:
        if self.fails:
            self.fails -= 1
            raise NotDelivered("no")
        self.told.append(told)


def test_a_watcher_tells_the_channels_until_one_takes_it(store: Store, host: TimedHost, clock: Hands) -> None:
    heard, run = Heard(fails=1), running(store, host)
    watcher = Watcher(store, lambda _: host, channels=[heard], stalled_after_s=1200)
    watcher.turn()
    for _ in range(3):
        clock.pass_(1200)
        watcher.turn()
    assert [(one["type"], one["run"]) for one in heard.told] == [("run.stalled", run.id)]


@pytest.mark.slow
def test_a_stall_in_the_sandbox_is_told_shown_and_ended_by_the_commands(shop: Shop, tmp_path: Path) -> None:
    shop.hosts.fault("openai", "stall", method="POST", path="/fine_tuning/jobs$")
    run = shop.ft.submit(shop.spec, "openai")
    shop.hosts.skip(250)
    run.refresh()
    shop.hosts.skip(1_000_000)  # any other job would have ended
    soon, heard = ("--stalled-minutes", "0.001"), tmp_path / "heard"
    shop.env["ORCHESTRATE_NOTIFY_COMMAND"] = f"cp /dev/stdin {heard}"

    def until(done: Any, *words: str) -> Any:
        deadline = time.monotonic() + 240
        while not done(found := json.loads(shop.type("sync", *soon, *words, "--json").stdout)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        return found

    until(lambda report: report["stalled"])
    assert json.loads(heard.read_text())["type"] == "run.stalled"
    spent = json.loads(shop.type("spending", "--sandbox", "--offline", "--json").stdout)
    assert spent["stalled"] == [run.id]
    assert run.refresh().status is JobStatus.RUNNING
    until(lambda report: any(one["cancelled"] for one in report["stalled"]), "--cancel-stalled")
    shop.hosts.skip(250)
    assert run.refresh().status is JobStatus.CANCELLED
    assert "stalled" not in shop.type("spending", "--sandbox", "--offline").output
