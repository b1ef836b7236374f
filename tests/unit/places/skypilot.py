"""What our bridge asks of SkyPilot's client, as a stand-in: a folder is put on the path of the "environment"
with this file as `sky.py`. Its state is a file of JSON, `$SKY_STATE`. `test_sky_outside` has the real client
and the real API server.

`faults` are taken one by one by the requests that make jobs.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
import types
import uuid
from pathlib import Path
from typing import Any

__version__ = "0.14.1"
STATE = Path(os.environ.get("SKY_STATE", "state.json"))
FIELDS = (
    "cluster_name_on_cloud",
    "start_at",
    "end_at",
    "failure_reason",
    "cluster_resources_full",
    "details",
)


class ServerTemporarilyUnavailableError(Exception):
    pass


class RequestException(OSError):
    pass


class NewConnectionError(RequestException):
    pass


class InvalidSkyPilotConfigError(ValueError):
    pass


def read() -> dict[str, Any]:
    empty: dict[str, Any] = {
        "jobs": [],
        "requests": [],
        "faults": [],
        "clouds": ["RunPod", "Vast"],
        "sent": [],
    }
    return json.loads(STATE.read_text()) if STATE.is_file() else empty


def write(state: dict[str, Any]) -> None:
    draft = STATE.with_suffix(".new")
    draft.write_text(json.dumps(state))
    draft.replace(STATE)


class Task:
    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    @staticmethod
    def from_yaml_config(config: dict[str, Any]) -> Task:
        known = {"name", "resources", "envs", "secrets", "setup", "run"}
        if wrong := set(config) - known:
            raise InvalidSkyPilotConfigError(f"unknown fields: {wrong}")
        task = Task(dict(config))
        config.clear()
        return task


def launch(task: Task, name: str) -> str:
    state = read()
    secrets = task.config.get("secrets", {}).items()
    digests = {key: hashlib.sha256(value.encode()).hexdigest() for key, value in secrets}
    state["sent"].append({**task.config, "secrets": digests})
    fault = state["faults"].pop(0) if state["faults"] else ""
    id = str(uuid.uuid4())
    if not fault.endswith("before") and fault != "refused":
        number = len(state["jobs"]) + 1
        status = "RUNNING" if state.get("run") else "STARTING"
        job = {
            "job_id": number,
            "job_name": name,
            "status": status,
            "submitted_at": time.time(),
            **dict.fromkeys(FIELDS),
        }
        job |= {
            "job_duration": 0,
            "schedule_state": "ALIVE",
            "cloud": "-",
            "region": "-",
            "accelerators": None,
        }
        state["jobs"].append(job)
    asked = {"request_id": id, "name": "sky.jobs.launch", "created_at": time.time(), "status_msg": None}
    status = "FAILED" if fault == "refused" else "SUCCEEDED"
    if fault == "slow":
        state["jobs"].pop()
        status = "RUNNING"
    if not fault.endswith("before"):
        state["requests"].append({**asked, "status": status, "request_body": json.dumps({"name": name})})
    write(state)
    if fault.startswith("lost"):
        raise RequestException("('Connection aborted.', RemoteDisconnected())")
    if fault.startswith("500"):
        raise RuntimeError("Failed to get request ID from SkyPilot API server: 500")
    if fault == "503 after":
        raise ServerTemporarilyUnavailableError("no ready backend")
    if fault == "down":
        raise NewConnectionError("connection refused")
    return id


def get(answer: Any) -> Any:
    if isinstance(answer, str):
        for one in read()["requests"]:
            if one["request_id"] == answer and one["status"] == "FAILED":
                raise ValueError("Catalog does not contain any instances satisfying the request")
    return answer


def queue_v2(*, refresh: bool, all_users: bool, fields: None, name_match: str | None) -> Any:
    assert (refresh, all_users, fields) == (False, False, None)
    jobs = [one for one in read()["jobs"] if (name_match or "") in one["job_name"]]
    return jobs, len(jobs), {}, len(jobs)


def cancel(job_ids: list[int]) -> None:
    state = read()
    for job in state["jobs"]:
        if job["job_id"] in job_ids:
            job |= {"status": "CANCELLED", "end_at": time.time()}
    write(state)


def api_cancel(request: str) -> None:
    state = read()
    for one in state["requests"]:
        if one["request_id"] == request:
            one["status"] = "CANCELLED"
    write(state)


def api_status(*, all_status: bool = False, limit: int | None = None) -> list[Any]:
    live = ("PENDING", "RUNNING")
    found = [one for one in read()["requests"] if all_status or one["status"] in live]
    return [types.SimpleNamespace(**one) for one in found[-(limit or 1000) :]]


def list_accelerators(*, gpus_only: bool, clouds: list[str], all_regions: bool) -> dict[str, list[list[Any]]]:
    offers = [
        ["RunPod", "1x_H100_SECURE", "H100", 1.0, 16, 80.0, 128, 2.69, 2.10, "US"],
        ["RunPod", "1x_H100_SECURE", "H100", 1.0, 16, 80.0, 128, 2.99, 2.30, "EU"],
        ["RunPod", "2x_H100_SECURE", "H100", 2.0, 32, 80.0, 256, 5.38, 4.20, "US"],
        ["RunPod", "1x_L40S_SECURE", "L40S", 1.0, 16, 48.0, 128, 0.86, float("nan"), "US"],
        ["Vast", "1x-H100", "H100", 1.0, 16, 80.0, 128, 0.80, float("nan"), "US"],
    ]
    found: dict[str, list[list[Any]]] = {}
    for offer in offers:
        if offer[0].lower() in clouds:
            found.setdefault(offer[2], []).append(offer)
    return found


def asked_of_the_server() -> list[str]:
    """Which its client starts where it is not running."""
    write(read() | {"server": True})
    return read()["clouds"]


def tail_logs(*, job_id: int, follow: bool, tail: int, output_stream: Any) -> None:
    output_stream.write(read().get("logs", {}).get(str(job_id), ""))


def show_instances() -> list[dict[str, Any]]:
    return read().get("vast", [])


def _module(name: str, **values: Any) -> None:
    module = types.ModuleType(name)
    module.__dict__.update(values)
    sys.modules[name] = module


if __name__ == "sky":
    sdk = {
        "get": get,
        "api_status": api_status,
        "api_cancel": api_cancel,
        "list_accelerators": list_accelerators,
    }
    _module("sky.client.sdk", **sdk, enabled_clouds=asked_of_the_server)
    _module("sky.core", enabled_clouds=lambda: read()["clouds"])
    _module("sky.catalog", list_accelerators=list_accelerators)
    status = types.SimpleNamespace(value="healthy" if read().get("server", True) else "unhealthy")
    _module(
        "sky.server.common",
        is_api_server_local=lambda: True,
        get_api_server_status=lambda: types.SimpleNamespace(status=status),
    )
    _module("sky.client", sdk=sys.modules["sky.client.sdk"])
    client = {"launch": launch, "queue_v2": queue_v2, "cancel": cancel, "tail_logs": tail_logs}
    _module("sky.jobs.client.sdk", **client)
    _module("sky.jobs.client")
    _module("sky.jobs")
    _module("sky.server")
    _module("sky.server.rest", request=None, request_without_retry=None)
    _module("sky.adaptors")
    _module("sky.adaptors.vast", vast=lambda: types.SimpleNamespace(show_instances=show_instances))
