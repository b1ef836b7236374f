"""Prompts to which answers are drawn: their tokens on the disk, and what a grader reads beside each in the
file of the rows, from where both are read as they are needed."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

import numpy as np
import numpy.typing as npt

from orchestrate.core.files import whole_folder
from orchestrate.data.rows.examples import RLExample
from orchestrate.errors import DataError
from orchestrate.local.encoding.encoded import Rows, Written
from orchestrate.local.encoding.encoding import Encoded, Template, decode_prompt
from orchestrate.local.job import option

_PLACES = "places.npy"


class Prompts(Sequence[RLExample]):
    """Lines of a file of RL rows."""

    def __init__(self, path: Path, places: npt.NDArray[np.int64]) -> None:
        """`places`: the bytes at which they begin."""
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


def open_prompts(path: Path, folder: Path) -> Rows | None:
    """What `encode_prompts` wrote to `folder`; `None` when there is no whole copy."""
    rows = Rows.open(folder)
    try:
        return rows and replace(rows, prompts=Prompts(path, np.load(folder / _PLACES, mmap_mode="r")))
    except (OSError, ValueError):
        return None


def encode_prompts(path: Path, template: Template, folder: Path, limit: int | None) -> tuple[Rows, int]:
    """The prompts of a file of RL rows, written to `folder`, and how many were left out because they have
    more than `limit` tokens: no answer to half a question is worth grading.

    Raises `DataError` naming the row.
    """
    places, place, long = array("q"), 0, 0
    with path.open("rb") as lines, whole_folder(folder) as draft:
        with Written(draft) as written:
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
                f"{path.name}: no prompt fits into {limit} tokens",
                fix=f"raise max_seq_length, or lower {option('max_new_tokens')}",
            )
        np.save(draft / _PLACES, np.frombuffer(places, dtype=np.int64))
    rows = open_prompts(path, folder)
    if rows is None:
        raise OSError(f"{folder} cannot be read back")
    return rows, long
