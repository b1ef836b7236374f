"""Exchange JSON lines with our own child processes over standard input and output. A request can have a
timeout. Errors include the end of the child's stderr. When a child ends, the processes that it started are
killed.

    with Child(python("orchestrate.some.module"), env=of_child(), name="the counter") as child:
        answer = child.ask({"words": text}, seconds=10)

The second half of the module is for the child process.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

import msgspec

from orchestrate import errors
from orchestrate.errors import OrchestrateError, RunFailed

PATIENCE_S = 5
"""Time in seconds for a child to exit after its input is closed."""
AHEAD = 64
"""Maximum number of lines to buffer in memory. Further output stays in the pipe."""
TAIL_BYTES = 2000
LOOK_S = 0.5
"""Seconds between checks that the parent process is still alive."""
_KNOWN = (errors.UsageError, errors.ConfigError, errors.DataError, errors.SetupError)


class Ended(RunFailed):
    """Raised if the process exited or was closed before it sent a response. `code` is the return code, as in
    `subprocess`."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message, fix="orchestrate doctor")
        self.code = code


class TooLate(RunFailed):
    """Raised if the response did not arrive in time. The process was then killed."""


def python(module: str) -> list[str]:
    """Return the command that runs one of our modules in a new Python process."""
    return [sys.executable, "-P", "-m", module]


class Child:
    """A child process in its own process group. Creating the object starts the process. Ctrl-C only reaches
    the parent. Processes that the child started end with the child. Use one thread to read and one to write.
    Raises `OSError` if the command does not exist."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str],
        name: str,
        cwd: str | Path | None = None,
        keeps_words: bool = True,
        longest_bytes: int = -1,
        ends_all: bool = True,
    ) -> None:
        """Start the process. `name` appears in errors. `keeps_words` keeps its standard error for error
        messages. Lines longer than `longest_bytes` arrive in parts. Set `ends_all` to False if processes that
        it starts should outlive it."""
        self.name, self._longest, self._ends_all = name, longest_bytes, ends_all
        self._words = tempfile.TemporaryFile() if keeps_words else None  # noqa: SIM115  open as long as the process
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._words or subprocess.DEVNULL,
                cwd=cwd,
                env=env,
                start_new_session=ends_all,
            )
        except BaseException:
            if self._words is not None:
                self._words.close()
            raise
        self._closed = False
        self._lines: queue.Queue[bytes] = queue.Queue(AHEAD)
        self._closing = threading.Lock()
        self._reader = threading.Thread(target=self._read, daemon=True, name=name)
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close(0 if kind else PATIENCE_S)

    @property
    def running(self) -> bool:
        return not self._closed and self.process.poll() is None

    # -- asking --------------------------------------------------------------------------------------------

    def send(self, message: Any) -> None:
        """Send a message. Bytes must already be JSON. Raises `Ended` if the process has ended."""
        line = (message if isinstance(message, bytes) else msgspec.json.encode(message)) + b"\n"
        stdin = self.process.stdin
        assert stdin is not None  # noqa: S101  opened as a pipe
        try:
            stdin.write(line)
            stdin.flush()
        except (OSError, ValueError) as error:
            raise self._ended() from error

    def receive(self, seconds: float | None = None) -> bytes:
        """Return the next line. Raises `Ended` if the process ends first, and `TooLate` if no line arrives
        within `seconds`."""
        try:
            line = self._lines.get(timeout=seconds)
        except queue.Empty:
            self.kill()
            raise TooLate(f"{self.name} did not answer within {seconds:g} s") from None
        if not line:
            self._put(b"")  # for whoever asks again
            raise self._ended()
        return line

    def exchange(self, message: Any, seconds: float) -> bytes:
        """Send a message and return the response, which is the next line of output. Sending never blocks,
        even if the process does not read. Raises `Ended` if the process ends first, and `TooLate` if no line
        arrives in time."""
        threading.Thread(target=self._send_quietly, args=(message,), daemon=True).start()
        return self.receive(seconds)

    def ask(self, message: Any, seconds: float | None = None) -> dict[str, Any]:
        """Send a message and return the decoded response. Raises `Ended` if the process ends first, `TooLate`
        if no response arrives in time, and any error that the process encoded with `failure`."""
        if seconds is not None:
            return decoded(self.exchange(message, seconds))
        self.send(message)
        return decoded(self.receive())

    def words(self) -> str:
        """Return the end of the process's stderr."""
        with self._closing:
            if self._words is None or self._words.closed:
                return ""
            size = self._words.seek(0, os.SEEK_END)
            self._words.seek(max(0, size - TAIL_BYTES))
            return self._words.read().decode(errors="replace").strip()

    # -- ending --------------------------------------------------------------------------------------------

    def kill(self) -> int:
        """Kill the process, and all processes in its group that it started."""
        if self._ends_all:
            end_group(self.process)
        else:
            self.process.kill()
        return self.process.wait()

    def close(self, patience_s: float = PATIENCE_S) -> None:
        """Close the child's input so that the child exits, and kill the child if it is still running after
        `patience_s` seconds. Responses that it has already written can still be received."""
        self._closed = True
        with suppress(OSError):  # it may not have taken all that was written
            if self.process.stdin is not None:
                self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=patience_s)
        self.kill()
        self._reader.join(LOOK_S)  # longer only where something has left the group with its output
        if self._reader.is_alive():
            self._put(b"")
        if self._words is not None:
            with self._closing:  # its last user may close it while another thread reads why it ended
                self._words.close()

    def _ended(self) -> Ended:
        if self._closed:
            return Ended(f"{self.name} was closed during a request", None)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(timeout=PATIENCE_S)
        code = self.kill() if (found := self.process.poll()) is None else found
        return Ended(f"{self.name} ended with {code}:\n{self.words()}".rstrip(":\n"), code)

    def _send_quietly(self, message: Any) -> None:
        with suppress(Ended):  # who waits for the answer sees it too
            self.send(message)

    def _read(self) -> None:
        stdout = self.process.stdout
        assert stdout is not None  # noqa: S101  opened as a pipe
        with stdout, suppress(OSError, ValueError):
            while line := stdout.readline(self._longest):
                if line.endswith(b"\n") or len(line) == self._longest:
                    self._put(line)
        self._put(b"")
        try:
            self.process.wait(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:  # it can answer no more, and may leave a long question unread
            self.kill()

    def _put(self, line: bytes) -> None:
        while True:
            try:
                self._lines.put(line, timeout=LOOK_S)
                return
            except queue.Full:
                if self._closed and line:
                    return
                if self._closed:  # there is room for the end
                    with suppress(queue.Empty):
                        self._lines.get_nowait()


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that was started in a group of its own, and every other process in the group."""
    if sys.platform == "win32":
        process.kill()
    else:
        with suppress(OSError):
            os.killpg(process.pid, signal.SIGKILL)


def decoded(line: bytes) -> dict[str, Any]:
    """Decode a response from a child that uses `answering`. If the response is an error, raises it."""
    answer = msgspec.json.decode(line, type=dict[str, Any])
    if "error" in answer and "kind" in answer:
        raise raised(answer)
    return answer


def raised(answer: Mapping[str, Any]) -> OrchestrateError:
    """Return the exception for an error that `failure` encoded."""
    kind = getattr(errors, str(answer.get("kind")), None)
    return (kind if kind in _KNOWN else RunFailed)(str(answer["error"]), fix=answer.get("fix"))


# -- in the child process ----------------------------------------------------------------------------------


def answering() -> Callable[[Mapping[str, Any]], None]:
    """Reserve standard output for responses, redirect all other output to standard error, and exit this
    process once its parent has exited. Returns a thread-safe function that sends a response."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    writing = threading.Lock()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True, name="parent").start()

    def send(message: Mapping[str, Any]) -> None:
        with writing:
            answers.write(msgspec.json.encode(message) + b"\n")
            answers.flush()

    return send


def questions() -> Iterator[dict[str, Any]]:
    """Yield the decoded requests from standard input until it is closed."""
    decode = msgspec.json.Decoder(dict[str, Any]).decode
    return (decode(line) for line in sys.stdin.buffer)


class LineWorker(Protocol):
    """A worker that reads requests in one thread and handles them in the main thread."""

    def read(self, lines: Any) -> None: ...

    def work(self) -> None:
        """Handle requests until the input has ended and every request has been answered."""
        ...


def serve_requests(made: Callable[[Callable[[Mapping[str, Any]], None]], LineWorker]) -> int:
    """Run a worker that handles requests concurrently, and return the process's exit code. `made` is a
    factory: it takes the callback that sends a response, and returns the worker."""
    send = answering()
    try:
        worker = made(send)
        threading.Thread(target=worker.read, args=(sys.stdin.buffer,), daemon=True, name="reads").start()
        worker.work()
    except BrokenPipeError:
        return 0
    except Exception as error:  # noqa: BLE001  the asking process gets it
        send(failure(error))
        return 1
    return 0


def failure(error: Exception) -> dict[str, Any]:
    """Encode an error as a response. For an unexpected error, also prints the traceback to standard error."""
    if not isinstance(error, OrchestrateError):
        with suppress(OSError):  # no room for it
            traceback.print_exception(error)
    fix = error.fix if isinstance(error, OrchestrateError) else None
    return {"error": f"{error}" or type(error).__name__, "kind": type(error).__name__, "fix": fix}


def _end_with(parent: int) -> None:
    """Exit once the parent has exited, because nobody waits for the answers any more."""
    while os.getppid() == parent:
        time.sleep(LOOK_S)
    os._exit(1)


def end_with_input() -> None:
    """Exit this process as soon as its parent has exited. The parent holds the other end of standard input
    and never writes to it."""

    def wait() -> None:
        sys.stdin.buffer.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="parent").start()
