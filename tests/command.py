"""Runs `orchestrate`, or a function of the tests, in a process of its own.

It is forked from one that has imported it all (`tests/forking.py`), and is what a shell starts but for the
second of imports: its own environment, folder, streams and exit code, nothing shared with the tests or with
other commands.
"""

from __future__ import annotations

import contextvars
import gc
import logging
import os
import pickle
import re
import signal
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
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


READ_ONCE = re.compile(
    r"HF_(?!HUB_OFFLINE)|LANG|LC_|OMP_|PATH$|PYTHON(?!IOENCODING$)|SSL_|TZ$|.*_PROXY$", re.IGNORECASE
)
"""Variables that Python and the libraries read only once."""


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


def here(arguments: list[str], *, cwd: Path, env: Mapping[str, str], stdin: bytes = b"") -> Ended:
    """Runs `orchestrate` in this process, for a fourth of the processor time. For what is judged by its
    streams and its exit code: a fault or a signal would be the tests' own."""
    if any(READ_ONCE.match(name) and env.get(name) != os.environ.get(name) for name in {**env, **os.environ}):
        return run(arguments, cwd=cwd, env=env, stdin=stdin)
    day = {"ORCHESTRATE_TODAY": os.environ["ORCHESTRATE_TODAY"]}
    encoding, _, errors = env.get("PYTHONIOENCODING", "utf-8").partition(":")
    with tempfile.TemporaryDirectory(prefix="orchestrate-command-") as folder:
        streams = [Path(folder) / name for name in ("in", "out", "err")]
        streams[0].write_bytes(stdin)
        with (
            streams[0].open(encoding=encoding, errors=errors or None) as given,
            streams[1].open("w", encoding=encoding, errors=errors or None) as out,
            streams[2].open("w", encoding=encoding, errors="backslashreplace", buffering=1) as err,
            _as_a_process(day | dict(env), cwd),
        ):
            sys.stdin, sys.stdout, sys.stderr = given, out, err
            try:
                contextvars.Context().run(orchestrate, arguments)
            except SystemExit as ended:
                code = int(ended.code or 0)
        return Ended(code, streams[1].read_bytes(), streams[2].read_bytes())


@contextmanager
def _as_a_process(env: dict[str, str], cwd: Path) -> Generator[None]:
    """What a process has of its own is set, and is afterwards as it was before."""
    from huggingface_hub import constants

    from orchestrate import profile, settings
    from orchestrate.commands.terminal import console

    root = logging.getLogger()
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    main, package = sys.modules["__main__"], sys.modules["__main__"].__package__
    before = dict(os.environ), Path.cwd(), sys.argv, sys.executable, (sys.stdin, sys.stdout, sys.stderr)
    log = root.level, root.handlers[:]
    handlers = {number: signal.getsignal(number) for number in numbers}
    collecting, freeze, callbacks = gc.get_threshold(), gc.freeze, gc.callbacks[:]
    offline, known, described = constants.HF_HUB_OFFLINE, set(settings._known), dict(profile._described_in)
    with warnings.catch_warnings():
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        try:
            sys.executable, main.__package__ = forking.python(), ""
            os.environ.clear()
            os.environ.update(env)
            os.chdir(cwd)
            root.handlers[:], root.level = [], logging.WARNING
            for one in (console.out, console.err):
                one.width, one._color_system = int(env.get("COLUMNS", 120)), None
            gc.freeze = lambda: None
            constants.HF_HUB_OFFLINE = bool(env.get("HF_HUB_OFFLINE"))
            settings._known.clear()
            profile._described_in.clear()
            yield
        finally:
            os.environ.clear()
            os.environ.update(before[0])
            os.chdir(before[1])
            sys.argv, sys.executable = before[2:4]
            main.__package__ = package
            sys.stdin, sys.stdout, sys.stderr = before[4]
            root.handlers[:], root.level = log[1], log[0]
            for number, handler in handlers.items():
                signal.signal(number, handler)
            gc.freeze, gc.callbacks[:] = freeze, callbacks
            gc.set_threshold(*collecting)
            constants.HF_HUB_OFFLINE = offline
            settings._known |= known
            profile._described_in.clear()
            profile._described_in.update(described)
            gc.collect(0)  # what the end of a process leaves open is closed without a warning


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
        raise TimeoutError(f"process {process.pid} continues past {within_s} s")
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
