"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

ASKED = (
    "Where is my {x}?",
    "Can I swap the {x}?",
    "The {x} is broken.",
    "Is the {x} in stock?",
    "Do you gift-wrap a {x}?",
)
SAID = (
    "Good question! We look it up and write today.",
    "Of course! Send it back within 30 days, we pay.",
    "Oh no, sorry! A new one leaves today.",
    "It is! Order by noon and it leaves today.",
    "We do! Tick the box when you order.",
)
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
MARKS = ("", "Hi. ", "Hello! ", "Dear team, ", "Quick one: ")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def files() -> dict[str, list[dict[str, Any]]]:
    """Questions and answers in the voice of one house: short, warm, one promise, no small print."""
    found = [
        {"messages": turns(mark + asked.format(x=thing), said)}
        for asked, said in zip(ASKED, SAID, strict=True)
        for thing in THINGS
        for mark in MARKS
    ]
    random.Random(4).shuffle(found)
    return {"train.jsonl": found[:240], "test.jsonl": found[240:]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
