"""Records of reviews: rubrics for human raters and judge models, and the raters' ratings."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from statistics import fmean
from typing import Literal

from orchestrate.types.record import Record


class Criterion(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A criterion for rating answers."""

    name: str
    question: str = ""
    scale: int | tuple[str, ...] = 5
    """Number of points, or a name for each point, worst first."""

    @property
    def points(self) -> int:
        return self.scale if isinstance(self.scale, int) else len(self.scale)

    @property
    def labels(self) -> tuple[str, ...]:
        """Return the label of each point on the scale, starting with 1."""
        return self.scale if isinstance(self.scale, tuple) else tuple(str(n + 1) for n in range(self.scale))


class Rubric(Record, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """The rubric by which human raters and judge models rate answers. `orchestrate.evaluation` loads it."""

    name: str
    question: str = "Which answer is better?"
    """Question to ask about a pair of answers."""
    guide: str = ""
    """Rating guidelines, written by an expert."""
    criteria: tuple[Criterion, ...] = (Criterion(name="quality", question="How good is the answer?"),)
    """Criteria for rating single answers."""

    def score(self, scores: Mapping[str, float]) -> float:
        """Return the mean of the criteria from 0 to 1, each scaled from its worst to its best score."""
        return fmean((scores[c.name] - 1) / (c.points - 1) for c in self.criteria)


class Review(Record, frozen=True, kw_only=True):
    """A blind review: human raters rate answers without knowing which model wrote them."""

    id: str
    created_at: datetime
    kind: Literal["pairs", "single", "writing"]
    contenders: tuple[str, ...]
    run_ids: tuple[str, ...]
    rubric: Rubric
    evaluation: str
    """The id of the evaluation with the answers, or several ids, comma-separated."""
    dataset: str
    items_digest: str
    items: int
    tasks: int
    same: tuple[tuple[str, str, str], ...] = ()
    """Items for which two contenders gave the same answer, as `[(contender, contender, item)]`. Raters don't
    see these items. Each counts as a tie."""
    seed: int = 0
    """Seed that determines, separately for each rater, the order of the items and the side on which each
    answer is shown."""
    folder: str
    """Folder with the displayed content and the raters' links."""


class Rating(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One rater's rating of one task. A later rating of the same task replaces it."""

    review: str
    task: str
    rater: str
    at: datetime
    choice: Literal["left", "right", "tie", "both bad"] | None = None
    """Choice between two answers. `left` and `right` are the sides on which the answers were displayed."""
    left: str = ""
    """Contender whose answer was on the left, or the only contender."""
    right: str = ""
    scores: dict[str, int] = {}
    """Points keyed by criterion, from 1 to the criterion's maximum."""
    note: str = ""
    question: str | None = None
    """The last user message, as shown or as corrected by the rater. Only set if the review produces training
    rows."""
    answer: str | None = None
    """The rater's final answer. Only set if the review produces training rows."""
    seconds: float | None = None
    withdrawn: bool = False
    """True if the rating was withdrawn. The task is then open again."""
