"""A dataset as the other rooms see it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from orchestrate.data.examples import Example, Kind
from orchestrate.types import Problem


@dataclass(frozen=True)
class Content:
    """What occurs in the rows; backends decide by it."""

    tools: bool = False
    weights: bool = False
    row_weights: bool = False
    reasoning: bool = False
    images: bool = False
    roles: tuple[str, ...] = ()
    average_turns: float = 1.0
    """User turns per row."""


@dataclass(frozen=True)
class TokenCount:
    """Tokens of one dataset under one tokenizer and chat template."""

    tokens: int
    """Of all rows, template included, before truncation."""
    trained_tokens: int
    """Those that carry loss."""
    rows: int
    longest: int
    tokenizer: str
    """What counted: the model's own tokenizer, or the named stand-in."""
    exact: bool
    error_band: float = 0.0
    """Relative half-width of the count's uncertainty; 0 when exact."""
    lengths: tuple[int, ...] = ()
    """Tokens of each row, in order of the rows."""

    def truncated(self, limit: int | None) -> int:
        """Tokens left when every row is cut at `limit`."""
        return self.tokens if limit is None else sum(min(n, limit) for n in self.lengths)


@dataclass(frozen=True)
class Dataset:
    """One file, read and checked. `digest` is the sha256 of the canonical rows: equal content, equal digest."""

    path: str
    format: str
    """What the reader found: `openai-chat`, `sharegpt`, `alpaca` ..."""
    kind: Kind
    rows: int
    bytes: int
    digest: str
    content: Content
    problems: tuple[Problem, ...] = ()

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Reads the whole file once, in bounded memory.

        Raises `DataError` when the file cannot be read as any known format; problems of single rows are collected
        in `problems` instead, and those rows are left out of `examples`.
        """
        raise NotImplementedError

    def examples(self) -> Iterator[Example]:
        """The canonical rows, in order; rows with errors are left out."""
        raise NotImplementedError

    def tokens(self, tokenizer: str) -> TokenCount:
        """Counts with the named tokenizer (`orchestrate.data.tokens`); counted once, then remembered by digest."""
        raise NotImplementedError

    def write(self, target: str, folder: Path) -> Path:
        """Writes the rows in the format of a backend (openai, together, fireworks, local) and returns the file.

        The file's name carries the digest and the target; an existing whole file is used again. Raises `DataError`
        when the target cannot hold the rows.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class TrainingData:
    """The files of one spec."""

    train: Dataset
    validation: Dataset | None = None

    @property
    def digest(self) -> str:
        """sha256 over the digests of its files."""
        import hashlib

        parts = [self.train.digest, self.validation.digest if self.validation else "-"]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @classmethod
    def open(cls, train: str, validation: str | None = None) -> TrainingData:
        return cls(Dataset.open(train), Dataset.open(validation) if validation else None)
