"""Bills: the cost of a run, its difference from the quote, and the accuracy of past quotes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from statistics import median
from typing import NamedTuple

import msgspec

from orchestrate.catalog import ModelOnHost
from orchestrate.costing.lines import MTOK, line, minimum_top_up, rounded
from orchestrate.costing.rate import FLAG, Rate
from orchestrate.costing.rates import Prices, RateBook, built_in
from orchestrate.costing.training import HourlyRate, training_methods, training_rate
from orchestrate.errors import SpecError
from orchestrate.profile import Profile
from orchestrate.spec import JobSpec
from orchestrate.types import SESSION, Bill, Confidence, Job, JobStatus, Quote, QuoteLine, Record, Run

_NOT_BILLED = "the host does not bill for this kind of failure"


def bill(
    job: Job,
    *,
    profile: Profile,
    spec: JobSpec,
    resolved: ModelOnHost,
    quote: Quote | None = None,
    hourly: HourlyRate | None = None,
    prices: Prices | None = None,
    now: datetime | None = None,
) -> Bill | None:
    """Compute the cost of a job from the best available source, or return `None` if it is not known yet.

    For a job that is billed hourly and has not ended, pass `now` to get the cost so far. This cost is not
    final, and it includes paused time unless the job's workers report their working time.

    A failed job costs nothing if its host does not bill for this kind of failure. For a job that ended early,
    only the share that the host bills is counted. The cost of a complete job comes from the first of these
    sources that is available:

    - the measured hours x `hourly`
    - the cost that the host reports (`job.cost_usd`)
    - the job's GPU-seconds or `trained_tokens` x the rate on the day the job was created, or the host's
      minimum per job if that is higher
    - the job's quote

    If a host reports prices (`profile.reports_price`), only the last cost that it reports is `final`.
    """
    ended = job.status.terminal
    if hourly is not None:
        return _by_hours(job, hourly, ended, now) or host_bill(job, final=ended)
    if job.handle.kind == SESSION and job.cost_usd is not None:
        return host_bill(job, final=ended)  # the session counted each request, however it ended
    if job.status is JobStatus.FAILED and profile.unbilled_failure(job):
        return Bill(usd=Decimal(0), origin=_NOT_BILLED)
    prices = prices or Prices(profile.kind)
    if job.created_at:
        prices = replace(prices, on=job.created_at.date())
    rates = _Rates(profile, spec, resolved, prices)
    early = job.early_stopped or job.status in (JobStatus.FAILED, JobStatus.CANCELLED)
    if early and profile.share_billed is not None:
        return _by_share(profile, job, host_bill(job, final=False) or rates.of_work(job) or _of_work(quote))
    reported = None if early else host_bill(job, final=False)
    if profile.figures_are_estimates and rates.own:
        reported = None  # the host estimates at its list price, which is not what this user pays
    computed = profile.figures_are_estimates or (profile.reports_price and reported is None)
    found, final = reported or rates.of_work(job), ended and not computed
    if not early and reported is None:
        if found is None and job.status is JobStatus.SUCCEEDED:
            # Estimate the bill, because budgets count a run without a bill at its quote's high end.
            found, final = _of_work(quote), False
        found = rates.at_least_the_minimum(found) if job.status is JobStatus.SUCCEEDED else found
    return None if found is None else msgspec.structs.replace(found, final=final)


class _Rates(NamedTuple):
    """Computes the cost of a job at the rates of its day."""

    profile: Profile
    spec: JobSpec
    resolved: ModelOnHost
    prices: Prices

    @property
    def own(self) -> bool:
        """True if the user set the price per token."""
        rate = training_rate(self.resolved, self.spec, self.profile, self.prices)
        return rate is not None and rate.own is not None

    def of_work(self, job: Job) -> Bill | None:
        return self.by_seconds(job) or self.by_tokens(job)

    def at_least_the_minimum(self, work: Bill | None) -> Bill | None:
        """Increase the cost of the work to the host's minimum per job. For a published range, its high
        end is used."""
        minimum = self.prices.of("minimum", self.resolved)
        if work is None or minimum is None:
            return work
        least = minimum.usd if minimum.usd_max is None else minimum.usd_max
        if not (extra := minimum_top_up(work.usd, least)):
            return work
        entry = line("minimum", Decimal(1), msgspec.structs.replace(minimum, usd_per_job=extra, usd_max=None))
        origin = f"{work.origin}, raised to the host's minimum per job"
        return Bill(usd=least, origin=origin, lines=(*work.lines, entry), final=work.final)

    def by_tokens(self, job: Job) -> Bill | None:
        if job.trained_tokens is None or job.trained_tokens < 0 or self.spec.method.type == "rft":
            return None
        rate = training_rate(self.resolved, self.spec, self.profile, self.prices)
        if rate is None or rate.usd_per_mtok is None:
            return None
        entry = line("training", job.trained_tokens / MTOK, rate)
        return Bill(usd=entry.usd, origin="trained_tokens x rate", lines=(entry,), final=False)

    def by_seconds(self, job: Job) -> Bill | None:
        lines: list[QuoteLine] = []
        factor = self.profile.hourly_factor(self.spec)
        for gpu, seconds in job.accelerator_seconds.items():
            rate = self.prices.of("rft", gpu=gpu)
            if rate is None or seconds < 0:
                return None
            lines.append(line("training", Decimal(seconds) / 3600 * factor, rate, note=gpu))
        if not lines:
            return None
        usd = sum((entry.usd for entry in lines), Decimal(0))
        return Bill(usd=usd, origin="GPU-seconds x rate", lines=tuple(lines), final=False)


def bill_run(
    run: Run,
    job: Job,
    *,
    profile: Profile,
    prices: str | None = None,
    book: RateBook | None = None,
    now: datetime | None = None,
) -> Bill | None:
    """Compute the bill of a tracked run. Uses the machine's hourly rate and any `--rate` prices as stored in
    the run's quote."""
    from orchestrate import catalog
    from orchestrate.spec import JobSpec

    try:
        spec = JobSpec.parse(run.spec)
    except SpecError:  # imported with a method that is unknown here: only the host knows its price
        return host_bill(job, final=job.status.terminal)
    try:
        resolved = catalog.resolve(spec.model_for(run.provider), profile)
    except SpecError:  # a model that has left the catalog since
        resolved = ModelOnHost(provider=run.provider, id=run.model)
    return bill(
        job,
        profile=profile,
        spec=spec,
        resolved=resolved,
        quote=run.quote,
        hourly=quoted_hour(run.quote),
        prices=_agreed(run, spec, Prices(prices or profile.kind, book or built_in())),
        now=now,
    )


def _agreed(run: Run, spec: JobSpec, prices: Prices) -> Prices:
    """Lay the price of a training token that the run was quoted by `--rate` over the others: the flag was of
    one command, and what was agreed to by it holds for the run."""
    lines = run.quote.lines if run.quote else ()
    overridden = [e for e in lines if e.component == "training" and (e.own or "").startswith(FLAG)]
    rates = [
        Rate(
            provider=prices.name,
            method=training_methods(spec),
            usd_per_mtok=entry.usd_per_unit,
            start=run.created_at.date(),
            confidence=Confidence.QUOTED,
            source=entry.source or FLAG,
            own=entry.own,
        )
        for entry in overridden
        if entry.unit == "usd_per_mtok"
    ]
    return replace(prices, book=prices.book.over(rates))


def quoted_hour(quote: Quote | None) -> HourlyRate | None:
    """Return the hourly rate in a quote, or `None` if the job is not billed hourly."""
    for entry in quote.lines if quote else ():
        if entry.unit == "usd_per_hour" and entry.component in ("electricity", "owned", "rental"):
            return HourlyRate(
                component=entry.component,
                usd_per_hour=entry.usd_per_unit,
                low_usd_per_hour=entry.usd_per_unit,
                high_usd_per_hour=entry.usd_per_unit,
                label=entry.note or entry.component,
                source=entry.source or "the quote",
                as_of=entry.as_of or "",
                confidence=entry.confidence,
                own=entry.own,
            )
    return None


def _by_hours(job: Job, hourly: HourlyRate, final: bool, now: datetime | None) -> Bill | None:
    end = job.finished_at if final else now
    if job.started_at is None or end is None:
        return None
    seconds = job.worked_seconds
    if seconds is None:  # two readings of a clock that may have been set in between
        seconds = max((end - job.started_at).total_seconds(), 0.0)
    hours = Decimal(str(seconds)) / 3600
    entry = hourly.line(hours, "0.000001")
    return Bill(usd=entry.usd, origin="measured hours times the rate", lines=(entry,), final=final)


def host_bill(job: Job, *, final: bool) -> Bill | None:
    """Return the cost that the host reports for a job as its bill, if it reports one."""
    # A negative cost would raise what is left of the budget, and NaN can't be compared with any limit.
    if job.cost_usd is None or not job.cost_usd.is_finite() or job.cost_usd < 0:
        return None
    return Bill(usd=job.cost_usd, origin=job.cost_origin or "reported by the host", final=final)


def _by_share(profile: Profile, job: Job, complete: Bill | None) -> Bill | None:
    """Estimate the cost of a job that ended early, because no host reports it."""
    if profile.share_billed is None or complete is None or job.step is None or not job.total_steps:
        return None
    usd = rounded(complete.usd * profile.share_billed(job.step, job.total_steps))
    return Bill(usd=usd, origin=f"{job.step} of {job.total_steps} steps x {complete.origin}", final=False)


def _of_work(quote: Quote | None) -> Bill | None:
    """Return what the work was quoted at, without the minimum that topped it up."""
    if quote is None or quote.price is None:
        return None
    parts = [e.usd_high if quote.recovered else e.usd for e in quote.lines if e.unit == "usd_per_mtok"]
    usd = sum(parts, Decimal(0))
    origin = f"{'the high end of a ' * quote.recovered}quote"
    return Bill(usd=usd, origin=origin, final=False) if usd else None


# -- comparison with the quote -----------------------------------------------------------------------------


class BillDifference(Record, frozen=True, kw_only=True):
    """Comparison of the quoted and the billed cost, for one component or the total."""

    component: str
    quoted_usd: Decimal
    billed_usd: Decimal
    error_usd: Decimal
    """Quoted minus billed amount. Positive if the quote was too high."""
    relative: float | None
    """Error as a fraction of the bill, or `None` if the bill is zero and the quote is not."""
    within_band: bool
    """True if the bill is between the low and high ends of the quote."""


class Reconciliation(Record, frozen=True, kw_only=True):
    run_id: str
    provider: str
    model: str
    origin: str
    total: BillDifference
    components: tuple[BillDifference, ...] = ()


def reconcile(run: Run) -> Reconciliation | None:
    """Compare a run's final bill with its quote. Returns `None` if the run has no final bill or no quote, or
    if the quote had no expected price. Compares individual components only if the bill is itemized."""
    quote, paid = run.quote, run.bill
    named = quote.price if quote is not None else None
    if quote is None or named is None or paid is None or quote.recovered or not paid.final:
        return None
    if named.expected_usd is None:
        return None
    quoted = {entry.component: entry for entry in quote.lines}
    billed = {entry.component: entry.usd for entry in paid.lines}
    parts = [
        _difference(name, entry.usd, billed[name], entry.usd_low, entry.usd_high)
        for name, entry in quoted.items()
        if name in billed
    ]
    return Reconciliation(
        run_id=run.id,
        provider=run.provider,
        model=quote.model,
        origin=paid.origin,
        total=_difference("total", named.expected_usd, paid.usd, named.low_usd, named.high_usd),
        components=tuple(parts),
    )


def _difference(name: str, quoted: Decimal, billed: Decimal, low: Decimal, high: Decimal) -> BillDifference:
    error = quoted - billed
    return BillDifference(
        component=name,
        quoted_usd=quoted,
        billed_usd=billed,
        error_usd=error,
        relative=float(error / billed) if billed else (0.0 if not error else None),
        within_band=low <= billed <= high,
    )


class Accuracy(Record, frozen=True, kw_only=True):
    """Accuracy of one backend's quotes, measured on runs that ended with a bill."""

    provider: str
    sandbox: bool
    runs: int
    median_relative: float | None
    """Median of |quoted - billed| / billed."""
    worst_relative: float | None
    bias: float | None
    """Mean of (quoted - billed) / billed. Positive if quotes are too high."""
    within_band: int
    quoted_usd: Decimal
    billed_usd: Decimal


def accuracy(runs: Iterable[Run]) -> list[Accuracy]:
    """Return the accuracy of quotes for each backend, with sandbox runs counted separately. Leaves out
    canceled and failed runs, because they did not do all of the quoted work."""
    groups: dict[tuple[str, bool], list[Reconciliation]] = {}
    for run in runs:
        if run.status is JobStatus.SUCCEEDED and not run.early_stopped and (found := reconcile(run)):
            groups.setdefault((run.provider, run.sandbox), []).append(found)
    return [_accuracy(provider, sandbox, found) for (provider, sandbox), found in sorted(groups.items())]


def _accuracy(provider: str, sandbox: bool, found: list[Reconciliation]) -> Accuracy:
    relative = [r.total.relative for r in found if r.total.relative is not None]
    sizes = [abs(value) for value in relative]
    return Accuracy(
        provider=provider,
        sandbox=sandbox,
        runs=len(found),
        median_relative=median(sizes) if sizes else None,
        worst_relative=max(sizes, default=None),
        bias=sum(relative) / len(relative) if relative else None,
        within_band=sum(r.total.within_band for r in found),
        quoted_usd=sum((r.total.quoted_usd for r in found), Decimal(0)),
        billed_usd=sum((r.total.billed_usd for r in found), Decimal(0)),
    )
