"""What to do about a file whose rows have the fields of no known format.

Nothing is done by itself: a column that only looks like a prompt may be something else.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, cast

from orchestrate.data.shapes.known import recognise

_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        "prompt", "instruction", "question", "query", "input", "user", "human", "source", "problem",
        "request", "message", "body", "text", "content", "description", "review", "email", "comment",
        "sentence", "utterance", "document", "article",
    ),
    "completion": (
        "completion", "response", "output", "answer", "assistant", "target", "reply", "solution",
        "resolution", "summary", "translation", "label", "category", "intent", "sentiment", "class", "topic",
        "priority",
    ),
    "chosen": ("chosen", "preferred", "accepted", "winner"),
    "rejected": ("rejected", "dispreferred", "loser"),
    "text": ("text", "content", "document", "body"),
}  # fmt: skip
"""Columns that people name so, the likeliest first."""
_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")


def advice(path: str, row: Mapping[str, Any]) -> str:
    """For the user, given one row of the file."""
    for name, value in row.items():
        rows = cast("list[Any]", value) if isinstance(value, list) else []
        if rows and isinstance(rows[0], dict) and recognise(cast("dict[str, Any]", rows[0])) is not None:
            return f"the rows lie in the field {name}: jq -c '.{name}[]' {path} > rows.jsonl"
    mapped = guessed(row) or {"prompt": "COLUMN", "completion": "COLUMN"}
    return f"name the columns: --map {','.join(f'{name}={column}' for name, column in mapped.items())}"


def guessed(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Field -> column, by how people name them; `None` where no column has such a name."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    lists = {name: cast("list[Any]", value) for name, value in row.items() if isinstance(value, list)}
    if (talk := _named(_LISTS, lists)) is not None:
        first = lists[talk][:1]
        turns = bool(first) and isinstance(first[0], dict) and "from" in first[0]
        return {"conversations" if turns else "messages": talk}
    found = {wanted: _named(names, texts) for wanted, names in _NAMES.items()}
    if {"instruction", "context"} <= texts.keys() and found["completion"]:
        return {"input": "context", "output": found["completion"]}
    for wanted in (("prompt", "chosen", "rejected"), ("prompt", "completion"), ("text",)):
        columns = [found[name] for name in wanted]
        if all(columns) and len(set(columns)) == len(columns):
            # Questions and answers become conversations, which every backend takes.
            chat = wanted[-1] == "completion" and not {"prompt", "completion"} & set(columns)
            names = ("question", "answer") if chat else wanted
            pairs = zip(names, columns, strict=True)
            return {name: column for name, column in pairs if column is not None and name != column}
    return None


def _named(names: Collection[str], columns: Collection[str]) -> str | None:
    """The column with the first of the names, whatever its case."""
    plain = {column.strip().lower(): column for column in columns}
    return next((plain[name] for name in names if name in plain), None)
