"""Ray Jobs. The slow test has a real cluster of one head on this machine, which is killed on the way."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.sending import create, upload
from tests.unit.places import rayhead
from tests.unit.places.depots import keep_checkpoint
from tests.unit.places.raycluster import ENV, Head, kill, processes, provider, running, spec, wait
from tests.unit.places.worlds import ray_cluster

from orchestrate.data import TrainingData
from orchestrate.errors import ConfigError
from orchestrate.local.run import JobState, RunDir, now
from orchestrate.places.kinds.ray import STATUSES, RayJobs
from orchestrate.places.lease import RunLease
from orchestrate.places.storage import Pulse
from orchestrate.providers import registry
from orchestrate.providers.local.away import AwayProvider
from orchestrate.settings import config
from orchestrate.types import JobHandle, JobStatus

pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
REF = "orc-0123456789ab"


def place(**options: Any) -> RayJobs:
    return RayJobs("ray", {"depot": "memory://ray", **options})


def test_our_words_are_rays() -> None:
    from ray.job_submission import JobStatus as Ray

    assert {one.value for one in Ray} == set(STATUSES)


def test_an_address_that_ray_would_replace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://elsewhere:8265")
    with pytest.raises(ConfigError, match="RAY_ADDRESS is http://elsewhere:8265"):
        place().require()
    with pytest.raises(ConfigError, match="RAY_ADDRESS"):
        place().find(REF)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265/")
    place().require()


def test_a_cluster_elsewhere_needs_https_and_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://10.0.0.7:8265", "https://10.0.0.7:8265"):
        with pytest.raises(ConfigError, match="https and a token"):
            place(address=address).find(REF)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    with pytest.raises(ConfigError, match="https and a token"):
        place(address="http://10.0.0.7:8265").require()
    place(address="https://10.0.0.7:8265").require()
    assert place().own and not place(address="https://10.0.0.7:8265").own


@pytest.mark.parametrize(
    ("address", "told", "fix"),
    [
        (
            "ray://10.0.0.7:10001",
            "the head node reports",
            "`ssh -L 8265:127.0.0.1:8265 10.0.0.7`, and",
        ),
        (
            "ray://127.0.0.1:10001",
            "the head node reports",
            'address = "http://127.0.0.1:8265"',
        ),
        (
            "anyscale://team/cluster",
            "Anyscale has its own backend, which starts a machine for each job",
            "-p anyscale",
        ),
        ("10.0.0.7:8265", "http address", "kubectl port-forward"),
    ],
)
def test_an_address_of_another_kind_is_refused_with_the_way_to_one_that_is_taken(
    address: str, told: str, fix: str
) -> None:
    for ask in (RayJobs.require, RayJobs.find):
        with pytest.raises(ConfigError, match=told) as caught:
            ask(place(address=address))
        assert address in caught.value.message and fix in (caught.value.fix or "")


def test_a_private_run_stays_with_a_cluster_and_a_depot_of_this_machine(tmp_path: Path) -> None:
    """Elsewhere the user has to say that they are his own."""

    def own(options: str, **env: str) -> bool:
        (tmp_path / "orchestrate.toml").write_text(f"[hosts.ray.options]\n{options}")
        return registry.make(
            "ray", config.load(env=env, config_file=tmp_path / "orchestrate.toml", home=tmp_path / "home")
        ).own

    assert own('depot = "file:///mnt/runs"\n') and own("")
    assert not own('depot = "s3://bucket/runs"\n')
    assert not own('depot = "file:///mnt/runs"\naddress = "https://10.0.0.7:8265"\n')
    assert own('depot = "s3://bucket/runs"\n', ORCHESTRATE_OWN_HOSTS="other, ray")


def test_of_two_submits_of_one_attempt_one_is_taken_and_both_have_it(tmp_path: Path) -> None:
    with ray_cluster(tmp_path) as world:
        found = world.provider(tmp_path)
        asked = spec(tmp_path)
        remote = upload(found, asked, TrainingData.open(asked.train))  # type: ignore[arg-type]
        world.fault("taken")
        assert create(found, asked, remote, REF).job_id == REF
        assert world.jobs() == [(REF, True)]


@pytest.mark.parametrize(("word", "status"), [("pause", JobStatus.PAUSED), ("cancel", JobStatus.CANCELLED)])
def test_a_job_that_ends_some_time_after_it_was_asked_to_is_not_begun_again(
    word: str, status: JobStatus, tmp_path: Path
) -> None:
    """A cluster gives a job seconds to end."""
    with ray_cluster(tmp_path) as world:
        found, handle = submitted(world.provider(tmp_path), tmp_path)
        RunDir(found.home / "runs" / REF).ask(word)
        world.end("stopped")
        found.get(handle)
        assert not found.recover(handle) and len(world.jobs()) == 1
        job = found.get(handle)
        assert job.status is status and job.error is None


def test_of_a_job_that_failed_at_once_its_last_line_is_told(tmp_path: Path) -> None:
    with ray_cluster(tmp_path) as world:
        found, handle = submitted(world.provider(tmp_path), tmp_path)
        logs = "last available logs (truncated to 20,000 chars):\nTraceback\n  in main\nKeyError: 'x'\n"
        world.end(f"Job entrypoint command failed with exit code 1, {logs}")
        found.get(handle)
        [event] = found.events(handle)
        told = "Job entrypoint command failed with exit code 1: KeyError: 'x'"
        assert event.message == f"the worker ended before its first report: {told}"


def test_deaths_count_from_the_newest_checkpoint(tmp_path: Path) -> None:
    """A run of days may lose many machines; one that gets no further is given up."""
    with ray_cluster(tmp_path) as world:
        found, handle = submitted(world.provider(tmp_path), tmp_path)
        stored = found.place.run_storage.run(REF)
        for attempt in range(1, 9):
            state = JobState(status="running", updated_at=now(), step=attempt, attempt=attempt)
            stored.write("status.json", state.to_json())
            keep_checkpoint(stored, tmp_path, attempt)
            world.end("its node is gone")
            assert found.get(handle).status is JobStatus.PAUSED and found.recover(handle), attempt
        for attempt in range(9, 13):
            stored.write(
                "status.json", JobState(status="running", updated_at=now(), attempt=attempt).to_json()
            )
            world.end("its node is gone")
            found.get(handle)
            assert found.recover(handle) is (attempt < 12), attempt
        job = found.get(handle)
        assert job.status is JobStatus.FAILED and job.error is not None
        told = "new checkpoint: the worker ended before its first report: its node is gone"
        assert told in job.error.message


def test_neither_cost_nor_progress_hang_on_the_clock_here(tmp_path: Path) -> None:
    """The head's is an hour ahead, the worker's one behind; and a new head knows nothing of what an earlier
    one has run."""
    head = rayhead.Head()
    try:
        found, handle = submitted(provider(head.url, tmp_path), tmp_path)
        stored = found.place.run_storage.run(REF)
        RunLease(stored).used(90)
        ahead = int((time.time() + 3600) * 1000)
        head.newest("RUNNING", start_time=ahead)
        told = JobState(
            status="running", updated_at=now() - timedelta(hours=1), step=3, seconds=3, total_steps=9
        )
        stored.write("status.json", told.to_json())
        pulse = Pulse(attempt=1, number=1, pid=1, started="1", machine="node")
        stored.write("pulse.json", pulse.to_json())
        job = found.get(handle)
        assert (job.status, job.error, job.payload["used_seconds"]) == (JobStatus.RUNNING, None, 90)
        assert job.estimated_finish is not None and job.estimated_finish > now() - timedelta(minutes=30)
        head.newest("FAILED", end_time=ahead + 100_000)
        assert found.get(handle).payload["used_seconds"] == 100
        head.jobs.clear()
        assert found.get(handle).payload["used_seconds"] == 90
    finally:
        head.close()


def submitted(found: AwayProvider, folder: Path) -> tuple[AwayProvider, JobHandle]:
    asked = spec(folder)
    remote = upload(found, asked, TrainingData.open(asked.train))  # type: ignore[arg-type]
    return found, create(found, asked, remote, REF)


@pytest.fixture
def head() -> Iterator[Head]:
    with running() as found:
        yield found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")
def test_a_cluster_that_is_killed_on_the_way(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Submitted twice, its worker killed, its head killed and started anew: one run, each step once."""
    for name, value in ENV.items():
        monkeypatch.setenv(name, value)
    found = provider(head.address, tmp_path)
    asked = spec(tmp_path)
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]
    remote = upload(found, asked, data)
    handle = create(found, asked, remote, REF)
    assert create(found, asked, remote, REF) == handle
    place = found.place
    assert isinstance(place, RayJobs)
    assert [one.id for one in place.find(REF)] == [REF]
    wait(lambda: (found.get(handle).step or 0) >= 3)

    kill(processes(REF, b"ORCHESTRATE_BOOT", b"tether"))
    wait(lambda: found.get(handle).status is JobStatus.PAUSED)
    assert found.recover(handle) and not found.recover(handle)
    assert {one.id for one in place.find(REF)} == {REF, f"{REF}-2"}
    reached = found.get(handle).step or 0
    wait(lambda: (found.get(handle).step or 0) > reached + 2)

    head.kill()
    head.start()
    assert place.find(REF) == [], "a new head knows nothing of it"
    run = RunDir(found.home / "runs" / REF)
    assert not place.lost(run), "it may still be at work, as far as is known"
    found.get(handle)  # what it reported last counts from when it is seen
    long_ago = time.time() - place.silence_s - 120
    os.utime(run.path / "worker.json", (long_ago, long_ago))
    assert found.recover(handle)
    wait(lambda: found.get(handle).status.terminal)
    job = found.get(handle)
    assert job.status is JobStatus.SUCCEEDED and job.step == 48, job.error
    steps = [point.step for point in found.metrics(handle) if "train_loss" in point.values]
    assert steps == list(range(1, 49)), "each step once, and none twice"
    resumed = [event for event in found.events(handle) if event.type == "resumed"]
    assert len(resumed) == 2 and all((event.step or 0) > 0 for event in resumed), "not from the beginning"
    found.download(handle, tmp_path / "tuned")
    assert (tmp_path / "tuned" / "adapter_model.safetensors").is_file()
