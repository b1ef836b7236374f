"""A stand-in of the Kubernetes API for RayJobs on loopback, which takes what the operator's own published
schema allows, and no field beside it.

`rayjob.v1.json.gz` is `ray-operator/config/crd/bases/ray.io_rayjobs.yaml` of ray-project/kuberay at
feeaf72facab4881ba2b179248bb67315634e229, its version v1, without descriptions.
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import jsonschema
import pytest
from tests.http_server import Handler, Running

kubernetes = pytest.importorskip("kubernetes")
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
VALID = jsonschema.validators.validator_for(SCHEMA)(SCHEMA)


class Cluster:
    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.server = Running(_Handler, cluster=self)
        self.url = self.server.url

    def api(self) -> Any:
        settings = kubernetes.client.Configuration()
        settings.host = self.url
        settings.retries = False
        return kubernetes.client.CustomObjectsApi(kubernetes.client.ApiClient(settings))

    def status(self, name: str, **fields: Any) -> None:
        self.jobs[name]["status"] = fields
        VALID.validate(self.jobs[name])

    def close(self) -> None:
        self.server.close()


class _Handler(Handler):
    cluster: Cluster

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        assert url.path == JOBS, url.path
        [selector] = parse_qs(url.query)["labelSelector"]
        wanted = dict(pair.split("=") for pair in selector.split(","))
        found = [
            job for job in self.cluster.jobs.values() if wanted.items() <= job["metadata"]["labels"].items()
        ]
        self.answer(200, {"apiVersion": "ray.io/v1", "kind": "RayJobList", "items": found})

    def do_POST(self) -> None:
        body = json.loads(self.body())
        fault = self.cluster.faults.pop(0) if self.cluster.faults else ""
        if fault == "lost before":
            self.close_connection = True
            return
        if fault == "500 before":
            self.answer(500, {"reason": "InternalError"})
            return
        if fault == "refused":
            self.answer(422, {"reason": "Invalid"})
            return
        name = body["metadata"]["name"]
        if name in self.cluster.jobs:
            self.answer(409, {"reason": "AlreadyExists"})
            return
        try:
            VALID.validate(body)
        except jsonschema.ValidationError as error:
            self.answer(422, {"reason": "Invalid", "message": error.message})
            return
        stamp = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.cluster.jobs[name] = body | {"metadata": body["metadata"] | {"creationTimestamp": stamp}}
        if fault == "lost":
            self.close_connection = True
        elif fault == "500 after":
            self.answer(500, {"reason": "InternalError"})
        else:
            self.answer(201, self.cluster.jobs[name])

    def do_PATCH(self) -> None:
        job = self.cluster.jobs[self.path.rpartition("/")[2]]
        job["spec"] |= json.loads(self.body())["spec"]
        job["status"] = {"jobDeploymentStatus": "Suspending"}
        self.answer(200, job)
