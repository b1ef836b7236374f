"""The sandbox: local stand-ins of the hosts."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from orchestrate import sandbox

if TYPE_CHECKING:
    from orchestrate.sandbox.server import Sandbox


def running(first_port: int = 0, **options: Any) -> AbstractContextManager[Sandbox]:
    """As `orchestrate.sandbox.running`, on `first_port` and those after it, or on any free ones with 0."""
    ports = (first_port, first_port + 1, first_port + 2) if first_port else (0, 0, 0)
    return sandbox.running(ports=ports, **options)
