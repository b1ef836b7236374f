"""Which process works on a job, and whether it still lives. A process id alone does not tell: ids are used
again, so the start time is kept beside it."""

from __future__ import annotations

import atexit
import gc
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import msgspec

from orchestrate.settings import environment
from orchestrate.types import Record

NO_COMPILER = "TORCHDYNAMO_DISABLE"
"""Set to 1, nothing is compiled by torch."""
FOREIGN_HEARTBEAT_S = 120.0
"""On another machine only the heartbeat can be seen; older than this, the worker counts as dead."""


class WorkerId(Record, frozen=True, kw_only=True):
    pid: int
    started: str
    """The kernel's start time of the process, in whatever unit the system counts; compared only for
    equality."""
    machine: str


def me() -> WorkerId:
    pid = os.getpid()
    return WorkerId(pid=pid, started=started(pid) or "", machine=socket.gethostname())


def started(pid: int) -> str | None:
    """When the process started; `None` when there is none, or only its unreaped remains."""
    if platform.system() == "Linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
        fields = stat[stat.rfind(")") + 2 :].split()  # the command's name may hold blanks and brackets
        return None if fields[0] in "ZX" else fields[19]
    shown = subprocess.run(
        ["ps", "-o", "state=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
        env=environment.of_child(),
    ).stdout.strip()
    return None if not shown or shown.startswith("Z") else shown.partition(" ")[2].strip()


def alive(path: Path) -> bool:
    """Whether the worker named in the file at `path` lives; a foreign machine's is judged by its
    heartbeat."""
    try:
        worker = WorkerId.from_json(path.read_bytes())
        age = time.time() - path.stat().st_mtime
    except (OSError, msgspec.MsgspecError):
        return False
    if worker.machine != socket.gethostname():
        return age < FOREIGN_HEARTBEAT_S
    return started(worker.pid) == worker.started


@contextmanager
def importing() -> Generator[None]:
    """While the training libraries load. They make a million objects that stay, and looking again and again
    for garbage among them takes a seventh of the time. And bitsandbytes has torch compile what it has no
    kernels for, none of which we call: to have the compiler there takes 2 s and 40 MB."""
    asked = os.environ.get(NO_COMPILER)
    os.environ[NO_COMPILER] = "1"
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        if asked is None:
            del os.environ[NO_COMPILER]
        else:
            os.environ[NO_COMPILER] = asked


def leave(code: int) -> NoReturn:
    """Ends this process as its last act, after what Python itself does first: threads that are not daemons
    end, then what is registered for the end is called. Python would take the libraries' million objects
    apart one by one then, for more than a second."""
    threading._shutdown()  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    atexit._run_exitfuncs()  # pyright: ignore[reportPrivateUsage]
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # whoever read it has gone, or it was never there
            stream.flush()
    os._exit(code)
