"""YAML whose aliases stand for more than anybody writes: a few lines that become billions of values."""

from __future__ import annotations

from typing import Any

import yaml

MOST_NODES = 200_000
"""Values of a document with each alias counted as what it stands for."""


class Expands(yaml.MarkedYAMLError):
    """The document is small and would not stay so."""


def require_bounded(node: yaml.Node | None) -> None:
    """Raises `Expands`, or `RecursionError` for a node that holds itself; takes time by the written size."""
    if node is not None and _size(node, {}) > MOST_NODES:
        told = f"its aliases expand to more than {MOST_NODES:,} values"
        raise Expands(problem=told, problem_mark=node.start_mark)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    if id(node) not in known:
        value: Any = node.value
        inside: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            inside = [part for pair in value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            inside = value
        known[id(node)] = 1 + sum(_size(part, known) for part in inside)
    return known[id(node)]
