"""A dataset as the other rooms see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrate.data import opening
from orchestrate.data.facts import Facts, TokenCount, data_digest
from orchestrate.data.rules import RowTarget


class Dataset(Facts):
    """One file, read and checked."""

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
        return cls.of(opening.open_counted(str(path), columns=columns, tokenizers=tokenizers, memory=memory))

    @classmethod
    def of(cls, opened: opening.OpenedFile) -> Dataset:
        """Build a dataset from a file that has already been read."""
        return cls(**vars(opened.facts))

    def tokens(self, tokenizer: str) -> TokenCount:
        """Counts with the named tokenizer (see `data.tokens.counting`); once, then remembered by digest."""
        return opening.count_tokens(self, tokenizer)

    def write(self, target: RowTarget, folder: Path, *, allow_loss: bool = False) -> Path:
        """Writes the rows in the format of a backend and returns the file.

        The file's name carries the digest and the target; an existing whole file is used again. Otherwise the
        dataset's file is read once more, once for each target. Raises `DataError` when the rows read are no
        longer those of the digest, and when the target refuses them or cannot hold all of them without loss,
        unless `allow_loss`.
        """
        path = folder / f"{self.digest[:16]}.{target.name}{'.lossy' if allow_loss else ''}.jsonl"
        if not path.is_file():
            from orchestrate.data.writing import write_rows

            folder.mkdir(parents=True, exist_ok=True)
            write_rows(self, target, path, allow_loss=allow_loss)
        return path


@dataclass(frozen=True)
class TrainingData:
    """The files of one spec."""

    train: Dataset
    validation: Dataset | None = None
    mixed: str | None = None
    """Of which files the rows to train on were mixed, in words."""

    @property
    def digest(self) -> str:
        """See `facts.data_digest`."""
        return data_digest(self.train.digest, self.validation.digest if self.validation else None)

    @property
    def digests(self) -> tuple[str, ...]:
        """Of each file."""
        return (self.train.digest, *([self.validation.digest] if self.validation else []))

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
        opened = [Dataset.open(file, tokenizers=tokenizers, memory=memory) for file in files]
        return cls(opened[0], opened[1] if validation else None)
