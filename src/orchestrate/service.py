"""Orchestrator: the only joiner of the rooms, and the public Python API.

    with Orchestrator() as ft:
        run = ft.submit(spec, provider="together", max_cost_usd=25)
        run.wait(on_event=print)

Errors are those of `orchestrate.errors`. Nothing here prints.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Self

from orchestrate.errors import (
    DataError,
    MissingExtra,
    OrchestrateError,
    SpecError,
    TranslationRefused,
    UsageError,
)
from orchestrate.handle import RunHandle
from orchestrate.types import (
    Bill,
    EvaluationResult,
    Feature,
    Job,
    JobStatus,
    Outcome,
    Problem,
    Quote,
    Run,
    Setting,
    Severity,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.config import Settings
    from orchestrate.costing import RateBook
    from orchestrate.data import TrainingData
    from orchestrate.providers.base import Progress, Provider
    from orchestrate.reports import Comparison
    from orchestrate.spec import JobSpec
    from orchestrate.tracking import Store, SyncReport

Backends = str | Sequence[str]
"""`"all"`, one name, names joined by commas, or a sequence of names."""


class Orchestrator:
    """All backends and all runs of one store. Makes the home folder when there is none, and opens nothing
    until it is needed; use as a context manager."""

    def __init__(self, settings: Settings | None = None) -> None:
        """`settings` default to `orchestrate.config.load()`. Raises `ConfigError`."""
        if settings is None:
            from orchestrate import config

            settings = config.load()
        self.settings = settings
        self.settings.make_home()
        self._providers: dict[str, Provider] = {}
        self._opened: Store | None = None
        self.gpu_hours: Decimal | None = None
        """What quotes take an RFT job to need, which no host says beforehand."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of connections and the store. Runs go on: they do not live in this process."""
        for provider in self._providers.values():
            provider.close()
        self._providers.clear()
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    @property
    def store(self) -> Store:
        """Raises `StoreError` when the store cannot be used as it is."""
        if self._opened is None:
            from orchestrate.tracking import Store

            self._opened = Store.open(self.settings.store_url)
        return self._opened

    @cached_property
    def rates(self) -> RateBook:
        """The prices that quotes and bills take: built in, under the `rates.yaml` of the home folder and of
        the project. Assign to lay others over them. Raises `ConfigError`."""
        from orchestrate.costing import user_book

        project = [self.settings.config_file.parent] if self.settings.config_file else []
        return user_book([self.settings.home, *project])

    # -- backends -------------------------------------------------------------------------------------------

    def backends(self, wanted: Backends = "all") -> list[str]:
        """The names asked for. Raises `UsageError` for an unknown one."""
        from orchestrate.providers import registry

        known = registry.names(self.settings)
        if wanted == "all":
            return known
        names = [n.strip() for n in (wanted.split(",") if isinstance(wanted, str) else wanted) if n.strip()]
        if unknown := [n for n in names if n not in known]:
            raise UsageError(
                f"no backend is called {unknown[0]!r}; known: {', '.join(known)}", fix="orchestrate providers"
            )
        if not names:
            raise UsageError(f"name a backend; known: {', '.join(known)}")
        return list(dict.fromkeys(names))

    def provider(self, name: str) -> Provider:
        """The backend, ready to use; nothing is sent yet."""
        if name not in self._providers:
            from orchestrate.providers import registry

            self._providers[name] = registry.make(name, self.settings)
        return self._providers[name]

    def ready(self, name: str) -> Provider:
        """The backend, when the key that it needs is there. Raises `MissingKey`."""
        from orchestrate.config import DEFAULT_URLS

        host = self.settings.host(name)
        if (host.type or name) in DEFAULT_URLS:
            host.require_key()
        return self.provider(name)

    # -- before spending ------------------------------------------------------------------------------------

    def data(self, spec: JobSpec, provider: Backends = ()) -> TrainingData:
        """The spec's files, read and checked once, and counted in the same pass for these backends. Raises
        `DataError` for what cannot be read."""
        from orchestrate.data import TrainingData

        return TrainingData.open(
            spec.train,
            spec.validation,
            tokenizers=self._tokenizers(spec, self.backends(provider) if provider else ()),
            memory=self.settings.home / "counts",
        )

    def plan(self, spec: JobSpec, provider: Backends = "all") -> list[Translation]:
        """What each setting becomes on each backend; what cannot be kept is refused in the result.
        Offline."""
        self._known(spec)
        return [self._translation(spec, name) for name in self.backends(provider)]

    def check(self, spec: JobSpec, provider: Backends = "all") -> list[Problem]:
        """Every reason for which one of the backends would refuse, each naming the backends. Offline."""
        self._known(spec)
        names = self.backends(provider)
        data = self.data(spec, names)
        found = [p for name in names for p in self._check(spec, name, data, alone=len(names) == 1)]
        return _merged([*_check_files(spec), *found])

    def quote(self, spec: JobSpec, provider: Backends = "all") -> list[Quote]:
        """One quote for each backend, cheapest first, those without a price last. Offline."""
        self._known(spec)
        names = self.backends(provider)
        data = self.data(spec, names)
        quotes = [self._quote(spec, name, data, alone=len(names) == 1) for name in names]
        return sorted(quotes, key=lambda q: (q.unavailable is not None, q.expected_usd))

    # -- spending -------------------------------------------------------------------------------------------

    def submit(
        self,
        spec: JobSpec,
        provider: str,
        *,
        max_cost_usd: Decimal | float | str | None = None,
        strict: bool = False,
        progress: Progress | None = None,
    ) -> RunHandle:
        """Checks, quotes, uploads and creates exactly one job on one backend, and returns its run.

        `strict` refuses every setting that would not be kept or exactly mapped. Raises `TranslationRefused`,
        `DataError`, `OverBudget` before anything is sent; `OutcomeUnknown` when the answer to the create
        request was lost (the run is kept; `sync` settles it); `ProviderError` when the host refused.
        """
        from orchestrate import specfile
        from orchestrate.tracking.submit import submit

        [name] = self.backends(provider)
        if max_cost_usd is not None:
            spec = spec.model_copy(update={"max_cost_usd": Decimal(str(max_cost_usd))})
        self._known(spec)
        spec = self._continued(specfile.anchored(spec.on(name)), name)
        quote, data = self.preflight(spec, name, strict=strict)
        run = submit(
            self.store,
            self.provider(name),
            spec,
            data,
            quote=quote,
            max_cost_usd=spec.max_cost_usd,
            budget_usd=self.settings.budget_usd,
            progress=progress,
        )
        return RunHandle(self, run)

    def preflight(
        self, spec: JobSpec, provider: str, *, strict: bool = False, beside: Sequence[Quote] = ()
    ) -> tuple[Quote, TrainingData]:
        """All that `submit` checks before it sends anything. Raises as `submit` does. `beside` are the quotes
        of other backends that the spec is about to be submitted to: the budget must hold for all of them."""
        from orchestrate.costing import check_budget
        from orchestrate.spec import method_word

        self._known(spec)
        spec = spec.on(provider)
        self.provider(provider).require(Feature(method_word(spec.method)))
        self.ready(provider)
        data = self.data(spec, provider)
        translation = self._translation(spec, provider)
        refused = translation.inexact if strict else translation.refused
        if refused:
            raise TranslationRefused(provider, refused)
        found = [*_check_files(spec), *self._check(spec, provider, data)]
        problems = [p for p in _merged(found) if p.severity is Severity.ERROR]
        if problems:
            raise DataError(
                f"the data is not fit for {provider}: {len(problems)} error(s)",
                problems=problems,
                fix=f"orchestrate check --provider {provider}",
            )
        quote = self._quote(spec, provider, data)
        budget_usd = None if self.provider(provider).sandbox else self.settings.budget_usd
        used_usd = Decimal(0)
        if budget_usd is not None:
            others = [q.high_usd for q in beside if not self.provider(q.provider).sandbox]
            used_usd = sum(others, self.store.runs.spending().total_usd)
        check_budget(quote, max_cost_usd=spec.max_cost_usd, budget_usd=budget_usd, used_usd=used_usd)
        return quote, data

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunHandle:
        """A run by its id, the beginning of one, or `last`. Raises `UsageError` when none or several fit."""
        return RunHandle(self, self.store.runs.get(run_id))

    def runs(
        self, *, provider: str | None = None, status: JobStatus | None = None, limit: int = 100
    ) -> list[Run]:
        """Newest first."""
        return self.store.runs.matching(provider=provider, status=[status] if status else None, limit=limit)

    def active_runs(self) -> list[Run]:
        """Those that have not ended, newest first."""
        return self.store.runs.active()

    def sync(self) -> SyncReport:
        """Brings all runs up to date by sweeping the hosts' lists, and settles lost answers."""
        from orchestrate.tracking import sync

        return sync(self.store, self.ready, bill=self.bill)

    def bill(self, run: Run, job: Job) -> Bill | None:
        """What a run did cost, or has cost so far, from the best source that there is; `None` when nothing is
        known."""
        from orchestrate import costing

        prices = self.settings.host(run.provider).options.get("prices")
        return costing.bill_run(run, job, prices=prices, book=self.rates, now=self.store.clock.now())

    def compare(self, runs: Iterable[RunHandle | Run | str]) -> Comparison:
        """Runs side by side; `.save("report.html")` writes it, by the file's ending as html, md, csv or
        json."""
        from orchestrate import reports

        records = [self._record(r) for r in runs]
        metrics = {r.id: self.store.history.metrics(r.id) for r in records}
        evaluations = {r.id: self.evaluations(r.id) for r in records}
        sent = {r.id: found for r in records if (found := self._sent(r)) is not None}
        return reports.compare(records, metrics, evaluations, translations=sent)

    def evaluations(self, run_id: str) -> list[EvaluationResult]:
        """Those of one run, oldest first."""
        return self.store.history.evaluations(run_id)

    # -- inside ---------------------------------------------------------------------------------------------

    def _record(self, run: RunHandle | Run | str) -> Run:
        if isinstance(run, RunHandle):
            return run.record
        return self.store.runs.get(run) if isinstance(run, str) else run

    def _tokenizers(self, spec: JobSpec, names: Iterable[str]) -> list[str]:
        """Those with which these backends count, as far as the models are known."""
        from orchestrate import catalog, costing
        from orchestrate.data.tokens import counting

        found: dict[str, None] = {}
        for name in names:
            try:
                model = catalog.resolve(spec.on(name).model_for(name), self.settings.host(name).type or name)
                tokenizer = costing.tokenizer_for(model)
                counting.counter(tokenizer)
            except (SpecError, MissingExtra):
                continue  # that backend tells what it misses; the others can be counted
            found[tokenizer] = None
        return list(found)

    def _known(self, spec: JobSpec) -> None:
        """Raises `SpecError` when a part of the spec is for a backend that there is not."""
        from orchestrate import specfile

        specfile.require_backends(spec, self.backends())

    def _sent(self, run: Run) -> Translation | None:
        """What a run's settings became; `None` when its backend can no longer be made or tell."""
        from orchestrate.spec import JobSpec

        try:
            return self.provider(run.provider).translate(JobSpec.parse(run.spec))
        except OrchestrateError:
            return None

    def _translation(self, spec: JobSpec, name: str) -> Translation:
        try:
            return self.provider(name).translate(spec.on(name))
        except SpecError as error:
            row = Setting(name="model", asked=spec.model, outcome=Outcome.REFUSED, rule=error.message)
            return Translation(provider=name, model="", settings=(row,), body={})

    def _check(self, spec: JobSpec, name: str, data: TrainingData, *, alone: bool = True) -> list[Problem]:
        try:
            backend, own = self.provider(name), spec.on(name)
            return backend.check(own, data, backend.translate(own))
        except (SpecError, MissingExtra) as error:
            missing = isinstance(error, MissingExtra)
            if missing and alone:
                raise
            return [
                Problem(
                    code="missing-extra" if missing else "no-model",
                    message=error.message,
                    severity=Severity.ERROR,
                    providers=(name,),
                    fix=error.fix,
                )
            ]

    def _quote(self, spec: JobSpec, name: str, data: TrainingData, *, alone: bool = True) -> Quote:
        try:
            backend, own = self.provider(name), spec.on(name)
            return backend.quote(own, data, backend.translate(own), self.rates, gpu_hours=self.gpu_hours)
        except SpecError as error:
            return Quote(provider=name, model="", unavailable=error.message)
        except MissingExtra as error:
            if alone:
                raise
            model = spec.on(name).model_for(name)
            return Quote(provider=name, model=model, unavailable=f"{error.message}: {error.fix}")

    def _continued(self, spec: JobSpec, provider: str) -> JobSpec:
        """`continue_from` may name a run of this store: then its tuned model is what the backend is told."""
        if spec.continue_from is None or not self.store.runs.exists(spec.continue_from):
            return spec
        earlier = self.store.runs.get(spec.continue_from)
        if earlier.provider != provider:
            raise UsageError(
                f"run {earlier.id} was trained on {earlier.provider}; {provider} cannot go on from it",
                fix=f"submit to {earlier.provider}, or give a model that {provider} holds",
            )
        if earlier.status is not JobStatus.SUCCEEDED:
            raise UsageError(f"run {earlier.id} is {earlier.status}; only a finished run can be gone on from")
        return spec.model_copy(update={"continue_from": earlier.tuned_model or earlier.job_id})


def _check_files(spec: JobSpec) -> list[Problem]:
    """What is wrong with the files wherever they are sent: duplicates, and rows shared between the splits."""
    from orchestrate.data.operations import check as checking
    from orchestrate.spec import method_word

    named = {"train": spec.train, "validation": spec.validation, "test": spec.test}
    paths = {split: path for split, path in named.items() if path is not None}
    report = checking.check(paths, checking.Options(hosts=(), method=method_word(spec.method)))
    return list(report.problems)


def _merged(problems: Iterable[Problem]) -> list[Problem]:
    """The same problem of several backends becomes one that names them all."""
    by_place: dict[tuple[str, int | None, str | None, str, str | None], Problem] = {}
    for problem in problems:
        key = (problem.code, problem.row, problem.field, problem.message, problem.source)
        seen = by_place.get(key)
        if seen is None:
            by_place[key] = problem
        elif seen.providers and problem.providers:
            names = tuple(dict.fromkeys((*seen.providers, *problem.providers)))
            by_place[key] = Problem.from_dict(seen.to_dict() | {"providers": names})
        else:
            by_place[key] = Problem.from_dict(seen.to_dict() | {"providers": ()})
    return list(by_place.values())
