"""A token bucket: how many requests a minute an account's watching may cost."""

from __future__ import annotations

import threading
from collections.abc import Callable

from orchestrate.tracking.clock import Clock


class TokenBucket:
    """Lets `per_minute` requests through on average, and `burst` at once. Safe for threads."""

    def __init__(
        self,
        per_minute: float,
        burst: int,
        *,
        clock: Clock | None = None,
        sleep: Callable[[float], None] | None = None,
    ) -> None:
        self._rate = per_minute / 60.0
        self._burst = float(burst)
        self._tokens = float(burst)
        self._clock = clock or Clock()
        self._sleep = sleep or self._clock.sleep
        self._filled = self._clock.uptime().seconds
        self._lock = threading.Lock()

    def take(self, count: int = 1) -> float:
        """Takes tokens, waiting until they are there. Returns the seconds waited."""
        with self._lock:
            now = self._clock.uptime().seconds
            self._tokens = min(self._burst, self._tokens + (now - self._filled) * self._rate)
            self._filled = now
            self._tokens -= count
            wait = max(0.0, -self._tokens / self._rate)
        if wait:
            self._sleep(wait)
        return wait
