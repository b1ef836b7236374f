"""The process behind one `Generator` or several, from a process that need not have torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, NamedTuple, Self

import msgspec

from orchestrate.errors import RunFailed, UsageError
from orchestrate.local import pipe
from orchestrate.local.run.launching import require_packages, worker_environment
from orchestrate.underway import work


class _Running(NamedTuple):
    process: subprocess.Popen[bytes]
    log: IO[bytes]
    threads: str | None
    """The numeric libraries read it once, as they load."""


class Worker:
    """Those who share it take turns. What they ask for is loaded where it is not what the process holds; a
    base that is there already stays, and gets their adapter."""

    def __init__(self) -> None:
        self._running: _Running | None = None
        self._held: Mapping[str, Any] | None = None
        self._owes = False
        self._turn = threading.Lock()
        self._whose: int | None = None
        """The thread whose turn it is."""

    @contextmanager
    def holding(self, load: Mapping[str, Any]) -> Generator[Self]:
        """With what `load` names in the process, started where it is not; nobody else asks meanwhile. Whoever
        leaves before the answer has come ends the process: the next one would get that answer. Raises
        `UsageError` in a thread that has not read its last answer to the end."""
        if self._whose == threading.get_ident():
            raise UsageError(
                "a streamed answer of the same process has not been read to its end",
                fix="read it to its end or close() it before the next question",
            )
        with self._turn:
            self._whose = threading.get_ident()
            try:
                if self._held != load or self._running is None:
                    self._start(load)
                    self._held = None
                    self.send({"load": load})
                    with work("loading the model"):
                        self.receive()
                    self._held = load
                yield self
            finally:
                self._whose = None
                if self._owes:
                    self.close()

    def send(self, message: Mapping[str, Any]) -> None:
        line = msgspec.json.encode(message) + b"\n"
        running = self._here()
        assert running.process.stdin is not None  # noqa: S101  opened as a pipe
        self._owes = True
        try:
            running.process.stdin.write(line)
            running.process.stdin.flush()
        except (BrokenPipeError, ValueError) as error:
            raise self._died(running) from error

    def receive(self) -> dict[str, Any]:
        """What comes next of the answer. Raises what went wrong in the process, or `RunFailed`."""
        running = self._here()
        assert running.process.stdout is not None  # noqa: S101  opened as a pipe
        line = b""
        with suppress(ValueError):  # closed by another thread
            line = running.process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died(running)
        answer = msgspec.json.decode(line, type=dict[str, Any])
        self._owes = "piece" in answer
        if "error" in answer:
            raise pipe.raised(answer)
        return answer

    def close(self) -> None:
        """Ends the process, also amid an answer, which is lost to the thread that waits for it."""
        running, self._running = self._running, None
        unwanted, self._owes, self._held = self._owes, False, None
        if running is not None:
            if unwanted:
                running.process.kill()
            pipe.end(running.process)
            assert running.process.stdout is not None  # noqa: S101  opened as a pipe
            running.process.stdout.close()
            running.log.close()

    def _start(self, load: Mapping[str, Any]) -> None:
        env = worker_environment(load["threads"])
        threads = env.get("OMP_NUM_THREADS")
        if self._running is not None and self._running.threads == threads:
            return
        self.close()
        require_packages("answering on this machine")
        log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrate.local.answers.answering"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=env,
        )
        self._running = _Running(process, log, threads)

    def _here(self) -> _Running:
        if self._running is None:
            raise _closed()
        return self._running

    def _died(self, running: _Running) -> RunFailed:
        if self._running is not running:
            return _closed()
        code = running.process.wait()
        running.log.seek(0)
        tail = running.log.read()[-2000:].decode(errors="replace").strip()
        self.close()
        return RunFailed(f"the process that answers ended with {code}:\n{tail}", fix="orchestrate doctor")


def _closed() -> RunFailed:
    return RunFailed("the process that answers was closed amid a question")
