"""Training sessions at Fireworks, using its training SDK. A session is either serverless and billed by the
token, or runs on a trainer that is rented for it and billed hourly.

The SDK's client numbers the requests to a model, so the host runs a request only once even if it is sent
again. Sampling requests have no number and are sent only once. A trainer's id is derived from the run's ref.
If the response to a request was lost, the request is repeated with the same id, which never creates a second
trainer. A trainer is stopped when its session ends. While the program runs, the client's heartbeat keeps the
trainer up. If the program is killed, the host's inactivity timeout stops the trainer."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import cached_property, partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from msgspec.structs import replace

from orchestrate import catalog
from orchestrate.core import days, retries
from orchestrate.costing import PLAY_MONEY, HourlyRate, built_in
from orchestrate.errors import (
    InvalidRequest,
    MissingExtra,
    NotFound,
    OrchestrateError,
    OutcomeUnknown,
    PermissionRefused,
    ProviderError,
    UsageError,
)
from orchestrate.local.run import RunDir, now
from orchestrate.providers.base import Progress, prices_of
from orchestrate.providers.calls import integer, items, plain, ref_in, rows, table, text, when
from orchestrate.providers.fireworks import PROFILE
from orchestrate.providers.fireworks.provider import FireworksProvider
from orchestrate.providers.fireworks.responses import id_of
from orchestrate.providers.fireworks.translation import job_id_of, slug
from orchestrate.providers.rented import POLL_S, MachineWatch, RentedMachines, RequestedMachine
from orchestrate.providers.session_jobs import JobsAndSessions
from orchestrate.providers.sessions import (
    CONTINUES,
    MOST_TOKENS,
    SESSION,
    ClientSession,
    Row,
    SessionBackend,
    SessionOrder,
    SessionPrice,
    array_of,
    client_error,
    loss_settings,
    sampled,
    then,
)
from orchestrate.types import BilledResource, Confidence, Record

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrate.costing import Rate, RateBook
    from orchestrate.data.operations.preview import RowTokens
    from orchestrate.local.run import RunDir
    from orchestrate.providers.calls.hosted import Wire
    from orchestrate.providers.fireworks.connection import Connection
    from orchestrate.providers.sessions import SessionOrder
    from orchestrate.settings.config import HostConfig
    from orchestrate.types import Artifact, JobHandle

# -- trainers --------------------------------------------------------------------------------------------


SHAPE = "training_shape"
"""Name of the session option that requests a dedicated trainer."""
INACTIVE_S, GRACE_S = 300, 120
"""Inactivity timeout of a trainer, and the host's maximum delay in applying it, in seconds."""
TAIL_S = float(INACTIVE_S + GRACE_S)
UP = ("CREATING", "PENDING", "RUNNING", "VALIDATING", "RESUMING", "CANCELLING")
TRIES, END_S = 3, 120.0
"""Maximum number of requests to create a trainer under the same id, and maximum time in seconds to wait until
a trainer has ended."""
TRAINER_RATES = ("training_api_dedicated", "rft", "deployment")
"""Methods in the rate table whose price per GPU-hour also applies to a trainer. The price page has one price
for all of Fireworks' own GPUs."""


class TrainerShape(Record, frozen=True, kw_only=True):
    """A training shape: the GPUs of a trainer, and whether it trains LoRA."""

    name: str
    accelerator: str
    gpus: int
    lora: bool

    @property
    def gpu(self) -> str:
        return self.accelerator.removeprefix("NVIDIA_").removeprefix("AMD_").split("_", 1)[0]


class Trainers(RentedMachines):
    def __init__(
        self,
        provider: str,
        prices: str,
        at: Connection,
        wire: Wire,
        home: Path,
        sleep: Callable[[float], None],
    ) -> None:
        super().__init__(provider, home, sleep)
        self._prices, self._at, self._wire = prices, at, wire

    def _read(self, path: str, **query: str) -> dict[str, Any]:
        client = self._at.client()
        options: Any = {"params": query}
        return table(self._wire.read(lambda: client.get(path, cast_to=object, options=options), expect=dict))

    # -- the price -----------------------------------------------------------------------------------------

    def shape(self, name: str) -> TrainerShape:
        """Query the latest validated version of a training shape. Raises `UsageError` if the shape has no
        validated version or does not train adapters."""
        found = self._read(f"/v1/{name}/versions", filter="latest_validated=true", pageSize="1")
        version = next(iter(rows(found.get("trainingShapeVersions"))), None)
        if version is None:
            raise UsageError(f"the training shape {name} has no validated version")
        snapshot = table(version.get("snapshot"))
        count, nodes = integer(snapshot.get("acceleratorCount")), integer(snapshot.get("nodeCount")) or 1
        made = TrainerShape(
            name=name,
            accelerator=text(snapshot.get("acceleratorType")) or "",
            gpus=(count or 0) * nodes,
            lora=snapshot.get("trainerMode") == "LORA_TRAINER",
        )
        if not made.lora:
            raise UsageError(f"the training shape {name} does not train LoRA adapters")
        return made

    def hourly(self, shape: TrainerShape, rates: RateBook) -> HourlyRate | None:
        """Return the hourly cost of a trainer, or `None` if its GPUs have no price."""
        rate = rates.find(self._prices, TRAINER_RATES, gpu=shape.gpu, on=days.today()) if shape.gpus else None
        if rate is None:
            return None
        usd = rate.usd * shape.gpus
        return HourlyRate(
            component="rental",
            usd_per_hour=usd,
            low_usd_per_hour=usd,
            high_usd_per_hour=usd,
            label=f"a trainer with {shape.gpus} {shape.gpu}",
            source=rate.source,
            as_of=str(rate.start),
            confidence=Confidence.QUOTED,
        )

    # -- the trainers of one run -----------------------------------------------------------------------------

    def create(self, run: RunDir, order: SessionOrder, create: Callable[[Any], Any]) -> RequestedMachine:
        """Request a trainer by calling `create`, a method of the SDK's client. Raises `InvalidRequest` if the
        host rejects the request, and `OutcomeUnknown` if a trainer may have been created."""
        from fireworks.training.sdk import TrainerJobConfig

        journal, number = self.journal(run), len(self.of(run)) + 1
        id = f"{job_id_of(order.ref)}-{number}"
        machine = RequestedMachine(
            number=number, base_model=order.model, inactive_s=INACTIVE_S, asked_at=now(), known=(id,)
        )
        config = TrainerJobConfig(
            base_model=order.model,
            lora_rank=order.lora["rank"],
            training_shape_ref=order.options[SHAPE],
            display_name=order.ref,
            inactivity_timeout=f"{INACTIVE_S}s",
            requested_job_id=id,
        )
        journal.append(machine)
        try:
            self._sent(lambda: create(config), machine)
        except InvalidRequest:
            journal.append(replace(machine, ended=True))
            raise
        made = replace(machine, id=id)
        journal.append(made)
        return made

    def _sent(self, create: Callable[[], Any], machine: RequestedMachine) -> None:
        """Create a trainer. Raises `InvalidRequest` if none was created, and `OutcomeUnknown`."""
        for tried in range(1, TRIES + 1):
            try:
                create()
            except Exception as error:
                status = getattr(error, "status_code", None)
                if isinstance(status, int) and 400 <= status < 500:
                    raise InvalidRequest(self._provider, str(error)) from error
                if self._match(machine, []) is not None:
                    return
                if tried == TRIES:
                    why = f"if the trainer exists, Fireworks stops it after {INACTIVE_S // 60} idle minutes"
                    raise OutcomeUnknown(self._provider, str(machine.known[0]), why) from error
            else:
                return

    def _match(self, machine: RequestedMachine, up: list[dict[str, Any]]) -> dict[str, Any] | None:
        del up
        with suppress(NotFound):
            return self._raw(machine.id or machine.known[0])
        return None

    def _unseen_s(self, machine: RequestedMachine) -> float:
        """Return 0: a trainer has the id that was requested, so one that isn't found never existed."""
        del machine
        return 0.0

    def _ready(self, raw: dict[str, Any]) -> bool:
        if state(raw) not in UP or state(raw) == "CANCELLING":
            status = table(raw.get("status"))
            why = text(status.get("message")) or "no reason given"
            raise ProviderError(self._provider, f"the trainer is {state(raw).lower()}: {why}")
        if state(raw) != "RUNNING":
            return False
        try:
            self._read(f"{self.gateway(str(raw['id']))}/api/v1/healthz")
        except ProviderError:
            return False
        return True

    def gateway(self, id: str) -> str:
        """Return the base path of a trainer's API."""
        return f"/training/v1/rlorTrainerJobs/{self._at.account()}/{id}"

    def _path(self, id: str) -> str:
        return f"/v1/accounts/{self._at.account()}/rlorTrainerJobs/{id}"

    def _raw(self, id: str) -> dict[str, Any]:
        return _with_id(self._read(self._path(id)))

    def stop(self, id: str) -> dict[str, Any]:
        """Cancel a trainer. Its checkpoints remain."""
        client, path, waited, requested = self._at.client(), f"{self._path(id)}:cancel", 0.0, False
        raw: dict[str, Any] = {}
        with suppress(NotFound):
            while state(raw := self._raw(id)) in UP:
                if not requested and state(raw) != "CANCELLING":
                    self._wire.read(lambda: client.post(path, body={}, cast_to=object), expect=object)
                    requested = True
                    continue
                if waited >= END_S:
                    why = f"trainer {id} is still {state(raw).lower()} after a cancel request"
                    raise ProviderError(self._provider, why)
                self._sleep(POLL_S)
                waited += POLL_S
        return raw

    def _billed_s(self, raw: dict[str, Any]) -> float:
        """Return the seconds since the creation, including the wait for GPUs."""
        began, ended = when(raw.get("createTime")), when(raw.get("completedTime"))
        if began is None:
            return 0.0
        return max(0.0, ((ended or now()) - began).total_seconds())

    # -- the trainers of the account -------------------------------------------------------------------------

    def up(self) -> list[dict[str, Any]]:
        """List the trainers that are up. Returns an empty list for a key without access to training."""
        with suppress(NotFound, PermissionRefused):
            return self._up()
        return []

    def _up(self) -> list[dict[str, Any]]:
        api, account = self._at.client().reinforcement_fine_tuning_steps, self._at.account()
        pages = self._wire.pages(lambda: api.list(account_id=account, page_size=200), omits_empty=True)
        every = [_with_id(plain(raw)) for page in pages for raw in items(page)]
        return [raw for raw in every if raw.get("serviceMode") is True and state(raw) in UP]

    def refs(self, up: list[dict[str, Any]]) -> dict[str, str]:
        found = {str(raw["id"]): ref_in(raw.get("displayName"), raw["id"]) for raw in up}
        return {id: ref for id, ref in found.items() if ref is not None}

    def billing_items(self) -> Iterator[BilledResource]:
        up = self.up()
        refs = self.refs(up)
        for raw in up:
            training, ref = table(raw.get("trainingConfig")), refs.get(str(raw["id"]))
            shape = TrainerShape(
                name="",
                accelerator=text(training.get("acceleratorType")) or "",
                gpus=(integer(training.get("acceleratorCount")) or 0) * (integer(raw.get("nodeCount")) or 1),
                lora=True,
            )
            hourly = self.hourly(shape, built_in())
            usd_per_hour = None if hourly is None else hourly.usd_per_hour
            created_at, base_model = when(raw.get("createTime")), training.get("baseModel")
            yield self._billing_item(str(raw["id"]), ref, state(raw), usd_per_hour, created_at, base_model)


def state(raw: Mapping[str, Any]) -> str:
    """Return a trainer's state without the prefix `JOB_STATE_`, or `UNKNOWN` if it has none."""
    return (text(raw.get("state")) or "UNKNOWN").removeprefix("JOB_STATE_")


def _with_id(raw: dict[str, Any]) -> dict[str, Any]:
    return {**raw, "id": id_of(text(raw.get("name")) or "")}


# -- sessions --------------------------------------------------------------------------------------------


SCHEME = "fireworks://"
"""Prefix of a saved state's location, followed by the host's own path."""
CROSS_JOB = "cross_job://"
"""Path prefix for a state that was saved on another trainer."""
SERVERLESS = "/training/v1/serverless"
RATES = tuple(f"training_api_serverless_{kind}" for kind in ("train", "prefill", "sample"))
OPERATION_S = 1800.0
"""Timeout of one request in seconds. The host may report a request as running although it has stalled."""
RATE_LIMITED = 429
NO_RESULT = f"no result after {OPERATION_S / 60:g} minutes. The operation may still complete"
PACKAGES = ("numpy", "orjson", "pyqwest", "google.protobuf", "zstandard")
"""Packages that the SDK's training module requires in addition to the SDK itself."""
OTHERS = {
    "gspo": "Fireworks does not publish the formula of this loss",
    "stable_reinforce": "Fireworks does not publish the formula of this loss",
}

T = TypeVar("T")


class FireworksSession(ClientSession):
    """A session with one model at the host, either serverless or on its own trainer."""

    host: ClassVar[str] = "fireworks"

    def __init__(self, provider: SteppedFireworks, order: SessionOrder, run: RunDir) -> None:
        sdk: Any = import_module("fireworks.training.sdk")
        self._types = sdk.types
        self._provider, self._order = provider, order
        self._service: Any = None
        self._trainer: str | None = None
        """Id of the session's trainer. `None` for a serverless session."""
        self._watch: MachineWatch | None = None
        try:
            if SHAPE in order.options:
                self._rent(sdk, run)
            self._service = within(partial(self._connect, sdk))
            self._training = within(partial(self._create, order.lora))
        except BaseException as error:
            with suppress(OrchestrateError, OSError):
                self.close()
            raise client_error(self.host, error) from error

    def _rent(self, sdk: Any, run: RunDir) -> None:
        config, trainers, ends_in = self._provider.config, self._provider.machines, self._order.ends_in_s
        ends_at = None if ends_in is None else time.monotonic() + ends_in
        self._watch = MachineWatch(trainers, run, ends_at)
        self._watch.start()
        manager = sdk.TrainerJobManager(
            api_key=config.require_key().reveal(), base_url=config.base_url or PROFILE.url
        )
        made = trainers.create(run, self._order, lambda given: within(lambda: manager.create(given)))
        self._trainer = made.id
        trainers.wait(run, made)

    def _connect(self, sdk: Any) -> Any:
        config = self._provider.config
        path = SERVERLESS if self._trainer is None else self._provider.machines.gateway(self._trainer)
        url = f"{config.base_url or PROFILE.url}{path}"
        return sdk.FiretitanServiceClient(base_url=url, api_key=config.require_key().reveal())

    def _create(self, lora: Mapping[str, Any]) -> Any:
        return self._service.create_lora_training_client(self._order.model, **lora)

    @property
    def tokenizer(self) -> str:
        """The tokenizer that the host specifies, or the tokenizer of the model on the Hugging Face Hub."""
        known = catalog.resolve(self._order.model, PROFILE)
        try:
            return super().tokenizer if self._provider.config.sandbox else known.hub or known.id
        except Exception as error:
            raise client_error(self.host, error) from error

    def _future(self, sent: Any) -> Future[Any]:
        loop: asyncio.AbstractEventLoop = self._training.holder.get_loop()
        return asyncio.run_coroutine_threadsafe(_in_time(sent), loop)

    def require_loss(self, loss: str) -> None:
        loss_settings(PROFILE.title, OTHERS, loss, {})

    def forward(
        self, rows: Sequence[Row], loss: str, config: Mapping[str, Any], *, backward: bool
    ) -> Future[dict[str, Any]]:
        settings = loss_settings(PROFILE.title, OTHERS, loss, config)
        data, training = [self._datum(row) for row in rows], self._training
        ask = training.forward_backward if backward else training.forward
        return self._submit(lambda: ask(data, loss, settings or None), partial(self._answer, rows))

    def _answer(self, rows: Sequence[Row], result: Any) -> dict[str, Any]:
        """Parse a result. Cross-entropy may be returned as a sum only, without log-probabilities."""
        import numpy as np  # the base install has none

        metrics, nothing = dict(result.metrics), np.empty(0, dtype="<f4")
        if "loss:sum" not in metrics:
            raise ProviderError(self.host, "the response does not contain a loss", fix=CONTINUES)
        outputs = [
            one["logprobs"].to_numpy() if "logprobs" in one else nothing for one in result.loss_fn_outputs
        ]
        if all("logprobs" in row["inputs"] for row in rows) and all(one.size for one in outputs):
            sampled_at = [array_of(row["inputs"]["logprobs"]) for row in rows]
            apart = sum(abs(now - then).sum() for now, then in zip(outputs, sampled_at, strict=True))
            metrics["sampled_logprob_difference:sum"] = float(apart)
        return {"logprobs": outputs, "metrics": metrics}

    def sample(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Sample from the current weights. If they changed since the last sample, first save them for
        sampling."""
        if self._trainer is not None:
            raise UsageError(
                "trainers at Fireworks cannot sample without a separate deployment",
                fix=f"to sample, use a serverless session (without the option {SHAPE})",
            )
        if request["stop_ids"]:
            raise UsageError("Fireworks supports stop strings, not stop token ids", fix='stop=["..."]')
        if self._sampling is None:
            try:
                self._sampling = within(self._sampler)
            except Exception as error:
                raise client_error(self.host, error) from error
        given = {name: request[name] for name in ("stop", "top_k") if request[name]}
        params = [
            self._types.SamplingParams(
                max_tokens=request["max_tokens"] or MOST_TOKENS,
                temperature=request["temperature"],
                top_p=request["top_p"],
                seed=None if request["seed"] is None else request["seed"] + number,
                **given,
            )
            for number in range(request["n"])
        ]
        prompt = self._types.ModelInput.from_ints(list(request["prompt"]))
        sampling = self._sampling

        async def drawn() -> list[Any]:
            every = (_drawn(sampling, prompt, each) for each in params)
            return await asyncio.wait_for(asyncio.gather(*every), OPERATION_S)

        loop: asyncio.AbstractEventLoop = self._training.holder.get_loop()
        sent = asyncio.run_coroutine_threadsafe(drawn(), loop)
        return then(
            sent,
            lambda result: sampled(sequence for one in result for sequence in one.sequences),
            lambda error: client_error(self.host, error),
        )

    def _sampler(self) -> Any:
        saved = self._training.save_weights_for_sampler(f"sampled-{secrets.token_hex(4)}").result()
        sampling = self._service.create_sampling_client(model_path=saved.path)
        sampling.deployment_sampler._RETRY_MAX_ATTEMPTS = 1  # the host would bill each attempt
        return sampling

    def save(self, folder: Path, *, optimizer: bool) -> Future[str]:
        """Save the current weights at the host. Nothing is written to `folder`."""
        name = f"{slug(folder.parent.name.lstrip('.').partition('.')[0])[:40]}-{secrets.token_hex(4)}"
        if optimizer:
            return self._submit(lambda: self._training.save_state(name), self._place)
        done: Future[str] = Future()
        try:
            done.set_result(
                self._place(within(lambda: self._training.save_weights_for_sampler(name).result()))
            )
        except Exception as error:
            raise client_error(self.host, error) from error
        return done

    def _place(self, saved: Any) -> str:
        of = "" if self._trainer is None else f"{CROSS_JOB}{self._trainer}/"
        return f"{SCHEME}{of}{saved.path}"

    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        training, self._sampling = self._training, None
        load = training.load_state_with_optimizer if optimizer else training.load_state
        return self._submit(lambda: load(saved.removeprefix(SCHEME)), lambda result: None)

    def close(self) -> None:
        """End the session, release its model and stop its trainer. Unsaved state is lost."""
        service, self._service = self._service, None
        try:
            if self._watch is not None:
                self._watch.close(PROFILE.title, TAIL_S)
            elif service is not None and service.training_session_id is not None:
                self._provider.end_serverless(service.training_session_id)
        finally:
            for one in (self._sampling, service):
                if one is not None:
                    threading.Thread(target=one.close, daemon=True).start()


async def _drawn(sampling: Any, prompt: Any, params: Any) -> Any:
    """Sample once. Retries only if the host rejected the request without carrying it out."""
    for pause in (1, 2, 4, 8, None):
        try:
            return await sampling.sample_async(prompt, 1, params)
        except Exception as error:
            if pause is None or getattr(error, "final_status", None) != RATE_LIMITED:
                raise
            await asyncio.sleep(pause)
    return None


async def _in_time(sent: Any) -> Any:
    try:
        return await sent.result_async(OPERATION_S)
    except TimeoutError:
        raise TimeoutError(NO_RESULT) from None


def within(call: Callable[[], T]) -> T:
    """Run an SDK call that has no timeout parameter. Raises `TimeoutError` if the call takes longer than
    `OPERATION_S`."""
    try:
        return retries.within(call, OPERATION_S)
    except TimeoutError:
        raise TimeoutError(NO_RESULT) from None


class SteppedFireworks(JobsAndSessions, FireworksProvider):
    """Fireworks, with training sessions."""

    profile = PROFILE
    features = FireworksProvider.features
    missing = FireworksProvider.missing

    def __init__(self, config: HostConfig, *, sleep: Callable[[float], None] = time.sleep) -> None:
        super().__init__(config, sleep=sleep)
        self._sleep = sleep

    @cached_property
    def machines(self) -> Trainers:
        return Trainers(self.name, prices_of(self), self._at, self._wire, self._runs.home, self._sleep)

    # -- sessions ------------------------------------------------------------------------------------------

    def session_price(self, order: SessionOrder, rates: RateBook) -> SessionPrice:
        """Return the token prices of a serverless session, or the hourly price of a trainer. In the sandbox,
        models without a price use play-money prices. Raises `UsageError` for an unknown option, and for a
        model or a GPU without a price."""
        if unknown := sorted(order.options.keys() - {SHAPE}):
            raise UsageError(
                f"Fireworks sessions have no option {unknown[0]!r}", fix=f"the only option is {SHAPE}"
            )
        if SHAPE in order.options:
            return self._trainer_price(str(order.options[SHAPE]), rates)
        found = [self._rate(method, order, rates) for method in RATES]
        train, prefill, sample = found
        if train is None or prefill is None or sample is None:
            unknown = next(m for m, rate in zip(RATES, found, strict=True) if rate is None)
            raise UsageError(
                f"the token price of {order.model_name} for Fireworks' serverless training is unknown "
                f"({unknown})",
                fix=f"pass --rate {self.name}:{unknown}=USD_PER_MTOK, or add the rate to rates.yaml",
            )
        return SessionPrice(
            train_usd_per_mtok=train.usd,
            prefill_usd_per_mtok=prefill.usd,
            sample_usd_per_mtok=sample.usd,
            source=train.source,
        )

    def _trainer_price(self, name: str, rates: RateBook) -> SessionPrice:
        shape = self.machines.shape(name)
        hourly = self.machines.hourly(shape, rates)
        if hourly is None:
            gpu = shape.gpu or "GPU"
            raise UsageError(
                f"the hourly price of a Fireworks trainer on {gpu} is unknown",
                fix=f"pass --rate {self.name}:{TRAINER_RATES[0]}@{gpu}=USD_PER_GPU_HOUR",
            )
        return SessionPrice(hourly=hourly, source=hourly.source, tail_s=TAIL_S)

    def _rate(self, method: str, order: SessionOrder, rates: RateBook) -> Rate | None:
        known, today = catalog.resolve(order.model, PROFILE), days.today()
        ids = [order.model, order.model_name, known.name]
        own = rates.find(prices_of(self), method, ids=ids, on=today)
        play = f"session_{method.rpartition('_')[2]}"
        return own or (rates.find(PLAY_MONEY, play, on=today) if self.config.sandbox else None)

    def open_session(self, order: SessionOrder) -> SessionBackend:
        if missing := next((one for one in PACKAGES if find_spec(one) is None), None):
            raise MissingExtra("fireworks", "a session at Fireworks", missing)
        return FireworksSession(self, order, self._runs.make(order))

    def end_serverless(self, id: str) -> None:
        """End a serverless session. A session that has already ended is not an error."""
        path, client = f"/v1/accounts/{self._at.account()}/trainingSessions/{id}", self._at.client()
        with suppress(NotFound):
            self._wire.read(lambda: client.delete(path, cast_to=object), expect=object)

    # -- jobs and sessions ---------------------------------------------------------------------------------

    def resume(self, job: JobHandle) -> None:
        _require_job(job)
        super().resume(job)

    def rendered(self, job: JobHandle) -> Sequence[RowTokens]:
        _require_job(job)
        return super().rendered(job)

    def download(
        self, job: JobHandle, dest: Path, *, checkpoint: str | None = None, progress: Progress | None = None
    ) -> Artifact:
        _require_job(job)
        return super().download(job, dest, checkpoint=checkpoint, progress=progress)

    def _made_by(self, job: JobHandle) -> dict[str, Any]:
        _require_job(job)
        return super()._made_by(job)


def _require_job(job: JobHandle) -> None:
    """Raise `UsageError` for a session, because the host offers this operation only for jobs."""
    if job.kind == SESSION:
        raise UsageError(
            f"the result of session {job.job_id} is a checkpoint at Fireworks, not a model",
            fix="to turn it into a model, use promote_checkpoint of Fireworks' training SDK",
        )
