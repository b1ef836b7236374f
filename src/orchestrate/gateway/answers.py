"""Serve the Chat Completions, Completions and Responses APIs from tuned models, hosted remotely or on this
machine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.responses import Response
from starlette.routing import BaseRoute

from orchestrate.costing.expenses import limit_reached
from orchestrate.errors import OrchestrateError, OutcomeUnknown, ProviderError, UsageError
from orchestrate.gateway.calls import GatewayRequest, endpoint, parsed, read, refusal_of, streamed
from orchestrate.gateway.models import ModelRoutes
from orchestrate.http.wire import HostError, parse
from orchestrate.http.wire.openai import chat, error_body, responses
from orchestrate.http.wire.openai.chat import ChatRequest, CompletionRequest
from orchestrate.providers.base import Chats, Deploys, capability
from orchestrate.providers.calls import CutShort, plain
from orchestrate.runs import tuned as models
from orchestrate.runs.hosting import deployments as hosting
from orchestrate.runs.hosting.deployment import READY, used
from orchestrate.runs.tracked import TrackedRun
from orchestrate.serving.server.answers import Answering
from orchestrate.serving.server.conversation import chat_options, completion_options
from orchestrate.serving.server.engine import EngineClient
from orchestrate.serving.server.load import ServerLoad
from orchestrate.serving.server.refusals import asking
from orchestrate.serving.server.server_process import ServerSettings, loading_of
from orchestrate.serving.tuned import TunedModel
from orchestrate.store.database import LeaseHeld
from orchestrate.types import Deployment, DeploymentState, GatewayJob, GatewayKey, Run

if TYPE_CHECKING:
    from orchestrate.providers.chat import Chat
    from orchestrate.workspace import Workspace


# Engines for the tuned models that this machine serves. All adapters of a base model share one process.

MOST_BASES = 4
"""Maximum number of base models in memory."""


@dataclass
class _LoadedEngine:
    engine: EngineClient
    load: ServerLoad
    loading: asyncio.Lock


class Engines:
    """The local inference engines, one per base model. Handles concurrent requests from one event loop. Call
    `close` at the end."""

    def __init__(self, ft: Workspace, terms: ServerSettings | None = None) -> None:
        self._ft, self._terms = ft, terms or ServerSettings()
        self._held: dict[tuple[object, ...], _LoadedEngine] = {}
        self._lock = threading.Lock()

    def close(self) -> None:
        for held in self._held.values():
            held.engine.close()
        self._held.clear()

    async def answering(self, run: Run, step: int | None) -> Answering:
        """Return the engine that serves a model, loading the model first if necessary. Engines identify
        models by `name_of` rather than by the client's name. Clients may use several names for one model, and
        may later reuse a name for another model. Raises `HostError` 404 if the step has no checkpoint, and
        503 if all engines are in use. Errors of `RunHandle.download` propagate."""
        name = name_of(run, step)
        tuned = await run_in_threadpool(self._tuned, name, run, step)
        held = await run_in_threadpool(self._ready, tuned)
        async with held.loading:
            if name not in held.engine.models:
                with asking():
                    await held.engine.load(name, str(tuned.folder))
        return Answering(held.engine, held.load)

    def _tuned(self, name: str, run: Run, step: int | None) -> TunedModel:
        handle = TrackedRun(self._ft, run)
        if step is None:
            return replace(models.of(self._ft, handle), name=name)
        known = [point for point in handle.checkpoints() if point.step == step]
        if not known:
            raise HostError(404, f"step {step} has no checkpoint", code="model_not_found")
        artifact = handle.download(checkpoint=known[0].id)
        return replace(TunedModel.of(run, artifact, ()), name=name)

    def _ready(self, tuned: TunedModel) -> _LoadedEngine:
        loading, _ = loading_of([tuned], self._terms, None)
        key = (loading["base"], loading["four_bit"]) if tuned.adapter else (tuned.name,)
        with self._lock:
            if key in self._held:
                self._held[key] = held = self._held.pop(key)  # the last one used is the last to go
                return held
            self._make_room()
            engine = EngineClient(loading)
            engine.start()
            load = ServerLoad(self._terms.most_at_once, self._terms.most_waiting)
            self._held[key] = _LoadedEngine(engine, load, asyncio.Lock())
            return self._held[key]

    def _make_room(self) -> None:
        while len(self._held) >= MOST_BASES:
            key = next((key for key, held in self._held.items() if not held.load.inside), None)
            if key is None:
                message = f"all {MOST_BASES} base models in memory are in use"
                headers = {"retry-after": "10"}
                raise HostError(503, message, type="server_error", code="engine_full", headers=headers)
            self._held.pop(key).engine.close()


def name_of(run: Run, step: int | None) -> str:
    return run.id if step is None else f"{run.id}:{step}"


_OURS = frozenset(
    {"model", "messages", "stream", "max_tokens", "max_completion_tokens", "return_token_ids"}
    | {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
)
"""Request fields that the gateway converts or drops. It forwards all other fields unchanged. `user`,
`metadata`, `store`, `service_tier`, `safety_identifier` and `prompt_cache_key` are dropped, because they
don't affect answers."""


_COMES_UP_S = 10
"""Seconds after which a client should retry. Official clients wait at most a minute."""


class OnDemand:
    """Deploys tuned models on request, for hosts that only serve deployed models. The configuration defines
    which models may be deployed, and the limits on time and cost. Setting these limits counts as the
    operator's consent to the price."""

    def __init__(self, ft: Workspace, models: ModelRoutes) -> None:
        self._ft, self._models = ft, models
        self._up: set[str] = set()
        """Ids of runs whose deployment is known to be up."""

    def chat(self, key: GatewayKey, job: GatewayJob, run: Run, asked: str) -> Chat:
        """Return the chat client for a tuned model. Raises `HostError` 422 if the model is not deployed, and
        503 while its deployment is starting."""
        provider = capability(self._ft.provider(run.provider), Chats)
        deployments = self._ft.store.deployments
        known = deployments.of_run(run.id, run.provider) if isinstance(provider, Deploys) else None
        try:
            if known is not None and known.state is DeploymentState.ENDING:
                raise UsageError(f"{asked} is being taken down")
            host = provider.chat(run.handle)
        except UsageError as error:  # these serve a tuned model where it is deployed only
            self._up.discard(run.id)
            raise self._deploy(key, job, run, asked, known, error) from error
        if host is None:
            raise HostError(422, f"{run.provider} does not support single chat requests", code="unsupported")
        if known is None or known.state.over or not isinstance(provider, Deploys):
            return host
        whole = known.state is DeploymentState.UP and known.complete
        if whole and run.id in self._up:
            return host
        allowed = self._models.deploys(key, asked, job)
        if not whole and allowed is not None and known.gateway_model == allowed[0]:
            raise self._deploy(key, job, run, asked, known, UsageError(f"{asked} is not deployed"))
        endpoint = provider.endpoint(run.handle)
        if endpoint is None or endpoint.state != READY:
            raise _coming_up(asked)
        self._up.add(run.id)
        return host

    def look_again(self, run: Run) -> None:
        """Forget that a run's deployment is up, so that the next request checks it again. Call this after a
        request to the deployment fails."""
        self._up.discard(run.id)

    def _deploy(
        self,
        key: GatewayKey,
        job: GatewayJob,
        run: Run,
        asked: str,
        known: Deployment | None,
        reason: UsageError,
    ) -> HostError:
        """Deploy the model if allowed, and return the response to the client: it is starting, or not
        deployed."""
        allowed = self._models.deploys(key, asked, job)
        if allowed is None:
            reason.fix = (
                f"to deploy it, run this on the gateway's machine: orchestrate deploy {run.id}\n"
                "to deploy it automatically within limits, set `deploy` for the model's name in "
                '[gateway.models]\nto serve it on the gateway\'s machine for free, set `on` to "here" there'
            )
            refusal = refusal_of(reason)
            refusal.code, refusal.param = "model_not_deployed", "model"
            return refusal
        store = self._ft.store
        gone = known is None or known.state.over or known.state is DeploymentState.INTENT
        going = None if gone else known
        ends = going is not None and limit_reached(going, store.deployments.time_of(going))
        if going is not None and (ends or going.state is DeploymentState.ENDING):
            return _coming_up(asked, "is being taken down and can be deployed again afterwards")
        name, limits = allowed
        if going is not None and going.gateway_model != name:
            return _coming_up(asked)  # somebody else's, with limits of their own
        wanted = hosting.DeployTerms(
            options=(going or limits).options,  # what goes on keeps what was agreed to
            max_hours=(going or limits).max_hours,
            max_cost_usd=(going or limits).max_cost_usd,
            max_usd_per_hour=limits.max_usd_per_hour,
            made_by=key.name,
            gateway_key=key.name,
            gateway_model=name,
        )
        own = None if going is None else going.id
        bounds = [store.deployments.limit_of_entry(name, limits.max_cost_usd, own)]
        if (of_key := store.gateway_jobs.limit(key, own)) is not None:
            bounds.append(of_key)
        try:
            hosting.deploy(self._ft, TrackedRun(self._ft, run), None, wanted, limits=bounds)
        except (LeaseHeld, OutcomeUnknown):
            pass  # another request is at it, or the next one finds out
        except OrchestrateError as error:
            return refusal_of(error)
        return _coming_up(asked)


def _coming_up(asked: str, how: str = "is being deployed") -> HostError:
    headers = {"retry-after": str(_COMES_UP_S)}
    message = f"{asked} {how}: try again in {_COMES_UP_S} s"
    return HostError(503, message, type="server_error", code="model_coming_up", headers=headers)


class InferenceRoutes:
    def __init__(self, ft: Workspace, models: ModelRoutes, engines: Engines) -> None:
        self._ft, self._models, self._engines = ft, models, engines
        self._on_demand = OnDemand(ft, models)

    def routes(self) -> list[BaseRoute]:
        return [
            streamed("/v1/chat/completions", "POST", self.chat),
            streamed("/v1/completions", "POST", self.complete),
            streamed("/v1/responses", "POST", self.respond),
            endpoint("/v1/embeddings", "POST", _no_embeddings),
        ]

    async def chat(self, call: GatewayRequest) -> Response:
        call.body = parsed(await read(call.request))
        return (await self._chat(call, parse(ChatRequest, call.body), call.body)).written()

    async def _chat(
        self, call: GatewayRequest, asked: ChatRequest, body: Mapping[str, Any]
    ) -> chat.ApiAnswer:
        call.about(asked.model)
        job, run, step = await run_in_threadpool(self._models.made, call.key, asked.model)
        if self._models.answers_here(asked.model, job, run):
            options = {**chat_options(asked), "model": name_of(run, step)}
            answering = await self._engines.answering(run, step)
            return await answering.chat(call.request, asked, options)
        if step is not None:
            message = f"{run.provider} serves only the final model, not checkpoints"
            raise HostError(422, message, code="unsupported", param="model")
        return await self._hosted(call.key, job, run, asked, body)

    async def complete(self, call: GatewayRequest) -> Response:
        asked = parse(CompletionRequest, parsed(await read(call.request)))
        call.about(asked.model)
        job, run, step = await run_in_threadpool(self._models.made, call.key, asked.model)
        if not self._models.answers_here(asked.model, job, run):
            message = f"{run.provider} only supports chat: /v1/chat/completions"
            raise HostError(422, message, code="unsupported", param="model")
        requests = [{**one, "model": name_of(run, step)} for one in completion_options(asked)]
        answering = await self._engines.answering(run, step)
        return (await answering.completions(call.request, asked, requests)).written()

    # -- answers from a host -------------------------------------------------------------------------------

    async def _hosted(
        self, key: GatewayKey, job: GatewayJob, run: Run, asked: ChatRequest, body: Mapping[str, Any]
    ) -> chat.ApiAnswer:
        host = await run_in_threadpool(self._on_demand.chat, key, job, run, asked.model)
        answer = await run_in_threadpool(self._ask, host, run, asked, body)
        if not asked.stream:
            return chat.ApiAnswer({**plain(answer), "model": asked.model})
        stream = iter(answer)
        first = await run_in_threadpool(_first, stream)
        return chat.ApiAnswer({}, _aside(_pieces(chain(first, stream), asked.model)))

    def _ask(self, host: Chat, run: Run, asked: ChatRequest, body: Mapping[str, Any]) -> Any:
        """Return the SDK's answer, or its stream. Raises `OrchestrateError`."""
        most = asked.max_completion_tokens or asked.max_tokens
        options = {name: value for name, value in body.items() if name not in _OURS and value is not None}
        if most is not None:
            options[_limit(host)] = most
        try:
            found = host.wire.read(
                lambda: host.create(
                    model=host.model, messages=body["messages"], stream=bool(asked.stream), extra_body=options
                )
            )
        except ProviderError:
            self._on_demand.look_again(run)
            raise
        used(self._ft, run.id)
        return found

    # -- responses -----------------------------------------------------------------------------------------

    async def respond(self, call: GatewayRequest) -> Response:
        asked = parse(responses.ResponseRequest, parsed(await read(call.request)))
        body = responses.chat_body(asked)
        if asked.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return responses.written(asked, await self._chat(call, parse(ChatRequest, body), body))


def _no_embeddings(call: GatewayRequest) -> Any:
    del call
    message = "The gateway does not serve embeddings: create a client with the base URL of an embedding host"
    raise HostError(404, message, code="not_served")


def _limit(host: Chat) -> str:
    """Return the host's name for the token limit of an answer."""
    return next((name for name in host.options if name.startswith("max")), "max_tokens")


def _first(stream: Iterator[Any]) -> list[Any]:
    """Return the first piece of a stream. An error before it is raised as `HostError` and not as part of the
    stream."""
    try:
        found = list(islice(stream, 1))
    except Exception as error:
        raise _broken(error) from error
    if not found:
        raise HostError(502, "the host returned an empty answer", type="server_error", code="host_failed")
    return found


def _broken(error: Exception) -> HostError:
    """Convert an error of any host's SDK to a `HostError`."""
    if isinstance(error, OrchestrateError):
        return refusal_of(error)
    message = f"the host's answer was cut off: {error}"
    return HostError(502, message, type="server_error", code="host_failed")


async def _aside(pieces: Iterator[chat.Piece]) -> AsyncGenerator[chat.Piece]:
    """Read a blocking SDK's stream in a thread."""
    async for piece in iterate_in_threadpool(pieces):
        yield piece


def _pieces(stream: Iterable[Any], model: str) -> Iterator[chat.Piece]:
    """Convert an SDK's stream to the API's format. If the stream fails or is cut short, the last piece
    contains the error."""
    ended = False
    try:
        for piece in stream:
            fields = plain(piece)
            ended = ended or any(one.get("finish_reason") for one in fields.get("choices") or ())
            yield {**fields, "model": model}
        if not ended:
            raise CutShort
    except Exception as error:  # noqa: BLE001  told to the client, whatever it is
        yield error_body(_broken(error))
