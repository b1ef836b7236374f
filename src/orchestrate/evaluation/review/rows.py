"""Ratings as training rows: pairs for DPO, answers to give and to avoid for KTO."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from orchestrate.core.files import whole
from orchestrate.data.rows.examples import ChatMessage, PreferenceExample, ToolCall, UnpairedExample
from orchestrate.data.targets.dialects import canonical_line
from orchestrate.errors import DataError
from orchestrate.evaluation.items import Answer, Item
from orchestrate.evaluation.review.desk import standing
from orchestrate.evaluation.review.results import outcomes, overall, votes_of
from orchestrate.evaluation.review.tasks import Task
from orchestrate.types import Message, Rating, Record, Review, decoding

GOOD, BAD = 0.75, 0.25
"""Of answers that were rated alone, 0 to 1: from where one is to be given, and to be avoided. Of five
points these are 4 and 2."""


class FromReview(Record, frozen=True, kw_only=True):
    """The answer of `data from-review`."""

    review: str
    output: str
    format: Literal["dpo", "kto"]
    rows: int
    left_out: dict[str, int]
    """Rated tasks (of single answers for DPO: pairs of them) that make no row, by the reason."""


def from_review(
    review: Review,
    tasks: Sequence[Task],
    ratings: Sequence[Rating],
    output: Path,
    *,
    format: Literal["dpo", "kto"],
    agreement: float = 0.6,
) -> FromReview:
    """Writes the rows. `agreement` is the share of an item's raters that must say the same, ties counting
    half. Raises `DataError` where no rating makes a row."""
    known = {task.id: task for task in tasks}
    held = [rating for rating in standing(ratings) if rating.task in known]
    left_out: Counter[str] = Counter()
    if review.kind == "pairs":
        made = _pairs(known, held, format, agreement, left_out)
    else:
        made = _singles(review, known, held, format, left_out)
    lines = [canonical_line(row) for row in made]
    if not lines:
        why = ", ".join(f"{reason}: {n}" for reason, n in left_out.items()) or "nothing is rated yet"
        raise DataError(f"review {review.id} makes no row for {format} ({why})")
    with whole(output) as draft, draft.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
    return FromReview(
        review=review.id, output=str(output), format=format, rows=len(lines), left_out=dict(left_out)
    )


def _pairs(
    tasks: Mapping[str, Task],
    held: Sequence[Rating],
    format: str,
    agreement: float,
    left_out: Counter[str],
) -> Iterator[PreferenceExample | UnpairedExample]:
    by_task: defaultdict[str, list[Rating]] = defaultdict(list)
    for rating in held:
        by_task[rating.task].append(rating)
    labels: dict[tuple[str, str], tuple[Item, Answer, set[bool]]] = {}

    def label(task: Task, place: int, good: bool) -> None:
        known = labels.setdefault(
            (task.item.id, task.contenders[place]), (task.item, task.answers[place], set())
        )
        known[2].add(good)

    for key, ratings in by_task.items():
        task = tasks[key]
        [outcome] = outcomes(votes_of(ratings, tasks))
        better = 0 if outcome.points > 0.5 else 1
        bad = sum(rating.choice == "both bad" for rating in ratings) / len(ratings)
        if format == "kto" and bad > 0.5 and bad >= agreement:
            label(task, 0, False)
            label(task, 1, False)
        elif outcome.points == 0.5:
            left_out["both bad" if bad > 0.5 else "tie"] += 1
        elif max(outcome.points, 1 - outcome.points) < agreement:
            left_out["raters disagree"] += 1
        elif format == "kto":
            label(task, better, True)
            label(task, 1 - better, False)
        elif row := _preference(task.item, task.answers[better], task.answers[1 - better], left_out):
            yield row
    yield from _unpaired(labels.values(), left_out)


def _singles(
    review: Review, tasks: Mapping[str, Task], held: Sequence[Rating], format: str, left_out: Counter[str]
) -> Iterator[PreferenceExample | UnpairedExample]:
    answers = {(task.item.id, task.contenders[0]): (task.item, task.answers[0]) for task in tasks.values()}
    by_item: defaultdict[str, dict[str, float]] = defaultdict(dict)
    for name, scores in overall(held, tasks, review).items():
        for item, score in scores.items():
            by_item[item][name] = score
    for item, scores in by_item.items():
        if format == "kto":
            for name, score in scores.items():
                if BAD < score < GOOD:
                    left_out["neither good nor bad"] += 1
                else:
                    yield from _unpaired([(*answers[item, name], {score >= GOOD})], left_out)
            continue
        for first, second in combinations(scores, 2):
            better, worse = (first, second) if scores[first] > scores[second] else (second, first)
            if scores[better] < GOOD or scores[better] - scores[worse] < BAD:
                left_out["not clearly better"] += 1
            elif row := _preference(
                answers[item, better][0], answers[item, better][1], answers[item, worse][1], left_out
            ):
                yield row


def _preference(
    item: Item, better: Answer, worse: Answer, left_out: Counter[str]
) -> PreferenceExample | None:
    preferred, rejected = _said(better), _said(worse)
    if not preferred or not rejected:
        left_out["no answer"] += 1
        return None
    return PreferenceExample(
        prompt=_conversation(item), preferred=preferred, rejected=rejected, tools=list(item.tools) or None
    )


def _unpaired(
    labelled: Iterable[tuple[Item, Answer, set[bool]]], left_out: Counter[str]
) -> Iterator[UnpairedExample]:
    for item, answer, labels in labelled:
        if len(labels) > 1:
            left_out["good beside one answer, bad beside another"] += 1
        elif not (said := _said(answer)):
            left_out["no answer"] += 1
        else:
            yield UnpairedExample(
                prompt=_conversation(item),
                completion=said,
                label=labels.pop(),
                tools=list(item.tools) or None,
            )


def _conversation(item: Item) -> list[ChatMessage]:
    return [_message(message) for message in item.prompt]


def _said(answer: Answer) -> list[ChatMessage]:
    if not answer.text and not answer.tool_calls:
        return []
    return [_message(Message(role="assistant", content=answer.text, tool_calls=answer.tool_calls))]


def _message(message: Message) -> ChatMessage:
    calls = decoding.convert(list(message.tool_calls), list[ToolCall])
    return ChatMessage(
        role=message.role,  # pyright: ignore[reportArgumentType]  # it was read from such a row
        content=message.content or None if calls else message.content,
        name=message.name,
        tool_calls=calls or None,
        tool_call_id=message.tool_call_id,
    )
