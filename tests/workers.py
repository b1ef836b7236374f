"""Workers of training without the seconds in which torch, transformers and peft load: forked from a process
that has loaded them (`tests/forking.py`), and otherwise what `start_worker` starts, detached, in the run's
folder, with its log. Processes that help one are forked as well.

All that `start` makes have one seed for the hashes of strings. A worker that goes on with another's work is
one of `again`, whose seed is another, so that what hangs by the order of a set shows.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from tests import forking

from orchestrate.core.files import PRIVATE_UMASK
from orchestrate.local import RunDir
from orchestrate.local.run.launcher import start_worker, worker_environment

THREADS = 1


class Nursery:
    """`start`, `again` and what `mortal` gives are for `launch` and `resume`."""

    def start(self, run: RunDir) -> None:
        self._start(run, "engines")

    def again(self, run: RunDir) -> None:
        self._start(run, "engines again")

    def mortal(
        self, step: int, share: float = 0.0, fate: str = "killed", *, again: bool = False
    ) -> Callable[[RunDir], None]:
        """Of a worker that `tests/mortal.py` meets with a fate."""
        kind = "engines again" if again else "engines"
        return partial(self._start, kind=kind, fate=(str(step), str(share), fate))

    def _start(self, run: RunDir, kind: str, fate: tuple[str, ...] = ()) -> None:
        assert run.job().threads == THREADS, "the libraries count their threads as they load"

        def spawn(run: RunDir, log: int) -> int:
            words = ["tests.mortal" if fate else "orchestrate.local.run.worker", str(run.path), *fate]
            env = worker_environment(THREADS)
            if run.job().hyper.processes > 1:
                env["PYTHONEXECUTABLE"] = forking.python()
            nothing = os.open(os.devnull, os.O_RDONLY)
            try:
                files = (nothing, log, log)
                pid, line = forking.begin(words, env, run.path, PRIVATE_UMASK, files, kind, detached=True)
                line.close()
                return pid
            finally:
                os.close(nothing)

        start_worker(run, spawn)
