"""A Python that is up at once: what `sys.executable` is for the commands under test.

The longer part of a training or of an answer with a tiny model is Python importing torch and transformers,
6 seconds of processor time for each. `python()` is a program that stands for the interpreter: `-m` with
one of our modules is forked from a process that has imported what such a module needs, and anything else is
given to the interpreter itself. Its streams, folder, environment and umask are the fork's; what it is sent is
sent on, who kills it kills the fork, and it ends as the fork ends.
"""

from __future__ import annotations

import atexit
import gc
import marshal
import os
import resource
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from tests.paths import ROOT

from orchestrate.local.run.launcher import worker_environment

WARM = {
    "commands": "tests.warm",
    "engines": "tests.warm_engines",
    "engines again": "tests.warm_engines",
    "testers": "tests.warm_testers",
}
"""What the process has imported from which the forks of a kind are made. Sets have another order in those of
another kind, as in an interpreter of their own."""
FORKED = {
    "orchestrate.cli": "commands",
    "orchestrate.local.answers.process": "engines",
    "orchestrate.local.run.helper": "engines",
    "orchestrate.local.run.worker": "engines",
    "orchestrate.local.sessions.process": "engines",
    "orchestrate.local.weights.conversion": "engines",
    "orchestrate.local.weights.module_names": "engines",
    "orchestrate.local.weights.worker": "engines",
    "orchestrate.runs.watch": "commands",
    "tests.command": "commands",
    "tests.mortal": "engines",
    "tests.tester": "testers",
    "tests.unit.sessions.left": "commands",
    "tests.unit.sessions.loop": "commands",
}
READ_ON_IMPORT = ("HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE")
"""Variables that the libraries read only once: who sets them gets an interpreter of its own."""
LIMITS = ("RLIMIT_AS", "RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_NOFILE")
"""What a process may have no more of than the one that starts it."""
THREADS = "1"
"""The libraries count their threads as they load."""
PROGRAM = """#!{real} -IS
import marshal, os, resource, signal, sys
_, *words = sys.argv
env = dict(os.environ)
module = words.index("-m") + 1 if words[:1] == ["-m"] or words[:2] == ["-P", "-m"] else 0
place = {sockets!r}.get(words[module]) if module else None
if place is None or env.get("OMP_NUM_THREADS") != {threads!r} or any(n in env for n in {own!r}):
    os.execv({real!r}, [{real!r}, *words])
from _socket import AF_UNIX, SOCK_STREAM, SOL_SOCKET, SCM_RIGHTS, socket
from array import array
umask = os.umask(0)
limits = {{name: resource.getrlimit(getattr(resource, name)) for name in {limits!r}}}
asked = marshal.dumps((words[module:], env, os.getcwd(), umask, limits))
line = socket(AF_UNIX, SOCK_STREAM)
line.connect(place)
files = [n if os.path.exists(f"/proc/self/fd/{{n}}") else os.open(os.devnull, os.O_RDWR) for n in (0, 1, 2)]
head = len(asked).to_bytes(8, "big") + b"\\0"
line.sendmsg([head], [(SOL_SOCKET, SCM_RIGHTS, array("i", files))])
line.sendall(asked)
pid = int.from_bytes(line.recv(8), "big")
def forward(number, frame):
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass
for number in (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
    signal.signal(number, forward)
for number in (0, 1, 2):
    os.close(number)
code = int.from_bytes(line.recv(8) or (1).to_bytes(8, "big"), "big", signed=True)
if code < 0:
    if -code not in (signal.SIGKILL, signal.SIGSTOP):
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
os._exit(code)
"""
COMMAND = '#!/bin/sh\nexec {program} -m orchestrate.cli "$@"\n'
shared: str | None = None
"""The one of the process that started this worker of xdist: what it forks from is imported once for all."""


@cache
def python() -> str:
    """Its path, beside which `orchestrate` lies. What it needs ends with the process that made it."""
    if shared:
        return shared
    stack = ExitStack()
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrate-python-")))
    program = folder / "python3"
    sockets = {kind: str(folder / kind) for kind in WARM}
    for kind, place in sockets.items():
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listening.bind(place)
        listening.listen(64)
        words = [sys.executable, "-m", __name__, str(listening.fileno()), WARM[kind], str(program)]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        if kind != "testers":  # as workers have it: how much torch keeps is read as it loads
            env |= {**worker_environment(int(THREADS)), "HF_HUB_OFFLINE": "1"}
        server = subprocess.Popen(
            words,
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
        listening.close()
        stack.enter_context(server)  # leaving it closes the pipe, at whose end the server ends
    text = PROGRAM.format(
        real=sys.executable,
        sockets={module: sockets[kind] for module, kind in FORKED.items()},
        threads=THREADS,
        own=READ_ON_IMPORT,
        limits=LIMITS,
    )
    for file, said in ((program, text), (folder / "orchestrate", COMMAND.format(program=program))):
        file.write_text(said)
        file.chmod(0o700)
    atexit.register(stack.close)
    return str(program)


@contextmanager
def quick() -> Iterator[None]:
    """What is started within it by `sys.executable` is forked."""
    before, sys.executable = sys.executable, python()
    _find_isolation_again()
    try:
        yield
    finally:
        sys.executable = before
        _find_isolation_again()


def _find_isolation_again() -> None:
    """A grader's sandbox was found by trying it with one Python; the other may not be seen within it."""
    if (module := sys.modules.get("orchestrate.local.objectives")) is not None:
        module.isolation.cache_clear()


def path() -> str:
    """A PATH on which `orchestrate` is found."""
    return os.pathsep.join((str(Path(python()).parent), str(Path(sys.executable).parent), os.environ["PATH"]))


def begin(
    words: list[Any],
    env: dict[str, str],
    cwd: Path,
    umask: int,
    files: tuple[int, int, int],
    kind: str | None = None,
    *,
    detached: bool = False,
) -> tuple[int, socket.socket]:
    """Starts the module of these words and returns its process id and the line on which its exit code comes:
    whoever closes it kills the process, unless it is `detached`."""
    place = Path(python()).with_name(kind or FORKED[words[0]])
    asked = marshal.dumps((words, env, str(cwd), umask, {}))
    line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    line.connect(str(place))
    socket.send_fds(line, [len(asked).to_bytes(8, "big") + (b"\1" if detached else b"\0")], files)
    line.sendall(asked)
    return int.from_bytes(line.recv(8), "big"), line


class Server:
    """Forks what is asked for. One thread: a fork has no other."""

    def __init__(self, listening: socket.socket, warm: str, program: str) -> None:
        self.listening, self.warm, self.program = listening, warm, program
        self.selector = selectors.DefaultSelector()
        self.shells: dict[int, tuple[int, socket.socket]] = {}
        """By the file of the fork's process: its id, and the line to the program that stands for it."""

    def serve(self) -> None:
        """Until stdin ends, with all that does not live on by itself."""
        self.selector.register(0, selectors.EVENT_READ)
        self.selector.register(self.listening, selectors.EVENT_READ, self.accept)
        while True:
            for key, _ in self.selector.select():
                if key.fileobj == 0:
                    for pid, _ in self.shells.values():
                        os.kill(pid, signal.SIGKILL)
                    return
                if self.selector.get_map().get(key.fd) is key:  # not forgotten by the one before it
                    key.data()

    def accept(self) -> None:
        line, _ = self.listening.accept()
        head, files, _, _ = socket.recv_fds(line, 9, 3)
        if len(head) < 9:
            line.close()
            return
        left, asked = int.from_bytes(head[:8], "big"), b""
        while left > len(asked) and (part := line.recv(left - len(asked))):
            asked += part
        if len(asked) < left:  # who asked was killed
            for open_here in (*files, line.detach()):
                os.close(open_here)
            return
        if self.warm not in sys.modules:
            import_module(self.warm)
            gc.freeze()  # what is never looked through is never copied, either
        if (pid := os.fork()) == 0:
            self.selector.close()
            become(marshal.loads(asked), files, self.program)
        for file in files:
            os.close(file)
        process = os.pidfd_open(pid)
        with suppress(OSError):
            line.sendall(pid.to_bytes(8, "big"))
        self.selector.register(process, selectors.EVENT_READ, lambda: self.ended(process, pid))
        if head[8]:
            line.close()
        else:
            self.shells[process] = pid, line
            self.selector.register(line, selectors.EVENT_READ, lambda: self.left(process))

    def ended(self, process: int, pid: int) -> None:
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        self.selector.unregister(process)
        os.close(process)
        if process in self.shells:
            _, line = self.shells.pop(process)
            self.selector.unregister(line)
            with suppress(OSError):
                line.sendall(code.to_bytes(8, "big", signed=True))
            line.close()

    def left(self, process: int) -> None:
        """Whoever kills the program that stands for a process kills the process."""
        pid, line = self.shells.pop(process)
        self.selector.unregister(line)
        line.close()
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def become(asked: Any, files: list[int], program: str) -> NoReturn:
    """In the fork: is what the interpreter would be, to its end."""
    words, env, cwd, umask, limits = asked
    code = 1
    try:
        os.setsid()
        os.umask(umask)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(env)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        for name, limit in limits.items():
            resource.setrlimit(getattr(resource, name), limit)
        open_streams(env)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.argv = words
        if FORKED[words[0]] == "commands" or env.get("PYTHONEXECUTABLE") == program:
            sys.executable = program
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="runpy")  # it was imported
        code = run(words[0])
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def run(module: str) -> int:
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return 1
        return int(ended.code or 0)
    except KeyboardInterrupt:
        traceback.print_exc()
        sys.stderr.flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def open_streams(env: dict[str, str]) -> None:
    encoding, _, errors = env.get("PYTHONIOENCODING", "utf-8").partition(":")
    streams: list[Any] = []
    for number, (mode, on_error) in enumerate((("r", errors), ("w", errors), ("w", "backslashreplace"))):
        streams.append(open(number, mode, encoding=encoding, errors=on_error or None, closefd=False))  # noqa: SIM115
    sys.stdin, sys.stdout, sys.stderr = streams
    sys.stdout.reconfigure(line_buffering=os.isatty(1))  # type: ignore[attr-defined]
    sys.stderr.reconfigure(line_buffering=True)  # type: ignore[attr-defined]


def main(listening: str, warm: str, program: str) -> None:
    Server(socket.socket(fileno=int(listening)), warm, program).serve()
    atexit._clear()  # of what was imported nothing has been used here
    os._exit(0)


if __name__ == "__main__":
    from tests import forking  # one module, whatever it is asked by

    forking.main(*sys.argv[1:])
