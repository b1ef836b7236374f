"""The sandbox: local stand-ins of the hosts."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from orchestrate import sandbox
from orchestrate.errors import SetupError

if TYPE_CHECKING:
    from orchestrate.sandbox.server import Sandbox


@contextmanager
def running(first_port: int = 0, **options: Any) -> Generator[Sandbox]:
    """As `orchestrate.sandbox.running`, on `first_port` and those after it, or on any free ones with 0.
    Raises `SetupError` when they cannot be had."""
    ports = (first_port, first_port + 1, first_port + 2) if first_port else (0, 0, 0)
    with ExitStack() as stack:
        try:
            hosts = stack.enter_context(sandbox.running(ports=ports, **options))
        except OSError as error:
            raise SetupError(
                f"the sandbox cannot start on ports {ports[0]} to {ports[2]}: {error}",
                fix="orchestrate sandbox --port 0   (any free ports), or another first port",
            ) from error
        yield hosts
