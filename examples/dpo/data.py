"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

ASKED = ("Where is my {x}?", "Can I swap the {x}?", "The {x} is broken.")
SHORT = ("We look it up today.", "Yes, within 30 days.", "A new one leaves today.")
LONG = "Thank you for reaching out to us. As per our policy, please refer to section four."
THINGS = ("lamp", "chair", "jacket", "kettle", "tent", "bag", "cup", "desk", "watch", "scarf")
MARKS = ("", "Hi. ", "Hello! ", "Dear team, ")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def files() -> dict[str, list[dict[str, Any]]]:
    """Two answers to each question, the short one preferred, as people said."""
    found = [
        {
            "input": {"messages": [{"role": "user", "content": mark + asked.format(x=thing)}]},
            "preferred_output": [{"role": "assistant", "content": short}],
            "non_preferred_output": [{"role": "assistant", "content": LONG}],
        }
        for asked, short in zip(ASKED, SHORT, strict=True)
        for thing in THINGS
        for mark in MARKS
    ]
    random.Random(5).shuffle(found)
    return {"train.jsonl": found[:100], "validation.jsonl": found[100:]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
