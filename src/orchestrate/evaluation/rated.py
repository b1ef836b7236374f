"""Answers that people have rated, in JSON lines: what a judge is held against.

A line has the conversation as `prompt` (a text, or messages), or a whole chat row as `messages`, whose last
message is the answer. Then one `answer` with its `scores` by criterion (or `rating`, where the rubric has
one criterion), or two `answers` with `preferred`: first, second, tie or both bad. What we write of a single
one has it as the only one of its `answers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Literal

import msgspec

from orchestrate.errors import DataError
from orchestrate.evaluation.items import item_id
from orchestrate.evaluation.review.results import votes_of
from orchestrate.evaluation.review.tasks import Task
from orchestrate.files import whole
from orchestrate.types import Message, Rating, Record, Review, Rubric, decoding

Preferred = Literal["first", "second", "tie", "both bad"]


class RatedAnswer(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One answer or two, and what people said of them."""

    prompt: tuple[Message, ...]
    expected: str = ""
    answers: tuple[str, ...]
    preferred: Preferred | None = None
    """Of two: what most of the raters said."""
    scores: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    """Of one: by criterion, the mean of its raters."""
    raters: int = 1
    item: str = ""
    """Ratings of one item belong together."""


class _Line(msgspec.Struct):
    """As people write it; what else a row has is of no matter here."""

    prompt: str | list[Message] | None = None
    messages: list[Message] | None = None
    expected: str = ""
    answer: str | None = None
    answers: Annotated[tuple[str, ...], msgspec.Meta(min_length=1, max_length=2)] | None = None
    preferred: Preferred | None = None
    scores: dict[str, float] = msgspec.field(default_factory=dict[str, float])
    rating: float | None = None
    raters: int = 1
    item: str = ""


def read(path: Path, rubric: Rubric) -> list[RatedAnswer]:
    """Raises `DataError` with the line that is wrong, and for a file without a good one."""
    found: list[RatedAnswer] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    found.append(_read(line, f"{path}: line {number}", rubric))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not found:
        raise DataError(f"{path} has no rated answer", fix="orchestrate review RUN --export rated.jsonl")
    if len({len(one.answers) for one in found}) > 1:
        raise DataError(f"{path} has single answers and pairs", fix="calibrate on one kind")
    return found


def _read(text: bytes, place: str, rubric: Rubric) -> RatedAnswer:
    try:
        line = decoding.decode(text, type=_Line)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: {error}") from error
    prompt, answers = _asked(line, place)
    scores = dict(line.scores)
    if line.rating is not None and not scores and len(rubric.criteria) == 1:
        scores = {rubric.criteria[0].name: line.rating}
    if len(answers) == 2 and line.preferred is None:
        raise DataError(f"{place}: two answers, and no word of which is preferred")
    if len(answers) == 1:
        for c in rubric.criteria:
            if not 1 <= scores.get(c.name, 0) <= c.points:
                raise DataError(
                    f"{place}: {c.name} is not rated, or not 1 to {c.points}",
                    fix="the rubric must be the one by which people rated",
                )
    item = line.item or item_id(prompt, [], "", [])
    return RatedAnswer(
        prompt=prompt,
        expected=line.expected,
        answers=answers,
        preferred=line.preferred if len(answers) == 2 else None,
        scores={c.name: scores[c.name] for c in rubric.criteria} if len(answers) == 1 else {},
        raters=line.raters,
        item=item,
    )


def _asked(line: _Line, place: str) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    answers = line.answers if line.answers is not None else (line.answer,)
    if line.messages and line.prompt is None and line.answers is None and line.answer is None:
        *prompt, last = line.messages
        return tuple(prompt), (last.content,)
    if line.prompt is None or None in answers:
        raise DataError(f"{place}: give prompt and answer, prompt and answers, or messages")
    given = [Message(role="user", content=line.prompt)] if isinstance(line.prompt, str) else line.prompt
    return tuple(given), tuple(text or "" for text in answers)


def of_review(review: Review, tasks: Sequence[Task], held: Iterable[Rating]) -> list[RatedAnswer]:
    """The rated tasks of a review, each once."""
    known = {task.id: task for task in tasks}
    by_task: dict[str, list[Rating]] = {}
    for rating in held:
        by_task.setdefault(rating.task, []).append(rating)
    return [_of_task(review, known[key], ratings, known) for key, ratings in by_task.items() if key in known]


def _of_task(review: Review, task: Task, ratings: Sequence[Rating], known: Mapping[str, Task]) -> RatedAnswer:
    pair = review.kind == "pairs"
    return RatedAnswer(
        prompt=task.item.prompt,
        expected=task.item.expected,
        answers=tuple(answer.text for answer in task.answers),
        preferred=_preferred(ratings, known) if pair else None,
        scores={}
        if pair
        else {c.name: fmean(r.scores[c.name] for r in ratings) for c in review.rubric.criteria},
        raters=len(ratings),
        item=task.item.id,
    )


def _preferred(ratings: Sequence[Rating], known: Mapping[str, Task]) -> Preferred:
    mean = fmean(vote.points for vote in votes_of(ratings, known))
    if mean != 0.5:
        return "first" if mean > 0.5 else "second"
    return "both bad" if all(rating.choice == "both bad" for rating in ratings) else "tie"


def write(rated: Iterable[RatedAnswer], path: Path) -> int:
    """Returns how many there were."""
    count = 0
    with whole(path) as draft, draft.open("w", encoding="utf-8") as file:
        for one in rated:
            plain: dict[str, Any] = one.to_dict()
            file.write(json.dumps(plain, ensure_ascii=False) + "\n")
            count += 1
    return count
