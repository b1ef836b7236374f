"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

PEOPLE = ("Ana", "Bo", "Cleo", "Dov", "Edda", "Finn")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
SHAPES = (
    "{who} needs room {room} on {day} at {hour}.",
    "On {day}, {hour} o'clock: {who}, room {room}.",
    "Could you book {room} for {who}? {day} at {hour} would do.",
    "Room {room} is free on {day}, so {who} takes it at {hour}.",
)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def files() -> dict[str, list[dict[str, Any]]]:
    """Requests for rooms, and what a calendar wants of them. No request is written twice."""
    dice, found = random.Random(7), dict[str, dict[str, Any]]()
    while len(found) < 260:
        known = {
            "who": dice.choice(PEOPLE),
            "day": dice.choice(DAYS),
            "hour": dice.randint(8, 18),
            "room": dice.randint(100, 499),
        }
        text = dice.choice(SHAPES).format(**known)
        found[text] = {
            "messages": [
                {"role": "user", "content": text},
                {"role": "assistant", "content": json.dumps(known)},
            ]
        }
    rows = list(found.values())
    return {"train.jsonl": rows[:200], "test.jsonl": rows[200:]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
