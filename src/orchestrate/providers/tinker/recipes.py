"""Tinker backend, with sessions for your own training loop and jobs that run a recipe."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from datetime import datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from orchestrate.core import days
from orchestrate.costing import PLAY_MONEY, PlannedJob
from orchestrate.data.dialects import target
from orchestrate.errors import Conflict, MissingExtra, UsageError
from orchestrate.local.job import Hyper, Method
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
from orchestrate.providers.sessions import LORA, SessionBackend, SessionOrder, SessionPrice
from orchestrate.providers.tinker import PROFILE, prices, translation
from orchestrate.providers.tinker.sessions import TinkerSession
from orchestrate.settings import masked
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
            return prices.quote(work, self._rates(order, rates))
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
