"""Backends and formats by name, as tests of the data room write them."""

from __future__ import annotations

from orchestrate.data.dialects import target
from orchestrate.data.rules import RowTarget
from orchestrate.data.tools import FORMATS, tool
from orchestrate.profile import profile


def to(name: str) -> RowTarget:
    return tool(name) if name in FORMATS else target(name, profile(name))


def hosts(*names: str) -> tuple[RowTarget, ...]:
    return tuple(map(to, names))
