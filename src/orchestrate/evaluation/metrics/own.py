"""Metrics of the user: a function in a Python file, or what another package offers by an entry point.

    # checks.py                                     orchestrate eval RUN --metrics checks.py:cites
    def cites(expected: str, answer: str) -> bool:
        return "[1]" in answer

A function that says `-> bool` is right or wrong, any other gives a number from 0 to 1. One whose first
parameter is called `item` gets the `Item` and the `Answer`. An object with `used` and `marks` is a `Metric`
itself. Packages offer either under the entry point group `orchestrate.metrics`.
"""

from __future__ import annotations

import importlib.util
import inspect
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

from orchestrate.errors import UsageError
from orchestrate.evaluation.items import Answer, Item
from orchestrate.evaluation.metrics.base import Metric, PerAnswer
from orchestrate.types import MetricUsed

GROUP = "orchestrate.metrics"


def from_file(path: str, name: str) -> Metric:
    """Runs the file, which the user named. Raises `UsageError`."""
    spec = importlib.util.spec_from_file_location(f"orchestrate_metric_{Path(path).stem}", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise UsageError(f"there is no Python file {path}")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"{path} cannot be run: {type(error).__name__}: {error}") from error
    found = getattr(module, name, None)
    if found is None:
        raise UsageError(f"{path} has no {name}", fix=f"--metrics {path}:FUNCTION")
    return of(f"{Path(path).name}:{name}", found)


def installed() -> dict[str, Any]:
    """The entry points of other packages, by their names; nothing is loaded."""
    return {point.name: point for point in entry_points(group=GROUP)}


def from_package(name: str) -> Metric:
    """Raises `UsageError` when it cannot be loaded."""
    try:
        found = installed()[name].load()
    except Exception as error:
        raise UsageError(f"the metric {name} cannot be loaded: {type(error).__name__}: {error}") from error
    return of(name, found)


def of(name: str, found: Any) -> Metric:
    if hasattr(found, "used") and hasattr(found, "marks"):
        return cast("Metric", found)
    if not callable(found):
        raise UsageError(f"{name} is neither a function nor a metric")
    function = cast("Callable[..., Any]", found)
    signature = inspect.signature(function)
    whole = next(iter(signature.parameters), "") == "item"
    boolean = signature.return_annotation in (bool, "bool")
    used = MetricUsed(name=name, kind="right-or-wrong" if boolean else "graded")

    def score(item: Item, answer: Answer) -> float | None:
        try:
            given = function(item, answer) if whole else function(item.expected, answer.text)
            value = None if given is None else float(given)
        except Exception as error:
            what = f"{type(error).__name__}: {error}"
            raise UsageError(f"the metric {name} failed on item {item.id}: {what}") from error
        if value is not None and not 0 <= value <= 1:
            raise UsageError(f"the metric {name} gave {value:g} on item {item.id}; a score is from 0 to 1")
        return value

    return PerAnswer(used, score)
