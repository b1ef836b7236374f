"""The process behind one or several `Generator`s, controlled from a process that need not have torch."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, Self

from orchestrate.core.child import PATIENCE_S, Child, decoded, python
from orchestrate.core.underway import work
from orchestrate.errors import OrchestrateError, RunFailed, UsageError
from orchestrate.local.run.launching import require_packages, worker_environment

NAME = "the inference process"


class _Running(NamedTuple):
    child: Child
    threads: str | None
    """The numeric libraries read it once, as they load."""


class Worker:
    """A worker that several callers use in turn. It loads the requested model unless the process already has
    it. A base that is already loaded stays, and the caller's adapter is applied to it."""

    def __init__(self) -> None:
        self._running: _Running | None = None
        self._held: Mapping[str, Any] | None = None
        self._owes = False
        self._turn = threading.Lock()
        self._whose: int | None = None
        """The thread whose turn it is."""

    @contextmanager
    def holding(self, load: Mapping[str, Any]) -> Generator[Self]:
        """Hold the worker for one caller, with `load` loaded in its process, which is started where
        necessary. Leaving before the answer has arrived ends the process, because the next caller would
        get that answer. Raises `UsageError` in a thread that has not read its previous answer to the end."""
        if self._whose == threading.get_ident():
            raise UsageError(
                "another streamed answer of the same process is still being read",
                fix="read it to its end or close() it before the next question",
            )
        with self._turn:
            self._whose = threading.get_ident()
            try:
                if self._held != load or self._running is None:
                    self._start(load)
                    self._held = None
                    self.send("hold", load)
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
        """Receive the next part of the answer. Raises the error that occurred in the process, or
        `RunFailed`."""
        child = self._here()
        try:
            answer = decoded(child.receive())
        except OrchestrateError:
            self._owes = False
            if self._running is not None and self._running.child is child and not child.running:
                self.close()
            raise
        self._owes = "piece" in answer
        return answer

    def close(self) -> None:
        """End the process, even during an answer, which is lost to the thread that waits for it."""
        running, self._running = self._running, None
        unwanted, self._owes, self._held = self._owes, False, None
        if running is not None:
            running.child.close(0 if unwanted else PATIENCE_S)

    def _start(self, load: Mapping[str, Any]) -> None:
        env = worker_environment(load["threads"])
        threads = env.get("OMP_NUM_THREADS")
        if self._running is not None and self._running.threads == threads:
            return
        self.close()
        require_packages("answering on this machine")
        child = Child(python("orchestrate.local.answers.process"), env=env, name=NAME)
        self._running = _Running(child, threads)

    def _here(self) -> Child:
        if self._running is None:
            raise RunFailed(f"{NAME} was closed during a request")
        return self._running.child
