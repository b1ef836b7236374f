"""Migrate one run: propose models on other backends, then train each chosen one on the same data, exactly
once."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from msgspec.structs import replace

from orchestrate.core import days
from orchestrate.errors import SpecError, UsageError
from orchestrate.evaluation import recordings
from orchestrate.evaluation.metrics import registry
from orchestrate.migration import proposals
from orchestrate.migration.inventory import KEY, shutdown
from orchestrate.migration.proposals import (
    MOST,
    HeldOutRows,
    MigrationTarget,
    ModelNeeds,
    Old,
    PricedModel,
    Proposal,
    Suited,
    base_of,
    suited,
)
from orchestrate.reports import advice
from orchestrate.runs.evaluation.comparison import sent
from orchestrate.runs.evaluation.held_out import left_out_notes
from orchestrate.runs.preparing import earlier, pricing
from orchestrate.runs.preparing.prepared import Offer, Prepared, plan, prepare, training_data
from orchestrate.runs.submit import submit
from orchestrate.runs.syncing.recovery import LEFT_OUT, unknown_method
from orchestrate.runs.tracked import TrackedRun
from orchestrate.settings import is_masked
from orchestrate.spec import JobSpec, renaming_of
from orchestrate.text import rates_apart
from orchestrate.types import MIGRATED_FROM, JobStatus, Quote, Run, Sampling
from orchestrate.workspace import scope_of

if TYPE_CHECKING:
    from orchestrate.costing import Ownership, ServingUse
    from orchestrate.data import TrainingData
    from orchestrate.evaluation.held_out import HeldOut
    from orchestrate.providers.base import Progress
    from orchestrate.runs.preparing.earlier import Earlier
    from orchestrate.workspace import Workspace

MARGIN = 0.05
REQUESTS = 1000
"""Requests per day if no traffic is given."""
NOT_COMPARED = {"train", "validation", "test", "tags", "max_cost_usd"}
"""Fields of a spec that are ignored when migrations are compared."""


@dataclass(frozen=True, kw_only=True)
class MigrationOrder:
    """Options of a migration: target backends, data, and the parity test."""

    to: Sequence[str]
    models: Mapping[str, str] = field(default_factory=dict[str, str])
    """Models to use instead of the proposed ones, keyed by backend. The key `default` applies to all other
    backends."""
    train: str | None = None
    """Training rows to use instead of the old run's, for example if the old rows are lost."""
    use: ServingUse | None = None
    """Expected traffic, used to price serving. Default: `REQUESTS` per day with the data's average
    lengths."""
    test: str | Path | None = None
    """Held-out rows. Default: the run's test or validation file, or its recording."""
    old: Literal["auto", "live", "recorded"] = "auto"
    metrics: Sequence[str] = ("auto",)
    margin: float = MARGIN
    """Non-inferiority margin: the largest acceptable drop in the first metric."""
    limit: int | None = None
    sampling: Sampling = field(default_factory=Sampling)
    on: str = "auto"
    probes: Sequence[str] = ("all",)
    """Names of the probes that measure forgetting. See
    `orchestrate.runs.evaluation.regression.RegressionOrder`."""
    proof: bool = True
    """False to skip the comparison. No held-out rows are needed then."""
    max_cost_usd: Decimal | None = None
    """Cost limit for all requests of the comparison, in US dollars. Training has a separate limit."""


class PreparedMigration:
    """A migration that is ready to run. Nothing has been sent yet."""

    def __init__(
        self, ft: Workspace, run: TrackedRun | str, order: MigrationOrder, today: date | None = None
    ) -> None:
        """Prepare the migration. `today` decides which hosts are closed and which models are shut down.
        Raises `UsageError` for a run that cannot be migrated or whose parity could not be shown, and
        `DataError` if its rows no longer exist. Works offline."""
        if not 0 < order.margin < math.inf:
            raise UsageError(f"--margin (the accepted drop) must be above 0, got {order.margin:g}")
        registry.check(order.metrics)
        first = registry.split(order.metrics)[0]
        if order.margin >= 1 and registry.is_share(first):  # any model would be as good as the old one
            deciding = "the deciding metric" if first == "auto" else first
            raise UsageError(
                f"the margin (the accepted drop) must be below 1, because {deciding} is always between 0 "
                f"and 1, got {order.margin:g}",
                fix="for 5 percentage points, set 0.05",
            )
        self._ft, self.order = ft, order
        self.old = ft.record(run) if isinstance(run, str) else run.record
        if self.old.sandbox and scope_of(ft.settings) is False:
            raise UsageError(
                f"{self.old.id} is a sandbox run, but the current keys are real: the new run would be billed",
                fix=f"orchestrate sandbox run -- orchestrate migrate {self.old.id}",
            )
        self.today = today or days.today()
        self._names = ft.backends(list(order.to))
        found = ft.store.history.records(LEFT_OUT, [self.old.id])
        self._left_out = found[-1].data if found else {}
        self._spec = _moved(self.old, self._names, order.train)
        data = training_data(ft, self._spec)
        self._needs, self._use = _needs(self._spec, data), order.use or _use(data)
        self._notes: list[str] = []
        held = self._held_out() if order.proof else None
        self._choose()
        self.proposal = self._proposed(held, data)

    # -- proposal ------------------------------------------------------------------------------------------

    def _choose(self) -> None:
        """Choose the candidates with their prices, and what would be submitted to each backend."""
        suits = {name: self._suited(name) for name in self._names}
        self._priced: dict[str, list[PricedModel]] = {name: [] for name in self._names}
        for place in range(MOST):
            models = {name: found[place].model for name, found in suits.items() if place < len(found)}
            if models:
                for name, priced in self._price(models, suits, place).items():
                    self._priced[name].append(priced)
        chosen = {name: one for name, found in self._priced.items() if (one := _best(found)) is not None}
        self.prepared: Prepared | None = None
        if chosen:
            models = {name: one.suited.model for name, one in chosen.items()}
            spec, self._refused = self._to(models)
            self.prepared = prepare(self._ft, spec, list(models))

    def _suited(self, name: str) -> list[Suited]:
        provider, profile = self._ft.provider(name), self._ft.provider(name).profile
        asked = self.order.models.get(name, self.order.models.get("default"))
        source = base_of(self.old.model, self._ft.provider(self.old.provider).profile)
        found = suited(source, profile, provider.features, self._needs, self.today, asked)
        if not found and profile.kind == self._ft.provider(self.old.provider).profile.kind:
            found = [Suited(model=self.old.model, reasons=("the same base model",))]
        return found

    def _price(
        self, models: Mapping[str, str], suits: Mapping[str, Sequence[Suited]], place: int
    ) -> dict[str, PricedModel]:
        names, (spec, _) = list(models), self._to(models)
        quotes = {q.provider: q for q in prepare(self._ft, spec, names, checked=False).quotes}
        found: dict[str, PricedModel] = {}
        for name in names:
            [total] = pricing.ownership(self._ft, spec.on(name), [quotes[name]], self._use)
            found[name] = _with_serving(suits[name][place], quotes[name], total)
        return found

    def _to(self, models: Mapping[str, str]) -> tuple[JobSpec, Mapping[str, Mapping[str, str]]]:
        """Return the spec for these backends (name -> model), and the settings that each of them drops, with
        the reason."""
        spec = self._spec.model_copy(update={"model": dict(models)})
        translations = plan(self._ft, spec, list(models))
        without = {t.provider: t.overrides for t in translations if t.overrides}
        lost = {"continue_from": NOT_CONTINUED} if spec.continue_from is None else {}
        refused = {t.provider: lost | {s.name: s.rule or "" for s in t.refused} for t in translations}
        values = spec.asked() | ({"overrides": without} if without else {})
        return JobSpec.parse(values), refused

    def _proposed(self, held: HeldOutRows | None, data: TrainingData) -> Proposal:
        profile = self._ft.provider(self.old.provider).profile
        silent_on = shutdown(self.old.model, profile)
        traffic = self._use.traffic
        usage = f"{traffic.requests_per_day:,.0f} requests per day, {traffic.input_tokens:,} tokens in, "
        usage += f"{traffic.output_tokens:,} out"
        if self.order.use is None:
            usage += " (average lengths of the training rows, unless you set --traffic)"
        return Proposal(
            run_id=self.old.id,
            provider=self.old.provider,
            model=self.old.model,
            tuned_model=self.old.tuned_model,
            silent_on=silent_on,
            days_left=(silent_on - self.today).days if silent_on is not None else None,
            needs=self._needs,
            traffic=usage,
            months=self._use.months,
            held_out=held,
            old=self._old_answers(),
            margin=self.order.margin,
            targets=tuple(self._target(name, data) for name in self._names),
            notes=(*([apart] if (apart := self._rates_apart()) else []), *self._notes),
        )

    def _rates_apart(self) -> str | None:
        offers = self.prepared.offers if self.prepared is not None else ()
        return rates_apart({offer.provider: offer.translation.multiplied_rate for offer in offers})

    def _target(self, name: str, data: TrainingData) -> MigrationTarget:
        candidates = tuple(self._priced[name])
        offer = self._offer(name)
        if offer is None:
            known = "; ".join(f"{c.suited.model}: {', '.join(c.against)}" for c in candidates)
            why = known or f"no model on {name} is known to be similar to {self.old.model}"
            closed = self._ft.provider(name).profile.closed(self.today)
            fix = "Choose another backend with --to" if closed else f"Choose one with --model {name}=MODEL"
            return MigrationTarget(provider=name, candidates=candidates, refused=f"{why}. {fix}")
        refused = [f"{s.name}: {s.rule}" for s in offer.translation.refused]
        model = offer.spec.model_for(name)
        chosen = next((one for one in candidates if one.suited.model == model), None)
        return MigrationTarget(
            provider=name,
            candidates=candidates,
            model=model,
            quote=offer.quote,
            monthly_usd=chosen.monthly_usd if chosen is not None else None,
            serving=(chosen.serving or chosen.unserved or "") if chosen is not None else "",
            changes=tuple(self._changes(name, offer, data)),
            refused=offer.quote.refused or ("; ".join(refused) or None),
        )

    def _changes(self, name: str, offer: Offer, data: TrainingData) -> list[proposals.SettingChange]:
        host, there = self._ft.provider(self.old.provider), self._ft.provider(name)
        before = (
            sent(self._ft, self.old) or plan(self._ft, JobSpec.parse(self.old.spec), self.old.provider)[0]
        )
        base = base_of(self.old.model, host.profile)
        new = base_of(offer.spec.model_for(name), there.profile)
        return [
            *proposals.of_unknown(self._left_out),
            *proposals.of_settings(before, offer.translation, self._refused[name]),
            *proposals.of_rows(data.train.content, (host.profile, base), (there.profile, new)),
            *proposals.of_problems(offer.problems, name),
        ]

    def _offer(self, name: str) -> Offer | None:
        offers = self.prepared.offers if self.prepared is not None else ()
        return next((offer for offer in offers if offer.provider == name), None)

    # -- held-out rows and the old model's answers ---------------------------------------------------------

    def _old_answers(self) -> Old:
        if self.order.old != "auto":
            return self.order.old
        silent_on = shutdown(self.old.model, self._ft.provider(self.old.provider).profile)
        return "recorded" if silent_on is not None and silent_on < self.today else "live"

    def _held_out(self) -> HeldOutRows:
        """Return the held-out rows. Raises `UsageError` or `DataError` if there are none, before anything is
        spent."""
        if self.old.status is not JobStatus.SUCCEEDED:
            raise UsageError(
                f"run {self.old.id} is {self.old.status.value}, so there is no old model to compare with",
                fix="train the new model anyway with: --no-proof",
            )
        recording = recordings.of_run(self._ft.store, self.old.id)
        if self._old_answers() == "recorded":
            if recording is None:
                raise UsageError(
                    f"{self.old.tuned_model or self.old.id} was shut down and its answers were not "
                    "recorded, so there is nothing to compare with",
                    fix="train the new model anyway with: --no-proof",
                )
            if self.order.test is not None:
                raise UsageError(
                    "the old model was shut down, so parity is judged on the answers recorded in "
                    f"{recording.id}",
                    fix="leave out --test",
                )
            return _recorded(recording)
        for path, origin in (
            (self.order.test, "as you chose"),
            (self._spec.test, "the run's test file"),
            (self._spec.validation, "the run's validation file, which was not used for training"),
        ):
            if path is not None and not is_masked(path):
                found = usable_rows(str(path), self.old, self.order.limit)
                self._notes = left_out_notes(found)
                return HeldOutRows(path=str(path), rows=len(found.items), origin=origin)
        if recording is not None:
            return replace(_recorded(recording), recording=None)
        raise UsageError(
            f"run {self.old.id} has no held-out rows to compare the new model on",
            fix="use --test FILE, record prompts from a log with orchestrate record, or use --no-proof",
        )

    # -- submitting ----------------------------------------------------------------------------------------

    @property
    def ready(self) -> list[str]:
        """The backends that accept this migration."""
        return [target.provider for target in self.proposal.targets if target.refused is None]

    def earlier(self, name: str, *, again: bool = False) -> Earlier:
        """Return the earlier runs of this migration to one backend. Failed runs are included unless `again`
        is set."""
        prepared = self._require()
        attempt = 0
        while True:
            [found] = earlier.found(self._ft, prepared, [name], self._key(name, attempt))
            ended_badly = found.known is not None and found.known.status in _FAILED
            if not (again and ended_badly):
                return found
            attempt += 1

    def submit(
        self,
        name: str,
        *,
        max_cost_usd: Decimal | None = None,
        again: bool = False,
        progress: Progress | None = None,
        agree: Callable[[Quote], bool] | None = None,
    ) -> TrackedRun:
        """Submit the migration, like `Orchestrator.submit`. Submitting the same migration again returns the
        same run in every process that uses this store, even after a crash."""
        made = submit(
            self._ft,
            self._require(),
            name,
            max_cost_usd=max_cost_usd,
            idempotency_key=self.earlier(name, again=again).idempotency_key,
            progress=progress,
            agree=agree,
        )
        return TrackedRun(self._ft, made)

    def _require(self) -> Prepared:
        if self.prepared is None:
            raise UsageError(
                "no backend can train this run: " + "; ".join(t.refused or "" for t in self.proposal.targets),
                fix="orchestrate migrate RUN --to BACKEND --model MODEL",
            )
        return self.prepared

    def _key(self, name: str, attempt: int) -> str:
        spec = self._require().offer(name).spec
        settings = spec.model_dump(mode="json", exclude=NOT_COMPARED)
        mark = hashlib.sha256(json.dumps([name, settings], sort_keys=True).encode()).hexdigest()[:16]
        return f"{KEY}{self.old.id}-{mark}" + (f"-{attempt}" if attempt else "")


NOT_CONTINUED = (
    "only the rows of the last job are trained. To keep the earlier training, migrate the earlier model "
    "first, then submit these rows with continue_from set to its run"
)
_FAILED = (JobStatus.FAILED, JobStatus.CANCELLED)


def _moved(old: Run, names: Sequence[str], train: str | None) -> JobSpec:
    """Return the old run's spec for other backends, with other training rows if some are given."""
    try:
        asked = JobSpec.parse(old.spec).asked()
    except SpecError as error:
        if method := unknown_method(old.spec):
            raise UsageError(
                f"run {old.id} was trained with the method {method!r} of {old.provider}, which Orchestrate "
                "does not know, so it cannot be migrated",
                fix="write a spec with another method and submit it: orchestrate init",
            ) from error
        raise UsageError(
            f"the settings of run {old.id} are unknown, so it cannot be migrated",
            fix=f"fetch the run's settings from the host with: orchestrate import {old.provider}",
        ) from error
    asked |= {"train": train} if train is not None else {}
    for path in [asked.get("train"), asked.get("validation")]:
        if path == "unknown" or is_masked(path or ""):
            raise UsageError(
                f"the training rows of run {old.id} are not on this machine",
                fix=f"orchestrate import {old.provider}, or pass your own copy with --train FILE",
            )
    kept = {name: value for name, value in asked.items() if name not in ("overrides", "max_cost_usd")}
    options = {name: value for name, value in kept.pop("provider_options", {}).items() if name in names}
    weights = kept.get("continue_from")
    if weights and set(names) != {old.provider} and not Path(weights).expanduser().is_dir():
        del kept["continue_from"]  # no other backend has this model
    kept["tags"] = {**kept.get("tags", {}), MIGRATED_FROM: old.id}
    return JobSpec.parse(kept | ({"provider_options": options} if options else {}))


def _needs(spec: JobSpec, data: TrainingData) -> ModelNeeds:
    content = data.train.content
    return ModelNeeds(
        method=spec.method.type,
        rows=data.train.rows,
        longest=data.train.tokens("o200k").longest,
        tools=content.tools,
        images=content.images,
    )


def _use(data: TrainingData) -> ServingUse:
    measured = advice.measure(data.train)
    into, out = max(1, round(measured.prompt_tokens)), max(1, round(measured.answer_tokens))
    return pricing.use(f"{REQUESTS} req/day, {into} in, {out} out")


def _best(found: Sequence[PricedModel]) -> PricedModel | None:
    """Return the most similar model without objections, or else the most similar one whose only objection is
    an unknown price. The user must agree to that, as at `submit`."""
    unpriced = (one for one in found if one.against == (one.quote.unavailable,))
    return next((one for one in found if not one.against), None) or next(unpriced, None)


def _with_serving(one: Suited, quote: Quote, total: Ownership) -> PricedModel:
    ways = [(way, way.monthly_usd) for way in total.options]
    priced = [(way, usd) for way, usd in ways if usd is not None]
    if not priced:
        return PricedModel(suited=one, quote=quote, unserved=total.unavailable)
    best, _ = min(priced, key=lambda pair: pair[1])
    where = f"at {best.server}: " if best.server else ""
    return PricedModel(
        suited=one, quote=quote, serving=f"{where}{best.serving}", monthly_usd=best.monthly_usd
    )


def usable_rows(path: str, old: Run, limit: int | None) -> HeldOut:
    """Return the rows of a held-out file as the comparison reads them: with the old run's columns, and
    without the rows that models can't be asked. Raises `DataError` if no row remains."""
    from orchestrate.data import Dataset
    from orchestrate.data.dataset_reader import columns_if_matching
    from orchestrate.evaluation.held_out import held_out

    columns = columns_if_matching(path, renaming_of(old.spec.get("columns")))
    return held_out(Dataset.open(path, columns=columns), limit=limit)


def _recorded(recording: recordings.Recording) -> HeldOutRows:
    known = recording.expected
    by = (
        "with known expected answers"
        if known == recording.answered
        else "compared with the old model's answers"
    )
    return HeldOutRows(
        path=str(recording.rows_file),
        rows=recording.answered,
        origin=f"prompts recorded on {recording.at:%Y-%m-%d}, {by}",
        recording=recording.id,
    )
