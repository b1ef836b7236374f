"""What a known format is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from orchestrate.data.rows.examples import Example, Kind
from orchestrate.types import Problem

Row = dict[str, Any]
Read = tuple[Example | None, list[Problem]]
"""The example, `None` when the row is unusable, and the row's problems."""


@dataclass(frozen=True)
class Shape:
    """`fits` looks at the names and types of the fields only; `read` reports everything else."""

    name: str
    kind: Kind
    fields: frozenset[str]
    """Fields that `read` uses; others are reported as not read. None: all are used."""
    fits: Callable[[Row], bool]
    read: Callable[[Row], Read]
    notes: frozenset[str] = frozenset()
    """Fields that its writers use for labels: told as not read where they hold more."""


def named(fields: str) -> frozenset[str]:
    """The names of fields that stand in a text, with spaces between."""
    return frozenset(fields.split())


def are_text(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(name), str) for name in names)


def are_lists(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(name), list) for name in names)
