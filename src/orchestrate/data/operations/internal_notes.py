"""Which messages of a ticket only colleagues saw, by the columns with which help desks say so.

Zendesk's and Jira's `public` and `jsdPublic`, Freshdesk's `private`, Help Scout's and Intercom's `type` and
`part_type` (note), and what exports of others call them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrate.data.shapes.shape import named
from orchestrate.errors import DataError

_PRIVATE = named("private isprivate internal isinternal internalnote isinternalnote isnote staffonly")
_PUBLIC = named("public ispublic jsdpublic customervisible visibletocustomer")
_KINDS = named("type kind messagetype commenttype parttype notetype eventtype visibility")
_NOTES = named("note internal private internalnote privatenote internalcomment privatecomment staff")
"""Values of those kinds."""
_WORDS = {"true": True, "yes": True, "y": True, "t": True, "1": True, "1.0": True} | {
    "false": False, "no": False, "n": False, "f": False, "0": False, "0.0": False,
}  # fmt: skip


def _plain(name: Any) -> str:
    return "".join(c for c in str(name).lower() if c.isalnum())


class InternalNotes:
    """Asked row by row; `columns` are those that were understood, of which nothing else is to be told."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._names: dict[str, str] = {}
        self.columns: set[str] = set()

    def is_one(self, row: Mapping[str, Any], n: int) -> bool:
        """Raises `DataError` for row `n` when its column says neither yes nor no."""
        return any([self._says_so(name, value, n) for name, value in row.items()])

    def _says_so(self, column: str, value: Any, n: int) -> bool:
        if value in (None, ""):
            return False
        name = self._names.setdefault(column, _plain(column))
        if name in _KINDS:
            is_note = _plain(value) in _NOTES
            self.columns |= {column} if is_note else set()
            return is_note
        if name not in _PRIVATE | _PUBLIC:
            return False
        said = _WORDS.get(str(value).strip().lower())
        if said is None:
            raise DataError(
                f"{self._path}: row {n}: {str(value)[:40]!r} in {column} does not say whether customers saw "
                "the message",
                fix=f"write true or false, or teach all messages: --ignore {column}",
            )
        self.columns.add(column)
        return said is (name in _PRIVATE)
