"""The Fireworks host: accounts, datasets, three kinds of fine-tuning jobs, models, deployments."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from decimal import Decimal
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.sandbox import shared, stepped
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.fireworks import GRPC, FireworksResourceRoutes, aip_filter, page, page_token, short
from orchestrate.sandbox.fireworks.datasets import (
    DpoJob,
    FireworksDatasetRoutes,
    ReinforcementJob,
    SupervisedJob,
)
from orchestrate.sandbox.fireworks.models import FireworksModelRoutes
from orchestrate.sandbox.host import (
    SESSION_NOTICE,
    Host,
    HostError,
    iso,
    json_answer,
    json_body,
    parse,
    route,
)
from orchestrate.sandbox.jobs import Phase, SandboxJob
from orchestrate.sandbox.shared import (
    SandboxFiles,
    StoredFile,
    base_model,
    context_of,
    encoded,
    money,
    tokenizer_of,
    trainer_tokenizer,
    training_usd,
)
from orchestrate.sandbox.uploads import AcceptedRows, read
from orchestrate.types import MetricPoint

if TYPE_CHECKING:
    from orchestrate.sandbox.fireworks.sessions import FireworksSessionsApi

# -- jobs: the three collections -------------------------------------------------------------------------


MIN_EXAMPLES = 3
MAX_EXAMPLES = 3_000_000


@dataclass(frozen=True)
class JobCollection:
    """One collection of jobs."""

    method: str
    collection: str
    id_field: str
    body: type[SupervisedJob] | type[DpoJob] | type[ReinforcementJob]
    batch: int


KINDS = {
    "supervisedFineTuningJobs": JobCollection(
        "sft", "supervisedFineTuningJobs", "supervisedFineTuningJobId", SupervisedJob, 32
    ),
    "dpoJobs": JobCollection("dpo", "dpoJobs", "dpoJobId", DpoJob, 4),
    "reinforcementFineTuningJobs": JobCollection(
        "rft", "reinforcementFineTuningJobs", "reinforcementFineTuningJobId", ReinforcementJob, 32
    ),
}
BY_METHOD = {kind.method: kind for kind in KINDS.values()}


class FireworksJobMaker:
    """Converts request bodies to jobs, and rejects the ones that Fireworks would reject."""

    def __init__(self, datasets: FireworksDatasetRoutes, models: FireworksModelRoutes) -> None:
        self.datasets = datasets
        self.models = models
        self.host = datasets.host

    def make(self, kind: JobCollection, id: str, body: dict[str, Any]) -> SandboxJob:
        parsed = parse(kind.body, body)
        training = parsed.training()
        train = self._dataset(parsed.dataset)
        valid = self._dataset(parsed.evaluationDataset) if parsed.evaluationDataset else None
        base, earlier = self._start_from(training.baseModel, training.warmStartFrom)
        context = context_of(base, self.host.name, kind.method)
        if training.maxContextLength and context and training.maxContextLength > context:
            raise HostError(400, f"max_context_length must be at most {context} for {base}")
        examples = train.report.examples if train.report else 0
        self._check_rows(kind, train, examples, training.epochs)
        tokenizer = tokenizer_of(base, self.host.name)
        tokens = self.datasets.files.tokens(train, tokenizer)
        validation_tokens = self.datasets.files.tokens(valid, tokenizer) if valid else 0
        now = self.host.clock.now()  # counting may have taken longer than some states do
        job = SandboxJob(
            id=id,
            host=self.host.name,
            kind=kind.method,
            model=training.baseModel or training.warmStartFrom or base,
            base=base,
            body=_without_key(body),
            training_file=train.id,
            validation_file=valid.id if valid else None,
            trained=self.host.settings.train and kind.method != "rft",
            epochs=training.epochs,
            batch_size=training.batchSizeSamples or kind.batch,
            learning_rate=training.learningRate or 1e-4,
            lora_rank=training.loraRank,
            preference=_preference(parsed),
            evals=1 if valid else 0,
            examples=examples,
            tokens=tokens,
            validation_tokens=validation_tokens,
            output=f"accounts/{here()}/models/{short(training.outputModel or id)}",
            continues=earlier.id if earlier else None,
            created_at=now,
            validated_at=now + self.host.wait("validating"),
        )
        every = training.samplerCheckpointSaveIntervalSteps
        job.checkpoints = max(1, job.total_steps // every) if every else 1
        usd = training_usd(self.host.name, job)
        job.price_usd = str(usd) if usd is not None else None
        return job

    def _dataset(self, name: str) -> StoredFile:
        file = self.datasets.file_of(short(name))
        if file is None:
            raise HostError(404, f"dataset {name} was not found")
        if not self.datasets.is_ready(short(name)):
            raise HostError(400, f"dataset {name} is not READY")
        return file

    def _check_rows(self, kind: JobCollection, file: StoredFile, examples: int, epochs: int) -> None:
        report = file.report
        if report is None or report.error:
            raise HostError(400, f"the dataset is invalid: {report.error if report else 'no rows'}")
        if examples < MIN_EXAMPLES:
            raise HostError(
                400, f"the dataset has {examples} examples, but at least {MIN_EXAMPLES} are required"
            )
        if examples * epochs > MAX_EXAMPLES:
            raise HostError(400, f"examples times epochs must be at most {MAX_EXAMPLES}")
        if (report.format == "preference") != (kind.method == "dpo"):
            wanted = "preference pairs" if kind.method == "dpo" else "chat or completion rows"
            raise HostError(400, f"{kind.collection} need a dataset of {wanted}")

    def _start_from(self, base: str | None, warm: str | None) -> tuple[str, SandboxJob | None]:
        if warm is not None:
            job = self.models.job_of(warm)
            if job is None:
                raise HostError(404, f"model {warm} was not found or is not a PEFT addon")
            return job.base, job
        found = base_model(base or "", self.host.name)
        if found is None:
            if self.models.job_of(base or "") is not None:
                raise HostError(400, "HF_PEFT_ADDON is not a base model. Use warmStartFrom")
            raise HostError(404, f"model {base} was not found")
        if found.tunable == "no":
            raise HostError(400, f"model {base} is not tunable")
        return found.id, None


def _preference(body: SupervisedJob | DpoJob | ReinforcementJob) -> dict[str, Any]:
    loss = body.lossConfig if isinstance(body, DpoJob) else None
    if loss is None:
        return {}
    if loss.method == "ORPO":
        return {"loss": "orpo"} | ({"beta": loss.orpo.weight} if loss.orpo and loss.orpo.weight else {})
    return {"loss": "dpo"} | ({"beta": loss.dpo.beta} if loss.dpo and loss.dpo.beta else {})


def _without_key(body: dict[str, Any]) -> dict[str, Any]:
    if isinstance(body.get("wandbConfig"), dict):
        return {**body, "wandbConfig": {k: v for k, v in body["wandbConfig"].items() if k != "apiKey"}}
    return body


# -- samples and the host --------------------------------------------------------------------------------


# Rendered samples: the first rows as the trainer saw them (docs.fireworks.ai, "Debug SFT tokenization").


MOST = 20


def samples(host: Host, path: Path) -> str:
    """Render the first rows as JSON Lines."""
    tokenizer = trainer_tokenizer(host)
    rows = enumerate(example for example, _ in islice(read(path, host.taken), MOST))
    return "".join(json.dumps(_sample(tokenizer, n, example)) + "\n" for n, example in rows)


def _sample(tokenizer: Any, index: int, example: Any) -> dict[str, Any]:
    ids, learnt = encoded(tokenizer, example)
    share = 1 / (sum(learnt) or 1)  # the weights of a row come to 1
    weights = [share if on else 0.0 for on in learnt]
    return {
        "source_jsonl_row_index": index,
        "source_jsonl_line_number": index + 1,
        "split_index": 0,
        "worker_id": 0,
        "renderer": "chatml",
        "train_on_what": "all_assistant_messages",
        "token_ids": ids,
        "decoded_tokens": [str(tokenizer.decode([id], skip_special_tokens=False)) for id in ids],
        "token_weights": weights,
        "training_target_token_ids": ids[1:],
        "training_loss_weights": weights[1:],
    }


WORDS = {
    Phase.QUEUED: "JOB_STATE_PENDING",
    Phase.RUNNING: "JOB_STATE_RUNNING",
    Phase.PAUSED: "JOB_STATE_PAUSED",
    Phase.FINALIZING: "JOB_STATE_WRITING_RESULTS",
    Phase.CANCELLING: "JOB_STATE_CANCELLING",
    Phase.CANCELLED: "JOB_STATE_CANCELLED",
    Phase.FAILED: "JOB_STATE_FAILED",
    Phase.SUCCEEDED: "JOB_STATE_COMPLETED",
}


class FireworksHost(Host):
    name = "fireworks"
    endless: ClassVar = {"nextPageToken": "again"}
    title = "Fireworks"
    place = 2
    thinking_field = "reasoning_content"
    taken = AcceptedRows(message_fields=frozenset({"reasoning_content"}))
    usual_rate = 1e-4
    status_field = "state"
    own_faults = stepped.FAULTS

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.files = SandboxFiles(self)
        self.datasets = FireworksDatasetRoutes(self.files)
        self.tuned = FireworksModelRoutes(self)
        self.maker = FireworksJobMaker(self.datasets, self.tuned)
        self.sessions: FireworksSessionsApi | None = None
        self._stepped: list[BaseRoute] = []
        if all(find_spec(one) is not None for one in ("numpy", "google.protobuf")):
            self._make_sessions()

    def _make_sessions(self) -> None:
        from orchestrate.sandbox.fireworks.sessions import (
            FireworksSessionsApi,
            FireworksSessionService,
            TrainerRoutes,
        )

        service = stepped.session_service(
            self, FireworksSessionService, lambda name: base_model(name, self.name) is not None
        )
        self.sessions = FireworksSessionsApi(service, notice=SESSION_NOTICE)
        self.life = self.sessions.life
        self.trainers = TrainerRoutes(self, service, SESSION_NOTICE)
        self._stepped = [*self.sessions.mounted(), *self.trainers.routes()]

    def env(self, key: str) -> dict[str, str]:
        return {
            "FIREWORKS_BASE_URL": self.base_url,
            "FIREWORKS_API_KEY": key,
            "FIREWORKS_ACCOUNT_ID": here(),
        }

    def error(self, error: HostError) -> Response:
        """Format an error as Fireworks' gateway does: a gRPC code, a message, no details."""
        body: dict[str, Any] = {"code": GRPC.get(error.status, 2), "message": error.message, "details": []}
        return json_answer(body, error.status, error.headers)

    def routes(self) -> list[BaseRoute]:
        account = "/v1/accounts/{account}"
        return [
            route("/v1/accounts", "GET", self.accounts),
            *self.datasets.routes(),
            *self.tuned.routes(),
            *FireworksResourceRoutes(self).routes(),
            *self._stepped,
            *(
                found
                for collection in KINDS
                for found in self._job_routes(f"{account}/{collection}", KINDS[collection])
            ),
            route(account, "GET", self.account),
            route("/_signed/metrics/{id}", "GET", self.metrics_file),
            route("/_signed/renders/{id}", "GET", self.render_samples),
            route("/v1/chat/completions", "POST", self.chat),
            route("/inference/v1/chat/completions", "POST", self.chat),
        ]

    def _job_routes(self, root: str, kind: JobCollection) -> list[BaseRoute]:
        async def create(request: Request) -> Response:
            body = await json_body(request)
            id = request.query_params.get(kind.id_field)
            ids = await run_in_threadpool(
                self.create_many, [{**body, "collection": kind.collection, "id": id}]
            )
            return json_answer(await run_in_threadpool(self._render_id, ids[0]))

        async def estimate(request: Request) -> Response:
            body = await json_body(request)
            job = await run_in_threadpool(self.maker.make, kind, f"estimate-{uuid.uuid4().hex[:8]}", body)
            if job.price_usd is None:
                raise HostError(400, f"no price is known for {job.base}")
            return json_answer({"estimatedCost": money(Decimal(job.price_usd)), "sandbox": True})

        def list_jobs(request: Request) -> Response:
            following = self.jobs(kind=kind.method, after=page_token(request))
            jobs = aip_filter(following, request, self._filterable)
            return page(request, kind.collection, jobs, self.render, key=lambda job: job.id)

        return [
            route(f"{root}:estimateCost", "POST", estimate),
            route(root, "POST", create),
            route(root, "GET", list_jobs),
            *self._one_job_routes(f"{root}/{{id}}", kind),
        ]

    def _one_job_routes(self, one: str, kind: JobCollection) -> list[BaseRoute]:
        def get(request: Request) -> Response:
            return json_answer(self.render(self._found(request, kind)))

        def delete(request: Request) -> Response:
            job = self._found(request, kind)
            self.change(job.id, lambda j, now: j.cancel(now, 0.0))
            self.state.delete(self.name, "job", job.id)
            return json_answer({})

        def cancel(request: Request) -> Response:
            job = self._found(request, kind)
            takes = self.wait("cancelling")
            job, done = self.change(job.id, lambda j, now: j.cancel(now, takes))
            if not done:
                raise HostError(
                    400, f"job {job.id} is in state {self.state_name(job)} and cannot be cancelled"
                )
            return json_answer({})

        def resume(request: Request) -> Response:
            job = self._found(request, kind)
            takes = self.wait("validating")
            job, done = self.change(job.id, lambda j, now: _restart(j, now, takes))
            if not done:
                raise HostError(400, f"job {job.id} is in state {self.state_name(job)} and cannot be resumed")
            if job.trained:
                self.trainer.take(job)
            return json_answer(self.render(job))

        def metrics_url(request: Request) -> Response:
            job = self._found(request, kind)
            if job.started_at is None or self.clock.now() < job.started_at:
                raise HostError(404, "the metrics file has not been written yet")
            return json_answer({"signedUrl": self._metrics_url(job)})

        return [
            route(f"{one}:cancel", "POST", cancel),
            route(f"{one}:resume", "POST", resume),
            route(f"{one}:getMetricsFileEndpoint", "GET", metrics_url),
            route(one, "GET", get),
            route(one, "DELETE", delete),
        ]

    async def suffer(self, kind: str, delay_s: float) -> Response | None:
        return await stepped.suffer(self.sessions, kind, delay_s)

    def close(self) -> None:
        if self.sessions is not None:
            self.sessions.service.close()

    # -- accounts ------------------------------------------------------------------------------------------

    def denied(self, request: Request) -> HostError | None:
        """Return an error unless the requesting account owns the resource. Resource names start with the name
        of their account. Public models belong to the account `fireworks`."""
        parts = request.url.path.split("/")
        if parts[1:3] != ["v1", "accounts"] or len(parts) < 5 or parts[3] in (here(), "fireworks"):
            return None
        return HostError(403, f"the key has no access to account {parts[3]}", code="permission_denied")

    def _account(self) -> dict[str, Any]:
        return {
            "name": f"accounts/{here()}",
            "displayName": "Sandbox",
            "email": "sandbox@localhost",
            "state": "READY",
            "accountType": "ACCOUNT_TYPE_UNSPECIFIED",
            "createTime": iso(0),
            "suspendState": "UNSUSPENDED",
            "sandbox": True,
        }

    def accounts(self, request: Request) -> Response:
        return json_answer({"accounts": [self._account()], "nextPageToken": "", "totalSize": 1})

    def account(self, request: Request) -> Response:
        if request.path_params["account"] != here():
            raise HostError(404, f"account {request.path_params['account']} was not found")
        return json_answer(self._account())

    # -- creating ------------------------------------------------------------------------------------------

    def create_many(self, bodies: list[dict[str, Any]]) -> list[str]:
        """Create several jobs in one transaction. In addition to the API's fields, each body may have a
        `collection` (default: supervised) and an `id`."""
        made: list[SandboxJob] = []
        with self.state.transaction():
            for given in bodies:
                body = dict(given)
                kind = KINDS[body.pop("collection", "supervisedFineTuningJobs")]
                id = body.pop("id", None) or uuid.uuid4().hex[:12]
                if self.job(id) is not None:
                    raise HostError(409, f"{kind.collection} {id} already exists")
                job = self.maker.make(kind, id, body)
                self.start(job)
                made.append(job)
        return [job.id for job in made]

    # -- reading -------------------------------------------------------------------------------------------

    def _found(self, request: Request, kind: JobCollection) -> SandboxJob:
        id = request.path_params["id"]
        job = self.job(id)
        if job is None or job.kind != kind.method:
            raise HostError(404, f"{kind.collection} {id} was not found")
        return job

    def _render_id(self, id: str) -> dict[str, Any]:
        job = self.job(id)
        assert job is not None  # noqa: S101  made a moment ago
        return self.render(job)

    def state_name(self, job: SandboxJob) -> str:
        """Return Fireworks' name for the job's state. A job that is being validated is first CREATING, then
        VALIDATING."""
        now = self.clock.now()
        phase = job.phase(now)
        if phase is Phase.SUCCEEDED and job.early_stopped:
            return "JOB_STATE_EARLY_STOPPED"
        if phase is not Phase.VALIDATING:
            return WORDS[phase]
        early = now < job.created_at + 0.2 * (job.validated_at - job.created_at)
        return "JOB_STATE_CREATING" if early else "JOB_STATE_VALIDATING"

    def render(self, job: SandboxJob) -> dict[str, Any]:
        now = self.clock.now()
        kind = BY_METHOD[job.kind]
        trouble = self.trouble(job, now)
        started = job.started_at is not None and now >= job.started_at
        training = {
            "baseModel": None if job.body.get("warmStartFrom") else job.model,
            "outputModel": job.output,
            "epochs": job.epochs,
            "learningRate": job.learning_rate,
            "loraRank": job.lora_rank,
            "batchSizeSamples": job.batch_size,
        }
        body = dict(job.body)
        if kind.method == "sft":
            body |= training
        else:
            body["trainingConfig"] = {**body.get("trainingConfig", {}), **training}
        answer = {
            **body,
            "name": f"accounts/{here()}/{kind.collection}/{job.id}",
            "dataset": self.datasets.name_of(job.training_file),
            "state": self.state_name(job),
            "status": {
                "code": "INTERNAL" if trouble else "OK",
                "message": trouble.message if trouble else "",
            },
            "createTime": iso(job.created_at),
            "updateTime": iso(min(now, job.ended_at(now) or now)),
            "completedTime": iso(ended) if (ended := job.ended_at(now)) is not None else None,
            "createdBy": "sandbox@localhost",
            **self.sandbox_fields(job),
        }
        if kind.method != "dpo":
            answer["outputModel"] = job.output
            answer["jobProgress"] = {
                "percent": int(100 * job.fraction(now)),
                "epoch": min(job.epochs - 1, int(job.fraction(now) * job.epochs)),
                "inputTokens": int(job.tokens * job.epochs * job.fraction(now)),
                "outputTokens": 0,
            }
        if kind.method == "sft":
            answer["estimatedCost"] = money(Decimal(job.price_usd)) if job.price_usd else None
            answer["metricsFileSignedUrl"] = self._metrics_url(job) if started else ""
            answer["renderSamplesSignedUrl"] = self.signed(f"renders/{job.id}") if started else ""
        if kind.method == "rft":
            seconds = max(0.0, min(now, job.trained_at or now) - (job.started_at or now)) if started else 0.0
            answer["acceleratorSeconds"] = {"NVIDIA_H100_80GB": str(int(seconds))}
        return {name: value for name, value in answer.items() if value is not None}

    def _filterable(self, job: SandboxJob) -> dict[str, str]:
        return {
            "state": self.state_name(job),
            "display_name": str(job.body.get("displayName") or ""),
            "name": job.id,
        }

    def _metrics_url(self, job: SandboxJob) -> str:
        return self.signed(f"metrics/{job.id}")

    def metrics_file(self, request: Request) -> Response:
        """Return the metrics as JSON lines, one per step."""
        job = self.job(request.path_params["id"])
        if job is None:
            raise HostError(404, "the signed URL is invalid")
        points = self.trainer.metrics(job, self.clock.now())
        if not points:
            raise HostError(404, "the metrics file has not been written yet")
        import json

        lines = "".join(json.dumps(_row(point)) + "\n" for point in points)
        return Response(lines, media_type="application/jsonl")

    def render_samples(self, request: Request) -> Response:
        """Return the rendered rows, or 404 until the job has ended."""
        job = self.job(request.path_params["id"])
        if job is None or job.ended_at(self.clock.now()) is None:
            raise HostError(404, "the signed URL is invalid, or the file has not been written yet")
        return Response(samples(self, self.files.path(job.training_file)), media_type="application/jsonl")

    # -- chat ----------------------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        body = shared.parse_chat(await json_body(request))
        return await run_in_threadpool(self._chat, body)

    def _chat(self, body: shared.SandboxChatRequest) -> Response:
        return shared.complete(self, body, self.tuned.serving(body.model))


def _restart(job: SandboxJob, now: float, takes_s: float) -> bool:
    """Requeue a failed, cancelled or paused job."""
    if job.paused_at is not None:
        return job.resume(now)
    if job.phase(now) not in (Phase.FAILED, Phase.CANCELLED):
        return False
    job.cancel_at = job.cancelled_at = job.failed_at = job.trouble = None
    job.validated_at = now + takes_s
    if job.trained:
        job.started_at = job.trained_at = job.finished_at = None
    else:
        length = (job.trained_at or now) - (job.started_at or now)
        tail = (job.finished_at or now) - (job.trained_at or now)
        job.started_at = job.validated_at
        job.trained_at = job.started_at + length
        job.finished_at = job.trained_at + tail
    return True


def _row(point: MetricPoint) -> dict[str, Any]:
    names = {"train_loss": "train/loss", "valid_loss": "eval/loss", "learning_rate": "train/learning_rate"}
    values = {names.get(name, name): value for name, value in point.values.items()}
    return {"step": point.step, "epoch": point.epoch, **values}


HOST = FireworksHost
