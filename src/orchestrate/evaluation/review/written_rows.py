"""Let people write and correct training rows. Each row has one or two writers. If the texts of two writers
differ, another person chooses or writes the final text."""

from __future__ import annotations

import hashlib
import random
import threading
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from msgspec.structs import replace

from orchestrate.core.files import write_whole
from orchestrate.data.dataset_reader import sniff
from orchestrate.data.dialects import canonical_line
from orchestrate.data.files.sources import source
from orchestrate.data.operations.score import is_labelled
from orchestrate.data.rows import ChatExample, ChatMessage, CompletionExample, Example, encode
from orchestrate.data.shapes.row_reader import RowReading, parse, reading
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import statistics
from orchestrate.evaluation.held_out import message
from orchestrate.evaluation.metrics.text import rouge_l
from orchestrate.evaluation.review.session import LONGEST_NOTE, Ratings, rater_named
from orchestrate.text import count
from orchestrate.types import Rating, Record, Review, Score

_MISSING = "-"
"""A placeholder for a missing answer while the row is read."""
_SHOWN = 100
"""Maximum number of disagreements in a result."""
_CHAT = "openai-chat"


class RowToWrite(Record, frozen=True, kw_only=True, omit_defaults=True):
    """A row that people write or correct."""

    id: str
    row: int
    """The row's number in the file, from 1."""
    example: ChatExample
    is_open: bool = False
    """True if the row had no answer. Its last message is then a placeholder."""

    @property
    def question_at(self) -> int:
        """Index of the last user message before the answer."""
        return max(n for n, m in enumerate(self.example.messages[:-1]) if m.role == "user")

    @property
    def question(self) -> str:
        return self.example.messages[self.question_at].text

    @property
    def answer(self) -> str:
        return "" if self.is_open else self.example.messages[-1].text

    def written(self, question: str, answer: str) -> ChatExample:
        """Return the row with this question and this answer."""
        messages = list(self.example.messages)
        if question != self.question:
            messages[self.question_at] = replace(messages[self.question_at], content=question)
        if answer != self.answer:
            messages[-1] = replace(messages[-1], content=answer, loss_spans=None)
        return replace(self.example, messages=messages)


class RowsToWrite(msgspec.Struct, frozen=True):
    rows: list[RowToWrite]
    left_out: dict[str, int]
    """Number of rows that can't be edited in the browser, by reason."""
    unread: tuple[str, ...]
    """Unused columns of the input file. The written rows don't include them."""


def rows_of(path: str, review: str) -> RowsToWrite:
    """Read chat rows, prompt/completion rows, and rows whose prompt or messages have no answer yet. Raises
    `DataError` for a row that cannot be read."""
    found = source(path)
    with Path(found.lines).open("rb") as file:
        texts = [text for line in file if (text := line.strip().removeprefix(b"\xef\xbb\xbf"))]
    if not texts:
        raise DataError(f"{path} has no rows")
    lines = [_with_answer(text) for text in texts]
    read = reading(sniff(path, iter([line for line, _ in lines]), ()).name)
    rows: list[RowToWrite] = []
    left_out: Counter[str] = Counter()
    unread: set[str] = set()
    for number, (line, is_open) in enumerate(lines, start=1):
        row = read.read(line)
        if row.example is None:
            why = "; ".join(problem.message for problem in row.problems)
            raise DataError(f"{path}: row {number}: {why}", problems=row.problems, fix="correct the row")
        unread |= row.unread.keys()
        example = _chat(row.example)
        if isinstance(example, str):
            left_out[example] += 1
            continue
        key = hashlib.sha256(f"{review}\0{number}".encode()).hexdigest()[:12]
        rows.append(RowToWrite(id=key, row=number, example=example, is_open=is_open))
    if not rows:
        reasons = ", ".join(f"{why}: {n}" for why, n in left_out.items())
        raise DataError(f"no row of {path} can be edited in the browser ({reasons})")
    return RowsToWrite(rows, dict(left_out), tuple(sorted(unread)))


def _with_answer(line: bytes) -> tuple[bytes, bool]:
    """Return the line, with a placeholder if it has no answer, and whether it had none."""
    value, _ = parse(line)
    if not isinstance(value, dict):
        return line, False
    row = cast("dict[str, Any]", value)
    messages = row.get("messages")
    if isinstance(messages, list) and messages:
        last: Any = cast("list[Any]", messages)[-1]
        if isinstance(last, dict) and cast("dict[str, Any]", last).get("role") == "user":
            placeholder = {"role": "assistant", "content": _MISSING}
            return encode({**row, "messages": [*messages, placeholder]}), True
    if isinstance(row.get("prompt"), str) and not row.get("completion"):
        return encode({**row, "completion": _MISSING}), True
    return line, False


def _chat(example: Example) -> ChatExample | str:
    """Return the row as a chat, or the reason why it can't be edited in the browser."""
    if isinstance(example, CompletionExample):
        messages = [
            ChatMessage(role="user", content=example.prompt),
            ChatMessage(role="assistant", content=example.completion),
        ]
        return ChatExample(messages=messages)
    if not isinstance(example, ChatExample):
        return "rows that are neither chats nor prompt/completion pairs"
    *before, last = example.messages
    if last.role != "assistant" or not any(m.role == "user" for m in before):
        return "rows that do not end with a question and its answer"
    if last.tool_calls or last.reasoning:
        return "answers with tool calls or reasoning"
    if any(isinstance(m.content, list) for m in example.messages):
        return "messages with content parts, such as images"
    return example


def write(rows: Iterable[RowToWrite], path: Path) -> None:
    write_whole(path, b"".join(row.to_json() + b"\n" for row in rows), private=True)


def read(path: Path) -> list[RowToWrite]:
    """Read the rows. Raises `DataError` if the file is missing or damaged."""
    try:
        return [RowToWrite.from_json(line) for line in path.read_bytes().splitlines()]
    except OSError as error:
        raise DataError(f"could not read the rows to edit: {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise DataError(f"{path} is damaged: {error}") from error


# Who writes what.


Assigned = dict[str, list[str]]
"""Writers of each row."""


def assign(rows: Sequence[RowToWrite], writers: Sequence[str], overlap: float, seed: int) -> Assigned:
    """Assign each row to one writer, or to two for a random fraction `overlap` of the rows. All writers get
    about the same number of rows."""
    draw = random.Random(seed)  # noqa: S311  not for secrets
    twice = set(draw.sample(range(len(rows)), round(overlap * len(rows)) if len(writers) > 1 else 0))
    load = dict.fromkeys(draw.sample(list(writers), len(writers)), 0)
    found: Assigned = {}
    for n in draw.sample(range(len(rows)), len(rows)):
        found[rows[n].id] = sorted(load, key=load.__getitem__)[: 2 if n in twice else 1]
        for who in found[rows[n].id]:
            load[who] += 1
    return found


def reassign(assigned: Assigned, current: WrittenSoFar, writers: Sequence[str]) -> Assigned:
    """Reassign the open rows of people who are not in `writers`. Each row goes to the writer with the fewest
    open rows. Written rows stay with their writers."""
    found: Assigned = {}
    load = dict.fromkeys(writers, 0)
    for task, names in assigned.items():
        found[task] = [who for who in names if who in load or who in current.texts.get(task, {})]
        for who in found[task]:
            if who in load and who not in current.texts.get(task, {}):
                load[who] += 1
    for task, names in assigned.items():
        for _ in range(len(names) - len(found[task])):
            free = [who for who in load if who not in found[task]]
            if free:
                least = min(free, key=load.__getitem__)
                found[task].append(least)
                load[least] += 1
    return found


# The texts written so far.


@dataclass
class WrittenSoFar:
    """Each writer's latest text for each row, excluding texts that were undone."""

    texts: dict[str, dict[str, Rating]] = field(default_factory=dict[str, dict[str, Rating]])
    """Texts as `{row: {writer: text}}`."""
    settled: dict[str, Rating] = field(default_factory=dict[str, Rating])
    """Final text of each row whose disagreement was settled. If a writer of the row later changes their text,
    the disagreement is reopened."""
    revisions: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    """Number of changes, as `{(person, row): changes}`."""
    changes: dict[str, list[Rating]] = field(default_factory=dict[str, list[Rating]])
    """Changes that each person can undo, oldest first."""

    def differing(self) -> list[str]:
        """List the rows whose two texts differ."""
        return [
            task for task, texts in self.texts.items() if len({_words(one) for one in texts.values()}) > 1
        ]


def current_texts(ratings: Iterable[Rating]) -> WrittenSoFar:
    found, changes = WrittenSoFar(), defaultdict[str, list[tuple[int, Rating]]](list)
    written: Counter[str] = Counter()
    settlers: set[str] = set()
    for n, one in enumerate(ratings, start=1):
        found.revisions[one.rater, one.task] += 1
        made = changes[one.rater]
        if one.left:
            settlers.add(one.rater)
        if one.rater not in settlers:
            written[one.task] = n
        if not one.withdrawn:
            made.append((n, one))
        elif mine := [known for known in made if known[1].task == one.task]:
            made.remove(mine[-1])
    for who, made in changes.items():
        found.changes[who] = [one for _, one in made]
        for n, one in made:
            if who not in settlers:
                found.texts.setdefault(one.task, {})[who] = one
            elif n > written[one.task]:
                found.settled[one.task] = one
    return found


def _words(one: Rating) -> tuple[str, str]:
    return " ".join((one.question or "").split()), " ".join((one.answer or "").split())


class RowDraft(msgspec.Struct, omit_defaults=True):
    """A row's text as the writing page sends it."""

    action: Literal["show", "save", "undo"]
    task: str = ""
    at: int | None = None
    """Index of the row to show, in the writer's order from 0. By default, the first open row."""
    question: str = ""
    answer: str = ""
    revision: int = 0
    """Version of the row that was displayed on the page."""
    note: str = ""
    seconds: float | None = None


class WritingSession:
    """A thread-safe session in which people write rows."""

    def __init__(
        self, review: Review, rows: Sequence[RowToWrite], assigned: Assigned, kept: Ratings, settler: str
    ) -> None:
        self.review, self.assigned, self._kept = review, assigned, kept
        self.settler = rater_named(settler)
        if self.settler in self.writers:
            raise UsageError(
                f"{settler} is one of the writers and cannot settle their disagreements",
                fix="choose another name with --settler",
            )
        self.rows = {row.id: row for row in rows}
        self._reading: RowReading = reading(_CHAT)
        self._lock = threading.Lock()

    @property
    def writers(self) -> list[str]:
        return list(dict.fromkeys(who for names in self.assigned.values() for who in names))

    def current(self) -> WrittenSoFar:
        return current_texts(self._kept.ratings(self.review.id))

    def done(self) -> dict[str, int]:
        """Return the number of written rows by writer."""
        current = self.current()
        return {who: sum(who in texts for texts in current.texts.values()) for who in self.writers}

    def order(self, who: str, current: WrittenSoFar) -> list[RowToWrite]:
        """Return the rows to show to a person, in file order. A writer gets the assigned rows. The person who
        settles disagreements gets all rows whose two texts differ."""
        tasks = set(current.differing()) if who == self.settler else None
        return [
            row
            for key, row in self.rows.items()
            if (key in tasks if tasks is not None else who in self.assigned[key])
        ]

    def act(self, draft: RowDraft, holder: str = "") -> dict[str, Any]:
        """Perform an action and return the page's next contents. Raises `UsageError` if the action is
        not possible, and `DataError` if the text is not valid for training."""
        at = draft.at
        with self._lock:
            if draft.action == "save":
                self._save(draft, holder)
            elif draft.action == "undo":
                at = self._undo(holder)
        return self.shown(holder, at)

    def _save(self, draft: RowDraft, who: str) -> None:
        current = self.current()
        row = next((row for row in self.order(who, current) if row.id == draft.task), None)
        if row is None:
            raise UsageError("This row is not assigned to you. Reload the page.")
        before = _before(current, who, row.id, settles=who == self.settler)
        if before is not None and (before.question, before.answer) == (draft.question, draft.answer):
            return  # sent twice
        if draft.revision != current.revisions[who, row.id]:
            raise UsageError(
                "You saved this row in another window. Your text here is not lost: reload the page to see "
                "both versions."
            )
        self._must_be_good(row, draft)
        rating = Rating(
            review=self.review.id,
            task=row.id,
            rater=who,
            at=datetime.now(UTC),
            question=draft.question,
            answer=draft.answer,
            note=draft.note,
            seconds=draft.seconds,
        )
        if who == self.settler:
            left, right = self._pair(row.id, current)
            rating = replace(rating, left=left.rater, right=right.rater)
        self._kept.rate(rating)

    def _must_be_good(self, row: RowToWrite, draft: RowDraft) -> None:
        for name, text in (("question", draft.question), ("answer", draft.answer)):
            if not text.strip():
                raise UsageError(f"The {name} is empty.")
        if len(draft.note) > LONGEST_NOTE:
            raise UsageError(f"A note must have at most {LONGEST_NOTE:,} characters.")
        found = self._reading.read(canonical_line(row.written(draft.question, draft.answer)))
        if found.example is None:
            raise DataError("; ".join(problem.message for problem in found.problems), problems=found.problems)

    def _undo(self, who: str) -> int:
        current = self.current()
        mine = [row.id for row in self.order(who, current)]
        made = [one for one in current.changes.get(who, []) if one.task in mine]
        if not made:
            raise UsageError("There is nothing to undo.")
        self._kept.rate(replace(made[-1], withdrawn=True, at=datetime.now(UTC)))
        return mine.index(made[-1].task)

    def _pair(self, task: str, current: WrittenSoFar) -> list[Rating]:
        """Return the first two texts of a row, in an order that does not reveal their writers."""
        texts = [current.texts[task][who] for who in sorted(current.texts[task])][:2]
        return random.Random(f"{self.review.seed}:{task}").sample(texts, 2)  # noqa: S311  not for secrets

    def shown(self, who: str, at: int | None = None) -> dict[str, Any]:
        """Return the page's contents. Writers don't see each other's texts, and the person who settles
        disagreements doesn't see names."""
        current, settles = self.current(), who == self.settler
        order = self.order(who, current)
        done = [_before(current, who, row.id, settles=settles) is not None for row in order]
        page = {
            "who": who,
            "settles": settles,
            "guide": self.review.rubric.guide,
            "total": len(order),
            "done": sum(done),
            "team": self.progress(current),
        }
        if not order:
            return {**page, "task": None}
        if at is None:
            at = done.index(False) if False in done else len(order) - 1
        if not 0 <= at < len(order):
            raise UsageError(f"Row {at + 1} does not exist. You have {count(len(order), 'row')}.")
        row = order[at]
        before = _before(current, who, row.id, settles=settles)
        pair = self._pair(row.id, current) if settles else []
        return {
            **page,
            "at": at,
            "task": row.id,
            "row": row.row,
            "before": [message(m).to_dict() for m in row.example.messages[: row.question_at]],
            "after": [message(m).to_dict() for m in row.example.messages[row.question_at + 1 : -1]],
            "tools": row.example.tools or [],
            "original": {"question": row.question, "answer": row.answer},
            "question": row.question if before is None else before.question,
            # The person who settles disagreements starts without a preselected answer.
            "answer": before.answer if before is not None else "" if settles else row.answer,
            "pair": [{"question": one.question, "answer": one.answer} for one in pair],
            "written": before is not None,
            "note": before.note if before is not None else "",
            "revision": current.revisions[who, row.id],
        }

    def progress(self, current: WrittenSoFar) -> list[dict[str, Any]]:
        """Return the numbers of written and assigned rows for each writer."""
        counts: dict[str, list[int]] = {who: [0, 0] for who in self.writers}
        for task, names in self.assigned.items():
            for who in names:
                counts[who][0] += who in current.texts.get(task, {})
                counts[who][1] += 1
        return [{"who": who, "done": done, "total": total} for who, (done, total) in counts.items()]


def _before(current: WrittenSoFar, who: str, task: str, *, settles: bool) -> Rating | None:
    if settles:
        return current.settled.get(task)
    return current.texts.get(task, {}).get(who)


# The results of a writing review.


class Disagreement(Record, frozen=True, kw_only=True):
    """Two differing texts of the same row."""

    row: int
    """The row's number in the file, from 1."""
    writers: tuple[str, str]
    answers: tuple[str, str]
    likeness: float
    """ROUGE-L between the two answers."""
    settled: str | None
    """Chosen answer, or `None` while undecided."""


class WritingResult(Record, frozen=True, kw_only=True):
    """The result of `review --results` for a review in which rows are written."""

    review: Review
    rows: int
    written: int
    """Number of rows written by at least one writer."""
    writers: dict[str, tuple[int, int]]
    """Row counts as `{writer: (rows written, rows assigned)}`."""
    doubly: int
    """Number of rows that two people wrote."""
    same: Score | None
    """Share of rows with two writers in which both wrote the same question and the same answer, ignoring
    leading and trailing whitespace."""
    likeness: Score | None
    """Mean ROUGE-L between the two answers, over all rows with two writers."""
    alpha: Score | None
    """Krippendorff's alpha, or `None` if the answers are not labels."""
    to_settle: int
    settled: int
    disagreements: tuple[Disagreement, ...]
    """Disagreements, largest first, at most 100."""


def result(session: WritingSession) -> WritingResult:
    current = session.current()
    both = {task: list(texts.values())[:2] for task, texts in current.texts.items() if len(texts) > 1}
    differing = [task for task in current.differing() if task in session.rows]
    likeness = {task: rouge_l(a.answer or "", b.answer or "") for task, (a, b) in both.items()}
    answers = [(one.answer or "").strip() for texts in current.texts.values() for one in texts.values()]
    units = [[(one.answer or "").strip() for one in texts] for texts in both.values()]
    same = len(both) - len(differing)
    pairs = [_disagreement(session, current, task, likeness[task]) for task in differing]
    return WritingResult(
        review=session.review,
        rows=len(session.rows),
        written=len(current.texts),
        writers={one["who"]: (one["done"], one["total"]) for one in session.progress(current)},
        doubly=len(both),
        same=statistics.wilson(same, len(both)) if both else None,
        likeness=statistics.mean(list(likeness.values()), within=(0.0, 1.0)) if both else None,
        alpha=statistics.alpha(units) if is_labelled(answers) else None,
        to_settle=sum(task not in current.settled for task in differing),
        settled=sum(task in current.settled for task in differing),
        disagreements=tuple(sorted(pairs, key=lambda one: (one.likeness, one.row))[:_SHOWN]),
    )


def _disagreement(session: WritingSession, current: WrittenSoFar, task: str, likeness: float) -> Disagreement:
    first, second = list(current.texts[task].values())[:2]
    decided = current.settled.get(task)
    return Disagreement(
        row=session.rows[task].row,
        writers=(first.rater, second.rater),
        answers=(first.answer or "", second.answer or ""),
        likeness=likeness,
        settled=None if decided is None else decided.answer,
    )


def written(session: WritingSession) -> tuple[list[ChatExample], dict[str, int]]:
    """Return the written or settled rows in file order, and the number of rows left out, by reason."""
    current, left_out = session.current(), Counter[str]()
    differing = set(current.differing())
    rows: list[ChatExample] = []
    for key, row in session.rows.items():
        texts = current.texts.get(key, {})
        decided = current.settled.get(key) if key in differing else next(iter(texts.values()), None)
        if decided is not None:
            rows.append(row.written(decided.question or row.question, decided.answer or ""))
        else:
            left_out["not settled yet" if texts else "not written yet"] += 1
    return rows, dict(left_out)
