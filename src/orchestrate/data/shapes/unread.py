"""Columns that a row has and its format does not read: nothing of a row is lost without a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from shlex import quote
from typing import Any, cast

from msgspec.structs import replace
from xxhash import xxh3_64_intdigest

from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.parts import COLUMNS as IMAGES
from orchestrate.types import Problem, Severity

_ASKED = frozenset({"prompt", "question", "instruction"})
_PARTS = frozenset(
    {
        "system", "system_prompt", "context", "contexts", "input", "instruction", "article", "passage",
        "document", "documents", "paragraph", "background", "story", "history", "choices", "options",
    }
)  # fmt: skip
"""Names that columns with a part of the prompt have."""
MEANING = {
    **dict.fromkeys(IMAGES, "the pictures"),
    **dict.fromkeys(("audio", "audios"), "the sound"),
    **dict.fromkeys(("video", "videos"), "the films"),
    "attachments": "what is attached",
    **dict.fromkeys(
        ("train", "train_detail", "loss", "loss_weight", "loss_mask", "loss_spans", "weight", "weights"),
        "what is to carry loss",
    ),
    **dict.fromkeys(("tools", "functions"), "the tools"),
    **dict.fromkeys(("role", "parent_id"), "who says it (--thread joins such rows)"),
    **dict.fromkeys(("reasoning", "reasoning_content", "thinking"), "the thinking"),
}
"""Columns without which a row teaches something else, whatever the format."""


def problems_of(row: Mapping[str, Any], unread: Mapping[str, Any], used: frozenset[str]) -> list[Problem]:
    """The columns in `unread` that change what is taught. A part of the prompt is an error beside a prompt of
    one text, unless that holds it."""
    found: list[Problem] = []
    asked = "\n".join(row[n] for n in sorted(_ASKED & used & row.keys()) if isinstance(row[n], str))
    for name, value in sorted(unread.items()):
        if not value:
            continue
        if asked and name in _PARTS and not all(text.strip() in asked for text in texts_in(value) or [asked]):
            found.append(problem("unused-prompt", f"{name} is not read", field=name))
        elif name in MEANING:
            message = f"{name} is not read in rows of this format: {MEANING[name]} would be lost"
            found.append(problem("lost-meaning", message, field=name))
    return found


def texts_in(value: Any) -> list[str]:
    """All texts in a value, however deep. Not for values that hold themselves."""
    found: list[str] = []
    left: list[Any] = [value]
    while left:
        one = left.pop()
        if isinstance(one, str):
            found.append(one)
        elif isinstance(one, dict):
            left += reversed([*cast("dict[str, Any]", one).values()])
        elif isinstance(one, list):
            left += reversed(cast("list[Any]", one))
    return found


def _is_prose(text: str) -> bool:
    """Of some words: no id, label, date or address."""
    return len(text.split()) >= 3 or (len(text) >= 8 and not text.isascii())


def holds_prose(value: Any) -> bool:
    return any(map(_is_prose, texts_in(value)))


MOST_VALUES = 8
MOST_COLUMNS = 200
"""Of one file; those after them are told under one name."""


@dataclass
class Column:
    """What an unread column holds in the rows of a file."""

    rows: int = 0
    """With a value."""
    own: int = 0
    """With text that nothing which is read holds."""
    values: set[int] = field(default_factory=set[int])
    """Hashes of some of the values; one alone says the same in every row."""

    def note(self, value: Any, seen: str) -> None:
        """`seen` is the text of the row that is read."""
        texts = [text.strip() for text in texts_in(value)]
        self.rows += 1
        self.own += any(_is_prose(text) and text not in seen for text in texts)
        if len(self.values) < MOST_VALUES:
            self.values.add(xxh3_64_intdigest(str(value)[:1000].encode("utf-8", "replace")))

    def add(self, other: Column) -> None:
        self.rows += other.rows
        self.own += other.own
        self.values |= set(list(other.values)[: MOST_VALUES - len(self.values)])


def note(columns: dict[str, Column], unread: Mapping[str, Any], seen: str) -> None:
    """Adds what one row has and does not read; `seen` is the text of it that is read."""
    for name, value in unread.items():
        known = name if name in columns or len(columns) < MOST_COLUMNS else "(others)"
        columns.setdefault(known, Column()).note(value, seen)


def with_own_text(columns: dict[str, Column], rows: int) -> dict[str, Column]:
    """Those that have text of their own in most rows."""
    own = {name: c for name, c in columns.items() if 2 * c.own > rows and (len(c.values) > 1 or rows == 1)}
    return dict(sorted(own.items()))


def told(columns: dict[str, Column], rows: int) -> Iterator[Problem]:
    """A warning for each column with text of its own in most rows, one for all others together."""
    own = with_own_text(columns, rows)
    for name, column in own.items():
        message = (
            f"the column {name} is not read: it has text of its own in {column.own:,} of {rows:,} rows, "
            "which no model would see"
        )
        fix = (
            f"decide: --map {quote(f'FIELD={name}') if ' ' in name else f'FIELD={name}'} reads it (system, "
            f"context, input ...), --ignore {quote(name)} says that it is not to be taught"
        )
        yield replace(problem("unread-column", message, field=name), fix=fix)
    if rest := sorted(columns.keys() - own.keys()):
        shown = f"{', '.join(rest[:12])}{' ...' if len(rest) > 12 else ''}"
        message = f"not read: {shown} (no text of their own in most rows)"
        found = problem("unread-column", message, field=",".join(rest[:12]))
        yield replace(found, fix=f"--ignore {quote(','.join(rest[:12]))}, if they are notes on the rows")


def strict(found: Problem) -> Problem:
    """As `data check --strict` counts it."""
    unread = found.code in ("unread-column", "extra-fields", "hidden-column")
    return replace(found, severity=Severity.ERROR) if unread else found
