"""The same loop here and at a host of sessions, each result a line of JSON: `hosted.py HOME`. A process of
its own runs it: the official client leaves threads behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.paths import TINY
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.loop import IDS, LORA, OPTIONS, rows, say

from orchestrate import Orchestrator, OverBudget, UsageError

ADAM = {"learning_rate": 5e-3}
NAME = "Qwen/Qwen3-8B"


def trained(session: Any, steps: int = 2) -> list[float]:
    losses: list[float] = []
    for _ in range(steps):
        losses.append(session.forward_backward(rows()).loss)
        session.optim_step(ADAM)
    return losses


def told(ft: Orchestrator, id: str) -> dict[str, Any]:
    run = ft.run(id)
    record = run.refresh()
    return {
        "status": record.status.value,
        "code": record.error.code if record.error else None,
        "bill": None if record.bill is None else float(record.bill.usd),
        "model": record.tuned_model,
        "checkpoints": [one.model for one in run.checkpoints()],
        "steps": [p.step for p in run.metrics()],
        "costs": [p.values["cost_usd"] for p in run.metrics()],
        "committed": float(ft.store.ledger.spending().committed_usd),
    }


def main(home: str) -> None:
    with workspace(Path(home)) as ft:
        with ft.session(str(TINY), lora=LORA, options=OPTIONS) as s:
            say("here", trained(s, 4))
        try:
            ft.session(NAME, provider="tinker", lora=LORA)
        except UsageError as error:
            say("unlimited", error.message)
        try:
            with ft.session(NAME, provider="tinker", lora=LORA, max_cost_usd=5) as s:
                say("there", trained(s))
                [drawn] = s.sample(IDS[:4], 1, {"max_tokens": 4, "seed": 1, "stop": []}).sequences
                say("drawn", [len(drawn.tokens), len(drawn.logprobs)])
                say("seen", [s.logprobs([*IDS[:4], *drawn.tokens])[4:], drawn.logprobs])
                s.save("two")
                raise ZeroDivisionError
        except ZeroDivisionError:
            say("broken off", told(ft, s.id))
        with ft.session(resume=s.id) as s:
            say("again", [s.step, trained(s)])
            say("held", float(ft.store.ledger.spending().committed_usd))
        say("done", told(ft, s.id))
        tokens = sum(len(row["model_input"]) for row in rows())
        cap = tokens * 2.5 / 1000  # two steps and a half at a dollar for a thousand tokens
        try:
            with ft.session(NAME, provider="tinker", lora=LORA, max_cost_usd=cap) as s:
                trained(s, 5)
        except OverBudget:
            say("capped", {"cap": cap, **told(ft, s.id)})


if __name__ == "__main__":
    main(*sys.argv[1:])
