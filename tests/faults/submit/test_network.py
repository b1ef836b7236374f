"""Jobs lost: 0, jobs doubled: 0. What networks, proxies and hosts do to requests and answers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.cells import diagonal
from tests.faults.conftest import AT_ONCE
from tests.faults.submitting import backend, spec_for, write_rows
from tests.faults.world import CREATE, HOSTED, LATE, SETTLED, UNHURRIED, Counted, World
from tests.ports import own_port

from orchestrate import sandbox
from orchestrate.data import TrainingData
from orchestrate.errors import OutcomeUnknown, ProviderError, RateLimited
from orchestrate.runs.submitting.submit import cancel
from orchestrate.runs.syncing.sweep import refresh
from orchestrate.store.store import POINTS
from orchestrate.store.transitions import ImpossibleTransition
from orchestrate.types import JobStatus, SubmitPhase

FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "reset before it was done": ("lost_request", {}),
    "reset after it was done": ("lost_answer", {}),
    "late commit": ("late_commit", {"delay_s": 0.4}),
    "half a body": ("half_body", {}),
    "HTML, not done": ("html", {}),
    "HTML, done": ("html_after", {}),
    "bad JSON": ("bad_json", {}),
    "500, not done": ("error", {"status": 500}),
    "500, done": ("timeout", {"status": 500}),
    "504, done": ("timeout", {}),
    "408, done": ("timeout", {"status": 408}),
}


@pytest.mark.parametrize(("name", "fault"), diagonal(HOSTED, FAULTS))
def test_a_create_that_goes_wrong_on_the_way_loses_and_doubles_nothing(
    world: World, hosts: Any, counted: Counted, name: str, fault: str
) -> None:
    kind, fields = FAULTS[fault]
    world.timing = LATE if kind == "late_commit" else SETTLED
    hosts.fault(name, kind, method="POST", path=CREATE[name], **fields)
    posts = world.creates(name)
    with contextlib.suppress(OutcomeUnknown):
        world.submit(name)
    assert hosts.fronts[name].faults.waiting() == [], "the fault befell nothing"
    assert world.creates(name) == posts + 1, "sent twice"
    world.heal()
    found = counted(fault, name)
    assert (found["runs"], found["jobs"]) == (1, 1)


@pytest.mark.parametrize("name", HOSTED)
def test_a_host_that_goes_away_before_the_post_and_comes_back(
    tmp_path: Path, tally: Callable[..., None], name: str
) -> None:
    home = tmp_path / "sandbox"
    with contextlib.ExitStack() as first:
        ports = [own_port() for _ in HOSTED]
        hosts = first.enter_context(
            sandbox.running(home=home, train=False, speed=20, ports=ports, waits=AT_ONCE)
        )
        world = World(tmp_path, hosts)

        def goes(point: str) -> None:
            if point == "after-fence":
                first.close()

        with pytest.raises((OutcomeUnknown, ProviderError)):
            world.submit(name, reached=goes)
    with sandbox.running(home=home, train=False, speed=20, ports=ports, waits=AT_ONCE) as world.hosts:
        world.heal()
        ended = world.store.runs.get("last").phase is SubmitPhase.REFUSED
        found = world.count(name)
        tally("host gone before the POST", name, found)
        assert (found["runs"], found["jobs"]) == (1, 0 if ended else 1)
        assert (found["lost"], found["doubled"]) == (0, 0)
        world.close()


# -- refusals ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [0, -1])
def test_a_storm_of_429_that_asks_for_no_wait_ends(world: World, hosts: Any, asked: int) -> None:
    hosts.fault("openai", "rate_limit", method="POST", path=CREATE["openai"], count=0, retry_after=asked)
    before = world.creates("openai")
    with pytest.raises(RateLimited):
        world.submit("openai", timing=replace(UNHURRIED, patience_s=2.0))
    assert world.creates("openai") - before == 3
    hosts.clear_faults()


@pytest.mark.parametrize("name", HOSTED)
def test_a_storm_of_429_is_waited_out(world: World, hosts: Any, counted: Counted, name: str) -> None:
    hosts.fault(name, "rate_limit", method="POST", path=CREATE[name], count=3, retry_after=0.2)
    run = world.submit(name)
    assert run.phase is SubmitPhase.SUBMITTED
    found = counted("429 storm", name)
    assert (found["runs"], found["jobs"]) == (1, 1)


@pytest.mark.parametrize("name", HOSTED)
def test_a_storm_of_429_that_will_not_end_ends_the_run_and_leaves_the_others_alone(
    world: World, hosts: Any, counted: Counted, name: str
) -> None:
    tracked = world.submit(name)
    hosts.fault(name, "rate_limit", count=0, retry_after=3600)
    with pytest.raises(RateLimited):
        world.submit(name)
    [failure] = world.sync().failures
    assert (failure.provider, failure.retry_after_s) == (name, 3600)
    assert world.store.runs.get(tracked.id) == tracked
    hosts.clear_faults()
    world.heal()
    assert counted("429 storm", name)["jobs"] == 1


@pytest.mark.parametrize("name", HOSTED)
def test_a_host_that_takes_no_new_jobs_ends_the_run(
    world: World, hosts: Any, counted: Counted, name: str
) -> None:
    hosts.fault(name, "error", method="POST", path=CREATE[name], status=400)
    with pytest.raises(ProviderError):
        world.submit(name)
    run = world.store.runs.get("last")
    assert (run.phase, run.status) == (SubmitPhase.REFUSED, JobStatus.FAILED)
    assert counted("refused", name)["jobs"] == 0


# -- lists and statuses ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", HOSTED)
def test_a_list_that_lags_loses_and_doubles_nothing(
    world: World, hosts: Any, counted: Counted, name: str
) -> None:
    hosts.fault(name, "list_lag", method="GET", count=0, delay_s=5.0)
    hosts.fault(name, "lost_answer", method="POST", path=CREATE[name])
    with contextlib.suppress(OutcomeUnknown):
        world.submit(name)
    hosts.clear_faults()
    world.heal()
    found = counted("list lag", name)
    assert (found["runs"], found["jobs"]) == (1, 1)


@pytest.mark.parametrize("name", ["openai", "together"])
def test_a_request_that_a_proxy_sent_twice_is_an_alarm(
    world: World, hosts: Any, counted: Counted, name: str
) -> None:
    hosts.fault(name, "duplicate", method="POST", path=CREATE[name])
    run = world.submit(name)
    [alarm] = world.sync().alarms
    assert {job.id for job in world.jobs(name)} == {run.job_id, *alarm.data["others"]}
    assert world.sync().alarms == [], "told once"
    found = counted("two jobs of one ref", name, by_proxy=1)
    assert (found["runs"], found["jobs"], found["alarms"]) == (1, 2, 1)


def test_a_request_that_a_proxy_sent_twice_is_one_job_where_we_name_it(
    world: World, hosts: Any, counted: Counted
) -> None:
    hosts.fault("fireworks", "duplicate", method="POST", path=CREATE["fireworks"])
    assert world.submit("fireworks").phase is SubmitPhase.SUBMITTED
    found = counted("two jobs of one ref", "fireworks")
    assert (found["runs"], found["jobs"], found["alarms"]) == (1, 1, 0)


@pytest.mark.parametrize("name", HOSTED)
def test_an_unknown_status_is_kept_and_ends_nothing(
    world: World, hosts: Any, counted: Counted, name: str
) -> None:
    run = world.submit(name)
    hosts.fault(name, "unknown_status", method="GET", count=0, word="defrosting")
    world.sync()
    seen = world.store.runs.get(run.id)
    assert (seen.status, "defrosting" in str(seen.raw_status).lower()) == (JobStatus.UNKNOWN, True)
    hosts.clear_faults()
    world.sync()
    assert world.store.runs.get(run.id).status is not JobStatus.UNKNOWN
    counted("unknown status", name)


BACKWARDS = {
    "openai": (250.0, "running", "validating_files"),
    "together": (850.0, "finalizing", "running"),
    "fireworks": (250.0, "running", "JOB_STATE_VALIDATING"),
}
"""After so many seconds a job stands so, and an answer with this word is an old one."""


@pytest.mark.parametrize("name", HOSTED)
def test_statuses_that_come_twice_or_go_back_change_nothing(
    world: World, hosts: Any, counted: Counted, name: str
) -> None:
    seconds, stands, old = BACKWARDS[name]
    run = world.submit(name)
    provider = world.provider(name)
    hosts.skip(seconds)
    assert world.sync().changed == [run.id]
    assert world.store.runs.get(run.id).status.value == stands
    assert world.sync().changed == [], "the same answer again"
    hosts.fault(name, "unknown_status", method="GET", count=0, word=old)
    assert world.sync().changed == [], "an old answer"
    assert refresh(world.store, provider, run, timing=SETTLED).status.value == stands
    hosts.clear_faults()
    hosts.skip(3600.0)
    assert world.sync().ended == [run.id]
    hosts.fault(name, "unknown_status", method="GET", count=0, word=old)
    ended = refresh(world.store, provider, run, timing=SETTLED)
    assert ended.status is JobStatus.SUCCEEDED
    story = [step.status.value for step in world.store.history.transitions(run.id)]
    assert story == ["submitting"] * 4 + [stands, "succeeded"]
    counted("statuses twice and backwards", name)


# -- cancelling --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "point"), diagonal(HOSTED, POINTS))
def test_a_cancel_that_races_the_submit_leaves_no_job_running(
    world: World, hosts: Any, counted: Counted, name: str, point: str
) -> None:

    def cancels(reached: str) -> None:
        if reached == point:
            cancel(world.store, world.provider(name), world.store.runs.get("last"), timing=SETTLED)

    with contextlib.suppress(ImpossibleTransition):
        world.submit(name, reached=cancels)
    world.heal()
    hosts.skip(200.0)
    world.sync()
    assert world.store.runs.get("last").status is JobStatus.CANCELLED
    assert {job.phase for job in world.jobs(name)} <= {"cancelled"}
    sent = point in ("after-submitting", "after-fence", "after-post", "after-submitted")
    assert counted("cancel races the submit", name)["jobs"] == int(sent)


@pytest.mark.slow
def test_uploads_of_one_new_file_from_stores_that_share_nothing_all_succeed(world: World) -> None:
    rows = write_rows(world.folder / "new.jsonl", 31)
    start = threading.Barrier(4)

    def upload(n: int) -> str:
        (home := world.folder / f"home{n}").mkdir()
        spec, data = spec_for(rows), TrainingData.open(str(rows))
        with contextlib.closing(backend("fireworks", home, world.env)) as provider:
            start.wait(60)
            return provider.upload(spec, data, provider.translate(spec)).train_id

    with ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(upload, range(4)))) == 1
