"""A stand-in of a Ray head on loopback, for its Jobs API as the installed Ray's own client uses it: what it
takes and what it answers are Ray's own types. The real head is in `test_ray.py`."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from typing import Any

import pytest
from tests.http_server import Handler, Running

pytest.importorskip("aiohttp_cors", reason="ray[default] is not installed")
DRIVER = {"type": "DRIVER", "job_id": "01000000", "status": "RUNNING", "entrypoint": "", "metadata": {}}
"""What a user has open on the cluster; no submitted job, and in each list."""


class Head:
    def __init__(self) -> None:
        self.jobs: dict[str, dict[str, Any]] = {}
        self.faults: list[str] = []
        self.asked: list[Any] = []
        """Ray's own `JobSubmitRequest`s."""
        self.server = Running(_Handler, head=self)
        self.url = self.server.url

    def newest(self, status: str, **fields: Any) -> None:
        self.jobs[list(self.jobs)[-1]] |= {"status": status, **fields}

    def end(self, message: str, ran_s: int) -> None:
        now = int(time.time() * 1000)
        self.newest("FAILED", message=message, start_time=now - ran_s * 1000, end_time=now)

    def close(self) -> None:
        self.server.close()


class _Handler(Handler):
    head: Head

    def do_GET(self) -> None:
        import ray
        from ray.dashboard.modules.job.common import JobLogsResponse
        from ray.dashboard.modules.job.pydantic_models import JobDetails
        from ray.dashboard.modules.version import CURRENT_VERSION, VersionResponse

        parts = self.path.strip("/").split("/")
        if parts == ["api", "version"]:
            told = VersionResponse(CURRENT_VERSION, ray.__version__, ray.__commit__, "session_of_the_tests")
            self._answer(200, asdict(told))
        elif parts == ["api", "jobs"]:
            listed: list[Any] = [JobDetails(**job) for job in (*self.head.jobs.values(), DRIVER)]
            self._answer(200, [one.model_dump(mode="json") for one in listed])
        elif parts[2] in self.head.jobs:
            self._answer(200, asdict(JobLogsResponse(logs=self.head.jobs[parts[2]].get("message") or "")))
        else:
            self._answer(404, f"Job {parts[2]} does not exist")

    def do_POST(self) -> None:
        from ray.dashboard.modules.job.common import JobStopResponse

        body = self.body()
        parts = self.path.strip("/").split("/")
        if parts == ["api", "jobs"]:
            self._submit(json.loads(body))
        elif parts[2] not in self.head.jobs:
            self._answer(404, f"Job {parts[2]} does not exist")
        else:
            job = self.head.jobs[parts[2]]
            job |= {"status": "STOPPED", "end_time": int(time.time() * 1000)}
            self._answer(200, asdict(JobStopResponse(stopped=True)))

    def _submit(self, body: dict[str, Any]) -> None:
        from ray.dashboard.modules.job.common import (
            JobSubmitRequest,
            JobSubmitResponse,
            validate_request_type,
        )

        fault = self.head.faults.pop(0) if self.head.faults else ""
        if fault == "lost before":
            self.close_connection = True
            return
        if fault == "500 before":
            self._answer(500, "No available agent to submit job, please try again later.")
            return
        if fault == "refused":
            body |= {"runtime_env": "none"}
        try:
            asked: Any = validate_request_type(body, JobSubmitRequest)
        except TypeError as error:
            self._answer(400, str(error))
            return
        self.head.asked.append(asked)
        job = {
            "type": "SUBMISSION",
            "submission_id": asked.submission_id,
            "status": "PENDING",
            "entrypoint": asked.entrypoint,
            "start_time": int(time.time() * 1000),
            "metadata": asked.metadata,
            "runtime_env": asked.runtime_env,
        }
        if fault == "taken":  # by another submit of the same attempt, a moment ago
            self.head.jobs[asked.submission_id] = job
        if asked.submission_id in self.head.jobs:
            # The head has this from a node's agent, whose 400 is an error like any other to it.
            told = f"ValueError: Job with submission_id {asked.submission_id} already exists."
            self._answer(500, f"RuntimeError: Request failed with status code 400: {told}")
            return
        self.head.jobs[asked.submission_id] = job
        if fault == "lost":
            self.close_connection = True
        elif fault == "500 after":
            self._answer(500, "Internal Server Error")
        else:
            self._answer(200, asdict(JobSubmitResponse(asked.submission_id, asked.submission_id)))

    def _answer(self, status: int, body: object) -> None:
        plain = {"content-type": "text/plain"}
        self.answer(status, body.encode() if isinstance(body, str) else body, plain if status != 200 else {})
