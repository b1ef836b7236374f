"""A user's `def grade(sample, item) -> float`, in a process of its own: run as a script, this file is that
process.

It answers each line of its input by one line: the source by `{}`, a question by `{"score": ...}`, and what
the code did wrong by `{"error": ...}`.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

STARTUP_SECONDS = 30.0
"""For Python and the code's own imports, beside the limit for one answer."""


class GraderCode:
    """Starts the process with the first answer to grade, and again when an answer killed it."""

    def __init__(self, source: str, seconds: float) -> None:
        self._source, self._seconds = source, seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._broken: dict[str, Any] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        """`{"score": ...}` or `{"error": ...}`."""
        if self._broken is None and self._process is None:
            self._start()
        if self._broken is not None:
            return self._broken
        return self._exchange(question, self._seconds)

    def close(self) -> None:
        self._stop()
        if self._folder is not None:
            self._folder.cleanup()

    def _start(self) -> None:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="grader-")
        # No environment: keys are not the grader's business.
        kept = {name: os.environ[name] for name in ("PATH", "LANG", "SYSTEMROOT") if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(__file__).resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env=kept,
            start_new_session=True,  # so that what the code starts can be ended with it
        )
        self._answers = queue.SimpleQueue()
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        said = self._exchange(self._source, STARTUP_SECONDS + self._seconds)
        self._broken = said or None

    def _exchange(self, line: Any, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdin is not None  # noqa: S101  opened as a pipe
        with contextlib.suppress(OSError):  # the code ended its own process
            process.stdin.write(json.dumps(line).encode() + b"\n")
            process.stdin.flush()
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._stop()
            return {"error": f"the code took longer than {seconds:g} s"}
        if answer:
            return json.loads(answer)
        return {"error": f"the code's process ended with {self._stop()}"}

    def _stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None  # noqa: S101  opened as a pipe
        code = process.poll()
        with contextlib.suppress(OSError):
            process.stdin.close()
        _end_all(process)
        return process.wait() if code is None else code


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """Also what the code left running beside itself."""
    killpg = getattr(os, "killpg", None)
    with contextlib.suppress(OSError):
        if killpg is None:
            process.kill()
        else:
            killpg(process.pid, signal.SIGKILL)


def _read(process: subprocess.Popen[bytes], answers: queue.SimpleQueue[bytes]) -> None:
    """A reader of its own can be waited for with a limit, on every system."""
    assert process.stdout is not None  # noqa: S101  opened as a pipe
    with process.stdout as lines:
        for line in lines:
            if line.endswith(b"\n"):
                answers.put(line)
    process.wait()
    answers.put(b"")


def _serve() -> None:
    # What the code prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    me = os.getpid()
    names: dict[str, Any] = {"__name__": "grader"}
    for number, line in enumerate(sys.stdin.buffer):
        answer: dict[str, Any]
        try:
            if number == 0:
                exec(compile(json.loads(line), "grader", "exec"), names)  # noqa: S102  what it is for
                there = callable(names.get("grade"))
                answer = {} if there else {"error": "there is no grade(sample, item) in the code"}
            else:
                answer = {"score": float(names["grade"](**json.loads(line)))}
        except Exception as error:  # noqa: BLE001  whatever the code does is its answer
            answer = {"error": f"{type(error).__name__}: {error}"}
        if os.getpid() != me:
            os._exit(0)  # a copy that the code made of this process has no say
        answers.write(json.dumps(answer).encode() + b"\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
