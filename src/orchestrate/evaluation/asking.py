"""Asking: questions to a model, several at a time, each answer on the disk before the next thing happens.

Answers are kept by what answered and by the question, so the same question is never paid twice: not after a
kill, not in a second evaluation, not for a second contender that is the same model. `AnswerLog` is the
file; a request that was under way when its process was killed counts with its worst price.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from orchestrate.data.files.journal import Journal
from orchestrate.errors import InvalidRequest, OrchestrateError, OverBudget, UsageError
from orchestrate.evaluation.items import Answer
from orchestrate.evaluation.purse import Purse
from orchestrate.files import locked, private_folder
from orchestrate.types import Message, Record

Price = Callable[[int, int], Decimal]
"""US dollars for (prompt tokens, completion tokens)."""
HOPELESS = 3
"""Questions refused, and not one answered, after which it is not the questions."""


class Stopped(OrchestrateError):
    """Others failed meanwhile."""


class Question(Record, frozen=True, kw_only=True):
    """What is sent. `sample` tells several answers to the same question apart."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    sample: int = 0

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]

    @property
    def most_tokens(self) -> int:
        """A text never has more tokens than bytes; a few more mark the messages."""
        return sum(len(m.content.encode()) + 16 for m in self.messages) + len(msgspec.json.encode(self.tools))


@dataclass(frozen=True)
class Respondent:
    """A model that can be asked. Equal `identity`, equal answers."""

    name: str
    identity: Mapping[str, Any]
    ask: Callable[[Sequence[Question]], list[Answer]]
    """One answer each, in order. Called from `parallel` threads with at most `batch` questions."""
    batch: int = 1
    parallel: int = 1
    max_tokens: int = 512
    price: Price | None = None
    place: str = ""
    """Where it answers; that of all models on this machine is empty."""

    @property
    def key(self) -> str:
        return hashlib.sha256(msgspec.json.encode(dict(self.identity), order="deterministic")).hexdigest()[
            :32
        ]

    def worst_usd(self, questions: Sequence[Question]) -> Decimal:
        if self.price is None:
            return Decimal(0)
        return sum((self.price(q.most_tokens, self.max_tokens) for q in questions), Decimal(0))


class Sent(msgspec.Struct, tag="sent"):
    questions: list[str]
    worst_usd: Decimal


class Got(msgspec.Struct, tag="got"):
    question: str
    answer: Answer


class Unanswered(msgspec.Struct, tag="unanswered"):
    """The host said that it wrote nothing."""

    questions: list[str]


class Renewed(msgspec.Struct, tag="renewed"):
    """What was answered before this line is asked again."""

    questions: list[str]


class AnswerLog:
    """All that one respondent was ever asked."""

    def __init__(self, path: Path) -> None:
        self._journal: Journal[Entry] = Journal(path, Entry)
        self.answers: dict[str, Answer] = {}
        self._open: dict[str, Decimal] = {}
        for entry in self._journal.entries:
            self._add(entry)

    def unknown_usd(self, questions: Iterable[str]) -> Decimal:
        """The worst that requests for these questions cost whose answer nobody knows."""
        return sum((self._open.get(question, Decimal(0)) for question in questions), Decimal(0))

    def append(self, entry: Entry) -> None:
        self._journal.append(entry)
        self._add(entry)

    def _add(self, entry: Entry) -> None:
        match entry:
            case Sent(questions, worst):
                for question in questions:
                    self._open[question] = self._open.get(question, Decimal(0)) + worst / len(questions)
            case Got(question, answer):
                self.answers[question] = answer
                self._open.pop(question, None)
            case Unanswered(questions):
                for question in questions:
                    self._open.pop(question, None)
            case Renewed(questions):
                for question in questions:
                    self.answers.pop(question, None)


Entry = Sent | Got | Unanswered | Renewed


Progress = Callable[[str, int, int, Decimal], None]
"""Called with (who is asked, answers, questions, US dollars so far)."""


@dataclass
class Asking:
    """One evaluation's questions. `folder` holds the logs, one for each respondent."""

    folder: Path
    purse: Purse = field(default_factory=Purse)
    progress: Progress | None = None
    fresh: bool = False
    """Ask again, once, what was answered before."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Nothing more is sent; what is under way is still taken."""
    telling: threading.Lock = field(default_factory=threading.Lock)
    _renewed: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    def kept(self, respondent: Respondent, questions: Sequence[Question]) -> dict[str, Answer]:
        """The answers that are there already, by the question's digest."""
        path = self._path(respondent)
        if not path.exists():
            return {}
        known, wanted = AnswerLog(path).answers, {q.digest for q in questions}
        again = set(self._again(respondent, wanted))
        return {digest: known[digest] for digest in wanted if digest in known and digest not in again}

    def ask(self, respondent: Respondent, questions: Sequence[Question]) -> list[Answer]:
        """One answer for each question, in order; those that are known are not asked for.

        A question that the host refuses has an answer with `error`; it is asked again another time. Raises
        `OverBudget` when the next request could go over the limit, `UsageError` while another command asks
        the same model, and what the respondent raises. All that was answered before is kept.
        """
        if self.purse.limit_usd is not None and respondent.price is None:
            raise UsageError(
                f"the price of {respondent.name} is not known, so --max-cost cannot hold",
                fix="leave --max-cost out and limit the rows with --limit",
            )
        with self._opened(respondent) as log:
            wanted = {q.digest: q for q in questions}
            self._renew(respondent, log, wanted)
            self.purse.count(respondent.key, ((d, log.answers[d]) for d in wanted if d in log.answers))
            self.purse.spend(log.unknown_usd(wanted))
            missing = [q for digest, q in wanted.items() if digest not in log.answers]
            round_ = _Round(self, respondent, log, missing, len(wanted))
            round_.run()
            answers = log.answers | round_.refused
        return [answers[q.digest] for q in questions]

    def ask_each(self, asked: Sequence[tuple[Respondent, Sequence[Question]]]) -> list[list[Answer]]:
        """As `ask` for each, at all places at the same time and at each place one after the other. With a
        limit all are asked in turn, so that each knows what the others cost. Where one fails, no other is
        asked anything more."""
        places: dict[str, list[int]] = {}
        for number, (respondent, _) in enumerate(asked):
            places.setdefault(respondent.place, []).append(number)
        if len(places) < 2 or self.purse.limit_usd is not None:
            return [self.ask(*one) for one in asked]
        answers: list[list[Answer]] = [[] for _ in asked]

        def at(numbers: list[int]) -> None:
            for number in numbers:
                if self.stopped.is_set():
                    raise Stopped(f"{asked[number][0].name} was not asked")
                answers[number] = self.ask(*asked[number])

        with ThreadPoolExecutor(len(places), thread_name_prefix="place") as pool:
            try:
                running = [pool.submit(at, numbers) for numbers in places.values()]
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                self.stopped.set()
        self.stopped.clear()
        errors = [error for future in running if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
            raise error
        return answers

    def _path(self, respondent: Respondent) -> Path:
        return self.folder / f"{respondent.key}.jsonl"

    def _again(self, respondent: Respondent, wanted: Iterable[str]) -> list[str]:
        """Of these questions those whose answers of before do not count."""
        if not self.fresh:
            return []
        return [digest for digest in wanted if (respondent.key, digest) not in self._renewed]

    def _renew(self, respondent: Respondent, log: AnswerLog, wanted: Iterable[str]) -> None:
        """Only what is asked now is asked again: answers to other questions were paid for too."""
        again = self._again(respondent, wanted)
        if known := [digest for digest in again if digest in log.answers]:
            log.append(Renewed(known))
        self._renewed |= {(respondent.key, digest) for digest in again}

    @contextmanager
    def _opened(self, respondent: Respondent) -> Generator[AnswerLog]:
        private_folder(self.folder)
        path = self._path(respondent)
        with locked(path.with_suffix(".lock"), keep=False) as held:
            if not held:
                raise UsageError(
                    f"another command is asking {respondent.name} the same way", fix="wait until it has ended"
                )
            yield AnswerLog(path)


class _Round:
    """Asks one respondent what is missing."""

    def __init__(
        self, asking: Asking, respondent: Respondent, log: AnswerLog, missing: list[Question], total: int
    ) -> None:
        self._asking, self._respondent, self._log = asking, respondent, log
        self._total, self._done = total, total - len(missing)
        if respondent.batch > 1:
            # A batch takes as long as its longest row.
            missing = sorted(missing, key=lambda q: q.most_tokens)
        size = respondent.batch
        self._batches = [missing[i : i + size] for i in range(0, len(missing), size)]
        self._answered = 0
        self.refused: dict[str, Answer] = {}

    def run(self) -> None:
        running: dict[Future[list[Answer]], tuple[list[Question], Decimal]] = {}
        waiting = iter(self._batches)
        pool = ThreadPoolExecutor(self._respondent.parallel, thread_name_prefix="evaluation")
        failed: BaseException | None = None
        put_off: list[Question] | None = None
        try:
            while True:
                while failed is None and len(running) < self._respondent.parallel:
                    if (batch := put_off or next(waiting, None)) is None:
                        break
                    if self._asking.stopped.is_set():
                        failed = Stopped(f"{self._respondent.name} was not asked to the end")
                        break
                    try:
                        worst, put_off = self._send(batch), None
                    except OverBudget as error:
                        # Answers under way are seldom as long as they may be.
                        put_off, failed = batch, None if running else error
                        break
                    except OrchestrateError as error:
                        failed = error
                        break
                    running[pool.submit(self._respondent.ask, batch)] = (batch, worst)
                if not running:
                    break
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    error = self._receive(*running.pop(future), future)
                    failed = failed or error
        except KeyboardInterrupt:
            for future, sent in list(running.items()):  # is paid for; a second interrupt does not wait
                self._receive(*sent, future)
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
        if failed is not None:
            raise failed
        self._require_answers()

    def _send(self, batch: list[Question]) -> Decimal:
        purse, worst = self._asking.purse, self._respondent.worst_usd(batch)
        if not purse.has(worst):
            would = purse.spent_usd + purse.held_usd + worst
            raise OverBudget(
                self._respondent.name,
                would,
                purse.limit_usd or Decimal(0),
                figure="what the evaluation costs when the next answer is as long as it may be",
                then=f"{self._done} of {self._total} answers are there and are kept",
                fix="the same command with a higher --max-cost goes on from here",
            )
        purse.hold(worst)
        if self._respondent.price is not None:
            self._log.append(Sent([q.digest for q in batch], worst))
        return worst

    def _receive(
        self, batch: list[Question], worst: Decimal, future: Future[list[Answer]]
    ) -> OrchestrateError | None:
        purse = self._asking.purse
        purse.hold(-worst)
        try:
            answers = future.result()
        except InvalidRequest as error:
            self._record(Unanswered([q.digest for q in batch]))
            self.refused |= {q.digest: Answer(text="", error=str(error)) for q in batch}
            self._told(len(batch))
            return (
                error
                if len(self.refused) >= HOPELESS and not self._answered and not self._done_before
                else None
            )
        except OrchestrateError as error:
            if getattr(error, "status", None) is not None:
                self._record(Unanswered([q.digest for q in batch]))
            else:
                purse.spend(worst)
            return error
        for question, answer in zip(batch, answers, strict=True):
            if answer.error is not None:
                self.refused[question.digest] = answer
                continue
            priced = self._priced(question, answer)
            self._log.append(Got(question.digest, priced))
            purse.count(self._respondent.key, [(question.digest, priced)])
            self._answered += 1
        self._told(len(batch))
        return None

    @property
    def _done_before(self) -> bool:
        return self._total > sum(map(len, self._batches))

    def _record(self, entry: Unanswered) -> None:
        if self._respondent.price is not None:
            self._log.append(entry)

    def _priced(self, question: Question, answer: Answer) -> Answer:
        price = self._respondent.price
        usd = answer.usd
        if price is not None and usd is None:
            told = answer.prompt_tokens is not None and answer.completion_tokens is not None
            usd = (
                price(answer.prompt_tokens or 0, answer.completion_tokens or 0)
                if told
                else price(question.most_tokens, self._respondent.max_tokens)
            )
        return replace(answer, usd=usd, at=answer.at or datetime.now(UTC))

    def _told(self, count: int) -> None:
        self._done += count
        if self._asking.progress is not None:
            with self._asking.telling:
                spent = self._asking.purse.spent_usd
                self._asking.progress(self._respondent.name, self._done, self._total, spent)

    def _require_answers(self) -> None:
        """Raises when every question was refused: a wrong setting is no wrong answer."""
        if self.refused and not self._answered and not self._done_before:
            first = next(iter(self.refused.values()))
            raise UsageError(f"{self._respondent.name} refused every question: {first.error}")
