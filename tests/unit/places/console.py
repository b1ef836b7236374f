"""A stand-in for Anyscale's console on loopback, and not Anyscale itself. It speaks the HTTP of the real
client (`anyscale`): what it takes and what it answers are that client's own models, with no field that they
do not know and none missing that they require. A job's entrypoint is run by a shell, with the job's variables
and no others.

`faults` are taken one by one by the requests that make jobs.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from tests.http_server import Handler, Running

pytest.importorskip("anyscale", reason="orchestrate-ft[anyscale] is not installed")

TOKEN = "sss_ofthetests"
SIGNATURE = "whoever-has-it-may-read"
NATIVE: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "datetime": str,
    "object": object,
}
ERROR_PAGE = b"<html><body>We will be right back</body></html>"
DONE = ("SUCCESS", "TERMINATED", "BROKEN", "OUT_OF_RETRIES")


def checked(kind: str, data: Any, models: Any) -> Any:
    """The data, once the client's own models take it. Raises `ValueError`."""
    if data is None:
        return None
    if inner := re.fullmatch(r"list\[(.*)\]", kind):
        return [checked(inner[1], one, models) for one in data]
    if inner := re.fullmatch(r"dict\(str, (.*)\)", kind):
        return {name: checked(inner[1], one, models) for name, one in data.items()}
    if kind in NATIVE:
        if not isinstance(data, NATIVE[kind]):
            raise ValueError(f"{data!r} is no {kind}")
        return data
    model = getattr(models, kind)
    if not model.openapi_types:
        if data not in model.allowable_values:
            raise ValueError(f"{data!r} is no {kind}")
        return data
    names = {there: here for here, there in model.attribute_map.items()}
    if unknown := set(data) - set(names):
        raise ValueError(f"{kind} has no {unknown}")
    fields = {
        names[name]: checked(model.openapi_types[names[name]], one, models) for name, one in data.items()
    }
    model(**fields)  # raises for what is missing
    return data


class Console:
    def __init__(self, folder: Path, *, run: bool = True) -> None:
        self.folder, self.run = folder, run
        self.jobs: dict[str, dict[str, Any]] = {}
        self.sent: list[dict[str, Any]] = []
        """Bodies of the requests that were to make a job."""
        self.machines: list[dict[str, Any]] = []
        """Of those that were to make a compute config."""
        self.problems: list[str] = []
        """What was not as the client's models have it."""
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.faults: list[str] = []
        self.reading = ""
        """A fault of all lists, while it is set."""
        self.closed = False
        """The bucket with the logs, to this machine."""
        self.made: Callable[[str], None] = lambda id: None
        """Called when a job was made, before that is answered."""
        self.page = 2
        self.forgets: set[str] = set()
        self.keeps: set[str] = set()
        """Jobs that the token may not end."""
        self.endless = False
        """Whether its list names itself as its next page."""
        self.lock = threading.Lock()
        self.over = threading.Event()
        (folder / "bin").mkdir()
        uv = folder / "bin" / "uv"
        uv.write_text(
            f'#!/bin/sh\nwhile [ "$1" != python ]; do shift; done\nshift\nexec "{sys.executable}" "$@"\n'
        )
        uv.chmod(0o755)  # the packages are here already
        self.server = Running(_Handler, console=self)
        self.url = self.server.url

    def make(self, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            id = f"prodjob_{len(self.jobs):026d}"
            at = stamp(datetime.now(UTC))
            self.jobs[id] = {
                "id": id,
                "name": body["name"],
                "created_at": at,
                "creator_id": "usr_me",
                "config": body["config"],
                "state": _state("PENDING"),
                "project_id": body.get("project_id"),
                "overview_url": f"{self.url}/jobs/{id}",
                "is_service": False,
                "cloud_id": "cld_first",
                "tags": body.get("tags") or {},
            }
            if self.run:
                self.start(id)
            self.made(id)
            return {name: value for name, value in self.jobs[id].items() if name not in HERE}

    def start(self, id: str) -> None:
        job = self.jobs[id]
        env = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "HOME": str(self.folder)}
        env |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "ORCHESTRATE_REPORT_S": "0.3"}
        with (self.folder / f"{id}.log").open("wb") as log:
            self.workers[id] = subprocess.Popen(
                ["/bin/sh", "-c", job["config"]["entrypoint"]],
                env=env | job["config"]["runtime_env"]["env_vars"],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running(id)

    def running(self, id: str) -> None:
        self.jobs[id] |= {"state": _state("RUNNING"), "run": _run(id, datetime.now(UTC))}

    def end(self, id: str, state: str, message: str | None = None, ran_s: int | None = None) -> None:
        job, now = self.jobs[id], datetime.now(UTC)
        job["state"] = _state(state, message)
        if "run" not in job and ran_s is None:
            return
        begun = datetime.fromisoformat(job["run"]["created_at"]) if "run" in job else now
        ended = now if ran_s is None else begun + timedelta(seconds=ran_s)
        job["run"] = {**_run(id, begun), "finished_at": stamp(ended)}

    def told(self, id: str) -> dict[str, Any]:
        """As its list has it."""
        job, worker = self.jobs[id], self.workers.get(id)
        if worker is not None and worker.poll() is not None and job["state"]["current_state"] not in DONE:
            code = worker.returncode
            self.end(id, "OUT_OF_RETRIES" if code else "SUCCESS", f"exit code {code}" if code else None)
        more = {"project": {"id": job["project_id"], "name": "default", "directory_name": "default"}}
        user = {"id": "usr_me", "name": "Me", "email": "me@example.com", "username": "me"}
        told = {name: value for name, value in job.items() if name not in HERE}
        run = {"last_job_run": job["run"], "last_job_run_id": job["run"]["id"]} if "run" in job else {}
        return {**told, **more, "creator": user, **run}

    def terminate(self, id: str) -> None:
        if (worker := self.workers.get(id)) is not None and worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        self.end(id, "TERMINATED")

    def kill(self, id: str) -> None:
        """As when its machine dies."""
        os.killpg(self.workers[id].pid, signal.SIGKILL)
        self.workers[id].wait()

    def close(self) -> None:
        self.over.set()
        self.server.close()
        for worker in self.workers.values():
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


HERE = ("tags", "run")
"""Of what is kept of a job: no fields of the API's."""


class _Handler(Handler):
    console: Console

    def do_GET(self) -> None:
        if self.path.startswith("/logs/"):  # a bucket's presigned address, which is nobody's to give a token
            assert "cookie" not in self.headers
            id = urlsplit(self.path).path.removeprefix("/logs/run_")
            log = self.console.folder / f"{id}.log"
            data = log.read_bytes() if log.is_file() else b""
            self._send(403 if self.console.closed else 200, data, "text/plain")
        elif self._known():
            self._get()

    def _known(self) -> bool:
        if f"cli_token={TOKEN}" in self.headers.get("cookie", ""):
            return True
        self._refuse(401, "Could not find user for that token.")
        return False

    def _get(self) -> None:
        url = urlsplit(self.path)
        query = dict(parse_qsl(url.query))
        now = stamp(datetime.now(UTC))
        match url.path.strip("/").split("/"):
            case ["api", "v2", "userinfo"]:
                self._answer("UserinfoResponse", {"result": USER})
            case ["api", "v2", "decorated_ha_jobs"]:
                self._list(parse_qsl(url.query))
            case ["api", "v2", "projects", "find_by_name"]:
                found = [_project("ours")] if query["name"] == "ours" else []
                self._answer("ProjectListResponse", {"results": found, "metadata": {"total": len(found)}})
            case ["api", "v2", "workos", "deployment_infra"]:
                self._answer("DeploymentinfraresponseResponse", {"result": {"deployment_infra": "aws"}})
            case ["api", "v2", "logs", "job_logs_download_v2", run]:
                self._logs(run)
            case ["ext", "v0", "clouds", "default"]:
                self._answer("CloudResponse", {"result": _cloud("first")}, outer=True)
            case ["ext", "v0", "cluster_computes", id]:
                config = {"cloud_id": "cld_first", "head_node_type": {"name": "head-node"}}
                self._answer("ClustercomputeResponse", {"result": _computes(id, config)}, outer=True)
            case ["ext", "v0", "projects", "default_project"]:
                self._answer("ProjectResponse", {"result": _project("default", outer=True)}, outer=True)
            case ["ext", "v0", "cluster_environment_builds", "default"]:
                build = {
                    "id": "bld_default",
                    "cluster_environment_id": "apt_default",
                    "creator_id": "usr_me",
                    "created_at": now,
                    "last_modified_at": now,
                    "revision": 1,
                    "status": "succeeded",
                    "is_byod": False,
                }
                self._answer("ClusterenvironmentbuildResponse", {"result": build}, outer=True)
            case _:
                self._refuse(404, f"there is no {self.path}")

    def do_POST(self) -> None:
        body = json.loads(self.body() or b"{}")
        if not self._known():
            return
        match urlsplit(self.path).path.strip("/").split("/"):
            case ["api", "v2", "decorated_ha_jobs", "create"]:
                self.console.sent.append(body)
                if self._taken("CreateInternalProductionJob", body):
                    self._make(body)
            case ["api", "v2", "compute_templates"]:
                self.console.machines.append(body)
                if self._taken("CreateComputeTemplate", body):
                    id = f"cpt_{len(self.console.machines)}"
                    self._answer("ComputetemplateResponse", {"result": _computes(id, body["config"])})
            case ["api", "v2", "clouds", "find_by_name"]:
                if body["name"] != "first":
                    self._refuse(404, f"Cloud {body['name']} not found")
                elif self._taken("CloudNameOptions", body):
                    self._answer("CloudResponse", {"result": _cloud("first")})
            case ["api", "v2", "builds", "get_or_create_build_from_image_uri"]:
                if self._taken("GetOrCreateBuildFromImageUriRequest", body):
                    self._answer("DecoratedbuildResponse", {"result": _build()})
            case ["ext", "v0", "projects", "search"]:
                wanted = body["name"]["equals"]
                found = [_project(wanted, outer=True)] if wanted == "ours" else []
                self._answer("ProjectListResponse", {"results": found, "metadata": {"total": 1}}, outer=True)
            case ["ext", "v0", "production_jobs", id, "terminate"]:
                self._terminate(id)
            case _:
                self._refuse(404, f"there is no {self.path}")

    def _taken(self, kind: str, body: dict[str, Any]) -> bool:
        try:
            checked(kind, body, _models())
        except ValueError as error:
            self.console.problems.append(str(error))
            self._refuse(422, str(error))
            return False
        return True

    def _make(self, body: dict[str, Any]) -> None:
        fault = self.console.faults.pop(0) if self.console.faults else ""
        if fault == "refused":
            self._refuse(400, "no such instance type")
        elif fault == "echo":  # as frameworks answer what they do not take
            variables = sorted(body["config"]["runtime_env"]["env_vars"].items())
            told = {"detail": [{"loc": ["body"], "input": dict(variables)}]}
            self._send(422, json.dumps(told).encode(), "application/json")
        elif fault == "500 before":
            self._refuse(500, "internal")
        elif fault.isdigit():
            self._refuse(int(fault), "said before anything was made")
        elif fault == "lost before":
            self.close_connection = True
        else:
            job = self.console.make(body)
            if fault == "500 after":
                self._refuse(500, "internal")
            elif fault.endswith(" after"):
                self._refuse(int(fault.split()[0]), "said after it was made")
            elif fault == "garbled":
                self._send(200, ERROR_PAGE, "text/html")
            elif fault == "moved":  # to where it is made again
                self._send(307, b"", "text/plain", location=self.path)
            elif fault == "slow":
                self.console.over.wait(240)
            elif fault == "lost":
                self.close_connection = True
            elif fault == "not TLS":
                self.close_connection = True
                os.write(self.connection.fileno(), b"what no key was used for")
            else:
                self._answer("InternalproductionjobResponse", {"result": job})

    def _terminate(self, id: str) -> None:
        console = self.console
        if id not in console.jobs or id in console.forgets:
            self._refuse(404, f"Job {id} not found")
        elif id in console.keeps:
            self._refuse(403, f"Job {id} is not yours")
        elif console.told(id)["state"]["current_state"] in DONE:
            self._refuse(400, f"Job {id} has ended")
        else:
            console.terminate(id)
            job = {name: value for name, value in console.jobs[id].items() if name in ENDED}
            self._answer("ProductionjobResponse", {"result": job}, outer=True)

    def _list(self, query: list[tuple[str, str]]) -> None:
        console, asked = self.console, dict(query)
        if console.reading == "page":
            self._send(200, ERROR_PAGE, "text/html")
            return
        if console.reading:
            self._refuse(int(console.reading), "internal")
            return
        assert asked["type_filter"] == "BATCH_JOB" and asked["archive_status"] == "ALL"
        wanted = {value for name, value in query if name == "tag_filter"}
        found = [
            console.told(id)
            for id, job in reversed(console.jobs.items())
            if id not in console.forgets and wanted <= {f"{k}:{v}" for k, v in job["tags"].items()}
        ]
        start = int(asked.get("paging_token", "0"))
        rest = found[start + console.page :]
        # A job is made meanwhile: the last one of a page is the first of the next.
        further = str(start if console.endless else start + console.page - 1)
        metadata = {"total": len(found), "next_paging_token": further if rest or console.endless else None}
        page = {"results": found[start : start + console.page], "metadata": metadata}
        self._answer("DecoratedproductionjobListResponse", page)

    def _logs(self, run: str) -> None:
        chunk = {
            "chunk_name": "0",
            "chunk_url": f"{self.console.url}/logs/{run}?X-Amz-Signature={SIGNATURE}",
            "cluster_id": "ses_1",
            "file_name": "job.log",
            "instance_id": "i-1",
            "node_ip": "10.0.0.1",
            "node_type": "head-node",
            "session_id": "ses_1",
            "size": 1,
        }
        self._answer("LogdownloadresultResponse", {"result": {"log_chunks": [chunk]}})

    def _refuse(self, status: int, why: str) -> None:
        self._send(status, json.dumps({"error": {"detail": why}}).encode(), "application/json")

    def _answer(self, kind: str, body: dict[str, Any], *, outer: bool = False) -> None:
        """`outer`: of the API for everybody, `/ext/v0`."""
        try:
            checked(kind, body, _models(outer=outer))
        except ValueError as error:
            self.console.problems.append(f"{kind}: {error}")
        self._send(200, json.dumps(body).encode(), "application/json")

    def _send(self, status: int, data: bytes, kind: str, location: str = "") -> None:
        self.answer(status, data, {"content-type": kind} | ({"location": location} if location else {}))


ENDED = ("id", "name", "created_at", "creator_id", "config", "state", "project_id", "overview_url")
"""Of a job, in the API for everybody."""
USER = {
    "id": "usr_me",
    "email": "me@example.com",
    "name": "Me",
    "username": "me",
    "verified": True,
    "organization_permission_level": "owner",
    "organization_ids": ["org_ours"],
    "organizations": [],
    "ld_hash": "",
    "ld_hash_fields": [],
    "pylon_hash": "",
}


def _models(*, outer: bool = False) -> Any:
    if outer:
        from anyscale.sdk.anyscale_client import models
    else:
        from anyscale.client.openapi_client import models
    return models


def _state(word: str, error: str | None = None) -> dict[str, Any]:
    at = stamp(datetime.now(UTC))
    return {"id": "state_1", "state_transitioned_at": at, "current_state": word, "error": error}


def _run(id: str, at: datetime) -> dict[str, Any]:
    return {
        "id": f"run_{id}",
        "ray_session_name": "session_1",
        "ray_job_id": "01000000",
        "status": "RUNNING",
        "created_at": stamp(at),
        "cluster_id": "ses_1",
        "environment_id": "env_1",
        "creator_id": "usr_me",
        "cluster": {"id": "ses_1", "name": "cluster"},
    }


def _cloud(name: str) -> dict[str, Any]:
    return {
        "id": f"cld_{name}",
        "name": name,
        "provider": "AWS",
        "region": "us-west-2",
        "credentials": "arn",
        "creator_id": "usr_me",
        "type": "PUBLIC",
        "created_at": stamp(datetime.now(UTC)),
        "is_default": True,
        "customer_aggregated_logs_config_id": "none",
    }


def _computes(id: str, config: dict[str, Any]) -> dict[str, Any]:
    now = stamp(datetime.now(UTC))
    return {
        "id": id,
        "name": id,
        "config": config,
        "version": 1,
        "anonymous": True,
        "creator_id": "usr_me",
        "organization_id": "org_ours",
        "created_at": now,
        "last_modified_at": now,
    }


def _project(name: str, *, outer: bool = False) -> dict[str, Any]:
    whole = {
        "id": f"prj_{name}",
        "name": name,
        "directory_name": name,
        "created_at": stamp(datetime.now(UTC)),
        "organization_id": "org_ours",
        "is_default": name == "default",
        "parent_cloud_id": "cld_first",
    }
    return {**whole, "cluster_config": ""} if outer else whole


def _build() -> dict[str, Any]:
    now = stamp(datetime.now(UTC))
    user = {"id": "usr_me", "name": "Me", "email": "me@example.com", "username": "me"}
    template = {
        "id": "apt_1",
        "name": "image",
        "creator_id": "usr_me",
        "organization_id": "org_ours",
        "created_at": now,
        "last_modified_at": now,
        "anonymous": True,
        "is_default": False,
    }
    return {
        "id": "bld_of_image",
        "application_template_id": "apt_1",
        "application_template": template,
        "creator": user,
        "creator_id": "usr_me",
        "created_at": now,
        "last_modified_at": now,
        "revision": 1,
        "status": "succeeded",
        "is_byod": True,
    }


def stamp(at: datetime) -> str:
    return at.isoformat()


@contextmanager
def running(folder: Path, *, run: bool = True) -> Iterator[Console]:
    found = Console(folder, run=run)
    try:
        yield found
        assert not found.problems
    finally:
        found.close()
