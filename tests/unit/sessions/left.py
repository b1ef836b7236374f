"""A loop at Together that is killed after its first step: `left.py HOME`."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.unit.sessions.homes import workspace
from tests.unit.sessions.loop import LORA, die, rows, say

MODEL = "Qwen/Qwen3-8B"


def main(home: str) -> None:
    with (
        workspace(Path(home)) as ft,
        ft.session(MODEL, provider="together", lora=LORA, max_cost_usd=25) as s,
    ):
        say("id", s.id)
        s.forward_backward(rows())
        s.optim_step({"learning_rate": 5e-3})
        s.save("kept")
        s.forward_backward(rows())
        die()


if __name__ == "__main__":
    main(*sys.argv[1:])
