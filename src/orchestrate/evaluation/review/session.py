"""A review in progress: the next task of each rater, and the ratings so far."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, Protocol

import msgspec

from orchestrate.errors import UsageError
from orchestrate.evaluation import NO_ANSWER
from orchestrate.evaluation import review as tasks
from orchestrate.evaluation.review import ReviewTask
from orchestrate.text import inert
from orchestrate.types import Rating, Review

LONGEST_NAME, LONGEST_NOTE = 40, 10_000


class Ratings(Protocol):
    """A store for ratings."""

    def rate(self, *ratings: Rating) -> None: ...
    def ratings(self, review_id: str) -> list[Rating]: ...


class ReviewAction(msgspec.Struct, omit_defaults=True):
    """An action that the review page sends. `rater` is only used if the raters share one link."""

    action: Literal["show", "rate", "undo"]
    rater: str = ""
    task: str = ""
    at: int | None = None
    """Index of the task to show, in the rater's order, from 0. `None` for the first open task."""
    choice: Literal["left", "right", "tie", "both bad"] | None = None
    scores: dict[str, int] = {}
    note: str = ""
    seconds: float | None = None


def valid_ratings(ratings: Sequence[Rating]) -> list[Rating]:
    """Return each rater's last rating of each task, in chronological order. Leaves out tasks whose last
    rating was withdrawn."""
    last: dict[tuple[str, str], Rating] = {}
    for rating in ratings:
        last.pop((rating.rater, rating.task), None)
        if not rating.withdrawn:
            last[rating.rater, rating.task] = rating
    return list(last.values())


def rater_named(name: str) -> str:
    """Normalize a rater's name. Raises `UsageError` if the name is empty or too long."""
    clean = " ".join(inert(name).split())
    if not clean or len(clean) > LONGEST_NAME:
        raise UsageError(f"a rater's name must have 1 to {LONGEST_NAME} characters")
    return clean


class ReviewSession:
    """A thread-safe session in which people rate the tasks of a review."""

    def __init__(self, review: Review, shown: Sequence[ReviewTask], kept: Ratings) -> None:
        self.review, self.tasks, self._kept = review, list(shown), kept
        self.order = lru_cache(maxsize=1000)(self._order)

    def _order(self, rater: str) -> list[tuple[ReviewTask, bool]]:
        return tasks.order(self.tasks, self.review.seed, rater)

    def of(self, rater: str) -> list[Rating]:
        return [
            rating for rating in valid_ratings(self._kept.ratings(self.review.id)) if rating.rater == rater
        ]

    def done(self) -> dict[str, int]:
        """Return how many tasks each rater has rated."""
        counts: dict[str, int] = {}
        for rating in valid_ratings(self._kept.ratings(self.review.id)):
            counts[rating.rater] = counts.get(rating.rater, 0) + 1
        return counts

    def act(self, action: ReviewAction, holder: str = "") -> dict[str, Any]:
        """Perform an action and return the page's next contents. `holder` is the rater who owns the link, or
        empty for a shared link. With a shared link, the action contains the rater's name. Raises `UsageError`
        if the action is not possible."""
        rater = holder or rater_named(action.rater)
        at = action.at
        if action.action == "rate":
            self._rate(action, rater)
        elif action.action == "undo":
            at = self._undo(rater)
        return self.shown(rater, at)

    def _rate(self, action: ReviewAction, rater: str) -> None:
        found = next(((task, turned) for task, turned in self.order(rater) if task.id == action.task), None)
        if found is None:
            raise UsageError("this task is not part of the review")
        task, turned = found
        names = task.contenders[::-1] if turned else task.contenders
        self._kept.rate(self.rating(action, rater, names))

    def rating(self, action: ReviewAction, rater: str, names: Sequence[str]) -> Rating:
        """Build a rating from the rater's action. `names` are the contenders that gave the answers, in the
        order in which the answers were shown. Raises `UsageError` if the rating is incomplete."""
        criteria = self.review.rubric.criteria
        if self.review.kind == "pairs" and (action.choice is None or action.scores):
            raise UsageError("choose the better answer, or neither")
        if self.review.kind == "single":
            points = {c.name: range(1, c.points + 1) for c in criteria}
            if action.choice or action.scores.keys() != points.keys():
                raise UsageError(f"rate {', '.join(points)}")
            for name, value in action.scores.items():
                if value not in points[name]:
                    raise UsageError(f"{name} must be from 1 to {len(points[name])}, got {value}")
        if len(action.note) > LONGEST_NOTE:
            raise UsageError(f"a note must have at most {LONGEST_NOTE:,} characters")
        return Rating(
            review=self.review.id,
            task=action.task,
            rater=rater,
            at=datetime.now(UTC),
            choice=action.choice,
            left=names[0],
            right=names[1] if len(names) > 1 else "",
            scores=action.scores,
            note=action.note,
            seconds=action.seconds,
        )

    def _undo(self, rater: str) -> int:
        rated = self.of(rater)
        if not rated:
            raise UsageError("there is nothing to undo")
        last = rated[-1]
        self._kept.rate(msgspec.structs.replace(last, withdrawn=True, at=datetime.now(UTC)))
        return next(i for i, (task, _) in enumerate(self.order(rater)) if task.id == last.task)

    def shown(self, rater: str, at: int | None = None) -> dict[str, Any]:
        """Return the page's contents, without the contenders' names."""
        order = self.order(rater)
        rated = {rating.task: rating for rating in self.of(rater)}
        if at is None:
            at = next((i for i, (task, _) in enumerate(order) if task.id not in rated), len(order) - 1)
        if not 0 <= at < len(order):
            raise UsageError(f"task {at + 1} does not exist: the review has {len(order):,} tasks")
        task, turned = order[at]
        answers = task.answers[::-1] if turned else task.answers
        rating = rated.get(task.id)
        rubric = self.review.rubric
        return {
            "rater": rater,
            "kind": self.review.kind,
            "question": rubric.question,
            "guide": rubric.guide,
            "criteria": [
                {"name": c.name, "question": c.question, "labels": c.labels} for c in rubric.criteria
            ],
            "at": at,
            "total": len(order),
            "done": len(rated),
            "task": task.id,
            "prompt": [message.to_dict() for message in task.item.prompt],
            "answers": [
                {
                    "text": answer.text or ("" if answer.tool_calls else NO_ANSWER),
                    "tool_calls": answer.tool_calls,
                }
                for answer in answers
            ],
            "rated": None
            if rating is None
            else {"choice": rating.choice, "scores": rating.scores, "note": rating.note},
        }
