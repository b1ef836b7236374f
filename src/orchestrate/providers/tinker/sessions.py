"""Training sessions at Tinker, or at a server that speaks its interface, through its official client."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from orchestrate.core import days
from orchestrate.costing import PLAY_MONEY
from orchestrate.errors import (
    MissingExtra,
    Unsupported,
    UsageError,
)
from orchestrate.local.run import STATUSES, RunDir
from orchestrate.providers import rundirs
from orchestrate.providers.base import KeepsCheckpoints, Measures, Pauses, Progress, Sessions
from orchestrate.providers.sessions import (
    ClientSession,
    SessionBackend,
    SessionOrder,
    SessionPrice,
    client_error,
    sampled,
)
from orchestrate.providers.tinker import PROFILE
from orchestrate.types import (
    Checkpoint,
    Event,
    Feature,
    Job,
    JobHandle,
    JobStatus,
    MetricPoint,
    RemoteDataset,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.costing import Rate, RateBook
    from orchestrate.data import TrainingData
    from orchestrate.profile import Profile
    from orchestrate.spec import JobSpec

_NO_JOBS = "Tinker has no jobs; train in your own loop through ft.session"
_FEATURES = frozenset(
    {Feature.LORA, Feature.CANCEL, Feature.PAUSE, Feature.EVENTS, Feature.METRICS, Feature.CHECKPOINTS}
)
RATES = ("session_train", "session_prefill", "session_sample")
"""Method names for token prices in `rates.yaml`."""


class TinkerSession(ClientSession):
    """One model at the host."""

    host: ClassVar[str] = "tinker"

    def __init__(self, order: SessionOrder, *, base_url: str | None, api_key: str) -> None:
        tinker: Any = import_module("tinker")
        self._types = import_module("tinker.types")
        service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
        self._service = service
        try:
            made = service.create_lora_training_client(base_model=order.model, **order.lora)
            self._training = made.result()
        except BaseException as error:
            self.close()
            raise client_error(self.host, error) from error

    def _future(self, sent: Any) -> Future[Any]:
        return sent.future()

    def sample(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Sample from the current weights, which are saved once after each change."""
        if self._sampling is None:
            self._sampling = self._done(self._training.save_weights_and_get_sampling_client())
        stop: list[Any] = [*request["stop"], *(request["stop_ids"] or [])]
        params = self._types.SamplingParams(
            max_tokens=request["max_tokens"],
            temperature=request["temperature"],
            top_p=request["top_p"],
            top_k=request["top_k"] or -1,
            seed=request["seed"],
            stop=None if request["stop_ids"] is None else stop,
        )
        prompt = self._types.ModelInput.from_ints(list(request["prompt"]))
        sampling = self._sampling
        return self._asked(
            lambda: sampling.sample(prompt, num_samples=request["n"], sampling_params=params),
            lambda told: sampled(told.sequences),
        )

    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        """Create another model at the host, because its client can't load into an existing one."""
        made = (
            self._service.create_training_client_from_state_with_optimizer
            if optimizer
            else self._service.create_training_client_from_state
        )
        self._training, self._sampling = self._done(made(saved)), None
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def close(self) -> None:
        try:
            self._service.close("success").result(60)
        except Exception as error:
            raise client_error(self.host, error) from error


class TinkerProvider(Measures, KeepsCheckpoints, Pauses, Sessions):
    """Runs sessions at the host; their run directories are on this machine."""

    profile: ClassVar[Profile] = PROFILE
    features: ClassVar[frozenset[Feature]] = _FEATURES
    missing: ClassVar[Mapping[Feature, str]] = {f: _NO_JOBS for f in Feature if f not in _FEATURES}
    status_map: ClassVar[Mapping[str, JobStatus]] = STATUSES

    # -- sessions ------------------------------------------------------------------------------------------

    @property
    def _runs(self) -> rundirs.SessionRuns:
        return rundirs.SessionRuns(Path(str(self.config.options["home"])), self.name)

    def session_dir(self, order: SessionOrder) -> RunDir:
        return self._runs.make(order)

    def session_price(self, order: SessionOrder, rates: RateBook) -> SessionPrice:
        """Return your own rates from `rates.yaml`, or those of the sandbox. Without them, any other server on
        this machine costs nothing."""
        found = {method: self._rate(method, order, rates) for method in RATES}
        unknown = [method for method, rate in found.items() if rate is None]
        if unknown and not (self.config.near and len(unknown) == len(RATES)):
            raise UsageError(
                f"the token price at {self.name} is unknown: {', '.join(unknown)}",
                fix=f"--rate {self.name}:{unknown[0]}=USD_PER_MTOK, or a rate in rates.yaml",
            )
        usd = [rate.usd for rate in found.values() if rate is not None] or [Decimal(0)] * 3
        source = next((rate.source for rate in found.values() if rate is not None), "")
        train, prefill, sample = usd
        return SessionPrice(
            train_usd_per_mtok=train,
            prefill_usd_per_mtok=prefill,
            sample_usd_per_mtok=sample,
            source=source,
        )

    def _rate(self, method: str, order: SessionOrder, rates: RateBook) -> Rate | None:
        ids, today = [order.model, order.model_name], days.today()
        own = rates.find(self.prices, method, ids=ids, on=today)
        return own or (rates.find(PLAY_MONEY, method, on=today) if self.sandbox else None)

    def open_session(self, order: SessionOrder) -> SessionBackend:
        if find_spec("tinker") is None:
            raise MissingExtra("tinker", "a session at Tinker", "tinker")
        if order.options:
            raise UsageError(f"a session at {self.name} has no options (got {', '.join(order.options)})")
        key = self.config.require_key().reveal()
        return TinkerSession(order, base_url=self.config.base_url, api_key=key)

    # -- jobs ----------------------------------------------------------------------------------------------

    def translate(self, spec: JobSpec) -> Translation:
        raise Unsupported(self.name, "jobs", _NO_JOBS)

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        raise Unsupported(self.name, "jobs", _NO_JOBS)

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        raise Unsupported(self.name, "jobs", _NO_JOBS)

    # -- reading -------------------------------------------------------------------------------------------

    def find(self, ref: str) -> list[JobHandle]:
        return self._runs.find(ref)

    def get(self, job: JobHandle) -> Job:
        return self._runs.job(self._runs.dir(job))

    def list(self, *, since: datetime | None = None) -> Iterator[Job]:
        return self._runs.all(since)

    def events(self, job: JobHandle, *, after: str | None = None) -> Iterator[Event]:
        yield from self._runs.dir(job).events(after)

    def metrics(self, job: JobHandle) -> list[MetricPoint]:
        return self._runs.dir(job).metrics()

    def checkpoints(self, job: JobHandle) -> list[Checkpoint]:
        return self._runs.checkpoints(job)

    # -- acting --------------------------------------------------------------------------------------------

    def cancel(self, job: JobHandle) -> None:
        self._runs.ask(job, "cancel", "cancelled")

    def pause(self, job: JobHandle) -> None:
        self._runs.ask(job, "pause", "paused")
