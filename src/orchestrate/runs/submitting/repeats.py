"""Recognize repeated submits: a command run again after a kill, a retried CI job, a second shell.

Two submits are identical if their settings, data (by content), backend and account are equal. Limits, tags
and file paths don't count. An identical run blocks a submit while it is open, and for `RECENT` after its
creation if it succeeded: CI jobs are mostly retried within a day, and repeating the same training so soon is
rarely intended. A failed or canceled run does not block, because submitting again is then a deliberate retry.

An idempotency key is explicit: the same key always means the same run, in any state. The store finds the run
by its key. If the store was lost or restored from a backup, `find_existing` finds the job on the host by the
run's ref, which is derived from the key and the request.

For a run recovered from a host that reports neither settings nor the data's digest, only the model is known.
Such a run blocks every submit of its model.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
from sqlalchemy import Connection, or_, select

from orchestrate.errors import AlreadySubmitted, KeyTaken, ProviderError, SpecError, UsageError
from orchestrate.providers.base import Provider, RecoversJobs
from orchestrate.runs.submitting import accounts
from orchestrate.settings import is_masked, masked
from orchestrate.spec import JobSpec
from orchestrate.store import REF_PATTERN, derived_ref, schema, stamp
from orchestrate.store.database import Lease
from orchestrate.store.gateway import require_uncancelled
from orchestrate.store.ledger import Limit
from orchestrate.store.runs import requested_fields
from orchestrate.store.transitions import UNSENT, UNSETTLED
from orchestrate.types import (
    SESSION,
    Event,
    Job,
    JobHandle,
    JobStatus,
    Outcome,
    Run,
    RunRequest,
    Translation,
)

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.store.store import Store


# The host may already have the job of an idempotency key that this store has no record of, because the store
# was lost or restored from an older copy. The run's ref finds such a job, as after a lost response. If the
# host cannot be reached, the submit stops before anything is written or sent. A different job that has the
# same ref is left alone.


class ExistingJobs(NamedTuple):
    handles: list[JobHandle]
    job: Job
    """Job of the first handle, as reported by the host."""


def find_existing(
    provider: Provider, request: SubmitRequest, translation: Translation
) -> ExistingJobs | None:
    """Search the host for the job of an idempotency key. Sends one read request, and a second one if there is
    a job. Raises `KeyTaken` if the job differs from the requested one, and `ProviderError` if the host cannot
    be reached."""
    if request.ref is None:
        return None
    key = str(request.key).partition(" ")[0]
    try:
        handles = provider.find(request.ref)
        job = provider.get(handles[0]) if handles else None
    except ProviderError as error:
        error.message += f". A job with the idempotency key {key} may already exist, so nothing was sent"
        raise
    if job is None:
        return None
    if differences := _differences(job, request, translation, provider):
        raise KeyTaken(key, f"job {job.handle.job_id} at {provider.profile.title}", differences)
    return ExistingJobs(handles, job)


def _differences(job: Job, request: SubmitRequest, translation: Translation, provider: Provider) -> list[str]:
    """List the differences that the host reports. A matching ref alone proves nothing, because hosts let
    anyone set it."""
    asked, found = request.spec.model, list[str]()
    names = (translation.model, *([asked] if isinstance(asked, str) else asked.values()))
    if job.model is not None and request.spec.continue_from is None:
        found += [] if any(alike(job.model, name) for name in names) else [f"model ({job.model})"]
    spec = provider.reported_settings(job).spec if isinstance(provider, RecoversJobs) else {}
    reported = {"epochs": job.epochs, **spec}
    kept = {row.name: row.sent for row in translation.settings if row.outcome is Outcome.KEPT}
    for name in ("epochs", "seed"):
        if kept.get(name) is not None and reported.get(name) not in (None, kept[name]):
            found.append(f"{name} ({reported[name]}, not {kept[name]})")
    return found


def alike(one: str, other: str) -> bool:
    """Return whether two names mean the same model. Hosts report names with or without a path, and with or
    without a snapshot date."""
    short, long = sorted((name.rpartition("/")[2].lower() for name in (one, other)), key=len)
    return long.startswith(short)


def event_of(run: Run, provider: Provider, at: datetime) -> Event:
    return Event(
        id="orchestrate-taken-over",
        at=at,
        level="warning",
        type="taken_over",
        message=f"{provider.profile.title} already had job {run.job_id} with this idempotency key, but this "
        "store had no record of it. The job now belongs to this run, and nothing was sent",
    )


def acquired(run: Run, asked: Submission) -> Run:
    """Complete a run that was recovered from a host's list: add its idempotency key and the fields that the
    list does not contain."""
    known: dict[str, Any] = requested_fields(asked.spec, asked.data.digest)
    known["max_cost_usd"] = asked.max_cost_usd if run.max_cost_usd is None else run.max_cost_usd
    known["tags"] = {**run.tags, **asked.spec.tags}
    return msgspec.structs.replace(run, idempotency_key=asked.idempotency_key, **known)


def limited(run: Run, asked: Submission | None) -> Run:
    """Apply the cost limit of this call, if it has one, to a run that an earlier call created."""
    if asked is None or asked.max_cost_usd is None:
        return run
    return msgspec.structs.replace(run, max_cost_usd=asked.max_cost_usd, allowed_usd=asked.allowed_usd)


class Submission(RunRequest, frozen=True, kw_only=True):
    """A request to submit. `spec` is the spec as its backend receives it, including secrets, which are never
    stored."""

    spec: JobSpec
    translation: Translation
    """The spec translated for the backend. The request body is built from it."""
    data: TrainingData
    limits: tuple[Limit, ...] = ()
    """Limits that apply in addition to the run's own limit and the budget."""
    lease: Lease | None = None
    """Lease of the sweep that the run belongs to. Nothing is sent after another process has taken it over."""
    again: bool = True
    """True to submit even if an identical run (see `orchestrate.runs.submitting.repeats`) would block it."""
    patient: bool = False
    """True to keep the run pending, instead of rejecting it, if its host can't accept it now but may later.
    The next call with the same key continues the run. This also works from a copy of the store, because the
    ref is derived from the key."""


def stored_spec(run: Run) -> JobSpec:
    """Rebuild the spec of a stored run, so that the run can be sent again. Raises `UsageError` if the spec
    contained a secret, because secrets are not stored."""
    if names := [name for name, value in run.spec.items() if is_masked(value)]:
        raise UsageError(
            f"run {run.id} cannot be sent again because the secrets in {' and '.join(names)} of "
            "its spec are not stored",
            fix=f"orchestrate cancel {run.id}, then submit again. Orchestrate reuses the uploaded files",
        )
    return JobSpec.parse(run.spec)


RECENT = timedelta(hours=24)
UNKNOWN = "unknown"
"""Model name of a recovered run when only its ref is known."""
_LONGEST_KEY = 180
_NOT_COMPARED = {"train", "validation", "test", "tags", "max_cost_usd"}


class KnownRun(Exception):
    """Raised with the run that already has this idempotency key. Nothing was created."""

    def __init__(self, run: Run) -> None:
        super().__init__(run.id)
        self.run = run


@dataclass(frozen=True)
class SubmitRequest:
    """A request to submit to one backend."""

    spec: JobSpec
    digest: str
    provider: Provider
    key: str | None = None
    """The caller's idempotency key. If one submit goes to several backends, a space and the backend's name
    are appended. Raises `UsageError` for an invalid key."""

    def __post_init__(self) -> None:
        key, space, backend = ("none" if self.key is None else self.key).partition(" ")
        right = not space or backend == self.provider.config.name
        if not right or not key.isprintable() or not 0 < len(key) <= _LONGEST_KEY:
            raise UsageError(
                f"an idempotency key must have 1 to {_LONGEST_KEY} characters and no spaces",
                fix="--idempotency-key nightly-2026-11-25",
            )

    @property
    def ref(self) -> str | None:
        """Return the ref of the run with this idempotency key, or `None` without a key. The ref is the same
        in every store.

        The ref depends on settings, data and host, so a job with the same key for a different purpose is
        never mistaken for this run. It does not depend on the account, because a host only lists the jobs of
        one account, and the same account may get a different id when its API key changes.
        """
        if self.key is None:
            return None
        settings = masked({n: v for n, v in self.spec.canonical().items() if n not in _NOT_COMPARED})
        facts = [self.key, self.provider.config.name, self.provider.host, self.digest, settings]
        return derived_ref(json.dumps(facts, sort_keys=True))

    def known(self, store: Store) -> Run | None:
        """Return the run with this key. Raises `KeyTaken` if the key belongs to a different run."""
        with store.database.reading() as connection:
            return self._known(connection)

    def same(self, store: Store) -> Run | None:
        """Return the newest run that is identical and recent enough to block this one."""
        with store.database.reading() as connection:
            return self._same(connection, stamp(store.clock.now() - RECENT))

    def guard(
        self, store: Store, *, again: bool, made: bool, lease: Lease | None
    ) -> Callable[[Connection, Run], None]:
        """Return a function to call in the transaction that creates the run. The function raises `KnownRun`
        if a run already has this key, and `KeyTaken` if that run is a different one. It raises
        `AlreadySubmitted` if an identical run exists, unless `again` is set. It raises `KeyCancelled` if the
        submit with this key was canceled, unless the job was already `made` and must be tracked. It raises
        `LeaseLost` if `lease` is no longer the latest one."""
        since = stamp(store.clock.now() - RECENT)

        def guard(connection: Connection, run: Run) -> None:
            if lease is not None:
                store.leases.require(connection, lease)
            if known := self._known(connection):
                raise KnownRun(known)
            if not again and (same := self._same(connection, since)):
                raise already(same)
            if not made and self.key is not None:
                require_uncancelled(connection, self.key)

        return guard

    def _known(self, connection: Connection) -> Run | None:
        if self.key is None:
            return None
        column = schema.runs.c.idempotency_key
        bare = self.key.partition(" ")[0]
        near = [self.key, bare] if self.key != bare else [self.key]
        query = select(schema.runs.c.record).where(
            or_(column.in_(near), column.startswith(f"{bare} ", autoescape=True))
        )
        found = [Run.from_json(row) for row in connection.execute(query).scalars()]
        for run in found:
            if run.idempotency_key == self.key:
                if other := self._differences(connection, run):
                    raise KeyTaken(bare, f"run {run.id}", other)
                return run
        if alone := [run for run in found if (run.idempotency_key == bare) != (self.key == bare)]:
            raise KeyTaken(bare, f"run {alone[0].id}", ["set of backends"])
        return self._recovered(connection)

    def _recovered(self, connection: Connection) -> Run | None:
        """Return the key's run if a store that did not know the key recovered it from a host's list."""
        query = select(schema.runs.c.record).where(
            schema.runs.c.ref == self.ref, schema.runs.c.idempotency_key.is_(None)
        )
        row = connection.execute(query).scalar()
        return None if row is None else Run.from_json(row)

    def _same(self, connection: Connection, since: str) -> Run | None:
        table = schema.runs
        ended = [status.value for status in JobStatus if status.terminal]
        query = (
            select(table.c.record)
            .where(table.c.dataset_digest.in_([self.digest, ""]))
            .where(table.c.provider == self.provider.config.name)
            .where(table.c.host == self.provider.host)
            .where(
                or_(
                    table.c.status.not_in(ended),
                    (table.c.status == JobStatus.SUCCEEDED.value) & (table.c.created_at >= since),
                )
            )
            .order_by(table.c.created_at.desc(), table.c.id.desc())
        )
        perhaps: Run | None = None
        for row in connection.execute(query).scalars():
            run = Run.from_json(row)
            theirs = self.key is not None and run.idempotency_key is not None
            if not run.dataset_digest:
                perhaps = perhaps or (run if self._may_be(connection, run) else None)
            elif not theirs and not self._differences(connection, run):
                return run
        return perhaps

    def _may_be(self, connection: Connection, run: Run) -> bool:
        """Return whether a recovered run may be the requested one, as far as its properties are known. With a
        key, the run is found by the key."""
        if self.key is not None or REF_PATTERN.fullmatch(run.ref) is None or run.job_kind == SESSION:
            return False
        if accounts.is_here_in(connection, self.provider, run.account) is False:
            return False
        method = run.spec.get("method", {}).get("type") or ("sft" if run.quote is not None else None)
        if method not in (None, self.spec.method.type):
            return False
        if run.model == UNKNOWN or self.spec.continue_from is not None:
            return True
        names = [self.spec.model_for(self.provider.config.name)]
        with suppress(SpecError):
            names.append(self.provider.resolve(self.spec).id)
        return any(alike(run.model, name) for name in names)

    def _differences(self, connection: Connection, run: Run) -> list[str]:
        """List how a run differs from the requested one."""
        if (run.provider, run.host) != (self.provider.config.name, self.provider.host):
            return [f"backend ({run.provider} at {run.host})"]
        found: list[str] = []
        if accounts.is_here_in(connection, self.provider, run.account) is False:
            found.append(f"account ({run.account})")
        if run.dataset_digest != self.digest:
            found.append("data")
        return found + _unlike(run.spec, self.spec)


def already(run: Run) -> AlreadySubmitted:
    of = None if run.dataset_digest else run.model
    return AlreadySubmitted(run.provider, run.id, _state(run), _next_step(run), recovered_model=of)


def _state(run: Run) -> str:
    if run.phase in UNSENT:
        return "has not been sent yet (another process may be sending it, or the submit was interrupted)"
    return "has no response from the host yet" if run.phase in UNSETTLED else f"is {run.status.value}"


def _next_step(run: Run) -> str:
    if run.phase in UNSENT or run.status is JobStatus.PAUSED:
        return f"orchestrate resume {run.id}"
    if run.phase in UNSETTLED:
        return f"orchestrate sync, then orchestrate watch {run.id}"
    return f"orchestrate {'show' if run.status.terminal else 'watch'} {run.id}"


def _unlike(stored: dict[str, Any], spec: JobSpec) -> list[str]:
    try:
        earlier = _compared(JobSpec.parse(stored))
    except SpecError:  # of an earlier version, or recovered: its settings are not known
        return ["settings"]
    now = _compared(spec)
    return [
        f"{name} ({earlier.get(name)}, not {value})" if not isinstance(value, dict | list) else name
        for name, value in now.items()
        if earlier.get(name) != value
    ]


def _compared(spec: JobSpec) -> dict[str, Any]:
    return masked(spec.model_dump(mode="json", exclude=_NOT_COMPARED))
