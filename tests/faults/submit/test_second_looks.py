"""Jobs lost: 0, jobs doubled: 0. Copies of a store, hosts that say no and do it, lists that are none."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from tests.cells import diagonal
from tests.faults.paper_host import Paper, PaperHost
from tests.faults.shop import Shop
from tests.faults.submitting import BACKENDS, Killed, dies_at, submit
from tests.faults.world import CREATE, HOSTED, UNHURRIED, World

from orchestrate.errors import InvalidRequest, OutcomeUnknown, RateLimited, UnexpectedAnswer
from orchestrate.runs.submitting.repeats import Submission
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.runs.syncing.recovery import recover
from orchestrate.runs.syncing.sweep import sync
from orchestrate.spec import JobSpec
from orchestrate.store.store import Store, Timing
from orchestrate.types import Bill, Job, JobStatus, Run, SubmitPhase

SPEC = JobSpec(model="m", train="rows.jsonl")
QUICK = Timing(send_limit_s=60.0, requests=0, margin_s=0.0, lease_s=5.0, patience_s=1.0)
AT_FIRST = Timing(send_limit_s=60.0, lease_s=0.2)
AT_ONCE = Timing(send_limit_s=0.0, requests=0, margin_s=0.0, lease_s=5.0, patience_s=1.0)
DATA: Any = Paper()


# -- restored and copied stores ------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "point"), diagonal(BACKENDS, ["after-intent", "after-uploaded"]))
def test_two_copies_of_a_store_resume_one_job(
    world: World, tmp_path: Path, tally: Callable[..., None], name: str, point: str
) -> None:
    with contextlib.suppress(Killed):
        world.submit(name, reached=dies_at(point))
    run = world.store.runs.get("last")
    with copy_of(world, tmp_path / "copy.sqlite3") as copy:
        made = Submitter(copy, world.provider(name), UNHURRIED).resume(copy.runs.get(run.id), world.data())
        again = Submitter(world.store, world.provider(name), UNHURRIED).resume(run, world.data())
        assert made.job_id == again.job_id
    found = world.count(name)
    tally("restored store", name, found)
    assert (found["runs"], found["jobs"], found["lost"], found["doubled"]) == (1, 1, 0, 0)


@pytest.mark.parametrize("name", BACKENDS)
def test_a_sync_of_a_restored_store_finds_what_its_unsent_runs_became(
    world: World, tmp_path: Path, tally: Callable[..., None], name: str
) -> None:
    with contextlib.suppress(Killed):
        world.submit(name, reached=dies_at("after-uploaded"))
    run = world.store.runs.get("last")
    with copy_of(world, tmp_path / "copy.sqlite3") as copy:
        Submitter(copy, world.provider(name), UNHURRIED).resume(copy.runs.get(run.id), world.data())
    report = world.sync()
    assert (report.adopted, report.unsent) == ([run.id], [])
    found = world.count(name)
    tally("restored store", name, found)
    assert (found["runs"], found["jobs"], found["lost"], found["doubled"]) == (1, 1, 0, 0)


def copy_of(world: World, path: Path) -> Store:
    """A backup, taken while the store is open."""
    with sqlite3.connect(world.folder / "store" / "runs.sqlite3") as source, sqlite3.connect(path) as target:
        source.backup(target)
    source.close()
    target.close()
    return Store.open(f"sqlite:///{path}")


# -- a no that was a yes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "status"), diagonal(HOSTED, [400, 429]))
def test_a_host_that_says_no_after_it_made_the_job(
    world: World, hosts: Any, tally: Callable[..., None], name: str, status: int
) -> None:
    hosts.fault(name, "refused_after", method="POST", path=CREATE[name], status=status, retry_after=0.01)
    run = world.submit(name)
    assert (run.phase, hosts.fronts[name].faults.waiting()) == (SubmitPhase.SUBMITTED, [])
    found = world.count(name)
    tally(f"{status} after the job was made", name, found)
    assert (found["runs"], found["jobs"], found["lost"], found["doubled"]) == (1, 1, 0, 0)


def test_a_job_that_shows_only_after_its_refusal_is_adopted_by_the_next_sync(
    store: Store, host: PaperHost
) -> None:
    run = refused(store, host)
    [job] = host.jobs()
    assert sync(store, lambda _: host, timing=QUICK).adopted == []
    host.set(job["id"], appears=0.0)
    assert sync(store, lambda _: host, timing=QUICK).adopted == [run.id]
    assert (store.runs.get(run.id).job_id, store.runs.get(run.id).status) == (job["id"], JobStatus.SUBMITTING)


def test_recover_adopts_for_a_run_that_was_closed_without_a_job(store: Store, host: PaperHost) -> None:
    run = refused(store, host)
    sync(store, lambda _: host, timing=AT_ONCE)
    assert store.runs.is_closed(run.id), "it was looked for once more, and was not there"
    host.set(host.jobs()[0]["id"], appears=0.0)
    report = recover(store, [host])
    assert (report.adopted, report.recovered, report.known) == ([run.id], [], [run.id])
    assert store.runs.get(run.id).phase is SubmitPhase.SUBMITTED


def refused(store: Store, host: PaperHost) -> Run:
    """The host makes the job, says no, and shows the job later."""
    host.faults |= {"after": InvalidRequest("paper", "no", status=400, code="odd"), "lag_s": 3600.0}
    with pytest.raises(InvalidRequest):
        submit(store, host, SPEC, DATA, timing=QUICK)
    host.faults.clear()
    return store.runs.get("last")


def test_what_was_withdrawn_after_a_refusal_is_looked_for_and_ended_where_it_was_done(
    store: Store, host: PaperHost
) -> None:
    """One that is asked again stays unsent between, and may be given up there."""
    host.faults |= {"after": RateLimited("paper", "busy", status=429, retry_after_s=60.0), "lag_s": 3600.0}
    asked = Submission(spec=SPEC, translation=host.translate(SPEC), data=DATA, patient=True)
    with pytest.raises(RateLimited):
        Submitter(store, host, QUICK).submit(asked)
    host.faults.clear()
    run = store.runs.get("last")
    assert run.phase is SubmitPhase.UPLOADED
    assert Submitter(store, host, QUICK).cancel(run).status is JobStatus.CANCELLED
    host.show()
    assert sync(store, lambda _: host, timing=QUICK).adopted == [run.id]
    assert [job["state"] for job in host.jobs()] == ["stopped"]


def test_a_refusal_of_a_known_meaning_is_not_looked_into_at_once(store: Store, host: PaperHost) -> None:
    error = InvalidRequest("paper", "no", status=400, code="known")
    error.certain = True
    host.faults["raises"] = error
    with pytest.raises(InvalidRequest):
        submit(store, host, SPEC, DATA)
    assert "find" not in host.requests


def test_every_resend_asks_for_the_ref_first(store: Store, host: PaperHost) -> None:
    host.faults["after"] = RateLimited("paper", "slow down", status=429, retry_after_s=0.0)
    run = submit(store, host, SPEC, DATA, timing=QUICK)
    assert [job["id"] for job in host.jobs()] == [run.job_id]
    assert host.requests == ["upload", "create", "find"]


# -- lists that are none -------------------------------------------------------------------------------------


def test_one_backend_without_a_list_leaves_the_others_and_their_caps_alone(
    store: Store, tmp_path: Path
) -> None:
    broken, whole = (PaperHost(tmp_path / name, timeout_s=0.1, name=name) for name in ("broken", "whole"))
    runs = [submit(store, h, SPEC, DATA, max_cost_usd=Decimal(1)) for h in (broken, whole)]
    for h, run in zip((broken, whole), runs, strict=True):
        h.set(str(run.job_id), state="running")

    def bill(run: Run, job: Job) -> Bill:
        return Bill(usd=Decimal(2), origin="the test")

    broken.faults["no_list"] = True
    for stopper in (UnexpectedAnswer("broken", "no list"), TypeError("a plug-in's mistake")):
        broken.list = raising(stopper)  # type: ignore[method-assign]
        report = sync(store, {"broken": broken, "whole": whole}.__getitem__, bill=bill, timing=QUICK)
        assert "broken" in {failure.provider for failure in report.failures}
    assert whole.jobs()[0]["state"] == "stopped"
    assert broken.jobs()[0]["state"] == "stopped", "its jobs were asked for one by one"


def raising(error: Exception) -> Callable[..., Any]:
    def fails(**_: Any) -> Any:
        raise error

    return fails


@pytest.mark.parametrize("name", HOSTED)
def test_no_list_is_no_proof_against_a_sandbox(
    world: World, hosts: Any, tally: Callable[..., None], name: str
) -> None:
    hosts.fault(name, "lost_answer", method="POST", path=CREATE[name])
    find = world.provider(name).find
    world.provider(name).find = raising(UnexpectedAnswer(name, "down"))  # type: ignore[method-assign]
    with pytest.raises((OutcomeUnknown, TypeError)):
        world.submit(name)
    world.provider(name).find = find  # type: ignore[method-assign]
    run = world.store.runs.get("last")
    world.provider(name)._wire._sleep = lambda _: None  # type: ignore[attr-defined]
    world.timing = AT_ONCE
    hosts.fault(name, "no_list", method="GET", count=6)
    report = world.sync()
    assert (report.not_made, [f.provider for f in report.failures]) == ([], [name])
    assert world.store.runs.get(run.id).phase is not SubmitPhase.UPLOADED
    hosts.clear_faults()
    assert world.sync().adopted == [run.id]
    found = world.count(name)
    tally("a list that is none", name, found)
    assert (found["lost"], found["doubled"]) == (0, 0)


@pytest.mark.parametrize("name", ["openai", "fireworks"])  # Together's comes whole
def test_a_list_without_an_end_stops_neither_the_command_nor_the_others(shop: Shop, name: str) -> None:
    other = next(one for one in HOSTED if one != name)
    for backend in (name, other):
        shop.ft.submit(shop.spec, backend)
    shop.hosts.skip(100_000)
    shop.hosts.fault(name, "endless", method="GET", count=0)
    before = len(shop.hosts.requests(name))
    done = shop.type("sync", "--json")
    asked = len(shop.hosts.requests(name)) - before
    assert done.exit_code == 4 and "never ends" in done.output, done.output
    assert asked < 60, "it was noticed by the cursor, not by the number of pages"
    states = {run.record.provider: run.status for run in shop.ft.runs()}
    assert states[other] is JobStatus.SUCCEEDED
    spent = shop.type("spending", "--sandbox")
    assert f"{name}" in spent.output.partition("could not be fully checked")[2]
    shop.hosts.clear_faults()
    assert shop.type("sync").exit_code == 0


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind"), diagonal(HOSTED, ["html", "no_list"]))
def test_a_search_that_could_not_be_made_is_no_empty_one(shop: Shop, name: str, kind: str) -> None:
    shop.ft.provider(name).account()
    shop.hosts.fault(name, kind, method="GET", count=0, content={"error": "try later"})
    words = ["recover", "--all"]
    for search in ([*words, "-p", name], words):
        done = shop.type(*search)
        assert done.exit_code == 4, done.output
        assert f"{name} could not be fully searched" in done.output and "attribute" not in done.output


def test_a_cancel_of_what_may_have_no_job_says_that_it_is_not_known(shop: Shop) -> None:
    shop.hosts.fault("openai", "lost_request", method="POST", path=CREATE["openai"])
    with pytest.raises(OutcomeUnknown):
        shop.ft.submit(shop.spec, "openai")
    done = shop.type("cancel", "last")
    assert done.exit_code == 5 and "cancel it once it is found" in done.output
    assert shop.ft.submit(shop.spec, "together").cancel().status is not None
    assert shop.type("cancel", "last").exit_code == 0


# -- a full disk ---------------------------------------------------------------------------------------------


def test_a_disk_that_fills_up_while_the_answer_is_lost_ends_in_unknown(
    tmp_path: Path, host: PaperHost
) -> None:
    import resource

    path = tmp_path / "home" / "runs.sqlite3"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills(point: str) -> None:
        if point == "after-fence":
            size = path.with_name(path.name + "-wal").stat().st_size
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))

    host.faults["lost"] = True
    with Store.open(f"sqlite:///{path}") as store:
        try:
            with pytest.raises(OutcomeUnknown, match="but could not record it:") as caught:
                submit(store, host, SPEC, DATA, reached=fills, timing=AT_FIRST)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert caught.value.exit_code == 5
        assert "orchestrate sync" in str(caught.value.fix) and "again" in str(caught.value.fix)
        while store.leases.held(f"run:{store.runs.get('last').id}"):
            time.sleep(0.01)  # its release could not be written down either
        assert sync(store, lambda _: host).adopted == [store.runs.get("last").id]
    assert host.posts() == 1
