"""What a counter gives, and which folders hold a tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from orchestrate.data.rows.examples import Example

FIRST_ROWS = 5
"""Rows that a remark names."""
COVERAGE = 99
"""Of 100 samples so many have the true count in their interval, at least."""


class Remark(msgspec.Struct, frozen=True):
    """What a model's chat template did with rows that their author may not expect."""

    text: str
    refused: bool
    """The template takes no such row: it was counted as nothing, and training would end at it."""
    count: int
    first: tuple[int, ...]
    """The first of these rows: places among those that were counted, from 0, or numbers in the file."""
    fix: str | None = None


class Lengths:
    """Tokens of each sequence and how many of them carry loss. A preference row is two sequences: the prompt
    with each of its answers, as a trainer feeds it."""

    __slots__ = ("further", "remarks", "tokens", "trained")

    def __init__(self) -> None:
        self.tokens = array("I")
        self.further = array("I")
        """Tokens of sequences that rows give beside their first ones, in no order of the rows."""
        self.trained = array("I")
        self.remarks: dict[str, Remark] = {}

    def extend(self, other: Lengths, number: Callable[[int], int]) -> None:
        """`number` makes a row's number here of the one there."""
        self.tokens.extend(other.tokens)
        self.further.extend(other.further)
        self.trained.extend(other.trained)
        for remark in other.remarks.values():
            self.remark(msgspec.structs.replace(remark, first=tuple(map(number, remark.first))))

    def remark(self, new: Remark) -> None:
        if (old := self.remarks.get(new.text)) is not None:
            first = (old.first + new.first)[:FIRST_ROWS]
            new = msgspec.structs.replace(old, count=old.count + new.count, first=first)
        self.remarks[new.text] = new


class Counter(Protocol):
    name: str
    error_band: float
    """Relative half-width for plain rows; 0 when the count is the model's own."""

    def count(self, examples: Sequence[Example]) -> Lengths: ...


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()
