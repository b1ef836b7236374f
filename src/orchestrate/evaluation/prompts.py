"""The prompts of a file that is asked and not marked: rows with an answer, and those that only ask."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from orchestrate.data.files.sources import source
from orchestrate.data.shapes import known
from orchestrate.data.shapes.prompts import prompt_of
from orchestrate.data.shapes.reading import parse, row_of, visible
from orchestrate.data.shapes.unread import Column, note, with_own_text
from orchestrate.errors import DataError
from orchestrate.evaluation.held_out import HeldOut, item_of
from orchestrate.evaluation.items import Item
from orchestrate.types import Severity


def prompts(path: str) -> HeldOut:
    """Each row by its own format: a log holds calls of many kinds, of which some have no answer. Raises
    `DataError` when no row asks anything."""
    items: list[Item] = []
    left_out: Counter[str] = Counter()
    columns: dict[str, Column] = {}
    for line in _lines(path):
        value, _ = parse(line)
        found = "rows that are no object"
        if isinstance(value, dict):
            found = _item(cast("dict[str, Any]", value), columns)
        if isinstance(found, str):
            left_out[found] += 1
        else:
            items.append(found)
    if not items:
        why = ", ".join(f"{n:,} {what}" for what, n in left_out.items()) or "it is empty"
        raise DataError(
            f"{path} has no prompt that can be asked: {why}",
            fix="rows with messages, prompt, input or question; or a log: orchestrate record --help",
        )
    return HeldOut(tuple(items), dict(left_out), unread=tuple(with_own_text(columns, len(items))))


def _item(row: dict[str, Any], columns: dict[str, Column]) -> Item | str:
    """The item of a row, or why it is none; adds what the row has and no question holds to `columns`."""
    shape = known.recognise(row)
    read = row_of(row, shape) if shape is not None else None
    found = item_of(read.example, read.unread) if read is not None and read.example is not None else None
    if isinstance(found, Item) and read is not None and read.example is not None:
        note(columns, read.unread, visible(read.example))
        return found
    asked = prompt_of(row)
    if not isinstance(asked, list):
        return item_of(asked, {})
    if found is not None:
        return found
    problems = [*asked, *(read.problems if read is not None else ())]
    errors = [p.message for p in problems if p.severity is Severity.ERROR]
    return f"rows that cannot be read ({errors[0]})" if errors else "rows in which nothing is asked"


def _lines(path: str) -> Iterator[bytes]:
    with Path(source(path).lines).open("rb") as file:
        for line in file:
            if text := line.strip():
                yield text
