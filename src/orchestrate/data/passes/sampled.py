"""Tokens of a file from a sample of its rows, with an interval: for files that are too large to wait for.

At one random byte of each of many equal stretches of the file, the row that lies there is counted. The tokens
per byte of these rows, averaged, are those of the file: a row is met as often as it is long, so that few long
rows among many short ones are not missed. Rows with errors have no tokens, as where all are counted.
"""

from __future__ import annotations

import mmap
import random
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from statistics import fmean, stdev

from msgspec.structs import replace

from orchestrate.data.passes.scan import Task, rows_file
from orchestrate.data.shapes.reading import reading
from orchestrate.data.tokens.counting import counter
from orchestrate.data.tokens.lengths import Lengths, Remark

PLACES = 2000
"""Rows are looked at in so many places; those that are met twice are counted once."""
LEAST_BYTES = 8 << 20
"""A smaller file is counted whole: that takes no longer."""
_QUANTILE = 2.576
"""Of the normal distribution, for `COVERAGE`. One place from each stretch errs less than places anywhere, by
which the error is estimated."""


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
    with rows_file(task.path) as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for place in _places(task.end, places, seed):
            start = content.rfind(b"\n", 0, place) + 1
            if start not in counted:
                end = content.find(b"\n", place) + 1 or task.end
                line = content[start:end].rstrip(b"\n")
                if start == 0:
                    line = line.removeprefix(b"\xef\xbb\xbf")
                example = read(line).example if line.strip() else None
                counted[start] = end - start, by.count([example]) if example is not None else None
            met.append(start)
    return _estimated(task.end, counted, met)


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
    if len(met) > 1:
        sample.half_width = _QUANTILE * size * stdev(per_byte) / len(met) ** 0.5
    return sample
