"""Retry calls that are safe to repeat, and limit the time to wait for a call."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from orchestrate.errors import ProviderError

T = TypeVar("T")


class Configured(Protocol):
    @property
    def options(self) -> Mapping[str, Any]: ...


@dataclass(frozen=True)
class Retry:
    """Limits on retrying a call. Waits are exponential with full jitter, from `first_s` to `longest_s`. A
    host's `Retry-After` is respected if it fits into the remaining budget. Otherwise, the error is raised
    immediately. The first retry ignores how long the first attempt took, so an upload that takes longer than
    the budget is still retried once."""

    attempts: int = 6
    budget_s: float = 60.0
    first_s: float = 0.5
    longest_s: float = 8.0

    @classmethod
    def of(cls, config: Configured) -> Retry:
        """Return the default limits, with the budget from the host's option `retry_budget_s` if it is set."""
        return cls(budget_s=float(config.options.get("retry_budget_s", cls.budget_s)))

    def calling(
        self,
        call: Callable[[], T],
        *,
        sleep: Callable[[float], object] = time.sleep,
        ended: Callable[[], bool] = lambda: False,
    ) -> T:
        """Call `call` and return its result, retrying after retryable errors. Raises the last error if it is
        not retryable, if the attempts or the budget are exhausted, or if `ended` returns True."""
        from tenacity import Retrying, retry_if_exception

        retrying = Retrying(
            retry=retry_if_exception(lambda e: isinstance(e, ProviderError) and e.retryable),
            wait=self._wait,
            stop=lambda state: self._over(state) or ended(),
            sleep=cast("Callable[[float], None]", sleep),
            reraise=True,
        )
        return retrying(call)

    def _over(self, state: Any) -> bool:
        if state.attempt_number >= self.attempts:
            return True
        tried = state.seconds_since_start if state.attempt_number > 1 else 0.0
        return tried + state.upcoming_sleep >= self.budget_s

    def _wait(self, state: Any) -> float:
        from tenacity import wait_random_exponential

        asked: float | None = getattr(state.outcome.exception(), "retry_after_s", None)
        if asked is not None:
            return asked
        return wait_random_exponential(multiplier=self.first_s, max=self.longest_s, min=self.first_s / 2)(
            state
        )


ONCE = Retry(attempts=1)


def within(call: Callable[[], T], seconds: float) -> T:
    """Run a call that has no timeout parameter. Raises `TimeoutError` if the call takes longer. The call
    goes on in its thread, which doesn't keep the process alive."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001  whoever waits gets it
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)
