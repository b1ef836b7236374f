"""A loop in a process of its own, each result a line of JSON: `loop.py HOME RUN STEPS SAVE_AT KILLED`.

RUN: a run to resume, or `new`; KILLED: where the process is killed, or `nowhere`."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from tests.paths import TINY
from tests.unit.sessions.homes import workspace

from orchestrate.providers.local.sessions import StepwiseProvider

IDS = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
LORA = {"rank": 4, "seed": 1}
OPTIONS = {"threads": 1, "precision": "fp32"}


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
    with workspace(Path(home)) as ft:
        given: dict[str, Any] = {"resume": run}
        if run == "new":
            given = {"model": str(TINY), "lora": LORA, "options": OPTIONS}
        with ft.session(**given) as s:
            say("id", s.id)
            say("step", s.step)
            while s.step < int(steps):
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
