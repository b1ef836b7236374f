"""Polling intervals, and retries when a host does not respond."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar

from orchestrate.errors import ProviderError, StoreError

T = TypeVar("T")

_NEAR = (1.0, 1.0)
_FAR = (2.0, 30.0)
_GROWTH = 1.3
_JITTER = 0.2
"""Random variation of the intervals, so that watchers started at the same time don't poll simultaneously."""


class PollingPace:
    """Intervals between polls. They are constant for local runs and grow for hosted runs. If a busy host asks
    for a longer wait, that wait is used. Temporary failures are retried without a limit, because the run
    continues in the meantime."""

    def __init__(
        self,
        poll_s: float | None = None,
        *,
        most_s: float | None = None,
        near: bool = False,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        first, most = (poll_s, most_s or poll_s) if poll_s is not None else _NEAR if near else _FAR
        self._first = self._next = first
        self._most = most
        self._asked_for = 0.0
        self._sleep = sleep

    def attempt(self, ask: Callable[[], T]) -> T | None:
        """Call the function and return its result, or `None` after a temporary failure. Raises errors that
        waiting cannot fix."""
        try:
            answer = ask()
        except (ProviderError, StoreError) as error:
            if not error.retryable:
                raise
            self._asked_for = getattr(error, "retry_after_s", None) or 0.0
            return None
        self._asked_for = 0.0
        return answer

    def changed(self) -> None:
        """Reset the polling interval to its minimum. Call this after a change."""
        self._next = self._first

    def sleep(self) -> None:
        self._sleep(self.wait_s())

    def wait_s(self) -> float:
        """Return the next wait in seconds. Each call makes the next wait longer."""
        wait = self._next * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311  guards nothing
        self._next = min(self._next * _GROWTH, self._most)
        return max(wait, self._asked_for)
