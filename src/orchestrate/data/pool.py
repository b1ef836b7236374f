"""Pure functions over many tasks, on all cores, with results in the order of the tasks.

Workers are plain child processes that are given a function and a task by pickle. `multiprocessing` is not
used: its spawn method runs the caller's main script again in each worker, and a script that submits a paid
job must never run twice; its fork method is unsafe in a process with threads.
"""

from __future__ import annotations

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import IO, Any, TypeVar, cast

from orchestrate.errors import OrchestrateError

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 3
"""Results that each worker may be ahead of the reader; bounds the memory."""

_START = "import sys; sys.path[:] = sys.argv[1:]; from orchestrate.data.pool import serve; serve()"


class WorkerDied(OrchestrateError):
    """A worker ended before its answer; most often the machine ran out of memory."""


def cores() -> int:
    """Cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


Engine = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Another way to run `function` over tasks, with the results in their order."""

_engine: ContextVar[Engine | None] = ContextVar("_engine", default=None)


@contextmanager
def using(engine: Engine) -> Generator[None]:
    """Within the `with` block `ordered` runs on `engine`."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


def ordered(function: Callable[[T], R], tasks: Sequence[T], workers: int | None = None) -> Iterator[R]:
    """`function(task)` for each task, in order. One task, or one worker, runs in this process.

    `function` is a module's own; an exception that it raises is raised here.
    """
    engine = _engine.get()
    if engine is not None:
        yield from engine(function, tasks)
        return
    count = min(workers or cores(), len(tasks))
    if count <= 1:
        yield from map(function, tasks)
        return
    pool = _Pool(function, tasks, count)
    try:
        yield from cast("Iterator[R]", pool.results())
    finally:
        pool.close()


class _Pool:
    def __init__(self, function: Callable[[T], object], tasks: Sequence[T], count: int) -> None:
        self._function, self._tasks = function, tasks
        self._next: Iterator[int] = iter(range(len(tasks)))
        self._lock = threading.Lock()
        self._room = threading.Semaphore(count * AHEAD)
        self._answers: queue.SimpleQueue[tuple[int, object, BaseException | None]] = queue.SimpleQueue()
        self._children = [_child() for _ in range(count)]
        for child in self._children:
            threading.Thread(target=self._feed, args=(child,), daemon=True).start()

    def results(self) -> Iterator[object]:
        early: dict[int, object] = {}
        for wanted in range(len(self._tasks)):
            while wanted not in early:
                index, value, error = self._answers.get()
                if error is not None:
                    raise error
                early[index] = value
            yield early.pop(wanted)
            self._room.release()

    def _feed(self, child: subprocess.Popen[bytes]) -> None:
        """Gives one child a task at a time until none is left."""
        into, out = cast("IO[bytes]", child.stdin), cast("IO[bytes]", child.stdout)
        while True:
            self._room.acquire()
            with self._lock:
                index = next(self._next, None)
            if index is None:
                self._room.release()
                return
            try:
                pickle.dump((self._function, self._tasks[index]), into, protocol=5)
                into.flush()
                value, error = pickle.load(out)  # noqa: S301  written by our own child
            except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                died = WorkerDied(
                    f"a data worker ended early (exit code {child.poll()})",
                    fix="free memory, or use --workers 1",
                )
                self._answers.put((index, None, died))
                return
            self._answers.put((index, value, error))

    def close(self) -> None:
        with self._lock:
            self._next = iter(())
        self._room.release(len(self._children))
        for child in self._children:
            child.kill()
        for child in self._children:
            child.wait()
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()


def _child() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _START, *sys.path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the parent, which then ends its children
    )


def serve() -> None:
    """The loop of a worker: reads (function, task), writes (result, exception), until its input ends."""
    tasks, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints must not fall into the answers
    while True:
        try:
            function, task = pickle.load(tasks)  # noqa: S301  written by our own parent
        except EOFError:
            return
        answer: tuple[object, BaseException | None]
        try:
            answer = (function(task), None)
        except Exception as error:  # noqa: BLE001  every failure belongs to the parent
            answer = (None, error)
        pickle.dump(answer, answers, protocol=5)
        answers.flush()
