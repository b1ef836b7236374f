"""Two processes at one paused run: each would start a machine, and both would bill."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.unit.places.test_more_limits import at_its_limit, opened, submitted
from tests.unit.places.worlds import WORLDS, World

from orchestrate import Orchestrator
from orchestrate.providers.local.away import AwayProvider
from orchestrate.runs.submitting.settler import Settler
from orchestrate.types import JobStatus

pytestmark = pytest.mark.slow


@pytest.fixture(params=["ray", "hf-jobs"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A cluster of one's own, and machines that are rented: who starts one is decided before the place is
    asked."""
    (tmp_path / "there").mkdir()
    with WORLDS[request.param](tmp_path / "there") as found:
        yield found


def meeting(both: list[Orchestrator], world: World, patch: pytest.MonkeyPatch) -> None:
    """Both have looked at the host, and found no worker, before either starts one; where one waits for the
    other, that one is not waited for."""
    gate = threading.Barrier(2)
    for ft in both:
        found = ft.provider(world.kind)
        assert isinstance(found, AwayProvider)
        submit = found.place.submit

        def late(*given: Any, submit: Any = submit) -> None:
            with suppress(threading.BrokenBarrierError):
                gate.wait(2)
            submit(*given)

        patch.setattr(found.place, "submit", late)


@pytest.mark.parametrize("where", ["sqlite", "postgres"])
def test_two_that_resume_at_once_start_one_machine(
    where: str, world: World, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a store on a server also where each has a home of its own."""
    env, folders = dict[str, Any](), [tmp_path, tmp_path]
    if where == "postgres":
        env = {"ORCHESTRATE_STORE": request.getfixturevalue("postgres").store()}
        folders[1] = tmp_path / "other"
        folders[1].mkdir()
    with ExitStack() as stack:
        first = stack.enter_context(opened(world, tmp_path, **env))
        handle = submitted(first, world, tmp_path, max_hours=2)
        at_its_limit(first, world, handle, 60)
        (folders[1] / "orchestrate.toml").write_text((tmp_path / "orchestrate.toml").read_text())
        both = [first, stack.enter_context(opened(world, folders[1], **env))]
        meeting(both, world, monkeypatch)
        with ThreadPoolExecutor(2) as threads:
            done = list(threads.map(lambda ft: ft.run(handle.id).resume(), both))
        assert [run.status for run in done] == [JobStatus.QUEUED] * 2
        assert [live for _, live in world.jobs()] == [False, True]
        assert first.run(handle.id).resume().status is JobStatus.QUEUED and len(world.jobs()) == 2


def test_two_that_watch_start_a_dead_worker_again_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(world, tmp_path) as first, opened(world, tmp_path) as second:
        handle = submitted(first, world, tmp_path, max_hours=2)
        world.run()
        world.end("the machine died")
        assert handle.refresh().raw_status == "interrupted"
        meeting([first, second], world, monkeypatch)

        def restart(ft: Orchestrator) -> bool:
            return Settler(ft.store, ft.provider(world.kind)).restart(handle.record)

        with ThreadPoolExecutor(2) as threads:
            assert sorted(threads.map(restart, [first, second])) == [False, True]
        assert [live for _, live in world.jobs()] == [False, True]
