"""It trains nothing and says so. A package needs this class, its profile, and the entry point in its
pyproject.toml."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from orchestrate.data import TrainingData
from orchestrate.data.dialects import target
from orchestrate.errors import NotFound
from orchestrate.providers.base import Cancels, Progress
from orchestrate.providers.settings import Rows
from orchestrate.spec import JobSpec
from orchestrate.types import (
    Event,
    Feature,
    Job,
    JobHandle,
    RemoteDataset,
    Translation,
)
from orchestrate_shelf.profile import PROFILE

_ABSENT = "a shelf only keeps things"
_FEATURES = frozenset({Feature.SFT, Feature.CANCEL, Feature.EVENTS})


class ShelfProvider(Cancels):
    profile = PROFILE
    features: ClassVar[frozenset[Feature]] = _FEATURES
    missing: ClassVar[Mapping[Feature, str]] = {f: _ABSENT for f in Feature if f not in _FEATURES}

    def translate(self, spec: JobSpec) -> Translation:
        rows = Rows(self.name, spec)
        for name in ("train", "validation", "suffix"):
            if rows.given(name):
                rows.keep(name, name)
        if spec.method.type == "sft":
            rows.keep("method.type", "method", "sft")
        else:
            rows.refuse("method.type", _ABSENT)
        rows.offer("epochs", "epochs", 1)
        rows.map("adapter.type", None, "none", "nothing is trained", exact=False)
        return rows.build(spec.model_for(self.name))

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        self.config.require_key().reveal()  # what a host is sent: in any text the key itself is masked
        data.train.write(target(self.name, self.profile), self._folder)
        return RemoteDataset(provider=self.name, digest=data.digest, train_id=data.train.digest)

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        body = {**translation.body, "training_file": remote.train_id}
        label = str(self.config.options.get("label", ""))
        record = {
            "ref": ref,
            "label": label,
            "at": datetime.now(UTC).isoformat(),
            "word": "shelved",
            "body": body,
        }
        (self._folder / f"{ref}.json").write_text(json.dumps(record))
        return JobHandle(provider=self.name, job_id=ref, ref=ref)

    def find(self, ref: str, *, since: datetime | None = None) -> list[JobHandle]:
        return [job.handle for job in self.list(since=since) if job.handle.ref == ref]

    def get(self, job: JobHandle) -> Job:
        record = self._record(job)
        at = datetime.fromisoformat(record["at"])
        return Job(
            handle=JobHandle(provider=self.name, job_id=record["ref"], ref=record["ref"]),
            status=self.profile.status(record["word"]),
            raw_status=record["word"],
            created_at=at,
            finished_at=at,
            payload=record,
        )

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        handles = (JobHandle(provider=self.name, job_id=p.stem) for p in self._folder.glob("*.json"))
        for job in map(self.get, handles):
            if since is None or job.created_at is None or job.created_at >= since:
                yield job

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        record = self._record(job)
        at = datetime.fromisoformat(record["at"])
        found = [Event(id=word, at=at, level="info", message=word) for word in ("taken", record["word"])]
        places = [n for n, event in enumerate(found) if event.id == after]
        return iter(found[places[0] + 1 :] if places else found)

    def cancel(self, job: JobHandle) -> None:
        if not self.get(job).status.terminal:
            self._file(job).write_text(json.dumps({**self._record(job), "word": "dropped"}))

    @property
    def _folder(self) -> Path:
        return Path(str(self.config.options["home"])) / "shelf"

    def _file(self, job: JobHandle) -> Path:
        return self._folder / f"{job.job_id}.json"

    def _record(self, job: JobHandle) -> dict[str, Any]:
        try:
            return json.loads(self._file(job).read_bytes())
        except FileNotFoundError as error:
            raise NotFound(self.name, f"no job {job.job_id}") from error


__all__ = ["ShelfProvider"]
