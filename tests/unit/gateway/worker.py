"""A gateway in a process of its own, which kills itself once at a place of its work."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from pathlib import Path
from typing import Any

from tests import command, leases
from tests.unit.gateway.conftest import ASKED, MODELS, until

from orchestrate.api.orchestrator import Orchestrator
from orchestrate.gateway import server, terms
from orchestrate.runs import submit as submission
from orchestrate.runs import watch as watching
from orchestrate.runs.hosting import deployments
from orchestrate.settings import config
from orchestrate.store.store import Timing

BEFORE = ("before-taken", "after-taken")
"""Places at which the client has no answer yet."""
DEPLOY = "deploy"
"""Before the places of a deployment."""
SETTLED = Timing(send_limit_s=1.0, requests=0, margin_s=1.0)
"""A killed gateway sends nothing more: what it has sent is there at once."""
BEHIND = (
    *("before-submit", "prepared", "after-intent", "after-upload", "after-uploaded"),
    *("after-post", "after-submitted", "after-submit"),
)


def start(home: Path, port: int, place: str, env: dict[str, str]) -> command.Process:
    """One that answers. `env`: of the sandboxes."""
    own = {"ORCHESTRATE_HOME": str(home), "ORCHESTRATE_KEYS": str(home / "keys.toml")}
    env = {**{k: v for k, v in os.environ.items() if not k.startswith("ORCHESTRATE")}, **env, **own}
    streams = [home / name for name in ("in", "out", "err")]
    streams[0].touch()
    (home / "up").unlink(missing_ok=True)
    process = command.start(main, [str(home), str(port), place], cwd=home, env=env, streams=streams)
    until((home / "up").exists)
    return process


def start_again(home: Path, port: int, place: str, env: dict[str, str]) -> command.Process:
    """The next one, once the first has killed itself."""
    leases.expire(config.sqlite_url(home / "runs.sqlite3"))
    return start(home, port, place, env)


def main(arguments: list[str]) -> None:
    """Home, port, the place, and the folder of files where gateways share one."""
    home, port, place = Path(arguments[0]), int(arguments[1]), arguments[2]
    killed = home / "killed"

    def reached(where: str) -> None:
        if where == place and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)

    sent: Any = submission.submitter
    put_up: Any = deployments.deployer_of
    submission.submitter = lambda *args: dataclasses.replace(sent(*args), reached=reached)
    deployments.deployer_of = lambda *args: dataclasses.replace(
        put_up(*args), timing=SETTLED, reached=lambda where: reached(f"{DEPLOY} {where}")
    )
    with Orchestrator(config.load(cwd=home)) as ft:
        models = {**MODELS, ASKED: {**MODELS[ASKED], "deploy": {"max_hours": 2, "max_cost_usd": 40}}}
        table = {"models": models, "files": arguments[3]} if len(arguments) > 3 else {"models": models}
        told = terms.read(table, home, "here", port=port)
        with server.serve(ft, told, watching.watcher(ft), reached):
            (home / "up").touch()
            threading.Event().wait()
