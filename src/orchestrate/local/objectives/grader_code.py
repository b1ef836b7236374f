"""A user's `def grade(sample, item) -> float`, in a process of its own (`grader_process.py`), as far from
everything else as `isolation` can have it."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Any, cast

from orchestrate.local.objectives.isolation import Isolation

_AHEAD = 4
"""Answers that may wait to be read; there is one to each question."""
_LONGEST_BYTES = 64 << 10
STARTUP_SECONDS = 30.0
"""For Python and the code's own imports, beside the limit for one answer."""


class GraderCode:
    """Starts the process with the first answer to grade, and again when an answer killed it."""

    def __init__(self, source: str, seconds: float, isolation: Isolation) -> None:
        self._source, self._seconds, self._isolation = source, seconds, isolation
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.Queue[bytes] = queue.Queue(_AHEAD)
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
        script = Path(__file__).resolve().with_name("grader_process.py")
        self._process = subprocess.Popen(
            self._isolation.command(script, Path(self._folder.name)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=self._folder.name,
            env=self._isolation.environment(),
            start_new_session=True,  # so that what the code starts can be ended with it
        )
        self._answers = queue.Queue(_AHEAD)
        threading.Thread(target=_read, args=(self._process, self._answers), daemon=True).start()
        said = self._exchange(self._source, STARTUP_SECONDS + self._seconds)
        self._broken = said or None

    def _exchange(self, line: Any, seconds: float) -> dict[str, Any]:
        process = self._process
        assert process is not None  # noqa: S101  started by `ask`
        # Code that reads nothing would hold the writer up.
        threading.Thread(
            target=_write, args=(process, json.dumps(line).encode() + b"\n"), daemon=True
        ).start()
        try:
            answer = self._answers.get(timeout=seconds)
        except queue.Empty:
            self._stop()
            return {"error": f"the code took longer than {seconds:g} s"}
        if not answer:
            return {"error": f"the code's process ended with {self._stop()}"}
        if (said := _said(answer)) is None:
            self._stop()
            return {"error": "the code wrote into its own answers; it was ended"}
        return said

    def _stop(self) -> int | None:
        process, self._process = self._process, None
        if process is None:
            return None
        assert process.stdin is not None  # noqa: S101  opened as a pipe
        code = process.poll()
        _end_all(process)
        with contextlib.suppress(OSError, ValueError):
            process.stdin.close()
        return process.wait() if code is None else code


def _end_all(process: subprocess.Popen[bytes]) -> None:
    """Also what the code left running beside itself."""
    killpg = getattr(os, "killpg", None)
    with contextlib.suppress(OSError):
        if killpg is None:
            process.kill()
        else:
            killpg(process.pid, signal.SIGKILL)


def _write(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None  # noqa: S101  opened as a pipe
    with contextlib.suppress(OSError, ValueError):  # the code ended its own process, or was ended
        process.stdin.write(line)
        process.stdin.flush()


def _read(process: subprocess.Popen[bytes], answers: queue.Queue[bytes]) -> None:
    """A reader of its own can be waited for with a limit, on every system. What comes unasked fills no
    memory: it is left in the pipe."""
    assert process.stdout is not None  # noqa: S101  opened as a pipe
    with process.stdout as lines, contextlib.suppress(queue.Full):
        while line := lines.readline(_LONGEST_BYTES):
            if line.endswith(b"\n") or len(line) == _LONGEST_BYTES:
                answers.put(line, timeout=STARTUP_SECONDS)
        process.wait()
        answers.put(b"", timeout=STARTUP_SECONDS)


def _said(answer: bytes) -> dict[str, Any] | None:
    """An answer as our part of the process writes it, `None` for all that the code wrote itself."""
    try:
        said: Any = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    match said:
        case {"score": int() | float()} | {"error": str()}:
            return cast("dict[str, Any]", said) if len(cast("dict[str, Any]", said)) == 1 else None
        case dict() if not said:
            return {}
        case _:
            return None
