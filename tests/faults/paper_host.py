"""A backend whose host is a folder: each job a file, so that it outlives the processes that made it.

It has no training and no network. It stands for a host that takes any create as a new job, as OpenAI and
Together do, so that a second POST shows up as a second file. Faults are asked for by name:

    lost            the job is made, the answer is lost
    late            the answer is lost at once, the job appears `late_s` later
    busy            429 with Retry-After, for `busy` creates
    refused         400
    down            reads fail
    hidden          `list` and `find` do not show jobs until `lag_s` after they were made
    after           the job is made, and then this error is raised
    no_list         `find` and `list` answer what is no list
    forbidden       a job, a file and what stands of a job answer 403

Accounts: with `owner` the host shows only what that account made; with `key` it does not tell the account.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from orchestrate.data import TrainingData
from orchestrate.errors import (
    HostUnavailable,
    InvalidRequest,
    NotFound,
    OutcomeUnknown,
    PermissionRefused,
    RateLimited,
    UnexpectedAnswer,
)
from orchestrate.profile import Profile
from orchestrate.providers.base import (
    Cancels,
    HoldsFiles,
    KeepsCheckpoints,
    Measures,
    NamesAccount,
    Progress,
    key_account,
)
from orchestrate.settings.config import HostConfig
from orchestrate.spec import JobSpec
from orchestrate.types import (
    Account,
    Checkpoint,
    Event,
    Feature,
    Job,
    JobHandle,
    JobStatus,
    MetricPoint,
    Problem,
    Quote,
    RemoteDataset,
    Translation,
)


class BoundHost(NamesAccount, HoldsFiles, Measures, KeepsCheckpoints):
    """A host that cannot cancel a job."""

    profile = Profile(
        kind="paper",
        title="Paper",
        provider="paper_host:PaperHost",
        keyless=True,
        statuses={
            "queued": JobStatus.QUEUED,
            "running": JobStatus.RUNNING,
            "done": JobStatus.SUCCEEDED,
            "broken": JobStatus.FAILED,
            "stopped": JobStatus.CANCELLED,
        },
    )
    features = frozenset({Feature.SFT, Feature.EVENTS, Feature.METRICS, Feature.CHECKPOINTS})
    missing: ClassVar = {}

    def __init__(
        self,
        folder: Path,
        *,
        timeout_s: float = 1.0,
        name: str = "paper",
        owner: str = "",
        key: str = "",
        **faults: Any,
    ) -> None:
        super().__init__(HostConfig(name=name, base_url=f"file://{folder}", timeout_s=timeout_s))
        self.owner, self.key = owner, key
        self.folder = folder
        self.faults = faults
        self.requests: list[str] = []
        (folder / "jobs").mkdir(parents=True, exist_ok=True)

    # -- offline

    def translate(self, spec: JobSpec) -> Translation:
        return Translation(provider=self.name, model=spec.model_for(self.name), settings=(), body={})

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        return []

    def quote(self, spec: JobSpec, *_: Any, **__: Any) -> Quote:
        free = Decimal(0)
        return Quote(provider=self.name, model="m", low_usd=free, expected_usd=free, high_usd=free)

    # -- submitting

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        self._log("upload")
        # No two files of a host have one id, whosever they are.
        id = f"file-{self.owner}-{data.digest[:8]}"
        remote = RemoteDataset(provider=self.name, digest=data.digest, train_id=id)
        return self.hold(remote)

    def hold(self, remote: RemoteDataset) -> RemoteDataset:
        """Have this file, as if it had been uploaded once."""
        self._upload(remote).touch()
        return remote

    # -- accounts

    def account(self) -> Account:
        if self.key:
            return Account(id=f"key {self.key}", reported=False)
        return Account(id=self.owner, reported=True) if self.owner else key_account(self.config, self.host)

    def holds(self, remote: RemoteDataset) -> bool:
        self._permit()
        return self._upload(remote).exists()

    def _upload(self, remote: RemoteDataset) -> Path:
        return self.folder / f"upload-{self.owner}-{remote.train_id}"

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        self._log("create")
        if self.faults.get("refused"):
            raise InvalidRequest(self.name, "no such model", status=400, code="bad")
        if self.faults.get("busy", 0) > 0:
            self.faults["busy"] -= 1
            raise RateLimited(
                self.name, "slow down", status=429, retry_after_s=self.faults.get("retry_after_s", 0.01)
            )
        if raised := self.faults.get("raises"):
            raise raised
        late_s = self.faults.get("late_s", 0.0)
        handle = self.add(ref, appears=time.time() + (late_s or self.faults.get("lag_s", 0.0)))
        if after := self.faults.get("after"):
            raise after
        if late_s or self.faults.get("lost"):
            raise OutcomeUnknown(self.name, ref, "connection reset")
        return handle

    def add(self, ref: str, *, appears: float = 0.0, **values: Any) -> JobHandle:
        job_id = f"job-{uuid.uuid4().hex[:12]}"
        body = {"id": job_id, "ref": ref, "state": "queued", "appears": appears, "at": time.time()} | values
        body["owner"] = self.owner
        self._write(body)
        return JobHandle(provider=self.name, job_id=body["id"], ref=ref)

    def find(self, ref: str) -> list[JobHandle]:
        self._log("find")
        return [job.handle for job in self._shown() if job.handle.ref == ref]

    # -- reading

    def get(self, job: JobHandle) -> Job:
        self._log("get")
        self._permit()
        if not any(body["id"] == job.job_id for body in self._mine()):
            raise NotFound(self.name, f"no job {job.job_id}", status=404)
        return self._job(json.loads(self._file(job.job_id).read_text()))

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        self._log("list")
        yield from self._shown()

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        self._log("events")
        events = self._read(job).get("events", [])
        ids = [e["id"] for e in events]
        start = ids.index(after) + 1 if after in ids else 0
        for event in events[start:]:
            yield Event(
                id=event["id"], at=datetime(2026, 1, 1, tzinfo=UTC), level="info", message=event["message"]
            )

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        self._log("metrics")
        return [MetricPoint(step=m["step"], values=m["values"]) for m in self._read(job).get("metrics", [])]

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        self._log("checkpoints")
        return [Checkpoint(id=c["id"], step=c["step"]) for c in self._read(job).get("checkpoints", [])]

    def _permit(self) -> None:
        if self.faults.get("forbidden"):
            raise PermissionRefused(self.name, "not for this key", status=403)

    # -- for the tests

    def set(self, job_id: str, **values: Any) -> None:
        self._write(json.loads(self._file(job_id).read_text()) | values)

    def _write(self, body: dict[str, Any]) -> None:
        """Whole, whoever reads the jobs meanwhile."""
        file = self._file(body["id"])
        draft = file.with_suffix(f".{uuid.uuid4().hex}")
        draft.write_text(json.dumps(body))
        draft.replace(file)

    def show(self) -> None:
        """The jobs that were late appear now."""
        for job in self.jobs():
            self.set(job["id"], appears=0.0)

    def jobs(self, ref: str | None = None) -> list[dict[str, Any]]:
        """All that the host has, shown or not."""
        found = [json.loads(f.read_text()) for f in sorted((self.folder / "jobs").glob("*.json"))]
        return [job for job in found if ref is None or job["ref"] == ref]

    def posts(self) -> int:
        return sum(1 for line in self._log_file.read_text().splitlines() if line == "create")

    @property
    def _log_file(self) -> Path:
        return self.folder / "requests.log"

    def _log(self, request: str) -> None:
        self.requests.append(request)
        with self._log_file.open("a") as log:
            log.write(f"{request}\n")
        if self.faults.get("down") and request not in ("create", "upload"):
            raise HostUnavailable(self.name, "no answer", status=503)

    def _file(self, job_id: str) -> Path:
        return self.folder / "jobs" / f"{job_id}.json"

    def _read(self, job: JobHandle) -> dict[str, Any]:
        return json.loads(self._file(job.job_id).read_text())

    def _mine(self) -> list[dict[str, Any]]:
        return [body for body in self.jobs() if body.get("owner", "") == self.owner]

    def _shown(self) -> list[Job]:
        if self.faults.get("no_list"):
            raise UnexpectedAnswer(self.name, "no list of jobs")
        return [self._job(body) for body in self._mine() if body["appears"] <= time.time()]

    def _job(self, body: dict[str, Any]) -> Job:
        return Job(
            handle=JobHandle(provider=self.name, job_id=body["id"], ref=body["ref"]),
            status=self.profile.status(body["state"]),
            raw_status=body["state"],
            tuned_model=body.get("model"),
            trained_tokens=body.get("tokens"),
            cost_usd=Decimal(body["cost"]) if "cost" in body else None,
        )


class PaperHost(BoundHost, Cancels):
    features = BoundHost.features | {Feature.CANCEL}

    def cancel(self, job: JobHandle) -> None:
        self._log("cancel")
        if self._read(job)["state"] in ("queued", "running"):
            self.set(job.job_id, state="stopped")


class Paper:
    """Training data as the protocol sees them: a digest."""

    digest = "d" * 64
    digests = (digest,)
