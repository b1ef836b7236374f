"""Read YAML, and reject documents in which a few lines of aliases expand to billions of values."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import yaml

from orchestrate.errors import UsageError
from orchestrate.types import decoding

T = TypeVar("T")
MOST_NODES = 200_000
"""Maximum number of values in a document after expanding aliases."""


class Expands(yaml.MarkedYAMLError):
    """Raised if a document would expand to too many values."""


def require_bounded(node: yaml.Node | None) -> None:
    """Raise `Expands` if a node expands to too many values, and `RecursionError` if it contains itself. Takes
    time proportional to the unexpanded size."""
    if node is not None and _size(node, {}) > MOST_NODES:
        problem = f"its aliases expand to more than {MOST_NODES:,} values"
        raise Expands(problem=problem, problem_mark=node.start_mark)


def documents(text: str) -> list[Any]:
    """Parse all documents in a YAML string. Raises `yaml.YAMLError` for invalid YAML, and the same errors as
    `require_bounded`."""
    with _loader(text) as loader:
        found: list[Any] = []
        while loader.check_node():
            found.append(_constructed(loader, loader.get_node()))
        return found


def document(text: str) -> Any:
    """Parse a YAML string that contains a single document. Raises the same errors as `documents`."""
    with _loader(text) as loader:
        node = loader.get_single_node()
        return None if node is None else _constructed(loader, node)


def read_document(path: Path, called: str) -> Any:
    """Read a YAML file that contains a single document. `called` describes the file in error messages. Raises
    `UsageError` if the file cannot be read or is not valid YAML."""
    try:
        return document(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{called} {path} cannot be read: {reason}", fix="check the path") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not valid YAML: {error}") from error


def read_record(path: Path, kind: type[T], called: str, fields: str) -> T:
    """Read a record from a YAML file. The record's `name` defaults to the file name without its extension.
    Raises `UsageError` if the file cannot be read or is not a valid record."""
    given = read_document(path, f"the {called.split()[-1]}")
    if isinstance(given, dict):
        given = {"name": path.stem, **cast("dict[str, Any]", given)}
    try:
        return decoding.convert(given, kind)
    except msgspec.ValidationError as error:
        raise UsageError(f"{path} is not a valid {called}: {error}", fix=f"fields: {fields}") from error


@contextmanager
def _loader(text: str) -> Generator[Any]:
    """Yield a safe loader, in C if available."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)(text)
    try:
        yield loader
    finally:
        loader.dispose()


def _constructed(loader: Any, node: yaml.Node) -> Any:
    require_bounded(node)
    return loader.construct_document(node)


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
