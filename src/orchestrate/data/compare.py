"""Rows against rows: duplicates, contradictions, and rows that two splits share. Works on hashes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from orchestrate.data.scan import Total
from orchestrate.errors import MissingExtra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Hashes = NDArray[np.uint64]
    Indices = NDArray[np.intp]


@dataclass(frozen=True)
class Matches:
    """Pairs of row numbers: a row, and the earlier or other row that it matches."""

    pairs: tuple[tuple[int, int], ...]
    """The first of them only, see `most`."""
    count: int
    """All of them."""


def numpy() -> Any:
    """Raises `MissingExtra` where numpy is not installed."""
    try:
        import numpy as np
    except ImportError as error:
        raise MissingExtra("data", "comparing rows", "numpy") from error
    return np


def repeats(hashes: Sequence[int]) -> tuple[Indices, Indices]:
    """Indices of elements that occur before, in order, and of the first occurrence of each."""
    np = numpy()
    values = np.frombuffer(hashes, dtype=np.uint64)
    if not len(values):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    order = np.argsort(values, kind="stable")
    new = np.concatenate(([True], values[order[1:]] != values[order[:-1]]))
    first = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    again = np.flatnonzero(~new)
    by_row = np.argsort(order[again], kind="stable")
    return order[again][by_row], first[again][by_row]


def duplicates(total: Total, most: int = 100) -> Matches:
    """Rows equal to an earlier row, field by field."""
    again, first = repeats(total.hashes)
    return _matches(total, total, again, first, most)


def conflicts(total: Total, most: int = 100) -> Matches:
    """Rows with the prompt of an earlier row and another answer."""
    np = numpy()
    again, first = repeats(total.prompts)
    hashes = np.frombuffer(total.hashes, dtype=np.uint64)
    differ = hashes[again] != hashes[first]
    repeated, _ = repeats(total.hashes)
    fresh = ~np.isin(again, repeated)
    return _matches(total, total, again[differ & fresh], first[differ & fresh], most)


def shared(rows: Total, of: Total, *, prompts: bool = False, most: int = 100) -> Matches:
    """Rows of `rows` that are also in `of`; with `prompts`, those that share the prompt only."""
    np = numpy()
    mine, theirs = _both(rows, of, prompts)
    order = np.argsort(theirs, kind="stable")
    at = np.searchsorted(theirs[order], mine)
    inside = at < len(theirs)
    found = np.zeros(len(mine), dtype=bool)
    found[inside] = theirs[order[at[inside]]] == mine[inside]
    if prompts:
        whole, their_whole = _both(rows, of, False)
        found &= ~np.isin(whole, their_whole)
    index = np.flatnonzero(found)
    return _matches(rows, of, index, order[at[index]], most)


def _both(rows: Total, of: Total, prompts: bool) -> tuple[Hashes, Hashes]:
    np = numpy()
    arrays = (rows.prompts, of.prompts) if prompts else (rows.hashes, of.hashes)
    return np.frombuffer(arrays[0], dtype=np.uint64), np.frombuffer(arrays[1], dtype=np.uint64)


def _matches(rows: Total, of: Total, index: Indices, other: Indices, most: int) -> Matches:
    pairs = [(int(i), int(j)) for i, j in zip(index[:most], other[:most], strict=True)]
    return Matches(tuple((rows.numbers[i], of.numbers[j]) for i, j in pairs), len(index))
