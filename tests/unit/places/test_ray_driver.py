"""The job of a run with several workers: what it asks of the cluster, when it ends, and who has the run. Its
workers are stand-ins that report to the depot; `test_ray_workers` has real ones."""

from __future__ import annotations

import errno
import os
import socket
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
from tests.unit.places.depots import keep_checkpoint
from tests.unit.places.raycluster import provider, spec
from tests.unit.places.rayhead import Head
from tests.unit.places.test_remote import job_at

from orchestrate.data import TrainingData
from orchestrate.errors import HostUnavailable, RunFailed
from orchestrate.local.run import JobState, now
from orchestrate.places import lease
from orchestrate.places.base import WorkerLimits
from orchestrate.places.lease import RunLease, Signs, Superseded
from orchestrate.places.manifest import ROOM, environment, read_manifest, room, unexpanded, write_manifest
from orchestrate.places.remote import SILENT
from orchestrate.places.storage import Pulse, RunStorage, StoredRun
from orchestrate.spec import JobSpec
from orchestrate.types import Event

pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
from orchestrate.places.kinds._ray.driver import Driver, lacking

Fit = Callable[[RunLease], object]


pytestmark = pytest.mark.slow


@pytest.fixture
def stored(tmp_path: Path) -> StoredRun:
    return placed(tmp_path, WorkerLimits())


def placed(folder: Path, limits: WorkerLimits) -> StoredRun:
    depot = RunStorage(f"file://{folder}/depot")
    write_manifest(depot, job_at(folder), limits)
    return depot.run("orc-a")


def driver(stored: StoredRun, fit: Fit, **more: Any) -> Driver:
    return Driver(stored, fit, report_s=0.05, end=lambda code: None, **more)


def report(stored: StoredRun, first: RunLease, status: str) -> None:
    """What the first worker leaves when it has ended."""
    stored.write("status.json", JobState(status=status, updated_at=now()).to_json())
    pulse = Pulse(attempt=first.number, number=1, pid=1, started="1", machine="node", ended=True)
    stored.write("pulse.json", pulse.to_json())


def hang(_: RunLease) -> None:
    threading.Event().wait()


@pytest.mark.parametrize(("status", "code"), [("succeeded", 0), ("paused", 0), ("running", 1)])
def test_its_code_says_whether_the_run_is_settled(stored: StoredRun, status: str, code: int) -> None:
    away = driver(stored, lambda mine: report(stored, RunLease(stored, mine.token), status))
    assert away.work() == code


def test_what_an_earlier_job_reported_settles_nothing(stored: StoredRun) -> None:
    report(stored, RunLease(stored), "paused")
    assert driver(stored, lambda mine: None).work() == 1


def test_workers_that_do_not_end_after_the_run_has_are_left(stored: StoredRun) -> None:
    def fit(mine: RunLease) -> None:
        report(stored, RunLease(stored, mine.token), "succeeded")
        hang(mine)

    ended: list[int] = []
    assert Driver(stored, fit, report_s=0.05, leave_s=0.5, end=ended.append).work() == 0
    assert ended == [0], "Ray ends them with this process"


def test_another_job_has_the_run(stored: StoredRun) -> None:
    """The older ends, and starts no workers under the claim that it has lost."""
    first, codes = driver(stored, hang), list[int]()
    thread = threading.Thread(target=lambda: codes.append(first.work()))
    thread.start()
    newer = RunLease(stored)
    thread.join(240)
    assert codes == [1]
    with pytest.raises(Superseded):
        RunLease(stored, first.lease.token)
    one, two = RunLease(stored, newer.token), RunLease(stored, newer.token)
    assert (one.first, two.first) == (one.number, one.number) and newer.holds


@pytest.mark.parametrize("status", ["succeeded", "failed", "paused"])
def test_workers_that_ray_starts_again_after_the_end_have_nothing_to_do(
    stored: StoredRun, status: str
) -> None:
    """As after a full disk, at which the first pauses in the midst of a step and Ray ends the others. What an
    earlier job paused is gone on with."""
    from orchestrate.places.kinds._ray.member import acquired

    report(stored, RunLease(stored), "paused")
    mine = RunLease(stored)
    first = acquired(stored, mine.token)
    assert first is not None
    second = acquired(stored, mine.token)
    assert second is not None, "the first start died before it said anything: nobody has paused this job"
    report(stored, second, status)
    assert acquired(stored, mine.token) is None
    RunLease(stored)
    assert acquired(stored, mine.token) is None, "another job has it"


def test_what_a_killed_worker_left_on_its_node_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its code and its run; never of one that lives, or of another machine with the same folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    here = socket.gethostname()
    kept = {f"{here}-{os.getpid()}-x", f"elsewhere-{gone.pid}-x"}
    for name in (f"{here}-{gone.pid}-x", *kept):
        (tmp_path / f"{ROOM}-{name}" / "checkpoints").mkdir(parents=True)
    with room() as mine:
        assert {path.name for path in tmp_path.iterdir()} - {Path(mine).name} == {
            f"{ROOM}-{name}" for name in kept
        }
        assert Path(mine).name.startswith(f"{ROOM}-{here}-{os.getpid()}-"), "found if this is killed"


def test_the_time_of_the_job_is_counted_once(stored: StoredRun) -> None:
    """Of the job, and not of each start of its workers besides."""
    mine = RunLease(stored)
    mine.used(30)
    worker = RunLease(stored, mine.token)
    worker.used(20)
    assert worker.earlier_s == 30 and lease.used_s(stored) == 30


def test_a_worker_sees_that_its_job_is_gone(stored: StoredRun) -> None:
    at = 0.0
    mine = RunLease(stored)
    worker = RunLease(stored, mine.token)
    signs = Signs(stored, mine.token, worker.number, lambda: at)
    mine.used(1)
    assert signs.newest and signs.silent_s == 0
    at = 50.0
    assert signs.silent_s == 50
    mine.used(2)
    assert signs.silent_s == 0
    RunLease(stored, mine.token)
    assert not signs.newest


def test_no_workers_come(stored: StoredRun) -> None:
    """As where a cluster has no room: said in the depot, so that nobody starts it again and again."""
    assert driver(stored, hang, start_s=0.3).work() == 1
    state = JobState.from_json(stored.read("status.json") or b"")
    assert state.status == "failed" and state.error is not None
    assert " because the cluster lacks free resources" in state.error.message


def test_what_has_trained_waits_for_room_in_a_pause(stored: StoredRun, tmp_path: Path) -> None:
    """Nothing of it is lost, as it would be of a run that has failed; what has ended stays so."""
    keep_checkpoint(stored, tmp_path, 12)
    assert driver(stored, hang, start_s=0.3).work() == 1
    state = JobState.from_json(stored.read("status.json") or b"")
    assert state.status == "paused" and state.error is not None and state.finished_at is None
    stored.write("status.json", JobState(status="succeeded", updated_at=now()).to_json())
    driver(stored, hang, start_s=0.3).work()
    assert JobState.from_json(stored.read("status.json") or b"").status == "succeeded"


@pytest.mark.parametrize(("word", "status"), [("pause", "paused"), ("cancel", "cancelled")])
def test_what_is_asked_of_a_run_that_has_no_workers_yet(stored: StoredRun, word: str, status: str) -> None:
    stored.write("control", word.encode())
    assert driver(stored, hang).work() == 0
    state = JobState.from_json(stored.read("status.json") or b"")
    assert state.status == status and state.error is None
    assert (state.finished_at is not None) is (word == "cancel")


def test_what_its_workers_died_of_is_told_and_how_often(stored: StoredRun) -> None:
    """In Ray's own types: an error of the code, and the death of a process."""
    from ray.exceptions import ActorDiedError
    from ray.train import WorkerGroupError
    from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

    dead = WorkerHealthCheckFailedError("A worker health check failed.\nWorker info: x", ActorDiedError())

    def fit(mine: RunLease) -> None:
        for _ in range(3):
            RunLease(stored, mine.token)
        raise WorkerGroupError("a long traceback", {1: ValueError("row 3 is bad\nin a line"), 0: dead})

    assert driver(stored, fit).work() == 1
    [event] = events(stored)
    assert event.level == "error" and "started the workers 3 times" in event.message
    assert "worker 2: ValueError: row 3 is bad in a line" in event.message
    assert "worker 1: ActorDiedError: The actor died" in event.message and "\n" not in event.message


def events(stored: StoredRun) -> list[Event]:
    parts = stored.parts("events.jsonl")
    lines = b"".join(stored.part("events.jsonl", part) for part in parts).splitlines()
    return [Event.from_json(line) for line in lines]


def test_a_cluster_that_is_too_small_is_told_at_once() -> None:
    assert lacking({"CPU": 1.0, "GPU": 1.0}, 2, {"CPU": 2.0, "GPU": 2.0}) == ""
    told = lacking({"CPU": 2.0, "GPU": 1.0}, 3, {"CPU": 8.0, "GPU": 2.0})
    assert "has 2 of 3 GPUs for 3 workers" in told and "CPU" not in told


def test_what_would_fail_again_at_a_worker_fails_the_run(stored: StoredRun) -> None:
    """As the same does at a run of one process; what a machine had to do with is tried again."""
    from orchestrate.local.run.parallel import SHORT, Met
    from orchestrate.places.kinds._ray.member import acquired, record_error

    mine, full = RunLease(stored), OSError(errno.ENOSPC, "No space left on device")
    for error, status, told in (
        (RunFailed("no such row", fix="look"), "failed", "worker 2 of 2: no such row (look)"),
        (SystemExit(SHORT), "failed", "worker 2 of 2: ran out of memory"),
        (full, "paused", "No space left"),
        (HostUnavailable("s3", "no answer"), "running", ""),
        (ValueError("a bug, or another machine's"), "running", ""),
    ):
        stored.write("status.json", JobState(status="running", updated_at=now()).to_json())
        assert acquired(stored, mine.token) is not None
        record_error(stored, Met(1, 2), error)
        state = JobState.from_json(stored.read("status.json") or b"")
        assert state.status == status and told in (state.error.message if state.error else "")
        assert (acquired(stored, mine.token) is None) is (status == "failed")


def test_workers_of_other_versions_do_not_train_together(stored: StoredRun, tmp_path: Path) -> None:
    """Their rows would not be the same."""
    from orchestrate.local.run.parallel import Met
    from orchestrate.places.kinds._ray.member import FirstWorker, differing

    here = {"torch": "2.13.0", "tokenizers": "0.22"}
    assert differing([here, here]) == ""
    apart = differing([here, here, here | {"tokenizers": "0.21"}])
    assert apart == "worker 3 has tokenizers 0.21, but the first worker has 0.22"
    import torch

    first = FirstWorker(RunLease(stored), tmp_path / "here", Met(0, 3), torch.device("cpu"), 0.05, apart)
    assert first.work() == 0
    state = JobState.from_json(stored.read("status.json") or b"")
    assert state.status == "failed" and state.error is not None and apart in state.error.message


def test_its_limits_hold_while_there_is_no_worker(tmp_path: Path) -> None:
    limits = WorkerLimits(max_usd=Decimal("0.00001"), usd_per_hour=Decimal(1))
    stored = placed(tmp_path, limits)
    assert driver(stored, hang).work() == 0
    state = JobState.from_json(stored.read("status.json") or b"")
    assert state.status == "paused" and state.error is not None and state.error.code == "limit"


def test_it_ends_when_the_depot_cannot_be_reached(tmp_path: Path) -> None:
    stored = placed(tmp_path, WorkerLimits(silence_s=0.5))
    away = driver(stored, hang)
    (tmp_path / "depot").rename(tmp_path / "gone")
    (tmp_path / "depot").write_text("no folder")
    assert away.work() == SILENT


def test_an_error_of_ray_is_no_end_of_the_run(stored: StoredRun) -> None:
    def fit(_: RunLease) -> None:
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
        ({"processes": 3}, "processes", "a step has 2 examples, so some of the 3 processes would get none"),
        ({"min_processes": 1}, "min_processes", "the run has 1 process"),
        ({"processes": 2, "min_processes": 3}, "min_processes", "the run has 2 processes"),
        (
            {"processes": 2, "min_processes": 1, "sharded": True},
            "min_processes",
            "each process holds a shard of every weight, so the run needs all processes",
        ),
        ({"processes": 2, "min_processes": 0}, "gpu", "an integer above 0, got 0"),
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
        assert "share one machine" in str(row.rule)


def test_a_value_with_the_sign_of_a_variable_reaches_the_worker(
    stored: StoredRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Ray's own way to set a worker's environment, which would put another's value there."""
    from ray._private.utils import update_envs

    given = {"S3_SECRET": "pa$HOME${NO_SUCH}ss", "HF_HOME": "/models"}
    monkeypatch.setattr(os, "environ", os.environ.copy())
    update_envs(given)
    assert os.environ["S3_SECRET"] != given["S3_SECRET"]
    sent = unexpanded({**environment(stored.run_storage, read_manifest(stored)), **given})
    update_envs(sent)
    assert "S3_SECRET" not in sent and os.environ["HF_HOME"] == "/models"
    exec(os.environ["ORCHESTRATE_BOOT"].partition("import fsspec")[0])
    assert os.environ["S3_SECRET"] == given["S3_SECRET"]


def test_what_a_job_runs_is_in_its_environment(stored: StoredRun) -> None:
    env = environment(stored.run_storage, read_manifest(stored))
    compile(env["ORCHESTRATE_BOOT"], "boot", "exec")
    assert 'os.environ.get("ORCHESTRATE_MODULE", "orchestrate.places.remote")' in env["ORCHESTRATE_BOOT"]
