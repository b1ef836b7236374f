"""Runs that were not made through the gateway, as its clients see them: imported jobs and their models, what
these were migrated to, and the runs that the configuration names.

Each is shown as a job that no key has made. Imported ones belong to the project `default`.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from orchestrate.errors import OrchestrateError
from orchestrate.gateway.terms import Target
from orchestrate.migration import importing, moved
from orchestrate.types import GatewayJob, GatewayKey, JobStatus, Run
from orchestrate.wire.openai.tuning import CreateJob

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

PROJECT = "default"
_FRESH_S = 2.0
_SHARE = 20.0
"""What was read is taken for so many times as long as it took, at least."""
Found = tuple[GatewayJob, Run]


@dataclass(frozen=True)
class _Known:
    """What the store has."""

    until_s: float = 0.0
    jobs: dict[str, Run] = field(default_factory=dict[str, Run])
    """Imported ones by their host's id, newest first."""
    models: dict[str, Run] = field(default_factory=dict[str, Run])
    """Old name -> the run that answers in its place."""


class Outside:
    def __init__(self, ft: Workspace, targets: Mapping[str, Target]) -> None:
        self._ft = ft
        self._runs = {name: target.run for name, target in targets.items() if target.run is not None}
        self._known, self._lock = _Known(), threading.Lock()

    def jobs(
        self, project: str, before: tuple[datetime, str] | None, limit: int, metadata: Mapping[str, str]
    ) -> list[GatewayJob]:
        """Newest first, those that were made `before` a time and an id."""
        found: list[Run] = []
        for id, run in self._fresh().jobs.items() if project == PROJECT else ():
            if before is not None and (run.created_at, id) >= before:
                continue
            if metadata.items() <= (run.spec.get("tags") or {}).items():
                found.append(run)
            if len(found) >= limit:
                break
        files = self._files(found)
        return [job_of(run, files=files.get(run.id)) for run in found]

    def job(self, id: str, project: str) -> Found | None:
        known = self._fresh().jobs.get(id) if project == PROJECT else None
        if known is None:
            return None
        run = self._ft.store.runs.get(known.id)  # as it is now
        return job_of(run, files=self._files([run]).get(run.id)), run

    def _files(self, runs: Sequence[Run]) -> dict[str, dict[str, str]]:
        """Run id -> the ids of its files, by split."""
        records = self._ft.store.history.records(importing.DETAILS, [run.id for run in runs])
        return {
            record.run_id: {split: file["id"] for split, file in record.data.get("files", {}).items()}
            for record in records
        }

    def model(self, name: str, project: str) -> Found | None:
        run = self._mapped(name) or (self._fresh().models.get(name) if project == PROJECT else None)
        return None if run is None else (job_of(run, name), run)

    def models(self, key: GatewayKey) -> list[Found]:
        """Those that answer, by name."""
        names = {name: run for name in self._runs if (run := self._mapped(name))}
        known = self._fresh().models if key.project == PROJECT else {}
        return [(job_of(run, name), run) for name, run in {**known, **names}.items()]

    def _mapped(self, name: str) -> Run | None:
        asked = self._runs.get(name)
        with suppress(OrchestrateError):
            run = None if asked is None else self._ft.store.runs.get(asked)
            return run if run is not None and run.status is JobStatus.SUCCEEDED else None
        return None

    # -- the store -----------------------------------------------------------------------------------------

    def _fresh(self) -> _Known:
        with self._lock:
            clock = self._ft.store.clock
            if (begun := clock.uptime().seconds) >= self._known.until_s:
                jobs, models = self._read()
                now = clock.uptime().seconds
                self._known = _Known(now + max(_FRESH_S, _SHARE * (now - begun)), jobs, models)
            return self._known

    def _read(self) -> tuple[dict[str, Run], dict[str, Run]]:
        store = self._ft.store
        imported = [run for run in store.runs.referred(importing.REF_PREFIX) if self._is_here(run)]
        imported.sort(key=lambda run: (run.created_at, run.job_id or ""), reverse=True)
        jobs = {run.job_id: run for run in imported if run.job_id is not None}
        after = moved.successors(store)
        olds = {run.id: run for run in (*store.runs.of_ids(after), *imported)}
        models: dict[str, Run] = {}
        for old in sorted(olds.values(), key=lambda run: (run.created_at, run.id)):
            new = moved.newest(old, after)
            if old.tuned_model is not None and new.status is JobStatus.SUCCEEDED and self._is_here(new):
                models[old.tuned_model] = new
        return jobs, models

    def _is_here(self, run: Run) -> bool:
        """Whether its backend is the one of the configuration, and no sandbox of it or the like."""
        with suppress(OrchestrateError):
            return self._ft.provider(run.provider).host == run.host
        return False


def job_of(run: Run, name: str | None = None, files: Mapping[str, Any] | None = None) -> GatewayJob:
    """A run as a job that no key has made. `name`: of its model, where it is asked by another one than its
    host's; `files`: the ids of its files."""
    ended = run.finished_at or run.updated_at
    return GatewayJob(
        id=run.job_id or run.id,
        key="",
        project=PROJECT,
        created_at=run.created_at,
        asked=_asked(run, files or {}),
        tuned=name or run.tuned_model or "",
        untuned=run.model,
        backend=run.provider,
        spec=run.spec,
        run_id=run.id,
        ended_at=ended if run.status.terminal else None,
        told=True,
    )


def _asked(run: Run, files: Mapping[str, Any]) -> dict[str, Any]:
    """The create request, as far as its host tells it."""
    spec = run.spec
    least: dict[str, Any] = {"model": run.model, "training_file": str(files.get("train") or "unknown")}
    numbers = {"n_epochs": "epochs", "batch_size": "batch_size"}
    numbers["learning_rate_multiplier"] = "learning_rate_multiplier"
    hyper = {name: spec[own] for name, own in numbers.items() if spec.get(own) is not None}
    more = {
        "validation_file": files.get("validation"),
        "suffix": spec.get("suffix"),
        "seed": spec.get("seed"),
        "metadata": spec.get("tags"),
        "hyperparameters": hyper or None,
    }
    method: dict[str, Any] = spec.get("method") or {}
    if method.get("type") == "dpo":
        more["method"] = {"type": "dpo", "dpo": {"hyperparameters": more.pop("hyperparameters") or {}}}
    for name, value in more.items():
        with suppress(ValidationError):  # a value that the API has not is not shown
            CreateJob.model_validate({**least, name: value})
            least[name] = value
    return least
