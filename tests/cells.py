"""Which cells of a matrix the fast half runs; the others are slow."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from typing import Any

import pytest

ALL_OF_IT = re.compile(r"^pytestmark = \[?\s*pytest\.mark\.(slow|gpu)\b", re.MULTILINE)
"""How a file marks all of its tests."""


def first(values: Iterable[Any], fast: int = 1) -> list[Any]:
    """So many of them are fast, the others, which show the same of another case, slow."""
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else [value]), marks=[] if n < fast else pytest.mark.slow
        )
        for n, value in enumerate(values)
    ]


def diagonal(rows: Iterable[Any], columns: Iterable[Any], fast: Container[Any] | None = None) -> list[Any]:
    """All pairs. Fast are so many that each row and each column is met once, as in a walk down the diagonal:
    each host, and each way in which something can go wrong, or those among `fast`."""
    names, ways = list(rows), list(columns)
    chosen = [cell for cell in walk(names, ways) if fast is None or cell[1] in fast]
    return [
        pytest.param(name, way, marks=[] if (name, way) in chosen else [pytest.mark.slow])
        for name in names
        for way in ways
    ]


def walk(rows: Iterable[Any], columns: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Those pairs alone, where a row and a column have nothing to do with one another."""
    names, ways = list(rows), list(columns)
    return [(names[i % len(names)], ways[i % len(ways)]) for i in range(max(len(names), len(ways)))]
