"""Waiting for what comes by itself, for as long as a busy machine may need."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 400.0


def until(look: Callable[[], Any], what: str = "it", patience_s: float = PATIENCE_S) -> Any:
    """What `look` returns once that is true. It looks more rarely the longer it waits: each look takes
    processor time from what it waits for."""
    deadline, pause_s = time.monotonic() + patience_s, 0.02
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(pause_s)
        pause_s = min(1.1 * pause_s, 0.25)
    return found
