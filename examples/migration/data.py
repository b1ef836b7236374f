"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

ASKED = {
    "yes": ("Is the {x} in stock?", "Can I return the {x}?"),
    "no": ("Is the {x} free?", "Can I eat the {x}?"),
}
THINGS = (
    "lamp",
    "chair",
    "jacket",
    "kettle",
    "tent",
    "bag",
    "cup",
    "desk",
    "watch",
    "scarf",
    "clock",
    "radio",
)
MARKS = ("", "Hi. ", "Hello! ")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def files() -> dict[str, list[dict[str, Any]]]:
    """Questions with yes and no, as a team has tuned a hosted model on them."""
    found = [
        {"messages": turns(mark + asked.format(x=thing), label)}
        for label, texts in ASKED.items()
        for asked in texts
        for thing in THINGS
        for mark in MARKS
    ]
    random.Random(8).shuffle(found)
    return {"train.jsonl": found[:104], "test.jsonl": found[104:]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
