"""Base class of all records."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self, cast

import msgspec

from orchestrate.types import decoding


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """Base class of every record: immutable, keyword-only, convertible to and from JSON without loss."""

    def to_json(self) -> bytes:
        return msgspec.json.encode(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON-ready values. `Decimal` values and times become strings."""
        return msgspec.to_builtins(self)

    @classmethod
    def from_json(cls, data: bytes | str) -> Self:
        """Decode a record from JSON. Raises `msgspec.ValidationError` or `msgspec.DecodeError`."""
        return decoding.decode(data, type=cls)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        return decoding.convert(data, type=cls, strict=False)

    def cells(self) -> dict[str, Any]:
        """Return the record as a table row, keyed by column. Nested values are named by their path, such as
        `tags.team`."""
        return dict(flat(msgspec.structs.asdict(self)))


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Flatten nested mappings and records into separate columns."""
    found: list[tuple[str, Any]] = []
    for name, value in values.items():
        inner = msgspec.structs.asdict(value) if isinstance(value, msgspec.Struct) else value
        if isinstance(inner, Mapping):
            found += flat(cast("Mapping[str, Any]", inner), f"{prefix}{name}.")
        else:
            found.append((f"{prefix}{name}", inner))
    return found
