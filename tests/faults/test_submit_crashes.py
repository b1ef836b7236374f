"""Jobs lost: 0, jobs doubled: 0. Processes killed and stopped, over the official SDKs and the sandbox."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from submitting import BACKENDS, CHILD, backend, spec_for, write_rows

from orchestrate import sandbox
from orchestrate.data import TrainingData
from orchestrate.errors import OrchestrateError, OutcomeUnknown, ProviderError
from orchestrate.providers.base import Provider
from orchestrate.tracking import Store, Submitter, Timing, cancel, recover, submit, sync
from orchestrate.tracking.timing import POINTS
from orchestrate.types import JobStatus, Run, SubmitPhase

HOSTED = [name for name in BACKENDS if name != "local"]
CREATE = {"openai": "fine_tuning/jobs$", "together": "fine-tunes$", "fireworks": "FineTuningJobs$"}
SETTLED = Timing(send_limit_s=0.2, requests=0, margin_s=0.5, lease_s=1.0, patience_s=5.0)
"""Of the parent, which knows that the child is dead and no request is under way."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with sandbox.running(home=tmp_path_factory.mktemp("sandbox"), train=False, speed=20) as running:
        yield running


class World:
    """One store, one home and the backends on the sandbox."""

    def __init__(self, tmp_path: Path, env: dict[str, str], url: str | None = None) -> None:
        self.home = tmp_path / "home"
        self.home.mkdir()
        self.env = env
        self.url = url or f"sqlite:///{tmp_path}/store/runs.sqlite3"
        self.rows = write_rows(tmp_path / "rows.jsonl")
        self.store = Store.open(self.url)
        self.providers: dict[str, Provider] = {}

    def provider(self, name: str) -> Provider:
        if name not in self.providers:
            self.providers[name] = backend(name, self.home, self.env)
        return self.providers[name]

    def child(self, name: str, point: str = "none", action: str = "kill") -> subprocess.Popen[bytes]:
        self.marks = self.home / f"marks-{time.monotonic_ns()}"
        arguments = [self.url, name, self.rows, self.marks, point, action]
        with (self.home / "child.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, CHILD, *map(str, arguments)], env={**os.environ, **self.env}, stderr=log
            )

    def submit(self, name: str) -> Run:
        data = TrainingData.open(str(self.rows))
        return submit(self.store, self.provider(name), spec_for(self.rows), data, timing=SETTLED)

    def heal(self) -> None:
        """What a user does after a crash: sync until all is known, then go on with what was not sent."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            report = sync(self.store, self.provider, timing=SETTLED)
            waiting = [r for r in self.store.runs(active=True) if r.phase is not SubmitPhase.SUBMITTED]
            for run_id in (*report.unsent, *report.not_made):
                run = self.store.run(run_id)
                data = TrainingData.open(str(self.rows))
                Submitter(self.store, self.provider(run.provider), SETTLED).resume(run, data)
            if not waiting:
                return
            time.sleep(0.3)
        raise AssertionError(f"not settled: {waiting}")

    def count(self, name: str) -> dict[str, Any]:
        """Jobs on the host against runs in the store."""
        on_host: dict[str, list[str]] = {}
        for job in self.provider(name).list():
            on_host.setdefault(str(job.handle.ref), []).append(job.handle.job_id)
        runs = self.store.runs(provider=name)
        wanted = [run for run in runs if run.phase is not SubmitPhase.REFUSED]
        lost = [run.id for run in wanted if run.job_id not in on_host.get(run.ref, [])]
        doubled = [run.id for run in runs if len(on_host.get(run.ref, [])) > 1]
        return {"where": name, "runs": len(runs), "lost": len(lost), "doubled": len(doubled)}

    def close(self) -> None:
        for run in self.store.runs(active=True):
            if run.provider == "local" and run.job_id:
                cancel(self.store, self.provider("local"), run)
        for provider in self.providers.values():
            provider.close()
        self.store.close()


@pytest.fixture
def world(tmp_path: Path, hosts: Any) -> Iterator[World]:
    made = World(tmp_path, hosts.env)
    hosts.clear_faults()
    yield made
    hosts.clear_faults()
    made.close()


@pytest.fixture
def counted(world: World, request: pytest.FixtureRequest) -> Callable[[str], dict[str, Any]]:
    """Counts, tells the suite's table, and requires that nothing is lost or doubled."""

    def count(name: str) -> dict[str, Any]:
        result = world.count(name)
        request.node.user_properties.append(("jobs", result))
        assert (result["lost"], result["doubled"]) == (0, 0), result
        return result

    return count


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_process_killed_at_each_point_loses_and_doubles_nothing(
    world: World, counted: Callable[[str], dict[str, Any]], name: str, point: str
) -> None:
    child = world.child(name, point)
    assert child.wait(120) == -signal.SIGKILL
    reached = world.marks.read_text().splitlines()
    assert reached == list(POINTS[: POINTS.index(point) + 1]), "the hook was not hit"
    world.heal()
    assert counted(name)["runs"] == 1
    run = world.store.run("last")
    assert (run.provider, run.phase) == (name, SubmitPhase.SUBMITTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTED)
def test_a_process_killed_while_the_host_answers_loses_and_doubles_nothing(
    world: World, hosts: Any, counted: Callable[[str], dict[str, Any]], name: str
) -> None:
    hosts.fault(name, "slow", method="POST", path=CREATE[name], delay_s=20.0)
    before = hosts.count(name, method="POST")
    child = world.child(name)
    deadline = time.monotonic() + 60
    while not world.marks.exists() or "after-fence" not in world.marks.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while hosts.fronts[name].faults.waiting() and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(0.3)
    child.kill()
    assert child.wait(30) == -signal.SIGKILL
    assert hosts.count(name, method="POST") > before
    world.heal()
    assert counted(name)["runs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after-submitting", "after-fence"])
@pytest.mark.parametrize("name", HOSTED)
def test_a_process_that_slept_past_its_lease_sends_nothing_when_it_wakes(
    world: World, counted: Callable[[str], dict[str, Any]], name: str, point: str
) -> None:
    child = world.child(name, point, "stop")
    try:
        _, status = os.waitpid(child.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        time.sleep(2.5)  # past its lease and its send limit
        world.heal()
        assert world.store.run("last").phase is SubmitPhase.SUBMITTED
    finally:
        child.send_signal(signal.SIGCONT)
    assert child.wait(60) != 0, "it must notice that it was overtaken"
    assert counted(name)["runs"] == 1


@pytest.mark.slow
def test_eight_processes_at_once_some_of_them_killed(
    tmp_path: Path, hosts: Any, store_url: str, request: pytest.FixtureRequest
) -> None:
    world = World(tmp_path, hosts.env, store_url)
    points = ["none", "after-uploaded", "after-submitting", "after-post"] * 2
    children = [world.child("together", point) for point in points]
    codes = [child.wait(300) for child in children]
    assert codes == [0 if point == "none" else -signal.SIGKILL for point in points]
    world.heal()
    result = world.count("together")
    request.node.user_properties.append(("jobs", result))
    assert (result["runs"], result["lost"], result["doubled"]) == (8, 0, 0)
    world.close()


# -- what the network does ---------------------------------------------------------------------------------

FAULTS: dict[str, dict[str, Any]] = {
    "lost_request": {},
    "lost_answer": {},
    "late_commit": {"delay_s": 0.4},
    "half_body": {},
    "html": {},
    "html_after": {},
    "error": {"status": 500},
    "timeout": {},
}


def creates(hosts: Any, name: str) -> int:
    """Create requests so far; the host's price estimate has a path of its own."""
    return sum(
        re.search(CREATE[name], sent["path"]) is not None for sent in hosts.requests(name, method="POST")
    )


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("name", HOSTED)
def test_a_create_that_goes_wrong_on_the_way_loses_and_doubles_nothing(
    world: World, hosts: Any, counted: Callable[[str], dict[str, Any]], name: str, kind: str
) -> None:
    hosts.fault(name, kind, method="POST", path=CREATE[name], **FAULTS[kind])
    posts = creates(hosts, name)
    with contextlib.suppress(OutcomeUnknown, ProviderError):
        world.submit(name)
    assert hosts.fronts[name].faults.waiting() == [], "the fault befell nothing"
    assert creates(hosts, name) == posts + 1, "sent twice"
    world.heal()
    assert counted(name)["runs"] == 1


@pytest.mark.parametrize("name", HOSTED)
def test_a_storm_of_429_is_waited_out(
    world: World, hosts: Any, counted: Callable[[str], dict[str, Any]], name: str
) -> None:
    hosts.fault(name, "rate_limit", method="POST", path=CREATE[name], count=3, retry_after=0.2)
    run = world.submit(name)
    assert run.phase is SubmitPhase.SUBMITTED
    assert counted(name)["runs"] == 1


@pytest.mark.parametrize("name", HOSTED)
def test_a_host_that_takes_no_new_jobs_ends_the_run(world: World, hosts: Any, name: str) -> None:
    hosts.fault(name, "error", method="POST", path=CREATE[name], status=400)
    with pytest.raises(ProviderError):
        world.submit(name)
    run = world.store.run("last")
    assert (run.phase, run.status) == (SubmitPhase.REFUSED, JobStatus.FAILED)
    assert [job for job in world.provider(name).list() if job.handle.ref == run.ref] == []


@pytest.mark.parametrize("name", HOSTED)
def test_a_list_that_lags_loses_and_doubles_nothing(
    world: World, hosts: Any, counted: Callable[[str], dict[str, Any]], name: str
) -> None:
    hosts.fault(name, "list_lag", method="GET", count=0, delay_s=5.0)
    hosts.fault(name, "lost_answer", method="POST", path=CREATE[name])
    try:
        world.submit(name)
    except OutcomeUnknown:
        assert sync(world.store, world.provider).unsettled
    hosts.clear_faults()
    world.heal()
    assert counted(name)["runs"] == 1


@pytest.mark.parametrize("name", ["openai", "together"])
def test_a_request_that_a_proxy_sent_twice_is_an_alarm(world: World, hosts: Any, name: str) -> None:
    hosts.fault(name, "duplicate", method="POST", path=CREATE[name])
    run = world.submit(name)
    report = sync(world.store, world.provider)
    [alarm] = report.alarms
    jobs = {job.handle.job_id for job in world.provider(name).list() if job.handle.ref == run.ref}
    assert jobs == {run.job_id, *alarm.data["others"]}
    assert len(jobs) == 2


@pytest.mark.parametrize("name", HOSTED)
def test_an_unknown_status_is_kept_and_ends_nothing(world: World, hosts: Any, name: str) -> None:
    run = world.submit(name)
    hosts.fault(name, "unknown_status", method="GET", count=0, word="defrosting")
    sync(world.store, world.provider)
    seen = world.store.run(run.id)
    assert (seen.status, "defrosting" in str(seen.raw_status).lower()) == (JobStatus.UNKNOWN, True)
    hosts.clear_faults()
    sync(world.store, world.provider)
    assert world.store.run(run.id).status is not JobStatus.UNKNOWN


# -- a lost store ------------------------------------------------------------------------------------------


def test_a_lost_store_is_rebuilt_from_the_hosts(world: World) -> None:
    before = {run.id: run.job_id for run in (world.submit(name) for name in HOSTED)}
    world.store.close()
    for file in (world.home.parent / "store").iterdir():
        file.unlink()
    world.store = Store.open(world.url)
    report = recover(world.store, [world.provider(name) for name in HOSTED])
    assert report.failures == []
    assert set(before) <= set(report.recovered)
    assert {run_id: world.store.run(run_id).job_id for run_id in before} == before
    again = recover(world.store, [world.provider(name) for name in HOSTED])
    assert (again.recovered, set(before) <= set(again.known)) == ([], True)
    sync(world.store, world.provider)


# -- secrets -----------------------------------------------------------------------------------------------


def test_no_key_is_in_any_file_that_was_written(world: World, hosts: Any, caplog: Any) -> None:
    import logging

    caplog.set_level(logging.DEBUG)
    for name in HOSTED:
        world.submit(name)
        hosts.fault(name, "error", method="POST", path=CREATE[name], status=401)
        with pytest.raises(OrchestrateError):
            world.submit(name)
    sync(world.store, world.provider)
    world.store.close()
    keys = {value for name, value in hosts.env.items() if name.endswith("_API_KEY")}
    assert keys
    assert not any(key in caplog.text for key in keys)
    files = [file for file in world.home.parent.rglob("*") if file.is_file()]
    assert any(file.name == "runs.sqlite3" for file in files)
    for file in files:
        content = file.read_bytes()
        assert not any(key.encode() in content for key in keys), file
    world.store = Store.open(world.url)
