"""Decode bytes and plain values into records, safely from several threads.

msgspec (as of 0.22) analyzes a class when it is first used. If another thread decodes the class during this
analysis, the process crashes. A lock therefore makes sure that only one thread runs this analysis. Code that
decodes types without records can use msgspec directly.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar, overload

import msgspec

T = TypeVar("T")
_learned: set[Any] = set()
_learning = threading.Lock()


@overload
def convert(value: Any, type: type[T], *, strict: bool = True) -> T: ...
@overload
def convert(value: Any, type: Any, *, strict: bool = True) -> Any: ...
def convert(value: Any, type: Any, *, strict: bool = True) -> Any:
    """Convert a value as `msgspec.convert` does. Raises `msgspec.ValidationError` if it does not match the
    type."""
    _learn(type)
    return msgspec.convert(value, type, strict=strict)


@overload
def decode(data: bytes | str, *, type: type[T]) -> T: ...
@overload
def decode(data: bytes | str, *, type: Any) -> Any: ...
def decode(data: bytes | str, *, type: Any) -> Any:
    """Decode JSON as `msgspec.json.decode` does. Raises `msgspec.DecodeError` for invalid JSON, and
    `msgspec.ValidationError` if the value does not match the type."""
    _learn(type)
    return msgspec.json.decode(data, type=type)


def decoder(type: type[T], *, float_hook: Callable[[str], Any] | None = None) -> msgspec.json.Decoder[T]:
    """Build a decoder for many rows of one type. `float_hook` parses floating-point numbers in untyped
    (`Any`) fields."""
    _learn(type)
    return msgspec.json.Decoder(type, float_hook=float_hook)


def _learn(type: Any) -> None:
    if type not in _learned:
        with _learning:
            msgspec.json.Decoder(type)
            _learned.add(type)
