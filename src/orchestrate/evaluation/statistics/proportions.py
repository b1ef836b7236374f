"""Shares of right answers: one model's, and the difference of two on the same items."""

from __future__ import annotations

import math

from orchestrate.types import Score

Z = 1.959963984540054


def wilson(right: int, n: int) -> Score:
    """Wilson's interval of a proportion; keeps inside 0..1 and has a width even at 0 of n and n of n."""
    if n == 0:
        return Score(value=0.0, low=0.0, high=1.0, n=0)
    p = right / n
    centre = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return Score(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)


def paired_interval(gained: int, lost: int, n: int) -> Score:
    """Of the difference of two shares over the same `n` items: Bonett and Price (2012), Wald's with one more
    item gained and one more lost, which has a width even where nothing differs. Of those with a closed form
    Fagerland, Lydersen and Laake (2014) recommend it."""
    if n == 0:
        return Score(value=0.0, low=-1.0, high=1.0, n=0)
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = Z * math.sqrt((up + down - (up - down) ** 2) / (n + 2))
    value, centre = (gained - lost) / n, up - down
    return Score(
        value=value, low=max(-1.0, min(value, centre - half)), high=min(1.0, max(value, centre + half)), n=n
    )


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided mid-p value that gains and losses are equally likely.

    The exact test counts the whole of what was seen among what is as rare, the mid-p test half of it: its
    level comes near 5% where the exact one's stays far below (Fagerland, Lydersen and Laake 2013).
    """
    flips = gained + lost
    if flips == 0:
        return 1.0
    tail = sum(math.comb(flips, k) for k in range(min(gained, lost) + 1)) / 2**flips
    seen = math.comb(flips, gained) / 2**flips
    return min(1.0, 2 * tail - seen)
