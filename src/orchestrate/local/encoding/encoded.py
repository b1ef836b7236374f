"""Encoded rows on disk, written once per job and then memory-mapped. The data may be larger than memory, and
a resumed run does not encode it again."""

from __future__ import annotations

import random
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from orchestrate.core.files import whole_folder
from orchestrate.data.rows import RLExample
from orchestrate.errors import DataError
from orchestrate.local.encoding import (
    EVERYTHING,
    Encoded,
    EncodedPair,
    Rules,
    Template,
    decode_prompt,
    decode_row,
    encode_answer,
    encode_pair,
    encode_row,
)
from orchestrate.local.job import option

# The type annotations of torch, transformers and numpy are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false


NEAR = 16
"""Number of batches within which rows are sorted by length."""
MOST = 0.9
"""Minimum share of rows that must be packable for sorting by length to be skipped. The remaining rows are
longer, and are padded separately."""


@dataclass(frozen=True)
class EncodedRows:
    """Encoded rows. `ids[offsets[i]:offsets[i+1]]` is row i. With `pairs`, rows 2i and 2i+1 are the preferred
    and the rejected answer of one example."""

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    offsets: npt.NDArray[np.int64]
    pairs: bool = False
    reference: npt.NDArray[np.float32] | None = None
    """Log-probability of each row under the initial model, if the method needs it."""
    labels: npt.NDArray[np.bool_] | None = None
    """True for each row with a desirable answer, if the method trains on unpaired answers."""
    mismatched: npt.NDArray[np.float32] | None = None
    """Log-probabilities of mismatched answers under the initial model, as [epochs, rows]. Each prompt is
    paired with an answer from another row."""
    before: npt.NDArray[np.int32] | None = None
    """Number of the row that each mismatched answer is from, as [epochs, rows]."""
    prompts: Sequence[RLExample] = ()
    """The unencoded rows, including the fields that graders read. Empty unless the method samples answers."""

    @cached_property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Number of tokens of each example. For a pair, the length of the longer side."""
        lengths = np.diff(self.offsets)
        return lengths.reshape(-1, 2).max(axis=1) if self.pairs else lengths

    @property
    def examples(self) -> int:
        return (len(self.offsets) - 1) // (2 if self.pairs else 1)

    @property
    def tokens(self) -> int:
        return int(self.offsets[-1])

    def row(self, i: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
        start, end = self.offsets[i], self.offsets[i + 1]
        return self.ids[start:end], self.weights[start:end]

    def rows_of(self, examples: Sequence[int]) -> list[int]:
        """Return the row numbers of the examples. For pairs, all preferred rows come first, then all
        rejected rows."""
        return [2 * i for i in examples] + [2 * i + 1 for i in examples] if self.pairs else list(examples)

    def batches(self, batch_size: int, seed: int, epoch: int, window: int = NEAR) -> Batches:
        """Split one epoch's examples into optimizer steps. Labeled answers stay in random order, because good
        and bad answers differ in length, and sorting by length would separate them."""
        window = window if self.labels is None else 1
        return epoch_batches(self.lengths, batch_size, seed, epoch, window=window)

    def window(self, line: int) -> int:
        """Return the number of batches within which `batches` sorts rows by length. Returns 1, which means no
        sorting, if most rows have at most `line` tokens. Such rows need no padding, so sorting gains nothing.
        Sorting would also make training slightly less effective, because a step's rows would be all short or
        all long. Prompts are always sorted, because their answers are sampled in one batch."""
        return 1 if not self.prompts and np.mean(self.lengths <= line) >= MOST else NEAR

    @classmethod
    def open(cls, folder: Path, *, pairs: bool = False, labelled: bool = False) -> EncodedRows | None:
        """Open encoded rows, or return `None` if the files are missing or incomplete."""
        names = ("ids", "weights", "offsets", *(("labels",) if labelled else ()))
        try:
            arrays = {n: np.load(folder / f"{n}.npy", mmap_mode="r") for n in names}
        except (OSError, ValueError):
            return None
        return cls(**arrays, pairs=pairs)


@dataclass
class EncodingReport:
    """Counts of the rows that encoding truncated or dropped."""

    rows: int = 0
    truncated_rows: int = 0
    truncated_tokens: int = 0
    dropped: int = 0
    too_long: int = 0
    """Number of rows that were dropped entirely or in part because they exceed the length limit."""
    alike: int = 0
    """Number of pairs that were dropped because their answers no longer differ."""
    split: int = 0
    """Number of rows that were added so that earlier answers are trained together with their reasoning."""
    notes: Counter[str] | None = None
    longest: int = 0

    def messages(self, name: str, limit: int | None) -> Iterator[tuple[str, str]]:
        """Yield a (level, message) pair for each event to add to the job."""
        if self.truncated_rows:
            yield (
                "warning",
                f"{name}: truncated {self.truncated_rows} of {self.rows} rows to {limit} tokens "
                f"({self.truncated_tokens} tokens lost)",
            )
        if self.too_long:
            yield (
                "warning",
                f"{name}: {self.too_long} of {self.rows} rows were dropped, entirely or in part, because "
                f"they exceed {limit} tokens (truncation: drop)",
            )
        if self.dropped:
            yield (
                "warning",
                f"{name}: {self.dropped} of {self.rows} rows were dropped because they contain no token to "
                "train on",
            )
        if self.alike:
            yield (
                "warning",
                f"{name}: {self.alike} of {self.rows} rows were dropped because both answers are the same in "
                f"the text to train on{f', which has at most {limit} tokens' if limit else ''}",
            )
        if self.split:
            yield (
                "info",
                f"{name}: {self.split} earlier answers with reasoning became separate training "
                f"rows, in addition to the {self.rows} rows in the file",
            )
        for note, count in sorted((self.notes or {}).items()):
            yield "warning", f"{name}, {count} rows: {note}"


class _Growing:
    """An array in a file that is written piece by piece. Its length is known only at the end."""

    HEADER = 128
    """Size in bytes of the header that numpy writes for a one-dimensional array."""

    def __init__(self, path: Path, kind: str) -> None:
        self._file = path.open("wb")
        self._kind = np.dtype(kind)
        self._length = 0
        self._file.write(bytes(self.HEADER))

    def extend(self, values: Sequence[float]) -> None:
        piece = np.array(values, dtype=self._kind)
        self._length += len(piece)
        self._file.write(piece.tobytes())

    def close(self) -> None:
        said = {"descr": self._kind.str, "fortran_order": False, "shape": (self._length,)}
        start = b"\x93NUMPY\x01\x00" + (self.HEADER - 10).to_bytes(2, "little")
        self._file.seek(0)
        self._file.write(start + f"{said!r}".ljust(self.HEADER - 11).encode("ascii") + b"\n")
        self._file.close()


class EncodedFile:
    """Writes encoded rows to disk. Keeps only the rows' offsets in memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ids, self._weights = (
            _Growing(folder / "ids.npy", "<i4"),
            _Growing(folder / "weights.npy", "<f4"),
        )
        self._offsets = array("q", [0])
        self._labels = bytearray()

    def add(self, rows: Sequence[Encoded], label: bool | None) -> None:
        for row in rows:
            self._ids.extend(row.ids)
            self._weights.extend(row.weights)
            self._offsets.append(self._offsets[-1] + len(row.ids))
        if label is not None:
            self._labels.append(label)

    @property
    def rows(self) -> int:
        return len(self._offsets) - 1

    def __enter__(self) -> EncodedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._weights.close()
        np.save(self._folder / "offsets.npy", np.frombuffer(self._offsets, dtype=np.int64))
        if self._labels:
            np.save(self._folder / "labels.npy", np.frombuffer(self._labels, dtype=np.bool_))


def encode_file(
    path: Path,
    template: Template,
    folder: Path,
    *,
    pairs: bool = False,
    labelled: bool = False,
    rules: Rules = EVERYTHING,
) -> tuple[EncodedRows, EncodingReport]:
    """Encode all rows of a canonical file into `folder`. Set `pairs` for preference pairs and `labelled` for
    unpaired answers. The returned rows are read from disk as needed. Raises `DataError` with the number of
    the row that cannot be encoded."""
    report = EncodingReport(notes=Counter())
    with path.open("rb") as lines, whole_folder(folder) as draft, EncodedFile(draft) as written:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                example: Any = decode_row(line)
                if labelled:
                    new = [_encode_answer(example, template, rules)]
                elif pairs:
                    new = _encode_sides(example, template, rules)
                else:
                    new = encode_row(example, template, rules)
                    report.split += len(new) - 1
            except DataError as error:
                raise DataError(f"{path.name}, row {number}: {error.message}", fix=error.fix) from error
            report.rows += 1
            _count(report, new)
            # A pair needs both sides. The parts of a split row can be used independently.
            good = [e for e in new if e.trained]
            if pairs and len(good) == len(new) and EncodedPair(*new).alike:
                report.alike += 1
            elif len(good) == len(new) or (good and not pairs):
                written.add(good, example.label if labelled else None)
            elif not any(e.dropped for e in new):
                report.dropped += 1
        if not written.rows:
            message = f"{path.name}: no row contains a token to train on"
            if report.alike:
                message += f". In {report.alike} of {report.rows} rows, both answers are the same"
            if report.too_long:
                message += (
                    f". {report.too_long} of {report.rows} rows are longer than {rules.max_length} tokens"
                )
            raise DataError(message, fix="orchestrate check SPEC")
    rows = EncodedRows.open(folder, pairs=pairs, labelled=labelled)
    if rows is None:
        raise OSError(f"could not read {folder} after writing it")
    return rows, report


def _encode_sides(example: Any, template: Template, rules: Rules) -> list[Encoded]:
    from orchestrate.data.rows import PreferenceExample

    if not isinstance(example, PreferenceExample):
        raise DataError("preference training needs rows with a preferred and a rejected answer")
    pair = encode_pair(example, template, rules)
    return [pair.preferred, pair.rejected]


def _encode_answer(example: Any, template: Template, rules: Rules) -> Encoded:
    from orchestrate.data.rows import UnpairedExample

    if not isinstance(example, UnpairedExample):
        raise DataError("KTO needs rows with an answer and a label")
    return encode_answer(example, template, rules)


def _count(report: EncodingReport, new: list[Encoded]) -> None:
    cut = [e.truncated for e in new if e.truncated and not e.dropped]
    report.too_long += any(e.dropped for e in new)
    report.truncated_rows += bool(cut)
    report.truncated_tokens += sum(cut)
    report.longest = max(report.longest, *(len(e.ids) for e in new))
    assert report.notes is not None  # noqa: S101  made with the report
    report.notes.update({note for e in new for note in e.notes})


def stacked(sides: list[Encoded], pairs: bool = False) -> EncodedRows:
    """Build rows in memory."""
    lengths = np.array([0, *(len(e.ids) for e in sides)], dtype=np.int64)
    ids = np.fromiter((i for e in sides for i in e.ids), dtype=np.int32, count=int(lengths.sum()))
    weights = np.fromiter((w for e in sides for w in e.weights), dtype=np.float32, count=int(lengths.sum()))
    return EncodedRows(ids, weights, np.cumsum(lengths), pairs)


@dataclass(frozen=True, eq=False)
class Batches(Sequence[list[int]]):
    """The examples of each optimizer step in an epoch. Keeps only the order of the examples in memory."""

    order: npt.NDArray[np.int64]
    """Example numbers, ordered so that each batch is a contiguous range."""
    begins: array[int]
    """Index in `order` of the first example of each batch."""
    size: int

    def __len__(self) -> int:
        return len(self.begins)

    @overload
    def __getitem__(self, index: int) -> list[int]: ...
    @overload
    def __getitem__(self, index: slice) -> Batches: ...
    def __getitem__(self, index: int | slice) -> list[int] | Batches:
        if isinstance(index, slice):
            return replace(self, begins=self.begins[index])
        begin = self.begins[index]
        return self.order[begin : begin + self.size].tolist()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batches) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def epoch_batches(
    lengths: npt.NDArray[np.int64], batch_size: int, seed: int, epoch: int, *, window: int = NEAR
) -> Batches:
    """Split one epoch's examples into optimizer steps. The same seed and epoch always give the same result,
    so a run can resume at any step.

    Rows are shuffled and then sorted by length within every `window` batches, to reduce padding. Then the
    batches are shuffled. Every row occurs once. The last batch may be smaller."""
    chance = random.Random(f"{seed}/{epoch}")  # noqa: S311  order of rows, not secrets
    shuffled = array("q", range(len(lengths)))
    chance.shuffle(shuffled)
    order = np.frombuffer(shuffled, dtype=np.int64)
    span = window * batch_size
    for start in range(0, len(order), span):
        near = order[start : start + span]
        near[:] = near[np.argsort(lengths[near], kind="stable")]
    begins = array("q", range(0, len(order), batch_size))
    chance.shuffle(begins)
    return Batches(order, begins, batch_size)


def micro_batches(
    batch: Sequence[int], lengths: npt.NDArray[np.int64], max_tokens: int, max_rows: int, line: int = 0
) -> Iterator[list[int]]:
    """Split one optimizer step's examples into micro-batches of at most `max_tokens` tokens, including
    padding, and at most `max_rows` rows. Examples of up to `line` tokens need no padding, so they get their
    own micro-batches."""
    numbers = np.asarray(batch, dtype=np.int64)
    part: list[int] = []
    for i in numbers[np.argsort(lengths[numbers], kind="stable")]:
        full = len(part) >= max_rows or (len(part) + 1) * int(lengths[i]) > max_tokens
        if part and (full or lengths[part[-1]] <= line < lengths[i]):
            yield part
            part = []
        part.append(int(i))
    yield part


# Prompts for sampling answers. Their tokens and the fields that graders need stay on disk and are read on
# demand.


_PLACES = "places.npy"


class PromptFile(Sequence[RLExample]):
    """The RL rows of a file, each read on demand."""

    def __init__(self, path: Path, places: npt.NDArray[np.int64]) -> None:
        """Open the file. `places` are the byte offsets of its lines."""
        self._path, self._places = path, places

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, index: int) -> RLExample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RLExample]: ...
    def __getitem__(self, index: int | slice) -> RLExample | Sequence[RLExample]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        with self._path.open("rb") as file:
            file.seek(int(self._places[index]))
            return decode_prompt(file.readline())


def open_prompts(path: Path, folder: Path) -> EncodedRows | None:
    """Open the result of `encode_prompts` in `folder`, or return `None` if it is missing or incomplete."""
    rows = EncodedRows.open(folder)
    try:
        return rows and replace(rows, prompts=PromptFile(path, np.load(folder / _PLACES, mmap_mode="r")))
    except (OSError, ValueError):
        return None


def encode_prompts(
    path: Path, template: Template, folder: Path, limit: int | None
) -> tuple[EncodedRows, int]:
    """Encode the prompts in a file of RL rows and write them to `folder`. Prompts with more than `limit`
    tokens are dropped, because grading answers to truncated prompts is pointless. Returns the prompts and the
    number of dropped ones. Raises `DataError` with the number of the row that cannot be encoded."""
    places, place, long = array("q"), 0, 0
    with path.open("rb") as lines, whole_folder(folder) as draft:
        with EncodedFile(draft) as written:
            for number, line in enumerate(lines, 1):
                try:
                    example = decode_prompt(line)
                    ids = template.asked(example.messages, example.tools)
                except DataError as error:
                    raise DataError(f"{path.name}, row {number}: {error.message}", fix=error.fix) from error
                if limit is None or len(ids) <= limit:
                    written.add([Encoded(ids, [0.0] * len(ids))], None)
                    places.append(place)
                else:
                    long += 1
                place += len(line)
        if not places:
            raise DataError(
                f"{path.name}: no prompt fits in {limit} tokens",
                fix=f"raise max_seq_length, or lower {option('max_new_tokens')}",
            )
        np.save(draft / _PLACES, np.frombuffer(places, dtype=np.int64))
    rows = open_prompts(path, folder)
    if rows is None:
        raise OSError(f"could not read {folder} after writing it")
    return rows, long
