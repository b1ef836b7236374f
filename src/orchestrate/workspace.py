"""The workspace that every feature uses: settings, store, rates and backends, opened on first use.

This module contains no features. `Orchestrator` is a workspace with the features as methods.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from copy import copy
from functools import cached_property
from typing import TYPE_CHECKING, Self, TypeVar

import msgspec

from orchestrate.errors import SetupError, UsageError

if TYPE_CHECKING:
    from orchestrate.costing import RateBook
    from orchestrate.providers.base import Provider
    from orchestrate.settings.config import Settings
    from orchestrate.store.store import Store
    from orchestrate.types import Bill, Job, Run

Backends = str | Sequence[str]
"""Backend selection: `"all"`, one name, comma-separated names, or a sequence of names."""


def scope_of(settings: Settings) -> bool | None:
    """Return the `sandbox` filter for store queries: `None` (all runs) if the current keys are sandbox keys,
    and `False` (real runs only) otherwise."""
    return None if settings.hosts.sandboxed else False


class OpenedParts:
    """The store and backends of a workspace, each opened on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.settings.make_home()
        self._lock = threading.RLock()
        self._providers: dict[str, Provider] = {}
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """The run store. Raises `StoreError` if it cannot be used."""
        with self._lock:
            if self._store is None:
                from orchestrate.store.store import Store

                self._store = Store.open(self.settings.store_url)
            return self._store

    def provider(self, name: str) -> Provider:
        """Return the backend, ready to use. Sends no requests."""
        with self._lock:
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


class SandboxParts(OpenedParts):
    """Backends for sandbox runs whose records are in another workspace's store.

    Uses the backends of that workspace if it has sandbox keys. Otherwise, uses the sandbox in the home
    folder, and restarts it with its last options if it isn't running.
    """

    def __init__(self, outside: OpenedParts, host: str) -> None:
        super().__init__(outside.settings)
        self._outside, self._host, self._up = outside, host, ExitStack()
        self._entered = False

    @property
    def store(self) -> Store:
        return self._outside.store

    def provider(self, name: str) -> Provider:
        """Return the backend, ready to use. Raises `SetupError` if the runs belong to a different sandbox
        than the one in this home folder."""
        with self._lock:
            if not self._entered and (backend := self._outside.provider(name)).config.sandbox:
                return backend
            if not self._entered:
                self._enter()
            return super().provider(name)

    def _enter(self) -> None:
        from orchestrate.sandbox.connection import home_of, joined
        from orchestrate.sandbox.starts import last_start

        home = home_of(self.settings)
        start = last_start(home)
        if not any(f"{self._host}/".startswith(f"{url}/") for url in start.urls):
            raise SetupError(
                f"the run belongs to a sandbox at {self._host}, not to the sandbox of this home "
                f"folder ({home})",
                fix="start that sandbox again, and export the variables it prints",
            )
        env = self._up.enter_context(joined(home, **msgspec.structs.asdict(start.ways)))
        self.settings = msgspec.structs.replace(self.settings, hosts=self.settings.hosts.under(env))
        self._entered = True

    def close(self) -> None:
        """Close the backends. The store stays open because its owner closes it."""
        super().close()
        self._up.close()


class Workspace:
    """Settings, store, rates and backends for every feature, each opened on first use. Creates the home
    folder if it does not exist. Use it as a context manager."""

    def __init__(self, settings: Settings | OpenedParts | None = None) -> None:
        """Create the workspace. `settings` defaults to `orchestrate.settings.config.load()`. Raises
        `ConfigError` if the configuration is invalid."""
        if settings is None:
            from orchestrate.settings import config

            settings = config.load()
        self._opened = settings if isinstance(settings, OpenedParts) else OpenedParts(settings)
        self._inside: dict[str, Self] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close connections and the store. Runs continue, because they are trained outside of this
        process."""
        while self._inside:
            self._inside.popitem()[1].close()
        self._opened.close()

    @property
    def settings(self) -> Settings:
        return self._opened.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self._opened.settings = settings

    @property
    def store(self) -> Store:
        """The run store. Raises `StoreError` if it cannot be used."""
        return self._opened.store

    @cached_property
    def rates(self) -> RateBook:
        """The rates for quotes and bills: the built-in ones, overridden by `rates.yaml` in the home folder
        and the project. Assign to replace them. Raises `ConfigError` if a file is invalid."""
        from orchestrate.costing import user_book

        project = [self.settings.config_file.parent] if self.settings.config_file else []
        return user_book([self.settings.home, *project])

    def backends(self, wanted: Backends = "all") -> list[str]:
        """Resolve backend names. `all` means every backend that can be loaded. Raises `UsageError` for an
        unknown name."""
        from orchestrate.providers import registry

        return registry.chosen(self.settings, wanted)

    def provider(self, name: str) -> Provider:
        """Return the backend, ready to use. Sends no requests."""
        return self._opened.provider(name)

    def ready(self, name: str) -> Provider:
        """Return the backend if its key is set. Raises `MissingKey` otherwise."""
        backend = self.provider(name)
        if not backend.profile.keyless:
            backend.config.require_key()
        return backend

    def record(self, run_id: str) -> Run:
        """Return the stored record of a run. `run_id` is the run's id, the first characters of it, or `last`.
        With sandbox keys, `last` is a sandbox run or a run on this machine. Raises `UsageError` unless
        exactly one run matches."""
        if not self.settings.hosts.sandboxed:
            return self.store.runs.get(run_id, sandboxes=False)
        from orchestrate.profile import this_machine

        return self.store.runs.get(run_id, near=this_machine().kind)

    def bill(self, run: Run, job: Job) -> Bill | None:
        """Compute what a run has cost so far, in US dollars, from the most reliable source. Returns `None` if
        the cost is unknown."""
        from orchestrate.costing import bill_run
        from orchestrate.providers.base import prices_of

        backend, now = self.provider(run.provider), self.store.clock.now()
        return bill_run(
            run, job, profile=backend.profile, prices=prices_of(backend), book=self.rates, now=now
        )

    def backend_of(self, record: Run) -> Provider | None:
        """Return the run's backend, or `None` if it is no longer configured."""
        try:
            return self.home_of(record).provider(record.provider)
        except (SetupError, UsageError):
            return None

    def home_of(self, record: Run) -> Self:
        """Return the workspace that has the run's backend: this one, or a sandbox workspace for sandbox
        runs."""
        if not record.sandbox:
            return self
        if record.host not in self._inside:
            self._inside[record.host] = type(self)(SandboxParts(self._opened, record.host))
        return self._inside[record.host]


Opened = TypeVar("Opened", bound=Workspace)


def with_rates(ws: Opened, flags: Sequence[str]) -> Opened:
    """Return a workspace whose rates are overridden by these `--rate` flags. It shares the store and backends
    of `ws`, and is not closed. Raises `UsageError` if a flag is invalid."""
    from orchestrate.core import days
    from orchestrate.costing import parse_flag

    if not flags:
        return ws
    found = copy(ws)
    found.rates = ws.rates.over(parse_flag(flag, days.today()) for flag in flags)
    return found
