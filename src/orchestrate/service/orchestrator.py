"""Orchestrator: the public Python API.

    with Orchestrator() as ft:
        run = ft.submit(spec, provider="together", max_cost_usd=25)
        run.wait(on_event=print)

Errors are those of `orchestrate.errors`. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from decimal import Decimal
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

from msgspec.structs import replace

from orchestrate.amounts import amount
from orchestrate.errors import DataError
from orchestrate.handles.deployment import DeploymentHandle
from orchestrate.handles.run import RunHandle
from orchestrate.preparing.prepared import Prepared, Terms, prepare, tokenizers_of, training_data, translated
from orchestrate.providers.base import PlansTraining, capability
from orchestrate.service.measuring import Measuring
from orchestrate.service.setup.opened import Opened
from orchestrate.service.training.rerun import Rerunning
from orchestrate.types import Bill, Feature, Job, JobStatus, Listing, Problem, Quote, Run, Translation
from orchestrate.underway import work

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrate.catalog import Model
    from orchestrate.costing import RateBook
    from orchestrate.data import TrainingData
    from orchestrate.preparing.earlier import Earlier
    from orchestrate.preparing.quoting import Ownership
    from orchestrate.providers.base import Progress, Provider
    from orchestrate.reports.advice import Advice, Needs
    from orchestrate.service.setup.models import ModelChanges
    from orchestrate.settings.config import Settings
    from orchestrate.spec import JobSpec
    from orchestrate.spending.accounts import SpendingReport
    from orchestrate.spending.orphans import Orphan, OrphanReport
    from orchestrate.tracking import Store, SyncReport

Backends = str | Sequence[str]
"""`"all"`, one name, names joined by commas, or a sequence of names."""


class Orchestrator(Measuring, Rerunning):
    """All backends and all runs of one store. Makes the home folder when there is none, and opens nothing
    until it is needed; use as a context manager."""

    def __init__(self, settings: Settings | Opened | None = None) -> None:
        """`settings` default to `orchestrate.settings.config.load()`. Raises `ConfigError`."""
        if settings is None:
            from orchestrate.settings import config

            settings = config.load()
        self._opened = settings if isinstance(settings, Opened) else Opened(settings)
        self._inside: dict[str, Orchestrator] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of connections and the store. Runs go on: they do not live in this process."""
        while self._inside:
            self._inside.popitem()[1].close()
        self._opened.close()

    @property
    def settings(self) -> Settings:
        return self._opened.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._opened.settings = settings

    @property
    def store(self) -> Store:
        """Raises `StoreError` when the store cannot be used as it is."""
        return self._opened.store

    @cached_property
    def rates(self) -> RateBook:
        """The prices that quotes and bills take: built in, under the `rates.yaml` of the home folder and of
        the project. Assign to lay others over them. Raises `ConfigError`."""
        from orchestrate.costing import user_book

        project = [self.settings.config_file.parent] if self.settings.config_file else []
        return user_book([self.settings.home, *project])

    # -- backends -------------------------------------------------------------------------------------------

    def backends(self, wanted: Backends = "all") -> list[str]:
        """The names asked for; `all` are those that can be loaded. Raises `UsageError` for an unknown one."""
        from orchestrate.providers import registry

        return registry.chosen(self.settings, wanted)

    def provider(self, name: str) -> Provider:
        """The backend, ready to use; nothing is sent yet."""
        return self._opened.provider(name)

    def ready(self, name: str) -> Provider:
        """The backend, when the key that it needs is there. Raises `MissingKey`."""
        backend = self.provider(name)
        if not backend.profile.keyless:
            backend.config.require_key()
        return backend

    # -- choosing -------------------------------------------------------------------------------------------

    def models(self, query: str = "", provider: str | None = None) -> Listing[Model]:
        """Base models whose names hold every word of `query`, with `provider` only those that it offers.
        Offline. Raises `UsageError` for an unknown provider."""
        from orchestrate import catalog

        if provider is not None:
            self.backends(provider)
        return Listing(catalog.search(query, None if provider is None else self.settings.host(provider).kind))

    def model_changes(self, provider: Backends = "all") -> ModelChanges:
        """Asks the hosts which models they tune, with limits and end dates, and tells where they differ from
        the catalog."""
        from orchestrate.service.setup import models

        return models.changes(self, provider)

    def advise(
        self, file: str | Path, needs: Needs | None = None, totals: Sequence[Ownership] = ()
    ) -> Advice:
        """Prompting, few-shot, retrieval or tuning, from examples of the task and from what is needed
        (`orchestrate.service.training.advice.Needs`), with reasons. `totals`, of `quoting.ownership`,
        add the money. Offline. Raises `DataError` for a file that cannot be read."""
        from orchestrate.service.training import advice

        return advice.advise(self, file, needs or advice.Needs(), totals)

    # -- before spending ------------------------------------------------------------------------------------

    def data(self, spec: JobSpec, provider: Backends = ()) -> TrainingData:
        """The spec's training and validation file, each read once, and counted in the same pass for these
        backends. Raises `DataError` for what cannot be read."""
        names = self.backends(provider) if provider else []
        tokenizers = tokenizers_of(self.settings, {name: spec.on(name) for name in names})
        return training_data(spec, tokenizers, self.settings)

    def prepare(
        self,
        spec: JobSpec,
        provider: Backends = "all",
        *,
        gpu_hours: Decimal | None = None,
        checked: bool = True,
        tokens: str = "exact",
    ) -> Prepared:
        """The spec translated, checked and quoted once for each backend, and each of its files read once;
        `submit` takes it. Offline.

        `gpu_hours` is what an RFT job is taken to need. Without `checked` the files are counted for
        the quotes only, and the test file is not read. `tokens`: `exact`, `sampled` (its interval is within
        the low and the high price, by which limits are checked) or `none`: no price. Raises `DataError` for a
        file that cannot be read.
        """
        self._known(spec)
        backends = [self.provider(name) for name in self.backends(provider)]
        return prepare(spec, backends, self._terms(gpu_hours, checked, tokens))

    def plan(
        self, spec: JobSpec, provider: Backends = "all", *, measured: bool = False
    ) -> Listing[Translation]:
        """What each setting becomes on each backend; what cannot be kept is refused in the result. Offline.

        No file is read, unless `measured`: then the memory that training takes is that of the longest row of
        data that can be read, where there is such a plan.
        """
        self._known(spec)
        terms, found = self._terms(), Listing[Translation]()
        for name in self.backends(provider):
            own, translation = translated(self.provider(name), spec, terms)
            if measured and translation.memory is not None:
                with suppress(DataError):
                    plan = capability(self.provider(name), PlansTraining).memory(
                        own, self.data(spec, name), translation
                    )
                    translation = replace(translation, memory=plan)
            found.append(translation)
        return found

    def check(self, spec: JobSpec, provider: Backends = "all") -> Listing[Problem]:
        """Every reason for which one of the backends would refuse, each naming the backends. Offline."""
        return self.prepare(spec, provider).problems

    def quote(
        self,
        spec: JobSpec,
        provider: Backends = "all",
        *,
        gpu_hours: Decimal | None = None,
        tokens: str = "exact",
    ) -> Listing[Quote]:
        """One quote for each backend, cheapest first, those of jobs that would be refused and those without a
        price last. `tokens` as in `prepare`. Offline."""
        return self.prepare(spec, provider, gpu_hours=gpu_hours, checked=False, tokens=tokens).quotes

    # -- spending -------------------------------------------------------------------------------------------

    def submit(  # noqa: PLR0913  each is a wish of its own
        self,
        spec: JobSpec | Prepared,
        provider: str,
        *,
        max_cost_usd: Decimal | float | str | None = None,
        strict: bool = False,
        idempotency_key: str | None = None,
        again: bool = False,
        patient: bool = False,
        agree: Callable[[Quote], bool] | None = None,
        progress: Progress | None = None,
    ) -> RunHandle:
        """Checks, quotes, uploads and creates exactly one job on one backend, and returns its run.

        What `prepare` gave is not checked and quoted again; a file that has changed since then is refused
        with `DataError`. `strict` refuses every setting that would not be kept or exactly mapped.

        `idempotency_key` is the caller's own: the same key is the same run for ever, in every process of this
        store, and its run is returned however it stands. Where a run that is the same is open, or has
        succeeded within a day, `AlreadySubmitted` names it, unless `again`. What a busy host did not take
        stays unsent where it is `patient`, and the next call with its key goes on with it. `agree` is asked
        when the host's own estimate is above the quote's high end and no limit allows it; without it that is
        refused.

        Raises `TranslationRefused`, `DataError`, `OverBudget`, `KeyTaken` before anything is sent;
        `OutcomeUnknown` when the answer to the create request was lost (the run stays in the store; `sync`
        settles it); `ProviderError` when the host refused.
        """
        from orchestrate.service.training import submission

        [name] = self.backends(provider)
        if not isinstance(spec, Prepared):
            self.require(spec, name)  # before the data are read
        prepared = spec if isinstance(spec, Prepared) else self.prepare(spec, name)
        limit = amount(max_cost_usd, "max_cost_usd")
        key = idempotency_key
        asked = submission.of(self, prepared, name, key=key, limit_usd=limit, again=again, patient=patient)
        return submission.send(self, prepared, name, asked, strict=strict, agree=agree, progress=progress)

    def earlier(
        self, prepared: Prepared, provider: Backends, *, idempotency_key: str | None = None
    ) -> list[Earlier]:
        """What a submit to each of these backends would find in the store. Raises `KeyTaken`."""
        from orchestrate.preparing import earlier

        return earlier.found(self, prepared, self.backends(provider), idempotency_key)

    def require(self, spec: JobSpec, provider: Backends) -> None:
        """What can be said before the data are read. Raises `Unsupported` for a method that a backend does
        not offer, and `MissingKey`."""
        from orchestrate.spec import method_word

        self._known(spec)
        for name in self.backends(provider):
            self.provider(name).require(Feature(method_word(spec.on(name).method)))
            self.ready(name)

    def preflight(
        self,
        prepared: Prepared,
        provider: Backends,
        *,
        strict: bool = False,
        max_cost_usd: Decimal | None = None,
        max_cost_each_usd: Decimal | None = None,
    ) -> dict[str, Decimal | None]:
        """All that `submit` checks before it sends anything, for backends to which the spec is about to be
        submitted one after the other: the budget and `max_cost_usd` (default: the spec's) must hold for all
        of them together. Gives the limit of each, which together keep within it. Raises as `submit` does."""
        from orchestrate.service.training.submission import limits

        names = self.backends(provider)
        return limits(
            self, prepared, names, strict=strict, max_cost_usd=max_cost_usd, each_usd=max_cost_each_usd
        )

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunHandle:
        """A run by its id, the beginning of one, or `last`. Raises `UsageError` when none or several fit."""
        return self._handle(self.store.runs.get(run_id, sandboxes=self.settings.hosts.sandboxed))

    def runs(
        self,
        *,
        provider: str | None = None,
        status: JobStatus | None = None,
        limit: int = 100,
        sandbox: bool | None = None,
    ) -> Listing[RunHandle]:
        """Newest first. `sandbox` asks for the runs of sandboxes, or for the others; by default there are
        none of a sandbox, unless the keys at hand are one's."""
        wanted = [status] if status else None
        scope = self._opened.scope if sandbox is None else sandbox
        found = self.store.runs.matching(provider=provider, status=wanted, limit=limit, sandbox=scope)
        return Listing(self._handle(record) for record in found)

    def active_runs(self) -> Listing[RunHandle]:
        """Those that have not ended, newest first; of a sandbox as with `runs`."""
        return Listing(map(self._handle, self.store.runs.matching(active=True, sandbox=self._opened.scope)))

    def home_of(self, record: Run) -> Orchestrator:
        """Where the run's backends are: here, or in its sandbox."""
        if not record.sandbox:
            return self
        from orchestrate.service.setup.sandbox import Inside

        if record.host not in self._inside:
            self._inside[record.host] = Orchestrator(Inside(self._opened, record.host))
        return self._inside[record.host]

    def _handle(self, record: Run) -> RunHandle:
        return RunHandle(self.home_of(record), record)

    def spending(
        self,
        by: str | Sequence[str] = "backend",
        *,
        month: str | None = None,
        sandbox: bool = False,
        offline: bool = False,
        ignore: Sequence[str] = (),
    ) -> SpendingReport:
        """What was spent, what is committed, what is left of the budget, and by asking every configured
        account what bills or could, made from here or not. `by`: one or more of
        `orchestrate.spending.accounts.BY`, or `tag:NAME`; `month` as `2026-11`. `sandbox` reports the
        sandboxes' play money instead. `offline` asks no host. `ignore` has the ids (or their last parts) or
        names of deployments that are meant to stand and are not idle. What could not be asked is told in
        the report; raises `UsageError` for an unknown month or grouping."""
        from orchestrate.providers import registry
        from orchestrate.spending.accounts import Spender

        names = registry.names(self.settings)  # the report says of a broken one that it was not asked
        spender = Spender(self.store, names, self.provider, self.ready, self.settings.budget_usd)
        wanted = (by,) if isinstance(by, str) else by
        return spender.report(wanted, month=month, sandbox=sandbox, offline=offline, ignore=ignore)

    def orphans(self, *, sandbox: bool = False) -> OrphanReport:
        """What bills under our mark and no run and no deployment of this store accounts for. It may be
        another store's with the same accounts."""
        from orchestrate.spending.orphans import Orphans

        return Orphans(self.store, self.provider).among(self.spending(sandbox=sandbox))

    def end_orphans(
        self, report: OrphanReport, tell: Callable[[Orphan], object] | None = None
    ) -> OrphanReport:
        """Ends what `orphans` listed; `tell` is called for each."""
        from orchestrate.spending.orphans import Orphans

        return Orphans(self.store, self.ready).end(report, tell)

    def deployments(self, *, over: bool | None = False) -> Listing[DeploymentHandle]:
        """Newest first, as last seen: those that are not over; with `None` all. `sync` brings them up to
        date."""
        return Listing(
            DeploymentHandle(self, record) for record in self.store.deployments.matching(over=over)
        )

    def sync(self) -> SyncReport:
        """Brings all runs up to date by sweeping the hosts' lists, and settles lost answers."""
        from orchestrate.tracking import sync

        with work("asking the hosts about the runs"):
            return sync(self.store, self.ready, bill=self.bill, sandboxes=self.settings.hosts.sandboxed)

    def bill(self, run: Run, job: Job) -> Bill | None:
        """What a run cost, or has cost so far, from the best source at hand; `None` when nothing is known."""
        from orchestrate.costing import bill_run

        backend, now = self.provider(run.provider), self.store.clock.now()
        return bill_run(run, job, profile=backend.profile, prices=backend.prices, book=self.rates, now=now)

    # -- inside ---------------------------------------------------------------------------------------------

    def _terms(self, hours: Decimal | None = None, checked: bool = True, count: str = "exact") -> Terms:
        from orchestrate.preparing.prepared import counted_from
        from orchestrate.service.training.continuation import continued

        known, counted = partial(continued, self), counted_from(count)
        return Terms(self.settings, lambda: self.rates, known, hours, checked, counted)

    def _known(self, spec: JobSpec) -> None:
        """Raises `SpecError` when a part of the spec is for an unknown backend."""
        from orchestrate.providers import registry
        from orchestrate.spec import specfile

        specfile.require_backends(spec, registry.known(self.settings))
