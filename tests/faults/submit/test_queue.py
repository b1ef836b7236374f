"""Runs that wait: each is submitted once, when there is room, and never other than it was agreed to."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import command, leases
from tests.faults.shop import Shop
from tests.faults.submit.test_lost_keys import backed_up
from tests.faults.submitting import MODELS, write_rows
from tests.faults.world import CREATE, HOSTED, SETTLED

from orchestrate import Orchestrator
from orchestrate.costing import RateBook
from orchestrate.errors import ConfigError, StoreError, UsageError
from orchestrate.runs import queue as queueing
from orchestrate.runs import watch as watching
from orchestrate.runs.queue import QueueServer
from orchestrate.runs.syncing.sweep import sync
from orchestrate.settings import config
from orchestrate.store.store import Store, settle_left_s
from orchestrate.types import JobError, JobStatus, QueueEntry, QueueState, Run, SubmitPhase
from orchestrate.workspace import with_rates


def add(shop: Shop, provider: str = "openai", *, epochs: int = 1, **how: Any) -> QueueEntry:
    spec = shop.spec.model_copy(update={"epochs": epochs})
    return queueing.add(shop.ft, shop.ft.prepare(spec, provider), provider, **how)


def state(shop: Shop, entry: QueueEntry) -> QueueEntry:
    return shop.ft.store.queue.get(entry.id)


def ended(shop: Shop, run_id: str | None, status: JobStatus = JobStatus.SUCCEEDED) -> Run:
    """As the store has it once its host has said so."""
    assert run_id is not None
    return shop.ft.store.runs.apply(run_id, lambda run: msgspec.structs.replace(run, status=status))


def test_an_entry_is_submitted_at_the_price_that_it_was_queued_with(shop: Shop) -> None:
    """Your own price also counts in the process that submits the entry, which has no such flag."""
    flag = f"openai:sft@{MODELS['openai']}=90"
    priced = with_rates(shop.ft, [flag])
    prepared = priced.prepare(shop.spec, "openai")
    entry = queueing.add(priced, prepared, "openai", rates=[flag])
    [moved] = QueueServer(shop.ft).turn()
    run = shop.ft.run(moved.entry.run_id or "").record
    assert run.quote is not None and run.quote.high_usd == entry.agreed_usd
    assert {line.own for line in run.quote.lines} == {f"--rate {flag}"}


def test_one_goes_at_a_time_and_the_next_when_it_has_ended(shop: Shop) -> None:
    first, second = add(shop), add(shop, epochs=2)
    server = QueueServer(shop.ft)
    assert [moved.entry.id for moved in server.turn()] == [first.id]
    assert server.turn() == []
    run = state(shop, first).run_id
    assert (state(shop, second).state, shop.sent()) == (QueueState.WAITING, 1)
    ended(shop, run)
    assert [moved.entry.id for moved in server.turn()] == [second.id]
    assert (server.waiting(), shop.sent()) == ([], 2)
    found = shop.count("openai")
    assert (found["lost"], found["doubled"]) == (0, 0)


def test_as_many_go_as_the_settings_give_room_for(shop: Shop) -> None:
    shop.ft.settings = msgspec.structs.replace(shop.ft.settings, queue={"openai": 2})
    for epochs in (1, 2, 3):
        add(shop, epochs=epochs)
    assert len(QueueServer(shop.ft).turn()) == 2


def test_a_run_made_by_hand_takes_room_too(shop: Shop) -> None:
    shop.ft.submit(shop.spec, "openai")
    add(shop, epochs=2)
    assert QueueServer(shop.ft).turn() == []


def test_what_comes_after_another_goes_when_that_has_succeeded(shop: Shop) -> None:
    shop.ft.settings = msgspec.structs.replace(shop.ft.settings, queue={"openai": 5})
    first = add(shop)
    then = add(shop, epochs=2, after=[first.id])
    server = QueueServer(shop.ft)
    assert [moved.entry.id for moved in server.turn()] == [first.id]
    ended(shop, state(shop, first).run_id)
    assert [moved.entry.id for moved in server.turn()] == [then.id]


def test_what_comes_after_a_failure_is_held_and_says_why(shop: Shop) -> None:
    shop.ft.settings = msgspec.structs.replace(shop.ft.settings, queue={"openai": 5})
    first = add(shop)
    then = add(shop, epochs=2, after=[first.id])
    server = QueueServer(shop.ft)
    server.turn()
    run = ended(shop, state(shop, first).run_id, JobStatus.FAILED)
    server.turn()
    held = state(shop, then)
    assert held.state is QueueState.HELD
    assert f"{run.id}, which must run first, ended with status failed" in (held.note or "")
    with pytest.raises(UsageError, match="would never start"):
        add(shop, epochs=3, after=[run.id])
    assert shop.sent() == 1


def test_a_run_that_nothing_starts_again_takes_no_room_and_is_not_waited_for(shop: Shop) -> None:
    first = add(shop)
    then, other = add(shop, epochs=2, after=[first.id]), add(shop, epochs=3)
    server = QueueServer(shop.ft)
    server.turn()
    error = JobError(code="limit", message="the worker stopped itself: 2h at $5")
    run_id = str(state(shop, first).run_id)
    shop.ft.store.runs.apply(
        run_id,
        lambda run: msgspec.structs.replace(run, status=JobStatus.PAUSED, raw_status="paused", error=error),
    )
    server.turn()
    assert [state(shop, one).state for one in (then, other)] == [QueueState.HELD, QueueState.SUBMITTED]
    assert "which must run first, is paused: the worker stopped itself" in (state(shop, then).note or "")


def test_a_paused_run_takes_no_room_and_one_that_is_gone_on_with_says_that_it_goes_over(shop: Shop) -> None:
    """One whose worker died is started again by itself: it keeps its place."""
    first, second, third = add(shop), add(shop, epochs=2), add(shop, epochs=3)
    server = QueueServer(shop.ft)
    server.turn()

    def stands(status: JobStatus, raw: str) -> Run:
        run_id = str(state(shop, first).run_id)
        return shop.ft.store.runs.apply(
            run_id, lambda run: msgspec.structs.replace(run, status=status, raw_status=raw)
        )

    stands(JobStatus.PAUSED, "interrupted")
    assert server.turn() == []
    stands(JobStatus.PAUSED, "paused")
    assert [moved.entry.id for moved in server.turn()] == [second.id] and server.turn() == []
    told = queueing.crowded(shop.ft, stands(JobStatus.RUNNING, "running"))
    assert told is not None and "2 runs are open on openai now, but its queue allows only 1." in told
    assert server.turn() == [] and state(shop, third).state is QueueState.WAITING
    assert queueing.crowded(shop.ft, stands(JobStatus.PAUSED, "paused")) is None


def test_what_comes_after_one_that_is_held_is_waited_for_by_nobody(shop: Shop) -> None:
    """`queue run --until-empty` would never end."""
    first = add(shop)
    then = add(shop, epochs=2, after=[first.id])
    last = add(shop, epochs=3, after=[then.id], first=True)
    server = QueueServer(shop.ft)
    assert {entry.id for entry in server.waiting()} == {first.id, then.id, last.id}
    queueing.hold(shop.ft, first.id)
    assert server.waiting() == []
    queueing.release(shop.ft, first.id)
    assert len(server.waiting()) == 3


def test_other_data_than_was_agreed_to_is_held_and_goes_again_when_it_is_back(shop: Shop) -> None:
    entry, rows = add(shop), shop.rows.read_bytes()
    shop.rows.write_bytes(rows + rows)
    server = QueueServer(shop.ft)
    server.turn()
    assert (state(shop, entry).state, shop.sent()) == (QueueState.HELD, 0)
    assert "data changed after" in (state(shop, entry).note or "")
    shop.rows.write_bytes(rows)
    queueing.release(shop.ft, entry.id)
    server.turn()
    assert (state(shop, entry).state, shop.sent()) == (QueueState.SUBMITTED, 1)


def test_a_dearer_quote_than_was_agreed_to_is_held(shop: Shop) -> None:
    entry = add(shop)
    lower = msgspec.structs.replace(entry, agreed_usd=Decimal("0.000001"))
    shop.ft.store.queue.change(entry.id, lambda _: lower)
    QueueServer(shop.ft).turn()
    held = state(shop, entry)
    assert held.state is QueueState.HELD
    assert "the confirmed price" in (held.note or "")


def test_up_to_the_limit_and_on_this_machine_a_dearer_quote_is_what_was_agreed_to(shop: Shop) -> None:
    assert add(shop, max_cost_usd=Decimal(50)).agreed_usd == 50
    here = add(shop, "local")
    lower = msgspec.structs.replace(here, agreed_usd=Decimal("0.000000001"))
    shop.ft.store.queue.change(here.id, lambda _: lower)
    QueueServer(shop.ft).turn()
    begun = state(shop, here)
    assert begun.state is QueueState.SUBMITTED and begun.run_id
    shop.ft.run(begun.run_id).cancel()


def test_what_a_host_refuses_is_its_run_and_says_so(shop: Shop, hosts: Any) -> None:
    hosts.fault("openai", "error", method="POST", path=CREATE["openai"], status=400)
    entry = add(shop)
    QueueServer(shop.ft).turn()
    gone = state(shop, entry)
    assert gone.state is QueueState.SUBMITTED
    assert shop.ft.run(gone.run_id or "").record.status is JobStatus.FAILED
    assert gone.note


def test_a_disk_that_is_full_for_a_moment_holds_no_entry(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise StoreError("the run store failed: disk I/O error")

    entry, server = add(shop), QueueServer(shop.ft)
    with monkeypatch.context() as patched:
        patched.setattr(queueing, "prepare", full)
        assert server.turn() == [] and server.problems
    server._again.clear()  # a while later
    server.turn()
    assert (state(shop, entry).state, shop.sent()) == (QueueState.SUBMITTED, 1)


def test_a_host_that_is_down_is_tried_again(shop: Shop, hosts: Any) -> None:
    write_rows(shop.rows, 13)  # which the host has not yet
    hosts.fault("openai", "rate_limit", method="POST", path="files", retry_after=500.0, count=0)
    entry, server = add(shop), QueueServer(shop.ft)
    clock, waits = shop.ft.store.clock, list[tuple[float, float]]()
    for _ in range(2):
        before = clock.uptime().seconds
        assert server.turn() == []
        assert server.problems
        again = server._again.pop(entry.id)  # a while later
        waits.append((again - clock.uptime().seconds, again - before))
    assert waits[0][0] <= 60 and waits[1][1] >= 120, "less and less often"
    hosts.clear_faults()
    server.turn()
    gone = state(shop, entry)
    assert (gone.state, shop.sent()) == (QueueState.SUBMITTED, 1)
    assert [run.id for run in shop.ft.runs() if run.status is not JobStatus.FAILED] == [gone.run_id]


def test_removed_paused_and_first(shop: Shop) -> None:
    one, two, three = add(shop), add(shop, epochs=2), add(shop, epochs=3, first=True)
    assert [entry.id for entry in queueing.entries(shop.ft)] == [three.id, one.id, two.id]
    queueing.remove(shop.ft, three.id[-5:])
    queueing.hold(shop.ft, one.id)
    shop.ft.store.queue.pause(True)
    server = QueueServer(shop.ft)
    assert (server.turn(), server.waiting()) == ([], [])
    shop.ft.store.queue.pause(False)
    assert [moved.entry.id for moved in server.turn()] == [two.id]
    with pytest.raises(UsageError, match="already has a run"):
        queueing.remove(shop.ft, two.id)
    with pytest.raises(UsageError, match="was already removed"):
        queueing.release(shop.ft, three.id)
    with pytest.raises(UsageError, match="no entry"):
        queueing.hold(shop.ft, "q-nothing")


def test_an_entry_for_another_address_is_never_sent_to_this_one(shop: Shop) -> None:
    """As one that was added in a sandbox, found by a server with the real key."""
    entry = add(shop)
    other = msgspec.structs.replace(entry, host="https://api.example.com/v1")
    shop.ft.store.queue.change(entry.id, lambda _: other)
    assert QueueServer(shop.ft).turn() == []
    assert (state(shop, entry).state, shop.sent()) == (QueueState.WAITING, 0)


def test_an_entry_for_another_account_is_held_until_its_user_says_so(shop: Shop) -> None:
    entry = add(shop)
    other = msgspec.structs.replace(entry, account="org-somebody")
    shop.ft.store.queue.change(entry.id, lambda _: other)
    server = QueueServer(shop.ft)
    server.turn()
    assert "org-somebody" in (state(shop, entry).note or "")
    assert shop.sent() == 0
    queueing.release(shop.ft, entry.id)
    server.turn()
    assert shop.sent() == 1


def test_a_spec_with_a_secret_is_not_kept(shop: Shop) -> None:
    options = {"openai": {"api_token": "sk-0123456789abcdef0123456789"}}
    spec = shop.spec.model_copy(update={"provider_options": options})
    prepared = shop.ft.prepare(spec, "openai")
    with pytest.raises(UsageError, match="secret"):
        queueing.add(shop.ft, prepared, "openai")
    assert queueing.entries(shop.ft) == []


@pytest.mark.parametrize("value", ["-1", "true", '"two"', "1.5"])
def test_room_is_a_number(tmp_path: Path, value: str) -> None:
    file = tmp_path / "orchestrate.toml"
    file.write_text(f"[queue]\nlocal = {value}\n")
    with pytest.raises(ConfigError, match=r"queue\.local must be a number of concurrent runs"):
        config.load(env={}, cwd=tmp_path, home=tmp_path, config_file=file)


def test_many_that_add_at_once_take_places_of_their_own(store_url: str) -> None:
    with Store.open(store_url) as store:

        def one(number: int) -> QueueEntry:
            return store.queue.add(
                lambda position: QueueEntry(
                    id=f"q-{number}",
                    provider="paper",
                    spec={"model": "m\u202e"},
                    host="here",
                    account="a",
                    digest="d",
                    created_at=store.clock.now(),
                    position=position,
                )
            )

        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(one, range(24)))
        kept = store.queue.matching()
    assert sorted(entry.position for entry in made) == list(range(1, 25))
    assert kept == sorted(made, key=lambda entry: entry.position)


def serve(arguments: list[str]) -> None:
    [folder] = arguments
    settings = config.load(cwd=Path(folder), home=Path(folder) / "home")
    with Orchestrator(settings) as ft:
        QueueServer(ft).turn()


def served_until_killed(shop: Shop, hosts: Any) -> None:
    log = shop.folder / "server.log"
    env = {**os.environ, **shop.env}
    streams = [Path(os.devnull), log, log]
    child = command.start(serve, [str(shop.folder)], cwd=shop.folder, env=env, streams=streams)
    deadline = time.monotonic() + 240
    while hosts.fronts["openai"].faults.waiting():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
    child.kill()
    assert command.ended(child, 240) == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("path", ["files$", CREATE["openai"]])
def test_a_server_killed_in_the_middle_sends_nothing_twice(
    shop: Shop, hosts: Any, path: str, tally: Any
) -> None:
    write_rows(shop.rows, 20 + len(path))  # which the host has not yet
    entry = add(shop)
    hosts.fault("openai", "slow", method="POST", path=path, delay_s=20.0)
    served_until_killed(shop, hosts)
    hosts.clear_faults()
    leases.expire(shop.settings.store_url)
    server, deadline = QueueServer(shop.ft), time.monotonic() + 240
    while state(shop, entry).state is not QueueState.SUBMITTED:
        assert time.monotonic() < deadline, server.problems
        server.turn()
        time.sleep(0.2)
    while (left := settle_left(shop)) is not None:
        time.sleep(left)
        sync(shop.ft.store, shop.ft.ready, timing=SETTLED)
    found = shop.count("openai")
    tally(f"queue's server killed while it sends {path}", "openai", found)
    assert (found["runs"], found["lost"], found["doubled"]) == (1, 0, 0)
    assert shop.sent() <= 1


def settle_left(shop: Shop) -> float | None:
    [run] = shop.ft.runs()
    return settle_left_s(shop.ft.store, run.provider, run.record, SETTLED)


def test_a_watcher_submits_what_waits_and_is_not_idle_before(shop: Shop) -> None:
    entry = add(shop)
    watcher = watching.watcher(shop.ft)
    assert not watcher.idle()
    watcher.turn()
    assert state(shop, entry).state is QueueState.SUBMITTED
    assert not watching.watcher(shop.ft, only=["together"]).feed.waiting()  # type: ignore[union-attr]


def test_the_commands(shop: Shop) -> None:
    words = ["-p", "openai", f"--model={MODELS['openai']}", "--train", str(shop.rows), "--epochs", "1"]
    refused = shop.type("queue", "add", *words)
    assert refused.exit_code != 0, ": nobody agreed to the price"
    added = shop.type("queue", "add", *words, "--max-cost", "5")
    assert added.exit_code == 0, added.output
    listed = shop.type("queue")
    assert "waiting" in listed.output
    assert "openai" in listed.output
    [entry] = msgspec.json.decode(shop.type("queue", "ls", "--json").stdout)
    assert Decimal(entry["max_cost_usd"]) == 5
    assert shop.type("queue", "pause").exit_code == 0
    assert "paused" in shop.type("queue", "ls").output
    assert shop.type("queue", "resume").exit_code == 0
    done = shop.type("queue", "run", "--until-empty", "--json")
    assert done.exit_code == 0, done.output
    assert msgspec.json.decode(done.stdout)[0]["state"] == "submitted"
    assert shop.sent() == 1
    assert isinstance(shop.type("queue", "rm", entry["id"]).exception, UsageError)


def test_the_same_command_twice_is_one_entry_unless_a_second_is_wanted(shop: Shop) -> None:
    entry = add(shop)
    with pytest.raises(UsageError, match=f"{entry.id}, is already waiting"):
        add(shop)
    queueing.hold(shop.ft, entry.id)
    with pytest.raises(UsageError, match="already waiting") as caught:
        add(shop)
    assert "--again" in (caught.value.fix or "")
    assert [one.id for one in queueing.entries(shop.ft)] == [entry.id]
    second = add(shop, again=True)
    queueing.remove(shop.ft, second.id)
    queueing.remove(shop.ft, entry.id)
    assert add(shop).state is QueueState.WAITING, "what was taken out does not stand in the way"
    words = ["-p", "openai", f"--model={MODELS['openai']}", "--train", str(shop.rows), "--epochs", "2"]
    assert shop.type("queue", "add", *words, "--max-cost", "5").exit_code == 0
    assert isinstance(shop.type("queue", "add", *words, "--max-cost", "5").exception, UsageError)
    assert shop.type("queue", "add", *words, "--max-cost", "5", "--again").exit_code == 0


def test_what_a_killed_server_had_begun_can_be_taken_out_until_it_has_a_run(shop: Shop) -> None:
    entry, other = add(shop), add(shop, epochs=2)
    queue = shop.ft.store.queue
    for one in (entry, other):
        queue.change(one.id, lambda now: msgspec.structs.replace(now, state=QueueState.SUBMITTING))
    with shop.ft.store.leases.hold("queue"), pytest.raises(UsageError, match="is being submitted"):
        queueing.remove(shop.ft, entry.id)
    assert queueing.remove(shop.ft, entry.id).state is QueueState.REMOVED
    server = QueueServer(shop.ft)
    assert [moved.entry.id for moved in server.turn()] == [other.id]
    queue.change(other.id, lambda now: msgspec.structs.replace(now, state=QueueState.SUBMITTING, run_id=None))
    with pytest.raises(UsageError, match="is being submitted"):
        queueing.remove(shop.ft, other.id)


def test_a_price_that_is_not_known_any_more_is_not_taken_for_nothing(shop: Shop) -> None:
    entry = add(shop)
    shop.ft.rates = RateBook(())
    QueueServer(shop.ft).turn()
    held = state(shop, entry)
    assert (held.state, shop.sent()) == (QueueState.HELD, 0)
    assert "cannot be enforced" in (held.note or ""), held.note


def test_the_queue_paused_in_the_middle_of_a_turn_sends_nothing_more(shop: Shop) -> None:
    shop.ft.settings = msgspec.structs.replace(shop.ft.settings, queue={"openai": 5})
    add(shop)
    add(shop, epochs=2)
    queue = shop.ft.store.queue

    class Paused(QueueServer):
        def _check(self, entry: QueueEntry) -> Any:
            moved = super()._check(entry)
            queue.pause(True)
            return moved

    assert len(Paused(shop.ft).turn()) == 1
    assert shop.sent() == 1


def test_what_was_lost_and_never_made_goes_again_and_does_not_block_the_others(shop: Shop) -> None:
    first, second = add(shop), add(shop, epochs=2)
    server = QueueServer(shop.ft)
    server.turn()
    run_id, store = state(shop, first).run_id or "", shop.ft.store
    # As it is settled when no job of it is found.
    unsent = {"phase": SubmitPhase.UPLOADED, "status": JobStatus.SUBMITTING, "job_id": None}
    store.runs.apply(run_id, lambda run: msgspec.structs.replace(run, **unsent))
    assert [moved.entry.id for moved in server.turn()] == [first.id]
    assert state(shop, first).run_id == run_id
    assert shop.ft.run(run_id).record.phase is SubmitPhase.SUBMITTED
    ended(shop, run_id)
    assert [moved.entry.id for moved in server.turn()] == [second.id]
    found = shop.count("openai")
    assert (found["runs"], found["lost"], found["doubled"]) == (2, 0, 0)


@pytest.mark.parametrize("name", HOSTED)
def test_a_backup_from_before_a_second_try_makes_no_second_job(
    shop: Shop, hosts: Any, name: str, tally: Any
) -> None:
    """What was sent to a busy host, and then again, is one run with one ref, in every copy of the store."""
    entry, server = add(shop, name), QueueServer(shop.ft)
    restore = backed_up(shop)
    hosts.fault(name, "rate_limit", method="POST", path=CREATE[name], retry_after=500.0, count=0)
    assert server.turn() == [] and server.problems
    assert [run.record.phase for run in shop.ft.runs()] == [SubmitPhase.UPLOADED]
    hosts.clear_faults()
    server._again.clear()  # a while later
    [moved] = server.turn()
    first = shop.ft.run(moved.entry.run_id or "").record
    restore()
    assert state(shop, entry).state is QueueState.WAITING
    [moved] = QueueServer(shop.ft).turn()
    second = shop.ft.run(moved.entry.run_id or "").record
    assert (second.ref, second.job_id) == (first.ref, first.job_id)
    found = shop.count(name)
    tally("restored store: the queue's second try", name, found)
    assert found == {"runs": 1, "jobs": 1, "lost": 0, "doubled": 0}


def test_what_a_busy_host_did_not_take_is_withdrawn_with_its_entry_and_takes_no_room(
    shop: Shop, hosts: Any
) -> None:
    write_rows(shop.rows, 14)  # which the host has not yet
    hosts.fault("openai", "rate_limit", method="POST", path="files", retry_after=500.0, count=0)
    first, server = add(shop), QueueServer(shop.ft)
    server.turn()
    [run] = shop.ft.runs()
    assert run.record.phase is SubmitPhase.INTENT
    hosts.clear_faults()
    second = add(shop, epochs=2)
    assert [moved.entry.id for moved in server.turn()] == [second.id], "the first waits a while"
    server._again.clear()
    assert server.turn() == [], "its room was taken meanwhile"
    assert queueing.remove(shop.ft, first.id).state is QueueState.REMOVED
    assert shop.ft.run(run.id).record.status is JobStatus.CANCELLED
    ended(shop, state(shop, second).run_id)
    assert (server.turn(), server.waiting(), shop.sent()) == ([], [], 1)


def test_what_its_host_takes_after_all_is_to_be_ended_though_its_entry_was_removed(
    shop: Shop, hosts: Any
) -> None:
    """A host may have made the job when it says that it is busy, and list it later."""
    write_rows(shop.rows, 15)
    hosts.fault("openai", "rate_limit", method="POST", path=CREATE["openai"], retry_after=500.0, count=0)
    entry = add(shop)
    QueueServer(shop.ft).turn()
    queueing.remove(shop.ft, entry.id)
    [run] = shop.ft.runs()
    assert run.record.status is JobStatus.CANCELLED
    assert not shop.ft.store.runs.is_closed(run.id), "it is looked for once more"
    assert shop.ft.store.runs.cancel_requested(run.id)


@pytest.mark.parametrize("gone", ["address", "backend"])
def test_what_waits_for_a_backend_that_is_not_here_says_so_and_lets_the_others_go(
    shop: Shop, gone: str
) -> None:
    entry, other = add(shop), add(shop, epochs=2)
    away = {"host": "https://api.example.com/v1"} if gone == "address" else {"provider": "elsewhere"}
    shop.ft.store.queue.change(entry.id, lambda now: msgspec.structs.replace(now, **away))
    watcher = watching.watcher(shop.ft)
    watcher.turn()
    [told] = [problem for problem in watcher.problems if entry.id in problem]
    assert ("at https://api.example.com/v1" if gone == "address" else "elsewhere") in told
    assert state(shop, other).state is QueueState.SUBMITTED
    assert state(shop, entry).state is QueueState.WAITING
    assert not QueueServer(shop.ft).waiting(), "nothing is to be waited for here"
    watcher.turn()
    assert not any(entry.id in problem for problem in watcher.problems), "once"
    listed = shop.type("queue", "ls")
    why = "was added" if gone == "address" else "is not available"
    assert listed.exit_code == 0 and why in " ".join(listed.output.split())
    assert queueing.remove(shop.ft, entry.id).state is QueueState.REMOVED


def test_an_entry_is_named_by_its_id_or_enough_of_it_to_be_the_only_one(shop: Shop) -> None:
    one, two = add(shop), add(shop, epochs=2)
    get = shop.ft.store.queue.get
    for name in (one.id, one.id.removeprefix("q-"), f" {one.id} ", one.id[-4:], one.id[-6:]):
        assert get(name).id == one.id
    for short in (one.id[-1], one.id[-3:]):
        with pytest.raises(UsageError, match=rf"matches.*{one.id}.*at least 4 characters"):
            get(short)
    with pytest.raises(UsageError, match=f"{one.id}.*{two.id}.*match exactly one"):
        get(one.id[:6])
    for nothing in ("", "q-", "zzzzz", "q-nothing"):
        with pytest.raises(UsageError, match="no entry"):
            get(nothing)
    assert [entry.state for entry in queueing.entries(shop.ft)] == [QueueState.WAITING] * 2
