"""Waiting for what comes by itself, for as long as a busy machine may need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 400.0


def until(look: Callable[[], Any], what: str = "it", patience_s: float = PATIENCE_S) -> Any:
    """What `look` returns once that is true."""
    deadline = time.monotonic() + patience_s
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.03)
    return found
