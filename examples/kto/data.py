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
GOOD = ("We look it up today.", "Yes, within 30 days.", "A new one leaves today.")
BAD = "Thank you for reaching out to us. As per our policy, please refer to section four."
THINGS = ("lamp", "chair", "jacket", "kettle", "tent", "bag", "cup", "desk", "watch", "scarf")
MARKS = ("", "Hi. ", "Hello! ", "Dear team, ")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def files() -> dict[str, list[dict[str, Any]]]:
    """One answer to each question, with the thumb that it got: there was never a second one to compare."""
    dice, found = random.Random(6), []
    for thing in THINGS:
        for mark in MARKS:
            for asked, good in zip(ASKED, GOOD, strict=True):
                up = dice.random() < 0.5
                prompt = [{"role": "user", "content": mark + asked.format(x=thing)}]
                said = [{"role": "assistant", "content": good if up else BAD}]
                found.append({"prompt": prompt, "completion": said, "label": up})
    dice.shuffle(found)
    return {"train.jsonl": found[:100], "validation.jsonl": found[100:]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
