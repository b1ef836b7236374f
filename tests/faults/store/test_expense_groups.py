"""Sums of ended runs, kept by what reports group by: the same as adding up each run, whatever changes it."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from sqlalchemy import event, text
from tests import command
from tests.faults.store.test_records import MovedClock

from orchestrate.costing.expenses import BY, Expense, Sum, grouped, in_month, of_run, total
from orchestrate.runs.syncing.sweep import sync
from orchestrate.spec import JobSpec
from orchestrate.store import schema
from orchestrate.store.runs import Intent
from orchestrate.store.store import Store
from orchestrate.types import Bill, JobStatus, Quote, Run, SubmitPhase

QUOTE = Quote(provider="x", model="m", high_usd=Decimal("0.3"))
GROUPINGS = (*BY, "tag:team")


def change(store: Store, random: Random, runs: list[str]) -> None:
    """Make a run, or change one in one of the ways that its cost, its month or its group may change."""
    if not runs or random.random() < 0.2:
        tags = {
            name: random.choice("ab\0") for name in random.sample(["team", "project"], random.randrange(3))
        }
        spec = JobSpec(model="m", train="rows.jsonl", tags=tags)
        made = Intent(
            spec=spec,
            provider=random.choice("xy"),
            dataset_digest="d",
            host="here",
            account=random.choice([None, "acct"]),
            made_by=random.choice([None, "ann"]),
            sandbox=random.random() < 0.3,
            quote=random.choice([QUOTE, QUOTE, None]),
        )
        runs.append(store.runs.create(made).id)
        return
    at = store.clock.now() - timedelta(days=random.randrange(90))
    usd = Decimal(random.randrange(10**7)) / random.choice([100, 3 * 10**6])
    ended = random.choice([s for s in JobStatus if s.terminal])
    changes: dict[str, Any] = random.choice(
        [
            {"status": ended, "phase": SubmitPhase.SUBMITTED, "finished_at": at},
            {"status": ended, "phase": SubmitPhase.SUBMITTED, "updated_at": at},
            {"status": ended, "bill": Bill(usd=usd, origin="host", final=random.random() < 0.7)},
            {"status": JobStatus.RUNNING},
            {"status": JobStatus.FAILED, "phase": SubmitPhase.REFUSED},
            {"tags": {"team": random.choice("abc")}},
            {"abandoned": random.choice([None, "gone"])},
            {"bill": random.choice([None, Bill(usd=usd, origin="host", final=True)])},
            {"estimate_usd": usd},
        ]
    )
    store.runs.apply(random.choice(runs), lambda run: msgspec.structs.replace(run, **changes))


def reports(found: list[Expense]) -> dict[str, list[Sum]]:
    months = {one.month for one in found}
    by = {name: grouped(found, name) for name in GROUPINGS}
    by |= {month: grouped(in_month(found, month), "person") for month in months}
    sums = {name: [_sorted(one) for one in some] for name, some in by.items()}
    return sums | {"total": [_sorted(total(found))]}


def _sorted(one: Sum) -> Sum:
    return msgspec.structs.replace(
        one, unknown=tuple(sorted(one.unknown)), abandoned=tuple(sorted(one.abandoned))
    )


def require_right(store: Store) -> None:
    now, every = store.clock.now(), store.runs.matching()
    for sandbox in (False, True):
        groups, own = store.ledger.of_runs(sandbox=sandbox)
        each = [of_run(run, now) for run in every if run.sandbox is sandbox]
        assert reports([*groups, *(of_run(run, now) for run in own)]) == reports(each)
        assert sum(one.runs for one in groups) + len(own) == len(each)
        assert all(run.status.terminal is False or run.abandoned or not of_run(run, now).known for run in own)


@pytest.mark.parametrize("seed", range(4))
def test_the_groups_add_up_to_each_run(store: Store, seed: int) -> None:
    random, runs = Random(seed), list[str]()
    for step in range(120):
        change(store, random, runs)
        if step % 20 == 19:
            require_right(store)
            assert not store.ledger.recount()
    groups, own = store.ledger.of_runs(sandbox=False)
    assert len(groups) > 2 and len(own) > 2


def test_a_sum_of_nothing_is_written_as_each_run_writes_it(store: Store) -> None:
    quote = msgspec.structs.replace(QUOTE, high_usd=Decimal("4.003234"))
    made = Intent(spec=JobSpec(model="m", train="t"), provider="x", dataset_digest="d", host="h", quote=quote)
    run = store.runs.create(made)
    ended = {"status": JobStatus.SUCCEEDED, "phase": SubmitPhase.SUBMITTED, "finished_at": store.clock.now()}
    store.runs.apply(run.id, lambda run: msgspec.structs.replace(run, **ended))
    store.runs.set_bills({run.id: Bill(usd=Decimal("0.5"), origin="host", final=True)})
    [group], _ = store.ledger.of_runs(sandbox=False)
    assert (str(group.committed_usd), str(group.spent_usd)) == ("0.00", "0.50")


def change_runs(arguments: list[str]) -> None:
    """`STORE_URL SEED START`: once the file START is there, changes runs of the store, some of them all at
    once."""
    url, seed, start = arguments
    while not Path(start).exists():
        time.sleep(0.001)
    random = Random(int(seed))
    with Store.open(url) as store:
        runs = [run.id for run in store.runs.matching()]
        for step in range(60):
            change(store, random, runs)
            if step % 10 == 9:
                some = random.sample(runs, 5)
                bill = Bill(usd=Decimal(random.randrange(1000)) / 100, origin="host", final=True)
                store.runs.set_bills(dict.fromkeys(some, bill))
                store.ledger.recount()


def test_many_processes_that_change_runs_at_once_leave_right_sums(store_url: str, tmp_path: Path) -> None:
    with Store.open(store_url) as store:
        random, runs = Random(7), list[str]()
        for _ in range(60):
            change(store, random, runs)
    log, start = tmp_path / "changers.log", tmp_path / "start"
    streams = [Path(os.devnull), log, log]
    changers = [
        command.start(
            change_runs, [store_url, str(seed), str(start)], cwd=tmp_path, env=os.environ, streams=streams
        )
        for seed in range(4)
    ]
    start.touch()
    with Store.open(store_url) as store:
        while any(changer.exitcode is None for changer in changers):
            groups, own = store.ledger.of_runs(sandbox=False)
            assert all(one.runs > 0 for one in groups)
            assert len({run.id for run in own}) == len(own)
        assert [command.ended(changer, 240) for changer in changers] == [0] * 4, log.read_text()
        require_right(store)
        assert not store.ledger.recount()


def test_a_run_that_ends_while_a_report_reads_is_counted_once(store_url: str) -> None:
    with Store.open(store_url) as store, Store.open(store_url) as other:
        run = a_run(store)
        ends = iter(["once"])

        def end(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if "expense_groups" in statement and next(ends, None):
                other.runs.apply(run.id, ended)

        event.listen(store.database.engine, "after_cursor_execute", end)
        try:
            groups, own = store.ledger.of_runs(sandbox=False)
        finally:
            event.remove(store.database.engine, "after_cursor_execute", end)
        assert (groups, [one.id for one in own]) == ([], [run.id])
        groups, own = store.ledger.of_runs(sandbox=False)
        assert ([one.runs for one in groups], own) == ([1], [])


def test_runs_that_end_into_a_new_group_during_a_recount_are_counted(store_url: str) -> None:
    """Before their bills are known: then the total, which they would wait for, stays as it is."""
    with Store.open(store_url) as store, Store.open(store_url) as other:
        store.runs.apply(a_run(store).id, ended)
        new = [a_run(store, tags={"team": "new"}) for _ in range(2)]
        waiting, threads = iter(new), list[threading.Thread]()

        def end_one(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            """As the sums and then the runs were read."""
            read = ("SELECT expense_groups.key, expense_groups.runs", "SELECT runs.sandbox, runs.bill_usd")
            if statement.replace('"', "").startswith(read) and (run := next(waiting, None)):
                unbilled = {"phase": SubmitPhase.SUBMITTED, "status": JobStatus.SUCCEEDED}
                ends = partial(msgspec.structs.replace, **unbilled)
                threads.append(threading.Thread(target=other.runs.apply, args=(run.id, ends)))
                threads[-1].start()
                threads[-1].join(0.5)

        event.listen(store.database._writer, "after_cursor_execute", end_one)
        try:
            assert not store.ledger.recount()
        finally:
            event.remove(store.database._writer, "after_cursor_execute", end_one)
        assert len(threads) == 2
        for thread in threads:
            thread.join(60)
        store.runs.set_bills({run.id: Bill(usd=Decimal("0.1"), origin="host", final=True) for run in new})
        require_right(store)
        assert not store.ledger.recount()


def test_any_amount_that_a_host_may_bill_is_counted(store: Store) -> None:
    for usd in ("1e26", "1.7e308", "9999999999999999999.999"):
        store.runs.apply(run := a_run(store).id, ended)
        store.runs.set_bills({run: Bill(usd=Decimal(usd), origin="host", final=True)})
        require_right(store)
        assert not store.ledger.recount()


def test_runs_are_found_by_any_name_that_a_host_shows(store: Store) -> None:
    job = "Tuned-Möbius-É"
    run = store.runs.apply(a_run(store).id, lambda run: msgspec.structs.replace(ended(run), job_id=job))
    found = store.runs.of_names(["tuned \ud83d", "a\0b", "x" * 5000, job])
    assert {name: one.id for name, one in found.items()} == {job.lower(): run.id}
    assert store.runs.of_refs(["\ud83d", "\0", run.ref]) == [run]


def test_sums_that_another_program_damaged_are_mended(store: Store) -> None:
    for _ in range(3):
        store.runs.apply(a_run(store).id, ended)
    with store.database.writing() as connection:
        connection.execute(schema.expense_groups.update().values(spent_usd="7", runs=9))
    assert [store.ledger.recount(), store.ledger.recount()] == [True, False]
    require_right(store)
    with store.database.writing() as connection:
        connection.execute(schema.expense_groups.delete())
    store.runs.apply(a_run(store).id, ended)  # of the same group
    assert [store.ledger.recount(), store.ledger.recount()] == [True, False]
    require_right(store)


def test_a_sync_checks_the_sums_once_a_day_and_after_a_wrong_clock(store_url: str) -> None:
    clock = MovedClock()
    with Store.open(store_url, clock=clock) as store:
        store.runs.close(store.runs.apply(a_run(store).id, ended).id)

        def mended() -> bool:
            with store.database.writing() as connection:
                connection.execute(schema.expense_groups.update().values(runs=9))
            report = sync(store, lambda _: pytest.fail("no run is open"))
            groups, _ = store.ledger.of_runs(sandbox=False)
            assert report.corrected is ([one.runs for one in groups] == [1])
            assert ("corrected: another program" in str(report)) is report.corrected
            return report.corrected

        assert mended()
        clock.passes(0.9 * 86_400)
        assert not mended()
        clock.passes(0.2 * 86_400)
        assert mended()
        clock.at -= timedelta(days=30)
        assert mended() and not mended()


def a_run(store: Store, **more: Any) -> Run:
    spec = JobSpec(model="m", train="rows.jsonl", **more)
    return store.runs.create(Intent(spec=spec, provider="x", dataset_digest="d", host="here", quote=QUOTE))


def ended(run: Run) -> Run:
    bill = Bill(usd=Decimal("0.1"), origin="host", final=True)
    changes = {"phase": SubmitPhase.SUBMITTED, "status": JobStatus.SUCCEEDED, "bill": bill, "job_id": "Job-1"}
    return msgspec.structs.replace(run, **changes)


def test_a_report_reads_no_ended_run(store: Store) -> None:
    store.runs.apply(a_run(store).id, ended)
    running, said = a_run(store), list[tuple[str, Any]]()

    def heard(_connection: Any, _cursor: Any, statement: str, values: Any, *_more: Any) -> None:
        said.append((statement, values))

    event.listen(store.database.engine, "before_cursor_execute", heard)
    groups, own = store.ledger.of_runs(sandbox=False)
    found = store.runs.of_names(["JOB-1", running.ref.upper()])
    event.remove(store.database.engine, "before_cursor_execute", heard)
    assert [one.runs for one in groups] == [1] and [run.id for run in own] == [running.id]
    assert {name: run.status.terminal for name, run in found.items()} == {"job-1": True, running.ref: False}
    if store.database.file is None:
        return  # how Postgres reads two rows says nothing of a hundred thousand
    with store.database.reading() as connection:
        plans = [
            str(row[3])
            for statement, values in said
            for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values)
        ]
    read = [step for step in plans if "runs" in step]
    assert [step.split(" USING ")[-1].split(" (")[0] for step in read] == [
        "INDEX runs_by_group",
        "INDEX runs_by_any_job",
        "INDEX sqlite_autoindex_runs_2",
    ], plans


def test_a_store_from_before_runs_were_grouped_groups_them(store_url: str) -> None:
    with Store.open(store_url) as store:
        random, runs = Random(3), list[str]()
        for _ in range(80):
            change(store, random, runs)
        known = store.ledger.spending()
        groups, _ = store.ledger.of_runs(sandbox=True)
        assert groups
        with store.database.writing() as connection:
            schema.expense_groups.drop(connection)
            for index in ("runs_by_group", "runs_by_any_job"):
                connection.execute(text(f"DROP INDEX {index}"))
            connection.execute(text("ALTER TABLE runs DROP COLUMN group_key"))
            connection.execute(text("UPDATE runs SET bill_usd = NULL, committed_usd = NULL WHERE sandbox"))
            connection.execute(schema.meta.update().values(value="10"))
    for _ in range(2):
        with Store.open(store_url) as store:
            assert store.ledger.spending() == known
            require_right(store)
            assert not store.ledger.recount()
