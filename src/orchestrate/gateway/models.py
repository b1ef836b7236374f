"""Base models, tuned models, permissions on their checkpoints, and grader trials."""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import msgspec
from msgspec.structs import replace
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate import catalog
from orchestrate.errors import OrchestrateError
from orchestrate.gateway import job_objects, terms
from orchestrate.gateway.calls import GatewayRequest, endpoint, no_model, not_tuned
from orchestrate.gateway.grader_trials import SECONDS, tried
from orchestrate.gateway.jobs import PROJECT, Outside, until
from orchestrate.http.wire import HostError, openai, parse
from orchestrate.http.wire.openai import page_of, page_with_ends
from orchestrate.http.wire.openai.tuning import (
    LabelModelGrader,
    Permit,
    RunGrader,
    ScoreModelGrader,
    ValidateGrader,
    graded,
)
from orchestrate.local.objectives.graders import ELSEWHERE, refusal, runs_code
from orchestrate.store.gateway import PERMISSION
from orchestrate.types import GatewayJob, GatewayKey, JobStatus, Run

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace

_PERMISSIONS = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
_MOST_LISTS = 256
"""Maximum number of cached model lists, one for each set of key limits."""
TRIALS = 2
"""Maximum number of concurrent grader trials. Each may use one CPU core and 1 GB of memory."""
_GRADERS = "/v1/fine_tuning/alpha/graders"
_BROKEN = (AttributeError, KeyError, TypeError, ValueError)
_CREATED = 1_721_260_800
"""The creation date shown for model names in the configuration: 2024-07-18."""


@dataclass(frozen=True)
class _Made:
    job: GatewayJob
    """The job, without its request fields."""
    shown: dict[str, Any]


@dataclass(frozen=True)
class _List:
    body: bytes
    changes: int
    """The number of changes to jobs when the list was created."""
    until_s: float
    """When the list expires, on the uptime clock in seconds. Until then, changes that another gateway made in
    the same store may be missing."""


class ModelRoutes:
    def __init__(self, ft: Workspace, settings: terms.GatewaySettings, outside: Outside) -> None:
        self._ft, self._terms, self._outside = ft, settings, outside
        self._jobs, self._objects = ft.store.gateway_jobs, ft.store.gateway_objects
        self._trials = threading.BoundedSemaphore(TRIALS)
        self._listing = threading.Lock()
        self._lists: dict[bytes, _List] = {}
        self._ended: dict[str, tuple[int, _Made | None]] = {}
        """For each finished job: the hash of its stored record, and the resulting model."""

    def routes(self) -> list[BaseRoute]:
        return [
            endpoint("/v1/models", "GET", self.listed),
            endpoint("/v1/models/{id:path}", "GET", self.retrieve),
            endpoint("/v1/models/{id:path}", "DELETE", self.delete),
            endpoint(_PERMISSIONS, "POST", self.permit),
            endpoint(_PERMISSIONS, "GET", self.permissions),
            endpoint(f"{_PERMISSIONS}/{{id}}", "DELETE", self.forbid),
            endpoint(f"{_GRADERS}/validate", "POST", validate_grader),
            endpoint(f"{_GRADERS}/run", "POST", self.run_grader),
        ]

    # -- models --------------------------------------------------------------------------------------------

    def listed(self, call: GatewayRequest) -> Any:
        """Return the list of models, encoded as JSON. The list has no pages, and encoding a thousand models
        takes time, so the result is cached until something changes."""
        key, changes = call.key, self._jobs.changes
        scope = msgspec.json.encode((key.project, key.models, key.backends, key.map))
        begun = self._ft.store.clock.uptime().seconds
        kept = self._lists.get(scope)
        if kept is None or kept.changes != changes or begun >= kept.until_s:
            with self._listing:
                body = msgspec.json.encode({"object": "list", "data": self._models_of(key)})
            kept = _List(body, changes, until(self._ft.store.clock, begun))
            if len(self._lists) >= _MOST_LISTS:
                self._lists.clear()
            self._lists[scope] = kept
        return Response(kept.body, media_type="application/json")

    def _models_of(self, key: GatewayKey) -> list[dict[str, Any]]:
        bases = [self._base(name, key) for name in terms.names(self._terms.models, key)]
        ours = [made for made in self._made_in(key.project) if _may(key, made.job)]
        outside = [self._tuned(j, run) for j, run in self._outside.models(key) if _may(key, j)]
        return [*bases, *(made.shown for made in ours), *outside]

    def _made_in(self, project: str) -> list[_Made]:
        """Return the tuned models of a project that can answer, newest first. The result of a finished job is
        read only once."""
        records = self._jobs.records(project)
        new = {
            id: text
            for id, text in records
            if (known := self._ended.get(id)) is None or known[0] != hash(text)
        }
        jobs = [job for text in new.values() if (job := GatewayJob.from_json(text)).ended_at is not None]
        runs = {run.id: run for run in self._ft.store.runs.of_ids(job.run_id for job in jobs if job.run_id)}
        for job in jobs:
            run = runs.get(job.run_id or "")
            if run is None or not run.status.terminal:
                continue
            made = None
            if _answers(job, run):
                made = _Made(replace(job, asked={}, spec={}, notes=()), self._tuned(job, run))
            self._ended[job.id] = hash(new[job.id]), made
        found = (self._ended.get(id, (0, None))[1] for id, _ in records)
        return [made for made in found if made is not None]

    def retrieve(self, call: GatewayRequest) -> Any:
        id = call.path("id")
        if id in terms.names(self._terms.models, call.key):
            return self._base(id, call.key)
        job, run, _ = self.made(call.key, id)
        return {**self._tuned(job, run), "id": id}

    def delete(self, call: GatewayRequest) -> Any:
        """Delete a model from the gateway, which then no longer serves it. The model's files on its backend
        remain."""
        id = call.path("id")
        if not id.startswith("ft:"):
            raise HostError(403, "Only tuned models can be deleted", code="insufficient_permissions")
        job, _, step = self.made(call.key, id)
        if step is not None or job.project != call.project or job.outside:
            raise HostError(
                403,
                "You can only delete tuned models that you created here. Their checkpoints cannot be deleted",
            )
        self._jobs.change(job.id, lambda job: replace(job, model_deleted=True))
        call.about(id)
        return openai.deleted(id, "model")

    def _base(self, name: str, key: GatewayKey) -> dict[str, Any]:
        target = terms.target_of(name, self._terms.models, key)
        shutdown = None
        if target is not None:
            with suppress(OrchestrateError):
                profile = self._ft.provider(target.backend).profile
                host = catalog.resolve(target.model, profile).host
                shutdown = host.shutdown.isoformat() if host and host.shutdown else None
        owner = target.backend if target else self._terms.organization
        return openai.model(name, _CREATED, owner, shutdown)

    def _tuned(self, job: GatewayJob, run: Run) -> dict[str, Any]:
        base = self._base(job.base, GatewayKey(name="", created_at=job.created_at))
        made = (run.finished_at or run.updated_at).timestamp()
        return openai.model(job.tuned, made, self._terms.organization, base["shutdown_date"])

    def made(self, key: GatewayKey, name: str) -> tuple[GatewayJob, Run, int | None]:
        """Return the job that created a tuned model, its run, and the step if the model is a checkpoint.
        Raises `HostError` 404 for an unknown model, and 422 for one that is not a tuned model."""
        tuned, step = openai.split_step(name)
        found = self._outside.model(tuned, key.project)
        job = found[0] if found else self._jobs.of_model(tuned, key.project)
        job = job or self._permitted(key, name, tuned)
        run = None
        if job is not None and job.run_id is not None:
            run = self._ft.store.runs.get(job.run_id)
        if job is None or run is None or not _answers(job, run):
            if name in terms.names(self._terms.models, key):
                raise not_tuned(name, self._known(key))
            raise no_model(name, self._known(key))
        if key.backends and job.backend not in key.backends:
            raise HostError(403, f"this key may not use {job.backend}", code="backend_not_allowed")
        if not _may(key, job):
            raise no_model(name, self._known(key))
        return job, run, step

    def answers_here(self, asked: str, job: GatewayJob, run: Run) -> bool:
        """Return whether this machine serves a tuned model. True if the model was trained here, or if the
        configuration says to serve it here."""
        near = self._ft.provider(run.provider).profile.near
        return near or terms.answers_here(asked, job.base, run.provider, self._terms.models)

    def deploys(self, key: GatewayKey, asked: str, job: GatewayJob) -> tuple[str, terms.DeployLimits] | None:
        """Find the configuration entry that allows this key's requests to deploy the tuned model. Returns the
        entry's name and limits, or `None` if no entry allows it."""
        found = terms.of_tuned(asked, job.base, job.backend, self._terms.models)
        limits = found[1].deploy if found else None
        if found is None or limits is None or (limits.keys and key.name not in limits.keys):
            return None
        return found[0], limits

    def _known(self, key: GatewayKey) -> list[str]:
        """Return the names of the tuned models that can answer."""
        listed = self._jobs.listed(key.project, limit=100)
        found = [job for job in listed if not job.model_deleted and _may(key, job)]
        runs = self._ft.store.runs.of_ids(job.run_id for job in found if job.run_id)
        done = {run.id for run in runs if run.status is JobStatus.SUCCEEDED}
        outside = [job.tuned for job, _ in self._outside.models(key) if _may(key, job)]
        return [*(job.tuned for job in found if job.run_id in done), *outside]

    def _permitted(self, key: GatewayKey, name: str, tuned: str) -> GatewayJob | None:
        """Return the job of another project's model, if that project has shared the model with this one."""
        job = self._jobs.of_model(tuned)
        if job is None:
            found = self._outside.model(tuned, PROJECT)
            job = found[0] if found else None
        if job is None:
            return None
        for checkpoint in {name, tuned}:
            for permission in self._objects.listed(PERMISSION, job.project, parent=checkpoint):
                if permission["project_id"] == key.project:
                    return job
        return None

    # -- permissions ---------------------------------------------------------------------------------------

    def permit(self, call: GatewayRequest) -> Any:
        checkpoint = self._own(call)
        at = self._ft.store.clock.now().timestamp()
        made = [
            openai.permission(f"cp_{secrets.token_hex(12)}", project, at)
            for project in parse(Permit, call.body).project_ids
        ]
        self._objects.add(PERMISSION, call.project, made, parent=checkpoint)
        call.about(checkpoint)
        return page_with_ends(made, more=False)

    def permissions(self, call: GatewayRequest) -> Any:
        checkpoint, project = self._own(call), call.query("project_id")
        order = call.query("order") or "descending"
        if order not in ("ascending", "descending"):
            raise HostError(422, f"'{order}' must be 'ascending' or 'descending'", param="order")
        found = self._objects.listed(
            PERMISSION, call.project, parent=checkpoint, oldest_first=order == "ascending"
        )
        wanted = [one for one in found if project in (None, one["project_id"])]
        return page_of(call.request, wanted, default=10)

    def forbid(self, call: GatewayRequest) -> Any:
        checkpoint, id = self._own(call), call.path("id")
        known = [one["id"] for one in self._objects.listed(PERMISSION, call.project, parent=checkpoint)]
        if id not in known or self._objects.remove(PERMISSION, call.project, id) is None:
            raise HostError(404, f"{checkpoint} has no permission {id}", code="not_found")
        call.about(id)
        return openai.deleted(id, "checkpoint.permission")

    def _own(self, call: GatewayRequest) -> str:
        checkpoint = call.path("checkpoint")
        job, _, _ = self.made(call.key, checkpoint)
        if job.project != call.project:
            raise HostError(403, "only the project that owns a checkpoint can share it")
        return checkpoint

    # -- graders -------------------------------------------------------------------------------------------

    def run_grader(self, call: GatewayRequest) -> Any:
        """Run a grader on this machine. Returns reward 0 and an error for a grader that queries a model, and
        for a code grader if code is not allowed here."""
        asked, begun = parse(RunGrader, call.body), time.monotonic()
        _require_grader(asked.grader)
        errors: dict[str, Any] = {}
        reward = 0.0
        if asked.grader.get("type") in ELSEWHERE:
            reason = "the gateway does not run model graders"
            errors = {"model_grader_server_error": True, "model_grader_server_error_details": reason}
        elif runs_code(asked.grader) and not self._ft.settings.allow_grader_code:
            reason = "code is not allowed. To allow it, start the gateway with --allow-grader-code"
            errors = {"python_grader_server_error": True, "python_grader_server_error_type": reason}
        else:
            if not self._trials.acquire(blocking=False):
                reason = f"{TRIALS} graders are already running"
                headers = {"retry-after": str(SECONDS)}
                raise HostError(429, reason, code="graders_busy", type="rate_limit_error", headers=headers)
            try:
                grade = tried(asked.grader, asked.model_sample, asked.item or {})
                reward, errors["invalid_variable_error"] = grade.score, grade.error is not None
            except _BROKEN as error:
                errors = {"other_error": True, "other_error_details": str(error)}
            finally:
                self._trials.release()
        return graded(asked.grader, reward, errors, time.monotonic() - begun)


def validate_grader(call: GatewayRequest) -> Any:
    asked = parse(ValidateGrader, call.body)
    _require_grader(asked.grader)
    return {"grader": asked.grader}


def _require_grader(grader: dict[str, Any]) -> None:
    """Raise `HostError` 422 for an invalid grader."""
    for kind in (ScoreModelGrader, LabelModelGrader):
        if str(grader.get("type")) in get_args(kind.model_fields["type"].annotation):
            parse(kind, grader)
            return
    if not isinstance(grader.get("name"), str):
        raise HostError(
            422, "Invalid grader: a grader must have a name", param="grader.name", code="invalid_grader"
        )
    if not isinstance(grader.get("image_tag", ""), str):
        message = "Invalid grader: image_tag must be a string"
        raise HostError(422, message, param="grader.image_tag", code="invalid_grader")
    try:
        reason = None if grader.get("type") in ELSEWHERE else refusal(grader, allow_code=True)
    except _BROKEN as error:  # a value of a type that no grader has there
        reason = f"could not parse the grader ({error})"
    if reason:
        raise HostError(422, f"Invalid grader: {reason}", param="grader", code="invalid_grader")


def _may(key: GatewayKey, job: GatewayJob) -> bool:
    """Return whether the key's limits allow it to use the job's model."""
    if key.backends and job.backend not in key.backends:
        return False
    return not key.models or job.base in key.models or job.tuned in key.models


def _answers(job: GatewayJob, run: Run) -> bool:
    return not job.model_deleted and job_objects.status_of(job, run) == "succeeded"
