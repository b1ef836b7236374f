"""What a store has already of a submit that is about to be made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from orchestrate.errors import AlreadySubmitted
from orchestrate.handles.run import Home, RunHandle

if TYPE_CHECKING:
    from orchestrate.preparing.prepared import Prepared
    from orchestrate.tracking.submitting.repeats import Wish


class Earlier(NamedTuple):
    """What the store has already of a submit to one backend."""

    provider: str
    known: RunHandle | None
    """The run of the idempotency key: it would be returned."""
    same: AlreadySubmitted | None
    """What would be raised because of a run that is the same."""
    idempotency_key: str | None
    """Of this backend's run: one key of the caller gives each of several backends one of its own."""


def found(home: Home, prepared: Prepared, backends: Sequence[str], key: str | None) -> list[Earlier]:
    """One for each backend. Raises `KeyTaken`."""
    from orchestrate.tracking.submitting.repeats import already

    earlier: list[Earlier] = []
    for name in backends:
        own = wish(home, prepared, name, key if key is None or len(backends) == 1 else f"{key} {name}")
        known, same = own.known(home.store), own.same(home.store)
        earlier.append(Earlier(name, known and RunHandle(home, known), same and already(same), own.key))
    return earlier


def wish(home: Home, prepared: Prepared, provider: str, key: str | None) -> Wish:
    from orchestrate.tracking.submitting.repeats import Wish

    return Wish(prepared.offer(provider).spec, prepared.data.digest, home.provider(provider), key)
