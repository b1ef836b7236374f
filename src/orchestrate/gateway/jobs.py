"""Fine-tuning jobs: create each job exactly once, show its state, and act on it."""

from __future__ import annotations

import hashlib
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from starlette.routing import BaseRoute

from orchestrate import text
from orchestrate.costing.expenses import unpriced
from orchestrate.errors import DataError, OrchestrateError, OverBudget
from orchestrate.gateway import job_objects, terms
from orchestrate.gateway.calls import (
    GatewayRequest,
    endpoint,
    no_file,
    no_job,
    no_model,
    refusal_of,
    retries,
    with_file_names,
    wrong_state,
)
from orchestrate.gateway.files import FileRoutes
from orchestrate.gateway.submissions import Reached, Submitting
from orchestrate.gateway.terms import MappedModel
from orchestrate.http.wire import HostError, openai, parse
from orchestrate.http.wire.openai import metadata_filter, no_place, number, page, page_of
from orchestrate.http.wire.openai.tuning import CreateJob
from orchestrate.migration import account_import, inventory
from orchestrate.paid.limits import require_within
from orchestrate.providers.base import Cancels, Deploys, capability
from orchestrate.runs.preparing.prepared import Prepared, prepare, require
from orchestrate.runs.submit import preflight
from orchestrate.runs.tracked import TrackedRun
from orchestrate.store import Clock
from orchestrate.store.gateway import CreateKey, KeyUse
from orchestrate.text import count, limit, money
from orchestrate.types import GatewayJob, GatewayKey, JobStatus, Quote, Run

if TYPE_CHECKING:
    from orchestrate.workspace import Workspace


# Runs that were created outside the gateway: imported jobs, the runs that replace their models after a
# migration, and the runs named in the configuration.
#
# Clients see each run as a job without a key. Imported jobs belong to the project `default`.

PROJECT = "default"
_FRESH_S = 2.0
_SHARE = 20.0
"""Minimum time for which cached data stays fresh, as a multiple of the time it took to read the data."""
Found = tuple[GatewayJob, Run]


@dataclass(frozen=True)
class _JobCache:
    """Cached data from the store."""

    until_s: float = 0.0
    jobs: dict[str, Run] = field(default_factory=dict[str, Run])
    """Imported runs by job id, newest first."""
    models: dict[str, Run] = field(default_factory=dict[str, Run])
    """Maps old model names to the runs that replace them."""


def until(clock: Clock, begun_s: float) -> float:
    """Return when cached data expires, on the uptime clock in seconds. `begun_s` is when reading the data
    started, on the same clock."""
    now = clock.uptime().seconds
    return now + max(_FRESH_S, _SHARE * (now - begun_s))


class Outside:
    def __init__(self, ft: Workspace, targets: Mapping[str, MappedModel]) -> None:
        self._ft = ft
        self._runs = {name: target.run for name, target in targets.items() if target.run is not None}
        self._known, self._lock = _JobCache(), threading.Lock()

    def jobs(
        self, project: str, before: tuple[datetime, str] | None, limit: int, metadata: Mapping[str, str]
    ) -> list[GatewayJob]:
        """List jobs, newest first, that were created before the cursor `before` (a time and an id)."""
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
        """Return the ids of each run's files, by run id and split."""
        records = self._ft.store.history.records(account_import.DETAILS, [run.id for run in runs])
        return {
            record.run_id: {split: file["id"] for split, file in record.data.get("files", {}).items()}
            for record in records
        }

    def model(self, name: str, project: str) -> Found | None:
        run = self._mapped(name) or (self._fresh().models.get(name) if project == PROJECT else None)
        return None if run is None else (job_of(run, name), run)

    def models(self, key: GatewayKey) -> list[Found]:
        """List the models that can answer requests, by name."""
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

    def _fresh(self) -> _JobCache:
        with self._lock:
            clock = self._ft.store.clock
            if (begun := clock.uptime().seconds) >= self._known.until_s:
                jobs, models = self._read()
                self._known = _JobCache(until(clock, begun), jobs, models)
            return self._known

    def _read(self) -> tuple[dict[str, Run], dict[str, Run]]:
        store = self._ft.store
        imported = [run for run in store.runs.referred(account_import.REF_PREFIX) if self._is_here(run)]
        imported.sort(key=lambda run: (run.created_at, run.job_id or ""), reverse=True)
        jobs = {run.job_id: run for run in imported if run.job_id is not None}
        after = inventory.successors(store)
        olds = {run.id: run for run in (*store.runs.of_ids(after), *imported)}
        models: dict[str, Run] = {}
        for old in sorted(olds.values(), key=lambda run: (run.created_at, run.id)):
            new = inventory.newest(old, after)
            if old.tuned_model is not None and new.status is JobStatus.SUCCEEDED and self._is_here(new):
                models[old.tuned_model] = new
        return jobs, models

    def _is_here(self, run: Run) -> bool:
        """Return whether the run's backend is the configured one, rather than a sandbox or another host."""
        with suppress(OrchestrateError):
            return self._ft.provider(run.provider).host == run.host
        return False


def job_of(run: Run, name: str | None = None, files: Mapping[str, Any] | None = None) -> GatewayJob:
    """Build a gateway job from a run that was created outside the gateway. `name` is the model name that
    clients use, if it differs from the host's. `files` contains the ids of the run's files."""
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
    """Reconstruct the create request, as far as the host reports it."""
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


_JOBS = "/v1/fine_tuning/jobs"
_LONGEST_KEY = 200
_A_JOB_LATER_S = "30"
"""Value of the Retry-After header, in seconds, for a key that already has too many open jobs. Official
clients wait at most a minute."""
_CREATE_S, _LOOK_S = 15.0, 0.1
"""Seconds that a cancellation waits for a create request in progress, and seconds between two checks."""
_LONGEST_NAME = 100
"""Maximum length of a model name, which becomes part of the tuned model's name."""


class Jobs:
    def __init__(
        self,
        ft: Workspace,
        settings: terms.GatewaySettings,
        files: FileRoutes,
        outside: Outside,
        submitting: Submitting,
        reached: Reached = lambda place: None,
    ) -> None:
        self._ft, self._terms, self._files, self._submitting = ft, settings, files, submitting
        self._reached, self._outside = reached, outside
        self._jobs = ft.store.gateway_jobs

    def routes(self) -> list[BaseRoute]:
        return [
            endpoint(_JOBS, "POST", self.create),
            endpoint(_JOBS, "GET", self.listed),
            endpoint(f"{_JOBS}/{{id}}", "GET", self.retrieve),
            endpoint(f"{_JOBS}/{{id}}/cancel", "POST", self.cancel),
            endpoint(f"{_JOBS}/{{id}}/pause", "POST", self.pause),
            endpoint(f"{_JOBS}/{{id}}/resume", "POST", self.resume),
            endpoint(f"{_JOBS}/{{id}}/events", "GET", self.events),
            endpoint(f"{_JOBS}/{{id}}/checkpoints", "GET", self.checkpoints),
        ]

    # -- creating ------------------------------------------------------------------------------------------

    def create(self, call: GatewayRequest) -> Any:
        """Create a job. All errors are raised before the job is stored. Once it is stored, this process or a
        later one submits it."""
        request = _request(call)
        if known := self._jobs.known(request):
            return self._answer(call, known)
        asked = parse(CreateJob, call.body)
        form, backend, files, name = self._job_form(call, asked)
        hashes = tuple(file["sha256"] for file in files)
        try:
            prepared = self._prepare(form.spec, backend)
        except HostError as error:
            self._require_contents(asked, hashes)
            named = {file["sha256"]: file["filename"] for file in files}
            error.message = with_file_names(error.message, named)
            raise
        quote = prepared.offer(backend).quote
        id, up = _id_of(request, call.body, hashes), self._ft.store.clock.uptime()
        job = GatewayJob(
            id=id,
            boot=up.boot,
            uptime_s=up.seconds,
            key=call.key.name,
            project=call.project,
            created_at=self._ft.store.clock.now(),
            asked=call.body,
            untuned=name,
            tuned=f"ft:{name}:{self._terms.organization}:{asked.suffix or ''}:{id[-8:]}",
            backend=backend,
            spec=form.spec.asked(),
            files=hashes,
            file_names=tuple(file["filename"] for file in files),
            quote_usd=quote.high_usd,
            notes=(*form.notes, _quoted(prepared, backend), *self._to_be_asked(name, backend)),
        )
        self._reached("before-taken")
        job, new = self._jobs.take(job, request, lambda use: self._allow(call, asked, use, job, quote))
        self._reached("after-taken")
        if new:
            self._submitting.take(job, prepared)
        return self._answer(call, job)

    def _to_be_asked(self, name: str, backend: str) -> list[str]:
        """Describe what must happen before clients can query the tuned model."""
        provider = self._ft.provider(backend)
        found = terms.of_tuned(name, name, backend, self._terms.models)
        if not isinstance(provider, Deploys) or (found is not None and found[1].on == "here"):
            return []
        if found is not None and (limits := found[1].deploy) is not None:
            until, most = f"{limits.max_hours.normalize():f} hours", limit(limits.max_cost_usd)
            return [
                f"{provider.profile.title} serves a tuned model only while it is deployed, and the "
                f"deployment is billed. A chat request deploys it for up to {until}, as long as the "
                f"total cost of all deployments of {found[0]} is below {most}"
            ]
        return [
            f"{provider.profile.title} serves a tuned model only while it is deployed, and the deployment "
            "is billed. Deploy it with: orchestrate deploy RUN"
        ]

    def _job_form(
        self, call: GatewayRequest, asked: CreateJob
    ) -> tuple[job_objects.JobForm, str, tuple[dict[str, Any], ...], str]:
        """Return the spec to train, the backend, the files, and the model's own name."""
        earlier = self._earlier(call, asked.model)
        name = earlier.base if earlier else asked.model
        known = terms.names(self._terms.models, call.key)
        for param, value in (("model", name), ("suffix", asked.suffix or "")):
            if len(value) > _LONGEST_NAME or not value.isprintable():
                wanted = f"at most {_LONGEST_NAME} printable characters"
                raise HostError(422, f"Invalid value for '{param}': must be {wanted}", param=param)
        target = terms.target_of(name, self._terms.models, call.key)
        if earlier is not None and earlier.outside:  # what it was tuned from may have no name here
            target = terms.MappedModel(backend=earlier.backend, model=earlier.base)
        if target is None or (call.key.models and name not in call.key.models):
            raise no_model(asked.model, known)
        if call.key.backends and target.backend not in call.key.backends:
            allowed = ", ".join(call.key.backends)
            value = f"{asked.model} is mapped to {target.backend}, but this key may only use {allowed}"
            raise HostError(403, value, code="backend_not_allowed", param="model")
        train = self._files.found(call.project, asked.training_file, "training_file")
        valid = None
        if asked.validation_file is not None:
            valid = self._files.found(call.project, asked.validation_file, "validation_file")
        for param, file in (("training_file", train), ("validation_file", valid)):
            if file is not None and file["purpose"] != "fine-tune":
                value = f"File {file['id']} has purpose {file['purpose']!r}, not 'fine-tune'"
                raise HostError(422, value, param=param)
        files = tuple(file for file in (train, valid) if file is not None)
        paths = [str(self._files.contents.path(file["sha256"])) for file in files]
        form = job_objects.job_form(
            asked, target, paths[0], paths[1] if valid else None, earlier.run_id if earlier else None
        )
        return form, target.backend, files, name

    def _earlier(self, call: GatewayRequest, name: str) -> GatewayJob | None:
        """Return the job whose model is to be trained further. Returns `None` if `name` is not a tuned
        model."""
        tuned, step = openai.split_step(name)
        found = self._outside.model(tuned, call.project)
        if found is None and not name.startswith("ft:"):
            return None
        job = found[0] if found else self._jobs.of_model(tuned, call.project)
        if job is None or job.run_id is None or job.model_deleted:
            raise no_model(name, terms.names(self._terms.models, call.key))
        if step is not None:
            message = "training can only continue from a final model, not from its checkpoints"
            raise HostError(422, message, param="model", code="unsupported")
        return job

    def _prepare(self, spec: Any, backend: str) -> Prepared:
        """Check and quote a spec. Raises `HostError`."""
        try:
            require(self._ft, spec, backend)
            prepared = prepare(self._ft, spec, backend)
            preflight(self._ft, prepared, backend)
        except DataError as error:
            refusal = refusal_of(error)
            refusal.code, refusal.param = "invalid_training_file", "training_file"
            raise refusal from error
        except OrchestrateError as error:
            raise refusal_of(error) from error
        return prepared

    def _allow(
        self, call: GatewayRequest, asked: CreateJob, use: KeyUse, job: GatewayJob, quote: Quote
    ) -> None:
        """Raise `HostError` if a limit of the key is exceeded, or if a file was deleted in the meantime."""
        self._require_contents(asked, job.files)
        key = call.key
        if key.concurrent is not None and use.open >= key.concurrent:
            message = (
                f"the key {key.name} already has {count(use.open, 'open job')}, and its limit is "
                f"{key.concurrent}"
            )
            headers = {"retry-after": _A_JOB_LATER_S}
            raise HostError(429, message, code="too_many_jobs", type="rate_limit_error", headers=headers)
        what = f"the remaining budget of the key {key.name}"
        try:
            require_within(
                job.backend,
                job.quote_usd,
                key.budget_usd,
                taken_usd=use.usd,
                unknown=unpriced(quote),
                what=what,
            )
        except OverBudget as error:
            raise refusal_of(error) from error

    def _require_contents(self, asked: CreateJob, hashes: Sequence[str]) -> None:
        """Raise `HostError` 404 for a file that was deleted since it was found."""
        files = {"training_file": asked.training_file, "validation_file": asked.validation_file}
        for (param, id), sha256 in zip(files.items(), hashes, strict=False):
            if not self._files.contents.path(sha256).is_file():
                raise no_file(str(id), param)

    # -- reading -------------------------------------------------------------------------------------------

    def found(self, call: GatewayRequest) -> tuple[GatewayJob, Run | None]:
        """Return the requested job and its run. Raises `HostError` 404 if the key's project has no such
        job."""
        id = call.path("id")
        job = self._jobs.get(id, call.project)
        if job is not None:
            run = self._submitting.run_of(job)
        elif found := self._outside.job(id, call.project):
            job, run = found
        else:
            raise no_job(id)
        self._submitting.viewed(run)
        return job, run

    def _answer(self, call: GatewayRequest, job: GatewayJob, run: Run | None = None) -> dict[str, Any]:
        call.about(job.id)
        run = run or self._submitting.run_of(job)
        return job_objects.job_body(job, run, self._terms.organization)

    def retrieve(self, call: GatewayRequest) -> Any:
        return self._answer(call, *self.found(call))

    def listed(self, call: GatewayRequest) -> Any:
        limit = number(call.request, "limit", 20, 1, 100)
        metadata = metadata_filter(call.request)
        before, after = None, call.query("after")
        if after is not None:
            place = self._jobs.get(after, call.project)
            if place is None and (outside := self._outside.job(after, call.project)):
                place = outside[0]
            if place is None:
                raise no_place(after)
            before = (place.created_at, place.id)
        found = self._jobs.listed(call.project, before=before, limit=limit + 1, metadata=metadata)
        found += self._outside.jobs(call.project, before, limit + 1, metadata)
        found.sort(key=lambda job: (job.created_at, job.id), reverse=True)
        ids = [job.run_id for job in found[:limit] if job.run_id]
        runs = {run.id: run for run in self._ft.store.runs.of_ids(ids)}
        shown = [
            job_objects.job_body(job, runs.get(job.run_id or ""), self._terms.organization)
            for job in found[:limit]
        ]
        return page(shown, more=len(found) > limit)

    def events(self, call: GatewayRequest) -> Any:
        job, run = self.found(call)
        history = self._ft.store.history
        events = history.events(run.id) if run else []
        points = history.metrics(run.id) if run else []
        return page_of(call.request, job_objects.events(job, run, events, points), default=20)

    def checkpoints(self, call: GatewayRequest) -> Any:
        job, run = self.found(call)
        found: list[dict[str, Any]] = []
        if run is not None:
            history = self._ft.store.history
            found = job_objects.checkpoints(job, run, history.checkpoints(run.id), history.metrics(run.id))
        return page_of(call.request, found, default=10)

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, call: GatewayRequest) -> Any:
        job, run = self.found(call)
        status = job_objects.status_of(job, run)
        if status in ("succeeded", "failed") or (status == "cancelled" and not job.cancel_asked):
            raise wrong_state(job, status, "cancelled")
        if run is not None:
            capability(self._ft.provider(run.provider), Cancels)
        if job.outside and run is not None:
            TrackedRun(self._ft, run).cancel()
            return self._answer(call, *self.found(call))
        job, run = self._submitting.cancel(self._jobs.request_cancel(job.id))
        if self._submitting.sending(run):  # how that ends decides what is answered
            deadline = time.monotonic() + _CREATE_S
            while self._submitting.sending(run) and time.monotonic() < deadline:
                time.sleep(_LOOK_S)
                run = self._submitting.run_of(job)
            job, run = self._submitting.cancel(job)
        return self._answer(call, job, run)

    def pause(self, call: GatewayRequest) -> Any:
        return self._act(call, "paused", TrackedRun.pause)

    def resume(self, call: GatewayRequest) -> Any:
        return self._act(call, "resumed", TrackedRun.resume)

    def _act(self, call: GatewayRequest, word: str, act: Callable[[TrackedRun], Run]) -> Any:
        job, run = self.found(call)
        status = job_objects.status_of(job, run)
        if run is None or run.job_id is None or status in job_objects.TERMINAL:
            raise wrong_state(job, status, word)
        return self._answer(call, job, act(TrackedRun(self._ft, run)))


def _request(call: GatewayRequest) -> CreateKey:
    """Return the key that identifies a create request. Raises `HostError` 422 for an invalid key."""
    headers = call.request.headers
    key = headers.get("idempotency-key") or None
    if key is not None and (len(key) > _LONGEST_KEY or not key.isprintable()):
        raise HostError(422, f"Idempotency-Key must consist of at most {_LONGEST_KEY} printable characters")
    digest = hashlib.sha256(call.raw).hexdigest()
    return CreateKey(call.key.name, digest, retries(call.request), key)


def _id_of(request: CreateKey, body: Mapping[str, Any], contents: Sequence[str]) -> str:
    """Derive the job's id. With an idempotency key, the same request always gets the same id, regardless of
    the store's contents and of file names. If an older backup of the store is restored, the job can therefore
    be found at the backend."""
    if request.idempotency_key is None:
        return f"ftjob-{secrets.token_hex(12)}"
    asked = {name: value for name, value in body.items() if name not in ("training_file", "validation_file")}
    facts = json.dumps([request.key, request.idempotency_key, asked, contents], sort_keys=True)
    return f"ftjob-{hashlib.sha256(facts.encode()).hexdigest()[:24]}"


def _quoted(prepared: Prepared, backend: str) -> str:
    quote = prepared.offer(backend).quote
    price = quote.price
    if price is None:
        return f"Quote: none ({quote.why_none})"
    low, high = money(price.low_usd), money(price.high_usd)
    expected = "no single price" if price.expected_usd is None else money(price.expected_usd)
    ends = "" if quote.ends_usd is None else f". The machine stops at a cost of {text.limit(quote.ends_usd)}"
    return f"Quote: {expected} on {backend}, between {low} and {high}{ends}"
