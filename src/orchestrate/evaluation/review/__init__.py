"""Blind human review of answers: the browser page, spreadsheets, and results."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Literal

import msgspec
from msgspec.structs import replace

from orchestrate.core.files import whole
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import Answer, Item, ScoredItem, digest_of
from orchestrate.types import Evaluation, Record, decoding

# What raters see: an evaluation's answers, in pairs or one at a time, and the order of the tasks.


class ReviewTask(Record, frozen=True, kw_only=True):
    """A task for raters: a single answer or a pair. The order of `contenders` is arbitrary, and `answers` has
    the same order."""

    id: str
    """Task id. Raters can see it, so it does not reveal the contenders."""
    item: Item
    contenders: tuple[str, ...]
    answers: tuple[Answer, ...]


class Tasks(msgspec.Struct, frozen=True):
    tasks: list[ReviewTask]
    same: tuple[tuple[str, str, str], ...] = ()
    """Pairs of contenders that gave the same answer to an item, as (contender, other contender, item). Raters
    don't see these pairs."""


def read_answered(path: Path) -> list[ScoredItem]:
    """Read the items file of an evaluation. Raises `DataError` if it is missing or has another format."""
    try:
        with path.open("rb") as file:
            return [decoding.decode(line, type=ScoredItem) for line in file if line.strip()]
    except OSError as error:
        raise DataError(
            f"cannot find the answers: {path}: {error.strerror}", fix="orchestrate eval RUN"
        ) from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} does not contain evaluation answers: {error}") from error


def tasks_of(
    answered: Sequence[ScoredItem],
    contenders: Sequence[str],
    *,
    kind: Literal["pairs", "single"],
    review: str,
    against: str | None = None,
    items: int | None = None,
    seed: int = 0,
) -> Tasks:
    """Build review tasks for all items, or for a random sample of `items` items. If `kind` is `pairs`, raters
    compare every contender with every other one. If `against` is also given, they compare each contender only
    with `against`. If a contender has several answers to an item, the first one is shown. Raises `UsageError`
    if there is nothing to rate."""
    if kind == "pairs" and len(contenders) < 2:
        raise UsageError(
            "reviewing pairs requires two contenders, but the evaluation has one",
            fix="orchestrate eval RUN --base   or: orchestrate review RUN --single",
        )
    if against is not None and against not in contenders:
        raise UsageError(f"unknown contender {against!r}; known: {', '.join(contenders)}")
    together: list[tuple[str, ...]]
    if kind == "single":
        together = [(name,) for name in contenders]
    elif against is None:
        together = list(combinations(contenders, 2))
    else:
        together = [(name, against) for name in contenders if name != against]
    chosen = list(answered)
    if items is not None and items < len(chosen):
        chosen = random.Random(f"{seed}:items").sample(chosen, items)  # noqa: S311  not for secrets
    tasks: list[ReviewTask] = []
    same: list[tuple[str, str, str]] = []
    for one in chosen:
        for names in together:
            answers = tuple(one.answers[name][0] for name in names if one.answers.get(name))
            if len(answers) < len(names):
                continue
            if len(answers) == 2 and _answer_key(answers[0]) == _answer_key(answers[1]):
                same.append((names[0], names[1], one.item.id))
                continue
            named = "\0".join((review, one.item.id, *names))
            key = hashlib.sha256(named.encode()).hexdigest()[:12]
            tasks.append(ReviewTask(id=key, item=one.item, contenders=names, answers=answers))
    if not tasks:
        why = "all answers are identical" if same else "the evaluation has no answers from these contenders"
        raise UsageError(f"there is nothing to rate: {why}")
    return Tasks(tasks, tuple(same))


def write(tasks: Iterable[ReviewTask], path: Path) -> None:
    with whole(path, private=True) as draft, draft.open("wb") as file:
        for task in tasks:
            file.write(task.to_json() + b"\n")


def read(path: Path) -> list[ReviewTask]:
    """Read a review. Raises `DataError` if the file is missing or invalid."""
    try:
        with path.open("rb") as file:
            return [ReviewTask.from_json(line) for line in file]
    except OSError as error:
        raise DataError(f"cannot find the data of the review: {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is damaged: {error}") from error


def order(tasks: Sequence[ReviewTask], seed: int, rater: str) -> list[tuple[ReviewTask, bool]]:
    """Return the tasks in the rater's random order, each with a flag: true if its second answer is shown
    first. The same seed and rater always give the same order."""
    draw = random.Random(f"{seed}:{rater}")  # noqa: S311  not for secrets
    shuffled = draw.sample(list(tasks), len(tasks))
    return [(task, draw.random() < 0.5) for task in shuffled]


def _answer_key(answer: Answer) -> tuple[str, bytes]:
    return answer.text.strip(), msgspec.json.encode([call.get("function") for call in answer.tool_calls])


@dataclass(frozen=True)
class ReviewSource:
    """The evaluations to review, the latest first. `run_ids` are the runs that the user named."""

    evaluations: tuple[Evaluation, ...]
    run_ids: tuple[str, ...]

    @property
    def id(self) -> str:
        """Ids of the evaluations, joined by commas."""
        return ",".join(sorted(evaluation.id for evaluation in self.evaluations))

    @property
    def contenders(self) -> list[str]:
        return list(dict.fromkeys(c.name for evaluation in self.evaluations for c in evaluation.contenders))

    @property
    def dataset(self) -> str:
        return ", ".join(dict.fromkeys(evaluation.dataset for evaluation in self.evaluations))

    @property
    def items_digest(self) -> str:
        """Digest of the items that all evaluations share."""
        [first, *others] = self.evaluations
        return digest_of([one.item for one in self.answered]) if others else first.items_digest

    @cached_property
    def answered(self) -> list[ScoredItem]:
        """Items that all evaluations share, each with the answers of all contenders. Raises `DataError` if
        answers are missing and `UsageError` if the evaluations share no item."""
        [first, *others] = [read_answered(Path(e.items_file or "")) for e in self.evaluations]
        for other in others:
            theirs = {one.item.id: one for one in other}
            first = [_joined(one, theirs[one.item.id]) for one in first if one.item.id in theirs]
        if not first:
            raise UsageError(
                "no item was answered in all of these evaluations: "
                + "; ".join(f"{e.id} used {e.dataset}" for e in self.evaluations),
                fix=f"orchestrate eval {' '.join(self.run_ids)} --base   (one evaluation for all runs)",
            )
        return first


def _joined(one: ScoredItem, other: ScoredItem) -> ScoredItem:
    answers: dict[str, tuple[Answer, ...]] = {**other.answers, **one.answers}
    return replace(one, answers=answers, marks={})


def source_of(evaluations: Sequence[Evaluation], run_ids: Sequence[str], wanted: str | None) -> ReviewSource:
    """Choose the evaluations to review: the newest one that contains every run or, if there is none, the
    newest one of each run. `evaluations` are sorted from oldest to newest. If `wanted` is set, considers only
    evaluations whose id starts with it, and requires one that contains every run. Raises `UsageError` if no
    evaluation fits."""
    fitting = [e for e in evaluations if wanted is None or e.id.startswith(wanted)]
    if not run_ids and len(fitting) != 1:
        what = f"{wanted} matches several evaluations" if fitting else f"no evaluation matches {wanted}"
        raise UsageError(what, fix="find its id with: orchestrate eval --json")
    covering = [e for e in fitting if set(run_ids) <= set(e.run_ids)]
    if covering:
        return ReviewSource((covering[-1],), tuple(run_ids))
    names = " ".join(run_ids)
    fix = f"orchestrate eval {names} --base   (evaluates all models to compare)"
    if wanted is not None:
        raise UsageError(f"no evaluation of these runs matches {wanted}", fix=fix)
    newest: dict[str, Evaluation] = {}
    for run_id in run_ids:
        own = [e for e in fitting if run_id in e.run_ids]
        if not own:
            raise UsageError(f"{run_id} has no answers to rate", fix=fix)
        newest[own[-1].id] = own[-1]
    return ReviewSource(
        tuple(sorted(newest.values(), key=lambda e: e.created_at, reverse=True)), tuple(run_ids)
    )
