"""Who changed what, and what was refused, written down so that nobody fills the disk with it."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from starlette.types import Scope

from orchestrate.errors import OrchestrateError
from orchestrate.tracking import Store
from orchestrate.types import AuditEntry, GatewayKey

_log = logging.getLogger(__name__)
_READS = ("GET", "HEAD")
_ALIKE_S = 60.0
_MOST = 1000
"""Kinds of refusals that are told apart in that time."""


@dataclass
class _Alike:
    since: float
    unwritten: int = 0


class Audit:
    """Safe to use from several threads. Refusals that are alike are written down once a minute: the next one
    says how many there were."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._refusals: dict[tuple[str, ...], _Alike] = {}
        self._lock = threading.Lock()

    def write(self, scope: Scope, key: GatewayKey | None, status: int, code: str | None) -> None:
        if scope["method"] in _READS and status < 400:
            return
        address = scope["client"][0] if scope.get("client") else None
        times = 1
        if status >= 400:
            # Whoever has no key may ask for anything: then it is who asks that counts.
            what = (key.name, scope["method"], scope["path"]) if key else ("", str(address))
            times = self._times((*what, str(status)))
        if not times:
            return
        entry = AuditEntry(
            at=self._store.clock.now(),
            key=key.name if key else "",
            method=scope["method"][:20],
            path=str(scope["path"])[:500],
            status=status,
            subject=scope.get("state", {}).get("subject"),
            code=code,
            address=address,
            times=times,
        )
        try:
            self._store.gateway_keys.log(entry)
        except OrchestrateError as error:
            _log.warning("the log of the gateway cannot be written: %s", error.message)

    def _times(self, alike: tuple[str, ...]) -> int:
        """How many refusals the entry is to stand for; 0: none is to be written."""
        now = self._store.clock.uptime().seconds
        with self._lock:
            known = self._refusals.get(alike)
            if known is not None and now - known.since < _ALIKE_S:
                known.unwritten += 1
                return 0
            if known is None and len(self._refusals) >= _MOST:
                self._forget(now)
                if len(self._refusals) >= _MOST:
                    return 0
            self._refusals[alike] = _Alike(now)
            return 1 + (known.unwritten if known else 0)

    def _forget(self, now: float) -> None:
        old = [alike for alike, known in self._refusals.items() if now - known.since >= _ALIKE_S]
        for alike in old:
            del self._refusals[alike]
