"""Client keys of a server, stored as hashes in the store."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from hmac import compare_digest
from pathlib import Path
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool

from orchestrate.errors import ConfigError, OrchestrateError, UsageError
from orchestrate.http.web import bearer, no_key
from orchestrate.settings.hosts import is_loopback
from orchestrate.store.gateway import hashed
from orchestrate.store.store import Store
from orchestrate.types import GatewayKey
from orchestrate.types.gateway import Opens

_FRESH_S = 1.0
"""Maximum age of a model server's cached keys, in seconds."""
_PATIENCE_S = 2.0
"""Time limit for reading the keys from the store, in seconds."""
NEW_KEY = "create one with: orchestrate serve --new-key NAME"
_log = logging.getLogger(__name__)


class Clients:
    """Client keys for one kind of server.

    Until the first key is created, requests from this machine need no key. After that, every request needs
    one, even if all keys have been revoked.

    admin   An additional key that is valid only in this process and not stored.
    """

    def __init__(self, store: Store, opens: Opens, *, admin: str | None = None) -> None:
        self._store, self._opens, self._admin = store, opens, admin
        self._refreshing: asyncio.Task[None] | None = None
        self._known, self._at = self._read(), time.monotonic()

    def _read(self) -> dict[str, GatewayKey]:
        return self._store.gateway_keys.by_hash(self._opens)

    @property
    def needed(self) -> bool:
        """True if every request needs a key."""
        return bool(self._known)

    def require(self, host: str, fix: str, *, behind_proxy: bool = False) -> None:
        """Raise `UsageError` if other machines can reach the server and it requires no key."""
        if (behind_proxy or not is_loopback(host)) and not self.needed:
            raise UsageError(f"other machines can reach {host}, so the server needs keys", fix=fix)

    def admitted(self, scope: Mapping[str, Any]) -> GatewayKey | None:
        """Check the request's key against the store, and return its record. Returns `None` if the server has
        no keys yet, so none is required. Raises `HostError` 401 for a missing or invalid key."""
        given = bearer(scope)
        keys = self._store.gateway_keys
        key = keys.of(given) if given else None
        ours = key is not None and key.opens == self._opens
        return self._valid(key) if key and ours else self._stranger(given, self._read())

    async def lately(self, scope: Mapping[str, Any]) -> GatewayKey | None:
        """Check a request's key as `admitted` does, but against keys that are cached for about a second. If
        the store does not respond soon enough, uses the last known keys, so the server keeps working."""
        now = time.monotonic()
        if now - self._at >= _FRESH_S and (self._refreshing is None or self._refreshing.done()):
            self._at = now
            self._refreshing = asyncio.create_task(run_in_threadpool(self._refresh))
        if self._refreshing is not None and not self._refreshing.done():
            patience = self._at + _PATIENCE_S - now
            await asyncio.wait({self._refreshing}, timeout=max(patience, 0.0))
        given = bearer(scope)
        if given and self._admin and compare_digest(hashed(given), hashed(self._admin)):
            return None
        key = self._known.get(hashed(given)) if given else None
        return self._stranger(given, self._known) if key is None else self._valid(key)

    def _refresh(self) -> None:
        try:
            self._known = self._read()
        except OrchestrateError as error:
            _log.warning("could not read the client keys, so the last known keys are used: %s", error.message)

    def _stranger(self, given: str | None, known: Mapping[str, GatewayKey]) -> None:
        if known:
            raise no_key("unknown key" if given else "a key is required: Authorization: Bearer KEY")

    def _valid(self, key: GatewayKey) -> GatewayKey:
        now = self._store.clock.now()
        if key.revoked_at is not None:
            raise no_key(f"the key {key.name} was revoked")
        if key.expires_at is not None and key.expires_at <= now:
            raise no_key(f"the key {key.name} expired on {key.expires_at:%Y-%m-%d}")
        return key


def make(store: Store, name: str, *, by: str, opens: Opens = "serve") -> str:
    """Create a key for one kind of server, and return its value. The value cannot be shown again. Replaces an
    older key of the same name. Raises `UsageError` if the name is invalid or belongs to a key for another
    kind of server."""
    return store.gateway_keys.add(
        GatewayKey(name=name, created_at=store.clock.now(), opens=opens), by=by, again=True
    )


def revoke(store: Store, name: str, *, by: str, opens: Opens = "serve") -> None:
    """Revoke a key. Raises `UsageError` if no key has this name, or if the key is for another kind of
    server."""
    store.gateway_keys.revoke(name, store.clock.now(), by=by, opens=opens)


def bring_in(home: Path, store: Store, *, by: str) -> None:
    """Move keys from an earlier version's key file into the store. Raises `ConfigError` if the file cannot be
    read."""
    path = home / "serve-keys.json"
    try:
        made = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        kept = msgspec.json.decode(path.read_bytes(), type=dict[str, str])
    except FileNotFoundError:
        return
    except (OSError, msgspec.MsgspecError) as error:
        raise ConfigError(
            f"{path} cannot be read: {error}", fix="remove the file and create new keys"
        ) from error
    store.gateway_keys.bring_in(
        {hash: GatewayKey(name=name, created_at=made, opens="serve") for name, hash in kept.items()}, by=by
    )
    path.replace(path.with_suffix(".json.moved"))
