"""A loop in a process of its own, each result a line of JSON: `loop.py HOME RUN STEPS SAVE_AT KILLED`.

RUN: a run to resume, or `new`, or `new at HOST` (see `HOSTS`); KILLED: where the process is killed, or
`nowhere`, or `waits`: then it waits at step 2 for the file `HOME/go`."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tests.paths import TINY
from tests.unit.sessions.homes import workspace

from orchestrate.core.files import Journal
from orchestrate.providers.local.sessions import StepwiseProvider
from orchestrate.providers.rented import RequestedMachine

IDS = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
LORA = {"rank": 4, "seed": 1}
OPTIONS = {"threads": 1, "precision": "fp32"}
SHAPE = "accounts/fireworks/trainingShapes/ts-qwen-lora"
HOSTS: dict[str, dict[str, Any]] = {
    "tinker": {"model": "Qwen/Qwen3-8B", "provider": "tinker", "max_cost_usd": 5},
    "together": {"model": "Qwen/Qwen3-8B", "provider": "together", "max_cost_usd": 25},
    "fireworks": {"model": "qwen3.8-27b", "provider": "fireworks", "max_cost_usd": 5},
    "a trainer at fireworks": {
        "model": "qwen3.8-27b",
        "provider": "fireworks",
        "max_cost_usd": 25,
        "options": {"training_shape": SHAPE},
    },
}


def rows(ids: list[int] = IDS) -> list[dict[str, Any]]:
    return [
        {
            "model_input": part[:-1],
            "loss_fn_inputs": {"target_tokens": part[1:], "weights": [1.0] * (len(part) - 1)},
        }
        for part in (ids, ids[:6])
    ]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def say(what: str, value: Any) -> None:
    print(json.dumps({"what": what, "value": value}), flush=True)


def hurt(session: Any, killed: str) -> None:
    """Kill this process around a request of step 2."""
    backend = session._backend
    forward, save = backend.forward, backend.save

    def forwarding(*args: Any, **more: Any) -> Any:
        if killed == "before it is sent" and session.step == 2:
            die()
        made = forward(*args, **more)
        if killed == "after it is billed" and session.step == 2:
            made.result()
            die()
        return made

    def saving(*args: Any, **more: Any) -> Any:
        made = save(*args, **more)
        if killed == "amid a save":
            made.result()
            die()
        return made

    backend.forward, backend.save = forwarding, saving


def wait_for(file: Path) -> None:
    while not file.exists():
        time.sleep(0.1)


def main(home: str, run: str, steps: str, save_at: str, killed: str) -> None:
    made: Any = StepwiseProvider.session_dir

    def directory(*args: Any) -> Any:
        if killed == "before the directory":
            die()
        found = made(*args)
        if killed == "after the directory":
            die()
        return found

    StepwiseProvider.session_dir = directory  # type: ignore[method-assign]
    append: Any = Journal.append

    def appending(self: Any, entry: Any) -> None:
        if killed == "before its machine is known" and isinstance(entry, RequestedMachine) and entry.id:
            die()
        append(self, entry)

    Journal.append = appending  # type: ignore[method-assign]
    with workspace(Path(home)) as ft:
        given: dict[str, Any] = {"resume": run}
        if run == "new":
            given = {"model": str(TINY), "lora": LORA, "options": OPTIONS}
        elif run.startswith("new at "):
            given = {"lora": LORA, **HOSTS[run.removeprefix("new at ")]}
        with ft.session(**given) as s:
            say("id", s.id)
            hurt(s, killed)
            say("step", s.step)
            while s.step < int(steps):
                if killed == "waits" and s.step == 2:
                    say("waits", True)
                    wait_for(Path(home) / "go")
                say("loss", s.forward_backward(rows()).loss)
                if killed == "amid a step" and s.step == 2:
                    die()
                s.optim_step({"learning_rate": 5e-3})
                if s.step == int(save_at):
                    s.save("kept")
                    if killed == "after a save":
                        die()
    say("done", True)


if __name__ == "__main__":
    main(*sys.argv[1:])
