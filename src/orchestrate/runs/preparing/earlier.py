"""Earlier runs in the store that match a planned submit."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from orchestrate.errors import AlreadySubmitted
from orchestrate.store.transitions import UNSENT, UNSETTLED

if TYPE_CHECKING:
    from orchestrate.runs.preparing.prepared import Prepared
    from orchestrate.runs.submitting.repeats import SubmitRequest
    from orchestrate.types import Run
    from orchestrate.workspace import Backends, Workspace


class Earlier(NamedTuple):
    """Earlier runs in the store that affect a submit to one backend."""

    provider: str
    known: Run | None
    """The run that already has this idempotency key. A submit would return it."""
    same: AlreadySubmitted | None
    """The error that a submit would raise because an identical run exists."""
    idempotency_key: str | None
    """Idempotency key of this backend's run. With several backends, derived from the caller's key."""

    @property
    def may_send(self) -> bool:
        """True if a submit may create a job, also for a known run whose job was not created yet."""
        run = self.known
        return run is None or (run.phase in UNSENT | UNSETTLED and not run.status.terminal)


def found(ws: Workspace, prepared: Prepared, provider: Backends, key: str | None) -> list[Earlier]:
    """Find earlier runs of the same job, with one entry per backend. Raises `KeyTaken` if the idempotency key
    belongs to a different run."""
    from orchestrate.runs.submitting.repeats import already

    earlier: list[Earlier] = []
    backends = ws.backends(provider)
    for name in backends:
        own = request_of(ws, prepared, name, key if key is None or len(backends) == 1 else f"{key} {name}")
        same = own.same(ws.store)
        earlier.append(Earlier(name, own.known(ws.store), same and already(same), own.key))
    return earlier


def request_of(ws: Workspace, prepared: Prepared, provider: str, key: str | None) -> SubmitRequest:
    from orchestrate.runs.submitting.repeats import SubmitRequest

    return SubmitRequest(prepared.offer(provider).spec, prepared.data.digest, ws.provider(provider), key)
