"""The bill of a rented machine ends at what was agreed to, told before, held in the budget and set at the
host; the run is paused then, and may be given more."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path

import pytest
from tests.unit.places.depots import keep_checkpoint
from tests.unit.places.test_more_limits import depot, opened, spec_of, typed
from tests.unit.places.worlds import WORLDS, World, ray_cluster

from orchestrate import Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.errors import InvalidRequest, OverBudget, UsageError
from orchestrate.places.lease import RunLease
from orchestrate.places.manifest import read_manifest
from orchestrate.runs import queue as queueing
from orchestrate.runs.sweep import space, sweeps
from orchestrate.runs.sweep.sweeps import SweepOrder
from orchestrate.runs.sweep.trials import Searching
from orchestrate.runs.syncing.sweep import refresh
from orchestrate.text import limit
from orchestrate.types import Bill, JobStatus


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "there").mkdir()
    with WORLDS[request.param](tmp_path / "there") as found:
        yield found


def ends(ft: Orchestrator, handle: RunHandle) -> Decimal:
    """At what its worker and its host end it; the budget holds as much."""
    limits = read_manifest(depot(ft, handle)).limits
    assert limits.seconds is not None and limits.usd_per_hour is not None
    assert 0 < (limits.working_s() or 0) < limits.seconds
    assert ft.store.ledger.spending().committed_usd == handle.record.allowed_usd
    return Decimal(str(limits.seconds)) * limits.usd_per_hour / 3600


def test_without_a_limit_it_ends_at_the_high_end_of_its_quote(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path, ORCHESTRATE_BUDGET_USD="2") as ft:
        spec = spec_of(world, tmp_path)
        high = ft.prepare(spec, world.kind).quotes[0].high_usd
        handle = ft.submit(spec, provider=world.kind)
        assert handle.record.max_cost_usd is None and handle.record.allowed_usd == high < 2
        assert float(ends(ft, handle)) == pytest.approx(float(high), abs=1e-6)
        assert "max_cost_usd" not in handle.record.spec, "a rerun is quoted anew"


def test_it_is_told_before_the_submit_and_after_it(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with ray_cluster(tmp_path / "there") as ray, opened(ray, tmp_path) as ft:
        spec = spec_of(ray, tmp_path)
        high = limit(ft.prepare(spec, "ray").quotes[0].high_usd)
        (tmp_path / "spec.json").write_text(json.dumps(spec.asked()))
        unagreed = typed(tmp_path, "submit", str(tmp_path / "spec.json"), "-p", "ray")
        assert isinstance(unagreed.exception, UsageError) and not ray.jobs()
        assert f"the machine stops at {high}" in " ".join(unagreed.output.split())
        assert typed(tmp_path, "submit", str(tmp_path / "spec.json"), "-p", "ray", "--yes").exit_code == 0
        [run] = ft.store.runs.matching()
        assert f"the run stops at {high} in total" in typed(tmp_path, "show", run.id).output


def test_what_its_user_allows_is_held_too_and_the_budget_bounds_it(world: World, tmp_path: Path) -> None:
    assert world.minute_usd is not None
    hour = world.minute_usd * 60
    with opened(world, tmp_path, ORCHESTRATE_BUDGET_USD=str(hour * 3)) as ft:
        long = ft.submit(spec_of(world, tmp_path, max_hours=2), provider=world.kind)
        assert float(ends(ft, long)) == pytest.approx(float(hour * 2), rel=1e-3)
        more = spec_of(world, tmp_path).model_copy(update={"max_cost_usd": Decimal(1000), "seed": 2})
        second = ft.submit(more, provider=world.kind)
        left = hour * 3 - (long.record.allowed_usd or 0)
        assert second.record.allowed_usd == left and second.record.max_cost_usd == 1000
        assert read_manifest(depot(ft, second)).limits.max_usd == left
        with pytest.raises(OverBudget):
            ft.submit(spec_of(world, tmp_path).model_copy(update={"seed": 3}), provider=world.kind)
        assert len(world.jobs()) == 2


def test_at_its_end_it_is_paused_with_its_checkpoint_and_may_be_given_more(
    world: World, tmp_path: Path
) -> None:
    """Its host ended it, as the worker hung: nobody starts another, until its user says so."""
    assert world.minute_usd is not None
    with opened(world, tmp_path) as ft:
        handle = ft.submit(spec_of(world, tmp_path, max_hours=1 / 60), provider=world.kind)
        world.run()
        stored = depot(ft, handle)
        RunLease(stored).used(55)
        keep_checkpoint(stored, tmp_path, 4)
        world.end("its time was over")
        for _ in range(2):
            found = handle.refresh()
            assert found.status is JobStatus.PAUSED and found.error is not None
            assert found.error.code == "limit" and not handle.provider.recover(found.handle)
        with pytest.raises(InvalidRequest) as refused:
            handle.resume()
        assert "--max-hours" in str(refused.value.fix) and len(world.jobs()) == 1
        handle.resume(max_cost_usd=world.minute_usd * 60, max_hours=1)
        assert [live for _, live in world.jobs()] == [False, True]
        assert [one.step for one in handle.checkpoints()] == [4]


def test_over_its_end_it_is_paused_by_whoever_watches(world: World, tmp_path: Path) -> None:
    """As on a cluster whose jobs have no time limit, with a worker that hangs."""
    with opened(world, tmp_path) as ft:
        handle = ft.submit(spec_of(world, tmp_path), provider=world.kind)
        world.run()
        allowed = handle.record.allowed_usd
        assert allowed is not None
        for over, alive in ((Decimal(0), True), (Decimal("0.01"), False)):
            bill = Bill(usd=allowed + over, origin="its host", final=False)
            refresh(ft.store, handle.provider, handle.record, bill=lambda *_, bill=bill: bill)
            assert [live for _, live in world.jobs()] == [alive]
        assert handle.refresh().status is JobStatus.PAUSED and not handle.provider.recover(
            handle.record.handle
        )
        assert len([event for event in handle.events() if event.type == "over_cap"]) == 1
        assert len(world.jobs()) == 1
        handle.resume(max_cost_usd=allowed + 1)
        assert [live for _, live in world.jobs()] == [False, True]


def queued(ft: Orchestrator, world: World, folder: Path) -> None:
    queueing.add(ft, ft.prepare(spec_of(world, folder), world.kind), world.kind)
    queueing.QueueServer(ft).turn()


def swept(ft: Orchestrator, world: World, folder: Path) -> None:
    spec = spec_of(world, folder).model_copy(update={"validation": str(folder / "blue.jsonl")})
    order = SweepOrder(space=space.parse(["learning_rate=1e-4"], []), max_parallel=1)
    Searching(ft, sweeps.begin(ft, spec, [world.kind], order)).turn()


def submitted_from_the_page(ft: Orchestrator, world: World, folder: Path) -> None:
    spec = spec_of(world, folder)
    high = ft.prepare(spec, world.kind).quotes[0].high_usd
    ft.submit(spec, world.kind, max_cost_usd=high)


@pytest.mark.parametrize("way", [queued, swept, submitted_from_the_page], ids=lambda way: way.__name__)
def test_by_every_way(way: Callable[[Orchestrator, World, Path], None], world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path, ORCHESTRATE_BUDGET_USD="2") as ft:
        way(ft, world, tmp_path)
        [run] = ft.store.runs.matching()
        assert run.quote is not None and run.allowed_usd == run.quote.high_usd
        assert float(ends(ft, ft.run(run.id))) == pytest.approx(float(run.quote.high_usd), abs=1e-6)
