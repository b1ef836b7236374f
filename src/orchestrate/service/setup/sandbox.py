"""The sandbox: local stand-ins of the hosts, and the one of this home, which is up whenever it is asked."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from orchestrate import sandbox
from orchestrate.errors import SetupError
from orchestrate.service.setup.opened import Opened

if TYPE_CHECKING:
    from orchestrate.providers.base import Provider
    from orchestrate.sandbox.server import Sandbox
    from orchestrate.settings.config import Settings
    from orchestrate.tracking import Store


def running(first_port: int = 0, **options: Any) -> AbstractContextManager[Sandbox]:
    """As `orchestrate.sandbox.running`, on `first_port` and those after it, or on any free ones with 0."""
    ports = (first_port, first_port + 1, first_port + 2) if first_port else (0, 0, 0)
    return sandbox.running(ports=ports, **options)


def home_of(settings: Settings) -> Path:
    """Where the jobs of this home's sandbox are kept."""
    return settings.make_home() / "sandbox"


@contextmanager
def joined(home: Path, first_port: int = 0, **options: Any) -> Generator[Mapping[str, str]]:
    """The environment for clients of the sandbox of a home: of the one that runs, whoever started it, or of
    one that runs as long as the block does."""
    from orchestrate.sandbox.starts import AlreadyUp

    with ExitStack() as stack:
        try:
            env = stack.enter_context(running(first_port, home=home, **options)).env
        except AlreadyUp as other:
            env = other.env
        yield env


class Inside(Opened):
    """The backends as the runs at one host of a sandbox see them, over the store of another: that one's,
    where its keys are the sandbox's; else those of this home's sandbox, which is started for as long as this
    is open, as it was the last time, unless it runs."""

    def __init__(self, outside: Opened, host: str) -> None:
        super().__init__(outside.settings)
        self._outside, self._host, self._up = outside, host, ExitStack()
        self._entered = False

    @property
    def store(self) -> Store:
        return self._outside.store

    def provider(self, name: str) -> Provider:
        """Raises `SetupError` when the runs are of another sandbox than this home's."""
        with self.lock:
            if not self._entered and (backend := self._outside.provider(name)).sandbox:
                return backend
            if not self._entered:
                self._enter()
            return super().provider(name)

    def _enter(self) -> None:
        from orchestrate.sandbox.starts import last_start

        home = home_of(self.settings)
        start = last_start(home)
        if not any(f"{self._host}/".startswith(f"{url}/") for url in start.urls):
            raise SetupError(
                f"the run is of a sandbox at {self._host}, not of this home's ({home})",
                fix="start that one again, and export what it prints",
            )
        env = self._up.enter_context(joined(home, **msgspec.structs.asdict(start.ways)))
        self.settings = replace(self.settings, hosts=self.settings.hosts.under(env))
        self._entered = True

    def close(self) -> None:
        """Leaves the store open: it is another's."""
        super().close()
        self._up.close()
