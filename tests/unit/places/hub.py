"""A stand-in for Hugging Face Jobs on loopback. It speaks the HTTP of the real client (`huggingface_hub`) and
starts a process for a job, with that job's environment and secrets and no other.

`faults` are taken one by one by the requests that make jobs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.http_server import Handler, Running

TOKEN = "hf_ofthetests"
HARDWARE = [
    ("cpu-basic", None, 0, 167),
    ("t4-small", ("T4", "16 GB"), 1, 6667),
    ("l4x1", ("L4", "24 GB"), 1, 13333),
    ("a100-large", ("A100", "80 GB"), 1, 41667),
    ("h200", ("H200", "141 GB"), 1, 83333),
    ("h200x8", ("H200", "1128 GB"), 8, 666667),
]
"""Flavor, GPU, how many, millionths of a dollar per minute: $0.40, 0.80, 2.50, 5.00 and 40.00 per hour, as
published."""


class Hub:
    def __init__(self, folder: Path, *, run: bool = True) -> None:
        self.folder, self.run = folder, run
        self.jobs: dict[str, dict[str, Any]] = {}
        self.sent: list[dict[str, Any]] = []
        """Bodies of the requests that were to make a job."""
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.faults: list[str] = []
        self.page = 2
        self.forgets: set[str] = set()
        self.lock = threading.Lock()
        self.server = Running(_Handler, hub=self)
        self.url = self.server.url

    def make(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            id = f"687f{len(self.jobs):020x}"
            at = datetime.now(UTC)
            self.jobs[id] = {
                "id": id,
                "createdAt": stamp(at),
                "startedAt": None,
                "finishedAt": None,
                "dockerImage": body["dockerImage"],
                "command": body["command"],
                "arguments": [],
                "environment": body["environment"],
                "flavor": body["flavor"],
                "labels": body.get("labels"),
                "status": {"stage": "SCHEDULING", "message": None},
                "owner": {"id": "5e9e", "name": "me", "type": "user"},
            }
            if self.run:
                self.start(id, body)
            return self.told(id)

    def start(self, id: str, body: dict[str, Any]) -> None:
        command: list[str] = body["command"]
        place = command.index("python")  # what `uv run` runs; the packages are here already
        env = {"PATH": os.environ["PATH"], "HOME": str(self.folder), "HF_HUB_OFFLINE": "1"}
        env |= {"OMP_NUM_THREADS": "1", "ORCHESTRATE_REPORT_S": "0.3", **body["environment"]}
        log = (self.folder / f"{id}.log").open("wb")
        self.workers[id] = subprocess.Popen(
            [sys.executable, *command[place + 1 :]],
            env=env | body.get("secrets", {}),
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self.jobs[id] |= {"startedAt": stamp(datetime.now(UTC)), "status": {"stage": "RUNNING"}}

    def told(self, id: str) -> dict[str, Any]:
        job = self.jobs[id]
        worker = self.workers.get(id)
        if worker is not None and worker.poll() is not None and job["finishedAt"] is None:
            stage = "COMPLETED" if worker.returncode == 0 else "ERROR"
            message = None if stage == "COMPLETED" else f"Job failed with exit code: {worker.returncode}"
            self.end(id, stage, message)
        if job["startedAt"] and "durations" not in job:
            ran = (datetime.now(UTC) - datetime.fromisoformat(job["startedAt"])).total_seconds()
            return job | {"durations": {"schedulingSecs": 1, "runningSecs": int(ran), "totalSecs": int(ran)}}
        return job

    def end(self, id: str, stage: str, message: str | None = None, ran_s: int | None = None) -> None:
        job, now = self.jobs[id], datetime.now(UTC)
        begun = datetime.fromisoformat(job["startedAt"] or job["createdAt"])
        if ran_s is not None:
            now = begun + timedelta(seconds=ran_s)
        ran = int((now - begun).total_seconds())
        job["startedAt"] = job["startedAt"] or stamp(begun)
        job["durations"] = {"schedulingSecs": 1, "runningSecs": ran, "totalSecs": ran + 1}
        job["finishedAt"] = stamp(now)
        job["status"] = {"stage": stage, "message": message}

    def kill(self, id: str) -> None:
        """As when its machine dies."""
        os.killpg(self.workers[id].pid, signal.SIGKILL)
        self.workers[id].wait()

    def close(self) -> None:
        self.server.close()
        for worker in self.workers.values():
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


class _Handler(Handler):
    hub: Hub

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parts, query = url.path.strip("/").split("/"), parse_qsl(url.query)
        if parts == ["api", "jobs", "hardware"]:
            self.answer(200, [_hardware(*row) for row in HARDWARE])
        elif self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif parts == ["api", "whoami-v2"]:
            self.answer(200, {"name": "me", "type": "user", "id": "5e9e", "orgs": []})
        elif len(parts) == 3:
            self._list(query)
        elif parts[-1] == "logs":
            self._logs(parts[3])
        else:
            self.answer(200, self.hub.told(parts[3]))

    def do_POST(self) -> None:
        parts = urlsplit(self.path).path.strip("/").split("/")
        body = json.loads(self.body() or b"{}")
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif parts[-1] == "cancel":
            hub = self.hub
            if (worker := hub.workers.get(parts[3])) is not None and worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
                worker.wait()
            hub.end(parts[3], "CANCELED")
            self.answer(200, hub.jobs[parts[3]])
        else:
            self._make(body)

    def _make(self, body: dict[str, Any]) -> None:
        self.hub.sent.append(body)
        fault = self.hub.faults.pop(0) if self.hub.faults else ""
        if fault == "refused":
            self.answer(400, {"error": "no such flavor"})
        elif fault == "500 before":
            self.answer(500, {"error": "internal"})
        elif fault == "lost before":
            self.close_connection = True
        else:
            job = self.hub.make(body)
            if fault.endswith(" after"):
                self.answer(int(fault.split()[0]), {"error": "internal"})
            elif fault == "garbled":
                self.answer(200, {"jobs": "no"})
            elif fault == "lost":
                self.close_connection = True
            else:
                self.answer(200, job)

    def _list(self, query: list[tuple[str, str]]) -> None:
        wanted = {value for name, value in query if name == "label"}
        found = [
            self.hub.told(id)
            for id, job in reversed(self.hub.jobs.items())
            if id not in self.hub.forgets and wanted <= {f"{k}={v}" for k, v in (job["labels"] or {}).items()}
        ]
        start = int(dict(query).get("cursor", "0"))
        more = found[start + self.hub.page :]
        labels = "&".join(f"label={label}" for label in wanted)
        link = f'<{self.hub.url}/api/jobs/me?{labels}&cursor={start + self.hub.page}>; rel="next"'
        self.answer(200, found[start : start + self.hub.page], {"Link": link} if more else {})

    def _logs(self, id: str) -> None:
        log = self.hub.folder / f"{id}.log"
        lines = log.read_text().splitlines() if log.is_file() else []
        events = [{"data": line, "timestamp": stamp(datetime.now(UTC))} for line in lines[-40:]]
        data = "".join(f"data: {json.dumps(event)}\n\n" for event in events).encode()
        self.answer(200, data, {"content-type": "text/event-stream"})


def stamp(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _hardware(name: str, gpu: tuple[str, str] | None, count: int, cost: int) -> dict[str, Any]:
    accelerator = gpu and {
        "type": "gpu",
        "model": gpu[0],
        "quantity": str(count),
        "vram": gpu[1],
        "manufacturer": "Nvidia",
    }
    return {
        "name": name,
        "prettyName": name,
        "cpu": "2 vCPU",
        "ram": "16 GB",
        "accelerator": accelerator,
        "unitCostMicroUSD": cost,
        "unitCostUSD": cost / 1e6,
        "unitLabel": "minute",
    }


@contextmanager
def running(folder: Path, *, run: bool = True) -> Iterator[Hub]:
    found = Hub(folder, run=run)
    try:
        yield found
    finally:
        found.close()
