"""The job of an idempotency key that stands at its host already, though the store knows nothing of it: the
store was lost, or an older copy of it was restored.

It is found as the job of a lost answer is, by the run's ref. Nothing is guessed: a host that cannot be
asked ends the submit before anything is written or sent, and what carries the ref but is another job is not
touched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from orchestrate.errors import KeyTaken, ProviderError
from orchestrate.providers.base import Recalls
from orchestrate.tracking.records.runs import asked_for
from orchestrate.types import Event, Job, JobHandle, Outcome, Run, Translation

if TYPE_CHECKING:
    from datetime import datetime

    from orchestrate.providers.base import Provider
    from orchestrate.tracking.submitting.repeats import Wish
    from orchestrate.tracking.submitting.submission import Submission


class Lost(NamedTuple):
    handles: list[JobHandle]
    job: Job
    """The first of them, as its host tells it."""


def look(provider: Provider, wish: Wish, translation: Translation) -> Lost | None:
    """One request to read, and a second one where there is a job. Raises `KeyTaken` for a job that is not the
    one asked for, `ProviderError` when the host cannot be asked."""
    if wish.ref is None:
        return None
    key = str(wish.key).partition(" ")[0]
    try:
        handles = provider.find(wish.ref)
        job = provider.get(handles[0]) if handles else None
    except ProviderError as error:
        error.message += f"; a job of the idempotency key {key} may be there already, so nothing was sent"
        raise
    if job is None:
        return None
    if differences := _differences(job, wish, translation, provider):
        raise KeyTaken(key, f"job {job.handle.job_id} at {provider.title}", differences)
    return Lost(handles, job)


def _differences(job: Job, wish: Wish, translation: Translation, provider: Provider) -> list[str]:
    """As far as the host tells. The ref itself says that all is the same; but hosts let anybody write it."""
    asked, found = wish.spec.model, list[str]()
    names = (translation.model, *([asked] if isinstance(asked, str) else asked.values()))
    if job.model is not None and wish.spec.continue_from is None:
        found += [] if any(alike(job.model, name) for name in names) else [f"model ({job.model})"]
    spec = provider.asked_for(job).spec if isinstance(provider, Recalls) else {}
    told = {"epochs": job.epochs, **spec}
    kept = {row.name: row.sent for row in translation.settings if row.outcome is Outcome.KEPT}
    for name in ("epochs", "seed"):
        if kept.get(name) is not None and told.get(name) not in (None, kept[name]):
            found.append(f"{name} ({told[name]}, not {kept[name]})")
    return found


def alike(one: str, other: str) -> bool:
    """Hosts tell a name with or without its path, and with the date that it stands for."""
    short, long = sorted((name.rpartition("/")[2].lower() for name in (one, other)), key=len)
    return long.startswith(short)


def event_of(run: Run, provider: Provider, at: datetime) -> Event:
    return Event(
        id="orchestrate-taken-over",
        at=at,
        level="warning",
        type="taken_over",
        message=f"{provider.title} had job {run.job_id} of this idempotency key already, of which this store "
        "did not know: it is this run's job now, and nothing was sent",
    )


def claimed(run: Run, asked: Submission) -> Run:
    """A run that was recovered from its host's list, with the key and with what the list does not tell."""
    known: dict[str, Any] = asked_for(asked.spec, asked.data.digest)
    known["max_cost_usd"] = asked.max_cost_usd if run.max_cost_usd is None else run.max_cost_usd
    known["tags"] = {**run.tags, **asked.spec.tags}
    return msgspec.structs.replace(run, idempotency_key=asked.idempotency_key, **known)
