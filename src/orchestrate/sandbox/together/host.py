"""The Together host: files, fine-tuning jobs, downloads, dedicated endpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from orchestrate.data.rows import ChatExample, CompletionExample, Example, TextExample
from orchestrate.sandbox import shared
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.host import Host, HostError, iso, json_answer, json_body, parse, route
from orchestrate.sandbox.jobs import Phase, SandboxJob
from orchestrate.sandbox.shared import (
    SandboxFiles,
    StoredFile,
    base_model,
    encoded,
    nano_usd,
    trainer_tokenizer,
)
from orchestrate.sandbox.together import TAKEN, EstimatePrice, Preview, limits_of
from orchestrate.sandbox.together.endpoints import Endpoints, object_id, registry_of
from orchestrate.sandbox.together.jobs import (
    FileExists,
    TogetherFiles,
    TogetherJobMaker,
    events_of,
    metrics_of,
)
from orchestrate.sandbox.together.sessions import TrainingSessions
from orchestrate.sandbox.uploads import read

# Together's preview of tokenized rows, which shows the tokens that contribute to the loss.


FORMATS: dict[type[Any], str] = {
    ChatExample: "conversation",
    CompletionExample: "instruction",
    TextExample: "general",
}


def preview(host: Host, body: Preview, path: Path) -> dict[str, Any]:
    """Return the first `top_k` rows. Raises `HostError` 400 for files that are not for SFT."""
    tokenizer = trainer_tokenizer(host)
    limit = limits_of(body.model)["max_seq_length_sft"]
    examples = [example for example, _ in islice(read(path, TAKEN), body.top_k)]
    kind = FORMATS.get(type(examples[0]))
    if kind is None:
        raise HostError(400, "only files for SFT can be previewed", param="training_file")
    rows = [_row(tokenizer, example, body.train_on_inputs, limit) for example in examples]
    return {
        "model": body.model,
        "dataset_format": kind,
        "max_seq_length": limit,
        "train_on_inputs": body.train_on_inputs,
        "rows": rows,
        "sandbox": True,
    }


def tokenized(host: Host, path: Path) -> bytes:
    """Render all rows as JSON Lines of token ids and labels. This format is a guess, because Together does
    not document its own."""
    tokenizer = trainer_tokenizer(host)
    rows = (encoded(tokenizer, example) for example, _ in read(path, TAKEN))
    lines = (
        {"input_ids": ids, "labels": [id if on else -100 for id, on in zip(ids, learnt, strict=True)]}
        for ids, learnt in rows
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()


def _row(tokenizer: Any, example: Example, inputs: bool, limit: int) -> dict[str, Any]:
    ids, learnt = encoded(tokenizer, example, inputs=inputs)
    truncated = len(ids) > limit
    ids, learnt = ids[:limit], learnt[:limit]
    edges = [n for n in range(1, len(learnt)) if learnt[n] != learnt[n - 1]]
    spans = [[a, b] for a, b in pairwise([0, *edges, len(learnt)]) if a < b and learnt[a]]
    return {
        "input_ids": ids,
        "labels": [id if on else -100 for id, on in zip(ids, learnt, strict=True)],
        "tokens": [str(tokenizer.id_to_token(id)) for id in ids],
        "num_tokens": len(ids),
        "num_trained_tokens": sum(learnt),
        "trained_spans": spans,
        "truncated": truncated,
    }


class TogetherHost(Host):
    name = "together"
    endless: ClassVar = {"next_cursor": "again"}
    title = "Together"
    place = 1
    thinking_field = "reasoning"
    taken = TAKEN
    usual_rate = 1e-5

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.files = SandboxFiles(self)
        self.endpoints = Endpoints(self)
        self.maker = TogetherJobMaker(self.files)
        self.sessions = TrainingSessions(self)

    def env(self, key: str) -> dict[str, str]:
        return {
            "TOGETHER_BASE_URL": self.base_url,
            "TOGETHER_API_KEY": key,
            "TOGETHER_PROJECT_ID": f"proj-{here()}",
        }

    def close(self) -> None:
        self.sessions.close()

    def error(self, error: HostError) -> Response:
        body: dict[str, Any] = {
            "error": {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
        }
        if isinstance(error, FileExists):
            body["file_id"] = error.file_id
        return json_answer(body, error.status, error.headers)

    def routes(self) -> list[BaseRoute]:
        jobs = "/v1/fine-tunes"
        return [
            *TogetherFiles(self.files).routes(),
            *self.endpoints.routes(),
            *self.sessions.routes(),
            route(f"{jobs}/estimate-price", "POST", self.estimate),
            route(f"{jobs}/preview", "POST", self.preview),
            route(f"{jobs}/models/limits", "GET", self.limits),
            route(f"{jobs}/models/supported", "GET", self.supported),
            route(jobs, "POST", self.create),
            route(jobs, "GET", self.list_jobs),
            route(f"{jobs}/{{id}}", "GET", self.retrieve),
            route(f"{jobs}/{{id}}", "DELETE", self.delete),
            route(f"{jobs}/{{id}}/cancel", "POST", self.cancel),
            route(f"{jobs}/{{id}}/events", "GET", self.events),
            route(f"{jobs}/{{id}}/metrics", "GET", self.metrics),
            route(f"{jobs}/{{id}}/checkpoints", "GET", self.checkpoints),
            route(f"{jobs}/{{id}}/download-tokenized-dataset", "GET", self.tokenized),
            route("/_signed/tokenized/{id}", "GET", self.tokenized_file),
            route("/v1/finetune/download", "GET", self.download),
            route("/v1/models", "GET", self.models),
            route("/v3/whoami", "GET", self.whoami),
            route("/v1/chat/completions", "POST", self.chat),
        ]

    # -- creating ------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        body = await json_body(request)
        ids = await run_in_threadpool(self.create_many, [body])
        return json_answer(await run_in_threadpool(self._render_id, ids[0]))

    def create_many(self, bodies: list[dict[str, Any]]) -> list[str]:
        jobs = [self.maker.make(body) for body in bodies]
        with self.state.transaction():
            for job in jobs:
                self.start(job)
        return [job.id for job in jobs]

    def limits(self, request: Request) -> Response:
        name = request.query_params.get("model_name", "")
        job = self.maker.by_name(name.split(":")[0]) if base_model(name, self.name) is None else None
        return json_answer(limits_of(job.base if job else self.maker.base(name)))

    def supported(self, request: Request) -> Response:
        from orchestrate.catalog import search

        return json_answer({"models": [m.hosts["together"].id for m in search(provider="together")]})

    async def estimate(self, request: Request) -> Response:
        body = parse(EstimatePrice, await json_body(request))
        return await run_in_threadpool(self._estimate, body)

    def _estimate(self, body: EstimatePrice) -> Response:
        for name, id in (("train", body.training_file), ("eval", body.validation_file)):
            file = self.files.get(id) if id else None
            if id and file is None:
                raise HostError(400, f"file {id} was not found", code="invalid_file")
            if file is not None and (reason := self._no_estimate(name, file)):
                return json_answer({"estimation_available": False, "unavailable_reason": reason})
        values = body.model_dump(exclude_none=True)
        values["validation_file"] = body.validation_file or None
        values["model"] = body.model or None
        if not body.validation_file:
            values["n_evals"] = 0
        job = self.maker.make(values)
        usd = float(job.price_usd or 0)
        return json_answer(
            {
                "estimation_available": True,
                "estimated_total_price": usd,
                "allowed_to_proceed": usd <= self.settings.credit_usd,
                "user_limit": self.settings.credit_usd,
                "estimated_train_token_count": job.tokens * job.epochs,
                "estimated_eval_token_count": job.validation_tokens * job.evals,
                "sandbox": True,
            }
        )

    async def preview(self, request: Request) -> Response:
        body = parse(Preview, await json_body(request))
        self.maker.base(body.model)
        file = self.files.get(body.training_file)
        if file is None or file.report is None or file.report.error:
            raise HostError(400, f"file {body.training_file} cannot be previewed", code="invalid_file")
        return json_answer(await run_in_threadpool(preview, self, body, self.files.path(file.id)))

    def _no_estimate(self, name: str, file: StoredFile) -> str | None:
        if not self.files.ready(file):
            return f"{name}_file_not_validated"
        if file.report is None or file.report.error:
            return f"{name}_file_invalid"
        return "multimodal_dataset" if file.report.images else None

    # -- reading -------------------------------------------------------------------------------------------

    def _found(self, request: Request) -> SandboxJob:
        id = request.path_params["id"]
        job = self.job(id)
        if job is None:
            raise HostError(404, f"fine-tune job {id} was not found", code="not_found")
        return job

    def _render_id(self, id: str) -> dict[str, Any]:
        job = self.job(id)
        assert job is not None  # noqa: S101  made a moment ago
        return self.render(job)

    def state_name(self, job: SandboxJob) -> str:
        """Return Together's name for the job's state. After training, a job is first compressing, then
        uploading."""
        now = self.clock.now()
        phase = job.phase(now)
        if phase is Phase.FINALIZING:
            middle = ((job.trained_at or now) + (job.finished_at or now)) / 2
            return "compressing" if now < middle else "uploading"
        return {
            Phase.VALIDATING: "pending",
            Phase.QUEUED: "queued",
            Phase.RUNNING: "running",
            Phase.PAUSED: "running",
            Phase.CANCELLING: "cancel_requested",
            Phase.CANCELLED: "cancelled",
            Phase.FAILED: "error",
            Phase.SUCCEEDED: "completed",
        }[phase]

    def render(self, job: SandboxJob, *, with_events: bool = True) -> dict[str, Any]:
        """Render the job as `retrieve` returns it. In lists, events are omitted."""
        now = self.clock.now()
        phase = job.phase(now)
        body = job.body
        share = Decimal(job.step(now)) / job.total_steps if phase is Phase.CANCELLED else Decimal(1)
        usd = Decimal(job.price_usd or 0) * (Decimal(0) if phase is Phase.FAILED else share)
        started = job.started_at is not None and now >= job.started_at
        registry = registry_of(job) if phase is Phase.SUCCEEDED else {}
        left = (job.trained_at - now) if job.trained_at and phase is Phase.RUNNING else 0
        shown = ("lr_scheduler", "max_grad_norm", "max_seq_length", "packing", "suffix", "training_method")
        shown += (
            "training_type",
            "warmup_ratio",
            "weight_decay",
            "from_checkpoint",
            "n_evals",
            "n_checkpoints",
        )
        shown += ("wandb_project_name", "wandb_name", "wandb_entity", "from_hf_model", "multimodal_params")
        return {
            **{name: body.get(name) for name in shown},
            "object": "fine-tune",
            "id": job.id,
            "job_id": job.id,
            "user_id": f"{here()}-user",
            "owner_address": f"{here()}-user",
            "status": self.state_name(job),
            "created_at": iso(job.created_at),
            "updated_at": iso(self._updated(job, now)),
            "started_at": iso(job.started_at or now) if started else None,
            "model": job.base,
            "model_output_name": job.output,
            "model_output_path": f"sandbox://{job.output}" if phase is Phase.SUCCEEDED else None,
            "adapter_output_name": f"{job.output}-adapter",
            "training_file": job.training_file,
            "validation_file": job.validation_file or "",
            # Lists contain a number even if the job requested "max".
            "batch_size": body.get("batch_size", "max") if with_events else job.batch_size,
            "learning_rate": job.learning_rate,
            "n_epochs": job.epochs,
            "random_seed": job.seed,
            "token_count": job.tokens * job.epochs,
            "total_price": nano_usd(usd),
            "epochs_completed": int(job.fraction(now) * job.epochs),
            "steps_completed": job.step(now),
            "total_steps": job.total_steps,
            "queue_depth": 0,
            "progress": {"estimate_available": left > 0, "seconds_remaining": int(left)},
            "trainingfile_numlines": job.examples,
            "early_stopped": job.early_stopped,
            **registry,
            **({"events": events_of(job, now, self.trainer)} if with_events else {}),
            **self.sandbox_fields(job),
        }

    def _updated(self, job: SandboxJob, now: float) -> float:
        moments = (
            job.created_at,
            job.validated_at,
            job.started_at,
            job.trained_at,
            job.finished_at,
            job.cancel_at,
        )
        return max(at for at in (*moments, job.cancelled_at, job.failed_at) if at is not None and at <= now)

    def list_jobs(self, request: Request) -> Response:
        return json_answer({"data": [self.render(job, with_events=False) for job in self.jobs()]})

    def retrieve(self, request: Request) -> Response:
        return json_answer(self.render(self._found(request)))

    def events(self, request: Request) -> Response:
        return json_answer({"data": events_of(self._found(request), self.clock.now(), self.trainer)})

    def metrics(self, request: Request) -> Response:
        job = self._found(request)
        return json_answer({"metrics": metrics_of(job, self.clock.now(), self.trainer, request.query_params)})

    def checkpoints(self, request: Request) -> Response:
        return json_answer({"data": list(self._checkpoints(self._found(request)))})

    def _checkpoints(self, job: SandboxJob) -> Iterator[dict[str, Any]]:
        now = self.clock.now()
        if job.started_at is None or now < job.started_at:
            return
        found = self.trainer.checkpoints(job, now)
        for place, checkpoint in enumerate(found):
            final = place == len(found) - 1 and job.phase(now) is Phase.SUCCEEDED
            label = "Final" if final else "Intermediate"
            for kind in ("model", "adapter"):
                name = job.output if kind == "model" else f"{job.output}-adapter"
                yield {
                    "checkpoint": kind,
                    "checkpoint_type": f"{label} {kind} (step {checkpoint.step})",
                    "created_at": iso(checkpoint.at),
                    "path": f"sandbox://{name}/{checkpoint.step}",
                    "step": checkpoint.step,
                    "object_id": object_id("ml", name),
                    "object_name": name,
                    "object_revision_id": object_id("rv", name, str(checkpoint.step)),
                    "sandbox": True,
                }

    def download(self, request: Request) -> Response:
        query = request.query_params
        job = self.job(query.get("ft_id", ""))
        if job is None:
            raise HostError(404, f"fine-tune job {query.get('ft_id')} was not found", code="not_found")
        kind, step = query.get("checkpoint"), int(query.get("checkpoint_step") or 0)
        if kind is None and not step:
            raise HostError(400, "checkpoint is required when checkpoint_step is not set", param="checkpoint")
        if job.phase(self.clock.now()) is not Phase.SUCCEEDED and not step:
            raise HostError(400, f"job {job.id} has no model yet", code="model_not_ready")
        path = shared.pack(self, job, merged=kind in ("merged", "model_output_path"), step=step or None)
        name = f"{job.output.rsplit('/', 1)[-1]}.tar.zst"
        return FileResponse(path, media_type="application/zstd", filename=name)

    def tokenized(self, request: Request) -> Response:
        job = self._found(request)
        if job.kind != "sft" or job.phase(self.clock.now()) is not Phase.SUCCEEDED:
            raise HostError(404, f"job {job.id} has no tokenized dataset", code="not_found")
        return json_answer(
            {
                "content_type": "application/x-ndjson",
                "expires_at": iso(self.clock.now() + 3600),
                "filename": f"{job.id}-tokenized.jsonl",
                "size": len(tokenized(self, self.files.path(job.training_file))),
                "url": self.signed(f"tokenized/{job.id}"),
                "sandbox": True,
            }
        )

    def tokenized_file(self, request: Request) -> Response:
        job = self._found(request)
        content = tokenized(self, self.files.path(job.training_file))
        return Response(content, media_type="application/x-ndjson")

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, request: Request) -> Response:
        job = self._found(request)
        takes = self.wait("cancelling")
        job, done = self.change(job.id, lambda j, now: j.cancel(now, takes))
        if not done:
            raise HostError(
                400, f"job {job.id} is {self.state_name(job)} and cannot be cancelled", code="invalid_state"
            )
        return json_answer(self.render(job, with_events=False))

    def delete(self, request: Request) -> Response:
        job = self._found(request)
        if not job.phase(self.clock.now()).ended and request.query_params.get("force") != "true":
            raise HostError(
                400, f"job {job.id} is {self.state_name(job)}. Cancel it first", code="invalid_state"
            )
        self.state.delete(self.name, "job", job.id)
        return json_answer({"message": f"Fine-tune job {job.id} deleted", "sandbox": True})

    # -- models and chat -----------------------------------------------------------------------------------

    def models(self, request: Request) -> Response:
        from orchestrate.catalog import search

        bases = [
            {
                "id": model.hosts["together"].id,
                "object": "model",
                "created": 0,
                "type": "chat",
                "display_name": model.title or model.name,
                "organization": "sandbox",
                "context_length": model.context,
                "pricing": {"hourly": 0, "input": 0, "output": 0, "base": 0, "finetune": 0},
                "sandbox": True,
            }
            for model in search(provider=self.name)
        ]
        return json_answer(bases)

    def whoami(self, request: Request) -> Response:
        if not self.settings.reports_account:
            raise HostError(
                404, "this sandbox does not report which account a key belongs to", code="not_found"
            )
        return json_answer(
            {
                "type": "project_api_key",
                "organization": {"id": f"org-{here()}", "name": "Sandbox", "slug": "sandbox"},
                "project": {"id": f"proj-{here()}", "name": "Sandbox", "slug": "sandbox"},
                "api_key": {"id": "key-sandbox", "name": "sandbox"},
                "sandbox": True,
            }
        )

    async def chat(self, request: Request) -> Response:
        body = shared.parse_chat(await json_body(request))
        return await run_in_threadpool(self._chat, body)

    def _chat(self, body: shared.SandboxChatRequest) -> Response:
        if base_model(body.model, self.name) is not None:
            return shared.complete(self, body, None)
        return shared.complete(self, body, self.endpoints.serving(body.model))


HOST = TogetherHost
