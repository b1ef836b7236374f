"""The job of a run with several workers: what it asks of the cluster, when it ends, and who has the run. Its
workers are stand-ins that report to the depot; `test_ray_workers` has real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from tests.sending import create, upload
from tests.unit.places import worlds
from tests.unit.places.raycluster import provider, spec
from tests.unit.places.rayhead import Head
from tests.unit.places.test_remote import job_at

from orchestrate.data import TrainingData
from orchestrate.local.run.rundir import State, now
from orchestrate.places import claim
from orchestrate.places.base import Limits
from orchestrate.places.claim import Claim, Signs, Superseded
from orchestrate.places.depot import Depot, StoredRun
from orchestrate.places.mirror import Pulse
from orchestrate.places.order import environment, place_order, read_order
from orchestrate.places.remote import SILENT
from orchestrate.spec import JobSpec

pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
from orchestrate.places.kinds._ray.driver import Driver

Fit = Callable[[Claim], object]


@pytest.fixture
def stored(tmp_path: Path) -> StoredRun:
    return placed(tmp_path, Limits())


def placed(folder: Path, limits: Limits) -> StoredRun:
    depot = Depot(f"file://{folder}/depot")
    place_order(depot, job_at(folder), limits)
    return depot.run("orc-a")


def driver(stored: StoredRun, fit: Fit, **more: Any) -> Driver:
    return Driver(stored, fit, report_s=0.05, end=lambda code: None, **more)


def report(stored: StoredRun, first: Claim, status: str) -> None:
    """What the first worker leaves when it has ended."""
    stored.write("status.json", State(status=status, updated_at=now()).to_json())
    pulse = Pulse(attempt=first.number, number=1, pid=1, started="1", machine="node", ended=True)
    stored.write("pulse.json", pulse.to_json())


def hang(_: Claim) -> None:
    threading.Event().wait()


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("paused", 0), ("running", 1)])
def test_its_code_says_whether_the_run_is_settled(stored: StoredRun, status: str, code: int) -> None:
    away = driver(stored, lambda mine: report(stored, Claim(stored, mine.token), status))
    assert away.work() == code


def test_what_an_earlier_job_reported_settles_nothing(stored: StoredRun) -> None:
    report(stored, Claim(stored), "paused")
    assert driver(stored, lambda mine: None).work() == 1


def test_workers_that_do_not_end_after_the_run_has_are_left(stored: StoredRun) -> None:
    def fit(mine: Claim) -> None:
        report(stored, Claim(stored, mine.token), "succeeded")
        hang(mine)

    ended: list[int] = []
    assert Driver(stored, fit, report_s=0.05, leave_s=0.5, end=ended.append).work() == 0
    assert ended == [0], "Ray ends them with this process"


def test_another_job_has_the_run(stored: StoredRun) -> None:
    """The older ends, and starts no workers under the claim that it has lost."""
    first, codes = driver(stored, hang), list[int]()
    thread = threading.Thread(target=lambda: codes.append(first.work()))
    thread.start()
    newer = Claim(stored)
    thread.join(240)
    assert codes == [1]
    with pytest.raises(Superseded):
        Claim(stored, first.claim.token)
    assert not Claim(stored, newer.token).again and Claim(stored, newer.token).again and newer.holds


@pytest.mark.parametrize("status", ["succeeded", "failed", "paused"])
def test_workers_that_ray_starts_again_after_the_end_have_nothing_to_do(
    stored: StoredRun, status: str
) -> None:
    """As after a full disk, at which the first pauses in the midst of a step and Ray ends the others. What an
    earlier job paused is gone on with."""
    from orchestrate.places.kinds._ray.member import claimed

    report(stored, Claim(stored), "paused")
    mine = Claim(stored)
    first = claimed(stored, mine.token)
    assert first is not None
    report(stored, first, status)
    assert claimed(stored, mine.token) is None
    Claim(stored)
    assert claimed(stored, mine.token) is None, "another job has it"


def test_what_a_killed_worker_left_on_its_node_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of its own run alone, and never of one that lives."""
    from orchestrate.places.kinds._ray.member import room

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    for name in (f"orc-a-{gone.pid}-x", f"orc-a-{os.getpid()}-x", f"orc-b-{gone.pid}-x"):
        (tmp_path / f"orchestrate-{name}" / "checkpoints").mkdir(parents=True)
    with room("orc-a") as mine:
        left = {path.name.removeprefix("orchestrate-") for path in tmp_path.iterdir()} - {
            Path(mine).name.removeprefix("orchestrate-")
        }
    assert left == {f"orc-a-{os.getpid()}-x", f"orc-b-{gone.pid}-x"}


def test_the_time_of_the_job_is_counted_once(stored: StoredRun) -> None:
    """Of the job, and not of each start of its workers besides."""
    mine = Claim(stored)
    mine.used(30)
    worker = Claim(stored, mine.token)
    worker.used(20)
    assert worker.earlier_s == 30 and claim.used_s(stored) == 30


def test_a_worker_sees_that_its_job_is_gone(stored: StoredRun) -> None:
    at = 0.0
    mine = Claim(stored)
    worker = Claim(stored, mine.token)
    signs = Signs(stored, mine.token, worker.number, lambda: at)
    mine.used(1)
    assert signs.newest and signs.silent_s == 0
    at = 50.0
    assert signs.silent_s == 50
    mine.used(2)
    assert signs.silent_s == 0
    Claim(stored, mine.token)
    assert not signs.newest


def test_no_workers_come(stored: StoredRun) -> None:
    """As where a cluster has no room: said in the depot, so that nobody starts it again and again."""
    assert driver(stored, hang, start_s=0.3).work() == 1
    state = State.from_json(stored.read("status.json") or b"")
    assert state.status == "failed" and state.error is not None
    assert "no workers came within" in state.error.message


def test_its_limits_hold_while_there_is_no_worker(tmp_path: Path) -> None:
    limits = Limits(max_usd=Decimal("0.00001"), usd_per_hour=Decimal(1))
    stored = placed(tmp_path, limits)
    assert driver(stored, hang).work() == 0
    state = State.from_json(stored.read("status.json") or b"")
    assert state.status == "paused" and state.error is not None and state.error.code == "limit"


def test_it_ends_when_the_depot_cannot_be_reached(tmp_path: Path) -> None:
    stored = placed(tmp_path, Limits(silence_s=0.5))
    away = driver(stored, hang)
    (tmp_path / "depot").rename(tmp_path / "gone")
    (tmp_path / "depot").write_text("no folder")
    assert away.work() == SILENT


def test_an_error_of_ray_is_no_end_of_the_run(stored: StoredRun) -> None:
    def fit(_: Claim) -> None:
        raise RuntimeError("too many failures")

    away = driver(stored, fit)
    assert away.work() == 1 and "too many failures" in away.fault


def test_the_one_job_is_the_driver_and_takes_nothing_of_the_cluster(tmp_path: Path) -> None:
    """Its workers take what the run gets; a run of one process is a plain job."""
    head = Head()
    try:
        found = provider(head.url, tmp_path, 'gpu = "L40S:2"\n')
        for count, ref in ((1, "orc-alone"), (2, "orc-two")):
            asked = with_options(spec(tmp_path), processes=count)
            remote = upload(found, asked, TrainingData.open(asked.train))  # type: ignore[arg-type]
            create(found, asked, remote, ref)
    finally:
        head.close()
    alone, two = head.asked
    assert (alone.entrypoint_num_cpus, alone.entrypoint_num_gpus) == (1, 2)
    assert (two.entrypoint_num_cpus, two.entrypoint_num_gpus) == (None, None)
    assert alone.entrypoint == two.entrypoint and "ORCHESTRATE_MODULE" not in alone.runtime_env["env_vars"]
    module = two.runtime_env["env_vars"]["ORCHESTRATE_MODULE"]
    assert find_spec(module) is not None and Driver.__module__ == module


def with_options(asked: JobSpec, **options: Any) -> JobSpec:
    given = {"ray": {**asked.provider_options["ray"], **options}}
    return asked.model_copy(update={"provider_options": given})


@pytest.mark.parametrize(
    ("options", "name", "told"),
    [
        ({"processes": 3}, "processes", "a step has 2 examples: of 3 processes some would have none"),
        ({"min_processes": 1}, "min_processes", "the run has 1 process"),
        ({"processes": 2, "min_processes": 3}, "min_processes", "the run has 2 processes"),
        (
            {"processes": 2, "min_processes": 1, "sharded": True},
            "min_processes",
            "a share of every weight: it takes all",
        ),
        ({"processes": 2, "min_processes": 0}, "gpu", "a whole number above 0, got 0"),
    ],
)
def test_numbers_that_cannot_be_are_refused(
    options: dict[str, Any], name: str, told: str, tmp_path: Path
) -> None:
    with worlds.ray_cluster(tmp_path) as world:
        world.options = world.options.replace('gpu = "L40S"\n', "")
        found = world.provider(tmp_path)
        rows = found.translate(with_options(spec(tmp_path), **options)).refused
        [row] = [row for row in rows if row.name == f"provider_options.{name}"]
        assert told in str(row.rule)
        assert not found.translate(with_options(spec(tmp_path), processes=2, min_processes=1)).refused


def test_each_process_has_one_gpu(tmp_path: Path) -> None:
    with worlds.ray_cluster(tmp_path) as world:
        world.options = world.options.replace('"L40S"', '"L40S:2"')
        found = world.provider(tmp_path)
        whole = found.translate(spec(tmp_path))
        assert not whole.refused and whole.body["hyper"]["processes"] == 2
        [row] = found.translate(with_options(spec(tmp_path), processes=1)).refused or [None]
        assert row is None, "one process that has two GPUs is a plain job"


def test_elsewhere_the_processes_are_on_one_machine(tmp_path: Path) -> None:
    with worlds.hugging_face(tmp_path) as world:
        asked = spec(tmp_path).model_copy(update={"provider_options": {"hf-jobs": {"min_processes": 1}}})
        [row] = world.provider(tmp_path).translate(asked).refused
        assert "on one machine" in str(row.rule)


def test_what_a_job_runs_is_in_its_environment(stored: StoredRun) -> None:
    env = environment(stored.depot, read_order(stored))
    compile(env["ORCHESTRATE_BOOT"], "boot", "exec")
    assert 'os.environ.get("ORCHESTRATE_MODULE", "orchestrate.places.remote")' in env["ORCHESTRATE_BOOT"]
