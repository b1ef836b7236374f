"""One upload of the same content to an account at a time, by whichever process.

Hosts that name a file by its content refuse the second of two uploads at once, or let it break the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from orchestrate.underway import work

if TYPE_CHECKING:
    from orchestrate.data import TrainingData
    from orchestrate.providers.base import Provider
    from orchestrate.tracking.store import Store

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
    """Waits until no other process uploads any of these files, and keeps others waiting for the block.
    `still_wanted` is called while it waits, and may raise."""
    with ExitStack() as leases, work(f"waiting for another upload of this data to {provider.name}"):

        def wait() -> None:
            still_wanted()
            store.clock.sleep(_LOOK_S)

        for digest in sorted(set(data.digests)):  # in one order, so that nobody waits for one another
            place = hashlib.sha256(f"{provider.name} {provider.host} {account}".encode()).hexdigest()[:16]
            leases.enter_context(store.leases.hold(f"upload:{place}:{digest}", lease_s, wait=wait))
        held = leases.pop_all()
    with held:
        yield
