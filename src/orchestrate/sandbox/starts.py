"""Records of the last start of a home folder's sandbox. This module does not import the servers' packages."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import msgspec

from orchestrate.errors import SetupError
from orchestrate.sandbox.jobs import SLOTS
from orchestrate.sandbox.state import DATABASE, SandboxState
from orchestrate.types import decoding

URLS_KEPT = 80


class StartOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Options with which a sandbox was started. See `orchestrate.sandbox.running`."""

    speed: float = 1.0
    train: bool = True
    slots: int = SLOTS
    threads: int = 1
    model: str | None = None
    also: tuple[str, ...] = ()


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The last start of a home folder's sandbox. The next start reuses its ports if they are free, so clients
    still find their jobs."""

    env: dict[str, str] = {}
    ports: dict[str, int] = {}
    urls: tuple[str, ...] = ()
    """Base URLs of the hosts at this start and at earlier ones. All of them refer to the same jobs. A host's
    URL changes between starts if another program has taken its port."""
    ways: StartOptions = StartOptions()


def last_start(home: Path) -> Start:
    """Return the record of the last start, or an empty one if there was none."""
    if not (home / DATABASE).exists():
        return Start()
    with closing(SandboxState(home)) as state:
        return decoding.decode(state.setting("start", "{}"), type=Start)


class AlreadyUp(SetupError):
    """Raised if a sandbox is already running on this home folder."""

    def __init__(self, home: Path) -> None:
        super().__init__(f"another sandbox is running in {home}", fix="use a different home folder")
        self.env = last_start(home).env
