"""Writes the rows of this example: of its own making, the same on every machine.

python data.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent

VENDORS = ("Nordwind", "Acme", "Delta Paper", "Blue Harbor", "Kestrel")
SHAPES = (
    "{vendor} invoice {number}: {total} {currency}, due {day} {month}.",
    "Please pay {total} {currency} to {vendor} by {day} {month} (invoice {number}).",
    "Reminder from {vendor}: no. {number} over {total} {currency} was due on {day} {month}.",
)
MONTHS = ("January", "March", "May", "October")


def write(name: str, rows: list[dict[str, Any]]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (FOLDER / name).write_text(lines, encoding="utf-8", newline="")


def turns(user: str, assistant: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def files() -> dict[str, list[dict[str, Any]]]:
    """Lines of mail, and what an accounting system wants of them."""
    dice, found = random.Random(2), []
    for _ in range(380):
        known = {
            "vendor": dice.choice(VENDORS),
            "number": dice.randint(100, 999),
            "total": dice.randint(10, 999),
            "currency": dice.choice(("EUR", "USD")),
        }
        text = dice.choice(SHAPES).format(**known, day=dice.randint(1, 28), month=dice.choice(MONTHS))
        found.append({"messages": turns(text, json.dumps(known))})
    return {"train.jsonl": found[:320], "test.jsonl": found[320:]}


if __name__ == "__main__":
    for name, rows in files().items():
        write(name, rows)
