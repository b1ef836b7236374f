"""Clients of the processes that keep models loaded. Chats, evaluations, sandboxes, servers and training
sessions use the same protocol. Torch-free."""

from __future__ import annotations

import base64
import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING, Any, Self

import msgspec

from orchestrate.core.child import PATIENCE_S, Child, Ended, decoded, python
from orchestrate.core.underway import work
from orchestrate.errors import OrchestrateError, RunFailed, UsageError
from orchestrate.local.run.launcher import require_packages, worker_environment

if TYPE_CHECKING:
    import numpy as np

NAME, TRAINS = "the inference process", "the training process"
AnswerHandler = Callable[[dict[str, Any] | None], None]


class ModelProcess(Child):
    """A process that keeps models loaded. Each message has the `id` of a request. After `follow`, any thread
    may send requests, and any number of requests may be in progress."""

    def __init__(
        self, kind: str, opening: Mapping[str, Any], *, name: str = NAME, env: Mapping[str, str] | None = None
    ) -> None:
        """Start the process. `kind` is `answers` or `sessions`, and `opening` is the argument for `open`."""
        own = worker_environment(_threads(opening))
        self.threads = own.get("OMP_NUM_THREADS")
        """Value of OMP_NUM_THREADS in the process. The numeric libraries read the variable only once."""
        self.opened: dict[str, Any] = {}
        self.lost = ""
        """The reason why the process ended. Empty while the process is running."""
        self._takes: dict[str, tuple[AnswerHandler, bool]] = {}
        self._numbers = count(1)
        self._sending = threading.Lock()
        super().__init__(python(f"orchestrate.local.{kind}.process"), env={**own, **(env or {})}, name=name)

    def open(self, opening: Mapping[str, Any]) -> None:
        """Load a base model and wait until it is ready. If loading fails, ends the process and raises the
        error."""
        try:
            self.opened = self.ask({"op": "open", "id": "", **opening})
        except BaseException:
            self.close(0)
            raise

    def follow(self, lost: Callable[[str], None]) -> None:
        """Start a thread that delivers answers. When the process ends, the thread calls `lost` and then
        passes `None` to each waiting request."""
        threading.Thread(target=self._follow, args=(lost,), daemon=True, name="answers").start()

    def _follow(self, lost: Callable[[str], None]) -> None:
        decode = msgspec.json.Decoder(dict[str, Any]).decode
        try:
            while True:
                message = decode(self.receive())
                key = str(message.pop("id", None))
                take, once = self._takes.get(key, (None, False))
                if once:
                    self.forget(key)
                if take is not None:
                    take(message)
        except Ended as ended:
            self.close(0)
            with self._sending:
                self.lost = ended.message
                takes, self._takes = list(self._takes.values()), {}
        lost(self.lost)
        for take, _ in takes:
            take(None)

    def request(self, op: str, fields: Mapping[str, Any], take: AnswerHandler, *, once: bool = True) -> str:
        """Send a request and return its key. Requests are sent in the order of the calls. `take` receives the
        answer or, with `once=False`, every message until you call `forget`. If the process ends, `take`
        receives `None`. Raises `Ended` if the process has already ended, and msgspec's errors if a field
        cannot be encoded."""
        with self._sending:
            if self.lost:
                raise Ended(self.lost, None)
            key = f"r{next(self._numbers)}"
            self._takes[key] = take, once
            try:
                with suppress(Ended):  # the thread that reads sees that too
                    self.send({"op": op, **fields, "id": key})
            except BaseException:
                self._takes.pop(key, None)
                raise
        return key

    def forget(self, key: str) -> bool:
        """Stop delivering messages for a request. Returns False if the request was not waiting for
        messages."""
        return self._takes.pop(key, None) is not None


class Worker:
    """A worker process that several callers share, one at a time. Loads each caller's model, unless it is
    already loaded."""

    def __init__(self) -> None:
        self._child: ModelProcess | None = None
        self._held: Mapping[str, Any] | None = None
        self._owes = False
        self._turn = threading.Lock()
        self._whose: int | None = None
        """Id of the thread that currently uses the worker, if any."""

    @contextmanager
    def holding(self, load: Mapping[str, Any]) -> Generator[Self]:
        """Reserve the worker for one caller. If necessary, starts the process and loads the model that `load`
        describes. If the context exits before the complete answer has arrived, ends the process, because the
        next caller would otherwise receive the rest of that answer. Raises `UsageError` if the current thread
        already holds the worker, for example because an earlier stream was not read to its end."""
        if self._whose == threading.get_ident():
            raise UsageError(
                "another stream of the same process is still open",
                fix="read the open stream to its end or close() it before you send the next prompt",
            )
        with self._turn:
            self._whose = threading.get_ident()
            try:
                if self._held != load or self._child is None:
                    self._start(load)
                    self._held = None
                    self.send("open", load)
                    with work("loading the model"):
                        self.receive()
                    self._held = load
                yield self
            finally:
                self._whose = None
                if self._owes:
                    self.close()

    def send(self, op: str, asked: Mapping[str, Any]) -> None:
        self._owes = True
        self._here().send({"op": op, "id": "", **asked})

    def receive(self) -> dict[str, Any]:
        """Receive the next part of the answer. Raises any error that the process reports, and `RunFailed` if
        the process ended."""
        child = self._here()
        try:
            answer = decoded(child.receive())
        except OrchestrateError:
            self._owes = False
            if self._child is child and not child.running:
                self.close()
            raise
        self._owes = "piece" in answer
        return answer

    def close(self) -> None:
        """End the process, even while it is answering. A thread that is waiting for the answer doesn't
        receive it."""
        child, self._child = self._child, None
        unwanted, self._owes, self._held = self._owes, False, None
        if child is not None:
            child.close(0 if unwanted else PATIENCE_S)

    def _start(self, load: Mapping[str, Any]) -> None:
        if self._child is not None:
            if self._child.threads == worker_environment(_threads(load)).get("OMP_NUM_THREADS"):
                return
            self.close()
        require_packages("answering on this machine")
        self._child = ModelProcess("answers", load)

    def _here(self) -> ModelProcess:
        if self._child is None:
            raise RunFailed(f"{NAME} was closed during a request")
        return self._child


def array_of(value: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    """Decode an array from an answer's `data` (base64), `kind` and `shape`."""
    import numpy as np  # the base install has none

    return np.frombuffer(base64.b64decode(value["data"]), dtype=value["kind"]).reshape(value["shape"])


def _threads(opening: Mapping[str, Any]) -> int | None:
    threads = opening.get("threads")
    return threads if isinstance(threads, int) else None
