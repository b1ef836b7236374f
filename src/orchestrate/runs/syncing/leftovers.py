"""Find and settle budget reservations left behind by processes that have exited, both for requests in
progress and for runs that were never submitted."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import suppress
from decimal import Decimal
from pathlib import Path
from typing import Any

from orchestrate.core.files import locked
from orchestrate.costing import spending
from orchestrate.errors import DataError
from orchestrate.paid.journal import AnswerLog, lock_of
from orchestrate.runs.submitting.settler import lease_name
from orchestrate.store.store import Store
from orchestrate.store.transitions import UNSENT
from orchestrate.types import Run


def unsent(store: Store) -> list[Run]:
    """List runs that were never sent and that no process is working on, but that still reserve part of the
    budget."""
    return [
        run
        for run in store.runs.matching(active=True)
        if run.phase in UNSENT and spending(run).total_usd and not store.leases.held(lease_name(run))
    ]


def answers(store: Store) -> list[Decimal]:
    """List the leftover budget reservations for answers, as amounts in US dollars. A reservation is left over
    if the command that was waiting for the answer is no longer running."""
    return [usd for _, holds in _left(store) for usd in holds.values()]


def settle_answers(store: Store) -> int:
    """Settle leftover budget reservations for answers, and return how many were settled. If the request's
    journal shows that the answer may have been requested, the amount counts as spent. Otherwise, it is
    released."""
    done = 0
    for log, holds in _left(store):
        with suppress(DataError, OSError):  # it stays held, and counts in full after a day
            store.ledger.settle_left(log, AnswerLog(log, Any).sends)
            done += len(holds)
    return done


def _left(store: Store) -> Generator[tuple[Path, dict[str, Decimal]]]:
    """Yield the journals that no command writes to, with the amounts reserved for them. Each journal is
    locked while it is processed."""
    for log in store.ledger.left():
        if not log.exists():
            continue
        with suppress(OSError), locked(lock_of(log), keep=False) as free:
            if free and (holds := store.ledger.left().get(log)):
                yield log, holds
