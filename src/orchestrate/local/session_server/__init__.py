"""A server for Tinker's HTTP API, with models on this machine. docs/sessions.md lists the tested clients."""

from __future__ import annotations

import asyncio
import secrets
import shutil
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from orchestrate.http.wire import HostError, json_body, parse
from orchestrate.local.session_server import wire
from orchestrate.local.session_server.service import (
    Caller,
    Promise,
    SavedSampler,
    SavedWeights,
    SessionModel,
    SessionService,
    forward_result,
    sample_result,
)
from orchestrate.local.session_server.usage import HOUR_S, UsageBucket

ROOT = "/api/v1"
MOST_BODY = 64 << 20
POLL_S = 20.0
"""Seconds that the server waits for a result before it asks the client to poll again. The official client
times out after 45 seconds."""
CONFIG = {
    "parallel_fwdbwd_chunks": False,  # requests then come in the order of their numbers
    "proto_compress_fwdbwd": False,
    "sample_use_retrieve_futures": False,
    "custom_loss_server_side": False,
    "pjwt_auth_enabled": False,
    "sample_join_sampling_session": False,
}
"""Feature flags for the official client. All of these features are off."""
OPEN = (f"{ROOT}/healthz",)
PROTOBUF = "application/x-protobuf"
USAGE_TYPES = {"train": "training", "prefill": "sampling_prefill", "sample": "sampling_sample"}
Handler = Callable[[dict[str, Any], str], dict[str, Any]]


class SessionsApi:
    """The endpoints of the API. Callers only have access to objects that were created with their own key. The
    ASGI scope's `key_name` is the key's name.

    `notice` is shown to callers when they create a session. `prices` are in US dollars per million tokens,
    keyed by kind of use. Without `prices`, nothing is billed.
    """

    def __init__(
        self,
        service: SessionService,
        *,
        notice: str = "nothing is billed",
        prices: Mapping[str, Decimal] | None = None,
    ) -> None:
        self.service, self._notice, self._prices = service, notice, prices or {}

    @asynccontextmanager
    async def life(self, app: Any) -> AsyncGenerator[None]:
        del app
        task = asyncio.create_task(self.service.run())
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def routes(self) -> list[BaseRoute]:
        posts: dict[str, Handler] = {
            "client/config": lambda body, owner: CONFIG,
            "client/dynamic_config": lambda body, owner: {},
            "telemetry": lambda body, owner: {"status": "accepted"},
            "create_session": self._create_session,
            "session_heartbeat": self._heartbeat,
            "create_model": self._create_model,
            "get_info": self._info,
            "unload_model": self._unload,
            "optim_step": self._optim_step,
            "save_weights": self._save_weights,
            "save_weights_for_sampler": self._save_for_sampler,
            "load_weights": self._load_weights,
            "weights_info": self._weights_info,
            "create_sampling_session": self._create_sampler,
            "asample": self._sample,
        }
        gets: dict[str, Callable[[Request], Any]] = {
            "healthz": lambda request: {"status": "ok"},
            "get_server_capabilities": lambda request: self._capabilities(),
            "samplers/{id:path}": self._sampler,
            "checkpoints": lambda request: self._checkpoints(request, None),
            "billing/usage/events": self._usage,
            "training_runs/{id}/checkpoints": lambda request: self._checkpoints(
                request, request.path_params["id"]
            ),
        }
        return [
            *(Route(f"{ROOT}/{path}", _posted(handler), methods=["POST"]) for path, handler in posts.items()),
            *(Route(f"{ROOT}/{path}", _got(handler), methods=["GET"]) for path, handler in gets.items()),
            *(
                Route(f"{ROOT}/{path}", self._forward, methods=["POST"])
                for path in ("forward", "forward_backward")
            ),
            Route(f"{ROOT}/retrieve_future", self._retrieve, methods=["POST"]),
            Route(f"{ROOT}/sessions/{{id}}/finish", self._finish, methods=["POST"]),
            Route(
                f"{ROOT}/training_runs/{{id}}/checkpoints/{{kind}}/{{name}}", self._delete, methods=["DELETE"]
            ),
        ]

    # -- sessions ------------------------------------------------------------------------------------------

    def _capabilities(self) -> dict[str, Any]:
        one = {"max_context_length": self.service.context, "trainable": True, "sampleable": True}
        return {"supported_models": [{"model_name": name, **one} for name in self.service.names]}

    def _create_session(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        parse(wire.CreateSessionBody, body)
        id = self.new_id()
        self.service.callers[id] = Caller(id, owner, self.service.now())
        message = f"orchestrate sessions: {self.service.names[0]} on this machine; {self._notice}"
        if self.service.tied:
            message += (
                ". The model's input and output embeddings share one table, so train_unembed has no effect"
            )
        return {"session_id": id, "info_message": message, "type": "create_session"}

    def new_id(self) -> str:
        """Generate the id of a new session."""
        return secrets.token_hex(8)

    def model_id(self, caller: Caller, number: int) -> str:
        """Return the id of model number `number` in a session."""
        return f"{caller.id}:train:{number}"

    def _heartbeat(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        id = str(body.get("session_id"))
        if id not in self.service.callers:
            raise HostError(410, f"the session {id[:100]} has ended")
        self.service.caller(id, owner)
        return {"type": "session_heartbeat"}

    async def _finish(self, request: Request) -> Response:
        asked = parse(wire.FinishBody, await json_body(request))
        well = asked.reason.get("type") == "success"
        caller = self.service.caller(request.path_params["id"], _owner(request))
        try:
            self.service.end(caller, keeps=not well)
        except OSError as error:
            words = f"could not save the weights, so the session stays open: {error}"
            raise HostError(500, words, type="server_error") from error
        return JSONResponse({"status": "finished"})

    # -- models --------------------------------------------------------------------------------------------

    def _base(self, name: str) -> str:
        if not self.service.takes(name):
            known = ", ".join(self.service.names)
            raise HostError(404, f"this server trains {known}, not {name[:200]}", code="model_not_found")
        return name

    def _create_model(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        asked = parse(wire.CreateModelBody, body)
        caller, base = self.service.caller(asked.session_id, owner), self._base(asked.base_model)
        if asked.optimizer_config.get("type") != "adamw":
            raise HostError(
                400, f"this server supports only the adamw optimizer, got {str(asked.optimizer_config)[:200]}"
            )
        lora = (asked.lora_config or wire.LoraBody()).model_dump()  # type: ignore[call-arg]
        id, promise, new = self._new_model(caller, asked.model_seq_id)
        if new:
            self.service.models[id] = SessionModel(id, owner, base, lora)
            self.service.ask(
                promise, "create", {"model": id, "shape": lora}, lambda _: _of(id, "create_model")
            )
        return {"request_id": promise.id, "model_id": id}

    def _new_model(self, caller: Caller, number: int) -> tuple[str, Promise, bool]:
        if number in caller.models:
            return *caller.models[number], False
        id, promise = self.model_id(caller, number), self.service.promise(caller.owner)
        caller.models[number] = (id, promise)
        return id, promise, True

    def _info(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        model = self.service.model(parse(wire.OfModelBody, body).model_id, owner)
        data = {"arch": "lora", "model_name": model.base, "tokenizer_id": self.service.folder}
        return {
            "model_id": model.id,
            "model_data": data,
            "model_name": model.base,
            "is_lora": True,
            "lora_rank": model.lora["rank"],
            "type": "get_info",
        }

    def _unload(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        model = self.service.model(parse(wire.OfModelBody, body).model_id, owner)
        promise = self.service.promise(owner)
        self.service.unload(model, promise)
        return {"request_id": promise.id, "model_id": model.id}

    def _numbered(self, model: SessionModel, number: int, work: Callable[[Promise], None]) -> dict[str, Any]:
        """Execute one numbered request of a model, once and in order."""
        promise, new = self.service.once(model.id, number, model.owner)
        if new:
            self.service.in_turn(model, number, promise, work)
        return {"request_id": promise.id, "model_id": model.id}

    async def _forward(self, request: Request) -> Response:
        if request.headers.get("content-type", "").startswith("application/json"):
            id, number, asked = wire.forward_of_json(await json_body(request))
        else:
            id, number, asked = wire.forward_of(await request.body())
        model = self.service.model(id, _owner(request))
        _require_number(number)

        def work(promise: Promise) -> None:
            if "refused" in asked:
                promise.fail(asked["refused"])
            else:
                kind = "train" if asked["backward"] else "prefill"
                used = {kind: sum(len(row["tokens"]) for row in asked["data"])}
                self.service.ask(
                    promise,
                    "forward",
                    {"model": id, **asked},
                    self.service.counted(id, model.owner, model.base, lambda answer: used, forward_result),
                )

        return JSONResponse(self._numbered(model, number, work))

    def _optim_step(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        model, number = self._model_and_number(body, owner)

        def work(promise: Promise) -> None:
            asked = parse(wire.OptimStepBody, body)
            if asked.optimizer_params is not None:
                raise HostError(
                    400, "this server only supports AdamW: pass adam_params instead of optimizer_params"
                )
            adam = (asked.adam_params or wire.AdamBody()).model_dump()  # type: ignore[call-arg]
            self.service.ask(promise, "step", {"model": model.id, "adam": adam}, _stepped)

        return self._numbered(model, number, work)

    def _model_and_number(self, body: dict[str, Any], owner: str) -> tuple[SessionModel, int]:
        """Return the model and number that determine the request's place. Other errors become its result,
        because the next request would wait forever for a rejected number."""
        model, number = self.service.model(str(body.get("model_id")), owner), body.get("seq_id")
        return model, _require_number(number)

    # -- weights -------------------------------------------------------------------------------------------

    def _save_weights(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        return self._save(body, owner, training=True)

    def _save_for_sampler(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        return self._save(body, owner, training=False)

    def _save(self, body: dict[str, Any], owner: str, *, training: bool) -> dict[str, Any]:
        model, number = self._model_and_number(body, owner)

        def work(promise: Promise) -> None:
            asked = parse(wire.SaveBody, body)
            if asked.path is not None:
                self.service.save(
                    model,
                    promise,
                    asked.path,
                    training=training,
                    overwrite=asked.overwrite,
                    ttl_s=asked.ttl_seconds,
                )
            elif training or asked.sampling_session_seq_id is None:
                raise HostError(400, "path is missing: set path to a name for the weights")
            else:
                caller = self.service.caller(model.id.partition(":")[0], owner)
                self.service.snapshot(model, promise, caller, asked.sampling_session_seq_id)

        return self._numbered(model, number, work)

    def _load_weights(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        if body.get("session_id") is None:
            model, number = self._model_and_number(body, owner)
            return self._numbered(model, number, partial(self._load, model, body))
        asked = parse(wire.LoadBody, body)
        if asked.model_seq_id is None:
            raise HostError(400, "model_seq_id is missing", param="model_seq_id")
        caller = self.service.caller(str(asked.session_id), owner)
        _, saved = self.service.found(asked.path, owner)
        base = self._base(asked.base_model or saved.base)
        id, promise, new = self._new_model(caller, asked.model_seq_id)
        if new:
            model = self.service.models[id] = SessionModel(id, owner, base, saved.lora)
            self.service.carry_out(promise, partial(self._load, model, body))
        return {"request_id": promise.id, "model_id": id}

    def _load(self, model: SessionModel, body: dict[str, Any], promise: Promise) -> None:
        asked = parse(wire.LoadBody, body)
        folder, saved = self.service.found(asked.path, model.owner)
        if asked.optimizer and not saved.training:
            raise HostError(400, f"{asked.path} was saved for sampling, so it has no optimizer state")
        fields = {"model": model.id, "folder": str(folder), "optimizer": asked.optimizer}
        done = {**_of(model.id, "load_weights"), "path": asked.path}
        self.service.ask(promise, "load", fields, lambda _: done)

    def _weights_info(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        _, saved = self.service.found(str(body.get("tinker_path") or body.get("path")), owner)
        trained_parts = {name: saved.lora[name] for name in ("train_unembed", "train_mlp", "train_attn")}
        return {"base_model": saved.base, "is_lora": True, "lora_rank": saved.lora["rank"], **trained_parts}

    def _checkpoints(self, request: Request, run: str | None) -> dict[str, Any]:
        shown = [_checkpoint(folder, saved) for folder, saved in self.service.saved(_owner(request))]
        if run is not None:
            shown = [one for one in shown if one["training_run_id"] == run]
        start, most = _number(request, "offset", 0), _number(request, "limit", 100)
        cursor = {"offset": start, "limit": most, "total_count": len(shown)}
        return {"checkpoints": shown[start : start + most], "cursor": cursor}

    async def _delete(self, request: Request) -> Response:
        run, kind, name = (request.path_params[part] for part in ("id", "kind", "name"))
        folder, _ = self.service.found(f"tinker://{run}/{kind}/{name}", _owner(request))
        await asyncio.to_thread(shutil.rmtree, folder)
        return Response(status_code=204)

    # -- answers -------------------------------------------------------------------------------------------

    def _create_sampler(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        asked = parse(wire.CreateSamplerBody, body)
        caller = self.service.caller(asked.session_id, owner)
        id = f"{caller.id}:sample:{asked.sampling_session_seq_id}"
        if asked.sampling_session_seq_id not in caller.samplers:
            if asked.model_path is not None:
                folder, saved = self.service.found(asked.model_path, owner)
                made = SavedSampler(id=id, base=saved.base, folder=str(folder), path=asked.model_path)
            else:
                made = SavedSampler(id=id, base=self._base(str(asked.base_model)))
            self.service.put(made, owner)
            caller.samplers[asked.sampling_session_seq_id] = id
        return {"sampling_session_id": id, "type": "create_sampling_session"}

    def _sampler(self, request: Request) -> dict[str, Any]:
        found = self.service.sampler(request.path_params["id"], _owner(request))
        return {"sampler_id": found.id, "base_model": found.base, "model_path": found.path}

    def _sample(self, body: dict[str, Any], owner: str) -> dict[str, Any]:
        asked = parse(wire.SampleBody, body)
        sampler = self.service.sampler(asked.sampling_session_id, owner)
        promise, new = self.service.once(sampler.id, asked.seq_id, owner)
        if new:
            if (name := asked.unknown()) is not None:
                promise.fail(f"this server does not support {name}")
            else:
                question = _question(asked, sampler.folder)
                write = self.service.counted(
                    sampler.id, owner, sampler.base, partial(_sampled, question), sample_result
                )
                self.service.ask(promise, "sample", question, write)
        ids = [f"{promise.id}-{n}" for n in range(asked.num_samples)]
        return {"request_id": promise.id, "sample_sequence_ids": ids}

    async def _retrieve(self, request: Request) -> Response:
        id = str((await json_body(request)).get("request_id"))
        promise = self.service.promises.get(id)
        if promise is None or promise.owner != _owner(request):
            raise HostError(410, f"result {id[:100]} does not exist: it expired, or the server was restarted")
        with suppress(TimeoutError):
            await asyncio.wait_for(promise.ready.wait(), POLL_S)
        if promise.result is None:  # the client asks again at once, and says nothing
            return JSONResponse({"type": "try_again", "request_id": id, "queue_state": "active"}, 408)
        promise.fetched = time.monotonic()
        if isinstance(promise.result, bytes):
            return Response(promise.result, media_type=PROTOBUF)
        return JSONResponse(promise.result)

    def _usage(self, request: Request) -> dict[str, Any]:
        start, end = _instant(request, "starting_on"), _instant(request, "ending_before")
        found = self.service.usage.between(_owner(request), start, end)
        return {"data": [self._usage_event(bucket, tokens) for bucket, tokens in found]}

    def _usage_event(self, bucket: UsageBucket, tokens: int) -> dict[str, Any]:
        rate = self._prices.get(bucket.kind)
        info: dict[str, Any] = {"type": USAGE_TYPES[bucket.kind], "token_count": tokens}
        if bucket.kind == "prefill":
            info["cached"] = False
        return {
            "bucket_start": _iso(bucket.hour * HOUR_S),
            "bucket_end": _iso((bucket.hour + 1) * HOUR_S),
            "base_model": bucket.base,
            "session_id": bucket.session,
            "estimated_cost_usd": None if rate is None else float(rate * tokens / 1_000_000),
            "effective_rate_usd_per_million_tokens": None if rate is None else float(rate),
            "event_info": info,
        }


def _posted(handler: Handler) -> Any:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(handler(await json_body(request), _owner(request)))

    return endpoint


def _got(handler: Callable[[Request], Any]) -> Any:
    async def endpoint(request: Request) -> Response:
        return JSONResponse(handler(request))

    return endpoint


def error_answer(error: HostError) -> Response:
    return JSONResponse({"detail": error.message, "code": error.code}, error.status, headers=error.headers)


def _owner(request: Request) -> str:
    """Return the name of the request's key. Empty if no keys are required."""
    return str(request.scope.get("key_name", ""))


def _of(model: str, kind: str) -> dict[str, Any]:
    return {"model_id": model, "type": kind}


def _stepped(answer: dict[str, Any]) -> dict[str, Any]:
    return {"metrics": answer["metrics"], "type": "optim_step"}


def _question(asked: wire.SampleBody, folder: str) -> dict[str, Any]:
    drawing, stop = asked.sampling_params, asked.sampling_params.stop
    texts = [stop] if isinstance(stop, str) else [s for s in stop or () if isinstance(s, str)]
    ids = None if stop is None else [s for s in stop if isinstance(s, int)]
    return {
        "folder": folder,
        "prompt": [id for chunk in asked.prompt.chunks for id in chunk.tokens],
        "n": asked.num_samples,
        "max_tokens": drawing.max_tokens,
        "temperature": drawing.temperature,
        "top_p": drawing.top_p,
        "top_k": max(0, drawing.top_k),
        "seed": drawing.seed,
        "stop": [text for text in texts if text],
        "stop_ids": ids,
        "tops": asked.topk_sample_logprobs,
        "prompt_logprobs": bool(asked.prompt_logprobs),
        "prompt_tops": asked.topk_prompt_logprobs,
        "prompt_last": asked.prompt_logprobs_last_n,
    }


def _sampled(question: Mapping[str, Any], answer: Mapping[str, Any]) -> dict[str, int]:
    drawn = sum(len(one["tokens"]) for one in answer["answers"])
    return {"prefill": len(question["prompt"]), "sample": drawn}


def _checkpoint(folder: Path, saved: SavedWeights) -> dict[str, Any]:
    run, kind, name = saved.path.removeprefix("tinker://").split("/")
    expires = saved.expires_at
    return {
        "training_run_id": run,
        "checkpoint_id": f"{kind}/{name}",
        "checkpoint_type": "training" if saved.training else "sampler",
        "time": _iso(saved.saved_at),
        "tinker_path": saved.path,
        "size_bytes": sum(file.stat().st_size for file in folder.iterdir()),
        "expires_at": None if expires is None else _iso(expires),
    }


def _iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def _require_number(number: Any) -> int:
    """Raise `HostError` 400 for an invalid request number."""
    if type(number) is not int or number < 1:
        raise HostError(400, "seq_id must be a positive integer", param="seq_id")
    return number


def _instant(request: Request, name: str) -> float:
    given = request.query_params.get(name, "")
    try:
        found = datetime.fromisoformat(given)
    except ValueError as error:
        raise HostError(400, f"{name} must be a date and time, got {given[:100]!r}", param=name) from error
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def _number(request: Request, name: str, default: int) -> int:
    given = request.query_params.get(name, str(default))
    if not given.isdecimal() or int(given) > 10_000:
        raise HostError(400, f"{name} must be an integer up to 10,000", param=name)
    return int(given)
