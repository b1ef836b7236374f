"""Lists of records, for printing, notebooks and pandas."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import pandas

T = TypeVar("T")


class Listing(list[T]):
    """A list that prints one line per entry, renders as a table in notebooks, and converts to a pandas
    DataFrame."""

    def __str__(self) -> str:
        return "\n".join(map(str, self))

    def _repr_html_(self) -> str:
        from orchestrate import notebook

        return notebook.listing(self)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a row for each entry, with money as numbers in US dollars and times in UTC. Raises
        `MissingExtra` if pandas is not installed."""
        from orchestrate import notebook

        return notebook.frame([cells(one) for one in self])


def cells(value: Any) -> dict[str, Any]:
    """Return the table cells of a record, or of an object with a `record` attribute."""
    return getattr(value, "record", value).cells()
