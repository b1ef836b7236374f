"""Fireworks' training sessions: serverless ones, and ones on dedicated trainers (`TrainerRoutes`).

They are simulated by the server behind `orchestrate sessions serve`. The log-probabilities of samples don't
depend on the temperature.
"""

from __future__ import annotations

import json
import re
import secrets
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrate.local.answers.worker import array_of
from orchestrate.local.session_server import SessionsApi
from orchestrate.local.session_server.service import Caller, Promise, SessionModel, SessionService
from orchestrate.sandbox.accounts import here
from orchestrate.sandbox.fireworks import page, page_token
from orchestrate.sandbox.host import (
    LIST_LAG_S,
    Body,
    Host,
    HostError,
    iso,
    json_answer,
    json_body,
    parse,
    route,
)
from orchestrate.sandbox.shared import base_model

ROOT = "/training/v1/serverless"
NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
CROSS_JOB = "cross_job://"
"""Path prefix for loading a checkpoint that another trainer saved."""
Values = dict[str, Any]


class Completion(Body):
    """A completion request from the client's sampler. The prompt is a list of token ids, and so is the
    streamed response."""

    model: str
    prompt: Annotated[list[int], Field(min_length=1)]
    n: Literal[1] = 1
    max_tokens: Annotated[int, Field(ge=1)]
    temperature: Annotated[float, Field(ge=0)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    seed: int | None = None
    stop: list[str] | str | None = None
    stream: Literal[True]
    logprobs: Literal[True]
    raw_output: Literal[True]
    perf_metrics_in_response: bool = False


class FireworksSessionService(SessionService):
    """Session manager that names saved weights as Fireworks does: `account/run/name`, or only `name` on a
    trainer."""

    def path_of(self, owner: str, model: str, kind: str, name: str) -> str:
        run = model.partition(":")[0]
        return f"{owner}/{run}/{name}" if run.startswith("run-") else name

    def places(self, path: str, owner: str) -> list[Path]:
        run, _, name = path.removeprefix(CROSS_JOB).removeprefix(f"{owner}/").partition("/")
        if not NAME.fullmatch(run) or not NAME.fullmatch(name):
            return []
        root = self.place(owner, run, "weights", name).parents[2]
        return [
            one
            for kind in ("weights", "sampler_weights")
            for one in root.glob(f"{run}@train@*/{kind}/{name}")
        ]


class FireworksSessionsApi(SessionsApi):
    """Serverless training sessions on the Fireworks host."""

    service: FireworksSessionService

    def new_id(self) -> str:
        return f"ts-{secrets.token_hex(16)}"

    def model_id(self, caller: Caller, number: int) -> str:
        del caller
        return f"run-{secrets.token_hex(16)}:train:{number}"

    def mounted(self) -> list[BaseRoute]:
        sessions = "/v1/accounts/{account}/trainingSessions/{id}"
        return [
            Mount(ROOT, routes=[*self.routes(), route("/inference/v1/completions", "POST", self.complete)]),
            route(sessions, "DELETE", self.delete),
        ]

    async def delete(self, request: Request) -> Response:
        """End a session. Deleting an ended session is not an error."""
        caller = self.service.callers.get(request.path_params["id"])
        if caller is not None and caller.owner == here():
            self.service.end(caller, keeps=False)
        return JSONResponse({})

    async def complete(self, request: Request) -> Response:
        """Sample from saved sampler weights, or from a session's base model."""
        body = parse(Completion, await json_body(request))
        session, _, path = body.model.partition("/trainingSessions/")[2].partition("/checkpoints/")
        self.service.caller(session, here())
        base, folder = body.model, ""
        if path:
            found, saved = self.service.found(path, here())
            base, folder = saved.base, str(found)
        stop = [body.stop] if isinstance(body.stop, str) else body.stop or []
        drawing = body.model_dump(include={"prompt", "max_tokens", "temperature", "top_p", "top_k", "seed"})
        promise = self.service.promise(here())
        write = self.service.counted(session, here(), base, partial(_used, len(body.prompt)), _stream)
        self.service.ask(promise, "sample", {"folder": folder, "stop": stop, **drawing}, write)
        await promise.ready.wait()
        if not isinstance(promise.result, bytes):
            assert promise.result is not None  # noqa: S101  it is ready
            raise HostError(400, str(promise.result["error"]))
        return Response(promise.result, media_type="text/event-stream")


def _used(prompt: int, answer: Values) -> dict[str, int]:
    return {"prefill": prompt, "sample": sum(len(one["tokens"]) for one in answer["answers"])}


def _stream(answer: Values) -> bytes:
    """Write an answer as server-sent events."""
    [drawn] = answer["answers"]
    log_p = array_of(drawn["logprobs"]).tolist()
    content = [
        {"token_id": id, "logprob": value, "sampling_logprob": value}
        for id, value in zip(drawn["tokens"], log_p, strict=True)
    ]
    choice = {
        "index": 0,
        "text": "",
        "logprobs": {"content": content},
        "finish_reason": drawn["stop"],
        "raw_output": {"completion_token_ids": drawn["tokens"]},
    }
    event = {"id": f"cmpl-{secrets.token_hex(8)}", "choices": [choice], "sandbox": True}
    return f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()


# -- trainers --------------------------------------------------------------------------------------------


USD_PER_HOUR = 8.0
"""Hourly price of one H200 in US dollars, from Fireworks' price page."""
SHAPE = {
    "acceleratorType": "NVIDIA_H200_141GB",
    "acceleratorCount": 1,
    "nodeCount": 1,
    "maxSupportedContextLength": 32768,
}
TRAINER: ContextVar[str] = ContextVar("trainer")
"""Id of the trainer that handles the current request."""
DEFAULT_INACTIVE_S, MOST_INACTIVE_S = 3600.0, 3 * 3600.0


class TrainingConfig(Body):
    baseModel: str
    loraRank: Annotated[int, Field(ge=0, le=128)]
    learningRate: float | None = None


class CreateTrainer(Body):
    serviceMode: Literal[True]
    keepAlive: bool = False
    dataset: Literal[""] = ""
    trainingConfig: TrainingConfig
    useReservation: bool = False
    displayName: Annotated[str, Field(max_length=63)] | None = None
    inactivityTimeout: Annotated[str, Field(pattern=r"^\d+s$")] | None = None


class TrainerSessionsApi(FireworksSessionsApi):
    """Sessions on dedicated trainers. A session belongs to the trainer that received the request to open
    it."""

    def new_id(self) -> str:
        return super().new_id().removeprefix("ts-")

    def model_id(self, caller: Caller, number: int) -> str:
        return f"{TRAINER.get()}:train:{caller.id}-{number}"

    def _load(self, model: SessionModel, body: dict[str, Any], promise: Promise) -> None:
        """Load a checkpoint. A name without a path is a checkpoint of the same trainer."""
        if "/" not in (path := str(body.get("path"))):
            body = {**body, "path": f"{CROSS_JOB}{model.id.partition(':')[0]}/{path}"}
        super()._load(model, body, promise)


class TrainerRoutes:
    """Routes for training shapes and trainers on the Fireworks host."""

    def __init__(self, host: Host, service: FireworksSessionService, notice: str) -> None:
        self.host, self.service = host, service
        self._api = TrainerSessionsApi(service, notice=notice)

    def routes(self) -> list[BaseRoute]:
        root, shape = "/v1/accounts/{account}/rlorTrainerJobs", "/v1/accounts/{owner}/trainingShapes/{shape}"
        return [
            route(f"{shape}/versions", "GET", self.shapes),
            route(root, "POST", self.create),
            route(root, "GET", self.list_all),
            route(f"{root}/{{id}}:cancel", "POST", self.cancel),
            route(f"{root}/{{id}}", "GET", self.get),
            Mount(
                "/training/v1/rlorTrainerJobs/{account}/{job}",
                app=self._gate(Router(self._api.routes())),
            ),
        ]

    def shapes(self, request: Request) -> Response:
        """Describe a training shape. Shapes with names ending in `-lora` train adapters."""
        owner, shape = request.path_params["owner"], request.path_params["shape"]
        mode = "LORA_TRAINER" if shape.endswith("-lora") else "POLICY_TRAINER"
        name = f"accounts/{owner}/trainingShapes/{shape}/versions/1"
        version = {"name": name, "snapshot": {**SHAPE, "trainerMode": mode}}
        return json_answer({"trainingShapeVersions": [version], "nextPageToken": ""})

    # -- trainers ------------------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        body = parse(CreateTrainer, await json_body(request))
        id, shape = request.query_params.get("rlorTrainerJobId"), request.query_params.get("trainingShape")
        if not id or not shape:
            raise HostError(400, "creating a trainer in the sandbox requires an id and a training shape")
        if self.host.state.get(self.host.name, "trainer", id) is not None:
            raise HostError(409, f"rlorTrainerJob {id} already exists")
        if base_model(body.trainingConfig.baseModel, "fireworks") is None:
            raise HostError(400, f"base model {body.trainingConfig.baseModel} was not found")
        timeout = float((body.inactivityTimeout or "0s")[:-1]) or DEFAULT_INACTIVE_S
        if timeout > MOST_INACTIVE_S:
            raise HostError(400, "inactivity_timeout must be at most 3 hours")
        now = self.host.clock.now()
        made: Values = {
            "id": id,
            "shape": shape,
            "body": body.model_dump(exclude_none=True),
            "inactive_s": timeout,
            "made_at": now,
            "ready_at": now + self.host.wait("deploying"),
            "active_at": now + self.host.wait("deploying"),
            "stopped_at": None,
        }
        self._save(made)
        return json_answer(self._shown(made))

    def _save(self, trainer: Values) -> None:
        self.host.state.put(self.host.name, "trainer", trainer["id"], trainer)

    def _found(self, id: str) -> Values:
        found = self.host.state.get(self.host.name, "trainer", id)
        if found is None:
            raise HostError(404, f"rlorTrainerJob {id} was not found")
        return self.settled(found)

    def settled(self, trainer: Values) -> Values:
        """Return the trainer, after stopping it if it has been inactive for too long."""
        ends = trainer["active_at"] + trainer["inactive_s"]
        if trainer["stopped_at"] is None and self.host.clock.now() >= ends:
            self._end(trainer, ends)
        return trainer

    def _end(self, trainer: Values, at: float) -> None:
        trainer["stopped_at"] = at
        self._save(trainer)
        for caller in list(self.service.callers.values()):
            if any(id.startswith(f"{trainer['id']}:") for id, _ in caller.models.values()):
                self.service.end(caller, keeps=False)

    def shown(self, trainer: Values) -> Values:
        return self._shown(self.settled(trainer))

    def _shown(self, trainer: Values) -> Values:
        now, stopped = self.host.clock.now(), trainer["stopped_at"]
        up = "RUNNING" if now >= trainer["ready_at"] else "CREATING"
        config = {**trainer["body"]["trainingConfig"]}
        config |= {name: SHAPE[name] for name in ("acceleratorType", "acceleratorCount")}
        until = now if stopped is None else stopped
        return {
            **trainer["body"],
            "name": f"accounts/{here()}/rlorTrainerJobs/{trainer['id']}",
            "trainingConfig": config,
            "nodeCount": SHAPE["nodeCount"],
            "state": f"JOB_STATE_{up if stopped is None else 'CANCELLED'}",
            "status": {"code": "OK", "message": ""},
            "createTime": iso(trainer["made_at"]),
            **({} if stopped is None else {"completedTime": iso(stopped)}),
            "sandbox": True,
            "sandboxUsd": (until - trainer["made_at"]) / 3600 * USD_PER_HOUR,
        }

    def list_all(self, request: Request) -> Response:
        every = self.host.state.all(self.host.name, "trainer", after=page_token(request))
        old = self.host.clock.now() - LIST_LAG_S.get()
        found = (one for one in every if one["made_at"] <= old)
        return page(request, "rlorTrainerJobs", found, self.shown, key=lambda one: one["id"])

    def get(self, request: Request) -> Response:
        return json_answer(self._shown(self._found(request.path_params["id"])))

    def cancel(self, request: Request) -> Response:
        found = self._found(request.path_params["id"])
        if found["stopped_at"] is not None:
            raise HostError(400, f"rlorTrainerJob {found['id']} has ended")
        self._end(found, self.host.clock.now())
        return json_answer({})

    # -- requests to trainers ------------------------------------------------------------------------------

    def _gate(self, app: ASGIApp) -> ASGIApp:
        """Forward requests to running trainers. Each request counts as activity."""

        async def gate(scope: Scope, receive: Receive, send: Send) -> None:
            TRAINER.set(scope["path_params"]["job"])  # each request runs in a context of its own
            if scope["path_params"]["account"] != here():
                raise HostError(403, "the key has no access to this trainer", code="permission_denied")
            trainer = self._found(TRAINER.get())
            if trainer["stopped_at"] is not None or self.host.clock.now() < trainer["ready_at"]:
                raise HostError(404, f"trainer {trainer['id']} is not running")
            trainer["active_at"] = self.host.clock.now()
            self._save(trainer)
            await app(scope, receive, send)

        return gate
