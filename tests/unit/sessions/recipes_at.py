"""The same recipes here and at sandboxed hosts, each result a line of JSON: `recipes_at.py HOME`. They run in
a separate process, because an official client leaves threads behind."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests.paths import TINY
from tests.unit.sessions import recipe_rows
from tests.unit.sessions.homes import workspace
from tests.unit.sessions.hosted import NAME
from tests.unit.sessions.loop import LORA, OPTIONS, say

from orchestrate.sessions import recipes

PLACES: dict[str, dict[str, Any]] = {
    "here": {"model": str(TINY), "options": OPTIONS},
    "tinker": {"model": NAME, "provider": "tinker", "max_cost_usd": 1},
    "together": {"model": NAME, "provider": "together", "max_cost_usd": 50},
}
RL: dict[str, Any] = {
    "max_steps": 1,
    "batch_size": 2,
    "samples_per_prompt": 4,
    "max_new_tokens": 6,
    "run_grader_code": True,
}


def main(home: str) -> None:
    folder = Path(home)
    files = recipe_rows.chats(folder / "chats.jsonl"), recipe_rows.preferences(folder / "pairs.jsonl")
    asked = recipe_rows.prompts(folder / "prompts.jsonl")
    settings = {**recipe_rows.SETTINGS, "epochs": 1, "seed": 1}
    with workspace(folder) as ft:
        for place, given in PLACES.items():
            with ft.session(lora=LORA, **given) as s:
                recipes.sft(s, files[0], validation=files[0], **settings)
                recipes.dpo(s, files[1], **settings)
                recipes.rl(s, asked, grader=recipe_rows.GRADER, **RL)
            points = [point.values for point in ft.run(s.id).metrics()]
            say(place, {"points": points, "total": ft.run(s.id).record.total_steps})


if __name__ == "__main__":
    main(*sys.argv[1:])
