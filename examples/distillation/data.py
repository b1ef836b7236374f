"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

PROMPT = (
    "You sort mail. Answer with one word. Money, invoices, refunds: billing. Parcels, couriers: shipping. "
    "Examples: 'I paid twice' is billing. 'The courier lost it' is shipping."
)
MAIL = {
    "billing": ("I paid twice for {x}", "the invoice for {x} is wrong", "my refund for {x} is missing"),
    "shipping": ("the courier lost {x}", "where is the parcel with {x}", "{x} has not come"),
}
THINGS = ("my shoes", "the lamp", "two chairs", "the jacket", "the kettle", "my tent", "a desk", "the radio")
MARKS = ("Hi, ", "Hello, ", "", "Help: ", "Again: ")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def files() -> dict[str, list[dict[str, Any]]]:
    """`asked.jsonl`: what a large model answered under a long prompt, as a log has it. `train.jsonl` and
    `test.jsonl`: the same without the prompt, which is what the small one is to learn by heart."""
    found = [
        (mark + text.format(x=thing), label)
        for label, texts in MAIL.items()
        for text in texts
        for thing in THINGS
        for mark in MARKS
    ]
    random.Random(7).shuffle(found)
    asked = [{"messages": [{"role": "system", "content": PROMPT}, *turns(*one)]} for one in found]
    bare = [{"messages": turns(*one)} for one in found]
    return {"asked.jsonl": asked, "train.jsonl": bare[:160], "test.jsonl": bare[160:220]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
