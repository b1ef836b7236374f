"""A run that came to its limit gets more: what it takes, who refuses it, and what a kill leaves."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import leases
from tests.unit.places.worlds import WORLDS, World, ray_cluster
from typer.testing import CliRunner, Result

from orchestrate import JobSpec, Orchestrator
from orchestrate.api.run import RunHandle
from orchestrate.cli import app
from orchestrate.errors import (
    InvalidRequest,
    OrchestrateError,
    OutcomeUnknown,
    OverBudget,
    ProjectNotTrusted,
    UsageError,
)
from orchestrate.local.run import JobState, now
from orchestrate.places.lease import RunLease
from orchestrate.places.manifest import read_manifest
from orchestrate.places.remote import TrainingAttempt
from orchestrate.places.storage import StoredRun
from orchestrate.providers.local.away import AwayProvider
from orchestrate.runs.sweep import space, sweeps
from orchestrate.runs.sweep.sweeps import SweepOrder
from orchestrate.runs.sweep.trials import Searching
from orchestrate.settings import config
from orchestrate.types import Allowance, JobError, JobStatus, TrialState

ENGINE = str(Path(__file__).parent / "engine.py")
OVER = JobError(code="limit", message="the worker stopped itself: its limit")


@contextmanager
def opened(world: World, folder: Path, *, trusted: bool = True, **env: str) -> Iterator[Orchestrator]:
    """A configuration that is named is trusted; else its trust is gone since it was read."""
    chosen = folder / "orchestrate.toml"
    if not chosen.is_file():
        world.provider(folder).place.close()
    settings = config.load(env={**world.env, **env}, home=folder / "home", config_file=chosen)
    with Orchestrator(msgspec.structs.replace(settings, config_named=trusted)) as ft:
        found = ft.provider(world.kind)
        assert isinstance(found, AwayProvider)
        found.place = world.place(found)
        yield ft
        found.place.close()


def spec_of(world: World, folder: Path, **options: Any) -> JobSpec:
    for name in ("red", "blue"):
        messages = [{"role": "user", "content": f"Say {name}."}, {"role": "assistant", "content": name}]
        (folder / f"{name}.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 24)
    values = {"model": "qwen3-8b", "train": str(folder / "red.jsonl"), "epochs": 1}
    given = {world.kind: {"gpu": world.gpu, **options}}
    return JobSpec.parse({**values, "provider_options": given})


def submitted(ft: Orchestrator, world: World, folder: Path, **options: Any) -> RunHandle:
    return ft.submit(spec_of(world, folder, **options), provider=world.kind)


def depot(ft: Orchestrator, handle: RunHandle) -> StoredRun:
    found = ft.provider(handle.record.provider)
    assert isinstance(found, AwayProvider)
    return found.place.run_storage.run(handle.record.ref)


def at_its_limit(ft: Orchestrator, world: World, handle: RunHandle, seconds: float) -> None:
    """As a worker leaves it that has worked for so long."""
    world.run()
    stored = depot(ft, handle)
    RunLease(stored).used(seconds)
    stored.write("status.json", JobState(status="paused", error=OVER, updated_at=now()).to_json())
    world.end("it has ended")
    assert handle.refresh().status is JobStatus.PAUSED


def work(ft: Orchestrator, handle: RunHandle, folder: Path, *, hold_at: int = 0) -> int:
    folder.mkdir()
    command = [sys.executable, ENGINE, "0", str(hold_at)]
    found = ft.provider(handle.record.provider)
    assert isinstance(found, AwayProvider)
    ref = handle.record.ref
    errand = TrainingAttempt(
        found.place.run_storage, ref, folder, engine=command, report_s=0.05, end=lambda code: None
    )
    return errand.work()


# -- by hand -----------------------------------------------------------------------------------------------


def test_the_least_that_makes_sense_by_hand() -> None:
    """Two hours at $3 are $6. With an hour that is left, five minutes of a start and ten before the end it
    comes to 3.25 hours, $9.75; with nothing known, fifteen minutes."""
    used = Allowance(max_hours=2, usd_per_hour=Decimal(3), used_s=7200)
    assert (used.used_usd, used.most_usd, used.used_up) == (6, 6, True)
    assert used.least() == "--max-hours 2.3"
    assert msgspec.structs.replace(used, remaining_s=3600.0).least() == "--max-hours 3.3"
    both = msgspec.structs.replace(used, max_usd=Decimal(6), remaining_s=3600.0)
    assert both.least() == "--max-hours 3.3 --max-cost 9.75"
    money = msgspec.structs.replace(both, max_hours=24.0)
    assert (money.least(), money.most_usd, money.used_up) == ("--max-cost 9.75", 6, True)
    above = msgspec.structs.replace(money, max_usd=Decimal("6.01"))
    assert not above.used_up and above.least() == "--max-cost 9.75"
    free = msgspec.structs.replace(money, usd_per_hour=None)
    assert (free.used_usd, free.used_up, free.least()) == (None, False, "")


# -- at each place -----------------------------------------------------------------------------------------


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[World]:
    (tmp_path / "there").mkdir()
    with WORLDS[request.param](tmp_path / "there") as found:
        yield found


@pytest.mark.slow
def test_it_goes_on_within_the_new_limit_and_counts_what_was_used(world: World, tmp_path: Path) -> None:
    """Two hours, then two and some seconds, then three: one machine each, and what was used stays used."""
    assert world.minute_usd is not None
    hour = world.minute_usd * 60
    with opened(world, tmp_path) as ft:
        handle = submitted(ft, world, tmp_path, max_hours=2)
        price = read_manifest(depot(ft, handle)).limits.usd_per_hour
        assert price is not None and float(price) == pytest.approx(float(hour), rel=1e-4)
        at_its_limit(ft, world, handle, 7200)
        least = (price * 81 / 36).quantize(Decimal("0.01"), ROUND_CEILING)
        with pytest.raises(InvalidRequest, match="has used 2h 00m of at most 2h 00m") as refused:
            handle.resume()
        assert (
            refused.value.fix == f"orchestrate resume {handle.record.ref} --max-hours 2.3 --max-cost {least}"
        )
        with pytest.raises(UsageError, match="has already used 2h 00m") as used:
            handle.resume(max_cost_usd=2 * price)
        assert f"--max-hours 2.3 --max-cost {least}" in str(used.value.fix)
        with pytest.raises(UsageError, match="above 0"):
            handle.resume(max_hours=0)
        assert len(world.jobs()) == 1 and ft.store.runs.get(handle.id).max_hours is None

        second = Decimal(7212) / 3600
        assert handle.resume(max_hours=second).status is not JobStatus.PAUSED
        assert [live for _, live in world.jobs()] == [False, True]
        world.run()
        assert work(ft, handle, tmp_path / "second", hold_at=3) == 0
        world.end("it has ended")
        assert handle.refresh().status is JobStatus.PAUSED
        assert (
            handle.record.error is not None and "of billed time (limit: 2h 00m" in handle.record.error.message
        )
        job = handle.provider.get(handle.record.handle)
        assert job.worked_seconds is not None and 7207 <= job.worked_seconds < 7200 + 600

        handle.resume(max_cost_usd=3 * price, max_hours=4)
        order = read_manifest(depot(ft, handle))
        assert order.limits.seconds == pytest.approx(3 * 3600)
        record = ft.store.runs.get(handle.id)
        assert (record.max_cost_usd, record.max_hours, record.allowed_usd) == (3 * price, 4.0, 3 * price)
        world.run()
        assert work(ft, handle, tmp_path / "third") == 0
        world.end("it has ended")
        assert handle.refresh().status is JobStatus.SUCCEEDED and handle.record.step == 10
        told = [event.message for event in handle.events()]
        assert "attempt 2 begins after step 2" in told
        assert len([line for line in told if line.startswith("the total limits changed from")]) == 2
        assert len(world.jobs()) == 3
        with pytest.raises(UsageError, match="nothing to resume"):
            handle.resume(max_hours=100)


def test_a_lost_answer_to_its_start_makes_no_second_machine(world: World, tmp_path: Path) -> None:
    with opened(world, tmp_path) as ft:
        handle = submitted(ft, world, tmp_path, max_hours=2)
        at_its_limit(ft, world, handle, 7200)
        world.fault("lost")
        if world.settles:
            handle.resume(max_hours=3)
        else:
            with pytest.raises(OutcomeUnknown):
                handle.resume(max_hours=3)
        for _ in range(2):
            assert handle.resume(max_hours=3).max_hours == 3
        assert [live for _, live in world.jobs()] == [False, True]
        assert len([event for event in handle.events() if event.type == "limits"]) == 1
        with pytest.raises(UsageError, match="a running worker keeps the limits it was started with"):
            handle.resume(max_hours=4)


# -- budgets, sweeps, queues -------------------------------------------------------------------------------


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[World]:
    """By hand: its machine costs $6 per hour."""
    (tmp_path / "there").mkdir()
    with ray_cluster(tmp_path / "there") as found:
        yield found


def test_a_budget_has_to_hold_what_it_may_cost_with_the_new_limit(ray: World, tmp_path: Path) -> None:
    """Of $100, an hour more than the two that it had is $18 in all, and $82 are left for others."""
    with opened(ray, tmp_path, ORCHESTRATE_BUDGET_USD="100") as ft:
        handle = submitted(ft, ray, tmp_path, max_hours=2)
        quoted = ft.store.ledger.spending().total_usd
        assert quoted == 12, "the hours that it may have"
        at_its_limit(ft, ray, handle, 7200)
        with pytest.raises(OverBudget, match=r"\$100\.20\) exceeds the remaining budget \(\$100") as over:
            handle.resume(max_hours=16.7)
        assert over.value.exit_code == 6 and ft.store.ledger.spending().total_usd == quoted
        assert ft.store.runs.get(handle.id).max_hours is None and len(ray.jobs()) == 1
        handle.resume(max_hours=3)
        assert ft.store.ledger.spending().committed_usd == 18
        at_its_limit(ft, ray, handle, 0)
        handle.resume(max_hours=2.5)  # lower, and above what was used
        assert ft.store.ledger.spending().committed_usd == 15


def test_a_project_that_nobody_trusts_gives_nothing_more(ray: World, tmp_path: Path) -> None:
    with opened(ray, tmp_path) as ft:
        handle = submitted(ft, ray, tmp_path, max_hours=2)
        at_its_limit(ft, ray, handle, 7200)
    with opened(ray, tmp_path, trusted=False) as ft, pytest.raises(ProjectNotTrusted):
        ft.run(handle.id).resume(max_hours=3)
    assert len(ray.jobs()) == 1


def test_a_trial_gets_no_more_than_its_sweep_has_and_is_scored_again(ray: World, tmp_path: Path) -> None:
    """Of $20 two trials have $10 each, 6,000 seconds at $6. With $24 for the whole one may have $14."""
    with opened(ray, tmp_path) as ft:
        spec = spec_of(ray, tmp_path).model_copy(update={"validation": str(tmp_path / "blue.jsonl")})
        rates = space.parse(["learning_rate=1e-4,2e-4"], [])
        order = SweepOrder(space=rates, max_parallel=2, max_cost_usd=Decimal(20))
        carried = Searching(ft, sweeps.begin(ft, spec, ["ray"], order))
        carried.turn()
        runs = [ft.run(trial.run_id or "") for trial in carried.trials]
        assert [run.record.max_cost_usd for run in runs] == [10, 10]
        at_its_limit(ft, ray, runs[1], 6000)
        carried.turn()
        assert [trial.state for trial in carried.trials] == [TrialState.OPEN, TrialState.FAILED]
        with pytest.raises(OverBudget, match=r"\$14\.00\) exceeds the sweep's remaining limit \(\$10\.00"):
            runs[1].resume(max_cost_usd=14)
        more = dataclasses.replace(order, max_cost_usd=Decimal(24))
        carried = Searching(ft, sweeps.begin(ft, spec, ["ray"], more))
        runs[1].resume(max_cost_usd=14)
        carried.turn()
        assert [trial.state for trial in carried.trials] == [TrialState.OPEN, TrialState.OPEN]
        assert carried.spent_usd() == 24 and len(ray.jobs()) == 3


# -- typed -------------------------------------------------------------------------------------------------


def typed(folder: Path, *words: str, **env: str) -> Result:
    return CliRunner().invoke(app, words, env=environment(folder) | env)


def refused(folder: Path, *words: str, **env: str) -> tuple[int, str]:
    """As the command ends, and what it says."""
    error = typed(folder, *words, **env).exception
    assert isinstance(error, OrchestrateError), error
    return error.exit_code, f"{error.message}\n{error.fix}"


def environment(folder: Path) -> dict[str, str]:
    home, chosen = str(folder / "home"), str(folder / "orchestrate.toml")
    return {"ORCHESTRATE_HOME": home, "ORCHESTRATE_CONFIG": chosen, "COLUMNS": "200"}


def test_the_command_says_what_was_used_and_what_it_takes(ray: World, tmp_path: Path) -> None:
    with opened(ray, tmp_path) as ft:
        handle = submitted(ft, ray, tmp_path, max_hours=2)
        at_its_limit(ft, ray, handle, 7200)
    run = handle.id
    code, told = refused(tmp_path, "resume", run)
    assert code == 4 and f"orchestrate resume {handle.record.ref} --max-hours 2.3" in told
    assert refused(tmp_path, "resume", run, "--max-cost", "many")[0] == 2
    code, told = refused(tmp_path, "resume", run, "--max-hours", "1.9", "--max-cost", "11.99")
    assert code == 2 and "has already used 2h 00m ($12.00), so a total of 1.9 hours and $11.99" in told
    assert f"orchestrate resume {run} --max-hours 2.3 --max-cost 13.50, or with a higher limit" in told
    other = tmp_path / "other"
    other.mkdir()
    (other / "orchestrate.toml").write_text(
        (tmp_path / "orchestrate.toml").read_text().replace("127.0.0.1", "localhost")
    )
    elsewhere = {"ORCHESTRATE_CONFIG": str(other / "orchestrate.toml")}
    assert refused(tmp_path, "resume", run, "--max-hours", "3", **elsewhere)[0] == 3
    assert len(ray.jobs()) == 1
    done = typed(tmp_path, "resume", run, "--max-hours", "3", "--max-cost", "20")
    assert done.exit_code == 0, done.output
    assert len(ray.jobs()) == 2
    shown = typed(tmp_path, "show", run).output
    assert "$20.00 and 3 hours" in shown
    told = typed(tmp_path, "events", run).output
    assert "from 2 hours and $12.00 to 3 hours and $20.00. Used so far: 2h 00m ($12.00)" in told


@pytest.mark.slow
@pytest.mark.parametrize("point", ["before the order", "after the order", "after the start"])
def test_killed_in_between_the_same_again_goes_on(point: str, ray: World, tmp_path: Path) -> None:
    """kill -9, brought about from within: between store and order, order and start, start and answer."""
    with opened(ray, tmp_path) as ft:
        handle = submitted(ft, ray, tmp_path, max_hours=2)
        at_its_limit(ft, ray, handle, 7200)
    words = ["resume", handle.id, "--max-hours", "3"]
    dying = [sys.executable, "-c", DYING, point, *words]
    ended = subprocess.run(dying, env=os.environ | environment(tmp_path), capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    leases.expire(config.sqlite_url(tmp_path / "home" / "runs.sqlite3"))
    started = point == "after the start"
    assert len(ray.jobs()) == 1 + started
    again = typed(tmp_path, *words)
    assert again.exit_code == 0, again.output
    assert [live for _, live in ray.jobs()] == [False, True]
    with opened(ray, tmp_path) as ft:
        assert read_manifest(depot(ft, handle)).limits.seconds == 3 * 3600
        record = ft.store.runs.get(handle.id)
        assert (record.max_hours, record.allowed_usd) == (3, 18)
        assert len([event for event in ft.store.history.events(handle.id) if event.type == "limits"]) == 1


DYING = """
import os, signal, sys
from orchestrate.places import manifest
from orchestrate.places.kinds.ray import RayJobs

def dying(real, first):
    def die(*given):
        first or real(*given)
        os.kill(os.getpid(), signal.SIGKILL)
    return die

point = sys.argv.pop(1)
if point == "after the start":
    RayJobs.submit = dying(RayJobs.submit, False)
else:
    manifest.allow = dying(manifest.allow, point == "before the order")
from orchestrate.cli import main
main()
"""
