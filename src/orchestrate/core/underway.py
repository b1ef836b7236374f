"""Report the progress of long operations to a listener. By default, there is no listener, because a library
should not print.

with listening(listener), work("uploading train.jsonl", BYTES) as progress:
    progress(done, total)
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Protocol

BYTES = "bytes"


class ProgressCallback(Protocol):
    """A callback that gets the amount done, the total if it is known, and an optional message."""

    def __call__(self, done: float, total: float | None = None, detail: str = "", /) -> None: ...


Listener = Callable[[str, str], AbstractContextManager[ProgressCallback]]
"""Type of a function that takes a description and a unit, and returns a context manager that yields a
progress callback."""

_listener: ContextVar[Listener | None] = ContextVar("_listener", default=None)


@contextmanager
def listening(listener: Listener) -> Generator[None]:
    """Report the progress of this thread's work to `listener` while the block runs."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def work(what: str, unit: str = "") -> Generator[ProgressCallback]:
    """Report an operation as in progress while the block runs, and yield its progress callback. `what` starts
    with a verb, as in `reading train.jsonl`. Without a `unit`, progress is counted in items."""
    listener = _listener.get()
    if listener is None:
        yield _ignored
        return
    with listener(what, unit) as report:
        yield report


def _ignored(done: float, total: float | None = None, detail: str = "", /) -> None:
    del done, total, detail
