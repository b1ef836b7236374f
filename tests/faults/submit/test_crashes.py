"""Jobs lost: 0, jobs doubled: 0. Processes killed and stopped, over the official SDKs and the sandbox."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests import command
from tests.faults.submitting import BACKENDS
from tests.faults.world import CREATE, HOSTED, Counted, World
from tests.logged import Logged

from orchestrate.runs.syncing.recovery import recover
from orchestrate.store.store import POINTS, Store
from orchestrate.types import SubmitPhase


@pytest.mark.parametrize("name", BACKENDS)
def test_a_submit_passes_every_point_once_and_in_order(world: World, counted: Counted, name: str) -> None:
    reached: list[str] = []
    world.submit(name, reached=reached.append)
    assert tuple(reached) == POINTS
    assert counted("nothing goes wrong", name)["jobs"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_process_killed_at_each_point_loses_and_doubles_nothing(
    world: World, counted: Counted, name: str, point: str
) -> None:
    child = world.child(name, point)
    assert command.ended(child, 240) == -signal.SIGKILL
    reached = world.marks.read_text().splitlines()
    assert reached == list(POINTS[: POINTS.index(point) + 1]), "the hook was not hit"
    world.heal()
    found = counted(f"SIGKILL {point}", name)
    assert (found["runs"], found["jobs"]) == (1, 1)
    run = world.store.runs.get("last")
    assert (run.provider, run.phase) == (name, SubmitPhase.SUBMITTED)


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTED)
def test_a_process_killed_while_the_host_answers_loses_and_doubles_nothing(
    world: World, hosts: Any, counted: Counted, name: str
) -> None:
    hosts.fault(name, "slow", method="POST", path=CREATE[name], delay_s=20.0)
    before = world.creates(name)
    child = world.child(name)
    deadline = time.monotonic() + 240
    while hosts.fronts[name].faults.waiting():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    child.kill()
    assert command.ended(child, 240) == -signal.SIGKILL
    assert world.creates(name) == before + 1
    world.heal()
    assert counted("SIGKILL during the POST", name)["runs"] == 1


def stopped(child: command.Process) -> bool:
    return Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


@pytest.mark.slow
@pytest.mark.parametrize("point", ["after-submitting", "after-fence"])
@pytest.mark.parametrize("name", BACKENDS)
def test_a_process_that_slept_past_its_lease_sends_nothing_when_it_wakes(
    world: World, counted: Counted, name: str, point: str
) -> None:
    child = world.child(name, point, "stop")
    try:
        deadline = time.monotonic() + 240
        while not stopped(child):
            assert time.monotonic() < deadline and child.is_alive()
            time.sleep(0.01)
        time.sleep(2.5)  # past its lease and its send limit
        world.heal()
        assert world.store.runs.get("last").phase is SubmitPhase.SUBMITTED
    finally:
        os.kill(child.pid, signal.SIGCONT)
    assert command.ended(child, 240) != 0, "it must notice that it was overtaken"
    found = counted("SIGSTOP past the lease", name)
    assert (found["runs"], found["jobs"]) == (1, 1)


@pytest.mark.slow
def test_eight_processes_at_once_some_of_them_killed(
    tmp_path: Path, hosts: Any, store_url: str, tally: Callable[..., None]
) -> None:
    world = World(tmp_path, hosts, store_url)
    points = ["none", "after-uploaded", "after-submitting", "after-post"] * 2
    names = ["together", "openai", "together", "fireworks", "together", "openai", "together", "openai"]
    children = [world.child(name, point) for name, point in zip(names, points, strict=True)]
    codes = [command.ended(child, 300) for child in children]
    assert codes == [0 if point == "none" else -signal.SIGKILL for point in points]
    world.heal()
    for name in HOSTED:
        found = world.count(name)
        tally("eight processes at once", name, found)
        assert (found["runs"], found["jobs"]) == (names.count(name), names.count(name))
        assert (found["lost"], found["doubled"]) == (0, 0)
    world.close()


def test_a_lost_store_is_rebuilt_from_the_hosts(world: World, counted: Counted) -> None:
    before = {run.id: run.job_id for run in (world.submit(name) for name in HOSTED)}
    world.store.close()
    for file in (world.folder / "store").iterdir():
        file.unlink()
    world.store = Store.open(world.url)
    report = recover(world.store, [world.provider(name) for name in HOSTED])
    assert report.failures == []
    assert set(before) <= set(report.recovered)
    assert {run_id: world.store.runs.get(run_id).job_id for run_id in before} == before
    again = recover(world.store, [world.provider(name) for name in HOSTED])
    assert (again.recovered, set(before) <= set(again.known)) == ([], True)
    world.sync()


def test_no_key_is_in_any_file_that_was_written(world: World, hosts: Any, logged: Logged) -> None:
    from orchestrate.errors import OrchestrateError

    for name in HOSTED:
        world.submit(name)
        hosts.fault(name, "error", method="POST", path=CREATE[name], status=401)
        with pytest.raises(OrchestrateError):
            world.submit(name)
    world.sync()
    world.store.close()
    keys = {value for name, value in hosts.env.items() if name.endswith("_API_KEY")}
    assert keys
    assert not any(key in logged.text for key in keys)
    files = [file for file in world.folder.rglob("*") if file.is_file()]
    assert any(file.name == "runs.sqlite3" for file in files)
    for file in files:
        content = file.read_bytes()
        assert not any(key.encode() in content for key in keys), file
    world.store = Store.open(world.url)
