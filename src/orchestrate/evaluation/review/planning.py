"""How many people and items a review needs, before anybody is asked."""

from __future__ import annotations

import math

from orchestrate.types import Record

LIKENESS = 0.4
"""How far raters of one item vote alike, until it is measured: what people usually reach on open answers."""
_LEVEL, _POWER = 1.959963984540054, 0.8416212335729143


class Planned(Record, frozen=True, kw_only=True):
    """With so many raters of each item, so many items show the preference in four of five tries."""

    raters: int
    items: int

    @property
    def votes(self) -> int:
        return self.raters * self.items


def planned(
    preference: float, *, likeness: float = LIKENESS, raters: tuple[int, ...] = (1, 2, 3, 4, 5)
) -> tuple[Planned, ...]:
    """What shows that one model is preferred in this share of cases (0.6, say) and not in half of them.

    More raters of an item make its outcome surer, more items what is said of all: m votes on an item tell as
    much as m / (1 + (m - 1) * likeness) items with one vote. Ties make the need smaller, never larger.
    """
    away = abs(preference - 0.5)
    votes = ((_LEVEL * 0.5 + _POWER * math.sqrt(preference * (1 - preference))) / away) ** 2
    return tuple(Planned(raters=m, items=math.ceil(votes * (1 + (m - 1) * likeness) / m)) for m in raters)


def detectable(items: int, raters: int, likeness: float = LIKENESS) -> float:
    """The smallest preference above a half that so many items and raters show in four of five tries."""
    low, high = 0.5, 1.0
    for _ in range(40):
        middle = (low + high) / 2
        [need] = planned(middle, likeness=likeness, raters=(raters,))
        low, high = (middle, high) if need.items > items else (low, middle)
    return high
