"""Tables for pandas, which is no package that everybody needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any

from orchestrate.core.packages import needed

if TYPE_CHECKING:
    import pandas


def frame(rows: Sequence[Mapping[str, Any]]) -> pandas.DataFrame:
    """By column, in the order in which columns first come; a value that a row has not is missing. Raises
    `MissingExtra`."""
    with needed("pandas", "a table of pandas", "pandas"):
        import pandas
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pandas.DataFrame([{k: _plain(v) for k, v in row.items()} for row in rows], columns=columns)


def _plain(value: Any) -> Any:
    """What pandas calculates with: a `Decimal` would be an object to it."""
    if isinstance(value, Decimal):
        return float(value)
    return value.value if isinstance(value, Enum) else value
