"""Rebuilding a lost store from the hosts' lists: each job with a ref of ours becomes a run again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate.errors import OrchestrateError
from orchestrate.tracking import transitions
from orchestrate.tracking.ids import REF_PATTERN, run_id_of
from orchestrate.tracking.submit import Submitter
from orchestrate.tracking.sweep import Failure
from orchestrate.types import Job, JobStatus, Run, SubmitPhase

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.tracking.store import Store


class Recovery(msgspec.Struct, kw_only=True):
    """What `recover` found, by run id."""

    recovered: list[str] = []
    known: list[str] = []
    doubled: list[str] = []
    """Refs with more than one job: the oldest became the run, an alarm names the others."""
    failures: list[Failure] = []


def recover(store: Store, providers: Iterable[Provider]) -> Recovery:
    """Makes a run of each job with a ref of ours that the store does not know; changes nothing on a host.

    What only the lost store knew (the spec, the quote, the tags) is gone and left empty; ids and refs are the
    old ones, since each can be told from the other. A following `sync` fetches events, metrics and bills.
    """
    report = Recovery()
    for provider in providers:
        try:
            _recover(store, provider, report)
        except OrchestrateError as error:
            report.failures.append(
                Failure(
                    provider=provider.config.name,
                    message=error.message,
                    retryable=error.retryable,
                    retry_after_s=getattr(error, "retry_after_s", None),
                )
            )
    return report


def _recover(store: Store, provider: Provider, report: Recovery) -> None:
    by_ref: dict[str, list[Job]] = {}
    for job in provider.list():
        if job.handle.ref and REF_PATTERN.fullmatch(job.handle.ref):
            by_ref.setdefault(job.handle.ref, []).append(job)
    known = {run.ref: run for run in store.runs.of_refs(by_ref)}
    for ref, jobs in by_ref.items():
        jobs.sort(key=lambda job: (job.created_at is None, job.created_at, job.handle.job_id))
        if ref in known:
            report.known.append(known[ref].id)
            continue
        run = _run_of(store, provider, ref, jobs[0])
        store.runs.restore(run)
        report.recovered.append(run.id)
        if others := [job.handle.job_id for job in jobs[1:]]:
            report.doubled.append(ref)
            Submitter(store, provider).alarm(run, set(others))


def _run_of(store: Store, provider: Provider, ref: str, job: Job) -> Run:
    now = store.clock.now()
    spec: dict[str, Any] = {"model": job.model or "unknown", "train": "unknown"}
    run = Run(
        id=run_id_of(ref),
        ref=ref,
        provider=provider.config.name,
        model=job.model or "unknown",
        spec=spec,
        spec_hash="",
        dataset_digest="",
        host=provider.host,
        sandbox=provider.sandbox,
        phase=SubmitPhase.SUBMITTED,
        status=JobStatus.SUBMITTING,
        job_id=job.handle.job_id,
        job_kind=job.handle.kind,
        created_at=job.created_at or now,
        updated_at=now,
        tags={"recovered": now.date().isoformat()},
    )
    return transitions.observed(run, job, now)
