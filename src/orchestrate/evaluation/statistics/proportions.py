"""Shares of right answers: one model's, and the difference of two on the same items."""

from __future__ import annotations

import math

from orchestrate.types import Score

Z = 1.959963984540054


def wilson(right: int, n: int, z: float = Z) -> Score:
    """Wilson's interval of a proportion; keeps inside 0..1 and has a width even at 0 of n and n of n."""
    if n == 0:
        return Score(value=0.0, low=0.0, high=1.0, n=0)
    p = right / n
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    return Score(value=p, low=max(0.0, min(p, centre - half)), high=min(1.0, max(p, centre + half)), n=n)


def paired_interval(gained: int, lost: int, n: int, z: float = Z) -> Score:
    """Of the difference of two shares over the same `n` items: Tango's score interval (1998). It keeps its
    level where a model only loses items, where Wald's, with or without added items, is too short."""
    if n == 0:
        return Score(value=0.0, low=-1.0, high=1.0, n=0)
    value = (gained - lost) / n

    def end(least: float, most: float, at: float) -> float:
        """Where the statistic, which falls from `least` to `most`, is `at`."""
        for _ in range(_HALVINGS):
            middle = (least + most) / 2
            least, most = (middle, most) if _tango(middle, gained, lost, n) > at else (least, middle)
        return (least + most) / 2

    return Score(value=value, low=end(-1.0, value, z), high=end(value, 1.0, -z), n=n)


_HALVINGS = 50


def _tango(difference: float, gained: int, lost: int, n: int) -> float:
    """How many standard errors the seen difference lies above a supposed one, which constrains the errors."""
    b = -gained - lost + (2 * n - gained + lost) * difference
    c = -lost * difference * (1 - difference)
    share = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    above = gained - lost - n * difference
    variance = n * (2 * share + difference * (1 - difference))
    return above / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, above)


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
