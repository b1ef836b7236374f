"""Which cells of a matrix the fast half runs; the others are slow."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def diagonal(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """All pairs. Fast are so many that each row and each column is met once, as in a walk down the diagonal:
    each host, and each way in which something can go wrong."""
    names, ways = list(rows), list(columns)
    chosen = {(i % len(names), i % len(ways)) for i in range(max(len(names), len(ways)))}
    return [
        pytest.param(name, way, marks=[] if (r, c) in chosen else [pytest.mark.slow])
        for r, name in enumerate(names)
        for c, way in enumerate(ways)
    ]
