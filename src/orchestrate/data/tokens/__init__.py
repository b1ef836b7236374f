"""Count tokens: choose a model's counter, and cache counts by file and model."""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, Protocol, TypeAlias, TypeVar

import msgspec

from orchestrate.data.rows import Example

# Results of counters, and detection of tokenizer folders.


# Count and encode repeated texts only once.
#
# Rows of a dataset share texts, such as system prompts, tools, earlier turns and the prompt of a
# preference pair. Equal texts always have equal results.

V = TypeVar("V")

MOST_CHARACTERS = 1 << 19
"""Maximum number of characters in one generation of the cache, which holds two generations."""
_ENTRY = 100
"""Memory overhead of a cached text, in characters."""
_PROBED = 8
"""Sampling interval of cache lookups. At first, one in every `_PROBED` texts is looked up. If enough of these
texts are in the cache, the remaining texts are looked up too."""
_MOST_PASSES = 15
"""Maximum number of consecutive calls without a lookup."""
_PAYS = 1 / 20
"""Share of characters that must be in repeated texts for cache lookups to save time."""

Encoded = tuple[Sequence[int], Sequence[tuple[int, int]]]
"""Token ids and the (start, end) position of each token in the text."""


_Kept: TypeAlias = "tuple[array[int], array[int], array[int]] | tuple[()]"
"""Token ids, start offsets and end offsets of a piece of text. Empty for a piece that was seen only once,
because storing every piece would take too much time."""


class Recent(Generic[V]):
    """A bounded cache of results for recently seen texts. An entry is evicted if it is not used again within
    the next `MOST_CHARACTERS` characters."""

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
    """Token counter with a cache for repeated texts."""

    def __init__(self, count: Callable[[list[str]], list[int]]) -> None:
        self._count = count
        self._recent = Recent[int]()
        self._passes = self._left = 0

    def __call__(self, texts: list[str]) -> list[int]:
        if self._left:
            self._left -= 1
            return self._count(texts)
        some = -(-len(texts) // _PROBED)
        counts, again = self._looked_for(texts[:some])
        rest = texts[some:]
        if again >= _PAYS * sum(map(len, texts[:some])):
            self._passes = 0
            return counts + self._looked_for(rest)[0]
        # Without repetitions, lookups become less and less frequent.
        self._passes = self._left = min(2 * self._passes + 1, _MOST_PASSES)
        return counts + self._count(rest)

    def _looked_for(self, texts: list[str]) -> tuple[list[int], int]:
        """Count with lookups. Returns the counts and the number of characters that were not counted again."""
        found = {text: self._recent.get(text) for text in dict.fromkeys(texts)}
        new = [text for text, known in found.items() if known is None]
        counted = dict(zip(new, self._count(new), strict=True))
        for text, number in counted.items():
            self._recent.put(text, number)
        known = found | counted
        again = sum(map(len, texts)) - sum(map(len, new))
        return [known[text] or 0 for text in texts], again


class PieceEncoder:
    """Encoder that splits each text at `marks` (a mapping from marker text to token id) and encodes the
    pieces independently."""

    def __init__(self, encode: Callable[[str], Encoded], marks: Mapping[str, int]) -> None:
        self._encode, self._marks = encode, marks
        # If two marks start at the same position, the longer one wins.
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


FIRST_ROWS = 5
"""Maximum number of rows listed in a warning."""
COVERAGE = 99
"""Confidence level, in percent, of the interval around a token count that is estimated from a sample."""


class Remark(msgspec.Struct, frozen=True):
    """A warning about how a model's chat template renders rows."""

    text: str
    refused: bool
    """True if the template rejects the affected rows. These rows are not counted, and training on them would
    fail."""
    count: int
    first: tuple[int, ...]
    """The first affected rows. `Counter.count` gives indices among the counted rows (from 0), and
    `Lengths.extend` converts them to row numbers."""
    fix: str | None = None


class Lengths:
    """Token counts of sequences: all tokens of each sequence, and the tokens that contribute to the loss. As
    in training, a preference row has two sequences: the prompt with each of the two answers."""

    __slots__ = ("further", "remarks", "tokens", "trained")

    def __init__(self) -> None:
        self.tokens = array("I")
        self.further = array("I")
        """Token counts of additional sequences, in no particular order. A row that is split into several
        sequences adds an entry for each one after the first."""
        self.trained = array("I")
        self.remarks: dict[str, Remark] = {}

    def extend(self, other: Lengths, number: Callable[[int], int]) -> None:
        """Append the lengths and remarks of `other`. `number` converts the row numbers in the remarks of
        `other` to row numbers of this object."""
        self.tokens.extend(other.tokens)
        self.further.extend(other.further)
        self.trained.extend(other.trained)
        for remark in other.remarks.values():
            self.remark(msgspec.structs.replace(remark, first=tuple(map(number, remark.first))))

    def remark(self, new: Remark) -> None:
        if (old := self.remarks.get(new.text)) is not None:
            first = (old.first + new.first)[:FIRST_ROWS]
            new = msgspec.structs.replace(old, count=old.count + new.count, first=first)
        self.remarks[new.text] = new


class Counter(Protocol):
    name: str
    error_band: float
    """Relative half-width of the error band for rows without tools. 0 for the model's own tokenizer."""

    def count(self, examples: Sequence[Example]) -> Lengths: ...


def has_tokenizer(folder: Path) -> bool:
    return (folder / "tokenizer.json").is_file() or (folder / "tokenizer_config.json").is_file()
