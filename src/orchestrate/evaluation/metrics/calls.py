"""Scores of tool calls: which tools, with which arguments, in which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from typing import Any

from orchestrate.evaluation.items import Answer, Item
from orchestrate.evaluation.metrics.structured import canonical, exact_json


def tool_calls(item: Item, answer: Answer) -> float:
    """The same calls with the same arguments in the same order; no call where none is expected."""
    return float(_written(item.expected_calls) == _written(answer.tool_calls))


def tool_names(item: Item, answer: Answer) -> float:
    """The same tools in the same order, whatever the arguments."""
    want, got = ([name for name, _ in _written(calls)] for calls in (item.expected_calls, answer.tool_calls))
    return float(want == got)


def tool_arguments(item: Item, answer: Answer) -> float:
    """The share of all calls, expected and made, that are in both with the same arguments, in any order."""
    want, got = (Counter(_written(calls)) for calls in (item.expected_calls, answer.tool_calls))
    either = (want | got).total()
    return (want & got).total() / either if either else 1.0


def _written(calls: Sequence[dict[str, Any]]) -> list[tuple[str, Hashable]]:
    """Name and arguments of each; arguments that are no JSON stay the text that they are."""
    found: list[tuple[str, Hashable]] = []
    for call in calls:
        function: dict[str, Any] = call.get("function") or call
        arguments: Any = function.get("arguments") or "{}"
        compared: Hashable = str(arguments)
        with suppress(ValueError, RecursionError):
            compared = canonical(exact_json(arguments) if isinstance(arguments, str) else arguments)
        found.append((str(function.get("name")), compared))
    return found
