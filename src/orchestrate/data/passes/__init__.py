"""Process files in one pass on all cores or a Ray cluster, and compare rows."""

from __future__ import annotations

import gc
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from typing import IO, Any, TypeVar, cast

from orchestrate import settings
from orchestrate.core.child import end_group
from orchestrate.errors import OrchestrateError

# Apply pure functions to many tasks on all cores. Results are in task order.


T = TypeVar("T")
R = TypeVar("R")

AHEAD = 3
"""Maximum number of unread results per worker, to limit memory use."""

_START = (
    "import gc, sys; gc.disable(); sys.path[:] = sys.argv[2:]; "
    "from orchestrate.data.passes import serve; serve(sys.argv[1])"
)
FORKS = sys.platform == "linux"
"""True on Linux, where workers are forked. On other systems, each worker is a new process that loads the
shared data itself."""


class WorkerDied(OrchestrateError):
    """A worker exited without a result, usually because the machine ran out of memory."""


def cores() -> int:
    """Return the number of cores that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:
        return os.cpu_count() or 1


Engine = Callable[[Callable[[Any], Any], Sequence[Any]], Iterator[Any]]
"""Callable that applies a function to tasks and yields the results in task order."""

_engine: ContextVar[Engine | None] = ContextVar("_engine", default=None)


@contextmanager
def using(engine: Engine) -> Generator[None]:
    """Make `ordered` run on `engine` within the `with` block."""
    token = _engine.set(engine)
    try:
        yield
    finally:
        _engine.reset(token)


def ordered(
    function: Callable[[T], R],
    tasks: Sequence[T],
    workers: int | None = None,
    ready: Callable[[], object] | None = None,
) -> Iterator[R]:
    """Yield `function(task)` for each task, in order. If there is only one task or one worker, everything
    runs in this process.

    `function` must be a module-level function, and its exceptions are raised here. `ready` loads data that
    workers can share. It is called if sharing saves time. Exceptions from `ready` are ignored, because
    `function` will raise them again."""
    engine = _engine.get()
    if engine is not None:
        yield from engine(function, tasks)
        return
    count = min(workers or cores(), len(tasks))
    if count <= 1:
        yield from map(function, tasks)
        return
    pool = _Pool(function, tasks, count, ready)
    try:
        yield from cast("Iterator[R]", pool.results())
    finally:
        pool.close()


class _Pool:
    def __init__(
        self,
        function: Callable[[T], object],
        tasks: Sequence[T],
        count: int,
        ready: Callable[[], object] | None,
    ) -> None:
        self._function, self._tasks = function, tasks
        self._next: Iterator[int] = iter(range(len(tasks)))
        self._lock = threading.Lock()
        self._room = threading.Semaphore(count * AHEAD)
        self._answers: queue.SimpleQueue[tuple[int, object, BaseException | None]] = queue.SimpleQueue()
        self._done = False
        self._workers = _forked(count) if FORKS else [_child() for _ in range(count)]
        self._processes = {worker.process.pid: worker.process for worker in self._workers}.values()
        first = pickle.dumps(ready, protocol=5)
        for process in self._processes:
            with suppress(OSError):  # an early crash is reported when its result is missing
                cast("IO[bytes]", process.stdin).write(first)
                cast("IO[bytes]", process.stdin).flush()
        for worker in self._workers:
            threading.Thread(target=self._feed, args=(worker,), daemon=True).start()

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
        self._done = True

    def _feed(self, worker: _Worker) -> None:
        """Give a worker one task at a time until none is left."""
        while True:
            self._room.acquire()
            with self._lock:
                index = next(self._next, None)
            if index is None:
                self._room.release()
                return
            try:
                pickle.dump((self._function, self._tasks[index]), worker.into, protocol=5)
                worker.into.flush()
                value, error = pickle.load(worker.out)  # noqa: S301  written by our own child
            except (OSError, EOFError, ValueError, pickle.UnpicklingError):
                with suppress(subprocess.TimeoutExpired):
                    worker.process.wait(timeout=2)
                died = WorkerDied(
                    f"a data worker crashed (exit code {worker.process.poll()})",
                    fix="free memory, or use --workers 1",
                )
                self._answers.put((index, None, died))
                return
            self._answers.put((index, value, error))

    def close(self) -> None:
        """Shut down the workers. Idle workers exit when their input is closed, so their CPU time counts as
        ours. Busy workers are killed."""
        with self._lock:
            self._next = iter(())
        self._room.release(len(self._workers))
        if not self._done:
            self._kill()
        for worker in self._workers:
            for stream in (worker.into, worker.out, worker.process.stdin):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        for process in self._processes:
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self._kill()
                process.wait()

    def _kill(self) -> None:
        for process in self._processes:
            end_group(process)


@dataclass(frozen=True)
class _Worker:
    process: subprocess.Popen[bytes]
    """The worker's process, or the process from which the worker was forked."""
    into: IO[bytes]
    out: IO[bytes]


def _child() -> _Worker:
    process = _start([], stdout=subprocess.PIPE)
    return _Worker(process, cast("IO[bytes]", process.stdin), cast("IO[bytes]", process.stdout))


def _forked(count: int) -> list[_Worker]:
    pairs = [socket.socketpair() for _ in range(count)]
    process = _start([theirs.fileno() for _, theirs in pairs], stdout=subprocess.DEVNULL)
    workers: list[_Worker] = []
    for ours, theirs in pairs:
        theirs.close()
        workers.append(_Worker(process, ours.makefile("wb"), ours.makefile("rb")))
        ours.close()
    return workers


def _start(sockets: list[int], stdout: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-c", _START, ",".join(map(str, sockets)), *sys.path],
        stdin=subprocess.PIPE,
        stdout=stdout,
        pass_fds=sockets,
        env=settings.of_child(),
        start_new_session=True,  # the parent handles Ctrl-C and stops its children
    )


def serve(sockets: str) -> None:
    """Run as a child process of `ordered`. Loads the shared data, then processes tasks from standard input.
    With `sockets` (comma-separated file descriptors), forks one worker for each socket instead, and waits for
    all of them."""
    ready = pickle.load(sys.stdin.buffer)  # noqa: S301  written by our own parent
    if ready is not None:
        with suppress(Exception):
            ready()
    gc.freeze()  # exclude loaded data from garbage collection
    gc.enable()
    if not sockets:
        answers = os.fdopen(os.dup(1), "wb")
        os.dup2(2, 1)  # keep a library's output out of the results
        _work(sys.stdin.buffer, answers)
        return
    mine = [socket.socket(fileno=int(number)) for number in sockets.split(",")]
    for one in mine:
        if os.fork() == 0:
            for other in mine:
                if other is not one:
                    other.close()
            _work(one.makefile("rb"), one.makefile("wb"))
            os._exit(0)
    for one in mine:
        one.close()
    for _ in mine:
        code = os.waitstatus_to_exitcode(os.wait()[1])
        if code:
            os._exit(code if code > 0 else 128 - code)
    os._exit(0)  # the system frees what was loaded faster than Python


def _work(tasks: IO[bytes], answers: IO[bytes]) -> None:
    """Read (function, task) pairs and write (result, exception) pairs until the input ends or the parent
    exits."""
    with suppress(EOFError, ConnectionError):
        while True:
            function, task = pickle.load(tasks)  # noqa: S301  written by our own parent
            answer: tuple[object, BaseException | None]
            try:
                answer = (function(task), None)
            except Exception as error:  # noqa: BLE001  the parent raises every error
                answer = (None, error)
            pickle.dump(answer, answers, protocol=5)
            answers.flush()
