"""KubeRay by the real client of Kubernetes against a stand-in of its API, which takes what the operator's own
published schema of a RayJob allows, and no field beside it.

`rayjob.v1.json.gz` is `ray-operator/config/crd/bases/ray.io_rayjobs.yaml` of ray-project/kuberay at
feeaf72facab4881ba2b179248bb67315634e229, its version v1, without descriptions.
"""

from __future__ import annotations

import gzip
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import pytest
import yaml
from tests.sending import create, upload

from orchestrate import config
from orchestrate.data import TrainingData
from orchestrate.errors import ConfigError, InvalidRequest, OutcomeUnknown
from orchestrate.local.run.rundir import RunDir
from orchestrate.places.kinds.kuberay import KubeRay
from orchestrate.providers import registry
from orchestrate.providers.local.away import AwayProvider
from orchestrate.spec import JobSpec
from orchestrate.types import JobStatus

kubernetes = pytest.importorskip("kubernetes")
REF = "orc-0123456789ab"
JOBS = "/apis/ray.io/v1/namespaces/teams/rayjobs"


def closed(schema: Any) -> Any:
    """No field that is not described, as a misspelt one would be dropped in silence."""
    if isinstance(schema, list):
        return [closed(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: closed(value) for name, value in schema.items()}
    if isinstance(found.get("properties"), dict) and found.get("type") == "object":
        found.setdefault("additionalProperties", False)
    return found


SCHEMA = closed(json.loads(gzip.decompress(Path(__file__).with_name("rayjob.v1.json.gz").read_bytes())))
SCHEMA["properties"]["metadata"] = {"type": "object"}


class Cluster:
    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"cluster": self}))
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def api(self) -> Any:
        settings = kubernetes.client.Configuration()
        settings.host = f"http://127.0.0.1:{self.server.server_address[1]}"
        settings.retries = False
        return kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(settings))

    def status(self, name: str, **fields: Any) -> None:
        self.jobs[name]["status"] = fields
        jsonschema.validate(self.jobs[name], SCHEMA)

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


class _Handler(BaseHTTPRequestHandler):
    cluster: Cluster

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        assert url.path == JOBS, url.path
        [selector] = parse_qs(url.query)["labelSelector"]
        wanted = dict(pair.split("=") for pair in selector.split(","))
        found = [
            job for job in self.cluster.jobs.values() if wanted.items() <= job["metadata"]["labels"].items()
        ]
        self._answer(200, {"apiVersion": "ray.io/v1", "kind": "RayJobList", "items": found})

    def do_POST(self) -> None:
        body = self._body()
        fault = self.cluster.faults.pop(0) if self.cluster.faults else ""
        if fault == "lost before":
            self.close_connection = True
            return
        if fault == "500 before":
            self._answer(500, {"reason": "InternalError"})
            return
        name = body["metadata"]["name"]
        if name in self.cluster.jobs:
            self._answer(409, {"reason": "AlreadyExists"})
            return
        try:
            jsonschema.validate(body, SCHEMA)
        except jsonschema.ValidationError as error:
            self._answer(422, {"reason": "Invalid", "message": error.message})
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.cluster.jobs[name] = body | {"metadata": body["metadata"] | {"creationTimestamp": stamp}}
        if fault == "lost":
            self.close_connection = True
        elif fault == "500 after":
            self._answer(500, {"reason": "InternalError"})
        else:
            self._answer(201, self.cluster.jobs[name])

    def do_PATCH(self) -> None:
        job = self.cluster.jobs[self.path.rpartition("/")[2]]
        job["spec"] |= self._body()["spec"]
        job["status"] = {"jobDeploymentStatus": "Suspending"}
        self._answer(200, job)

    def _body(self) -> dict[str, Any]:
        return json.loads(self.rfile.read(int(self.headers["content-length"])))

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    found = Cluster()
    yield found
    found.close()


@pytest.fixture
def spec(tmp_path: Path) -> JobSpec:
    messages = [{"role": "user", "content": "Say red."}, {"role": "assistant", "content": "Red."}]
    (tmp_path / "train.jsonl").write_text(f"{json.dumps({'messages': messages})}\n" * 24)
    values = {"model": "qwen3-8b", "train": str(tmp_path / "train.jsonl"), "epochs": 1, "max_cost_usd": 5}
    return JobSpec.parse({**values, "provider_options": {"kuberay": {"max_hours": 2}}})


def provider(cluster: Cluster, tmp_path: Path, more: str = "") -> AwayProvider:
    (tmp_path / "home").mkdir(exist_ok=True)
    (tmp_path / "orchestrate.toml").write_text(
        f'[hosts.kuberay.options]\ndepot = "file://{tmp_path}/depot"\nnamespace = "teams"\n'
        'image = "rayproject/ray:2.60.0-py311-gpu"\nray_version = "2.60.0"\ngpu = "L40S"\n'
        f'usd_per_hour = 2\nsecret = "depot"\nnode_selector = {{pool = "gpus"}}\n{more}'
    )
    found = registry.make("kuberay", config.load(env={}, cwd=tmp_path, home=tmp_path / "home"))
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


@pytest.mark.parametrize("fault", ["lost", "500 after", "lost before", "500 before"])
def test_a_lost_answer_makes_no_second_job(
    fault: str,
    cluster: Cluster,
    spec: JobSpec,
    tmp_path: Path,
    record_property: Callable[[str, Any], None],
) -> None:
    found = provider(cluster, tmp_path)
    cluster.faults = [fault]
    with pytest.raises(OutcomeUnknown):
        submit(found, spec)
    assert len(found.find(REF)) == (0 if fault.endswith("before") else 1)
    for _ in range(3):
        submit(found, spec)
    jobs = len(cluster.jobs)
    counted = {"runs": 1, "jobs": jobs, "alarms": 0, "lost": int(not jobs), "doubled": max(0, jobs - 1)}
    record_property("jobs", {"fault": f"a place: {fault}", "where": "kuberay", **counted})
    assert list(cluster.jobs) == [REF]


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


def test_a_namespace_that_forgot_is_waited_for(cluster: Cluster, spec: JobSpec, tmp_path: Path) -> None:
    found = provider(cluster, tmp_path)
    handle = submit(found, spec)
    cluster.jobs.clear()
    run = RunDir(found.home / "runs" / REF)
    assert not found.recover(handle) and not found.place.lost(run)
    long_ago = time.time() - found.place.silence_s - 120
    os.utime(run.path / "worker.json", (long_ago, long_ago))
    assert found.recover(handle) and list(cluster.jobs) == [REF]


def test_what_is_wrong_is_told(cluster: Cluster, spec: JobSpec, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest):
        submit(provider(cluster, tmp_path, 'memory = "a lot"\n'), spec)
    with pytest.raises(ConfigError, match="usd_per_hour must be a number"):
        KubeRay("kuberay", {"usd_per_hour": "two"}).price(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="needs an image"):
        KubeRay("kuberay", {"depot": "memory://x"}).require()
