"""What metrics may use of the world around an evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrate.evaluation.items import Item
from orchestrate.evaluation.rubric import DEFAULT
from orchestrate.paid.asking import Asking, Respondent
from orchestrate.types import Rubric

if TYPE_CHECKING:
    from orchestrate.evaluation.judges.calibration import Calibration
    from orchestrate.evaluation.judges.judge import Judge, Kind

Embed = Callable[[Sequence[str]], list[list[float]]]


@dataclass(frozen=True)
class Context:
    """`respondent` gives a model to ask through `asking`, which keeps answers, prices and the limit of the
    whole evaluation; models are written as in `providers.endpoints`."""

    items: Sequence[Item]
    asking: Asking
    respondent: Callable[[str, int, float], Respondent]
    """Of (model, most tokens, temperature). Raises as `model_at` does."""
    embed: Callable[[str], Embed]
    """Of a model: one vector for each text."""
    rubric: Rubric = DEFAULT
    """By which judges rate."""
    held: Callable[[Judge, Kind], Calibration | None] = lambda judge, kind: None
    """How far a judge agrees with people; may ask it. `None` where nobody knows."""
    allow_code: bool = False
    """Whether graders may run code."""

    @property
    def expects(self) -> bool:
        """Whether each item has an expected answer."""
        return all(item.expected or item.expected_calls for item in self.items)
