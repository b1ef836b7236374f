"""Together's training sessions: model resources (billed hourly), their sessions, and the sessions'
operations, which the local engine executes."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute

from orchestrate.errors import OrchestrateError
from orchestrate.local.answers.worker import array_of
from orchestrate.sandbox import shared
from orchestrate.sandbox.accounts import HERE, here
from orchestrate.sandbox.host import (
    LIST_LAG_S,
    STALLS,
    Body,
    Host,
    HostError,
    iso,
    json_answer,
    json_body,
    page_of,
    parse,
    route,
)
from orchestrate.sandbox.shared import base_model
from orchestrate.sandbox.state import token
from orchestrate.sandbox.together import (
    KINDS,
    LOSSES,
    Compute,
    CreateResources,
    CreateTrainingSession,
    CustomForwardBackward,
    ExtendExpiry,
    ForwardBackward,
    Nothing,
    OptimStep,
    SampleSession,
    SessionSample,
    SessionTensor,
    StopResources,
    WeightsSync,
)
from orchestrate.sandbox.together.endpoints import object_id

if TYPE_CHECKING:
    from orchestrate.providers.local.sessions import SharedWorker

USD_PER_HOUR = 8.0
"""Hourly price of the trainer, and also of each generator, in US dollars."""
RESOURCE, SESSION = "MODEL_RESOURCES_STATUS_", "TRAINING_SESSION_STATUS_"
OPERATION = "TRAINING_OPERATION_"
Values = dict[str, Any]


class TrainingSessions:
    """Routes for model resources and training sessions on the Together host. A session can't outlive the
    process that trains it, but its cost stays in the sandbox's state."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self._lock, self._starting = threading.RLock(), threading.Lock()
        self._worker: SharedWorker | None = None
        self._loaded: set[str] = set()
        """Ids of the sessions that this process trains. Sessions of earlier processes are
        reported as failed."""
        self._operations: dict[str, Values] = {}
        self._by_key: dict[tuple[str, str, str], str] = {}

    def routes(self) -> list[BaseRoute]:
        root, below = "/v1/rl/model-resources", "/v1/rl/training-sessions"
        operations = f"{below}/{{id}}/operations/{{kind}}"
        return [
            route("/v1/rl/supported-models", "GET", self.supported),
            route(root, "POST", self.create),
            route(root, "GET", self.list_resources),
            route(f"{root}/estimate-cost", "POST", self.estimate),
            route(f"{root}/{{id}}", "GET", self.retrieve),
            route(f"{root}/{{id}}/extend-expiry", "POST", self.extend),
            route(f"{root}/{{id}}/stop", "POST", self.stop),
            route(below, "POST", self.open),
            route(below, "GET", self.list_sessions),
            route(f"{below}/{{id}}", "GET", self.session),
            route(f"{below}/{{id}}/stop", "POST", self.stop_session),
            route(operations, "POST", self.operate),
            route(f"{operations}/{{operation}}", "GET", self.operation),
            route(f"{below}/{{id}}/payloads/upload-url", "POST", self.payload),
            route("/_signed/payload/{id}", "PUT", self.receive),
            route("/v1/rl/checkpoints", "GET", self.checkpoints),
            route("/v1/rl/checkpoints/{id}", "GET", self.checkpoint),
            route("/v1/rl/checkpoints/{id}/download", "GET", self.files),
            route("/_signed/checkpoint/{id}/{name}", "GET", self.file),
        ]

    def close(self) -> None:
        with self._starting:
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    # -- model resources -----------------------------------------------------------------------------------

    def supported(self, request: Request) -> Response:
        from orchestrate.catalog import search

        lora = {"max_batch_size": 1024, "max_rank": 128, "max_seq_length": 32768}
        config = {"gpu_type": "B200-SXM", "trainer_config": {"lora": lora}}
        names = [model.hosts["together"].id for model in search(provider="together")]
        data = [
            {"base_model": name, "default_gpu_type": "B200-SXM", "compute_configs": [config]}
            for name in names
        ]
        return json_answer({"data": data})

    async def estimate(self, request: Request) -> Response:
        body = await self._wanted(request)
        return json_answer({"currency": "USD", "price_per_hour": _per_hour(body.compute_config)})

    async def _wanted(self, request: Request) -> CreateResources:
        body = parse(CreateResources, await json_body(request))
        if base_model(body.base_model, "together") is None:
            raise HostError(400, f"base model {body.base_model} is not supported", param="base_model")
        return body

    async def create(self, request: Request) -> Response:
        body, now = await self._wanted(request), self.host.clock.now()
        ready = now + self.host.wait("deploying")
        made: Values = {
            "id": f"mr-{token(16)}",
            "base_model": body.base_model,
            "compute_config": body.compute_config.model_dump(),
            "created_by": f"{here()}-user",
            "inactive_timeout": body.inactive_timeout,
            "lora_enabled": True,
            "optimizer_config": {"adam": {}},
            "status_details": {},
            "sandbox": True,
            "made_at": now,
            "ready_at": ready,
            "active_at": ready,
            "kept_until": 0.0,
            "stopped_at": None,
        }
        self._save("model-resources", made)
        return json_answer(self._shown(made))

    def _save(self, kind: str, values: Values) -> None:
        self.host.state.put("together", kind, values["id"], values)

    def _found(self, kind: str, id: str) -> Values:
        found = self.host.state.get("together", kind, id)
        if found is None:
            raise HostError(404, f"{kind} {id} was not found", code="not_found")
        return self._settled(found) if kind == "model-resources" else found

    def _settled(self, resource: Values) -> Values:
        """End a resource that has been inactive for too long."""
        expires = _expiry(resource)
        if resource["stopped_at"] is not None or self.host.clock.now() < expires:
            return resource
        working = {one["session"] for one in self._operations.values() if one["status"] == "RUNNING"}
        if not any(
            one["id"] in working and one["model_resources_id"] == resource["id"]
            for one in self.host.state.all("together", "training-session")
        ):
            self._end(resource, expires, "EXPIRED")
        return resource

    def _end(self, resource: Values, at: float, status: str) -> None:
        with self._lock:
            resource["stopped_at"] = at
            self._save("model-resources", resource)
            for session in self.host.state.all("together", "training-session"):
                if session["model_resources_id"] == resource["id"]:
                    self._end_session(session, status)

    def _shown(self, resource: Values) -> Values:
        now, stopped = self.host.clock.now(), resource["stopped_at"]
        ready = now >= resource["ready_at"]
        status = "STOPPED" if stopped is not None else "READY" if ready else "CREATING"
        hours = ((now if stopped is None else stopped) - resource["made_at"]) / 3600
        hidden = ("made_at", "ready_at", "active_at", "kept_until", "stopped_at")
        return {
            **{name: value for name, value in resource.items() if name not in hidden},
            "status": RESOURCE + status,
            "created_at": iso(resource["made_at"]),
            "updated_at": iso(now if stopped is None else stopped),
            "expires_at": iso(_expiry(resource)) if status == "READY" else None,
            "sandbox_usd": hours * _per_hour(Compute(**resource["compute_config"])),
        }

    def list_resources(self, request: Request) -> Response:
        lag = LIST_LAG_S.get()
        found = (
            self._shown(self._settled(one))
            for one in self.host.state.all(
                "together", "model-resources", after=request.query_params.get("after")
            )
            if one["made_at"] <= self.host.clock.now() - lag
        )
        return _page(request, _of_status(request, found))

    def retrieve(self, request: Request) -> Response:
        return json_answer(self._shown(self._found("model-resources", request.path_params["id"])))

    async def extend(self, request: Request) -> Response:
        body = parse(ExtendExpiry, await json_body(request))
        found = self._up(request.path_params["id"])
        found["kept_until"] = max(found["kept_until"], self.host.clock.now() + body.seconds)
        self._save("model-resources", found)
        return json_answer(self._shown(found))

    def _up(self, id: str) -> Values:
        found = self._found("model-resources", id)
        if found["stopped_at"] is not None:
            raise HostError(400, f"model resource {id} is stopped", code="failed_precondition")
        return found

    def stop(self, request: Request) -> Response:
        body = parse(StopResources, dict(request.query_params))
        found = self._found("model-resources", request.path_params["id"])
        if found["stopped_at"] is None:
            if not body.force and any(
                one["model_resources_id"] == found["id"] and one["status"] == "RUNNING"
                for one in self.host.state.all("together", "training-session")
            ):
                raise HostError(400, "the resource has active sessions", code="failed_precondition")
            self._end(found, self.host.clock.now(), "STOPPED")
        return json_answer(self._shown(found))

    # -- sessions ------------------------------------------------------------------------------------------

    async def open(self, request: Request) -> Response:
        body = parse(CreateTrainingSession, await json_body(request))
        return json_answer(self._session(self._open(body)))

    def _open(self, body: CreateTrainingSession) -> Values:
        resource, now = self._up(body.model_resources_id), self.host.clock.now()
        if now < resource["ready_at"]:
            raise HostError(400, "the model resource is not ready", code="failed_precondition")
        saved = None
        if body.resume_from_checkpoint_id is not None:
            saved = self._found("rl-checkpoint", body.resume_from_checkpoint_id)
        made: Values = {
            "id": f"ts-{token(16)}",
            "base_model": resource["base_model"],
            "created_at": iso(now),
            "updated_at": iso(now),
            "created_by": f"{here()}-user",
            "metadata": {},
            "model_resources_id": resource["id"],
            "status": "CREATING",
            "step": saved["step"] if saved is not None and body.load_optimizer else 0,
            "display_name": body.display_name,
            "sandbox_tokenizer": str(self.host.trainer.model),
            "lora_config": body.lora_config.model_dump(),
            "resume_from_checkpoint_id": body.resume_from_checkpoint_id,
            "sandbox": True,
        }
        with self._lock:
            self._loaded.add(made["id"])
            self._save("training-session", made)
        self._active(resource)
        load = None if saved is None else str(self.host.state.files / saved["id"])
        context = copy_context()
        threading.Thread(
            target=context.run, args=(self._load, made, load, body.load_optimizer), daemon=True
        ).start()
        return made

    def _load(self, made: Values, saved: str | None, optimizer: bool) -> None:
        """Load the session's model. The first session also loads the base model."""
        shape = {name: made["lora_config"][name] for name in ("rank", "seed", "train_unembed")}
        error = None
        try:
            worker = self._started()
            worker.submit("create", model=made["id"], shape=shape).result()
            if saved is not None:
                worker.submit("load", model=made["id"], folder=saved, optimizer=optimizer).result()
        except OrchestrateError as failed:
            error = {
                "code": "TRAINING_SESSION_ERROR_CODE_INTERNAL_ERROR",
                "message": failed.message,
                "occurred_at": iso(self.host.clock.now()),
            }
        with self._lock:
            found = self._found("training-session", made["id"])
            if found["status"] == "CREATING":
                found |= {"status": "RUNNING"} if error is None else {"status": "ERROR", "error": error}
                self._save("training-session", found)

    def _started(self) -> SharedWorker:
        from orchestrate.providers.local.sessions import SharedWorker

        with self._starting:
            if self._worker is None or self._worker.lost:
                opening = {"base": str(self.host.trainer.model), "threads": 1, "precision": "fp32"}
                self._worker = SharedWorker(opening)
            return self._worker

    def _active(self, resource: Values) -> None:
        resource["active_at"] = max(resource["active_at"], self.host.clock.now())
        self._save("model-resources", resource)

    def _end_session(self, session: Values, status: str) -> None:
        if session["status"] in ("RUNNING", "CREATING"):
            session["status"] = status
            self._save("training-session", session)
            for one in self._operations.values():
                if one["session"] == session["id"] and one["status"] == "RUNNING":
                    _fail(one, "SESSION_NOT_ACTIVE", f"the session is {status.lower()}")
            if session["id"] in self._loaded and self._worker is not None:
                self._loaded.discard(session["id"])
                self._worker.submit("unload", model=session["id"])

    def _live(self, id: str) -> Values:
        found = self._found("training-session", id)
        self._found("model-resources", found["model_resources_id"])  # it may have expired
        found = self._found("training-session", id)
        if (
            found["status"] in ("RUNNING", "CREATING") and id not in self._loaded
        ):  # the sandbox was started again
            found["status"] = "ERROR"
            self._save("training-session", found)
        return found

    def _session(self, found: Values) -> Values:
        kept = [one for one in self._saved() if one["session_id"] == found["id"]]
        versions = ("trainer_step", "target_weights_version", "applied_weights_version")
        return {
            **found,
            "status": SESSION + found["status"],
            "policy_state": {**dict.fromkeys(versions, found["step"]), "pending_publish": False},
            **{
                f"{kind}_checkpoints": [one for one in kept if one["type"].endswith(kind.upper())]
                for kind in ("training", "inference")
            },
        }

    def session(self, request: Request) -> Response:
        return json_answer(self._session(self._live(request.path_params["id"])))

    def list_sessions(self, request: Request) -> Response:
        wanted = request.query_params.get("model_resources_id")
        every = self.host.state.all("together", "training-session", after=request.query_params.get("after"))
        found = (one for one in every if wanted in (None, one["model_resources_id"]))
        return _page(request, _of_status(request, (self._session(self._live(one["id"])) for one in found)))

    def stop_session(self, request: Request) -> Response:
        found = self._live(request.path_params["id"])
        with self._lock:
            self._end_session(found, "STOPPED")
        return json_answer(self._session(found))

    def _saved(self) -> list[Values]:
        return list(self.host.state.all("together", "rl-checkpoint"))

    def checkpoints(self, request: Request) -> Response:
        return _page(request, iter(self._saved()))

    def checkpoint(self, request: Request) -> Response:
        found = self._found("rl-checkpoint", request.path_params["id"])
        return json_answer({**found, "inference_registration": found.get("registration")})

    def files(self, request: Request) -> Response:
        found = self._found("rl-checkpoint", request.path_params["id"])
        if request.query_params.get("variant") != "CHECKPOINT_VARIANT_ADAPTER" or "registration" not in found:
            raise HostError(
                400, "the sandbox only provides adapter files, and only for inference checkpoints"
            )
        there = sorted(self.host.state.files.joinpath(found["id"]).iterdir())
        data = [
            {
                "filename": file.name,
                "size": file.stat().st_size,
                "url": self.host.signed(f"checkpoint/{found['id']}/{file.name}"),
            }
            for file in there
        ]
        return json_answer({"data": data})

    def file(self, request: Request) -> Response:
        found = self._found("rl-checkpoint", request.path_params["id"])
        return FileResponse(self.host.state.files / found["id"] / Path(request.path_params["name"]).name)

    # -- operations ----------------------------------------------------------------------------------------

    def payload(self, request: Request) -> Response:
        """Return an upload URL for a payload that is too large for a request."""
        self._live(request.path_params["id"])
        id = token(24)
        return json_answer({"payload_id": id, "upload_url": self.host.signed(f"payload/{id}")})

    async def receive(self, request: Request) -> Response:
        await shared.store_stream(self._payload_file(request.path_params["id"]), request.stream())
        return Response()

    def _payload_file(self, id: str) -> Path:
        return self.host.state.files / f"payload-{Path(id).name}"

    async def operate(self, request: Request) -> Response:
        kind = request.path_params["kind"]
        if kind not in KINDS:
            raise HostError(404, f"unknown operation: {kind}", code="not_found")
        key = request.headers.get("idempotency-key")
        if not key:
            raise HostError(400, "the Idempotency-Key header is missing", code="invalid_argument")
        body: Values = {} if KINDS[kind] is Nothing else await json_body(request)
        if (payload := body.pop("payload_id", None)) is not None:
            uploaded = json.loads(self._payload_file(str(payload)).read_bytes())
            body = {**body, **uploaded}  # the request has the beginning of each list only
        parsed = parse(KINDS[kind], body)
        return json_answer(
            await run_in_threadpool(self._operate, request.path_params["id"], kind, key, parsed)
        )

    def _operate(self, id: str, kind: str, key: str, body: Body) -> Values:
        with self._lock:
            session = self._live(id)
            known = self._by_key.get((id, kind, key))
            if known is not None:
                return _operation(self._operations[known])
            if session["status"] != "RUNNING":
                status = session["status"].lower()
                raise HostError(400, f"the session {id} is {status}", code="session_not_active")
            one: Values = {"id": f"op-{token(16)}", "session": id, "kind": kind, "status": "RUNNING"}
            self._operations[one["id"]], self._by_key[id, kind, key] = one, one["id"]
            self._active(self._found("model-resources", session["model_resources_id"]))
            if not STALLS.get():
                self._carry_out(one, session, body)
            return _operation(one)

    def operation(self, request: Request) -> Response:
        found = self._operations.get(request.path_params["operation"])
        if found is None or found["session"] != request.path_params["id"]:
            raise HostError(404, "operation not found", code="not_found")
        session = self._live(found["session"])
        if found["status"] == "RUNNING":
            self._active(self._found("model-resources", session["model_resources_id"]))
        return json_answer(_operation(found))

    def _carry_out(self, one: Values, session: Values, body: Body) -> None:
        """Send the operation to the engine, and store its output when it arrives."""
        account = here()
        every: dict[type[Body], Callable[[Values, Values, Any], Any]] = {
            ForwardBackward: self._forward,
            CustomForwardBackward: self._custom,
            OptimStep: self._step,
            SampleSession: self._sample,
            WeightsSync: self._sync,
            Nothing: self._checkpoint,
        }
        sent, output = every[type(body)](one, session, body)

        def done(future: Future[Values]) -> None:
            HERE.set(account)
            with self._lock:
                try:
                    answer = output(future.result())
                except (OrchestrateError, HostError, OSError) as error:
                    code = "NON_FINITE_LOSS" if "not finite" in str(error) else "INVALID_INPUT"
                    _fail(one, code, str(error))
                else:
                    if one["status"] == "RUNNING":
                        one.update(status="COMPLETED", output=answer)

        sent.add_done_callback(done)

    def _forward(self, one: Values, session: Values, body: Any) -> Any:
        if body.loss.type not in LOSSES:
            raise HostError(
                400, f"the sandbox does not support the loss type {body.loss.type}", param="loss.type"
            )
        loss, config = LOSSES[body.loss.type]
        for number, sample in enumerate(body.samples):
            if loss == "cross_entropy" and "weights" not in sample.loss_fn_inputs:
                raise HostError(400, f"samples[{number}].loss_fn_inputs must include weights")
        fields: Values = {
            "data": [sample.row() for sample in body.samples],
            "loss": loss,
            "config": getattr(body.loss, config, None) or {},
            "backward": not body.forward_only,
        }
        sent = self._started().submit("forward", model=session["id"], **fields)

        def output(answer: Values) -> Values:
            metrics = {name: value for name, value in answer["metrics"].items() if name != "loss:sum"}
            found: Values = {"loss": answer["metrics"]["loss:sum"], "metrics": metrics}
            if body.return_loss_fn_outputs:
                pairs = zip(body.samples, answer["logprobs"], strict=True)
                found["loss_fn_outputs"] = [_masked(sample, array_of(value)) for sample, value in pairs]
            return found

        return sent, output

    def _custom(self, one: Values, session: Values, body: Any) -> Any:
        rows: list[Values] = []
        for sample, gradient in zip(body.samples, body.gradients, strict=True):
            weights = SessionTensor(data=[-value for value in gradient.data], dtype="float32")
            rows.append(sample.row(weights=weights))
        fields: Values = {"data": rows, "loss": "cross_entropy", "config": {}, "backward": True}

        def output(answer: Values) -> Values:
            del answer
            return {}

        return self._started().submit("forward", model=session["id"], **fields), output

    def _step(self, one: Values, session: Values, body: Any) -> Any:
        sent = self._started().submit("step", model=session["id"], adam=body.adam_params.model_dump())

        def output(answer: Values) -> Values:
            found = self._found("training-session", session["id"])
            found["step"] += 1
            self._save("training-session", found)
            return {"step": str(found["step"])}

        return sent, output

    def _sync(self, one: Values, session: Values, body: Any) -> Any:
        folder = self.host.state.files / f"synced-{session['id']}"
        sent = self._save_model(session, folder, optimizer=False)

        def output(answer: Values) -> Values:
            del answer
            return {"weights_version": str(session["step"])}

        return sent, output

    def _save_model(self, session: Values, folder: Any, *, optimizer: bool) -> Future[Values]:
        fields = {"folder": str(folder), "optimizer": optimizer, "note": None, "overwrite": True}
        return self._started().submit("save", model=session["id"], **fields)

    def _sample(self, one: Values, session: Values, body: Any) -> Any:
        """Sample from the weights of the last sync, or from the base before the first."""
        resource = self._found("model-resources", session["model_resources_id"])
        if not resource["compute_config"]["num_generator_replicas"]:
            raise HostError(400, "the model resource has no generator", code="failed_precondition")
        folder, drawing = self.host.state.files / f"synced-{session['id']}", body.sampling_params
        fields = {
            "folder": str(folder) if folder.is_dir() else "",
            "prompt": body.model_inputs[0].ids(),
            "n": body.num_samples,
            "max_tokens": drawing.max_tokens,
            "temperature": drawing.temperature,
            "top_p": drawing.top_p,
            "top_k": max(0, drawing.top_k),
            "seed": drawing.seed,
            "stop": drawing.stop,
        }

        def output(answer: Values) -> Values:
            sequences = [
                {
                    "tokens": drawn["tokens"],
                    "logprobs": array_of(drawn["logprobs"]).tolist(),
                    "stop_reason": f"STOP_REASON_{drawn['stop'].upper()}",
                    "prompt_cache_hit_tokens": 0,
                }
                for drawn in answer["answers"]
            ]
            segment = {"start_token": 0, "version": session["step"]}
            return {"results": [{"policy_segments": [segment], "sequences": sequences}]}

        return self._started().submit("sample", **fields), output

    def _checkpoint(self, one: Values, session: Values, body: Any) -> Any:
        training = one["kind"] == "training-checkpoint"
        saved: Values = {
            "id": f"ckpt-{token(16)}",
            "base_model": session["base_model"],
            "created_at": iso(self.host.clock.now()),
            "session_id": session["id"],
            "step": session["step"],
            "type": f"CHECKPOINT_TYPE_{'TRAINING' if training else 'INFERENCE'}",
            "lora_rank": session["lora_config"]["rank"],
        }
        folder = self.host.state.files / saved["id"]
        sent = self._save_model(session, folder, optimizer=training)

        def output(answer: Values) -> Values:
            saved["step"] = self._found("training-session", session["id"])["step"]
            if not training:
                saved["registration"] = {"adapter": self._registered(saved, folder)}
            self._save("rl-checkpoint", saved)
            return {"checkpoint": saved}

        return sent, output

    def _registered(self, saved: Values, folder: Any) -> Values:
        """Add an adapter to the project's registry, so it can be deployed."""
        name = f"sandbox/{saved['id']}"
        id = object_id("ml", name)
        for file in shared.FILES:
            shutil.copy(folder / file, shared.folder_of(self.host, id) / file)
        shared.add(self.host, id, name, saved["base_model"])
        return {"id": id, "revision_id": object_id("rv", name)}


def _expiry(resource: Values) -> float:
    return max(resource["active_at"] + resource["inactive_timeout"], resource["kept_until"])


def _per_hour(compute: Compute) -> float:
    return USD_PER_HOUR * (1 + compute.num_generator_replicas)


def _fail(one: Values, code: str, message: str) -> None:
    one.update(status="FAILED", error={"code": f"{OPERATION}ERROR_CODE_{code}", "message": message})


def _operation(one: Values) -> Values:
    shown = {name: one[name] for name in ("id", "output", "error") if name in one}
    return {**shown, "status": f"{OPERATION}STATUS_{one['status']}"}


def _page(request: Request, found: Iterator[Values]) -> Response:
    limit = int(request.query_params.get("limit", "100"))
    data, more = page_of(found, limit)
    meta = {"has_more": more, "limit": limit, "next_cursor": data[-1]["id"] if more else ""}
    return json_answer({"data": data, "meta": meta})


def _of_status(request: Request, found: Iterator[Values]) -> Iterator[Values]:
    given = [*request.query_params.getlist("status"), *request.query_params.getlist("status[]")]
    wanted = {word for one in given for word in one.split(",")}
    return (one for one in found if not wanted or one["status"] in wanted)


def _masked(sample: SessionSample, log_p: Any) -> Values:
    """Return the log-probabilities, with zeros at positions that the loss ignores, as Together does."""
    kept = sample.loss_fn_inputs.get("weights") or sample.loss_fn_inputs.get("mask")
    shown = [
        float(value) if kept is None or kept.data[place] else 0.0
        for place, value in enumerate(log_p.reshape(-1))
    ]
    return {"tensors": {"logprobs": {"data": shown, "dtype": "float32", "shape": [len(shown)]}}}
