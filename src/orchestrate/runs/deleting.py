"""What a run has left at its host, and deleting it there: the tuned model and the uploaded rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from orchestrate.errors import SetupError, UsageError
from orchestrate.providers.base import Deletes, DeletesData, capability
from orchestrate.runs.submitting import accounts
from orchestrate.types import Record, RemoteDataset, Run
from orchestrate.workspace import Workspace

DELETED = "deleted"
"""Records of the store: what was deleted at a host, by the run that it was of."""


class Stored(Record, frozen=True, kw_only=True):
    """One thing that a host keeps of a run."""

    run_id: str
    provider: str
    host: str
    kind: Literal["model", "data"]
    ids: tuple[str, ...]
    """As the host calls it; of a model its job where the host deletes both."""


def everything(ws: Workspace, *, sandbox: bool = False) -> list[Stored]:
    """What is known to be at any host of the runs of this store, newest first. Nothing is asked."""
    runs = ws.store.runs.matching(sandbox=sandbox)
    return [one for run in runs if not _own(ws, run) for one in _known(ws, run)]


def stored(ws: Workspace, run: Run) -> list[Stored]:
    """What is known to be at the host. Nothing is asked. Raises `UsageError` for a run with nothing there,
    or whose things are in use."""
    if _own(ws, run):
        raise UsageError(
            f"nothing of run {run.id} was uploaded to a host: it is on machines of your own",
            fix=f"orchestrate show {run.id}   names its folder",
        )
    _require_unused(ws, run)
    return _known(ws, run)


def _own(ws: Workspace, run: Run) -> bool:
    """Whether it is on machines of the user's own; of a backend that is no longer there that is not known."""
    try:
        profile = ws.provider(run.provider).profile
    except SetupError:
        return False
    return profile.near or bool(profile.place)


def _known(ws: Workspace, run: Run) -> list[Stored]:
    gone = {record.data["kind"] for record in ws.store.history.records(DELETED, [run.id])}
    found: list[Stored] = []
    if run.job_id is not None and "model" not in gone:
        found.append(_stored(run, "model", (run.tuned_model or run.job_id,)))
    if (remote := _uploaded(ws, run)) is not None:
        found.append(_stored(run, "data", tuple(filter(None, (remote.train_id, remote.validation_id)))))
    return found


def delete(ws: Workspace, run: Run, tell: Callable[[Stored], object] = lambda _: None) -> list[Stored]:
    """Delete at the host what `stored` lists, and write each down as it is done; a second call does what is
    left. Raises `MissingKey`, `OtherAccount`, `Unsupported` and `ProviderError`."""
    store, done, found = ws.store, list[Stored](), stored(ws, run)
    provider = ws.ready(run.provider)
    accounts.require(store, provider, run)
    for one in found:
        if one.kind == "model":
            capability(provider, Deletes).delete(run.handle)
        elif isinstance(provider, DeletesData) and (remote := _uploaded(ws, run)) is not None:
            provider.delete_data(remote)
            store.history.forget_upload(run.provider, run.host, run.account, remote.digest)
        else:
            continue
        store.history.add_record(run.id, DELETED, one)
        tell(one)
        done.append(one)
    return done


def _stored(run: Run, kind: Literal["model", "data"], ids: tuple[str, ...]) -> Stored:
    return Stored(run_id=run.id, provider=run.provider, host=run.host, kind=kind, ids=ids)


def _uploaded(ws: Workspace, run: Run) -> RemoteDataset | None:
    if not run.dataset_digest:
        return None
    return ws.store.history.upload(run.provider, run.host, run.account, run.dataset_digest)


def _require_unused(ws: Workspace, run: Run) -> None:
    """Raises `UsageError` while the run goes on, its model is deployed, or another run trains on its rows."""
    store = ws.store
    if not run.status.terminal:
        raise UsageError(f"run {run.id} is {run.status.value}", fix=f"orchestrate cancel {run.id}")
    if any(one.run_id == run.id for one in store.deployments.matching(over=False)):
        raise UsageError(f"the model of run {run.id} is deployed", fix=f"orchestrate undeploy {run.id}")
    for other in store.runs.matching(active=True, sandbox=run.sandbox):
        mine = (run.provider, run.host, run.dataset_digest)
        if run.dataset_digest and (other.provider, other.host, other.dataset_digest) == mine:
            raise UsageError(
                f"run {other.id} is {other.status.value} and trains on the same uploaded rows",
                fix=f"wait for it, or orchestrate cancel {other.id}",
            )
