"""Decide where a turn begins and ends in the text that a chat template adds around the messages.

A turn begins after the generation prompt and ends with the special token that the model must learn to write,
although templates add whitespace, other tokens or other messages' text in these places.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from orchestrate.data.tokens.words import Cut


class AssistantTurn(NamedTuple):
    """The part of a rendered text that comes from one assistant message."""

    spans: tuple[tuple[int, int], ...]
    """Character spans of the turn, from the end of the generation prompt to the end of the turn. If the
    template inserts other text, there are several spans. If it drops the message, there are none."""
    ends: bool
    """True if a special token ends the turn, so that the model can learn to stop."""


class _Place(NamedTuple):
    piece: int
    offset: int


class _TokenSpan(NamedTuple):
    """Start and end of a turn or a part of one."""

    first: _Place
    last: _Place
    ends: bool


class Outline(NamedTuple):
    runs: list[_TokenSpan]

    def placed(self, places: Sequence[int]) -> AssistantTurn:
        spans = ((places[a.piece] + a.offset, places[b.piece] + b.offset) for a, b, _ in self.runs)
        return AssistantTurn(tuple(spans), any(run.ends for run in self.runs))


class TurnPieces(NamedTuple):
    texts: list[str]
    owners: list[tuple[int, int]]
    starts: list[int]
    turns: list[Outline]
    others: list[Outline]
    """Spans of trained messages with other roles."""
    notes: tuple[str, ...]


class Marks(NamedTuple):
    special: frozenset[str]
    opener: str
    """Text at the start of the generation prompt. May be empty."""


def outline_of(cut: Cut, i: int, before: str | None, upto: Cut | None, marks: Marks) -> tuple[Outline, bool]:
    """Return the turn of message `i`, and whether text other than the generation prompt precedes it.
    `before` ends with that prompt, and `upto` is the conversation up to this message."""
    mine = _said_by(cut, i, upto)
    if not mine:  # the template drops it, or it is empty
        earlier = [k for k, (owner, _) in enumerate(cut.owners) if owner < i]
        after = upto.texts[-1] if upto else None
        return _empty(cut, earlier[-1] + 1 if earlier else 0, before, after, marks)
    groups = [[mine[0]]]
    for k in mine[1:]:
        if k == groups[-1][-1] + 1:
            groups[-1].append(k)
        else:
            groups.append([k])
    start, apart = _begin(cut.texts[mine[0]], before, marks)
    alone = upto.texts[-1].rstrip() if upto else ""
    stop = max((mark for mark in marks.special if alone.endswith(mark)), key=len, default="")
    runs: list[_TokenSpan] = []
    for group in groups:
        first = _Place(group[0], start if not runs else len(cut.texts[group[0]]))
        behind = cut.texts[group[-1] + 1]
        after = _behind(upto, cut, group[-1])
        closing = behind if after is None else behind[: _common_prefix(behind, after)]
        end, ends = _end(closing, behind, marks)
        if group is not groups[-1] and stop and behind.startswith(stop, end):
            end += len(stop)  # the template inserts another message's text before the rest of this message
        runs.append(_TokenSpan(first, _Place(group[-1] + 1, end), ends))
    return Outline(runs), apart


def _said_by(cut: Cut, i: int, upto: Cut | None) -> list[int]:
    """Return the placeholders that belong to message `i` itself. A template may repeat some elsewhere,
    such as a call's name in its result."""
    left = Counter(upto.owners[k] for k in _candidates(upto, i)) if upto else Counter[tuple[int, int]]()
    mine: list[int] = []
    for k in _candidates(cut, i):
        word = cut.owners[k]
        if left[word] > 0 or word not in left:
            mine.append(k)
        left[word] -= 1
    return mine


def _candidates(cut: Cut, i: int) -> list[int]:
    """Return the places of message `i`'s placeholders after the previous message."""
    before = {owner: k for k, owner in reversed(list(enumerate(cut.owners))) if owner[0] == i - 1}
    after = max(before.values(), default=-1)
    all_of_it = [k for k, (owner, _) in enumerate(cut.owners) if owner == i]
    return [k for k in all_of_it if k > after] or all_of_it


def _behind(upto: Cut | None, cut: Cut, at: int) -> str | None:
    """Return the template's text in `upto` after the placeholder at `at` in `cut`."""
    word = cut.owners[at]
    same = [k for k, owner in enumerate(upto.owners) if owner == word] if upto else []
    earlier = cut.owners[:at].count(word)
    return upto.texts[same[earlier] + 1] if upto and earlier < len(same) else None


def _empty(cut: Cut, piece: int, before: str | None, after: str | None, marks: Marks) -> tuple[Outline, bool]:
    """Return the turn of a message without text: the model only writes the end of the turn."""
    text = cut.texts[piece]
    if before is None or after is None:
        return Outline([]), False
    start, apart = _begin(text, before, marks)
    behind = text[start:]
    end, ends = _end(behind[: _common_prefix(behind, after[start:])], behind, marks)
    return Outline([_TokenSpan(_Place(piece, start), _Place(piece, start + end), ends)]), apart


def _begin(lead: str, before: str | None, marks: Marks) -> tuple[int, bool]:
    """Return the length of the text before an answer that is not part of the answer, and whether it
    differs from the generation prompt `before`."""
    if before is None:
        return len(lead), False
    start = _common_prefix(lead, before)
    if start == len(before):
        return start, False
    # The two differ within a header. If `lead` also contains the prompt's header, the answer follows it.
    header = before[max((before.rfind(mark) for mark in marks.special if mark), default=-1) :]
    if (at := lead.rfind(header)) >= 0 and any(mark in header for mark in marks.special if mark):
        return at + len(header), True
    # Otherwise, the answer starts after the last newline or special token before the difference.
    begun = [at + len(mark) for mark in marks.special if (at := lead.rfind(mark, 0, start)) >= 0]
    return max([*begun, lead.rfind("\n", 0, start) + 1]), True


def _end(closing: str, behind: str, marks: Marks) -> tuple[int, bool]:
    """Return the length of a turn after its last placeholder, if the template closes it with `closing`,
    and whether a special token ends the turn. In some templates, the next turn's first token ends it."""
    if marks.opener and (at := closing.find(marks.opener)) > 0:
        closing = closing[:at]
    places = sorted((at, at + len(mark)) for mark in marks.special if mark for at in _places(closing, mark))
    last = 0
    for at, after in places:
        if last and at > last and not closing[last:at].strip():
            break  # tokens after whitespace end the conversation, not the turn
        last = max(last, after)
    if last:
        return last, True
    stop = _special_at(behind, len(closing), marks.special)
    return (stop, True) if stop is not None else (len(closing.rstrip()), False)


def _places(text: str, mark: str) -> Iterator[int]:
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + len(mark))


def _special_at(text: str, at: int, special: frozenset[str]) -> int | None:
    """Return the position after the next special token, skipping whitespace, or after the token around
    `at`."""
    after = at + len(text[at:]) - len(text[at:].lstrip())
    found = [
        start + len(mark)
        for mark in special
        if 0 <= (start := text.find(mark, max(0, at - len(mark) + 1), after + len(mark))) <= after
    ]
    return max(found, default=None)


def _common_prefix(a: str, b: str) -> int:
    low, high = 0, min(len(a), len(b))
    while low < high:  # binary search: slices compare at memory speed
        middle = (low + high + 1) // 2
        low, high = (middle, high) if a[:middle] == b[:middle] else (low, middle - 1)
    return low
