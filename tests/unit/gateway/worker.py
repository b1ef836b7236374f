"""A gateway in a process of its own, which kills itself once at a place of its work."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any

from tests.unit.gateway.conftest import MODELS

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.gateway import running, terms
from orchestrate.runs import submit as submission
from orchestrate.runs import watch as watching
from orchestrate.settings import config

BEFORE = ("before-taken", "after-taken")
"""Places at which the client has no answer yet."""
BEHIND = (
    *("before-submit", "prepared", "after-intent", "after-upload", "after-uploaded"),
    *("after-post", "after-submitted", "after-submit"),
)


def main(arguments: list[str]) -> None:
    """Home, port, the place, and the folder of files where gateways share one."""
    home, port, place = Path(arguments[0]), int(arguments[1]), arguments[2]
    killed = home / "killed"

    def reached(where: str) -> None:
        if where == place and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    made: Any = submission.submitter
    submission.submitter = lambda *args: dataclasses.replace(made(*args), reached=reached)
    with Orchestrator(config.load(cwd=home)) as ft:
        table = {"models": MODELS, "files": arguments[3]} if len(arguments) > 3 else {"models": MODELS}
        told = terms.read(table, home, "here", port=port)
        with running.serve(ft, told, watching.watcher(ft), reached):
            (home / "up").touch()
            threading.Event().wait()
