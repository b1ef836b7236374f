"""The OpenAI host: files, uploads, fine-tuning jobs, models."""

from __future__ import annotations

import base64
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from typing import Any, ClassVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute

from orchestrate.http.wire import openai
from orchestrate.http.wire.openai import error_body, metadata_filter, page, page_with_ends, responses
from orchestrate.http.wire.openai import page_of as asked_page
from orchestrate.http.wire.openai.tuning import (
    CreateJob,
    Dpo,
    Permit,
    ReinforcementHyperparameters,
    RunGrader,
    ValidateGrader,
    graded,
)
from orchestrate.local.objectives.graders import ELSEWHERE, Grader, refusal, runs_code
from orchestrate.providers.openai import auto_epochs
from orchestrate.sandbox import shared
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.host import Host, HostError, json_answer, json_body, number, page_of, parse, route
from orchestrate.sandbox.jobs import DEFAULT_BETA, JobFailure, Phase, SandboxJob
from orchestrate.sandbox.openai.files import OpenAIFiles
from orchestrate.sandbox.shared import SandboxFiles, StoredFile, base_model, tokenizer_of, training_usd
from orchestrate.sandbox.state import token
from orchestrate.sandbox.training import Trainer
from orchestrate.sandbox.uploads import AcceptedRows

# Events that the OpenAI host reports while a job runs.


def events_of(job: SandboxJob, now: float, trainer: Trainer) -> list[dict[str, Any]]:
    """List events, oldest first, up to `now`. An event's id never changes."""
    found: list[tuple[float, str, str, str, dict[str, Any]]] = []

    def say(
        at: float | None, message: str, *, level: str = "info", type: str = "message", **data: Any
    ) -> None:
        if at is not None and at <= now:
            found.append((at, level, type, message, data))

    say(job.created_at, f"Created fine-tuning job: {job.id}")
    say(job.created_at, f"Sandbox: {trainer.describe(job)}", level="warn")
    say(job.created_at, f"Validating training file: {job.training_file}")
    if job.validation_file:
        say(job.created_at, f"Validating validation file: {job.validation_file}")
    if job.trouble is None or (job.failed_at or 0) > job.validated_at:
        say(job.validated_at, "Files validated, moving job to queued state")
    say(job.started_at, "Fine-tuning job started")
    for row in openai.metric_rows(trainer.metrics(job, now)) if job.started_at else []:
        step = row["step"]
        at = min(now, _time_of(job, step, now))
        say(
            at,
            f"Step {step}/{job.total_steps}: training loss={row.get('train_loss', 0):.2f}",
            type="metrics",
            **row,
        )
    if job.paused_at is not None:
        say(job.paused_at, "Fine-tuning job paused")
    if job.finished_at is not None and job.phase(now) is Phase.SUCCEEDED:
        for checkpoint in trainer.checkpoints(job, now)[:-1]:
            name = openai.step_model(job.output, checkpoint.step)
            say(
                job.finished_at,
                f"Checkpoint created at step {checkpoint.step}",
                step=checkpoint.step,
                model=name,
            )
        say(job.finished_at, f"New fine-tuned model created: {job.output}")
        say(job.finished_at, "The job has successfully completed")
    if job.cancel_at is not None:
        say(job.cancel_at, "The job has been cancelled")
    if job.trouble is not None:
        say(job.failed_at, job.trouble.message, level="error")
    found.sort(key=lambda item: item[0])
    return [_event(job, *item) for item in found]


def _time_of(job: SandboxJob, step: int, now: float) -> float:
    start = job.started_at or job.created_at
    end = job.trained_at or now
    return start + (end - start) * min(1.0, step / max(1, job.total_steps))


def _event(
    job: SandboxJob, at: float, level: str, type: str, message: str, data: dict[str, Any]
) -> dict[str, Any]:
    key = message if type == "message" else str(data.get("step"))
    return openai.event(job.id, at, level, message, type=type, data=data, key=key)


# Projects' permissions to use a checkpoint (`fine_tuning/checkpoints/{name}/permissions`). The sandbox stores
# them but does not enforce them.


_KIND = "permission"


class Permissions:
    def __init__(self, host: Host, tuned: Callable[[str], object]) -> None:
        """Set up the permissions. `tuned` raises `HostError` for a name that is not a checkpoint's."""
        self.host = host
        self._tuned = tuned

    def routes(self) -> list[BaseRoute]:
        root = "/v1/fine_tuning/checkpoints/{checkpoint}/permissions"
        return [
            route(root, "POST", self.create),
            route(root, "GET", self.list),
            route(f"{root}/{{id}}", "DELETE", self.delete),
        ]

    async def create(self, request: Request) -> Response:
        checkpoint = request.path_params["checkpoint"]
        self._tuned(checkpoint)
        made: list[dict[str, Any]] = []
        for project in parse(Permit, await json_body(request)).project_ids:
            id = f"cp_{token()}"
            permission = openai.permission(id, project, self.host.clock.now())
            self.host.state.put(self.host.name, _KIND, id, permission, tag=checkpoint)
            made.append(permission)
        return json_answer(page_with_ends(made, more=False))

    def list(self, request: Request) -> Response:
        project = request.query_params.get("project_id")
        found = self.host.state.all(self.host.name, _KIND, tag=request.path_params["checkpoint"])
        return json_answer(
            page_with_ends([p for p in found if project in (None, p["project_id"])], more=False)
        )

    def delete(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not self.host.state.delete(self.host.name, _KIND, id):
            raise HostError(404, f"No permission {id}", code="not_found")
        return json_answer(openai.deleted(id, "checkpoint.permission"))


# Endpoints for testing graders: `fine_tuning/alpha/graders/run` and `validate`.


def grader_routes() -> list[BaseRoute]:
    graders = "/v1/fine_tuning/alpha/graders"
    return [route(f"{graders}/run", "POST", run), route(f"{graders}/validate", "POST", validate)]


async def validate(request: Request) -> Response:
    body = parse(ValidateGrader, await json_body(request))
    _require(body.grader)
    return json_answer({"grader": body.grader})


async def run(request: Request) -> Response:
    body = parse(RunGrader, await json_body(request))
    _require(body.grader)
    return json_answer(await run_in_threadpool(_graded, body))


def _require(grader: dict[str, Any]) -> None:
    """Raise `HostError` 400 for an invalid grader."""
    if grader.get("type") in ELSEWHERE:
        return
    if reason := refusal(grader, allow_code=True):
        raise HostError(400, f"Invalid grader: {reason}", param="grader", code="invalid_grader")


def _graded(body: RunGrader) -> dict[str, Any]:
    grader, started = body.grader, time.monotonic()
    errors: dict[str, Any] = {}
    reward = 0.0
    if grader.get("type") in ELSEWHERE:
        errors |= {
            "model_grader_server_error": True,
            "model_grader_server_error_details": "the sandbox does not run model graders",
        }
    elif runs_code(grader):
        errors |= {
            "python_grader_server_error": True,
            "python_grader_server_error_type": "not run here",
        }
    else:
        with Grader(grader) as graders:
            [grade] = graders.grade([body.model_sample], [body.item or {}])
        reward, errors["invalid_variable_error"] = grade.score, grade.error is not None
    return graded(grader, reward, errors, time.monotonic() - started)


# Base and tuned models, and their chat completions.


def organization() -> str:
    """Return the organization that the current request's key belongs to."""
    return f"org-{here()}"


class OpenAIModels:
    """Routes for models on the OpenAI host."""

    def __init__(
        self,
        host: Host,
        tuned: Callable[[str], tuple[SandboxJob, int | None]],
        find: Callable[[str], tuple[SandboxJob | None, int | None]],
    ) -> None:
        self.host = host
        self._tuned, self._find = tuned, find

    def routes(self) -> list[BaseRoute]:
        return [
            route("/v1/models", "GET", self.models),
            route("/v1/models/{id:path}", "GET", self.model),
            route("/v1/models/{id:path}", "DELETE", self.delete_model),
            route("/v1/chat/completions", "POST", self.chat),
            route("/v1/responses", "POST", self.respond),
        ]

    def models(self, request: Request) -> Response:
        from orchestrate.catalog import search

        bases = [
            _base_model(m.hosts["openai"].id, m.hosts["openai"].shutdown) for m in search(provider="openai")
        ]
        now = self.host.clock.now()
        tuned = [
            _tuned_model(j)
            for j in self.host.jobs()
            if j.phase(now) is Phase.SUCCEEDED and not j.body.get("sandbox_model_deleted")
        ]
        return json_answer({"object": "list", "data": bases + tuned})

    def model(self, request: Request) -> Response:
        id = request.path_params["id"]
        if id.startswith("ft:"):
            return json_answer({**_tuned_model(self._tuned(id)[0]), "id": id})
        found = base_model(id, "openai", undated=True)
        if found is None:
            raise HostError(404, f"The model '{id}' does not exist", code="model_not_found", param="model")
        return json_answer(_base_model(found.id, found.shutdown))

    def delete_model(self, request: Request) -> Response:
        id = request.path_params["id"]
        if not id.startswith("ft:"):
            raise HostError(403, "You have insufficient permissions for this operation.")
        job, _ = self._tuned(id)

        def mark(job: SandboxJob, now: float) -> bool:
            job.body["sandbox_model_deleted"] = True
            return True

        self.host.change(job.id, mark)
        return json_answer(openai.deleted(id, "model"))

    async def chat(self, request: Request) -> Response:
        body = shared.parse_chat(await json_body(request))
        return await run_in_threadpool(self._chat, body)

    async def respond(self, request: Request) -> Response:
        body = parse(responses.ResponseRequest, await json_body(request))
        if body.stream:
            raise HostError(400, "this sandbox does not stream responses", param="stream")
        reply = await run_in_threadpool(self._chat, shared.parse_chat(responses.chat_body(body)))
        chat = json.loads(bytes(reply.body))
        shown = responses.of_chat(body, chat, f"resp_{token()}")
        return json_answer({**shown, "sandbox": True, "sandbox_model": chat["sandbox_model"]})

    def _chat(self, body: shared.SandboxChatRequest) -> Response:
        job, step = self._find(body.model)
        return shared.complete(self.host, body, job, step)


def _base_model(id: str, shutdown: date | None) -> dict[str, Any]:
    created = datetime(2024, 7, 18, tzinfo=UTC).timestamp()
    return openai.model(id, created, "sandbox", shutdown.isoformat() if shutdown else None)


def _tuned_model(job: SandboxJob) -> dict[str, Any]:
    shown = openai.model(job.output, job.finished_at or job.created_at, organization(), None)
    return {**shown, "sandbox": True}


MIN_EXAMPLES = 10
WORDS = {
    Phase.VALIDATING: "validating_files",
    Phase.QUEUED: "queued",
    Phase.RUNNING: "running",
    Phase.PAUSED: "paused",
    Phase.FINALIZING: "running",
    Phase.CANCELLING: "cancelled",
    Phase.SUCCEEDED: "succeeded",
    Phase.FAILED: "failed",
    Phase.CANCELLED: "cancelled",
}


class OpenAIHost(Host):
    name = "openai"
    endless: ClassVar = {"has_more": True}
    title = "OpenAI"
    place = 0
    taken = AcceptedRows(
        roles=frozenset({"system", "user", "assistant", "tool", "function", "developer"}),
        message_fields=frozenset({"function_call", "audio"}),
    )
    usual_rate = 2.0

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.files = SandboxFiles(self)

    def headers(self) -> dict[str, str]:
        if not self.settings.reports_account:
            return {}
        return {"openai-organization": organization(), "openai-project": f"proj-{here()}"}

    def env(self, key: str) -> dict[str, str]:
        return {"OPENAI_BASE_URL": f"{self.base_url}/v1", "OPENAI_API_KEY": key}

    def error(self, error: HostError) -> Response:
        headers = {"x-request-id": f"req_{token()}", **error.headers}
        return json_answer(error_body(error), error.status, headers)

    def routes(self) -> list[BaseRoute]:
        jobs = "/v1/fine_tuning/jobs"
        return [
            *OpenAIFiles(self.files, self.result_file, self.file_status).routes(),
            route(jobs, "POST", self.create),
            route(jobs, "GET", self.list_jobs),
            route(f"{jobs}/{{id}}", "GET", self.retrieve),
            route(f"{jobs}/{{id}}/cancel", "POST", self.cancel),
            route(f"{jobs}/{{id}}/pause", "POST", self.pause),
            route(f"{jobs}/{{id}}/resume", "POST", self.resume),
            route(f"{jobs}/{{id}}/events", "GET", self.events),
            route(f"{jobs}/{{id}}/checkpoints", "GET", self.checkpoints),
            *grader_routes(),
            *Permissions(self, self.tuned).routes(),
            *OpenAIModels(self, self.tuned, self.requested_model).routes(),
        ]

    # -- creating ------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        body = await json_body(request)
        ids = await run_in_threadpool(self.create_many, [body])
        return await run_in_threadpool(self._answer, self._found(ids[0]))

    def create_many(self, bodies: list[dict[str, Any]]) -> list[str]:
        jobs = [self._new(body) for body in bodies]
        with self.state.transaction():
            for job in jobs:
                self.start(job)
        return [job.id for job in jobs]

    def _new(self, body: dict[str, Any]) -> SandboxJob:
        parsed = parse(CreateJob, body)
        train = self._file(parsed.training_file, "training_file")
        valid = self._file(parsed.validation_file, "validation_file") if parsed.validation_file else None
        continued, step = self.tuned(parsed.model) if self.is_tuned(parsed.model) else (None, None)
        base = continued.base if continued else self._base(parsed.model, parsed.kind())
        id = f"ftjob-{token()}"
        tokenizer = tokenizer_of(base, self.name)
        tokens = self.files.tokens(train, tokenizer)
        validation_tokens = self.files.tokens(valid, tokenizer) if valid else 0
        now = self.clock.now()  # counting may have taken longer than some states do
        kind = parsed.kind()
        if kind == "rft" and valid is None:
            raise HostError(
                400, "Reinforcement fine-tuning requires a validation file", param="validation_file"
            )
        examples = train.report.examples if train.report else 0
        job = SandboxJob(
            id=id,
            host=self.name,
            kind=kind,
            model=parsed.model if continued else base,
            base=base,
            body=body,
            training_file=train.id,
            validation_file=valid.id if valid else None,
            trained=self.settings.train and kind != "rft",
            seed=parsed.seed
            if parsed.seed is not None
            else int(hashlib.sha256(id.encode()).hexdigest()[:8], 16) >> 1,
            lora_rank=16,  # OpenAI does not tell its own
            examples=examples,
            tokens=tokens,
            validation_tokens=validation_tokens,
            output=self.output_name(base, parsed.suffix or "", id[-8:]),
            continues=continued.id if continued else None,
            continues_step=step,
            created_at=now,
            validated_at=now + self.wait("validating"),
        )
        self._settle(job, parsed)
        job.trouble = self._objection(job, train, valid)
        return job

    def _settle(self, job: SandboxJob, body: CreateJob) -> None:
        """Replace `auto` with numbers: epochs by OpenAI's rule, and a batch size that is never so small
        that training the tiny model takes long."""
        hyper = body.hyper()
        n = max(1, job.examples)
        auto_batch = max(8, min(256, round(n * 0.002)))
        job.epochs = auto_epochs(n) if hyper.n_epochs == "auto" else hyper.n_epochs
        job.batch_size = auto_batch if hyper.batch_size == "auto" else hyper.batch_size
        rate = hyper.learning_rate_multiplier
        job.learning_rate = 2.0 if rate == "auto" else rate
        if isinstance(hyper, Dpo) and hyper.beta != "auto":
            job.preference = {"beta": hyper.beta}
        job.checkpoints = min(3, job.epochs)
        usd = training_usd(self.name, job)
        job.price_usd = str(usd) if usd is not None else None

    def _objection(self, job: SandboxJob, train: StoredFile, valid: StoredFile | None) -> JobFailure | None:
        """Return the reason why the job will fail during file validation, or `None`."""
        for param, file in (("training_file", train), ("validation_file", valid)):
            if file is None or file.report is None:
                continue
            code = f"invalid_{param}"
            if file.report.error:
                reason = f"The job failed due to an invalid {param.replace('_', ' ')}. {file.report.error}"
                return JobFailure(message=reason, code=code, param=param)
            wanted = "preference" if job.kind == "dpo" else "chat"
            if file.report.format != wanted:
                reason = f"The job failed due to an invalid {param.replace('_', ' ')}. Not in {wanted} format"
                return JobFailure(message=reason, code=code, param=param)
        if job.examples < MIN_EXAMPLES:
            return JobFailure(
                message=f"Training file has {job.examples} example(s), "
                f"but must have at least {MIN_EXAMPLES} examples",
                code="invalid_n_examples",
                param="training_file",
            )
        return None

    def _file(self, id: str, param: str) -> StoredFile:
        file = self.files.get(id)
        if file is None:
            raise HostError(400, f"invalid {param}: {id}", param=param, code="invalid_file_id")
        if file.purpose != "fine-tune":
            raise HostError(400, f"File {id} has purpose {file.purpose!r}, not 'fine-tune'", param=param)
        # Accept a file that is still being processed, because OpenAI's documented examples create the job
        # right after the upload. The job's own validation ends long after the file is processed.
        return file

    def _base(self, model: str, kind: str) -> str:
        """Return the base model. The sandbox still offers RFT for the models that supported it."""
        found = base_model(model, self.name, undated=True)
        if found is None:
            raise HostError(
                404,
                f"The model `{model}` does not exist or you do not have access to it.",
                code="model_not_found",
                param="model",
            )
        if kind == "rft" and kind not in found.methods:
            raise HostError(
                400,
                f"Model {model} does not support the reinforcement method.",
                code="method_not_supported",
                param="method",
            )
        if found.tunable == "no" and kind != "rft":
            raise HostError(
                400,
                f"Model {model} is not available for fine-tuning.",
                code="model_not_available",
                param="model",
            )
        return found.id

    def tuned(self, name: str) -> tuple[SandboxJob, int | None]:
        """Find the job that trained a model, and the step if the name refers to a checkpoint. Raises
        `HostError` 404 for an unknown name."""
        output, step = openai.split_step(name)
        for job in self.jobs(where=("$.output", output)):
            if job.phase(self.clock.now()) is Phase.SUCCEEDED and not job.body.get("sandbox_model_deleted"):
                return job, step
        raise HostError(
            404, f"The model `{name}` does not exist or you do not have access to it.", code="model_not_found"
        )

    def output_name(self, base: str, suffix: str, id: str) -> str:
        """Build the name of a tuned model."""
        return f"ft:{base}:sandbox:{suffix}:{id}"

    def is_tuned(self, name: str) -> bool:
        return name.startswith("ft:")

    def requested_model(self, name: str) -> tuple[SandboxJob | None, int | None]:
        """Return the (job, step) that a requested model name refers to, or `(None, None)` for a base model.
        `step` is set only for a checkpoint. Raises `HostError` 404 for an unknown name."""
        if self.is_tuned(name):
            return self.tuned(name)
        if base_model(name, self.name, undated=True) is None:
            raise HostError(
                404,
                f"The model `{name}` does not exist or you do not have access to it.",
                code="model_not_found",
            )
        return None, None

    # -- reading -------------------------------------------------------------------------------------------

    def _found(self, id: str) -> SandboxJob:
        job = self.job(id)
        if job is None:
            raise HostError(
                404, f"Could not find fine tune: {id}", code="fine_tune_not_found", param="fine_tune_id"
            )
        return job

    def _answer(self, job: SandboxJob) -> JSONResponse:
        return json_answer(self.render(job))

    def render(self, job: SandboxJob) -> dict[str, Any]:
        now = self.clock.now()
        phase = job.phase(now)
        trouble = self.trouble(job, now)
        succeeded = phase is Phase.SUCCEEDED
        ended = job.ended_at(now)
        finish = job.finished_at if not phase.ended and phase is Phase.RUNNING and not job.trained else None
        return {
            **openai.job(job.id),
            "model": job.model,
            "created_at": int(job.created_at),
            "finished_at": int(ended) if ended is not None else None,
            "estimated_finish": int(finish) if finish else None,
            "status": WORDS[phase],
            "error": openai.error(trouble.code, trouble.message, trouble.param) if trouble else {},
            "fine_tuned_model": job.output if succeeded else None,
            "organization_id": organization(),
            "training_file": job.training_file,
            "validation_file": job.validation_file,
            "result_files": [f"file-result{job.id.removeprefix('ftjob-')}"] if succeeded else [],
            "trained_tokens": job.tokens * job.epochs if succeeded else None,
            "hyperparameters": self._hyper(job),
            "method": self._method(job),
            "seed": job.seed,
            "integrations": job.body.get("integrations") or [],
            "metadata": job.body.get("metadata"),
            "user_provided_suffix": job.body.get("suffix"),
            **self.sandbox_fields(job),
        }

    def _hyper(self, job: SandboxJob) -> dict[str, Any]:
        return {
            "n_epochs": job.epochs,
            "batch_size": job.batch_size,
            "learning_rate_multiplier": job.learning_rate,
        }

    def _method(self, job: SandboxJob) -> dict[str, Any]:
        body = parse(CreateJob, {k: v for k, v in job.body.items() if not k.startswith("sandbox_")})
        kind = body.method.type if body.method else "supervised"
        hyper = body.hyper()
        values = self._hyper(job)
        if isinstance(hyper, Dpo):
            values["beta"] = job.preference.get("beta", DEFAULT_BETA)
        inner: dict[str, Any] = {"hyperparameters": values}
        if isinstance(hyper, ReinforcementHyperparameters) and body.method and body.method.reinforcement:
            values |= hyper.model_dump(include={"compute_multiplier", "eval_interval", "eval_samples"})
            values["reasoning_effort"] = hyper.reasoning_effort
            inner["grader"] = body.method.reinforcement.grader
            if (form := body.method.reinforcement.response_format) is not None:
                inner["response_format"] = form
        return {"type": kind, kind: inner}

    def list_jobs(self, request: Request) -> Response:
        limit = number(request, "limit", 20, 1, 100)
        where = None
        for name, value in metadata_filter(request).items():
            where = (f'$.body.metadata."{name}"', value)
        jobs, more = page_of(self.jobs(after=request.query_params.get("after"), where=where), limit)
        return json_answer(page([self.render(job) for job in jobs], more=more))

    def retrieve(self, request: Request) -> Response:
        return self._answer(self._found(request.path_params["id"]))

    def events(self, request: Request) -> Response:
        job = self._found(request.path_params["id"])
        found = events_of(job, self.clock.now(), self.trainer)
        return json_answer(asked_page(request, found[::-1], default=20))

    def checkpoints(self, request: Request) -> Response:
        job = self._found(request.path_params["id"])
        return json_answer(asked_page(request, list(self._checkpoints(job))[::-1], default=10))

    def _checkpoints(self, job: SandboxJob) -> Iterator[dict[str, Any]]:
        """List checkpoints, oldest first, once the job has succeeded."""
        now = self.clock.now()
        if job.phase(now) is not Phase.SUCCEEDED:
            return
        points = {p["step"]: p for p in openai.metric_rows(self.trainer.metrics(job, now))}
        found = self.trainer.checkpoints(job, now)
        for place, checkpoint in enumerate(found):
            last = place == len(found) - 1
            metrics = points.get(checkpoint.step, {"step": checkpoint.step})
            name = job.output if last else openai.step_model(job.output, checkpoint.step)
            shown = openai.checkpoint(job.id, checkpoint.step, checkpoint.at, name, metrics)
            yield {**shown, "sandbox": True}

    def result_file(self, id: str) -> tuple[str, bytes] | None:
        """Return the name and content of a job's metrics file, or `None` if `id` is not such a file."""
        if not id.startswith("file-result"):
            return None
        for job in self.jobs(where=("$.id", f"ftjob-{id.removeprefix('file-result')}")):
            if job.phase(self.clock.now()) is not Phase.SUCCEEDED:
                return None
            text = openai.metrics_csv(openai.metric_rows(self.trainer.metrics(job, self.clock.now())))
            return "step_metrics.csv", base64.b64encode(text)
        return None

    def file_status(self, file: StoredFile) -> str:
        return "processed" if self.files.ready(file) else "uploaded"

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, request: Request) -> Response:
        return self._act(request, lambda job, now: job.cancel(now, 0.0), "cancelled")

    def pause(self, request: Request) -> Response:
        return self._act(request, SandboxJob.pause, "paused")

    def resume(self, request: Request) -> Response:
        return self._act(request, SandboxJob.resume, "resumed")

    def _act(self, request: Request, act: Callable[[SandboxJob, float], bool], action: str) -> Response:
        job = self._found(request.path_params["id"])
        job, done = self.change(job.id, act)
        if not done:
            status = WORDS[job.phase(self.clock.now())]
            raise HostError(400, f"Job has status {status} and cannot be {action}", code="invalid_job_status")
        return self._answer(job)


HOST = OpenAIHost
