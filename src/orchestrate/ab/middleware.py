"""Run an experiment inside your own application, as ASGI middleware or around your calls to the models."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from starlette.concurrency import run_in_threadpool

from orchestrate.ab.plan import FAILED, FAILOVERS, LATENCY

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from orchestrate.ab.experiment import Experiment

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


class ABMiddleware:
    """ASGI middleware that assigns each user's request to an arm and stores the assignment in
    `scope["state"]["ab"]` (Starlette: `request.state.ab`). Records each response's latency, and whether the
    request failed (HTTP 5xx or an exception), if the plan includes these metrics. Requests without a user get
    no `ab` entry, and nothing is recorded for them.

    `user` is a function that takes a request's scope and returns the user id, or `None` if there is none."""

    def __init__(
        self, app: ASGIApp, experiment: Experiment, user: Callable[[Scope], str | int | None]
    ) -> None:
        self._app, self._experiment, self._user = app, experiment, user

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        user = self._user(scope) if scope["type"] == "http" else None
        if user is None or user == "":
            await self._app(scope, receive, send)
            return
        given = await run_in_threadpool(self._experiment.assign, user)
        scope = {**scope, "state": {**scope.get("state", {}), "ab": given}}
        status, begun = 500, time.monotonic()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            seen = {LATENCY: time.monotonic() - begun, FAILED: float(status >= 500)}
            await run_in_threadpool(self._experiment.observed, user, given, seen)


def ask(experiment: Experiment, user: str | int, base: Callable[[], _T], tuned: Callable[[], _T]) -> _T:
    """Call the user's model and return its response. If `tuned` raises an exception, calls `base` instead and
    counts a failover, but the user's outcomes still count for the tuned model. Exceptions from `base`
    propagate."""
    given, begun, failed = experiment.assign(user), time.monotonic(), 1.0
    try:
        if given.arm == "tuned":
            try:
                answer = tuned()
                failed = 0.0
                return answer
            except Exception as error:  # noqa: BLE001  whatever it is, the user gets an answer
                _log.warning("the tuned model failed, so the base model answers: %r", error)
                experiment.count(FAILOVERS)
                return base()
        answer = base()
        failed = 0.0
        return answer
    finally:
        experiment.observed(user, given, {LATENCY: time.monotonic() - begun, FAILED: failed})
