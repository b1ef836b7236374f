"""What is told, to whom, how often, and that no token is told with it; what an account may be asked."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.cells import diagonal
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.submitting import submit
from tests.http_server import Handler, serving

from orchestrate.errors import ConfigError, RateLimited, UsageError
from orchestrate.local.run import started
from orchestrate.providers.calls.hosted import retry_after
from orchestrate.runs.syncing.recovery import recover
from orchestrate.runs.watching.channels import (
    CommandChannel,
    Desktop,
    NotDelivered,
    PerhapsDelivered,
    Webhook,
    channels,
    notify,
)
from orchestrate.runs.watching.watcher import Watcher
from orchestrate.settings.config import Notify, Secret
from orchestrate.spec import JobSpec
from orchestrate.store import Clock, Uptime
from orchestrate.store.store import Store, Timing, settle_left_s
from orchestrate.types import JobStatus, Run

SPEC = JobSpec(model="m", train="rows.jsonl")
DATA: Any = Paper()
TOKEN = "T0123456789/B0123456789/abcdefghijkl"


class Moved(Clock):
    """Both clocks, moved by hand."""

    def __init__(self) -> None:
        self.wall_s = self.up_s = 0.0

    def now(self) -> datetime:
        return super().now() + timedelta(seconds=self.wall_s)

    def uptime(self) -> Uptime:
        return Uptime("start", self.up_s)


class Still(Moved):
    """The wall clock too, however slow the machine is."""

    def __init__(self) -> None:
        super().__init__()
        self._start = super().now()

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self.wall_s)


@pytest.fixture
def clock() -> Moved:
    return Moved()


@pytest.fixture
def store(store_url: str, clock: Moved) -> Iterator[Store]:
    with Store.open(store_url, clock=clock) as opened:
        yield opened


@pytest.fixture
def host(tmp_path: Path) -> PaperHost:
    return PaperHost(tmp_path / "host")


@dataclass
class Broken:
    """Fails in a way that nobody foresaw, with words that hold a token."""

    name: str
    repeatable: bool

    def send(self, run: Run) -> None:
        raise ZeroDivisionError(TOKEN)


@dataclass
class Deaf:
    name: str = "deaf"
    repeatable: bool = False
    tried: int = 0
    told: list[str] = field(default_factory=list)
    hears: bool = False

    def send(self, run: Run) -> None:
        self.tried += 1
        if not self.hears:
            raise NotDelivered("no")
        self.told.append(run.id)


# -- what is told ------------------------------------------------------------------------------------------


def ended(store: Store, host: PaperHost) -> Run:
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="done")
    Watcher(store, lambda _: host).turn()
    return store.runs.get(run.id)


def tagged(store: Store, run: Run) -> None:
    now = store.clock.now()
    store.runs.apply(run.id, lambda run: replace(run, tags={"kept": "yes"}, updated_at=now))


def test_what_is_changed_about_an_old_end_is_no_end(store: Store, host: PaperHost) -> None:
    old, heard = ended(store, host), Deaf(hears=True)
    notify(store, [heard])
    tagged(store, old)
    notify(store, [heard])
    assert heard.told == []
    new = ended(store, host)
    notify(store, [heard])
    tagged(store, new)
    notify(store, [heard])
    assert heard.told == [new.id]


def test_runs_that_come_in_ended_are_not_told(tmp_path: Path, host: PaperHost) -> None:
    with Store.open(f"sqlite:///{tmp_path}/first.sqlite3") as first:
        done, going = (submit(first, host, SPEC, DATA) for _ in range(2))
    host.set(str(done.job_id), state="done")
    heard = Deaf(hears=True)
    with Store.open(f"sqlite:///{tmp_path}/second.sqlite3") as second:
        notify(second, [heard])
        assert len(recover(second, [host]).recovered) == 2
        notify(second, [heard])
        assert heard.told == []
        host.set(str(going.job_id), state="done")
        Watcher(second, lambda _: host, channels=[heard]).turn()
        assert heard.told == [going.id]


@pytest.mark.slow
def test_what_cannot_be_delivered_is_tried_less_and_less_often(
    store: Store, host: PaperHost, clock: Moved
) -> None:
    deaf = Deaf()
    watcher = Watcher(store, lambda _: host, channels=[deaf])
    watcher.turn()
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="done")
    watcher.turn()
    for _ in range(600):
        clock.up_s += 1.0
        watcher.turn()
        assert f"{run.id}: no" in watcher.problems
    assert 10 < deaf.tried < 30, "not each of the 600 turns"
    assert not watcher.idle(), "somebody still has to be told"
    deaf.hears = True
    for _ in range(90):
        clock.up_s += 1.0
        watcher.turn()
    assert deaf.told == [run.id]
    assert watcher.idle() and watcher.problems == []


def test_a_watcher_gives_up_on_a_deaf_channel_after_an_hour(
    store: Store, host: PaperHost, clock: Moved
) -> None:
    watcher = Watcher(store, lambda _: host, channels=[Deaf()])
    watcher.turn()
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="done")
    watcher.turn()
    clock.up_s += 3599
    watcher.turn()
    assert not watcher.idle()
    clock.up_s += 2
    assert watcher.idle()


# -- to whom -----------------------------------------------------------------------------------------------


def test_channels_are_what_is_configured() -> None:
    found = channels(Notify(command="tell 'a b' c", url=Secret("https://hooks.example/told"), desktop=True))
    assert [type(c) for c in found] == [CommandChannel, Webhook, Desktop]
    assert isinstance(found[0], CommandChannel) and found[0].argv == ["tell", "a b", "c"], "no shell reads it"
    assert channels(Notify()) == []


@pytest.mark.parametrize(
    "notify",
    [
        Notify(command="'"),
        Notify(command=" "),
        Notify(url=Secret("http://hooks.example/told")),
        Notify(url=Secret("not-an-address")),
        Notify(url=Secret("http://[telling")),
        Notify(url=Secret("https://?")),
        Notify(url=Secret("ftp://127.0.0.1/")),
    ],
)
def test_what_cannot_be_told_to_is_refused_at_once(notify: Notify) -> None:
    with pytest.raises(UsageError):
        channels(notify)


@pytest.mark.parametrize("text", ["whsec_abc", "whsec_", "whsec_xy zw", "whsec_äöü!"])
def test_a_secret_that_cannot_sign_is_refused_at_once(text: str) -> None:
    with pytest.raises(ConfigError, match="base64") as caught:
        channels(Notify(url=Secret("https://example.org/x")), Secret(text))
    assert not text[6:] or text[6:] not in caught.value.message


@pytest.mark.parametrize("repeatable", [True, False])
def test_a_watcher_does_not_die_of_a_channel(store: Store, host: PaperHost, repeatable: bool) -> None:
    watcher = Watcher(store, lambda _: host, channels=[Broken("odd:1", repeatable)])
    watcher.turn()
    run = submit(store, host, SPEC, DATA)
    host.set(str(run.job_id), state="done")
    watcher.wake()
    watcher.turn()
    [problem] = watcher.problems
    assert run.id in problem and "ZeroDivisionError" in problem and TOKEN not in problem
    assert store.runs.get(run.id).status is JobStatus.SUCCEEDED
    assert bool(store.notifications.due("odd:1", store.notifications.since("odd:1"))) is repeatable


def test_the_desktop_is_told_in_words(
    store: Store, host: PaperHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ("osascript" if sys.platform == "darwin" else "notify-send")
    program.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/shown\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    run = ended(store, host)
    Desktop().send(run)
    shown = (tmp_path / "shown").read_text()
    assert "orchestrate: succeeded" in shown and run.id in shown


@contextmanager
def answering(status: int, location: str = "") -> Iterator[tuple[str, list[str]]]:
    got: list[str] = []

    class Receiver(Handler):
        def do_POST(self) -> None:
            got.append(self.body().decode())
            self.answer(status, headers={"location": location} if location else {})

    with serving(Receiver) as url:
        yield url, got


@pytest.mark.slow
@pytest.mark.parametrize("status", [302, 404, 500])
def test_the_token_in_a_webhooks_address_is_never_told(store: Store, host: PaperHost, status: int) -> None:
    run = ended(store, host)
    with answering(200) as (elsewhere, strayed), answering(status, elsewhere) as (url, got):
        with pytest.raises(NotDelivered) as caught:
            Webhook(f"{url}/services/{TOKEN}").send(run)
        assert TOKEN not in str(caught.value) and str(status) in str(caught.value)
        assert caught.value.__cause__ is None, "a trace would hold the address"
    assert len(got) == 1 and strayed == [], "a redirect is not followed"
    with pytest.raises(NotDelivered) as caught:
        Webhook(f"{url}/services/{TOKEN}").send(run)
    assert TOKEN not in str(caught.value)


HANGS = "exec sleep 600"
TOO_LONG_S = 5.0
"""For a shell, which is up in a moment also on a busy machine."""


def _keeping(tmp_path: Path, then: str) -> list[str]:
    """A shell that appends what it was told to `acted`, then does something else."""
    return ["sh", "-c", f"cat >> '{tmp_path}/acted'; echo >> '{tmp_path}/acted'; {then}"]


def acted(tmp_path: Path) -> list[str]:
    """The ids that it was given."""
    return [json.loads(line)["id"] for line in (tmp_path / "acted").read_text().splitlines()]


ENDS = {"hangs": HANGS, "dies": "kill -9 $$"}


@pytest.mark.slow
@pytest.mark.parametrize(("store_url", "end"), diagonal(["sqlite", "postgres"], ENDS), indirect=["store_url"])
def test_a_command_that_may_have_told_is_not_repeated(
    store: Store, host: PaperHost, tmp_path: Path, end: str
) -> None:
    command = CommandChannel(_keeping(tmp_path, ENDS[end]), timeout_s=TOO_LONG_S)
    notify(store, [command])
    first, second = ended(store, host), ended(store, host)
    problems = notify(store, [command]) + notify(store, [command])
    assert [p.partition(":")[0] for p in problems] == [first.id, second.id]
    assert all("will not be sent again" in p for p in problems)
    assert notify(store, [command]) == []
    assert acted(tmp_path) == [f"{run.id}-succeeded" for run in (first, second)]
    for run in (first, second):
        [event] = [e for e in store.history.events(run.id) if e.type == "notification"]
        assert event.level == "warning" and "may not have arrived" in event.message
    assert store.history.alarms(first.id) == []


def test_a_command_that_says_that_it_failed_is_repeated_under_the_same_id(
    store: Store, host: PaperHost, tmp_path: Path
) -> None:
    command = CommandChannel(_keeping(tmp_path, f"test -e '{tmp_path}/up'"))
    notify(store, [command])
    run = ended(store, host)
    assert "exit code 1" in notify(store, [command])[0]
    (tmp_path / "up").touch()
    assert notify(store, [command]) == [] and notify(store, [command]) == []
    assert acted(tmp_path) == [f"{run.id}-succeeded"] * 2
    assert [e for e in store.history.events(run.id) if e.type == "notification"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "store_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.slow)], indirect=True
)
def test_what_a_hanging_command_started_ends_with_it_and_what_a_done_one_started_goes_on(
    store: Store, host: PaperHost, tmp_path: Path
) -> None:
    run = ended(store, host)
    start = f"sleep 600 & echo $! > '{tmp_path}/child'; "
    with pytest.raises(PerhapsDelivered):
        CommandChannel(_keeping(tmp_path, start + HANGS), timeout_s=TOO_LONG_S).send(run)
    child = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 240
    while started(child) is not None:
        assert time.monotonic() < deadline, "its child lives on"
        time.sleep(0.05)
    CommandChannel(_keeping(tmp_path, start)).send(run)  # it holds the pipes of a command that has ended
    child = int((tmp_path / "child").read_text())
    assert started(child) is not None
    os.kill(child, 9)


def test_a_failing_command_is_told_without_its_arguments(store: Store, host: PaperHost) -> None:
    run = ended(store, host)
    code = f"import sys; sys.stderr.write('no route\\n'); sys.exit(len({TOKEN!r}) and 7)"
    with pytest.raises(NotDelivered) as caught:
        CommandChannel([sys.executable, "-c", code]).send(run)
    assert "exit code 7: no route" in caught.value.message and TOKEN not in caught.value.message


# -- what an account may be asked --------------------------------------------------------------------------


def test_all_processes_take_from_one_bucket(store_url: str) -> None:
    clock = Still()
    with Store.open(store_url, clock=clock) as one, Store.open(store_url, clock=clock) as two:

        def take(store: Store, count: int, *, credit: bool = False) -> float:
            return store.watching.take_tokens("a", count, per_minute=60, burst=10, credit=credit)

        assert [take(one, 6), take(two, 4)] == [0.0, 0.0]
        assert 0.5 < take(two, 1) <= 1.0
        assert take(one, 5, credit=True) == 0.0, "what was asked already is paid later"
        clock.wall_s += 3.0
        assert 2.5 < take(two, 1) <= 3.0
        clock.wall_s += 3.1
        assert take(one, 1) == 0.0
        clock.wall_s += 86_400
        assert take(one, 10) == 0.0 and take(two, 1) > 0, "a day of rest earns one burst"


def test_a_clock_that_was_set_back_stops_nobody(store: Store, clock: Moved) -> None:
    def take() -> float:
        return store.watching.take_tokens("a", 1, per_minute=60, burst=1)

    assert take() == 0.0 and take() > 0
    clock.wall_s -= 86_400
    assert 0 < take() <= 1.0
    clock.wall_s += 1.1
    assert take() == 0.0


class Busy(PaperHost):
    requested_delay_s: float | None = None

    def list(self, *, since: Any = None) -> Any:
        self._log("list")
        raise RateLimited("paper", "slow down", status=429, retry_after_s=self.requested_delay_s)


@pytest.mark.parametrize("header", ["86400", "99999999999999999999", "1e308"])
def test_a_host_may_ask_for_a_day_at_most(store: Store, tmp_path: Path, clock: Moved, header: str) -> None:
    host = Busy(tmp_path / "host")
    host.requested_delay_s = retry_after({"retry-after": header})
    submit(store, host, SPEC, DATA)
    watcher = Watcher(store, lambda _: host)
    watcher.turn()
    clock.up_s, clock.wall_s = 86_000.0, 86_000.0
    watcher.turn()
    assert host.requests.count("list") == 1
    clock.up_s, clock.wall_s = 86_401.0, 86_401.0
    watcher.turn()
    assert host.requests.count("list") == 2, "else no limit of a deployment would be kept for years"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("120", 120.0), ("-5", 0.0), ("1e9", 86_400.0), ("nan", None), ("inf", None), ("soon", None), ("", None),
     ("Fri, 31 Dec 2399 23:59:59 GMT", 86_400.0), ("Fri, 31 Dec 1999 23:59:59 GMT", 0.0),
     ("Fri, 31 Dec 99999 23:59:59 GMT", None)],
)  # fmt: skip
def test_a_wish_is_read_as_seconds_or_not_at_all(header: str, seconds: float | None) -> None:
    assert retry_after({"retry-after": header}) == seconds


def test_a_lost_answer_tells_how_long_settling_takes(store: Store, tmp_path: Path, clock: Moved) -> None:
    host = PaperHost(tmp_path / "host", late_s=1e6)
    with pytest.raises(Exception, match="was lost"):
        submit(store, host, SPEC, DATA)
    [run] = store.runs.matching()
    timing = Timing()
    whole = timing.settle_s(host)
    assert settle_left_s(store, host, run) == pytest.approx(whole)
    clock.up_s += whole - 10
    assert settle_left_s(store, host, run) == pytest.approx(10)
    clock.up_s += 60
    assert settle_left_s(store, host, run) == 0.0
    Watcher(store, lambda _: host).turn()
    assert settle_left_s(store, host, store.runs.get(run.id)) is None
    assert json.loads(store.runs.get(run.id).to_json())["phase"] == "uploaded"


def test_somebody_who_looks_makes_the_watcher_look_sooner(
    store: Store, host: PaperHost, clock: Moved
) -> None:
    submit(store, host, SPEC, DATA)
    watcher = Watcher(store, lambda _: host)
    watcher.turn()
    key = f"paper@{host.host}"
    clock.up_s += 1.0
    watcher.turn()
    assert host.requests.count("list") == 1
    lease = store.watching.watch(key, None)
    assert lease is not None
    assert store.watching.watch(key, None) is None, "one of many viewers says it for all"
    assert store.watching.watch(key, lease) == lease
    watcher.turn()
    assert host.requests.count("list") == 2 and watcher.wait_s() < 3
    assert JobStatus.SUCCEEDED not in {run.status for run in store.runs.matching()}
