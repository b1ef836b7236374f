"""What a counter gives, and which folders hold a tokenizer."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from orchestrate.data.rows.examples import Example


class Lengths:
    """Tokens of each sequence and how many of them carry loss. A preference row is two sequences: the prompt
    with each of its answers, as a trainer feeds it."""

    __slots__ = ("tokens", "trained")

    def __init__(self) -> None:
        self.tokens = array("I")
        self.trained = array("I")

    def extend(self, other: Lengths) -> None:
        self.tokens.extend(other.tokens)
        self.trained.extend(other.trained)


class Counter(Protocol):
    name: str
    error_band: float
    """Relative half-width for plain rows; 0 when the count is the model's own."""

    def count(self, examples: Sequence[Example]) -> Lengths: ...


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()
