"""Runs of places whose store and home are lost: found, told, counted and ended by what the host and the depot
still have."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from threading import Barrier
from typing import Any

import msgspec
import pytest
from tests.unit.places.test_contract import REF, found, on, spec, submit, work, world  # noqa: F401
from tests.unit.places.worlds import World

from orchestrate.commands.runs.spending import ExitCodeOptions, headline, notes
from orchestrate.data import TrainingData
from orchestrate.errors import HostUnavailable
from orchestrate.places.base import PRICE, Placed
from orchestrate.places.manifest import read_manifest
from orchestrate.places.storage import RunStorage
from orchestrate.providers.local.away import AwayProvider
from orchestrate.runs.spending import Spender, SpendingReport
from orchestrate.runs.submitting.repeats import SubmitRequest
from orchestrate.runs.syncing.recovery import OrphanJob, recover
from orchestrate.runs.syncing.sweep import refresh
from orchestrate.spec import JobSpec
from orchestrate.store import run_id_of
from orchestrate.store.store import Store
from orchestrate.types import JobStatus

# ruff: noqa: F811


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path}/new/runs.sqlite3") as new:
        yield new


@pytest.mark.parametrize("home", ["lost", "kept"])
def test_a_job_under_way_is_a_run_again_and_held_at_its_worst(
    home: str, world: World, found: AwayProvider, spec: JobSpec, store: Store, tmp_path: Path
) -> None:
    """With its spec and its data, so that the same submit is in the way; it is followed and ended."""
    asked = on(world, spec, max_hours=2)
    submit(found, asked)
    world.run()
    if home == "lost":
        shutil.rmtree(found.home)
    report = recover(store, [found])
    assert len(report.recovered) == 1 and not report.failures and not report.unpriced
    run = store.runs.get(report.recovered[0])
    assert (run.ref, run.model, run.job_id) == (REF, "qwen3-8b", REF) and not run.status.terminal
    assert world.minute_usd is not None
    # Two hours; the operator's own clock begins before there is a machine, and ends a quarter later.
    most = store.ledger.spending().committed_usd
    assert float(most) == pytest.approx(
        float(world.minute_usd * 60) * (2.25 if world.name == "kuberay" else 2), rel=0.01
    )
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]
    assert (run.dataset_digest, run.spec["provider_options"]) == (data.digest, asked.provider_options)
    same = SubmitRequest(asked, data.digest, found).same(store)
    assert same is not None and same.id == run.id
    assert recover(store, [found]).recovered == []
    assert found.get(run.handle).status is JobStatus.RUNNING or found.get(run.handle).model == "qwen3-8b"
    found.cancel(run.handle)
    assert RunStorage(f"file://{tmp_path}/depot").run(REF).read("control") == b"cancel"


def test_what_has_ended_is_found_though_its_host_has_forgotten_it(
    world: World, found: AwayProvider, spec: JobSpec, store: Store, tmp_path: Path
) -> None:
    """The depot has its model, and the mark of the place that it was made for: another one with the same
    depot leaves it alone. What it cost is told by its worker's clock, and is never nothing."""
    submit(found, on(world, spec))
    world.run()
    assert work(tmp_path, "worker") == 0
    world.forget()
    shutil.rmtree(found.home)
    [job] = found.recoverable()
    assert job.status is JobStatus.SUCCEEDED
    [run_id] = recover(store, [found]).recovered
    run = store.runs.get(run_id)
    assert run.status is JobStatus.SUCCEEDED and run.bill is not None and run.bill.usd > 0
    assert store.ledger.spending().committed_usd == 0
    found.download(run.handle, tmp_path / "tuned")
    assert (tmp_path / "tuned" / "adapter_model.safetensors").read_bytes() == b"the weights of the end"
    order = RunStorage(f"file://{tmp_path}/depot").run(REF)
    others = read_manifest(order)
    order.write("order.json", msgspec.structs.replace(others, place="Elsewhere, account 7").to_json())
    shutil.rmtree(found.home)
    assert list(found.recoverable()) == []


def test_a_job_of_which_the_depot_holds_nothing_can_be_ended_and_is_never_counted_as_nothing(
    world: World, found: AwayProvider, spec: JobSpec, store: Store, tmp_path: Path
) -> None:
    submit(found, on(world, spec))
    world.run()
    for lost in (found.home, tmp_path / "depot"):
        shutil.rmtree(lost)
    report = recover(store, [found])
    [run_id] = report.recovered
    run = store.runs.get(run_id)
    assert (run.status, report.unpriced, run.error and run.error.code) == (
        JobStatus.RUNNING,
        [run_id],
        "not_stored",
    )
    spent = Spender(store, [], lambda _name: found, lambda _name: found).report(offline=True)
    assert spent.uncounted == (run_id,), "what it costs is not known, and not nothing"
    assert found.get(run.handle).status is JobStatus.RUNNING
    refresh(store, found, run)
    found.cancel(run.handle)
    assert world.jobs() == [(REF, False)]


def test_a_place_that_cannot_be_asked_is_a_failure_and_hides_nothing_of_the_depot(
    world: World, found: AwayProvider, spec: JobSpec, store: Store
) -> None:
    submit(found, on(world, spec))
    shutil.rmtree(found.home)

    def down(ref: str | None = None) -> list[Placed]:
        raise HostUnavailable(found.name, "it does not answer")

    found.place.find = down  # type: ignore[method-assign]
    report = recover(store, [found])
    assert [one.message for one in report.failures] == [f"{found.name}: it does not answer"]
    assert [store.runs.get(one).ref for one in report.recovered] == [REF]


def reported(found: AwayProvider, store: Store, **more: Any) -> SpendingReport:
    spender = Spender(store, [found.name], lambda _name: found, lambda _name: found, Decimal(1))
    return spender.report(**more)


def test_a_rented_machine_that_the_store_does_not_know_bills_and_fails_what_is_to_fail(
    world: World, found: AwayProvider, spec: JobSpec, store: Store
) -> None:
    """At its price by the place's own list; once its run is here again it is among what is committed."""
    submit(found, on(world, spec))
    world.run()
    shutil.rmtree(found.home)
    report = reported(found, store)
    [one] = report.standing
    assert one.item.usd_per_hour is not None and world.minute_usd is not None and one.foreign
    if world.own:  # nobody sends a bill for it
        assert (report.billing, report.idle, report.uncounted) == ([], [], ())
        return
    assert float(one.item.usd_per_hour) == pytest.approx(float(world.minute_usd * 60), rel=0.001)
    assert report.usd_per_hour == one.item.usd_per_hour and report.idle == [one]
    assert (report.uncounted, report.unpriced) == ((one.item.id,), ())
    assert (
        ExitCodeOptions(fail_if_idle=True).code(report) == 1
        and ExitCodeOptions(fail_if_over=True).code(report) == 4
    )
    [way] = [str(line) for line in notes(report) if "To recover the run" in str(line)]
    assert f"orchestrate recover {run_id_of(REF)} -p {found.name}. " in way, "without a question"
    left_out = reported(found, store, ignore=[REF])
    assert {ExitCodeOptions(fail_if_idle=True, fail_if_over=True).code(left_out)} == {0}
    recover(store, [found])
    known = reported(found, store)
    assert (known.billing, known.idle, known.uncounted, known.usd_per_hour) == ([], [], (), 0)


def test_a_machine_whose_price_nobody_knows_is_not_counted_as_nothing(
    world: World, found: AwayProvider, spec: JobSpec, store: Store
) -> None:
    submit(found, on(world, spec))
    world.run()
    found.place.hourly = lambda found: {}  # type: ignore[method-assign]
    report = reported(found, store)
    [one] = report.standing
    if world.own:
        return
    assert report.usd_per_hour is None and report.unpriced == (one.item.id,) and report.at_least
    assert json.loads(report.to_json())["usd_per_hour"] is None
    assert "unknown price" in headline(report)
    assert (
        ExitCodeOptions(fail_if_over=True).code(report) == 4
        and ExitCodeOptions(fail_if_idle=True).code(report) == 1
    )


def test_a_damaged_run_of_the_depot_hides_no_other_and_two_at_once_take_each_run_once(
    world: World, found: AwayProvider, spec: JobSpec, store: Store, tmp_path: Path
) -> None:
    refs = [f"orc-00000000000{n}" for n in range(5)]
    for ref in refs:
        submit(found, on(world, spec), ref)
    shutil.rmtree(found.home)
    depot = RunStorage(f"file://{tmp_path}/depot")
    for ref, name in zip(refs, ("order.json", "status.json", PRICE, "pulse.json"), strict=False):
        depot.run(ref).write(name, b"{torn")
    both = Barrier(2)

    def choose(offered: list[OrphanJob]) -> set[str]:
        both.wait(120)  # neither takes a run before both have looked
        return {one.run_id for one in offered}

    with ThreadPoolExecutor(2) as threads:
        reports = list(threads.map(lambda _: recover(store, [found], choose), range(2)))
    taken = [run_id for report in reports for run_id in report.recovered]
    assert sorted(taken) == sorted(run_id_of(ref) for ref in refs)
    later = recover(store, [found], lambda offered: {one.run_id for one in offered})
    assert not any(report.failures for report in [*reports, later]) and not later.recovered
    assert all(store.runs.get(run_id_of(ref)).dataset_digest for ref in refs[1:])
