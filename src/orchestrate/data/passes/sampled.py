"""Tokens of a file from a sample of its rows, with an interval: for files that are too large to wait for.

At one random byte of each of many equal stretches of the file, the row that lies there is counted. The tokens
per byte of these rows, averaged, are those of the file: a row is met as often as it is long, so that few long
rows among many short ones are not missed. Rows with errors have no tokens, as where all are counted. The
interval has room for what was not met: rows that are few in bytes, but dense.
"""

from __future__ import annotations

import math
import os
import random
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import IO

from msgspec.structs import replace

from orchestrate.data.passes.scan import Task, rows_file
from orchestrate.data.shapes.reading import reading
from orchestrate.data.tokens.counting import counter
from orchestrate.data.tokens.lengths import COVERAGE, Lengths, Remark
from orchestrate.errors import DataError

PLACES = 2000
"""Rows are looked at in so many places; those that are met twice are counted once."""
LEAST_BYTES = 8 << 20
"""A smaller file is counted whole: that takes no longer."""
_QUANTILE = 2.576
"""Of the normal distribution, for `COVERAGE`. One place from each stretch errs less than places anywhere, by
which the error is estimated."""
_UNMET = math.log(2 / (1 - COVERAGE / 100))
"""Divided by the places: the part of a file that none of them may have met. What is there is in no estimate
of the error."""
_DENSEST = 1.0
"""Tokens per byte of what was not met, at most: a token of text is seldom shorter than a byte."""
_BLOCK = 16 << 10


@dataclass
class Sample:
    """What a sample says of a file."""

    tokens: float = 0.0
    half_width: float = 0.0
    """Of the interval around `tokens`."""
    trained: float = 0.0
    lengths: array[int] = field(default_factory=lambda: array("I"))
    """Tokens of each sequence of the rows that were met."""
    weights: array[float] = field(default_factory=lambda: array("d"))
    """How many sequences of the file each of them stands for."""
    remarks: tuple[Remark, ...] = ()
    """With about how many rows of the file they concern."""


def sampled(task: Task, name: str, *, places: int = PLACES, seed: int = 0) -> Sample:
    """Of the file of `task`, which ends at `task.end`, with the counter `name`. The same file and seed give
    the same sample."""
    read = reading(task.format, task.columns).read
    by = counter(name)
    counted: dict[int, tuple[int, Lengths | None]] = {}
    met: list[int] = []
    start = end = 0
    # Not mapped into memory: a file that is cut meanwhile would end this process.
    with rows_file(task.path) as file:
        for place in _places(task.end, places, seed):
            if place >= end:
                start, line = _line_at(file, place, task.end)
                end = start + len(line)
                line = line.rstrip(b"\n")
                if start == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                example = read(line).example if line.strip() else None
                counted[start] = end - start, by.count([example]) if example is not None else None
            met.append(start)
        if os.fstat(file.fileno()).st_size < task.end:
            raise DataError(f"{Path(task.path).name} has changed since it was read", fix="give it again")
    return _estimated(task.end, counted, met)


def _line_at(file: IO[bytes], place: int, size: int) -> tuple[int, bytes]:
    """Where the line that a byte lies in begins, and the line with its end."""
    before: list[bytes] = []
    start = place
    while start > 0:
        low = max(0, start - _BLOCK)
        file.seek(low)
        block = file.read(start - low)
        begin = block.rfind(b"\n") + 1
        before.append(block[begin:])
        start = low + begin
        if begin:
            break
    file.seek(place)
    return start, b"".join((*reversed(before), file.readline(size - place)))


@lru_cache(maxsize=16)
def sampled_once(task: Task, name: str, digest: str) -> Sample:
    """As `sampled`, for all that ask for it. `digest`: of the rows, as the file may change."""
    return sampled(task, name)


def _places(size: int, number: int, seed: int) -> list[int]:
    chance = random.Random(seed)  # noqa: S311  which rows, not secrets
    number = min(number, size)
    return [
        chance.randrange(low, high) for low, high in pairwise(size * i // number for i in range(number + 1))
    ]


def _estimated(size: int, counted: dict[int, tuple[int, Lengths | None]], met: list[int]) -> Sample:
    sample, per_byte = Sample(), list[float]()
    remarks, rows = dict[str, Remark](), defaultdict[str, float](float)
    for start in met:
        width, lengths = counted[start]
        share = size / len(met) / width
        if lengths is None:
            per_byte.append(0.0)
            continue
        for remark in lengths.remarks.values():
            remarks[remark.text] = remark
            rows[remark.text] += share
        sequences = lengths.tokens + lengths.further
        per_byte.append(sum(sequences) / width)
        sample.trained += share * sum(lengths.trained)
        sample.lengths.extend(sequences)
        sample.weights.extend([share] * len(sequences))
    # Which rows these are a sample does not say.
    sample.remarks = tuple(
        replace(one, count=max(1, round(rows[text])), first=()) for text, one in remarks.items()
    )
    sample.tokens = size * fmean(per_byte)
    unmet = min(_UNMET / len(met), 1 - sum(width for width, _ in counted.values()) / size)
    sample.half_width = size * unmet * _DENSEST
    if len(met) > 1:
        sample.half_width += _QUANTILE * size * stdev(per_byte) / len(met) ** 0.5
    return sample
