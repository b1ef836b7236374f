"""Rows of the recipes' tests, in the formats that users have, and a recipe's settings."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.unit.sessions.loop import LORA

HALF: dict[str, Any] = {**LORA, "train_unembed": False}
"""The layers that a job on this machine trains."""
SETTINGS: dict[str, Any] = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-3}
GRADER = {
    "type": "python",
    "source": "def grade(sample, item):\n    text = sample['output_text']\n"
    "    return text.count(item['letter']) / max(len(text), 1)",
}


def chats(path: Path, count: int = 8) -> Path:
    return _written(
        path,
        (
            {"messages": [_says("user", f"Is {n} even?"), _says("assistant", _word(n) * (n + 1))]}
            for n in range(count)
        ),
    )


def preferences(path: Path, count: int = 8) -> Path:
    return _written(
        path,
        (
            {
                "input": {"messages": [_says("user", f"Is {n} even?")]},
                "preferred_output": [_says("assistant", _word(n))],
                "non_preferred_output": [_says("assistant", _word(n + 1))],
            }
            for n in range(count)
        ),
    )


def prompts(path: Path, count: int = 2) -> Path:
    return _written(
        path, ({"messages": [_says("user", f"Is {n} even?")], "letter": "a"} for n in range(count))
    )


def _word(n: int) -> str:
    return "no " if n % 2 else "yes "


def _says(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def _written(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
