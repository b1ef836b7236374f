"""Rebuild a lost store from the hosts' job lists: each job that has an Orchestrate ref becomes a run
again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec

from orchestrate import catalog, costing
from orchestrate.catalog import ModelOnHost
from orchestrate.costing import RateBook
from orchestrate.errors import OrchestrateError, SpecError, UsageError
from orchestrate.providers.base import Provider, RecoversJobs, prices_of
from orchestrate.providers.calls import table
from orchestrate.runs.hosting import upkeep
from orchestrate.runs.submitting import accounts
from orchestrate.runs.submitting.submit import Submitter
from orchestrate.runs.syncing.sweep import Failure
from orchestrate.spec import JobSpec
from orchestrate.store import REF_PATTERN, run_id_of, transitions
from orchestrate.store.runs import requested_fields
from orchestrate.store.store import Store
from orchestrate.text import limit, money
from orchestrate.types import (
    MIGRATED_FROM,
    Bill,
    Job,
    JobRecovery,
    JobStatus,
    Quote,
    ReportedSettings,
    Run,
    SubmitPhase,
)

# The amount that a budget counts for a job whose spec and quote are lost. The best available source is used:
#
# 1. the cost reported by the host;
# 2. the host's billing rule for the job's outcome: the trained tokens at their rate, the completed share of
#    the steps, or nothing for a failure that is not billed;
# 3. the high end of a quote for the data that the host reports.


class RecoveredCost(msgspec.Struct, frozen=True, kw_only=True):
    spec: dict[str, Any]
    """The part of the spec that the host reports."""
    dataset_digest: str | None = None
    """Digest of the data, if the host reports it. If set, `spec` is complete."""
    max_cost_usd: Decimal | None = None
    quote: Quote | None = None
    bill: Bill | None = None
    words: str | None = None
    """The amount that counts toward the budget and its source, in words. `None` if nothing counts."""
    reason: str | None = None
    """Reason why the cost is not counted, or only partly counted."""
    left_out: dict[str, Any] = {}
    """Settings that the host reports but `spec` cannot hold."""


def recovered_cost(provider: Provider, job: Job, rates: RateBook | None = None) -> RecoveredCost:
    """Compute the cost of a recovered job. Queries the host for the size of the job's data if nothing better
    is known, and continues without it if the query fails."""
    asked = reported_settings(provider, job)
    job_recovery, problem = _recovered(provider, job)
    whole = _complete_spec(asked)
    least = costing.spec_of(job.model or "unknown", job_recovery)
    filled = FilledSpec(whole) if whole else _reported_spec(provider, asked, least)
    if method := unknown_method(asked.spec):
        return RecoveredCost(
            spec=filled.spec,
            bill=costing.host_bill(job, final=job.status.terminal),
            reason=None if job.cost_usd is not None else f"the price of its method {method!r} is unknown",
            left_out=filled.left_out,
        )
    parsed = JobSpec.parse(whole or least)
    resolved = _resolved(provider, job)
    book = rates or costing.built_in()
    priced = costing.PricedJob(
        provider.config.name,
        provider.profile,
        parsed,
        resolved,
        costing.Prices(prices_of(provider), book),
        # The host accepted this job, so price it even if the host has since retired its model.
        sandbox=True,
    )
    quote = costing.quote_recovered(priced, job_recovery) if job_recovery is not None else None
    problem = problem or (quote.why_none if quote is not None else None)
    usable = quote if quote is not None and quote.price is not None else None
    bill = costing.bill(
        job,
        profile=provider.profile,
        spec=parsed,
        resolved=resolved,
        quote=quote,
        hourly=costing.quoted_hour(usable),
        prices=priced.prices,
    )
    words = _counted(job, bill, usable)
    known = usable is not None or job.cost_usd is not None or (bill is not None and job.status.terminal)
    reason = None if known else problem or "the host does not report the data of its jobs"
    return RecoveredCost(
        spec=filled.spec,
        dataset_digest=asked.dataset_digest if whole else None,
        max_cost_usd=asked.max_cost_usd,
        quote=usable,
        bill=bill,
        words=words,
        reason=reason,
        left_out=filled.left_out,
    )


def _complete_spec(asked: ReportedSettings) -> dict[str, Any] | None:
    """Return the spec as submitted, if the host has all of it."""
    if asked.dataset_digest is None:
        return None
    try:
        JobSpec.parse(asked.spec)
    except SpecError:  # of another version
        return None
    return asked.spec


def _reported_spec(provider: Provider, asked: ReportedSettings, least: dict[str, Any]) -> FilledSpec:
    """Return `least` with the settings that the host reports."""
    spec = dict(least)
    base = provider.profile.tuned_base(spec["model"]) if provider.profile.tuned_base else None
    if base is not None and base != spec["model"]:  # the job continued from a tuned model
        spec |= {"model": base, "continue_from": spec["model"]}
    return fill_spec(spec, asked)


# -- settings that a host reports --------------------------------------------------------------------------

LEFT_OUT = "left-out-settings"
"""Record kind in the store for settings that a run's spec cannot hold."""
_UNKNOWN_GRADER = {"type": "unknown"}


class FilledSpec(msgspec.Struct, frozen=True):
    """A spec with the settings that the host reports."""

    spec: dict[str, Any]
    left_out: dict[str, Any] = {}
    """Settings that a spec cannot hold, by name."""
    differing: dict[str, tuple[Any, Any]] = {}
    """Settings whose value in the spec is not the host's, as {name: (in the spec, at the host)}."""


def unknown_method(spec: dict[str, Any]) -> str | None:
    """Return the method of a spec that was built from a host's report, if no spec can hold it."""
    kind = table(spec.get("method")).get("type", "sft")
    return None if kind in ("sft", "dpo", "rft") else str(kind)


def migrated(store: Store, run_id: str) -> bool:
    """Return whether a migration of this run has trained or is training. Its spec must then stay as it is:
    with other settings, the same migration would be a new one, which is billed again."""
    made = store.runs.matching(tags={MIGRATED_FROM: run_id})
    return any(run.status not in (JobStatus.FAILED, JobStatus.CANCELLED) for run in made)


def fill_spec(spec: dict[str, Any], asked: ReportedSettings, *, keep: bool = False) -> FilledSpec:
    """Add the reported settings that a spec lacks, and keep those that it has. Each is tried on its own, so
    that one that a spec rejects, such as a long suffix, takes no other with it. An unknown method makes the
    spec invalid, because any other would train something else. With `keep`, nothing is added, and what is
    missing counts as differing."""
    filled, left_out = dict(spec), dict(asked.left_out)
    method = {"method": asked.spec["method"]} if unknown_method(asked.spec) else {}
    if method or unknown_method(filled):
        method = {"method": filled.pop("method", None) or method["method"]}
    for name, value in asked.spec.items():
        if name in method or (own := filled.get(name)) == value:
            continue
        held = {key: one for key, one in table(own).items() if one != _UNKNOWN_GRADER}
        whole = {**table(value), **held} if held else value if own is None else own
        if own == whole:
            continue
        if _parses({**filled, name: whole}):
            filled[name] = whole
        elif "type" in (part := table(value)):
            rest = _fill_part(filled, name, part)
            left_out |= {f"{name}.{key}": one for key, one in rest.items()}
        else:
            left_out[name] = value
    reported = _leaves(asked.spec)
    differing = {
        name: (own, reported[name])
        for name, own in _leaves(filled | method).items()
        if name in reported and name not in left_out and own != reported[name]
    }
    if keep:
        own, added = _leaves(spec), _leaves(filled | method)
        differing |= {name: (own.get(name), one) for name, one in added.items() if own.get(name) != one}
        return FilledSpec(spec, left_out, differing)
    return FilledSpec(filled | method, left_out, differing)


def _fill_part(spec: dict[str, Any], name: str, asked: dict[str, Any]) -> dict[str, Any]:
    """Add the settings of a method or an adapter one by one. Returns those that cannot be added."""
    rest: dict[str, Any] = {}
    for key, value in asked.items():
        part = {"type": asked["type"], **table(spec.get(name))}
        if part.get(key) not in (None, _UNKNOWN_GRADER):
            continue
        if _parses(new := {**spec, name: {**part, key: value}}):
            spec[name] = new[name]
        else:
            rest[key] = value
    return rest


def _parses(spec: dict[str, Any]) -> bool:
    try:
        JobSpec.parse(spec)
    except SpecError:
        return False
    return True


def _leaves(spec: dict[str, Any]) -> dict[str, Any]:
    parts = {name: part for name, value in spec.items() if "type" in (part := table(value))}
    flat = {name: value for name, value in spec.items() if name not in parts}
    return flat | {f"{name}.{key}": value for name, part in parts.items() for key, value in part.items()}


def record_left_out(store: Store, found: Mapping[str, dict[str, Any]]) -> None:
    """Record what the specs of these runs cannot hold, for their migration."""
    known = {record.run_id: record.data for record in store.history.records(LEFT_OUT, list(found))}
    for run_id, settings in found.items():
        if known.get(run_id, {}) != settings:
            store.history.add_record(run_id, LEFT_OUT, settings)


def _counted(job: Job, bill: Bill | None, quote: Quote | None) -> str | None:
    if bill is not None and (job.status.terminal or job.cost_usd is not None):
        return f"{money(bill.usd)}: {bill.origin}"
    if quote is not None and quote.high_usd is not None:
        if costing.quoted_hour(quote) is not None:
            return f"up to {limit(quote.high_usd)}: {quote.assumptions[0]}"
        [*_, size] = quote.assumptions[:1]
        return f"up to {limit(quote.high_usd)}: the high end of the quote for its data, {size}"
    return f"{money(bill.usd)} so far: {bill.origin}" if bill is not None else None


def reported_settings(provider: Provider, job: Job) -> ReportedSettings:
    """Return the settings that the host reports for a job that this store did not create. May be empty."""
    return provider.reported_settings(job) if isinstance(provider, RecoversJobs) else ReportedSettings()


def _recovered(provider: Provider, job: Job) -> tuple[JobRecovery | None, str | None]:
    try:
        return provider.recover_job(job) if isinstance(provider, RecoversJobs) else None, None
    except OrchestrateError as error:
        return None, f"could not look up its data: {error.message}"


def _resolved(provider: Provider, job: Job) -> ModelOnHost:
    try:
        return catalog.resolve(job.model or "unknown", provider.profile)
    except SpecError:
        return ModelOnHost(provider=provider.config.name, id=job.model or "unknown")


class OrphanJob(msgspec.Struct, frozen=True, kw_only=True):
    """A job with our ref that is not in the store. Either the store was lost, or a colleague created the
    job."""

    provider: str
    account: str
    run_id: str
    job_id: str
    model: str | None
    status: str
    created_at: datetime | None


class Recovery(msgspec.Struct, kw_only=True):
    """The results of `recover`, by run id."""

    recovered: list[str] = []
    adopted: list[str] = []
    """Runs of this store that had no known job until their job was found on the host."""
    offered: list[OrphanJob] = []
    """Jobs that were found but not selected for recovery."""
    counted: dict[str, str] = {}
    """Costs that count toward a budget, as {run id: description}. A cost is the amount that the host reports,
    the amount that the host bills for jobs with this outcome, or the high end of a quote for the reported
    data."""
    unpriced: list[str] = []
    """Recovered runs whose cost does not count toward any budget."""
    reasons: dict[str, str] = {}
    """Reasons why a run's cost is not fully counted, by run id."""
    left_out: dict[str, dict[str, Any]] = {}
    """Settings that the host reports but a spec cannot hold, as {run id: {name: value}}."""
    known: list[str] = []
    doubled: list[str] = []
    """Refs that are shared by several jobs. The oldest of these jobs is assigned to the run, and an alert
    lists the others."""
    deployments: list[str] = []
    """Runs whose deployment was found on the host and is now tracked."""
    failures: list[Failure] = []


Choose = Callable[[list[OrphanJob]], Collection[str]]
"""A function that takes the jobs that were found, and returns the ids of the runs to recover."""


def recover(
    store: Store,
    providers: Iterable[Provider],
    choose: Choose | None = None,
    rates: RateBook | None = None,
) -> Recovery:
    """Create a run for each job with our ref that is not in the store, or only for the selected ones. Changes
    nothing on a host.

    Costs that the host does not report are computed from `rates`, by default the built-in rates. Values that
    only the lost store contained stay empty: the quote and, if the host does not have them, the spec, the
    data's digest and the tags. Ids and refs stay the same, because each can be derived from the other. A
    later `sync` fetches events, metrics and bills.
    """
    report = Recovery()
    providers = list(providers)
    lost: list[tuple[OrphanJob, Provider, list[Job]]] = []
    for provider in providers:
        try:
            lost += _search(store, provider, report)
        except OrchestrateError as error:
            report.failures.append(_failure(provider, error))
    offered = [entry for entry, _, _ in lost]
    chosen = {entry.run_id for entry in offered}
    if choose is not None and offered:
        chosen &= set(choose(offered))
    report.offered = [entry for entry in offered if entry.run_id not in chosen]
    for entry, provider, jobs in lost:
        if entry.run_id in chosen:
            _take(store, provider, entry.account, jobs, _RecoveryBooks(report, rates))
    for provider in providers:
        try:
            report.deployments += [deployment.run_id for deployment in upkeep.adopt(store, provider)]
        except OrchestrateError as error:
            failure = _failure(provider, error)
            if failure not in report.failures:
                report.failures.append(failure)
    return report


def _failure(provider: Provider, error: OrchestrateError) -> Failure:
    return Failure(
        provider=provider.config.name,
        message=error.message,
        retryable=error.retryable,
        retry_after_s=getattr(error, "retry_after_s", None),
    )


def _search(
    store: Store, provider: Provider, report: Recovery
) -> list[tuple[OrphanJob, Provider, list[Job]]]:
    """Find jobs that belong to no run in the store, or to one that was imported: such a run counts toward no
    budget and blocks no repeat, because most imported jobs are not ours. Runs without a known job are matched
    with theirs immediately."""
    here = accounts.account_of(store, provider)
    lost: list[tuple[OrphanJob, Provider, list[Job]]] = []
    by_ref: dict[str, list[Job]] = {}
    try:
        for job in provider.recoverable() if isinstance(provider, RecoversJobs) else provider.list():
            if job.handle.ref and REF_PATTERN.fullmatch(job.handle.ref):
                by_ref.setdefault(job.handle.ref, []).append(job)
    except OrchestrateError as error:  # what it told before is not lost for that
        report.failures.append(_failure(provider, error))
    known = {run.ref: run for run in store.runs.of_refs(by_ref)}
    for ref, jobs in by_ref.items():
        jobs.sort(key=lambda job: (job.created_at is None, job.created_at, job.handle.job_id))
        run = known.get(ref)
        mine = run is not None and _is_mine(store, provider, run)
        if run is None or (mine and run.imported):
            held = [job for job in jobs if run is not None and job.handle.job_id == run.job_id]
            jobs = [*held, *(job for job in jobs if job not in held)]  # the imported run's own job first
            first = jobs[0]
            entry = OrphanJob(
                provider=provider.config.name,
                account=here,
                run_id=run_id_of(ref),
                job_id=first.handle.job_id,
                model=first.model,
                status=first.status.value,
                created_at=first.created_at,
            )
            lost.append((entry, provider, jobs))
            continue
        report.known.append(run.id)
        if mine and run.job_id is None:
            Submitter(store, provider).adopt(run, [job.handle for job in jobs])
            report.adopted.append(run.id)
    return lost


def _is_mine(store: Store, provider: Provider, run: Run) -> bool:
    here = (run.provider, run.host) == (provider.config.name, provider.host)
    return here and accounts.is_here(store, provider, run.account) is not False


class _RecoveryBooks(NamedTuple):
    report: Recovery
    rates: RateBook | None


def _take(store: Store, provider: Provider, account: str, jobs: list[Job], books: _RecoveryBooks) -> None:
    ref, report, job = str(jobs[0].handle.ref), books.report, jobs[0]
    with suppress(OrchestrateError):  # it is a run here all the same, and asked for again at each sync
        job = provider.taken_over(job) if isinstance(provider, RecoversJobs) else job
    recovered = recovered_cost(provider, job, books.rates)
    run = run_of(
        job,
        provider,
        account,
        store.clock.now(),
        id=run_id_of(ref),
        ref=ref,
        how="recovered",
        estimate_usd=job.cost_usd,
        quote=recovered.quote,
        bill=recovered.bill,
        **_request_fields(recovered),
    )
    there = store.runs.of_ids([run.id])
    if there and there[0].imported:
        keep = migrated(store, run.id)
        store.runs.apply(run.id, lambda imported: _as_own(imported, run, keep=keep))
    else:
        try:
            store.runs.restore(run)
        except UsageError:  # by another recover at the same moment
            report.known.append(run.id)
            return
    report.recovered.append(run.id)
    record_left_out(store, {run.id: recovered.left_out})
    if recovered.left_out:
        report.left_out[run.id] = recovered.left_out
    if recovered.words is not None:
        report.counted[run.id] = recovered.words
    if recovered.reason is not None and not run.sandbox:
        report.unpriced.append(run.id)
        report.reasons[run.id] = recovered.reason
    if others := [job.handle.job_id for job in jobs[1:]]:
        report.doubled.append(ref)
        Submitter(store, provider).alarm(run, set(others))


def _as_own(imported: Run, recovered: Run, *, keep: bool) -> Run:
    """Return an imported run with the cost and the identity of the recovered one. It keeps what the user or
    the import added, such as its name and files, and with `keep` also its spec."""
    if not imported.imported:  # by another recover at the same moment
        return imported
    spec = imported.spec if keep else recovered.spec
    if not keep and not recovered.dataset_digest:
        reported = {name: value for name, value in spec.items() if name not in ("model", "train")}
        spec = fill_spec(imported.spec, ReportedSettings(spec=reported)).spec
    return msgspec.structs.replace(
        imported,
        imported=False,
        spec=spec,
        spec_hash=recovered.spec_hash,
        dataset_digest=recovered.dataset_digest,
        quote=recovered.quote,
        estimate_usd=recovered.estimate_usd,
        bill=recovered.bill or imported.bill,
        max_cost_usd=recovered.max_cost_usd,
        tags={**imported.tags, **recovered.tags},
    )


def _request_fields(recovered: RecoveredCost) -> dict[str, Any]:
    """Return the fields that identify a repeated submit, as far as the host reports them."""
    if recovered.dataset_digest is None:
        return {"spec": recovered.spec}
    spec = JobSpec.parse(recovered.spec)
    return requested_fields(spec, recovered.dataset_digest) | {
        "max_cost_usd": recovered.max_cost_usd,
        "tags": spec.tags,
    }


def run_of(
    job: Job, provider: Provider, account: str, at: datetime, *, id: str, ref: str, how: str, **known: Any
) -> Run:
    """Build a run from a job that the host reports at time `at`. The tag `how` records how the job was found.
    `known` contains additional fields of the run."""
    facts: dict[str, Any] = {"spec_hash": "", "dataset_digest": "", **known}
    facts["tags"] = {**known.get("tags", {}), how: at.date().isoformat()}
    run = Run(
        id=id,
        ref=ref,
        provider=provider.config.name,
        model=job.model or "unknown",
        host=provider.host,
        account=account,
        sandbox=provider.config.sandbox,
        phase=SubmitPhase.SUBMITTED,
        status=JobStatus.SUBMITTING,
        job_id=job.handle.job_id,
        job_kind=job.handle.kind,
        created_at=job.created_at or at,
        updated_at=at,
        **facts,
    )
    return transitions.observed(run, job, at)
