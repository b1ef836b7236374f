"""Files of chats, as the tests of split, dedupe, fix and inspect write them."""

from __future__ import annotations

import json
from pathlib import Path

SHARED = " ".join(f"rule{i}" for i in range(120))
"""A text that all rows of a file begin with."""


def chat(*texts: str, system: str | None = None) -> str:
    messages = [{"role": "system", "content": system}] if system else []
    messages += [{"role": "assistant" if i % 2 else "user", "content": t} for i, t in enumerate(texts)]
    return json.dumps({"messages": messages})


def write(lines: list[str], file: Path) -> str:
    file.write_text("".join(line + "\n" for line in lines))
    return str(file)


def sides(folder: Path) -> dict[str, str]:
    """Each row's text -> the split that it fell into."""
    return {
        line: name
        for name in ("train", "validation", "test")
        for line in (folder / f"{name}.jsonl").read_text().splitlines()
    }
