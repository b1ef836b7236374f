"""The account of a run, and whether the current key belongs to it.

A host only lists the jobs of one account, so a missing job may be in another account. Each run therefore
stores the account that it was sent to. If another account doesn't list the run's job, the job may still
exist. If a host does not report account ids, a fingerprint of the key identifies the account. A new key for
the same account has a different fingerprint. If the new key can access a job or file of the account by its
id, both keys are recorded as keys of the same account.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
from sqlalchemy import Connection, select

from orchestrate.core.underway import work
from orchestrate.errors import NotFound, OtherAccount, PermissionRefused
from orchestrate.providers.base import HoldsFiles, Provider, host_account
from orchestrate.store import schema
from orchestrate.types import Run, SubmitPhase

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.store.store import Store


# Only one process at a time uploads the same content to an account. Hosts that name files by their content
# reject the second of two simultaneous uploads, or let it break the first.

_LOOK_S = 0.5


@contextmanager
def alone(
    store: Store,
    provider: Provider,
    account: str,
    data: TrainingData,
    *,
    lease_s: float = 30.0,
    still_wanted: Callable[[], object] = lambda: None,
) -> Generator[None]:
    """Lock these files for uploading until the `with` block ends. Waits while another process uploads any of
    them, and calls `still_wanted` meanwhile. `still_wanted` may raise an error to stop the wait."""
    with ExitStack() as leases, work(f"waiting for another upload of this data to {provider.name}"):

        def wait() -> None:
            still_wanted()
            store.clock.sleep(_LOOK_S)

        for digest in sorted(set(data.digests)):  # in a fixed order, to avoid deadlocks
            place = hashlib.sha256(f"{provider.name} {provider.host} {account}".encode()).hexdigest()[:16]
            leases.enter_context(store.leases.hold(f"upload:{place}:{digest}", lease_s, wait=wait))
        held = leases.pop_all()
    with held:
        yield


_FINGERPRINT = "key "
"""Prefix of account ids that are derived from the key because the host does not report an id. See
`orchestrate.types.Account`."""


def account_of(store: Store, provider: Provider) -> str:
    """Return the id that the store uses for the account of the backend's key."""
    with store.database.reading() as connection:
        return _first_id(connection, provider, host_account(provider).id)


def is_here(store: Store, provider: Provider, account: str | None) -> bool | None:
    """Compare account ids only. Returns True if the backend's key belongs to this account, False if it
    belongs to another account, and `None` if the ids are not sufficient."""
    with store.database.reading() as connection:
        return is_here_in(connection, provider, account)


def is_here_in(connection: Connection, provider: Provider, account: str | None) -> bool | None:
    """Return the result of `is_here`, reading the store within the open transaction of `connection`."""
    if account is None:
        return None
    first = _first_id(connection, provider, host_account(provider).id)
    known = _first_id(connection, provider, account)
    if first == known:
        return True
    return None if known.startswith(_FINGERPRINT) or first.startswith(_FINGERPRINT) else False


def shows(store: Store, provider: Provider, run: Run) -> bool | None:
    """Return True if the backend's key belongs to the run's account, False if it doesn't, and `None` if this
    is unknown. If the account ids are not sufficient, checks whether the key can access the run's job or its
    uploaded file. Raises `ProviderError` if the host cannot be reached."""
    found = is_here(store, provider, run.account)
    if found is None and _sees(store, provider, run):
        prove(store, provider, run)
        return True
    return found


def require(store: Store, provider: Provider, run: Run) -> None:
    """Raise `OtherAccount` unless the backend's key is known to belong to the run's account, and
    `ProviderError` if the host cannot be reached."""
    if not shows(store, provider, run):
        raise other(store, provider, run)


def other(store: Store, provider: Provider, run: Run) -> OtherAccount:
    here = account_of(store, provider)
    unsent = run.phase in (SubmitPhase.INTENT, SubmitPhase.UPLOADED)
    sure = is_here(store, provider, run.account) is False
    return OtherAccount(provider.profile.title, run.id, run.account, here, unsent=unsent, sure=sure)


def prove(store: Store, provider: Provider, run: Run) -> None:
    """Record that the run's account is the account of the backend's key, because the key can see the run's
    job or file."""
    here = account_of(store, provider)
    if run.account is None:
        store.runs.apply(run.id, lambda run: placed(run, here))
    elif is_here(store, provider, run.account) is None:
        _join(store, provider, run.account, here)


def placed(run: Run, account: str) -> Run:
    """Return the run with its account set to `account`, unless it already has one. Runs from early versions
    have no account."""
    return run if run.account is not None else msgspec.structs.replace(run, account=account)


def _sees(store: Store, provider: Provider, run: Run) -> bool:
    with suppress(NotFound, PermissionRefused):
        if run.job_id is not None and provider.get(run.handle).handle.job_id == run.job_id:
            return True
    remote = store.history.upload(run.provider, run.host, run.account, run.dataset_digest)
    with suppress(NotFound, PermissionRefused):
        return remote is not None and isinstance(provider, HoldsFiles) and provider.holds(remote)
    return False


def _first_id(connection: Connection, provider: Provider, account: str) -> str:
    """Return the id that runs were given first, among all ids proven to mean the same account."""
    table = schema.accounts
    query = select(table.c.first_id).where(
        table.c.provider == provider.config.name, table.c.host == provider.host, table.c.id == account
    )
    return connection.execute(query).scalar() or account


def _join(store: Store, provider: Provider, known: str, here: str) -> None:
    table = schema.accounts
    at = {"provider": provider.config.name, "host": provider.host}
    with store.database.writing() as connection:
        first, second = _first_id(connection, provider, known), _first_id(connection, provider, here)
        if first.startswith(_FINGERPRINT) and not second.startswith(_FINGERPRINT):
            first, second = second, first  # so that an account that is told can never be joined to another
        mine = (table.c.provider == at["provider"]) & (table.c.host == at["host"])
        connection.execute(table.update().where(mine, table.c.first_id == second).values(first_id=first))
        for id in {known, here, second}:
            row = store.database.insert(table).values(**at, id=id, first_id=first)
            connection.execute(
                row.on_conflict_do_update(index_elements=["provider", "host", "id"], set_={"first_id": first})
            )
