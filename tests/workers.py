"""Workers of training without the seconds in which torch, transformers and peft load: forked from a process
that has loaded them, and otherwise what `start_worker` starts, detached, in the run's folder, with its log.

All of one nursery have one seed for the hashes of strings: a worker that goes on with another's work is
better started anew, so that what hangs by the order of a set shows.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import IO

from tests.paths import ROOT

from orchestrate.files import PRIVATE_UMASK
from orchestrate.local import RunDir
from orchestrate.local.run.launching import start_worker, worker_environment

THREADS = 1


class Nursery:
    """`start` is for `launch` and `resume`."""

    def __init__(self, server: subprocess.Popen[str]) -> None:
        self._server = server
        self._asking = threading.Lock()

    def start(self, run: RunDir) -> None:
        assert run.job().threads == THREADS, "the libraries count their threads as they load"
        start_worker(run, self._spawn)

    def _spawn(self, run: RunDir, log: int) -> int:
        del log  # by its name: the number means nothing there
        asked = {"path": str(run.path), "log": str(run.log), "env": worker_environment(THREADS)}
        to, answers = self._pipes()
        with self._asking:
            to.write(json.dumps(asked) + "\n")
            to.flush()
            return int(answers.readline())

    def _pipes(self) -> tuple[IO[str], IO[str]]:
        assert self._server.stdin is not None and self._server.stdout is not None
        return self._server.stdin, self._server.stdout


@contextmanager
def nursery() -> Iterator[Nursery]:
    """Ends with its process; the workers that it started live on, as others do."""
    with subprocess.Popen(
        [sys.executable, "-m", __name__],
        cwd=ROOT,
        env={**worker_environment(THREADS), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as server:
        yield Nursery(server)


def main() -> None:
    for name in ("peft", "orchestrate.local.run.loop", "orchestrate.local.run.session"):
        import_module(name)
    gc.freeze()  # what is never looked through is never copied, either
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    answers = sys.stdout
    while line := sys.stdin.readline():
        asked = json.loads(line)
        if (pid := os.fork()) == 0:
            os._exit(_worker(Path(asked["path"]), Path(asked["log"]), asked["env"]))
        answers.write(f"{pid}\n")
        answers.flush()


def _worker(path: Path, log: Path, env: dict[str, str]) -> int:
    from orchestrate.local.run import worker

    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    os.umask(PRIVATE_UMASK)
    os.chdir(path)
    os.environ.clear()
    os.environ.update(env)
    for number, name, mode in ((0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY | os.O_APPEND)):
        file = os.open(name, mode)
        os.dup2(file, number)
        os.close(file)
    os.dup2(1, 2)
    code = 1
    with suppress(SystemExit):
        code = worker.main(str(path))
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
