"""Which cells of a matrix the fast half runs; the others are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def diagonal(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """All pairs. Fast are so many that each row and each column is met once, as in a walk down the diagonal:
    each host, and each way in which something can go wrong."""
    names, ways = list(rows), list(columns)
    chosen = walk(names, ways)
    return [
        pytest.param(name, way, marks=[] if (name, way) in chosen else [pytest.mark.slow])
        for name in names
        for way in ways
    ]


def walk(rows: Iterable[Any], columns: Iterable[Any]) -> list[tuple[Any, Any]]:
    """Those pairs alone, where a row and a column have nothing to do with one another."""
    names, ways = list(rows), list(columns)
    return [(names[i % len(names)], ways[i % len(ways)]) for i in range(max(len(names), len(ways)))]
