"""Terminal tables that never split or truncate words, names or numbers, even on narrow terminals. Columns
that don't fit are printed below their row."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import zip_longest

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.padding import Padding
from rich.text import Text

from orchestrate.text import inert

_GAP = 2
_PROSE, _LEGIBLE, _WORD = 40, 30, 10
"""Width from which a cell counts as prose, minimum width of a prose column, and minimum width of a column
that splits words, all in characters."""


class TextTable:
    """A table with named columns. Columns in `right` are right-aligned. Only columns in `fold` (default: all)
    are wrapped, and only between words. If the table is too wide, columns are moved below their row. Columns
    in `keep` are moved last."""

    def __init__(
        self,
        *names: str,
        right: Iterable[str] = (),
        fold: Iterable[str] | None = None,
        keep: Iterable[str] = (),
    ) -> None:
        self._names = names
        self._keep = frozenset(keep)
        self._right = frozenset(right)
        self._fold = frozenset(names if fold is None else fold)
        self._rows: list[tuple[tuple[Text, ...], str | None]] = []

    @property
    def row_count(self) -> int:
        return len(self._rows)

    def add_row(self, *cells: str | Text, style: str | None = None) -> None:
        """Add a row. It must have one cell per column."""
        if len(cells) != len(self._names):
            raise ValueError(f"{len(cells)} cells in {len(self._names)} columns")
        self._rows.append((tuple(inert_text(c if isinstance(c, Text) else Text(c)) for c in cells), style))

    def fits(self, width: int) -> bool:
        """Return whether all columns fit side by side."""
        return not self._placed(width)[1]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths, below = self._placed(options.max_width)
        if any(self._names):
            yield from self._lines(console, [Text(name) for name in self._names], widths, "bold")
        for cells, style in self._rows:
            yield from self._lines(console, cells, widths, style)
            if rest := self._rest(cells, below):
                yield Padding(rest, (0, 0, 0, _GAP), style=style or "", expand=False)

    def _placed(self, room: int) -> tuple[dict[int, int], list[int]]:
        """Return the widths of the columns that fit side by side, and the columns that move below their
        row."""
        columns = [
            [Text(name), *(cells[at] for cells, _ in self._rows)] for at, name in enumerate(self._names)
        ]
        whole = [max(cell_len(line) for c in cells for line in c.plain.split("\n")) for cells in columns]
        least = [
            self._least(name, cells, wide)
            for name, cells, wide in zip(self._names, columns, whole, strict=True)
        ]
        beside, below = list(range(len(columns))), list[int]()
        rest = room - sum(least[:-1]) - _GAP * (len(least) - 1)
        if not any(self._names) and rest >= _WORD:  # facts, each after its name: nothing of them goes below
            least[-1] = min(least[-1], rest)
        while len(beside) > 1 and sum(least[at] + _GAP for at in beside) - _GAP > room:
            widest = max(beside[1:], key=lambda at: (self._names[at] not in self._keep, whole[at]))
            beside.remove(widest)
            below.append(widest)
        widths = {at: min(least[at], room) for at in beside}
        left = room - sum(widths.values()) - _GAP * (len(beside) - 1)
        for number, at in enumerate(sorted(beside, key=lambda at: whole[at] - least[at])):
            given = min(whole[at] - least[at], left // (len(beside) - number))
            if given > 0:
                widths[at] += given
                left -= given
        return widths, sorted(below)

    def _least(self, name: str, cells: Sequence[Text], whole: int) -> int:
        if name not in self._fold:
            return whole
        longest = max((cell_len(word) for cell in cells for word in cell.plain.split()), default=0)
        return max(longest, _LEGIBLE) if whole > _PROSE else longest

    def _lines(
        self, console: Console, cells: Sequence[Text], widths: dict[int, int], style: str | None
    ) -> Iterator[Text]:
        """Yield a row's lines. Rich's own table takes five times as long, which is most of a short command's
        work."""
        columns = [(at, width, self._names[at] in self._right) for at, width in widths.items()]
        wrapped = [_wrapped(console, cells[at], width, right=right) for at, width, right in columns]
        for pieces in zip_longest(*wrapped, fillvalue=Text()):
            line = Text(style=style or "", overflow="ignore", no_wrap=True)
            gap = 0
            for piece, (_, width, right) in zip(pieces, columns, strict=True):
                blank = width - cell_len(piece.plain)
                line.append(" " * (gap + blank if right else gap)).append_text(piece)
                gap = _GAP if right else _GAP + blank
            line.rstrip()
            yield line

    def _rest(self, cells: Sequence[Text], below: Sequence[int]) -> Text | None:
        said = [at for at in below if cells[at].plain.strip() not in ("", "-")]
        if not said:
            return None
        named = len(below) > 1
        parts = [
            Text.assemble(f"{self._names[at]}: " if named and self._names[at] else "", cells[at])
            for at in said
        ]
        return Text("; ").join(parts)


def inert_text(text: Text) -> Text:
    """Apply `inert` to a styled text: the characters that it replaces have no width, or control the
    terminal."""
    if (plain := inert(text.plain)) != text.plain:
        text = text.copy()
        text.plain = plain
    return text


def _wrapped(console: Console, cell: Text, width: int, *, right: bool) -> Sequence[Text]:
    plain = cell.plain
    if cell_len(plain) <= width and plain.rstrip() == plain and "\n" not in plain and "\t" not in plain:
        return [cell]
    justify = "right" if right else "default"
    return list(cell.wrap(console, max(width, 1), justify=justify, overflow="fold"))
