"""What an Orchestrator works with: its settings, and the store and the backends that it has opened."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.settings.config import Settings
    from orchestrate.tracking import Store


class Opened:
    """Opens nothing until it is asked for. Makes the home folder when there is none."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.settings.make_home()
        self.lock = threading.RLock()
        self._providers: dict[str, Provider] = {}
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """Raises `StoreError` when the store cannot be used as it is."""
        with self.lock:
            if self._store is None:
                from orchestrate.tracking import Store

                self._store = Store.open(self.settings.store_url)
            return self._store

    @property
    def scope(self) -> bool | None:
        """Which runs are meant: those of no sandbox, unless the keys at hand are one's; then all."""
        return None if self.settings.hosts.sandboxed else False

    def provider(self, name: str) -> Provider:
        """The backend, ready to use; nothing is sent yet."""
        with self.lock:
            if name not in self._providers:
                from orchestrate.providers import registry

                self._providers[name] = registry.make(name, self.settings)
            return self._providers[name]

    def close(self) -> None:
        for provider in self._providers.values():
            provider.close()
        self._providers.clear()
        if self._store is not None:
            self._store.close()
            self._store = None
