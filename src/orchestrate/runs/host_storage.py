"""List and delete uploaded files and tuned models on hosts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import msgspec

from orchestrate.core.underway import work
from orchestrate.errors import MissingKey, OrchestrateError, SetupError, UsageError
from orchestrate.profile import Profile
from orchestrate.providers.base import (
    Deletes,
    DeletesData,
    Deploys,
    ListsStored,
    Provider,
    capability,
    host_account,
)
from orchestrate.runs.submitting import accounts
from orchestrate.text import joined
from orchestrate.types import Record, RemoteDataset, Run, StoredItem
from orchestrate.workspace import Workspace

DELETED = "deleted"
"""Kind of record that lists a run's deleted files and models."""
REMAINING = "remaining upload"
"""Kind of record that lists which of a run's uploaded files remain on the host after one of them was
deleted."""
_AT_ONCE = 8


class Stored(Record, frozen=True, kw_only=True):
    """A file or model that a host stores or has deleted."""

    run_id: str | None
    """The run in this store that the file or model belongs to."""
    provider: str
    host: str
    kind: Literal["model", "data"]
    ids: tuple[str, ...]
    """Ids of the file or model on the host. If the host deletes a model together with its job, the job's id
    is included."""


class AccountStorage(Record, frozen=True, kw_only=True):
    """An account and the files and models that its host lists."""

    provider: str
    host: str
    account: str | None = None
    listed: bool
    """True if the host returned at least one list."""
    reason: str | None = None
    """Reason why the host was not contacted or did not respond."""
    keyless: bool = False
    """True if the account's key is missing."""
    items: tuple[StoredItem, ...] = ()
    unseen: tuple[str, ...] = ()
    partial: bool = False
    """True if one of the host's lists could not be read."""

    @property
    def gap(self) -> bool:
        """Return True if the account may store files or models that are missing from this list."""
        return self.partial or not (self.listed or self.keyless)


# -- runs --------------------------------------------------------------------------------------------------


def everything(ws: Workspace, *, sandbox: bool = False) -> list[Stored]:
    """List the files and models that this store expects on the hosts, latest run first. Contacts no host."""
    runs = ws.store.runs.matching(sandbox=sandbox)
    return [one for run in runs if not _own(ws, run) for one in _known(ws, run)]


def stored(ws: Workspace, run: Run) -> list[Stored]:
    """List the files and models that this store expects on a run's host. Contacts no host. Raises
    `UsageError` if the run has nothing there, or if its files or models are in use."""
    if _own(ws, run):
        raise UsageError(
            f"run {run.id} uploaded nothing to a host. The run's files are only on your own machines",
            fix=f"find the run's folder with: orchestrate show {run.id}",
        )
    _require_deleting(ws, run)
    _require_unused(ws, run)
    return _known(ws, run)


def _require_deleting(ws: Workspace, run: Run) -> None:
    """Raise `Unsupported`, with the host's reason, if nothing can be deleted there."""
    backend = ws.backend_of(run)
    if backend is not None and not isinstance(backend, DeletesData):
        capability(backend, Deletes)


def _own(ws: Workspace, run: Run) -> bool:
    """Return whether the run is on the user's own machines. False for a backend that no longer exists."""
    try:
        profile = ws.provider(run.provider).profile
    except SetupError:
        return False
    return _is_own(profile)


def _is_own(profile: Profile) -> bool:
    return profile.near or bool(profile.place)


def _known(ws: Workspace, run: Run) -> list[Stored]:
    gone = {record.data["kind"] for record in ws.store.history.records(DELETED, [run.id])}
    found: list[Stored] = []
    if run.job_id is not None and "model" not in gone:
        found.append(_stored(run, "model", (run.tuned_model or run.job_id,)))
    for remote in _uploads(ws, run):
        found.append(_stored(run, "data", _files(remote)))
    return found


def delete(ws: Workspace, run: Run, on_deleted: Callable[[Stored], object] = lambda _: None) -> list[Stored]:
    """Delete from the host the files and models that `stored` lists, and record each deletion as it happens.
    Call it again to complete an interrupted deletion. Raises `UsageError`, and deletes nothing, if a job or
    deployment on the host uses any of the files or models. Also raises `MissingKey` if the API key is
    missing, `OtherAccount` if the key is not known to belong to the run's account, `Unsupported` if the host
    can't delete models, and `ProviderError` if the host fails."""
    store, done, found = ws.store, list[Stored](), stored(ws, run)
    provider = ws.ready(run.provider)
    accounts.require(store, provider, run)
    for one in (one for one in found if one.ids):
        job_id = run.job_id if one.kind == "model" else None
        _require_free(provider, one.ids, job_id, fix=f"orchestrate undeploy {run.id}")
    for one in found:
        if one.kind == "model":
            capability(provider, Deletes).delete(run.handle)
        elif isinstance(provider, DeletesData):
            remote = next(remote for remote in _uploads(ws, run) if _files(remote) == one.ids)
            provider.delete_data(remote)
            if remote == _uploaded(ws, run):
                store.history.forget_upload(run.provider, run.host, run.account, remote.digest)
        else:
            continue
        store.history.add_record(run.id, DELETED, one)
        on_deleted(one)
        done.append(one)
    return done


def _stored(run: Run, kind: Literal["model", "data"], ids: tuple[str, ...]) -> Stored:
    return Stored(run_id=run.id, provider=run.provider, host=run.host, kind=kind, ids=ids)


def _files(remote: RemoteDataset) -> tuple[str, ...]:
    return tuple(filter(None, (remote.train_id, remote.validation_id)))


def _uploaded(ws: Workspace, run: Run) -> RemoteDataset | None:
    if not run.dataset_digest:
        return None
    return ws.store.history.upload(run.provider, run.host, run.account, run.dataset_digest)


def _uploads(ws: Workspace, run: Run) -> list[RemoteDataset]:
    """Return the run's upload, and the rest of an earlier upload after single files were deleted."""
    history = ws.store.history
    found = [remote] if (remote := _uploaded(ws, run)) else list[RemoteDataset]()
    if not (left := history.records(REMAINING, [run.id])):
        return found
    gone = {
        id: one.id
        for one in history.records(DELETED)
        if one.data["host"] == run.host
        for id in one.data["ids"]
    }
    there = {
        remote.train_id: remote
        for one in left
        if gone.get((remote := RemoteDataset.from_dict(one.data)).train_id, 0) < one.id
    }
    sent = {id for remote in found for id in _files(remote)}
    return [*found, *(remote for id, remote in there.items() if id not in sent)]


def _require_unused(ws: Workspace, run: Run) -> None:
    """Raise `UsageError` while the run is in progress, its model is deployed, or another run trains on its
    rows."""
    store = ws.store
    if not run.status.terminal:
        raise UsageError(f"run {run.id} is {run.status.value}", fix=f"orchestrate cancel {run.id}")
    if any(one.run_id == run.id for one in store.deployments.matching(over=False)):
        raise UsageError(f"the model of run {run.id} is deployed", fix=f"orchestrate undeploy {run.id}")
    for other in store.runs.matching(active=True, sandbox=run.sandbox):
        mine = (run.provider, run.host, run.dataset_digest)
        if run.dataset_digest and (other.provider, other.host, other.dataset_digest) == mine:
            raise UsageError(
                f"run {other.id} is {other.status.value} and trains on the same uploaded data",
                fix=f"wait for that run to finish, or cancel it: orchestrate cancel {other.id}",
            )


# -- accounts ----------------------------------------------------------------------------------------------


def account_storage(ws: Workspace, names: Iterable[str], *, sandbox: bool = False) -> list[AccountStorage]:
    """List the files and models that each account stores. Skips accounts on your own machines. If `sandbox`
    is set, lists only sandboxes. Otherwise, lists only real accounts. If a host fails, its entry contains the
    reason, and the other hosts are still listed."""
    runs = _owners(ws, sandbox)

    def ask(name: str) -> AccountStorage | None:
        return _storage_of(ws, name, sandbox, runs)

    with ThreadPoolExecutor(_AT_ONCE, "stored") as threads, work("listing the files and models on the hosts"):
        found = list(threads.map(ask, names))
    return [one for one in found if one is not None]


def _owners(ws: Workspace, sandbox: bool) -> Mapping[tuple[str, str], str]:
    """Map each file, model or job to the newest run that it belongs to, by host and id."""
    found: dict[tuple[str, str], str] = {}
    uploads: dict[object, RemoteDataset | None] = {}
    left: dict[str, list[str]] = {}
    for record in ws.store.history.records(REMAINING):
        left.setdefault(record.run_id, []).append(record.data["train_id"])
    for run in reversed(ws.store.runs.matching(sandbox=sandbox)):
        content = (run.provider, run.host, run.account, run.dataset_digest)
        if content not in uploads:
            uploads[content] = _uploaded(ws, run)
        remote = uploads[content]
        files = [*(_files(remote) if remote else ()), *left.get(run.id, ())]
        for id in (run.tuned_model, run.job_id, *files):
            if id is not None:
                found[run.host, id] = run.id
    return found


def _storage_of(
    ws: Workspace, name: str, sandbox: bool, runs: Mapping[tuple[str, str], str]
) -> AccountStorage | None:
    one = AccountStorage(provider=name, host=name, listed=False)
    try:
        backend = ws.provider(name)
        if _is_own(backend.profile):
            return None
        one = msgspec.structs.replace(one, host=backend.host)
        if sandbox and not backend.config.sandbox:
            return None
        backend = ws.ready(name)
        if backend.config.sandbox is not sandbox:
            return None
        storage = capability(backend, ListsStored).stored()
        account = host_account(backend).id
    except MissingKey as error:
        return msgspec.structs.replace(one, reason=error.message, keyless=True)
    except OrchestrateError as error:
        return msgspec.structs.replace(one, reason=error.message)
    items = tuple(
        msgspec.structs.replace(
            item, run_id=runs.get((backend.host, item.id)) or runs.get((backend.host, item.job_id or ""))
        )
        for item in storage.items
    )
    return msgspec.structs.replace(
        one, listed=True, account=account, items=items, unseen=storage.unseen, partial=storage.partial
    )


def find(
    ws: Workspace, id: str, names: Sequence[str], *, sandbox: bool = False
) -> tuple[AccountStorage, StoredItem]:
    """Find a file or model by the host's id. Raises `UsageError` unless exactly one matches."""
    asked = account_storage(ws, names, sandbox=sandbox)
    found = {
        (one.host, item.kind, item.id): (one, item)
        for one in asked
        for item in one.items
        if item.is_called(id)
    }
    if not found:
        seen = joined([one.provider for one in asked if one.listed]) or "no account"
        missed = [f"{one.provider} ({one.reason or '; '.join(one.unseen)})" for one in asked if one.gap]
        also = f"; could not read: {joined(missed)}" if missed else ""
        raise UsageError(
            f"no run, file or model matches {id!r} (searched: {seen}{also}). It may belong to "
            "another account or have been deleted",
            fix="to list what each account stores, run: orchestrate stored",
        )
    if len(found) > 1:
        several = joined([f"{item.kind} {item.id} at {one.provider}" for one, item in found.values()])
        raise UsageError(f"{id!r} matches several: {several}", fix="use the full id and --provider")
    return next(iter(found.values()))


def deleted(ws: Workspace, id: str) -> Stored | None:
    """Return the record of a file or model that Orchestrate deleted, or `None` if no deleted item has this
    id."""
    records = ws.store.history.records(DELETED)
    return next((Stored.from_dict(one.data) for one in reversed(records) if id in one.data["ids"]), None)


def delete_item(ws: Workspace, item: StoredItem) -> Stored:
    """Delete one file or model that `find` returned. Also deletes the store's records of uploads that contain
    the item. Raises `UsageError` if the item is in use and `ProviderError` if the host rejects the
    deletion."""
    store, provider = ws.store, ws.ready(item.provider)
    require_item_unused(ws, provider, item)
    capability(provider, ListsStored).delete_stored(item)
    kind = "data" if item.kind == "file" else "model"
    done = Stored(run_id=item.run_id, provider=provider.name, host=provider.host, kind=kind, ids=(item.id,))
    holders = [
        (run, remote)
        for run in store.runs.matching(provider=provider.name, host=provider.host)
        if (remote := _uploaded(ws, run)) is not None and item.id in _files(remote)
    ]
    for run, remote in holders:  # the other files stay on the host, so keep a record of them
        for id in _files(remote):
            if id != item.id:
                left = msgspec.structs.replace(remote, train_id=id, validation_id=None)
                store.history.add_record(run.id, REMAINING, left)
    for run, remote in holders:
        store.history.forget_upload(run.provider, run.host, run.account, remote.digest)
    if item.run_id is not None:
        store.history.add_record(item.run_id, DELETED, done)
    return done


def require_item_unused(ws: Workspace, provider: Provider, item: StoredItem) -> None:
    """Raise `UsageError` if the item is deployed or used by an unfinished job. Jobs that are missing from
    this store count too."""
    for run in ws.store.runs.matching(active=True, provider=provider.name, host=provider.host):
        remote = _uploaded(ws, run)
        if remote is not None and item.id in _files(remote):
            raise UsageError(
                f"run {run.id} is {run.status.value} and trains on {item.id}",
                fix=f"wait for that run to finish, or cancel it: orchestrate cancel {run.id}",
            )
    fix = f"orchestrate undeploy {item.run_id}" if item.run_id else "take down the deployment first"
    deployed = {one.model for one in ws.store.deployments.matching(over=False)}
    if item.kind == "model" and item.id in deployed:
        raise UsageError(f"{item.id} is deployed", fix=fix)
    _require_free(provider, (item.id,), item.job_id, fix=fix)


def _require_free(provider: Provider, ids: Sequence[str], job_id: str | None, *, fix: str) -> None:
    """Raise `UsageError` if an unfinished job on the host uses one of these items or continues from the model
    of `job_id`, or if that model is deployed. Includes jobs that this store does not have."""
    names = {job_id or ids[0], *ids, *(id.rpartition("/")[2] for id in ids)}
    for job in provider.list():
        if not job.status.terminal and job.handle.job_id not in names and _names(job.payload, names):
            raise UsageError(
                f"job {job.handle.job_id} at {provider.profile.title} is {job.raw_status.lower()} and uses "
                f"{ids[0]}",
                fix="wait for that job to finish, or cancel it",
            )
    if job_id is None or not isinstance(provider, Deploys):
        return
    if any(one.job_id == job_id.lower() for one in provider.deployments()):
        raise UsageError(f"{ids[0]} is deployed", fix=fix)


def _names(value: object, names: set[str]) -> bool:
    """Return whether a job's payload mentions one of these names."""
    if isinstance(value, str):
        return value in names or value.rpartition("/")[2] in names
    if isinstance(value, Mapping):
        return any(_names(part, names) for part in cast("Mapping[str, Any]", value).values())
    if isinstance(value, list | tuple):
        return any(_names(part, names) for part in cast("Sequence[Any]", value))
    return False
