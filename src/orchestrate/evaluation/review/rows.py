"""Convert ratings to training rows: pairs for DPO, desirable and undesirable answers for KTO."""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Literal

from msgspec.structs import replace

from orchestrate.core.files import whole
from orchestrate.data.dialects import canonical_line
from orchestrate.data.rows import ChatMessage, PreferenceExample, ToolCall, UnpairedExample
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import NO_ANSWER, Answer, Item, message_text
from orchestrate.evaluation.review import ReviewTask
from orchestrate.evaluation.review.results import outcomes, overall, votes_of
from orchestrate.evaluation.review.session import ReviewAction, ReviewSession, rater_named, valid_ratings
from orchestrate.types import Criterion, Message, Rating, Record, Review, decoding

GOOD, BAD = 0.75, 0.25
"""Score thresholds for answers that are rated individually, on a scale from 0 to 1. Scores of at least `GOOD`
are desirable, and scores of at most `BAD` are undesirable. On a five-point scale, the thresholds are 4 and
2."""


class FromReview(Record, frozen=True, kw_only=True):
    """The result of `data from-review`."""

    review: str
    output: str
    format: Literal["dpo", "kto", "sft"]
    rows: int
    left_out: dict[str, int]
    """Number of rated tasks that yield no row, by reason. If DPO pairs are built from individually rated
    answers, pairs of tasks are counted instead."""


def from_review(
    review: Review,
    tasks: Sequence[ReviewTask],
    ratings: Sequence[Rating],
    output: Path,
    *,
    format: Literal["dpo", "kto"],
    agreement: float = 0.6,
) -> FromReview:
    """Convert a review's ratings to training rows and write them to a file. `agreement` is the minimum
    fraction of a pair's raters who must choose the same answer for the pair to yield a row. A tie counts as
    half a vote. Raises `DataError` if no rating yields a row."""
    known = {task.id: task for task in tasks}
    held = [rating for rating in valid_ratings(ratings) if rating.task in known]
    left_out: Counter[str] = Counter()
    if review.kind == "pairs":
        made = _pairs(known, held, format, agreement, left_out)
    else:
        made = _singles(review, known, held, format, left_out)
    lines = [canonical_line(row) for row in made]
    if not lines:
        why = ", ".join(f"{reason}: {n}" for reason, n in left_out.items()) or "there are no ratings yet"
        raise DataError(f"no rating in review {review.id} yields a {format} row ({why})")
    with whole(output) as draft, draft.open("wb") as file:
        file.writelines(line + b"\n" for line in lines)
    return FromReview(
        review=review.id, output=str(output), format=format, rows=len(lines), left_out=dict(left_out)
    )


def _pairs(
    tasks: Mapping[str, ReviewTask],
    held: Sequence[Rating],
    format: str,
    agreement: float,
    left_out: Counter[str],
) -> Iterator[PreferenceExample | UnpairedExample]:
    by_task: defaultdict[str, list[Rating]] = defaultdict(list)
    for rating in held:
        by_task[rating.task].append(rating)
    labels: dict[tuple[str, str], tuple[Item, Answer, set[bool]]] = {}

    def label(task: ReviewTask, place: int, good: bool) -> None:
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
    review: Review,
    tasks: Mapping[str, ReviewTask],
    held: Sequence[Rating],
    format: str,
    left_out: Counter[str],
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
                    left_out["rated neither good nor bad"] += 1
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
    preferred, rejected = _reply(better), _reply(worse)
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
            left_out["rated better than one answer and worse than another"] += 1
        elif not (reply := _reply(answer)):
            left_out["no answer"] += 1
        else:
            yield UnpairedExample(
                prompt=_conversation(item),
                completion=reply,
                label=labels.pop(),
                tools=list(item.tools) or None,
            )


def _conversation(item: Item) -> list[ChatMessage]:
    return [_message(message) for message in item.prompt]


def _reply(answer: Answer) -> list[ChatMessage]:
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


# Review in a spreadsheet: export the tasks to a CSV file, as blind as the page, and import the ratings.


_WORDS = {
    "left": ("left", "l", "a", "1"),
    "right": ("right", "r", "b", "2"),
    "tie": ("tie", "equal", "t", "3", "="),
    "both bad": ("both bad", "bad", "4"),
}
_CHOICES = {word: choice for choice, words in _WORDS.items() for word in words}
_CHOICE = f"choice ({', '.join(_WORDS)})"
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Imported(Record, frozen=True, kw_only=True):
    """The result of `review --import`."""

    review: str
    rater: str
    ratings: int
    unchanged: int
    """Number of rows whose rating was already stored."""
    empty: int
    """Number of rows without a rating."""


def export(session: ReviewSession, rater: str, path: Path) -> int:
    """Write the rater's tasks and existing ratings to a CSV file, in the rater's order, and return the number
    of tasks. Text that a spreadsheet would treat as a formula is prefixed with an apostrophe. Raises
    `UsageError` if the file is a spreadsheet with ratings that were not imported."""
    rater, review = rater_named(rater), session.review
    if _holds_ratings(session, path, rater):
        raise UsageError(
            f"{path} has ratings that were not imported",
            fix=f"--import {path}, or choose another file",
        )
    reply = {rating.task: rating for rating in session.of(rater)}
    shown = ["left", "right"] if review.kind == "pairs" else ["answer"]
    with whole(path) as draft, draft.open("w", encoding="utf-8-sig", newline="") as file:
        out = csv.writer(file)
        out.writerow(["task", "prompt", *shown, *_rated(session)])
        for task, turned in session.order(rater):
            answers = task.answers[::-1] if turned else task.answers
            rating = reply.get(task.id)
            row = [_key(review.id, task, turned), _sheet_conversation(task.item.prompt), *map(_text, answers)]
            if review.kind == "pairs":
                row.append((rating.choice or "") if rating else "")
            else:
                row += [str(rating.scores[c.name]) if rating else "" for c in review.rubric.criteria]
            out.writerow([_inert(cell) for cell in (*row, rating.note if rating else "")])
    return len(session.order(rater))


def _holds_ratings(session: ReviewSession, path: Path, rater: str) -> bool:
    try:
        _rows(path, ["task", *_rated(session)])
    except DataError:
        return False  # it does not exist, or is no such spreadsheet
    try:
        return take(session, path, rater, lambda *_: None).ratings > 0
    except DataError:
        return True


def take(session: ReviewSession, path: Path, rater: str, keep: Callable[..., None]) -> Imported:
    """Import the ratings in a completed spreadsheet. Passes all new and changed ratings to `keep` in one
    call. If any row is invalid, stores nothing and raises a `DataError` that names the row."""
    rater = rater_named(rater)
    rows = _rows(path, ["task", *_rated(session)])
    places = {
        _key(session.review.id, task, turned): (task, turned)
        for task in session.tasks
        for turned in (False, True)
    }
    reply = {rating.task: rating for rating in session.of(rater)}
    new: list[Rating] = []
    seen: dict[str, int] = {}
    empty = unchanged = 0
    for number, row in enumerate(rows, start=2):
        place = f"{path}: row {number}"
        key = row.get("task", "").strip()
        if not any(value.strip() for value in row.values()):
            continue  # spreadsheets add empty rows
        if key not in places:
            raise DataError(f"{place}: review {session.review.id} has no task {key!r}")
        action = _action_of(session, row, place)
        if action is None:
            empty += 1
            continue
        task, turned = places[key]
        if task.id in seen:
            raise DataError(f"{place}: row {seen[task.id]} rates the same task", fix="remove one of the rows")
        seen[task.id] = number
        names = task.contenders[::-1] if turned else task.contenders
        try:
            rating = session.rating(replace(action, task=task.id), rater, names)
        except UsageError as error:
            raise DataError(f"{place}: {error.message}") from error
        if (old := reply.get(task.id)) is not None and _same(old, rating):
            unchanged += 1
        else:
            new.append(rating)
    keep(*new)
    return Imported(review=session.review.id, rater=rater, ratings=len(new), unchanged=unchanged, empty=empty)


def _rated(session: ReviewSession) -> list[str]:
    """Return the columns that the rater fills in."""
    pairs = session.review.kind == "pairs"
    return [*([_CHOICE] if pairs else map(_title, session.review.rubric.criteria)), "note"]


def _title(criterion: Criterion) -> str:
    return f"{criterion.name} (1 to {criterion.points})"


def _rows(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """Read a completed spreadsheet. Raises `DataError` if it lacks any of the columns."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8", fix="save the spreadsheet in the format CSV UTF-8") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    csv.field_size_limit(1 << 30)  # of this process, which reads nothing else by it; an answer may be long
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="", restkey="more")
    if missing := [name for name in columns if name not in (reader.fieldnames or ())]:
        raise DataError(
            f"{path} is not a spreadsheet of this review: it has no {missing[0]!r} column",
            fix="keep all columns of the exported spreadsheet and their names",
        )
    return [{k: v for k, v in row.items() if isinstance(v, str)} for row in reader]


def _action_of(session: ReviewSession, row: Mapping[str, str], place: str) -> ReviewAction | None:
    """Return the rating action of a spreadsheet row, or `None` if the row has no rating."""
    note = row.get("note", "")
    if note.startswith("'") and _inert(note[1:]) == note:
        note = note[1:]  # as `export` wrote it
    if session.review.kind == "pairs":
        choice = row[_CHOICE].strip().casefold()
        if not choice:
            return None
        if choice not in _CHOICES:
            raise DataError(f"{place}: {choice[:40]!r} is not left, right, tie or both bad")
        return ReviewAction(action="rate", choice=_CHOICES[choice], note=note)  # pyright: ignore[reportArgumentType]
    given = {c.name: row[_title(c)].strip() for c in session.review.rubric.criteria}
    if not any(given.values()):
        return None
    try:
        scores = {name: int(value) for name, value in given.items()}
    except ValueError as error:
        raise DataError(f"{place}: {', '.join(given)} must be integers") from error
    return ReviewAction(action="rate", scores=scores, note=note)


def _same(old: Rating, new: Rating) -> bool:
    return (old.choice, old.left, old.scores, old.note) == (new.choice, new.left, new.scores, new.note)


def _key(review: str, task: ReviewTask, turned: bool) -> str:
    """Return a key that identifies the task and its sides without revealing the contenders."""
    return hashlib.sha256(f"{review}\0{task.id}\0{turned}".encode()).hexdigest()[:12]


def _sheet_conversation(prompt: Sequence[Message]) -> str:
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"[{m.role}] {message_text(m.content, m.tool_calls)}" for m in prompt)


def _text(answer: Answer) -> str:
    return message_text(answer.text, answer.tool_calls) or NO_ANSWER


def _inert(cell: str) -> str:
    return f"'{cell}" if cell.lstrip("'").startswith(_FORMULA) else cell
