"""A run of several workers on a real Ray cluster of two nodes on this machine: they train what one process
trains, and what is killed of them on the way costs nothing but time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from safetensors.torch import load_file
from tests.faults.local.test_workers import finish
from tests.sending import create, upload
from tests.unit.places.raycluster import (
    ENV,
    Head,
    kill,
    kill_tree,
    processes,
    provider,
    running,
    spec,
    wait,
)

from orchestrate.data import TrainingData
from orchestrate.local import RunDir, launch
from orchestrate.providers.local.away import AwayProvider
from orchestrate.types import JobHandle, JobStatus

pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings(
        "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning"
    ),
]
WORKER = b"ray::RayTrainWorker"
DRIVER = b"ORCHESTRATE_BOOT"
STEPS = 96


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with running(cpus=1) as found:
        found.add_node()
        yield found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workers")


@pytest.fixture(scope="module")
def found(head: Head, folder: Path) -> Iterator[AwayProvider]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENV.items():
            patch.setenv(name, value)
        yield provider(head.address, folder)


@pytest.fixture(scope="module")
def two(found: AwayProvider, folder: Path) -> RunDir:
    """By two workers, with nothing in their way; asked for twice."""
    handle = submit(found, folder, "orc-two")
    assert submit(found, folder, "orc-two") == handle
    wait(lambda: found.get(handle).status.terminal)
    assert found.get(handle).status is JobStatus.SUCCEEDED, found.place.output("orc-two")
    assert [one.id for one in found.place.find("orc-two")] == ["orc-two"]
    found.download(handle, folder / "two")
    return RunDir(found.home / "runs" / "orc-two")


@pytest.fixture(scope="module")
def one(two: RunDir, folder: Path) -> RunDir:
    """The same job by one process of this machine."""
    job = two.job()
    hyper = msgspec.structs.replace(job.hyper, processes=1)
    alone = launch(msgspec.structs.replace(job, ref="orc-one", hyper=hyper, paces=None), folder / "one")
    assert finish(alone) == "succeeded", alone.log.read_text()
    return alone


def submit(found: AwayProvider, folder: Path, ref: str, **options: Any) -> JobHandle:
    """A checkpoint to go on from after each epoch, of 12 steps."""
    asked = spec(folder, epochs=8, processes=2, precision="fp32", recovery_seconds=600, **options)
    remote = upload(found, asked, TrainingData.open(asked.train))  # type: ignore[arg-type]
    return create(found, asked, remote, ref)


def losses(run: RunDir) -> dict[int, float]:
    """Each step once, none left out."""
    points = [(p.step, p.values["train_loss"]) for p in run.metrics() if "train_loss" in p.values]
    assert [step for step, _ in points] == list(range(1, STEPS + 1))
    return dict(points)


def test_two_workers_train_what_one_process_trains(two: RunDir, one: RunDir, folder: Path) -> None:
    """Each step's loss to a thousandth of itself, each weight to 1e-3, as on one machine."""
    assert losses(two) == pytest.approx(losses(one), rel=1e-3, abs=1e-5)
    ours = load_file(folder / "two" / "adapter_model.safetensors")
    for name, weights in load_file(one.path / "adapter" / "adapter_model.safetensors").items():
        assert weights.allclose(ours[name], rtol=0, atol=1e-3), name
    assert [e.data["processes"] for e in two.events() if e.type == "processes"] == [2]
    assert two.state().trained_tokens == one.state().trained_tokens


def test_a_worker_and_the_job_are_killed_on_the_way(two: RunDir, found: AwayProvider, folder: Path) -> None:
    """To the bit as if nothing had happened, in two jobs; and no worker outlives its job."""
    handle = submit(found, folder, "orc-cut")
    run = RunDir(found.home / "runs" / "orc-cut")
    wait(lambda: bool(found.get(handle).step and found.checkpoints(handle)))
    first = json.loads((run.path / "worker.json").read_bytes())["pid"]
    kill([first])
    wait(lambda: bool([e for e in found.events(handle) if e.type == "resumed"]))
    assert [one.id for one in found.place.find("orc-cut")] == ["orc-cut"], "Ray itself started them again"
    assert len(processes("orc-cut", WORKER)) == 2

    kill(processes("orc-cut", DRIVER))
    wait(lambda: not processes("orc-cut", WORKER))
    wait(lambda: found.get(handle).status is JobStatus.PAUSED)
    assert found.recover(handle) and not found.recover(handle)
    wait(lambda: found.get(handle).status.terminal)
    assert found.get(handle).status is JobStatus.SUCCEEDED, found.place.output("orc-cut")
    assert {one.id for one in found.place.find("orc-cut")} == {"orc-cut", "orc-cut-2"}
    resumed = [event.step or 0 for event in run.events() if event.type == "resumed"]
    assert len(resumed) == 2 and min(resumed) > 0, "not from the beginning"
    assert losses(run) == losses(two)
    found.download(handle, folder / "cut")
    weights = "adapter_model.safetensors"
    assert (folder / "cut" / weights).read_bytes() == (folder / "two" / weights).read_bytes()


def test_with_a_node_less_the_run_goes_on_with_the_worker_that_is_left(
    one: RunDir, found: AwayProvider, folder: Path, head: Head
) -> None:
    """Its steps keep their examples: the losses are those of one process."""
    handle = submit(found, folder, "orc-few", min_processes=1)
    run = RunDir(found.home / "runs" / "orc-few")
    wait(lambda: bool(found.get(handle).step and found.checkpoints(handle)))
    kill_tree(head.nodes.pop())
    wait(lambda: found.get(handle).status.terminal)
    assert found.get(handle).status is JobStatus.SUCCEEDED, found.place.output("orc-few")
    assert [one.id for one in found.place.find("orc-few")] == ["orc-few"]
    assert [e.data["processes"] for e in run.events() if e.type == "processes"] == [2], "then one, alone"
    [resumed] = [event.step or 0 for event in run.events() if event.type == "resumed"]
    assert resumed > 0
    assert losses(run) == pytest.approx(losses(one), rel=1e-3, abs=1e-5)
