"""What stands at a host and bills or could: the parts that all backends share."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from orchestrate.errors import ProviderError
from orchestrate.providers.calls.values import text, when, whole
from orchestrate.types import Billing, JobStatus, Standing, Storage, StoredItem

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider

T = TypeVar("T")


def jobs(
    provider: Provider,
    *,
    kind: Literal["job", "worker"] = "job",
    bills: bool | None = None,
    note: str | None = None,
) -> Iterator[Standing]:
    """The jobs that have not ended. By default one bills unless it is paused; of a state that is not known
    that cannot be told."""
    for job in provider.list():
        if job.status.terminal:
            continue
        billing = None if job.status is JobStatus.UNKNOWN else job.status is not JobStatus.PAUSED
        yield Standing(
            provider=provider.name,
            kind=kind,
            id=job.handle.job_id,
            name=job.handle.ref,
            state=job.raw_status.lower(),
            bills=billing if bills is None else bills,
            job_id=job.handle.job_id,
            created_at=job.created_at,
            note=note or job.model,
        )


def of_jobs(
    provider: Provider,
    *unseen: str,
    kind: Literal["job", "worker"] = "job",
    bills: bool | None = None,
    note: str | None = None,
) -> Billing:
    """Of a backend of which jobs alone can be asked for."""
    return Billing(items=tuple(jobs(provider, kind=kind, bills=bills, note=note)), unseen=unseen)


def joined(
    provider: Provider, parts: Mapping[str, Callable[[], Iterable[Standing]]], *unseen: str
) -> Billing:
    """Several lists; one that cannot be read does not hide the others. Raises `ProviderError` when none
    can."""
    items, failed = _read_lists(parts)
    untold = [f"{provider.title} offers no list of: {what}" for what in unseen]
    return Billing(items=items, partial=bool(failed), unseen=(*failed, *untold))


def stored(
    provider: Provider, parts: Mapping[str, Callable[[], Iterable[StoredItem]]], *unseen: str
) -> Storage:
    """Join the lists of what an account keeps, as `joined` does for what bills."""
    items, failed = _read_lists(parts)
    untold = [f"{provider.title} offers no list of: {what}" for what in unseen]
    return Storage(items=items, partial=bool(failed), unseen=(*failed, *untold))


def file_of(provider: str, raw: Mapping[str, Any]) -> StoredItem:
    """Read an entry of a list of files as OpenAI and Together write it."""
    return StoredItem(
        provider=provider,
        kind="file",
        id=str(raw["id"]),
        name=text(raw.get("filename")),
        bytes=whole(raw.get("bytes")),
        created_at=when(raw.get("created_at")),
        expires_at=when(raw.get("expires_at")),
        note=text(raw.get("purpose")),
    )


def _read_lists(parts: Mapping[str, Callable[[], Iterable[T]]]) -> tuple[tuple[T, ...], list[str]]:
    items: list[T] = []
    failed: dict[str, ProviderError] = {}
    for name, ask in parts.items():
        try:
            items += ask()
        except ProviderError as error:
            failed[name] = error
    if len(failed) == len(parts):
        raise next(iter(failed.values()))
    return tuple(items), [f"{name} could not be asked for: {error.message}" for name, error in failed.items()]
