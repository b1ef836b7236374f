"""Runs `orchestrate`, or a function of the tests, in a process of its own.

It is forked from one that has imported it all (`tests/warm.py`), and is what a shell starts but for the
second of imports: its own environment, folder, streams and exit code, nothing shared with the tests or with
other commands. `multiprocessing`'s fork server does the forking.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from tests import forking

LIMIT_S = 550
"""Before the one of pytest, so that what it said is shown."""
_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.warm", __name__])


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
        code = process.exitcode
        process.close()
        assert code is not None
        return Ended(code, streams[1].read_bytes(), streams[2].read_bytes())


def start(
    program: Callable[[list[str]], object],
    arguments: list[str],
    *,
    cwd: Path,
    env: Mapping[str, str],
    streams: list[Path],
    terminal: bool = False,
) -> ForkServerProcess:
    """`streams`: the files that it reads from, writes to and complains to; with `terminal` one terminal,
    the one of its session. `program` is found by its name."""
    day = {"ORCHESTRATE_TODAY": os.environ["ORCHESTRATE_TODAY"]}
    task = (program, arguments, str(cwd), day | dict(env), streams, terminal, forking.python())
    process = _server.Process(target=_become, args=task)
    process.start()
    return process


def ended(process: ForkServerProcess, within_s: float) -> int:
    """Its exit code, the negative signal if one ended it. Raises `TimeoutError`."""
    process.join(within_s)
    if process.exitcode is None:
        raise TimeoutError(f"{process} goes on after {within_s} s")
    return process.exitcode


def _become(
    program: Callable[[list[str]], object],
    arguments: list[str],
    cwd: str,
    env: dict[str, str],
    streams: list[Path],
    terminal: bool,
    python: str,
) -> None:
    """In the fork: takes the streams, the folder and the environment, and runs the program to its end."""
    if terminal:
        os.setsid()  # the first terminal that is opened from here on is the session's
        sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for number, path in enumerate(streams):
        file = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    if encoding := env.get("PYTHONIOENCODING"):  # read by a new interpreter, which this is not
        sys.stdout.reconfigure(encoding=encoding)  # type: ignore[union-attr]
        sys.stderr.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115  the fork server gave it /dev/null
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.executable = python
    try:
        program(arguments)
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()


def orchestrate(arguments: list[str]) -> None:
    from orchestrate.cli import main

    sys.argv = ["orchestrate", *arguments]
    main()
