"""Reviews for those who rate elsewhere: a CSV sheet to fill in, as blind as the page, and its way back."""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from orchestrate.core.files import whole
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation.items import NO_ANSWER, Answer, in_words
from orchestrate.evaluation.review.desk import Asked, Desk, rater_named
from orchestrate.evaluation.review.tasks import Task
from orchestrate.types import Message, Rating, Record

_WORDS = {
    "left": ("left", "l", "a", "1"),
    "right": ("right", "r", "b", "2"),
    "tie": ("tie", "equal", "t", "3", "="),
    "both bad": ("both bad", "bad", "4"),
}
_CHOICES = {word: choice for choice, words in _WORDS.items() for word in words}
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


class Imported(Record, frozen=True, kw_only=True):
    """The answer of `review --import`."""

    review: str
    rater: str
    ratings: int
    unchanged: int
    """Rows that say what was known already."""
    empty: int
    """Rows without a rating."""


def export(desk: Desk, rater: str, path: Path) -> int:
    """Writes the rater's tasks in the rater's order, with what was rated already. Returns how many there are.
    What a spreadsheet would take for a formula gets an apostrophe in front."""
    rater, review = rater_named(rater), desk.review
    said = {rating.task: rating for rating in desk.of(rater)}
    columns = _columns(desk)
    with whole(path) as draft, draft.open("w", encoding="utf-8-sig", newline="") as file:
        out = csv.writer(file)
        out.writerow(columns)
        for task, turned in desk.order(rater):
            answers = task.answers[::-1] if turned else task.answers
            rating = said.get(task.id)
            row = [_key(review.id, task, turned), _conversation(task.item.prompt), *map(_text, answers)]
            if review.kind == "pairs":
                row.append((rating.choice or "") if rating else "")
            else:
                row += [str(rating.scores[c.name]) if rating else "" for c in review.rubric.criteria]
            out.writerow([_inert(cell) for cell in (*row, rating.note if rating else "")])
    return len(desk.order(rater))


def take(desk: Desk, path: Path, rater: str, keep: Callable[..., None]) -> Imported:
    """Reads a sheet that was filled in, and hands all its ratings to `keep` at once. Raises `DataError` with
    the row that is wrong, and then keeps none."""
    rater = rater_named(rater)
    rows = _rows(path)
    places = {
        _key(desk.review.id, task, turned): (task, turned) for task in desk.tasks for turned in (False, True)
    }
    said = {rating.task: rating for rating in desk.of(rater)}
    new: list[Rating] = []
    empty = unchanged = 0
    for number, row in enumerate(rows, start=2):
        place = f"{path}: row {number}"
        key = row.get("task", "").strip()
        if key not in places:
            raise DataError(f"{place}: no task of review {desk.review.id} is called {key!r}")
        asked = _asked(desk, row, place)
        if asked is None:
            empty += 1
            continue
        task, turned = places[key]
        names = task.contenders[::-1] if turned else task.contenders
        try:
            rating = desk.rating(replace(asked, task=task.id), rater, names)
        except UsageError as error:
            raise DataError(f"{place}: {error.message}") from error
        if (old := said.get(task.id)) is not None and _same(old, rating):
            unchanged += 1
        else:
            new.append(rating)
    keep(*new)
    return Imported(review=desk.review.id, rater=rater, ratings=len(new), unchanged=unchanged, empty=empty)


def _columns(desk: Desk) -> list[str]:
    if desk.review.kind == "pairs":
        return ["task", "prompt", "left", "right", "choice (left, right, tie, both bad)", "note"]
    named = [f"{c.name} (1 to {c.points})" for c in desk.review.rubric.criteria]
    return ["task", "prompt", "answer", *named, "note"]


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not in UTF-8", fix="save it as CSV UTF-8") from error
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    csv.field_size_limit(1 << 30)  # of this process, which reads nothing else by it; an answer may be long
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, restval="", restkey="more")
    if "task" not in (reader.fieldnames or ()):
        raise DataError(f"{path} is no sheet of a review: it has no column 'task'")
    return [{(k or "").split(" (")[0]: v for k, v in row.items() if isinstance(v, str)} for row in reader]


def _asked(desk: Desk, row: Mapping[str, str], place: str) -> Asked | None:
    """`None` for a row that says nothing."""
    note = row.get("note", "")
    if note.startswith("'") and note[1:].startswith(_FORMULA):
        note = note[1:]  # as `export` wrote it
    if desk.review.kind == "pairs":
        word = row.get("choice", "").strip().casefold()
        if not word:
            return None
        if word not in _CHOICES:
            raise DataError(f"{place}: {word[:40]!r} is not left, right, tie or both bad")
        return Asked(action="rate", choice=_CHOICES[word], note=note)  # pyright: ignore[reportArgumentType]
    given = {c.name: row.get(c.name, "").strip() for c in desk.review.rubric.criteria}
    if not any(given.values()):
        return None
    try:
        scores = {name: int(value) for name, value in given.items()}
    except ValueError as error:
        raise DataError(f"{place}: {', '.join(given)} are whole numbers") from error
    return Asked(action="rate", scores=scores, note=note)


def _same(old: Rating, new: Rating) -> bool:
    return (old.choice, old.left, old.scores, old.note) == (new.choice, new.left, new.scores, new.note)


def _key(review: str, task: Task, turned: bool) -> str:
    """Tells a task and its sides, and nothing of the contenders."""
    return hashlib.sha256(f"{review}\0{task.id}\0{turned}".encode()).hexdigest()[:12]


def _conversation(prompt: Sequence[Message]) -> str:
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"[{m.role}] {in_words(m.content, m.tool_calls)}" for m in prompt)


def _text(answer: Answer) -> str:
    return in_words(answer.text, answer.tool_calls) or NO_ANSWER


def _inert(cell: str) -> str:
    return f"'{cell}" if cell.startswith(_FORMULA) else cell
