"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

TICKETS = {
    "billing": [
        "I was charged twice for {x}",
        "the invoice for {x} has the wrong amount",
        "refund for {x} is missing",
    ],
    "shipping": ["where is my parcel with {x}", "{x} should have come on Monday", "the courier lost {x}"],
    "returns": ["I want to send {x} back", "how do I return {x}", "{x} does not fit, what now"],
    "account": [
        "I cannot log in to see {x}",
        "change the address before {x} goes out",
        "delete my account after {x}",
    ],
}
OPENINGS = ("Hi, ", "Hello, ", "Good morning, ", "", "Please help: ", "Third mail: ")
THINGS = (
    "my shoes",
    "the lamp",
    "order 4711",
    "two chairs",
    "the blue jacket",
    "my last order",
    "the kettle",
)


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def files() -> dict[str, list[dict[str, Any]]]:
    """Tickets of four kinds; no text occurs twice, so none of the test is in the training."""
    found = [
        {"messages": turns(f"{opening}{text.format(x=thing)}", label), "kind": label}
        for label, texts in TICKETS.items()
        for text in texts
        for opening in OPENINGS
        for thing in THINGS
    ]
    random.Random(1).shuffle(found)
    return {"train.jsonl": found[:240], "test.jsonl": found[240:320]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
