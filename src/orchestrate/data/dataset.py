"""A dataset as the other rooms see it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orchestrate.data.rows.examples import Example, Kind
from orchestrate.errors import UsageError
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
    lengths: Sequence[int] = ()
    """Tokens of each sequence, in order of the rows: one for a row, two for a preference pair (the prompt
    with each answer)."""

    def truncated(self, limit: int | None) -> int:
        """Tokens left when every sequence is cut at `limit`."""
        return self.tokens if limit is None else sum(min(n, limit) for n in self.lengths)


@dataclass(frozen=True)
class Dataset:
    """One file, read and checked. `digest` is the sha256 of the canonical rows: equal content, equal
    digest."""

    path: str
    format: str
    """What the reader found: `openai-chat`, `sharegpt`, `alpaca` ..."""
    kind: Kind
    rows: int
    bytes: int
    digest: str
    """sha256 over the sha256 of each canonical row, in order."""
    content: Content
    problems: tuple[Problem, ...] = ()
    container: str = "jsonl"
    """What held the rows: `jsonl`, `csv.gz`, `parquet`, `folder` ..."""
    canonical_bytes: int = 0
    """Size of the rows as canonical JSON lines; what a host's file has, within a few percent."""
    masks: Mapping[int, int] = field(default_factory=dict[int, int])
    """Rows for each combination of `orchestrate.data.rows.traits.Trait` bits."""
    first_rows: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    """The first row numbers with each trait."""
    columns: tuple[tuple[str, str], ...] = ()
    """Columns that were renamed while reading: (wanted, column)."""
    memory: Path | None = field(default=None, compare=False)
    """The folder where token counts are kept."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        tokenizers: Sequence[str] = (),
        memory: Path | None = None,
    ) -> Dataset:
        """Reads the whole file once, in bounded memory. `columns` maps wanted field names to the file's own;
        `tokenizers` are counted in the same pass; `memory` is a folder where counts are kept for later.

        Raises `DataError` when the file cannot be read as any known format; problems of single rows are
        collected in `problems` instead, and those rows are left out of `examples`.
        """
        from orchestrate.data.opening import open_counted

        return open_counted(str(path), columns=columns, tokenizers=tokenizers, memory=memory)

    def examples(self) -> Iterator[Example]:
        """The canonical rows, in order; rows with errors are left out. Raises `DataError` when the file
        has gone."""
        return (example for _, example in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Example]]:
        """As `examples`, each with its row number in the file."""
        from orchestrate.data.opening import rows_of

        return ((number, row.example) for number, row in rows_of(self) if row.example is not None)

    def tokens(self, tokenizer: str) -> TokenCount:
        """Counts with the named tokenizer (see `data.tokens.counting`); once, then remembered by digest."""
        from orchestrate.data.opening import count_tokens

        return count_tokens(self, tokenizer)

    def write(self, target: Target, folder: Path, *, allow_loss: bool = False) -> Path:
        """Writes the rows in the format of a backend and returns the file.

        The file's name carries the digest and the target; an existing whole file is used again. Raises
        `DataError` when the target refuses the rows or cannot hold all of them without loss, unless
        `allow_loss`.
        """
        from orchestrate.data.operations.convert import write_rows

        path = folder / f"{self.digest[:16]}.{target.name}{'.lossy' if allow_loss else ''}.jsonl"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_rows(self, target, path, allow_loss=allow_loss)
        return path


@dataclass(frozen=True)
class TrainingData:
    """The files of one spec."""

    train: Dataset
    validation: Dataset | None = None

    @property
    def digest(self) -> str:
        """sha256 over the digests of its files."""
        parts = [self.train.digest, self.validation.digest if self.validation else "-"]
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()

    @classmethod
    def open(
        cls,
        train: str,
        validation: str | None = None,
        *,
        tokenizers: Sequence[str] = (),
        memory: Path | None = None,
    ) -> TrainingData:
        """See `Dataset.open`."""
        files = (train, validation) if validation else (train,)
        return cls(*(Dataset.open(file, tokenizers=tokenizers, memory=memory) for file in files))
