"""Mix several files into one training file, according to their weights.

The integer part of a file's weight is the number of times each of its rows occurs. The fractional part is the
fraction of its rows that occur one extra time, sampled with a seed. For example, with a weight of 2.25, every
row occurs twice, and a quarter of the rows occur a third time. Each file's rows stay in order and are spread
evenly over the mix.
"""

from __future__ import annotations

import heapq
import mmap
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import msgspec

from orchestrate.core.files import private_folder, write_whole
from orchestrate.data.dataset_reader import (
    JoinedFiles,
    OpenedFile,
    applicable_columns,
    open_counted,
    open_dataset,
)
from orchestrate.data.files import writing
from orchestrate.data.files.sources import spooled
from orchestrate.data.passes.scan import Total
from orchestrate.errors import DataError
from orchestrate.spec.methods import TrainFile
from orchestrate.types import Problem, Record, Severity


class MixedFile(Record, frozen=True, kw_only=True):
    """One file's part of a mix."""

    path: str
    digest: str
    rows: int
    """Number of valid rows in the file."""
    weight: float
    seed: int
    taken: int
    """Number of rows in the mix that come from the file."""
    sample: list[int]
    """Numbers of the file's rows that were sampled for the fractional part of `weight`. Each sampled row
    occurs in the mix one more time than the other rows of the file."""

    @property
    def description(self) -> str:
        whole, part = divmod(self.weight, 1)
        times = f"{self.rows:,} rows x {whole:g}" if whole != 1 else f"{self.rows:,} rows"
        drawn = f"{len(self.sample):,} of {self.rows:,} rows sampled with seed {self.seed}"
        parts = ([times] if whole else []) + ([drawn] if part else [])
        return f"{self.path} ({', and '.join(parts)})"


class Mix(Record, frozen=True, kw_only=True):
    """The recipe to reproduce a mixed file, stored next to the file."""

    digest: str
    """Digest of the mixed rows, computed as for any other file."""
    rows: int
    files: list[MixedFile]

    @property
    def description(self) -> str:
        files = "; ".join(file.description for file in self.files)
        return f"{self.rows:,} rows mixed from {files}, digest {self.digest[:16]}"


@dataclass(frozen=True)
class _MixedFile:
    file: MixedFile
    offsets: array[int]
    """Offset of each valid row in the spool file, followed by the end offset."""
    places: Sequence[int]
    """Indices of the sampled rows among the valid rows."""
    spool: Path

    def rows(self, number: int) -> Iterator[tuple[float, int, int]]:
        """Yield a tuple for each row: its relative position in the mix, the number of the file, and its
        index among the file's valid rows."""
        count = self.file.rows
        for turn in range(self.file.taken):
            copy, row = divmod(turn, count)
            last = copy == int(self.file.weight)
            yield (turn + 0.5) / self.file.taken, number, self.places[row] if last else row


def open_mix(
    files: Sequence[TrainFile],
    folder: Path,
    *,
    columns: Mapping[str, str] | None = None,
    tokenizers: Sequence[str] = (),
    memory: Path | None = None,
    compare: bool = False,
    content: bool = False,
) -> OpenedFile:
    """Mix the rows of all files into one file in `folder`. Returns the joined files, with the mixed rows in
    `OpenedFile.mix`. Each file is read once, and the same files always give the same mix. For the other
    arguments, see `Dataset.open` and `ScanTask`.

    Raises `DataError` if a file can't be read, has a different kind of rows than the first file, or has a
    weight so low that none of its rows are selected."""
    private_folder(folder)
    union, opened, parts = Total(), list[OpenedFile](), list[_MixedFile]()
    begins: list[tuple[int, str]] = []
    with TemporaryDirectory(dir=folder, prefix=".mixing-") as room:
        for number, file in enumerate(files):
            begins.append((union.lines, file.path))
            spool = Path(room, f"{number}.jsonl")
            with spooled(spool, f"the mix of {len(files)} files") as out:
                join = JoinedFiles(out.write, union)
                opened.append(
                    open_dataset(
                        file.path,
                        columns=applicable_columns(file.path, columns),
                        memory=memory,
                        compare=compare,
                        content=content,
                        join=join,
                    )
                )
            _require_kind(opened[-1], opened[0])
            parts.append(_part(file, opened[-1], spool))
        said = "\n".join(f"{p.file.digest} {p.file.weight} {p.file.seed}" for p in parts)
        path = folder / f"{sha256(said.encode()).hexdigest()[:20]}.jsonl"
        if not path.is_file():
            with writing(path) as out:
                _write(parts, out)
    rows = open_counted(str(path), tokenizers=tokenizers, memory=memory, compare=compare, content=False)
    made = Mix(digest=rows.facts.digest, rows=rows.facts.rows, files=[part.file for part in parts])
    write_whole(path.with_suffix(".mix.json"), msgspec.json.format(made.to_json()))
    first = opened[0]
    facts = replace(
        first.facts,
        path=" + ".join(file.description for file in files),
        rows=union.rows,
        problems=(*(p for one in opened for p in one.facts.problems), _mix_note(made, path)),
    )
    return OpenedFile(facts, union, first.source, tuple(begins), rows, made.description)


def _require_kind(one: OpenedFile, first: OpenedFile) -> None:
    if one.facts.kind != first.facts.kind:
        raise DataError(
            f"{first.facts.path} has {first.facts.kind} rows, but {one.facts.path} has {one.facts.kind} "
            "rows. All files in a mix must contain the same kind of rows",
            fix="convert the files to one kind of rows: orchestrate data convert",
        )


def _part(file: TrainFile, opened: OpenedFile, spool: Path) -> _MixedFile:
    rows = opened.facts.rows
    whole, share = int(file.weight), file.weight % 1
    chance = random.Random(f"{file.seed}")  # noqa: S311  samples rows, no secrets
    # Sample from a fixed random order, so the rows of a smaller share are also part of any larger one.
    places = sorted(chance.sample(range(rows), rows)[: round(share * rows)])
    taken = whole * rows + len(places)
    if not taken:
        raise DataError(
            f"{file.path}: a weight of {file.weight:g} selects none of the {rows:,} valid rows",
            fix="raise the file's weight, or leave out the file",
        )
    made = MixedFile(
        path=file.path,
        digest=opened.facts.digest,
        rows=rows,
        weight=file.weight,
        seed=file.seed,
        taken=taken,
        sample=[opened.facts.number(place) for place in places],
    )
    return _MixedFile(made, _offsets(spool), places, spool)


def _offsets(spool: Path) -> array[int]:
    offsets = array("Q", [0])
    with spool.open("rb") as lines:
        for line in lines:
            offsets.append(offsets[-1] + len(line))
    return offsets


def _write(parts: Sequence[_MixedFile], out: IO[bytes]) -> None:
    with ExitStack() as opened:
        spools: list[mmap.mmap] = []
        for part in parts:
            file = opened.enter_context(part.spool.open("rb"))
            spools.append(opened.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        for _, number, row in heapq.merge(*(part.rows(n) for n, part in enumerate(parts))):
            offsets = parts[number].offsets
            out.write(spools[number][offsets[row] : offsets[row + 1]])


def _mix_note(mix: Mix, path: Path) -> Problem:
    return Problem(
        code="mix",
        severity=Severity.INFO,
        message=f"{mix.description}. The recipe to reproduce it is in {path.with_suffix('.mix.json').name}",
        source=str(path),
    )
