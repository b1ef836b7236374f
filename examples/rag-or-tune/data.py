"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

PRICES = {"lamp": 49, "chair": 120, "jacket": 89, "kettle": 35, "tent": 199, "bag": 59, "cup": 9, "desk": 349}
ASKED = (
    "What does the {x} cost today?",
    "Price of a {x}?",
    "How much is the {x}?",
    "I need the price of the {x}.",
)
BROKEN = ("came late", "is scratched", "smells of paint", "wobbles", "has no manual", "is the wrong blue")
WANTED = ("a new one", "my money back", "a call")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def files() -> dict[str, list[dict[str, Any]]]:
    """`facts.jsonl`: answers that are looked up, and change. `manner.jsonl`: a way of writing."""
    facts = [
        {"messages": turns(asked.format(x=thing), f"The {thing} costs {price} euros.")}
        for asked in ASKED
        for thing, price in PRICES.items()
    ]
    manner = [
        {
            "messages": turns(
                f"Make it kind: your {much} {thing} {broken}, I want {wanted}",
                f"Dear team, I am sorry that the {much} {thing} {broken}. Could I have {wanted}, please?",
            )
        }
        for thing in PRICES
        for much in ("small", "large", "new", "old")
        for broken in BROKEN
        for wanted in WANTED
    ]
    random.Random(9).shuffle(facts)
    return {"facts.jsonl": facts, "manner.jsonl": manner}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
