"""Workers of training without the seconds in which torch, transformers and peft load: forked from a process
that has loaded them (`tests/forking.py`), and otherwise what `start_worker` starts, detached, in the run's
folder, with its log.

All of one session have one seed for the hashes of strings: a worker that goes on with another's work is
better started anew, so that what hangs by the order of a set shows.
"""

from __future__ import annotations

import os

from tests import forking

from orchestrate.files import PRIVATE_UMASK
from orchestrate.local import RunDir
from orchestrate.local.run.launching import start_worker, worker_environment

THREADS = 1


class Nursery:
    """`start` is for `launch` and `resume`."""

    def start(self, run: RunDir) -> None:
        assert run.job().threads == THREADS, "the libraries count their threads as they load"
        start_worker(run, _spawn)


def _spawn(run: RunDir, log: int) -> int:
    words = ["orchestrate.local.run.worker", str(run.path)]
    nothing = os.open(os.devnull, os.O_RDONLY)
    try:
        return forking.ask(words, worker_environment(THREADS), run.path, PRIVATE_UMASK, (nothing, log, log))
    finally:
        os.close(nothing)
