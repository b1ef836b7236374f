"""KubeRay by the real client of Kubernetes against a stand-in of its API (`kube`). What all places have is in
`test_contract`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.sending import create, upload
from tests.unit.places.kube import Cluster

from orchestrate.data import TrainingData
from orchestrate.errors import ConfigError, InvalidRequest
from orchestrate.places.kinds.kuberay import KubeRay
from orchestrate.providers import registry
from orchestrate.providers.local.away import AwayProvider
from orchestrate.settings import config
from orchestrate.spec import JobSpec
from orchestrate.types import JobStatus

REF = "orc-0123456789ab"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    yield found
    found.close()


@pytest.fixture
def spec(rows: Path) -> JobSpec:
    values = {"model": "qwen3-8b", "train": str(rows), "epochs": 1, "max_cost_usd": 5}
    return JobSpec.parse({**values, "provider_options": {"kuberay": {"max_hours": 2}}})


def provider(cluster: Cluster, tmp_path: Path, more: str = "") -> AwayProvider:
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "orchestrate.toml").write_text(
        f'[hosts.kuberay.options]\ndepot = "file://{tmp_path}/depot"\nnamespace = "teams"\n'
        'image = "rayproject/ray:2.60.0-py311-gpu"\nray_version = "2.60.0"\ngpu = "L40S"\n'
        f'usd_per_hour = 2\nsecret = "depot"\nnode_selector = {{pool = "gpus"}}\n{more}'
    )
    found = registry.make(
        "kuberay", config.load(env={}, config_file=tmp_path / "orchestrate.toml", home=tmp_path / "home")
    )
    assert isinstance(found, AwayProvider)
    found.place = KubeRay("kuberay", found.config.options, cluster.api)
    return found


def submit(found: AwayProvider, asked: JobSpec) -> Any:
    data = TrainingData.open(asked.train)  # type: ignore[arg-type]
    return create(found, asked, upload(found, asked, data), REF)


def test_a_job_ends_by_itself_with_its_cluster(
    cluster: Cluster, spec: JobSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-for-the-manifest")
    submit(provider(cluster, tmp_path), spec)
    [job] = cluster.jobs.values()
    asked = job["spec"]
    assert asked["activeDeadlineSeconds"] == 2 * 3600 + 900, "2 hours come before 5 dollars at $2"
    assert (
        asked["shutdownAfterJobFinishes"] and asked["ttlSecondsAfterFinished"] and not asked["backoffLimit"]
    )
    assert asked["preRunningDeadlineSeconds"] and asked["jobId"] == job["metadata"]["name"] == REF
    [container] = asked["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container["envFrom"] == [{"secretRef": {"name": "depot"}}]
    runtime = yaml.safe_load(asked["runtimeEnvYAML"])
    assert runtime["env_vars"]["ORCHESTRATE_REF"] == REF and any(
        pin.startswith("torch==") for pin in runtime["uv"]
    )
    assert "not-for-the-manifest" not in json.dumps(job)


def test_the_way_of_a_run(cluster: Cluster, spec: JobSpec, tmp_path: Path) -> None:
    """It waits, dies, goes on as another job, is cancelled; and costs what both took: 45 minutes at $2."""
    found = provider(cluster, tmp_path)
    handle = submit(found, spec)
    assert found.get(handle).status is JobStatus.QUEUED and not found.recover(handle)
    times = {"startTime": "2026-01-01T00:00:00Z", "endTime": "2026-01-01T00:45:00Z"}
    cluster.status(REF, jobDeploymentStatus="Failed", reason="AppFailed", message="exit code 1", **times)
    assert found.get(handle).status is JobStatus.PAUSED
    assert any("AppFailed: exit code 1" in event.message for event in found.events(handle))
    assert found.recover(handle) and list(cluster.jobs) == [REF, f"{REF}-2"]
    assert not found.recover(handle)
    found.cancel(handle)
    assert cluster.jobs[f"{REF}-2"]["spec"]["suspend"] is True
    job = found.get(handle)
    assert job.status is JobStatus.CANCELLED and job.cost_usd == Decimal("1.5")


def test_a_deleted_attempt_does_not_pass_its_name_on(cluster: Cluster, spec: JobSpec, tmp_path: Path) -> None:
    """The cluster would answer that the second attempt's name is in use, as if the third had started."""
    found = provider(cluster, tmp_path)
    handle = submit(found, spec)
    cluster.status(REF, jobDeploymentStatus="Failed")
    assert found.recover(handle)
    cluster.status(f"{REF}-2", jobDeploymentStatus="Failed")
    del cluster.jobs[REF]
    assert found.recover(handle) and list(cluster.jobs) == [f"{REF}-2", f"{REF}-3"]


def test_what_is_wrong_is_told(cluster: Cluster, spec: JobSpec, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        submit(provider(cluster, tmp_path, 'memory = "a lot"\n'), spec)
    with pytest.raises(ConfigError, match="usd_per_hour must be a non-negative number"):
        KubeRay("kuberay", {"usd_per_hour": "two"}).price(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs a container image"):
        KubeRay("kuberay", {"depot": "memory://x"}).require()
