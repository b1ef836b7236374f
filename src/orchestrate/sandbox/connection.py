"""Connect to a home folder's running sandbox, or start one."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrate import sandbox

if TYPE_CHECKING:
    from orchestrate.sandbox.server import Sandbox
    from orchestrate.settings.config import Settings

PORTS = 4
"""Number of ports, one for each host."""


def running(first_port: int = 0, **options: Any) -> AbstractContextManager[Sandbox]:
    """Start a sandbox as `orchestrate.sandbox.running` does, but on consecutive ports that start at
    `first_port`. If `first_port` is 0, use any free ports."""
    return sandbox.running(ports=range(first_port, first_port + PORTS) if first_port else (), **options)


def home_of(settings: Settings) -> Path:
    """Return the folder that stores the jobs of this home's sandbox."""
    return settings.make_home() / "sandbox"


@contextmanager
def joined(home: Path, first_port: int = 0, **options: Any) -> Generator[Mapping[str, str]]:
    """Yield the environment variables that connect clients to the sandbox of a home folder. If this sandbox
    is not running, start it, and stop it when the block ends."""
    from orchestrate.sandbox.starts import AlreadyUp

    with ExitStack() as stack:
        try:
            env = stack.enter_context(running(first_port, home=home, **options)).env
        except AlreadyUp as other:
            env = other.env
        yield env
