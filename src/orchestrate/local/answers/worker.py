"""The process behind one `Generator` or several, from a process that need not have torch."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import IO, Any, Self

import msgspec

from orchestrate.errors import RunFailed
from orchestrate.local import pipe
from orchestrate.local.run.launching import require_packages, worker_environment
from orchestrate.underway import work


class Worker:
    """Those who share it take turns. What they ask for is loaded where it is not what the process holds; a
    base that is there already stays, and gets their adapter."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._held: Mapping[str, Any] | None = None
        self._owes = False
        self._turn = threading.RLock()

    @contextmanager
    def holding(self, load: Mapping[str, Any]) -> Generator[Self]:
        """With what `load` names in the process, started where it is not; nobody else asks meanwhile. Whoever
        leaves before the answer has come ends the process: the next one would get that answer."""
        with self._turn:
            try:
                if self._held != load:
                    self._start(load)
                    self._held = None
                    self.send({"load": load})
                    with work("loading the model"):
                        self.receive()
                    self._held = load
                yield self
            finally:
                if self._owes:
                    self.close()

    def send(self, message: Mapping[str, Any]) -> None:
        process = self._process
        assert process is not None and process.stdin is not None  # noqa: S101  started before
        self._owes = True
        try:
            process.stdin.write(msgspec.json.encode(message) + b"\n")
            process.stdin.flush()
        except BrokenPipeError as error:
            raise self._died() from error

    def receive(self) -> dict[str, Any]:
        """What comes next of the answer. Raises what went wrong in the process, or `RunFailed`."""
        process = self._process
        assert process is not None and process.stdout is not None  # noqa: S101  started before
        line = process.stdout.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        answer = msgspec.json.decode(line, type=dict[str, Any])
        self._owes = "piece" in answer
        if "error" in answer:
            raise pipe.raised(answer)
        return answer

    def close(self) -> None:
        process, self._process = self._process, None
        self._held, self._owes = None, False
        if process is not None:
            pipe.end(process)
            assert process.stdout is not None  # noqa: S101  opened as a pipe
            process.stdout.close()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self, load: Mapping[str, Any]) -> None:
        if self._process is not None:
            return
        require_packages("answering on this machine")
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "orchestrate.local.answers.answering"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=worker_environment(load["threads"]),
        )

    def _died(self) -> RunFailed:
        tail = ""
        if self._log is not None:
            self._log.seek(0)
            tail = self._log.read()[-2000:].decode(errors="replace").strip()
        code = self._process.wait() if self._process else None
        self.close()
        return RunFailed(f"the process that answers ended with {code}:\n{tail}", fix="orchestrate doctor")
