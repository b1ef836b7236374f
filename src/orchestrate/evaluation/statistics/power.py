"""What so many items can show, before anything is spent on them."""

from __future__ import annotations

import math

from orchestrate.evaluation.statistics.proportions import Z
from orchestrate.types import Score

REACH = 2.8
"""Standard errors that a difference must be to be seen at 5% in four of five tries: 1.96 + 0.84."""
DISCORDANT = 0.16
"""The share of items that two models answer differently in right and wrong, until it is measured: what a
tuned model and its base were found to have (facts of the project, simulated with 16%)."""


def detectable(n: int, discordant: float = DISCORDANT) -> float:
    """The smallest difference that `n` items show in four of five tries; for marks between 0 and 1
    `discordant` is the mean squared difference of an item."""
    return min(1.0, REACH * math.sqrt(discordant / n)) if n else 1.0


def rows_for(difference: float, discordant: float = DISCORDANT) -> int:
    """The items that show this difference in four of five tries."""
    return math.ceil(REACH**2 * discordant / difference**2)


def standard_error(score: Score) -> float:
    """By the width of its interval."""
    return (score.high - score.low) / (2 * Z)
