"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": told,
            "parameters": {
                "type": "object",
                "properties": {"order": {"type": "integer"}},
                "required": ["order"],
            },
        },
    }
    for name, told in (("track", "Where an order is."), ("cancel", "Ends an order."))
]
ASKED = {
    "track": ("Where is order {n}?", "Has {n} been sent?", "When will order {n} come?"),
    "cancel": ("Cancel order {n}.", "I do not want {n} any more.", "Please stop order {n}."),
}


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def files() -> dict[str, list[dict[str, Any]]]:
    """Questions, each with the one call that answers it."""
    dice, found = random.Random(3), []
    for n in dice.sample(range(100, 1000), 300):
        name = dice.choice(list(ASKED))
        call = {
            "id": f"call_{n}",
            "type": "function",
            "function": {"name": name, "arguments": json.dumps({"order": n})},
        }
        asked = {"role": "user", "content": dice.choice(ASKED[name]).format(n=n)}
        found.append({"messages": [asked, {"role": "assistant", "tool_calls": [call]}], "tools": TOOLS})
    return {"train.jsonl": found[:260], "test.jsonl": found[260:]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
