"""Time that is the same on a busy machine."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import pytest

from orchestrate.local.run import worker


class OwnTime:
    """What this process has taken of the processor, of which neighbours take nothing, and what the test adds
    to it."""

    def __init__(self) -> None:
        self.added_s = 0.0

    def __call__(self) -> float:
        return time.process_time() + self.added_s


@pytest.fixture
def own_time(monkeypatch: pytest.MonkeyPatch) -> OwnTime:
    clock, begun = OwnTime(), worker.now()
    monkeypatch.setattr(worker, "now", lambda: begun + timedelta(seconds=clock()))
    for name in ("monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, clock)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return clock
