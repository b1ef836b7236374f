"""Rows against rows: duplicates, contradictions, and rows that two splits share. Works on hashes only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from orchestrate.data.passes.scan import Total
from orchestrate.data.rows.examples import Kind
from orchestrate.errors import MissingExtra
from orchestrate.packages import needed

FEW = 100_000
"""Rows that are compared in less time than importing numpy takes."""


@dataclass(frozen=True)
class Matches:
    """Pairs of row numbers: a row, and the earlier or other row that it matches."""

    pairs: tuple[tuple[int, int], ...]
    """The first of them only, see `most`."""
    count: int
    """All of them."""


def numpy() -> Any:
    """Raises `MissingExtra` where numpy is not installed."""
    with needed("data", "comparing rows", "numpy"):
        import numpy as np
    return np


def repeats(hashes: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """Indices of elements that occur before, in order, and of the first occurrence of each."""
    if len(hashes) <= FEW:
        return _repeats_plainly(hashes)
    try:
        np = numpy()
    except MissingExtra:
        return _repeats_plainly(hashes)
    values = np.frombuffer(hashes, dtype=np.uint64)
    if not len(values):
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.intp)
    order = np.argsort(values, kind="stable")
    new = np.concatenate(([True], values[order[1:]] != values[order[:-1]]))
    first = order[np.flatnonzero(new)[np.cumsum(new) - 1]]
    again = np.flatnonzero(~new)
    by_row = np.argsort(order[again], kind="stable")
    return order[again][by_row], first[again][by_row]


def _repeats_plainly(hashes: Sequence[int]) -> tuple[list[int], list[int]]:
    """Of many slower and larger than with numpy, which the base installation does not have."""
    seen: dict[int, int] = {}
    first = [seen.setdefault(value, i) for i, value in enumerate(hashes)]
    again = [i for i, j in enumerate(first) if i != j]
    return again, [first[i] for i in again]


def duplicates(total: Total, most: int = 100) -> Matches:
    """Rows equal to an earlier row, field by field."""
    return _matches(total, total, list(zip(*repeats(total.hashes), strict=True)), most)


def conflicts(total: Total, kind: Kind, most: int = 100) -> Matches:
    """Rows with the prompt of an earlier row and another answer (of RL rows: another reference); rows with an
    earlier row's prompt and answers, judged the other way round."""
    again, first = repeats(total.answered if kind in ("preference", "unpaired") else total.prompts)
    said = total.answered if kind == "rl" else total.hashes
    repeated = {int(i) for i in repeats(total.hashes)[0]}
    pairs = [(int(i), int(j)) for i, j in zip(again, first, strict=True)]
    found = [(i, j) for i, j in pairs if said[i] != said[j] and i not in repeated]
    return _matches(total, total, found, most)


def shared(rows: Total, of: Total, *, prompts: bool = False, most: int = 100) -> Matches:
    """Rows of `rows` that are also in `of`; with `prompts`, those that share the prompt only."""
    mine, theirs = (rows.prompts, of.prompts) if prompts else (rows.hashes, of.hashes)
    at = _first_of(mine, theirs)
    whole = _first_of(rows.hashes, of.hashes) if prompts else {}
    found = [(i, at[v]) for i, v in enumerate(mine) if v in at and rows.hashes[i] not in whole]
    return _matches(rows, of, found, most)


def _first_of(wanted: Sequence[int], values: Sequence[int]) -> dict[int, int]:
    """Where each wanted value that occurs does so first. As large as `wanted`, whatever is searched."""
    left = set(wanted)
    found: dict[int, int] = {}
    for i, value in enumerate(values):
        if value in left:
            found.setdefault(value, i)
    return found


def _matches(rows: Total, of: Total, pairs: Sequence[tuple[int, int]], most: int) -> Matches:
    return Matches(tuple((rows.numbers[i], of.numbers[j]) for i, j in pairs[:most]), len(pairs))
