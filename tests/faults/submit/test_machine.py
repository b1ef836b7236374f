"""Jobs lost: 0, jobs doubled: 0. Clocks that are moved, disks that fill up, databases that restart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace
from tests.cells import diagonal
from tests.faults.soaking import workers_of
from tests.faults.submitting import BACKENDS
from tests.faults.world import CREATE, HOSTED, LATE, UNHURRIED, Counted, World

from orchestrate.errors import OutcomeUnknown, StoreError
from orchestrate.store import Clock
from orchestrate.store.store import POINTS
from orchestrate.types import SubmitPhase


class Moved(Clock):
    """A wall clock that somebody sets."""

    days = 0

    def now(self) -> Any:
        return super().now() + timedelta(days=self.days)


MOVES = {f"{days:+} {when}": (days, when) for days in (-1, 1) for when in ("before", "while it is unknown")}


@pytest.mark.parametrize(("name", "move"), diagonal(BACKENDS, MOVES))
def test_a_wall_clock_that_is_a_day_off_loses_and_doubles_nothing(
    tmp_path: Path, hosts: Any, tally: Callable[..., None], name: str, move: str
) -> None:
    days, when = MOVES[move]
    clock = Moved()
    world = World(tmp_path, hosts, clock=clock)
    world.timing = LATE
    clock.days = days if when == "before" else 0
    if name in HOSTED:
        hosts.fault(name, "late_commit", method="POST", path=CREATE[name], delay_s=0.3)
    with contextlib.suppress(OutcomeUnknown):
        world.submit(name)
    clock.days = days
    world.heal()
    assert name == "local" or hosts.fronts[name].faults.waiting() == [], "the fault befell nothing"
    assert world.store.runs.get("last").phase is SubmitPhase.SUBMITTED
    found = world.count(name)
    tally("clock a day off", name, found)
    assert (found["runs"], found["jobs"], found["lost"], found["doubled"]) == (1, 1, 0, 0)
    world.close()


# -- disks -------------------------------------------------------------------------------------------------

MOST_COMMITS = 40


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fireworks", "local"])
def test_a_disk_that_is_full_from_each_transaction_on(world: World, counted: Counted, name: str) -> None:
    """In processes of their own, in which no file can grow from the nth transaction on: before the POST that
    refuses it, after it the job is found again."""
    sent: list[bool] = []
    with workers_of(world.folder, world.url, world.env, slots=1) as [worker]:
        for nth in range(1, MOST_COMMITS):
            order = {"op": "submit", "backend": name, "rows": str(world.rows), "seed": nth}
            posts = len(world.jobs(name))
            code = worker.obey({**order, "days": 0, "full_at": nth})
            told = world.folder / "marks"
            if not told.exists() or told.read_text().count("full disk") < nth:
                assert code == 0
                break
            made = len(world.jobs(name)) - posts
            assert made in (0, 1)
            assert code in ((0, 5) if made else (3,)), "a POST of which nobody knows, or none and no refusal"
            sent.append(bool(made))
    assert not (world.folder / "crashes.log").exists(), (world.folder / "crashes.log").read_text()
    assert sent == sorted(sent), "once it was too late to refuse it was never early enough again"
    assert sent.count(False) >= 5 and sent.count(True) >= 2, sent
    world.heal()
    found = counted("disk full from each commit on", name)
    assert found["runs"] == found["jobs"]


# -- databases ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_postgres_that_is_started_again_at_each_point(
    tmp_path: Path, hosts: Any, postgres: Any, tally: Callable[..., None], point: str
) -> None:
    name = HOSTED[POINTS.index(point) % len(HOSTED)]
    world = World(tmp_path, hosts, postgres.store())

    def restarts(reached: str) -> None:
        if reached == point:
            postgres.stop("immediate")
            postgres.start()

    world.submit(name, timing=UNHURRIED, reached=restarts)
    found = world.count(name)
    assert (found["runs"], found["jobs"], found["lost"], found["doubled"]) == (1, 1, 0, 0)
    tally("Postgres restarted", name, found)
    world.close()


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_a_postgres_that_is_gone_from_each_point_on(
    tmp_path: Path, hosts: Any, postgres: Any, tally: Callable[..., None], point: str
) -> None:
    name = HOSTED[POINTS.index(point) % len(HOSTED)]
    world = World(tmp_path, hosts, postgres.store())
    timing = replace(UNHURRIED, lease_s=1.0)  # which cannot be given back

    def stops(reached: str) -> None:
        if reached == point:
            postgres.stop("immediate")

    try:
        if point == "after-submitted":
            world.submit(name, timing=timing, reached=stops)
        else:
            sent = point in ("after-fence", "after-post")
            with pytest.raises(OutcomeUnknown if sent else StoreError) as caught:
                world.submit(name, timing=timing, reached=stops)
            assert len(world.jobs(name)) == int(sent)
            assert sent or caught.value.retryable
    finally:
        postgres.start()
    world.heal()
    found = world.count(name)
    tally("Postgres gone", name, found)
    assert (found["runs"], found["jobs"], found["lost"], found["doubled"]) == (1, 1, 0, 0)
    world.close()
