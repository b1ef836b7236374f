"""Many watchers on one store: one sweeps an account, one tells an end, and hints come only from the host."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests import loopback
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.submitting import submit
from tests.http_server import Handler, serving

from orchestrate.errors import HostUnavailable, MissingKey, RateLimited, UsageError
from orchestrate.profile import profile
from orchestrate.runs.watching.channels import CommandChannel, NotDelivered, Webhook, notify
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.runs.watching.webhooks import Sender, Untrusted, listening, take_hint
from orchestrate.settings.config import Secret
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, Uptime
from orchestrate.store.store import Store
from orchestrate.types import JobStatus, Run

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()
SECRET = Secret("whsec_YSBzZWNyZXQgb2YgdGhlIHRlc3Rz")  # of "a secret of the tests"
SENDER = Sender(profile("openai"), SECRET)


@pytest.fixture
def host(tmp_path: Path) -> PaperHost:
    return PaperHost(tmp_path / "host")


@dataclass
class Heard:
    """A channel that remembers, and fails as often as it is told to."""

    name: str = "heard"
    repeatable: bool = False
    fails: int = 0
    told: list[tuple[str, JobStatus]] = field(default_factory=list)

    def send(self, run: Run) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise NotDelivered("no")
        self.told.append((run.id, run.status))


def end(host: PaperHost, *runs: Run) -> None:
    for run in runs:
        host.set(str(run.job_id), state="done")


# -- watching ----------------------------------------------------------------------------------------------


def test_a_watch_until_idle_brings_every_run_to_its_end(store: Store, host: PaperHost) -> None:
    runs = [submit(store, host, SPEC, DATA) for _ in range(3)]
    heard = Heard()
    watcher = Watcher(store, lambda _: host, channels=[heard])
    watcher.turn()
    for run in runs:
        host.set(str(run.job_id), state="done", events=[{"id": "e", "message": "m"}])

    def soon(_reports: object) -> None:
        watcher.wake()

    watcher.run(threading.Event(), until_idle=True, on_turn=soon)
    assert {store.runs.get(run.id).status for run in runs} == {JobStatus.SUCCEEDED}
    assert sorted(heard.told) == sorted((run.id, JobStatus.SUCCEEDED) for run in runs)
    assert all(len(store.history.events(run.id)) == 1 for run in runs)


class Still(Clock):
    """Both clocks stand, however slow the machine is."""

    def __init__(self) -> None:
        self._now, self._uptime = super().now(), super().uptime()

    def now(self) -> datetime:
        return self._now

    def uptime(self) -> Uptime:
        return self._uptime


def test_an_account_is_not_asked_before_it_is_due(store_url: str, host: PaperHost) -> None:
    with Store.open(store_url, clock=Still()) as store:
        submit(store, host, SPEC, DATA)
        watcher = Watcher(store, lambda _: host)
        watcher.turn()
        host.requests.clear()
        watcher.turn()
        assert host.requests == []
        assert 5 < watcher.wait_s() < 13
        watcher.wake()
        watcher.turn()
        assert host.requests == ["list"], "details are due later than the list"


class Later(Clock):
    by = 0.0

    def uptime(self) -> Uptime:
        up = super().uptime()
        return Uptime(up.boot, up.seconds + self.by)


def test_a_watcher_with_nothing_to_ask_rests(store_url: str, host: PaperHost) -> None:
    clock = Later()
    with Store.open(store_url, clock=clock) as store:
        run = submit(store, host, SPEC, DATA)
        watcher = Watcher(store, lambda _: host)
        end(host, run)
        watcher.turn()
        store.runs.close(run.id)
        clock.by = 100_000.0  # the account was due long ago
        watcher.turn()
        assert watcher.wait_s() >= 1


class Busy(PaperHost):
    def list(self, *, since: Any = None) -> Any:
        self._log("list")
        raise RateLimited("paper", "slow down", status=429, retry_after_s=7200.0)


def test_a_wish_to_be_left_alone_holds_for_every_worker(store_url: str, tmp_path: Path) -> None:
    with Store.open(store_url) as store:
        host = Busy(tmp_path / "host")
        submit(store, host, SPEC, DATA)
        first = Watcher(store, lambda _: host)
        first.turn()
        assert 7000 < first.wait_s() <= 7200
        with Store.open(store_url) as again:
            second = Watcher(again, lambda _: host)
            second.turn()
            assert 7000 < second.wait_s() <= 7200
        assert host.requests.count("list") == 1


def test_a_pause_ends_when_the_wall_clock_was_set_back(store: Store, store_url: str) -> None:
    store.watching.pause("paper@here", 1000.0)
    store.watching.pause("paper@here", 10.0)
    assert 10 < store.watching.paused_s("paper@here") <= 1000

    class Back(Clock):
        def now(self) -> datetime:
            return super().now() - timedelta(days=1)

    with Store.open(store_url, clock=Back()) as later:
        assert later.watching.paused_s("paper@here") == 0


def test_one_worker_sweeps_an_account_at_a_time(store_url: str, host: PaperHost) -> None:
    with Store.open(store_url) as one, Store.open(store_url) as two:
        submit(one, host, SPEC, DATA)
        other = Watcher(two, lambda _: host)

        class Slow(PaperHost):
            def list(self, *, since: Any = None) -> Any:
                other.turn()  # while the first is in the middle of its sweep
                return super().list(since=since)

        slow = Slow(host.folder)
        Watcher(one, lambda _: slow).turn()
        assert (slow.requests.count("list"), host.requests.count("list")) == (1, 0)


def test_a_backend_without_its_key_stops_no_other(store: Store, host: PaperHost, tmp_path: Path) -> None:
    locked = PaperHost(tmp_path / "locked", name="locked")
    submit(store, locked, SPEC, DATA)
    run = submit(store, host, SPEC, DATA)
    end(host, run)

    def provider(name: str) -> PaperHost:
        if name == "locked":
            raise MissingKey(name, "LOCKED_API_KEY")
        return host

    watcher = Watcher(store, provider)
    watcher.turn()
    assert store.runs.get(run.id).status is JobStatus.SUCCEEDED
    assert "LOCKED_API_KEY" in watcher.problems[0]


def test_workers_that_claim_at_once_get_different_runs(store_url: str, host: PaperHost) -> None:
    with Store.open(store_url) as store:
        runs = {submit(store, host, SPEC, DATA).id for _ in range(12)}
    acquired: list[str] = []
    start = threading.Barrier(4)

    def claim() -> None:
        with Store.open(store_url) as own:
            start.wait()
            acquired.extend(run.id for run in own.watching.claim_due("paper", host.host, limit=4))

    threads = [threading.Thread(target=claim) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(acquired) == len(set(acquired))
    with Store.open(store_url) as store:
        rest = {run.id for run in store.watching.claim_due("paper", host.host, limit=100)}
        assert rest.isdisjoint(acquired)
        assert rest | set(acquired) == runs
        assert store.watching.claim_due("paper", host.host, limit=100) == []


@pytest.mark.slow
def test_a_worker_goes_on_after_its_postgres_was_restarted(postgres: Any, host: PaperHost) -> None:
    with Store.open(postgres.store()) as store:
        run = submit(store, host, SPEC, DATA)
        end(host, run)
        watcher = Watcher(store, lambda _: host)
        postgres.stop("immediate")
        stop = threading.Event()
        thread = threading.Thread(target=watcher.run, args=(stop,), kwargs={"until_idle": True})
        thread.start()
        deadline = time.monotonic() + 240
        while not watcher.problems:  # it has found it gone
            assert time.monotonic() < deadline
            time.sleep(0.01)
        postgres.start()
        thread.join(240)
        stop.set()
        assert not thread.is_alive()
        assert store.runs.get(run.id).status is JobStatus.SUCCEEDED


# -- notifications -----------------------------------------------------------------------------------------


def test_of_many_watchers_one_tells(store_url: str, host: PaperHost) -> None:
    heard = Heard()
    with Store.open(store_url) as store:
        notify(store, [heard])
        runs = [submit(store, host, SPEC, DATA) for _ in range(6)]
        end(host, *runs)
        Watcher(store, lambda _: host).turn()
    start = threading.Barrier(6)

    def watch() -> None:
        with Store.open(store_url) as own:
            start.wait()
            notify(own, [heard])

    threads = [threading.Thread(target=watch) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(run_id for run_id, _ in heard.told) == sorted(run.id for run in runs)


def test_what_was_not_delivered_is_told_again_and_old_ends_are_not(store: Store, host: PaperHost) -> None:
    old = submit(store, host, SPEC, DATA)
    end(host, old)
    Watcher(store, lambda _: host).turn()
    heard = Heard(fails=2)
    assert notify(store, [heard]) == []
    run = submit(store, host, SPEC, DATA)
    end(host, run)
    Watcher(store, lambda _: host).turn()
    assert [notify(store, [heard]) for _ in range(4)] == [[f"{run.id}: no"], [f"{run.id}: no"], [], []]
    assert heard.told == [(run.id, JobStatus.SUCCEEDED)]


@pytest.mark.parametrize("repeatable", [False, True])
def test_a_teller_that_died_is_repeated_only_where_repeats_are_dropped(
    store: Store, store_url: str, host: PaperHost, repeatable: bool
) -> None:
    heard = Heard(repeatable=repeatable)
    notify(store, [heard])
    run = submit(store, host, SPEC, DATA)
    end(host, run)
    Watcher(store, lambda _: host).turn()
    assert store.notifications.claim(run.id, heard.name)  # and here it dies
    notify(store, [heard])
    assert heard.told == [], "it may still be sending"

    class Later(Clock):
        def now(self) -> datetime:
            return super().now() + timedelta(seconds=301)

    with Store.open(store_url, clock=Later()) as later:
        notify(later, [heard])
        notify(later, [heard])
    assert len(heard.told) == int(repeatable)


def test_a_command_reads_the_message_from_its_stdin(store: Store, host: PaperHost, tmp_path: Path) -> None:
    told = tmp_path / "told"
    code = f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read() + chr(10))"
    command = CommandChannel([sys.executable, "-c", code])
    notify(store, [command])
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="broken")
    Watcher(store, lambda _: host, channels=[command]).turn()
    notify(store, [command])
    [line] = told.read_text().splitlines()
    assert (json.loads(line)["run"], json.loads(line)["type"]) == (run.id, "run.failed")
    with pytest.raises(NotDelivered):
        CommandChannel([sys.executable, "-c", "raise SystemExit(1)"]).send(run)
    with pytest.raises(NotDelivered):
        CommandChannel(["/no/such/program"]).send(run)
    with pytest.raises(UsageError):
        CommandChannel([])


@contextmanager
def receiver(status: list[int]) -> Iterator[tuple[str, list[tuple[dict[str, str], str]]]]:
    got: list[tuple[dict[str, str], str]] = []

    class Receiver(Handler):
        def do_POST(self) -> None:
            got.append(({k.lower(): v for k, v in self.headers.items()}, self.body().decode()))
            self.answer(status.pop(0))

    with serving(Receiver) as url:
        yield f"{url}/hook", got


def test_a_webhook_is_signed_and_repeated_under_the_same_id(store: Store, host: PaperHost) -> None:
    from openai import OpenAI

    run = submit(store, host, SPEC, DATA)
    with receiver([500, 204]) as (url, got):
        channel = Webhook(url, SECRET)
        with pytest.raises(NotDelivered):
            channel.send(run)
        channel.send(run)
    assert got[0][0]["webhook-id"] == got[1][0]["webhook-id"]
    assert {json.loads(body)["id"] for _, body in got} == {got[0][0]["webhook-id"]}
    # Another's implementation of the convention accepts it.
    for headers, body in got:
        OpenAI(api_key="key-of-the-tests").webhooks.verify_signature(body, headers, secret=SECRET.reveal())
    with pytest.raises(UsageError):
        Webhook("http://example.com/hook")


# -- hints -------------------------------------------------------------------------------------------------


def delivery(
    job_id: str, *, id: str = "evt_1", at: float | None = None, key: bytes = b"a secret of the tests"
) -> Any:
    body = json.dumps(
        {"id": id, "type": "fine_tuning.job.succeeded", "object": "event", "data": {"id": job_id}}
    )
    stamp = str(int(time.time() if at is None else at))
    signed = hmac.new(key, f"wh_1.{stamp}.{body}".encode(), hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(signed).decode()
    return body, {"webhook-id": "wh_1", "webhook-timestamp": stamp, "webhook-signature": signature}


@pytest.fixture
def tracked(store: Store, tmp_path: Path) -> Run:
    run = submit(store, PaperHost(tmp_path / "openai", name="openai"), SPEC, DATA)
    store.watching.claim_due("openai", run.host, limit=10)
    assert store.watching.claim_due("openai", run.host, limit=10) == []
    return run


def test_a_signed_delivery_makes_its_run_due_once_and_changes_nothing_else(
    store: Store, tracked: Run
) -> None:
    assert take_hint(store, *delivery(str(tracked.job_id)), SENDER) == tracked.id
    assert store.runs.get(tracked.id) == tracked, "a hint is not believed, only followed"
    assert [run.id for run in store.watching.claim_due("openai", tracked.host, limit=10)] == [tracked.id]
    assert take_hint(store, *delivery(str(tracked.job_id)), SENDER) is None, "a repeat"
    assert take_hint(store, *delivery("ftjob-of-another", id="evt_2"), SENDER) is None


@pytest.mark.parametrize(
    "change",
    [{"key": b"another secret"}, {"at": 1_000_000.0}],
    ids=["wrong signature", "old"],
)
def test_a_delivery_that_is_not_the_hosts_is_refused(
    store: Store, tracked: Run, change: dict[str, Any]
) -> None:
    with pytest.raises(Untrusted):
        take_hint(store, *delivery(str(tracked.job_id), **change), SENDER)
    body, headers = delivery(str(tracked.job_id))
    with pytest.raises(Untrusted):
        take_hint(store, body, {k: v for k, v in headers.items() if k != "webhook-signature"}, SENDER)
    with pytest.raises(Untrusted):
        take_hint(store, body.replace("succeeded", "failed"), headers, SENDER)
    assert store.watching.claim_due("openai", tracked.host, limit=10) == []


def test_the_listener_answers_each_caller_as_it_deserves(store: Store, tracked: Run) -> None:

    woken: list[str] = []
    with listening(store, [SENDER], 0, woken.append) as urls:
        assert [url.rpartition("/")[2] for url in urls] == ["openai"]
        url = urls[0].removesuffix("/openai")
        body, headers = delivery(str(tracked.job_id))
        assert loopback.post(f"{url}/openai", content=body, headers=headers).status_code == 204
        assert loopback.post(f"{url}/openai", content=body, headers=headers).status_code == 204
        assert loopback.post(f"{url}/openai", content=body).status_code == 401
        assert loopback.post(f"{url}/else", content=body, headers=headers).status_code == 404
        assert loopback.post(f"{url}/openai", content=b"x" * 1_000_001, headers=headers).status_code == 413
        for length in ("\u00b2", "9" * 5000, "-1", "1e3", ""):
            with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0)) as line:
                line.sendall(f"POST /openai HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode("latin-1"))
                assert b" 413 " in line.recv(100), length
    assert woken == [tracked.id]


def test_a_host_that_is_down_is_asked_again(store: Store, host: PaperHost) -> None:
    run = submit(store, host, SPEC, DATA)
    end(host, run)
    host.faults["down"] = True
    watcher = Watcher(store, lambda _: host)
    watcher.turn()
    assert watcher.problems
    assert HostUnavailable.__name__ not in watcher.problems[0]
    host.faults["down"] = False
    watcher.wake()
    watcher.turn()
    assert store.runs.get(run.id).status is JobStatus.SUCCEEDED
