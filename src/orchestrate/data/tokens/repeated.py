"""Texts that come again, counted and encoded once.

The rows of a data set share texts: system prompts, tools, the earlier turns of a conversation, the prompt of
both answers of a pair. What was made of a text is the same whenever it comes again.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeAlias, TypeVar

V = TypeVar("V")

MOST_CHARACTERS = 1 << 19
"""Of the texts of one generation, of which two are kept."""
_ENTRY = 100
"""Characters that a text costs beside its own."""
_PROBED = 8
"""One text of so many is always looked for; the others where that pays."""
_PAYS = 1 / 20
"""The part of all characters that must have come before: to look for texts costs less than to count it."""

Encoded = tuple[Sequence[int], Sequence[tuple[int, int]]]
"""Ids and, for each, its place in the text."""


_Kept: TypeAlias = "tuple[array[int], array[int], array[int]] | tuple[()]"
"""Ids, starts and ends of a piece that came twice, as keeping takes time; none of one that came once."""


class Recent(Generic[V]):
    """What was made of the texts that were met last, in bounded memory: what has not come again while
    `MOST_CHARACTERS` of others did is forgotten."""

    def __init__(self) -> None:
        self._young: dict[str, V] = {}
        self._old: dict[str, V] = {}
        self._characters = 0

    def get(self, text: str) -> V | None:
        found = self._young.get(text)
        if found is None and (found := self._old.get(text)) is not None:
            self.put(text, found)
        return found

    def put(self, text: str, value: V) -> None:
        if text not in self._young:
            self._characters += len(text) + _ENTRY
        self._young[text] = value
        if self._characters > MOST_CHARACTERS:
            self._old, self._young, self._characters = self._young, {}, 0


class Counts:
    """`count` for texts of which many may be equal."""

    def __init__(self, count: Callable[[list[str]], list[int]]) -> None:
        self._count = count
        self._recent = Recent[int]()

    def __call__(self, texts: list[str]) -> list[int]:
        some = -(-len(texts) // _PROBED)
        counts, again = self._looked_for(texts[:some])
        rest = texts[some:]
        if again >= _PAYS * sum(map(len, texts[:some])):
            return counts + self._looked_for(rest)[0]
        return counts + self._count(rest)

    def _looked_for(self, texts: list[str]) -> tuple[list[int], int]:
        """The counts, and how many characters did not have to be counted."""
        found = {text: self._recent.get(text) for text in dict.fromkeys(texts)}
        new = [text for text, known in found.items() if known is None]
        counted = dict(zip(new, self._count(new), strict=True))
        for text, number in counted.items():
            self._recent.put(text, number)
        known = found | counted
        again = sum(map(len, texts)) - sum(map(len, new))
        return [known[text] or 0 for text in texts], again


class Pieces:
    """`encode` for texts that `marks` (text -> id) cut into pieces, none of which has a part in how another
    one is encoded."""

    def __init__(self, encode: Callable[[str], Encoded], marks: Mapping[str, int]) -> None:
        self._encode, self._marks = encode, marks
        # Where two begin at one place the longer one is taken.
        longest_first = sorted(marks, key=len, reverse=True)
        self._cut = re.compile("|".join(map(re.escape, longest_first)))
        self._recent: Recent[_Kept] = Recent()

    def __call__(self, text: str) -> Encoded:
        ids: list[int] = []
        places: list[tuple[int, int]] = []
        at = 0
        for mark in self._cut.finditer(text):
            self._add(ids, places, text[at : mark.start()], at)
            ids.append(self._marks[mark[0]])
            places.append(mark.span())
            at = mark.end()
        self._add(ids, places, text[at:], at)
        return ids, places

    def _add(self, ids: list[int], places: list[tuple[int, int]], piece: str, at: int) -> None:
        if not piece:
            return
        known = self._recent.get(piece)
        if known:
            mine, starts, ends = known
            ids.extend(mine)
            places.extend(zip(map(at.__add__, starts), map(at.__add__, ends), strict=True))
            return
        mine, offsets = self._encode(piece)
        ids.extend(mine)
        places.extend([(start + at, end + at) for start, end in offsets] if at else offsets)
        kept: _Kept = ()
        if known is not None and offsets:
            starts, ends = zip(*offsets, strict=True)
            kept = array("I", mine), array("I", starts), array("I", ends)
        self._recent.put(piece, kept)
