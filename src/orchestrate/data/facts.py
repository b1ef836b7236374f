"""Facts about a data file, and methods that read its rows again."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from orchestrate.data.files.sources import source
from orchestrate.data.passes.scan import ScanTask, ranges, read_rows
from orchestrate.data.rows import Example, Kind
from orchestrate.data.rows.traits import Picture
from orchestrate.data.shapes.row_reader import ReadRow
from orchestrate.data.tokens import Remark
from orchestrate.errors import DataError
from orchestrate.types import Problem, TokensFrom


def data_digest(train: str, validation: str | None = None) -> str:
    """Return the digest of a run's data: sha256 over the digests of its training and validation rows."""
    return hashlib.sha256(f"{train}\n{validation or '-'}".encode()).hexdigest()


@dataclass(frozen=True)
class Content:
    """Properties of the rows that determine whether backends accept the data."""

    tools: bool = False
    weights: bool = False
    row_weights: bool = False
    reasoning: bool = False
    images: bool = False
    roles: tuple[str, ...] = ()
    average_turns: float = 1.0
    """Average number of user turns per row."""


@dataclass(frozen=True)
class TokenCount:
    """Token counts of a dataset for one tokenizer and chat template."""

    tokens: int
    """Number of tokens in all rows, including those that the template adds, before truncation."""
    trained_tokens: int
    """Number of tokens that contribute to the loss. An answer counts in full even if only part of it is
    trained on."""
    rows: int
    longest: int
    tokenizer: str
    """Name of the tokenizer: the model's own, or a substitute."""
    exact: bool
    error_band: float = 0.0
    """Relative half-width of the count's uncertainty. 0 for an exact count."""
    tokens_from: TokensFrom = TokensFrom.EXACT
    """How the tokens were counted. If `SAMPLED`, `tokens` and `trained_tokens` are estimates, and
    `error_band` includes the sampling error."""
    weights: Sequence[float] = ()
    """Sampling weight of each entry of `lengths`: the number of sequences in the file that the entry
    represents. Empty unless the lengths were sampled."""
    lengths: Sequence[int] = ()
    """Number of tokens in each sequence, in row order: one sequence per row, two per preference pair (the
    prompt with each answer). If the counter splits rows, the additional sequences come last."""
    remarks: Sequence[Remark] = ()
    """Warnings about the model's chat template, with the numbers of the affected rows. Empty for a substitute
    tokenizer. Token counts exclude rows that the template rejects."""

    def truncated(self, limit: int | None) -> int:
        """Return the total number of tokens after truncating every sequence to `limit` tokens."""
        if limit is None:
            return self.tokens
        if self.weights:
            return round(sum(w * min(n, limit) for n, w in zip(self.lengths, self.weights, strict=True)))
        return sum(min(n, limit) for n in self.lengths)

    def within(self, limit: int, *, pairs: bool = False) -> TokenCount:
        """Return a copy without the sequences that are longer than `limit` tokens. With `pairs`, drop a pair
        if either side is too long."""
        sides = 2 if pairs else 1
        kept = [
            n
            for first in range(0, len(self.lengths), sides)
            if max(self.lengths[first : first + sides]) <= limit
            for n in range(first, first + sides)
        ]
        lengths, weights = [self.lengths[n] for n in kept], [self.weights[n] for n in kept if self.weights]
        tokens = round(sum(w * n for w, n in zip(weights, lengths, strict=True))) if weights else sum(lengths)
        return replace(
            self,
            tokens=tokens,
            trained_tokens=self.trained_tokens * tokens // max(self.tokens, 1),
            rows=self.rows * len(kept) // max(len(self.lengths), 1),
            longest=max(lengths, default=0),
            lengths=lengths,
            weights=weights,
        )

    @property
    def low(self) -> int:
        """Lower end of the error band."""
        return math.floor(self.tokens * (1 - self.error_band))

    @property
    def high(self) -> int:
        return math.ceil(self.tokens * (1 + self.error_band))

    @property
    def sequences(self) -> int:
        return round(sum(self.weights)) if self.weights else len(self.lengths)


@dataclass(frozen=True)
class Facts:
    """Facts collected in one pass over a file. `digest` is the sha256 of the canonical rows, so equal content
    has an equal digest."""

    path: str
    format: str
    """Detected format: `openai-chat`, `sharegpt`, `alpaca` ..."""
    kind: Kind
    rows: int
    bytes: int
    digest: str
    """sha256 of the concatenated sha256 hashes of all canonical rows, in order."""
    content: Content
    problems: tuple[Problem, ...] = ()
    container: str = "jsonl"
    """Type of the file: `jsonl`, `csv.gz`, `parquet`, `folder` ..."""
    canonical_bytes: int = 0
    """Size of the rows as canonical JSON lines, in bytes. A file written for a host differs in size by a few
    percent."""
    masks: Mapping[int, int] = field(default_factory=dict[int, int])
    """Number of rows for each combination of `orchestrate.data.rows.traits.Trait` bits."""
    first_rows: Mapping[int, tuple[int, ...]] = field(default_factory=dict[int, tuple[int, ...]])
    """The first rows with each trait, as {trait bit: row numbers}."""
    rowless: Sequence[int] = ()
    """Numbers of the lines that contain no valid row, in ascending order."""
    pictures: Mapping[Picture, int] = field(default_factory=dict[Picture, int])
    """Number of images in all valid rows, keyed by size and detail, for cost estimates. Images in the shared
    prompt of a preference pair are counted once. At most `rows.traits.MOST_SIZES` sizes are stored exactly,
    and all others are rounded up to multiples of 32 pixels."""
    columns: tuple[tuple[str, str], ...] = ()
    """Renamed columns, as (field, column) pairs."""
    memory: Path | None = field(default=None, compare=False)
    """Cache folder for token counts."""
    tokens_from: TokensFrom = field(default=TokensFrom.EXACT, compare=False)
    """Token counting method."""

    def examples(self) -> Iterator[Example]:
        """Yield the rows that have no errors, in order and in canonical form. Raises `DataError` if the file
        no longer exists."""
        return (example for _, example in self.numbered())

    def numbered(self) -> Iterator[tuple[int, Example]]:
        """Yield the same rows as `examples`, each with its row number in the file."""
        return ((number, row.example) for number, row in self.read() if row.example is not None)

    def number(self, place: int) -> int:
        """Convert a 0-based index among the valid rows to a row number in the file."""
        number = place + 1
        for line in self.rowless:
            if line > number:
                break
            number += 1
        return number

    def read(self) -> Iterator[tuple[int, ReadRow]]:
        """Yield each row of the file with its row number, including rows with errors."""
        lines = source(self.path)
        before = 0
        for start, end in ranges(lines.lines, lines.line_bytes):
            number = 0
            for number, row in read_rows(ScanTask(lines.lines, start, end, self.format, self.columns)):
                yield before + number, row
            before += number


def require_same(digest: str, data: Facts) -> None:
    """Raise `DataError` if `digest`, computed from the rows just read, differs from the digest of `data`."""
    if digest != data.digest:
        raise changed(data)


def changed(data: Facts) -> DataError:
    return DataError(
        f"{data.path} changed while it was being read. Nothing was written or sent",
        fix="run the same command again to read the new content",
    )
