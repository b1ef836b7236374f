"""Orchestrator: the public Python API.

    with Orchestrator() as ft:
        run = ft.submit(spec, provider="together", max_cost_usd=25)
        run.wait(on_event=print)

Methods raise the exceptions in `orchestrate.errors` and never print.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from orchestrate.api.run import RunHandle
from orchestrate.core.underway import work
from orchestrate.runs.hosting.deployment import DeploymentHandle
from orchestrate.types import Evaluation, JobStatus, Listing, Problem, Quote, Rating, Run, Translation
from orchestrate.workspace import Backends as Backends
from orchestrate.workspace import Workspace, scope_of

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrate.catalog import Model
    from orchestrate.costing import Ownership
    from orchestrate.data import TrainingData
    from orchestrate.evaluation.judges.calibration import Calibration, JudgeReport
    from orchestrate.evaluation.regression import Regression
    from orchestrate.evaluation.review.results import ReviewResult
    from orchestrate.evaluation.review.session import ReviewSession
    from orchestrate.providers.base import Progress
    from orchestrate.reports import Comparison
    from orchestrate.reports.advice import Advice, Needs
    from orchestrate.runs.preparing.earlier import Earlier
    from orchestrate.runs.preparing.prepared import Prepared
    from orchestrate.runs.spending import SpendingReport
    from orchestrate.runs.spending.orphans import Orphan, OrphanReport
    from orchestrate.runs.sweep.suggestions import Suggestion
    from orchestrate.runs.syncing.sweep import SyncReport
    from orchestrate.sessions.session import TrainingSession
    from orchestrate.setup.backends import ModelChanges
    from orchestrate.spec import JobSpec, SpecGiven


def _spec(given: SpecGiven) -> JobSpec:
    from orchestrate.spec import JobSpec

    return JobSpec.of(given)


class Orchestrator(Workspace):
    """Main entry point: gives access to all configured backends and to the runs in one store. Use it as a
    context manager.

    Creates the home folder if it does not exist, and opens the store and backends when first needed. Every
    method that takes a spec also accepts the path of a spec file or a mapping with its values.
    """

    # -- choosing -------------------------------------------------------------------------------------------

    def models(self, query: str = "", provider: str | None = None) -> Listing[Model]:
        """List the base models whose names contain every word of `query`. With `provider`, list only the
        models it offers. Works offline. Raises `UsageError` for an unknown provider."""
        from orchestrate import catalog

        if provider is not None:
            self.backends(provider)
        return Listing(catalog.search(query, None if provider is None else self.settings.host(provider).kind))

    def model_changes(self, provider: Backends = "all") -> ModelChanges:
        """List the differences between the built-in catalog and the models, limits and shutdown dates that
        the hosts report."""
        from orchestrate.setup import backends

        return backends.changes(self, provider)

    def advise(
        self,
        file: str | Path,
        needs: Needs | None = None,
        totals: Sequence[Ownership] = (),
        *,
        columns: Mapping[str, str] | None = None,
    ) -> Advice:
        """Recommend prompting, few-shot, retrieval or tuning, and give the reasons. The advice is based on
        examples of the task and on your needs (`orchestrate.runs.preparing.advice.Needs`). Pass `totals` from
        `pricing.ownership` to include costs. `columns` maps fields to the file's columns. Works offline.
        Raises `DataError` for a file that cannot be read."""
        from orchestrate.runs.preparing import advice

        return advice.advise(self, file, needs or advice.Needs(), totals, columns=columns)

    # -- before spending ------------------------------------------------------------------------------------

    def data(self, spec: SpecGiven, provider: Backends = ()) -> TrainingData:
        """Return the spec's training and validation data, with token counts for these backends. Reads each
        file once. Raises `DataError` for a file that cannot be read."""
        from orchestrate.runs.preparing import prepared

        return prepared.training_data(self, _spec(spec), provider)

    def prepare(
        self,
        spec: SpecGiven,
        provider: Backends = "all",
        *,
        gpu_hours: Decimal | None = None,
        checked: bool = True,
        tokens: str = "exact",
    ) -> Prepared:
        """Translate, check and quote the spec for each backend, reading each file once. Pass the result to
        `submit`. Works offline. Raises `DataError` for a file that cannot be read.

        `gpu_hours` is the assumed duration of an RFT job. `checked=False` skips checks that quotes don't
        need, and does not read the test file. `tokens` selects how tokens are counted:

        - `exact`: count every row
        - `sampled`: count a sample, and check limits against a price range that covers the sampling error
        - `none`: no count, and therefore no price
        """
        from orchestrate.runs.preparing import prepared

        asked = _spec(spec)
        return prepared.prepare(self, asked, provider, gpu_hours=gpu_hours, checked=checked, tokens=tokens)

    def plan(
        self, spec: SpecGiven, provider: Backends = "all", *, measured: bool = False
    ) -> Listing[Translation]:
        """Show how each setting is translated for each backend. Unsupported settings are marked as refused.
        Works offline.

        Reads no files by default. With `measured`, reads the data if possible, and estimates memory use for
        the longest row on backends that support this.
        """
        from orchestrate.runs.preparing import prepared

        return prepared.plan(self, _spec(spec), provider, measured=measured)

    def suggest(self, spec: SpecGiven, provider: Backends = "all") -> list[Suggestion]:
        """Suggest a rank, alpha, learning rate, number of epochs and batch size on each backend for the
        spec's rows and model. Each value comes with a reason and a source. Reads the data. Works offline.
        Raises `DataError` for a file that cannot be read."""
        from orchestrate.runs.sweep import suggestions

        return suggestions.suggest(self, _spec(spec), provider)

    def check(self, spec: SpecGiven, provider: Backends = "all") -> Listing[Problem]:
        """List every reason why a backend would reject the spec or its data. Each entry names the affected
        backends. Works offline."""
        return self.prepare(spec, provider).problems

    def quote(
        self,
        spec: SpecGiven,
        provider: Backends = "all",
        *,
        gpu_hours: Decimal | None = None,
        tokens: str = "exact",
    ) -> Listing[Quote]:
        """Quote the spec on each backend, cheapest first. Jobs that would be rejected and quotes without a
        price come last. `tokens` is the same as in `prepare`. Works offline."""
        return self.prepare(spec, provider, gpu_hours=gpu_hours, checked=False, tokens=tokens).quotes

    # -- spending -------------------------------------------------------------------------------------------

    def submit(  # noqa: PLR0913  each is a separate option
        self,
        spec: SpecGiven | Prepared,
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
        """Check, quote, upload and create exactly one job on one backend, and return its run.

        Pass a result of `prepare` to skip checking and quoting. If a file has changed since then, the call
        raises `DataError`. `strict` rejects every setting that the backend can't apply exactly.

        `idempotency_key` is a string you choose. It identifies one run for every process that uses this
        store: a second call with the same key returns the existing run, whatever its state. If an identical
        run is still open, or was created in the last 24 hours and succeeded, the call raises
        `AlreadySubmitted` unless `again` is set. With `patient`, the run stays pending if the host is too
        busy to accept the job. The next call with the same key tries again. `agree` is called if the host's
        own estimate is above the quote's high end and the run has no cost limit. The job is created only if
        `agree` returns True. If `agree` is not set, the job is rejected.

        Raises `TranslationRefused`, `DataError`, `OverBudget` or `KeyTaken` before anything is sent. Raises
        `OutcomeUnknown` if the response to the create request was lost (the run stays in the store, and
        `sync` resolves it), and `ProviderError` if the host rejected the job.
        """
        from orchestrate.runs import submit as submission
        from orchestrate.runs.preparing.prepared import Prepared

        record = submission.submit(
            self,
            spec if isinstance(spec, Prepared) else _spec(spec),
            provider,
            max_cost_usd=max_cost_usd,
            strict=strict,
            idempotency_key=idempotency_key,
            again=again,
            patient=patient,
            agree=agree,
            progress=progress,
        )
        return RunHandle(self, record)

    def session(
        self,
        model: str | None = None,
        *,
        provider: str = "local",
        lora: Mapping[str, Any] | int | None = None,
        max_cost_usd: Decimal | float | str | None = None,
        idle_minutes: Decimal | float | str | None = None,
        resume: RunHandle | str | None = None,
        tags: Mapping[str, str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> TrainingSession:
        """Open a training session, in which your own training loop trains `model` step by step. Use it as a
        context manager.

        `lora` is a rank, or a mapping with rank, seed, train_mlp, train_attn and train_unembed. The session
        is saved and paused once it has cost `max_cost_usd`, or after `idle_minutes` without a request.
        `resume=RUN` continues an earlier session from its last checkpoint, even after a crash. `options` are
        specific to the backend. The local backend accepts threads, device, precision and four_bit. Raises
        `OverBudget` before anything is sent. Errors while loading the model propagate."""
        from orchestrate.sessions.session import open_session

        return open_session(
            self,
            model,
            provider=provider,
            lora=lora,
            max_cost_usd=max_cost_usd,
            idle_minutes=idle_minutes,
            resume=resume.id if isinstance(resume, RunHandle) else resume,
            tags=tags,
            options=options,
        )

    def rerun(
        self,
        run: RunHandle | str,
        provider: str | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        other_data: bool = False,
        **terms: Any,
    ) -> RunHandle:
        """Repeat a finished run from its stored spec, on its backend or another one. `settings` maps dotted
        names of spec fields to the values that replace them. A sandbox run is repeated in its sandbox.
        `terms` are passed to `submit`. Raises `DataError` if the data's digest doesn't match the run's,
        unless `other_data` is set, and the same errors as `submit`."""
        from orchestrate.runs import rerun

        record = self.record(run) if isinstance(run, str) else run.record
        made = rerun.rerun(self, record, provider, settings=settings, other_data=other_data, **terms)
        return RunHandle(self.home_of(record), made)

    def earlier(
        self, prepared: Prepared, provider: Backends, *, idempotency_key: str | None = None
    ) -> list[Earlier]:
        """Find the runs that would block a new submit: for each backend, the run with this idempotency key
        and any identical run. Raises `KeyTaken` if `idempotency_key` belongs to a different run."""
        from orchestrate.runs.preparing import earlier

        return earlier.found(self, prepared, provider, idempotency_key)

    def require(self, spec: SpecGiven, provider: Backends) -> None:
        """Run the checks that don't need the data. Raises `Unsupported` for a method that a backend does not
        offer, and `MissingKey` if a backend's API key is missing."""
        from orchestrate.runs.preparing import prepared

        prepared.require(self, _spec(spec), provider)

    def preflight(
        self,
        prepared: Prepared,
        provider: Backends,
        *,
        strict: bool = False,
        max_cost_usd: Decimal | None = None,
        max_cost_each_usd: Decimal | None = None,
        continued: Mapping[str, Run] | None = None,
    ) -> dict[str, Decimal | None]:
        """Run all checks of `submit` for these backends without sending anything. The budget and
        `max_cost_usd` (default: the spec's) must cover the jobs on all backends together. Returns a cost
        limit for each backend. The limits add up to at most `max_cost_usd`. `continued` contains, by backend,
        runs without a job that the submit continues: the budget does not count their reservation twice.
        Raises the same errors as `submit`."""
        from orchestrate.runs import submit as submission

        return submission.preflight(
            self,
            prepared,
            provider,
            strict=strict,
            max_cost_usd=max_cost_usd,
            max_cost_each_usd=max_cost_each_usd,
            continued=continued,
        )

    # -- runs -----------------------------------------------------------------------------------------------

    def run(self, run_id: str) -> RunHandle:
        """Return a run by its id, the start of its id, or `last`. Raises `UsageError` if none or several
        match."""
        return self._handle(self.record(run_id))

    def runs(  # noqa: PLR0913  each is a filter of its own
        self,
        *,
        provider: str | None = None,
        status: JobStatus | str | None = None,
        limit: int = 100,
        sandbox: bool | None = None,
        search: str = "",
        model: str = "",
        tag: str = "",
        archived: bool | None = None,
        sort: str = "-created",
        after: str = "",
    ) -> Listing[RunHandle]:
        """List runs, newest first. The database filters and sorts them.

        `sandbox` selects only sandbox runs (`True`) or only real runs (`False`). By default, sandbox runs are
        listed only if the current API keys belong to a sandbox. `search` matches words in a run's id, name,
        note or tags. `model` matches part of the model's name. `tag` is `NAME` or `NAME=VALUE`. `archived`
        selects only archived runs (`True`) or only runs that are not archived (`False`). `sort` is created,
        name, backend, model, status, cost, updated, loss, spec.NAME or tag.NAME. A leading `-` sorts in
        descending order. `after` is the id of the last run of the previous page. Raises `UsageError` for an
        unknown status or sort key.
        """
        from orchestrate.store.run_lists import RunQuery

        query = RunQuery(
            words=search,
            provider=provider or "",
            status=status or "",
            model=model,
            tag=tag,
            sandbox=scope_of(self.settings) if sandbox is None else sandbox,
            archived=archived,
            sort=sort,
        )
        found = self.store.listing.page(query, limit=limit, after=after)
        return Listing(self._handle(record) for record in found)

    def active_runs(self) -> Listing[RunHandle]:
        """Return the runs that have not ended, newest first. Includes sandbox runs only if the current API
        keys belong to a sandbox."""
        return Listing(
            map(self._handle, self.store.runs.matching(active=True, sandbox=scope_of(self.settings)))
        )

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
        patience_s: float | None = None,
    ) -> SpendingReport:
        """Report the spent, committed and remaining budget, and query every configured account for resources
        that are still billed, no matter who created them. `by` groups by one or more of
        `orchestrate.runs.spending.BY`, or by `tag:NAME`. `month` is written as `2026-11`. `sandbox`
        reports the simulated spending of the sandboxes instead. `offline` queries no host. `ignore` lists
        deployments that should stay up and don't count as idle, by name, id or last part of the id. Accounts
        that could not be queried, or that did not answer within `patience_s` seconds, are listed in the
        report. Raises `UsageError` for an invalid month or an unknown grouping."""
        from orchestrate.providers import registry
        from orchestrate.runs.spending import Spender

        names = registry.names(self.settings)  # the report says of a broken one that it was not asked
        spender = Spender(self.store, names, self.provider, self.ready, self.settings.budget_usd)
        wanted = (by,) if isinstance(by, str) else by
        return spender.report(
            wanted, month=month, sandbox=sandbox, offline=offline, ignore=ignore, patience_s=patience_s
        )

    def orphans(self, *, sandbox: bool = False) -> OrphanReport:
        """List billed resources that Orchestrate created but that belong to no run or deployment in this
        store. They may belong to another store that uses the same accounts."""
        from orchestrate.runs.spending.orphans import Orphans

        return Orphans(self.store, self.provider).among(self.spending(sandbox=sandbox))

    def end_orphans(
        self, report: OrphanReport, tell: Callable[[Orphan], object] | None = None
    ) -> OrphanReport:
        """Shut down the resources in a report from `orphans`. Calls `tell` with each result."""
        from orchestrate.runs.spending.orphans import Orphans

        return Orphans(self.store, self.ready).end(report, tell)

    def deployments(self, *, over: bool | None = False) -> Listing[DeploymentHandle]:
        """List deployments in their last known state, newest first. `over=True` lists only ended deployments,
        `over=False` only deployments that have not ended, and `None` all. To get the current state, call
        `sync` first."""
        return Listing(
            DeploymentHandle(self, record) for record in self.store.deployments.matching(over=over)
        )

    def sync(self, *, cancel_stalled: bool = False) -> SyncReport:
        """Update all runs from the hosts' job lists, and resolve requests whose response was lost."""
        from orchestrate.runs.syncing.sweep import sync

        with work("querying the hosts for runs"):
            return sync(
                self.store,
                self.ready,
                bill=self.bill,
                sandboxes=self.settings.hosts.sandboxed,
                stalled_after_s=self.settings.stalled_after_s,
                cancel_stalled=cancel_stalled,
            )

    # -- evaluation -----------------------------------------------------------------------------------------

    def compare(self, runs: Iterable[RunHandle | Run | str]) -> Comparison:
        """Compare runs side by side. `.save("report.html")` writes the comparison as HTML, Markdown, CSV or
        JSON, depending on the file's extension."""
        from orchestrate.runs.evaluation.comparison import compare

        return compare(self, [run if isinstance(run, Run | str) else run.record for run in runs])

    def evaluate(
        self,
        runs: Sequence[RunHandle | str],
        test: str | Path | None = None,
        *,
        metrics: Sequence[str] = ("auto",),
        **order: Any,
    ) -> Evaluation:
        """Evaluate and compare runs (`RUN` or `RUN@CHECKPOINT`), their base models and other models on
        held-out rows. The result is stored with the runs. `order` contains the other fields of
        `orchestrate.runs.evaluation.held_out.EvaluationOrder`."""
        from orchestrate.runs.evaluation.held_out import EvaluationOrder, evaluate_runs

        return evaluate_runs(self, runs, EvaluationOrder(test=test, metrics=metrics, **order))

    def evaluations(self, run_id: str) -> Listing[Evaluation]:
        """Return the evaluations of one run, oldest first. Their verdicts also use later results, such as
        reviews and regression tests."""
        found = self.store.history.evaluations(run_id)
        if found:  # without one, `show` saves a third of its time
            from orchestrate.runs.evaluation import verdicts

            found = verdicts.joined(self, found)
        return Listing(found)

    def regress(self, run: RunHandle | str, **order: Any) -> Regression:
        """Test which of the base model's abilities a tuned model kept or lost, and store the result with the
        run. `order` contains the fields of `orchestrate.runs.evaluation.regression.RegressionOrder`."""
        from orchestrate.runs.evaluation.regression import PreparedRegression, RegressionOrder

        with PreparedRegression(self, run, RegressionOrder(**order)) as prepared:
            return prepared.run()

    def judge(
        self,
        file: str | Path,
        model: str,
        output: str | Path | None = None,
        *,
        keep: float = 0.8,
        **terms: Any,
    ) -> JudgeReport:
        """Rate training rows with a judge model and split them by score. Rows with a score of at least `keep`
        (0 to 1) are written to `output`. The other rows are written to a second file next to it. `terms`
        contains the other fields of `orchestrate.runs.evaluation.judges.JudgeTerms`, such as `rubric`.
        Raises `UsageError` if the judge was never calibrated against human ratings, `DataError` if its
        agreement with the human ratings is too low, and `OverBudget` if the next request could exceed the
        cost limit or the budget."""
        from orchestrate.runs import data
        from orchestrate.runs.evaluation import judges

        target = data.beside(str(file), "judged.jsonl") if output is None else Path(output)
        asked = judges.JudgeTerms(model=model, **terms)
        with judges.prepared(self, str(file), target, asked, keep=keep) as prepared:
            return prepared.run()

    def calibrate(self, model: str, rated: str | Path, **terms: Any) -> Calibration:
        """Calibrate a judge against human ratings, from a file or a review id, and store how well it agrees
        with them. If the judge can't be used, the result's `unfit` field says why. `terms` is the same as for
        `judge`."""
        from orchestrate.runs.evaluation import judges

        return judges.calibrated(self, judges.JudgeTerms(model=model, rated=str(rated), **terms))

    def review(self, runs: Sequence[RunHandle | str] | str = (), **order: Any) -> ReviewSession:
        """Open a review in which human raters compare the answers of these runs. With `evaluation`, they rate
        the answers of the evaluation with this id. Creates the review if it does not exist. To reopen a
        specific review, pass its id instead of runs. `orchestrate.runs.evaluation.reviews.serving` serves
        the rating page. `order` contains the fields of `orchestrate.runs.evaluation.reviews.ReviewOrder`.
        """
        from orchestrate.runs.evaluation import reviews

        names = [runs] if isinstance(runs, str) else [r if isinstance(r, str) else r.id for r in runs]
        return reviews.opened(self, names, reviews.ReviewOrder(**order))

    def rate(self, review: str, ratings: Sequence[Rating]) -> int:
        """Import ratings into a review and return how many were added. If any rating does not belong to the
        review, raises `UsageError` and imports none."""
        from orchestrate.runs.evaluation import reviews

        return reviews.record(self, reviews.opened(self, [review]), ratings)

    def rated(self, review: str) -> ReviewResult:
        """Summarize a review's ratings so far: preferences with intervals, agreement and notes."""
        from orchestrate.runs.evaluation import reviews

        return reviews.result(self, reviews.opened(self, [review]))
