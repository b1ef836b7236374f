"""Tinker backend, with sessions for your own training loop and jobs that run a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from datetime import datetime
from decimal import Decimal
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from orchestrate.core import days
from orchestrate.costing import PLAY_MONEY, PlannedJob
from orchestrate.costing.lines import MTOK, line, summed
from orchestrate.costing.size import JobSize, measure
from orchestrate.costing.training import ANSWER_SHARE
from orchestrate.data.dialects import target
from orchestrate.errors import Conflict, MissingExtra, UsageError
from orchestrate.local.job import DEFAULT_SAMPLES, Hyper, Method
from orchestrate.local.run import RunDir, launcher
from orchestrate.providers import offline, rundirs, settings
from orchestrate.providers.base import (
    Cancels,
    KeepsCheckpoints,
    Measures,
    Pauses,
    Progress,
    Resumes,
    Sessions,
    prices_of,
)
from orchestrate.providers.sessions import (
    LORA,
    ClientSession,
    SessionBackend,
    SessionOrder,
    SessionPrice,
    client_error,
    sampled,
)
from orchestrate.providers.tinker import PROFILE, translation
from orchestrate.providers.tinker.translation import most_new_tokens
from orchestrate.settings import masked
from orchestrate.spec import DPO, RFT
from orchestrate.types import (
    Checkpoint,
    Event,
    Feature,
    Job,
    JobHandle,
    MetricPoint,
    Problem,
    Quote,
    RemoteDataset,
    Translation,
    decoding,
)

if TYPE_CHECKING:
    from orchestrate.costing import Rate, RateBook
    from orchestrate.data import TrainingData
    from orchestrate.profile import Profile
    from orchestrate.spec import JobSpec

_MISSING: Mapping[Feature, str] = {
    Feature.KTO: "no recipe supports KTO",
    Feature.QLORA: "Tinker trains LoRA adapters",
    Feature.FULL: "Tinker trains LoRA adapters",
    Feature.VISION: "recipes train on text only",
    Feature.CONTINUE_FROM: "to continue from earlier weights, use your own loop with ft.session",
    Feature.WANDB: "metrics are stored in the run directory and not sent anywhere",
    Feature.DELETE: "Tinker stores saved states until you delete them there",
    Feature.DOWNLOAD: "the result is a tinker:// path. Download it with Tinker's command line",
    Feature.DEPLOY: "Tinker serves the result at its tinker:// path without a deployment",
    Feature.CHAT: "use Tinker's client to sample from the result's tinker:// path",
    Feature.LIVE_PRICE: "Tinker does not estimate prices",
}
SAVED_EVERY_S = 600.0
"""Interval, in seconds, at which a job saves a state to resume from."""
CLOSE_S = 10.0
"""Timeout in seconds for ending a session. A session that stays open costs nothing and expires at the
host."""


class TinkerProvider(Cancels, Measures, KeepsCheckpoints, Pauses, Resumes, Sessions):
    """Backend that runs sessions at Tinker and stores their run directories on this machine. A job is a
    process on this machine that runs a recipe in a session."""

    profile: ClassVar[Profile] = PROFILE
    features: ClassVar[frozenset[Feature]] = frozenset(Feature) - frozenset(_MISSING)
    missing: ClassVar[Mapping[Feature, str]] = _MISSING

    # -- sessions ------------------------------------------------------------------------------------------

    @property
    def _runs(self) -> rundirs.SessionRuns:
        return rundirs.SessionRuns(self._home.parent, self.name)

    @property
    def _home(self) -> Path:
        return Path(str(self.config.options["home"])) / self.name

    def session_dir(self, order: SessionOrder) -> RunDir:
        return self._runs.make(order)

    def session_price(self, order: SessionOrder, rates: RateBook) -> SessionPrice:
        """Return the price from the user's rates in `rates.yaml`, or from the sandbox's rates. Without rates,
        a server on this machine costs nothing."""
        found = self._rates(order, rates)
        train, prefill, sample = [Decimal(0) if rate is None else rate.usd for rate in found.values()]
        source = next((rate.source for rate in found.values() if rate is not None), "")
        return SessionPrice(
            train_usd_per_mtok=train,
            prefill_usd_per_mtok=prefill,
            sample_usd_per_mtok=sample,
            source=source,
        )

    def _rates(self, order: SessionOrder, rates: RateBook) -> dict[str, Rate | None]:
        """Return the rate of each method, or `None` for all of them if nothing is billed. Raises `UsageError`
        if some are unknown."""
        found = {method: self._rate(method, order, rates) for method in PROFILE.own_rates}
        unknown = [method for method, rate in found.items() if rate is None]
        if unknown and not (self.config.near and len(unknown) == len(found)):
            raise UsageError(
                f"the token price at {self.name} is unknown: {', '.join(unknown)}",
                fix=f"pass {' '.join(f'--rate {prices_of(self)}:{one}=USD_PER_MTOK' for one in unknown)}"
                ", or add the rates to rates.yaml",
            )
        return found

    def _rate(self, method: str, order: SessionOrder, rates: RateBook) -> Rate | None:
        ids, today = [order.model, order.model_name], days.today()
        own = rates.find(prices_of(self), method, ids=ids, on=today)
        return own or (rates.find(PLAY_MONEY, method, on=today) if self.config.sandbox else None)

    def open_session(self, order: SessionOrder) -> SessionBackend:
        self._require_client()
        if order.options:
            raise UsageError(f"{self.name} sessions have no options (got {', '.join(order.options)})")
        key = self.config.require_key().reveal()
        return TinkerSession(order, base_url=self.config.base_url, api_key=key)

    def _require_client(self) -> None:
        if find_spec("tinker") is None:
            raise MissingExtra("tinker", "a session at Tinker", "tinker")

    # -- jobs ----------------------------------------------------------------------------------------------

    def translate(self, spec: JobSpec) -> Translation:
        return translation.translate(spec, self.name, self.config.options)

    def check(self, spec: JobSpec, data: TrainingData, translation: Translation) -> list[Problem]:
        from orchestrate.providers.graders import grader_problems  # late: it is heavy

        return [*super().check(spec, data, translation), *grader_problems(self.name, spec, data)]

    def quote(
        self,
        spec: JobSpec,
        data: TrainingData,
        translation: Translation,
        rates: RateBook,
        *,
        gpu_hours: Decimal | None = None,
    ) -> Quote:
        """Quote the recipe's tokens at the user's rates, or at the sandbox's rates."""
        del gpu_hours
        for setting in translation.refused:
            if setting.name in offline.NO_QUOTE:
                return Quote(provider=self.name, model=translation.model, unavailable=setting.rule)
        resolved = self.resolve(spec)
        order = SessionOrder(ref="", model=resolved.id, model_name=spec.model_for(self.name), lora={})
        work = PlannedJob(self.name, PROFILE, spec, data, translation, resolved)
        try:
            return _recipe_quote(work, self._rates(order, rates))
        except UsageError as error:
            reason = f"{error.message}. To set it: {error.fix}"
            return Quote(provider=self.name, model=translation.model, unavailable=reason)

    def upload(
        self, spec: JobSpec, data: TrainingData, translation: Translation, *, progress: Progress | None = None
    ) -> RemoteDataset:
        """Write the rows to a folder on this machine, where the recipe reads them."""
        return rundirs.written_rows(
            self._home / "data", self.name, target(self.name, PROFILE), data, progress
        )

    def create(self, spec: JobSpec, remote: RemoteDataset, translation: Translation, ref: str) -> JobHandle:
        """Create the run directory named `ref`, and start the process that runs the session. A second call
        with the same ref finds the directory and does not start another process."""
        self._require_client()
        body = settings.body(translation)
        order = SessionOrder(
            ref=ref,
            model=translation.model,
            model_name=spec.model_for(self.name),
            lora={**LORA, "rank": body["lora"]["rank"], "seed": body.get("seed", 0)},
            spec=masked(spec.canonical()),
        )
        run = self._runs.make(
            order,
            train=remote.train_id,
            validation=remote.validation_id,
            dataset_digest=remote.digest,
            method=decoding.convert(body["method"], Method),
            hyper=Hyper.from_dict({"recovery_seconds": SAVED_EVERY_S, **body.get("hyper", {})}),
            objective=body.get("objective"),
        )
        there = run.job()
        if (there.spec, there.dataset_digest) != (order.spec, remote.digest):
            raise Conflict(
                self.name, f"{run.path} belongs to another job", fix="submit again. A new run gets a new ref"
            )
        if not run.had_worker():
            launcher.start_worker(run, self._drive)
        return rundirs.handle(run, self.name)

    def _drive(self, run: RunDir, log: int) -> int:
        folder, env = (None, dict(os.environ)) if self.child is None else self.child()
        return launcher.spawn_module("orchestrate.sessions.worker", run, log, env=env, folder=folder)

    def resume(self, job: JobHandle) -> None:
        run = self._runs.dir(job)
        if not run.job().train:
            raise UsageError(
                f"{run.ref} is a training session, so only your own training loop can continue it",
                fix=f'use: with ft.session(resume="{run.ref}") as s: ...',
            )
        launcher.resume(run, lambda one: launcher.start_worker(one, self._drive))

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


class TinkerSession(ClientSession):
    """A session with one model at the host."""

    host: ClassVar[str] = "tinker"

    def __init__(self, order: SessionOrder, *, base_url: str | None, api_key: str) -> None:
        tinker: Any = import_module("tinker")
        self._types = import_module("tinker.types")
        self._service: Any = None
        try:
            self._service = tinker.ServiceClient(base_url=base_url, api_key=api_key)
            made = self._service.create_lora_training_client(base_model=order.model, **order.lora)
            self._training = made.result()
        except BaseException as error:
            self.close()
            raise client_error(self.host, error) from error

    def _future(self, sent: Any) -> Future[Any]:
        return sent.future()

    def sample(self, request: Mapping[str, Any]) -> Future[dict[str, Any]]:
        """Sample from the current weights. If they changed since the last sample, first save them for
        sampling."""
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
        return self._submit(
            lambda: sampling.sample(prompt, num_samples=request["n"], sampling_params=params),
            lambda result: sampled(result.sequences),
        )

    def load(self, saved: str, *, optimizer: bool) -> Future[None]:
        """Create a new model at the host from the saved state, because the host's client can't load a state
        into an existing model."""
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
        if self._service is None:
            return
        try:
            self._service.close("success").result(CLOSE_S)
        except Exception as error:
            raise client_error(self.host, error) from error


class _Tokens(NamedTuple):
    """Minimum, likely and maximum tokens of one kind."""

    least: Decimal
    likely: Decimal
    most: Decimal


def _recipe_quote(work: PlannedJob, rates: Mapping[str, Rate | None]) -> Quote:
    """Build a quote from the rates `session_train`, `session_prefill` and `session_sample`. If a rate is
    `None`, its tokens are not billed."""
    size = measure(work)
    tokens = _tokens(work, size)
    lines = [
        line(
            component,
            found.likely / MTOK,
            rate,
            band=size.band,
            low=found.least / MTOK,
            high=found.most / MTOK,
        )
        for (component, found), rate in zip(tokens.items(), rates.values(), strict=True)
        if rate is not None
    ]
    notes = [f"{size.passes:.4g} epochs", *size.notes]
    if isinstance(work.spec.method, RFT):
        most = most_new_tokens(work.translation.body)
        least, likely = (f"{share * most:.0f}" for share in ANSWER_SHARE[:2])
        notes.append(f"assumes {likely} tokens per answer ({least} to {most})")
    if not lines:
        notes.append("a server on this machine costs nothing")
    return summed(
        provider=work.provider,
        model=work.resolved.name,
        lines=lines,
        assumptions=notes,
        warnings=work.resolved.warnings,
        billed_tokens=round(tokens["train"].likely),
    )


def _tokens(work: PlannedJob, size: JobSize) -> dict[str, _Tokens]:
    """Count the tokens. Rows are cut after their last trained token, so fewer may be sent than they have."""
    method, passes = work.spec.method, size.passes
    read = Decimal(size.validation_tokens * size.evals)
    if isinstance(method, RFT):
        samples = method.samples_per_prompt or DEFAULT_SAMPLES
        answers = [share * most_new_tokens(work.translation.body) for share in ANSWER_SHARE]
        drawn = [samples * size.rows * passes * one for one in answers]
        judged = [size.validation_rows * size.evals * one for one in answers]
        prompts = size.train_tokens * passes
        times = 2 if work.translation.body.get("objective") == "dro" else 1  # to sample, and for the loss
        return {
            "train": _Tokens(Decimal(0), *(samples * prompts + one for one in drawn[1:])),
            "prefill": _Tokens(*[times * prompts + read] * 3),
            "sample": _Tokens(*(one + other for one, other in zip(drawn, judged, strict=True))),
        }
    trained = size.train_tokens * passes
    if isinstance(method, DPO):
        # Each step first runs a forward pass on its pairs, because the loss is computed on this machine. A
        # reference model runs one more forward pass on all pairs.
        reference = method.loss != "orpo" and method.simpo_gamma is None
        read += trained + (size.train_tokens + size.validation_tokens if reference else 0)
    return {
        "train": _Tokens(trained / 2, trained, trained),
        "prefill": _Tokens(read / 2, read, read),
        "sample": _Tokens(*[Decimal(0)] * 3),
    }
