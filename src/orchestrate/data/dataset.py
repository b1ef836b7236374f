"""Public interface of datasets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrate.data import dataset_reader
from orchestrate.data.facts import Facts, TokenCount, data_digest
from orchestrate.data.rules import RowTarget


class Dataset(Facts):
    """A data file that has been read and checked."""

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        columns: Mapping[str, str] | None = None,
        tokenizers: Sequence[str] = (),
        memory: Path | None = None,
    ) -> Dataset:
        """Read a data file in one pass, in bounded memory. `columns` is a mapping {field name: column name in
        the file}. `tokenizers` names the tokenizers to count tokens with in the same pass. `memory` is the
        folder in which token counts are cached.

        Raises `DataError` if the format of the file is unknown. Problems in individual rows don't raise an
        exception: they are collected in `problems`, and `examples` skips rows with errors."""
        return cls.of(
            dataset_reader.open_counted(str(path), columns=columns, tokenizers=tokenizers, memory=memory)
        )

    @classmethod
    def of(cls, opened: dataset_reader.OpenedFile) -> Dataset:
        """Build a dataset from a file that has already been read."""
        return cls(**vars(opened.facts))

    def tokens(self, tokenizer: str) -> TokenCount:
        """Count tokens with the named tokenizer (see `data.tokens.counters`). The result is cached by
        digest."""
        return dataset_reader.count_tokens(self, tokenizer)

    def write(self, target: RowTarget, folder: Path, *, allow_loss: bool = False) -> Path:
        """Write the rows to `folder` in the target's format and return the file's path.

        The file name contains the digest and the target. If a complete file with this name exists, it is
        reused. If not, the source file is read once more. Raises `DataError` if the rows no longer match the
        digest, if the target rejects them, or if rows would lose content and `allow_loss` is not set."""
        path = folder / f"{self.digest[:16]}.{target.name}{'.lossy' if allow_loss else ''}.jsonl"
        if not path.is_file():
            from orchestrate.data.dataset_writer import write_rows

            folder.mkdir(parents=True, exist_ok=True)
            write_rows(self, target, path, allow_loss=allow_loss)
        return path


@dataclass(frozen=True)
class TrainingData:
    """The training and validation data that a spec names."""

    train: Dataset
    validation: Dataset | None = None
    mixed: str | None = None
    """Description of the mix, if the training rows come from several files."""

    @property
    def digest(self) -> str:
        """See `facts.data_digest`."""
        return data_digest(self.train.digest, self.validation.digest if self.validation else None)

    @property
    def digests(self) -> tuple[str, ...]:
        """The digest of each file."""
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
