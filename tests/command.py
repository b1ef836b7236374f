"""Runs `orchestrate`, or a function of the tests, in a process of its own.

It is forked from one that has imported it all (`tests/forking.py`), and is what a shell starts but for the
second of imports: its own environment, folder, streams and exit code, nothing shared with the tests or with
other commands.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import tempfile
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import wait
from pathlib import Path

from tests import forking

LIMIT_S = 550
"""Before the one of pytest, so that what it said is shown."""
UMASK = os.umask(0)
os.umask(UMASK)


class Process:
    """One that was started, as `multiprocessing` has it; it ends with the last that knows of it."""

    def __init__(self, pid: int, line: int) -> None:
        self.pid = pid
        self.sentinel = line
        """Can be read once it has ended."""
        self._code: int | None = None
        weakref.finalize(self, os.close, line)

    @property
    def exitcode(self) -> int | None:
        self.join(0)
        return self._code

    def join(self, within_s: float | None = None) -> None:
        if self._code is None and wait([self.sentinel], within_s):
            self._code = int.from_bytes(os.read(self.sentinel, 8) or b"\1", "big", signed=True)

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self._send(signal.SIGKILL)

    def terminate(self) -> None:
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        if self.is_alive():
            os.kill(self.pid, number)


@dataclass(frozen=True)
class Ended:
    """`code` is negative when a signal ended it, as `subprocess` has it."""

    code: int
    out: bytes
    err: bytes


def run(
    arguments: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    stdin: bytes = b"",
    program: Callable[[list[str]], object] | None = None,
) -> Ended:
    """Runs `program`, or `orchestrate` without one. Raises `TimeoutError` after `LIMIT_S`."""
    with tempfile.TemporaryDirectory(prefix="orchestrate-command-") as folder:
        streams = [Path(folder) / name for name in ("in", "out", "err")]
        streams[0].write_bytes(stdin)
        process = start(program or orchestrate, arguments, cwd=cwd, env=env, streams=streams)
        process.join(LIMIT_S)
        if process.is_alive():
            process.kill()
            raise TimeoutError(f"{arguments}: no end after {LIMIT_S} s; {streams[2].read_text()}")
        assert process.exitcode is not None
        return Ended(process.exitcode, streams[1].read_bytes(), streams[2].read_bytes())


def start(
    program: Callable[[list[str]], object],
    arguments: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    streams: list[Path],
    terminal: bool = False,
) -> Process:
    """`streams`: the files that it reads from, writes to and complains to; with `terminal` one terminal,
    the one of its session. `program` is found by its name."""
    task = pickle.dumps((program, arguments, streams, terminal))
    day = {"ORCHESTRATE_TODAY": os.environ["ORCHESTRATE_TODAY"]}
    nothing = os.open(os.devnull, os.O_RDWR)
    try:
        pid, line = forking.begin(["tests.command", task], day | dict(env), cwd, UMASK, (nothing, nothing, 2))
    finally:
        os.close(nothing)
    return Process(pid, line.detach())


def ended(process: Process, within_s: float) -> int:
    """Its exit code, the negative signal if one ended it. Raises `TimeoutError`."""
    process.join(within_s)
    if process.exitcode is None:
        raise TimeoutError(f"process {process.pid} goes on after {within_s} s")
    return process.exitcode


def main(task: bytes) -> None:
    """In the fork: takes the streams and runs the program."""
    program, arguments, streams, terminal = pickle.loads(task)
    # The first terminal that the fork opens is that of its session.
    for number, path in enumerate(streams):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    if terminal:
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    program(arguments)


def orchestrate(arguments: list[str]) -> None:
    from orchestrate.cli import main

    sys.argv = ["orchestrate", *arguments]
    main()


if __name__ == "__main__":
    __package__ = ""  # a command is called by its words, not by its module
    main(sys.argv[1])  # type: ignore[arg-type]
