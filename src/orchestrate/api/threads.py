"""Base class and decorators that turn a blocking API into an asyncio API. Each call runs in a thread, so the
event loop is not blocked."""

from __future__ import annotations

import asyncio
import contextvars
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")
_R = TypeVar("_R")
_Sync = TypeVar("_Sync")


class Threaded(Generic[_Sync]):
    """Base class for the asyncio version of a blocking object. Calls run in threads, so the event loop is not
    blocked."""

    def __init__(self, sync_api: _Sync, threads: ThreadPoolExecutor) -> None:
        self.sync_api = sync_api
        """The blocking object that does the work."""
        self.threads = threads

    async def call(self, call: Callable[[], _T]) -> _T:
        """Run a blocking function in a thread."""
        context = contextvars.copy_context()
        return await asyncio.get_running_loop().run_in_executor(self.threads, context.run, call)


def in_thread(
    method: Callable[Concatenate[_Sync, _P], _T],
) -> Callable[Concatenate[Threaded[_Sync], _P], Coroutine[Any, Any, _T]]:
    """Return the asyncio version of a method, with the same parameters, result and errors."""
    return then(method, lambda _, result: result)


def then(
    method: Callable[Concatenate[_Sync, _P], _T], give: Callable[[Threaded[_Sync], _T], _R]
) -> Callable[Concatenate[Threaded[_Sync], _P], Coroutine[Any, Any, _R]]:
    """Return the asyncio version of a method. Its result is converted with `give`."""

    @functools.wraps(method)
    async def threaded(self: Threaded[_Sync], /, *args: _P.args, **options: _P.kwargs) -> _R:
        return give(self, await self.call(lambda: method(self.sync_api, *args, **options)))

    return threaded
