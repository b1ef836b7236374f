"""Send questions to a model, several at a time, and write each answer to disk before continuing.

Answers are stored by model and question, so you never pay for the same question twice, even after a crash, in
a second evaluation, or for a second contender with the same model. `Requests` sends the questions for
evaluation, recording, judging and generation. No other code sends requests that are billed per answer.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
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

from orchestrate.core.files import Journal, locked, private_folder
from orchestrate.core.retries import ONCE, Retry
from orchestrate.core.underway import work
from orchestrate.errors import (
    InvalidRequest,
    OrchestrateError,
    OverBudget,
    ProviderError,
    SetupError,
    UsageError,
)
from orchestrate.paid.journal import (
    Answer,
    AnswerLog,
    Got,
    LostRequest,
    NoMoreRequests,
    Renewed,
    RequestBudget,
    Sent,
    Touched,
    Unaccounted,
    Unanswered,
    lock_of,
)
from orchestrate.paid.limits import COMMAND_LIMIT, require_within, reworded
from orchestrate.types import Message, Record, Reply

Price = Callable[[int, int], Decimal]
"""Function from (prompt tokens, completion tokens) to US dollars."""
HOPELESS = 3
"""Number of consecutive unanswered questions after which sending stops, because the cause is then probably
the host rather than the questions."""
TOOLS_TOKENS = 512
"""Tokens added to the estimate for a prompt with tools. Covers the text with which a host describes the tools
to its model."""
TEMPLATE_TOKENS = 512
"""Tokens added to the estimate for every prompt. Covers the text that a host's chat template adds, such as a
default system message. Of the templates in TRL 1.16, that of Cohere's Command R7B adds the most, about 400
tokens."""

EXCESSIVE = (
    "the host reported more tokens than the request allowed, so the maximum price of the answer counts. "
    "Check the host's bill"
)
_log = logging.getLogger(__name__)


class AskingStopped(OrchestrateError):
    """Raised if some questions for a model were not sent because other requests failed."""


class Question(Record, frozen=True, kw_only=True):
    """A question to send. `sample` numbers repeated answers to the same question."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()
    sample: int = 0

    @property
    def digest(self) -> str:
        return hashlib.sha256(msgspec.json.encode(self, order="deterministic")).hexdigest()[:32]

    @property
    def texts(self) -> list[str]:
        """All texts of the prompt, with tools and tool calls as JSON."""
        found = [part for m in self.messages for part in (m.content, m.name or "", m.tool_call_id or "")]
        if self._uses_tools:
            calls = [m.tool_calls for m in self.messages if m.tool_calls]
            found += [msgspec.json.encode(calls).decode(), msgspec.json.encode(self.tools).decode()]
        return found

    @property
    def added_tokens(self) -> int:
        """Upper bound on the number of prompt tokens that the host adds to the texts."""
        return TEMPLATE_TOKENS + 16 * len(self.messages) + TOOLS_TOKENS * self._uses_tools

    @property
    def most_tokens(self) -> int:
        """Upper bound on the number of prompt tokens: one per byte of the texts, plus those that the host
        adds."""
        return sum(len(text.encode()) for text in self.texts) + self.added_tokens

    @property
    def _uses_tools(self) -> bool:
        return bool(self.tools) or any(m.tool_calls for m in self.messages)


@dataclass(frozen=True)
class Respondent:
    """A model that can be queried. Respondents with equal `identity` share their stored answers."""

    name: str
    identity: Mapping[str, Any]
    ask: Callable[[Sequence[Question]], list[Answer]]
    """Function that returns one answer per question, in order. It is called from `parallel` threads, with at
    most `batch` questions per call."""
    batch: int = 1
    parallel: int = 1
    max_tokens: int = 512
    price: Price | None = None
    own: bool = False
    """True if answers are not billed individually, because the machine is your own or rented by the hour."""
    place: str = ""
    """Host of the model. Empty for all models on this machine."""
    backend: str = ""
    """Backend that bills the answers."""
    sandbox: bool = False
    """True if the model belongs to a sandbox, which only simulates prices."""
    retry: Retry = ONCE
    """The policy for retrying failed requests. `ask` itself doesn't retry."""

    @property
    def key(self) -> str:
        return hashlib.sha256(msgspec.json.encode(dict(self.identity), order="deterministic")).hexdigest()[
            :32
        ]

    @property
    def unpriced(self) -> bool:
        """True if answers may be billed and their price is unknown."""
        return self.price is None and not self.own

    def worst_usd(self, questions: Sequence[Question]) -> Decimal:
        if self.price is None:
            return Decimal(0)
        return sum((self.price(q.most_tokens, self.max_tokens) for q in questions), Decimal(0))

    def priced(self, question: Question, answer: Answer) -> Answer:
        """Return the answer with its price and time filled in. Computes the price from the token counts that
        the host reports. Uses the maximum price if there are none, or if they exceed it: every request
        limits its answer, so such counts are wrong. An existing price is kept."""
        usd, into, out, notes = answer.usd, answer.prompt_tokens, answer.completion_tokens, answer.notes
        if self.price is not None and usd is None:
            usd = most = self.worst_usd([question])
            if into is not None and out is not None and into >= 0 and out >= 0:
                usd = min(most, reported := self.price(into, out))
                if reported > most:
                    notes = (*notes, EXCESSIVE)
        return replace(answer, usd=usd, at=answer.at or datetime.now(UTC), notes=notes)


def one_at_a_time(
    ask: Callable[[Sequence[Message], Sequence[dict[str, Any]]], Reply],
) -> Callable[[Sequence[Question]], list[Answer]]:
    """Build a `Respondent.ask` for a model that takes one conversation per request."""

    def answers(questions: Sequence[Question]) -> list[Answer]:
        [question] = questions
        started = time.monotonic()
        reply = ask(question.messages, question.tools)
        return [answer_of(reply, seconds=time.monotonic() - started)]

    return answers


def answer_of(reply: Reply, seconds: float | None = None) -> Answer:
    return Answer(
        text=reply.content,
        tool_calls=reply.tool_calls,
        reasoning=reply.reasoning or "",
        finish_reason=reply.finish_reason,
        prompt_tokens=reply.prompt_tokens,
        completion_tokens=reply.completion_tokens,
        seconds=seconds,
        logprobs=reply.logprobs,
        precision=reply.precision,
        notes=reply.notes,
    )


Batch = list[Question]
Outcome = list[Answer] | BaseException


class Requests:
    """Sends questions to one model, several at a time.

    Each request is checked against the limit and recorded before it is sent. Its maximum price is reserved
    until the actual price is known. If the host did not process the request, nothing is charged against the
    limit. If a question is sent again, both requests count."""

    def __init__(
        self,
        respondent: Respondent,
        log: AnswerLog,
        budget: RequestBudget,
        stopped: threading.Event | None = None,
    ) -> None:
        """Set up the requests. Once `stopped` is set, nothing more is sent, but requests in progress are
        still received."""
        self._respondent, self._log, self._budget = respondent, log, budget
        self._stopped = stopped or threading.Event()
        self._enough = threading.Event()
        self._holds: dict[str, str] = {}
        """Reservations in the ledger for questions in progress, as `{question digest: reservation id}`."""
        self._warned = False
        self._account = None if respondent.sandbox else budget.account
        self._backend = respondent.backend or respondent.name
        if self._account is not None:
            if respondent.unpriced:
                self._account.require_price(self._backend)
            self._account.catch_up(self._backend, log.path, log.sends, found=log.found)
            log.begin()

    def count(self, questions: Iterable[str]) -> None:
        """Add the costs of earlier requests for these questions to the amount spent."""
        self._settle(Decimal(0), questions)

    def run(
        self,
        supply: Callable[[], Batch | None],
        receive: Callable[[Batch, Outcome], BaseException | None],
    ) -> None:
        """Send batches of questions until `supply` returns `None` and all answers have arrived.

        Passes each batch to `receive`, in this thread, with its answers or its error. If `receive` returns an
        error, sends nothing more, waits for the requests in progress, and raises that error. If the next
        batch could exceed a limit, first waits for the requests in progress, because they may cost less than
        reserved. Raises `OverBudget` or `NoMoreRequests` if the batch could still exceed the limit.
        """
        running: dict[Future[list[Answer]], Batch] = {}
        put_off: list[Batch] = []
        failed: BaseException | None = None
        pool = ThreadPoolExecutor(self._respondent.parallel, thread_name_prefix="paid")
        try:
            while True:
                while failed is None and len(running) < self._respondent.parallel:
                    if (batch := put_off.pop() if put_off else supply()) is None:
                        break
                    if self._stopped.is_set():
                        failed = AskingStopped(f"{self._respondent.name} did not answer all questions")
                        break
                    try:
                        self._reserve(batch)
                    except (OverBudget, NoMoreRequests) as error:
                        # Answers in progress rarely reach their maximum length, so this batch may fit the
                        # limit once they arrive.
                        put_off.append(batch)
                        failed = None if running else error
                        break
                    running[pool.submit(self._answers, batch)] = batch
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    batch, error = running.pop(future), future.exception()
                    if isinstance(error, OverBudget | NoMoreRequests):
                        put_off.append(batch)  # it was to be sent again
                        continue
                    wrong = receive(batch, error or future.result())
                    failed = failed or wrong
                if failed is not None:
                    self._enough.set()
        except KeyboardInterrupt:
            self._enough.set()
            with work("interrupted: waiting for the answers to requests already sent"):
                for future, batch in list(running.items()):  # is paid for; a second interrupt does not wait
                    receive(batch, future.exception() or future.result())
            raise
        finally:
            self._enough.set()
            pool.shutdown(wait=False, cancel_futures=True)
        if failed is not None:
            raise failed

    def _reserve(self, batch: Batch) -> None:
        worst = self._respondent.worst_usd(batch)
        digests, hold = [q.digest for q in batch], ""
        self._budget.reserve(self._respondent.name, worst)
        try:
            if self._account is not None and worst:
                hold = self._account.hold(self._backend, worst, self._log.path)
                self._holds[digests[0]] = hold
            self._log.append(Sent(digests, worst, hold))
        except BaseException:
            self._budget.withdraw(worst)
            if self._account is not None and hold:
                self._account.release(hold)  # nothing was sent
            raise

    def _answers(self, batch: Batch) -> list[Answer]:
        """Send a batch in its own thread. The first request is already reserved."""
        before: list[BaseException] = []

        def once() -> list[Answer]:
            if before:
                if self._enough.is_set():
                    raise before[-1]
                self._reserve(batch)
            try:
                return self._send(batch)
            except BaseException as error:
                before.append(error)
                raise

        return self._respondent.retry.calling(once, sleep=self._enough.wait, ended=self._enough.is_set)

    def _send(self, batch: Batch) -> list[Answer]:
        worst, digests = self._respondent.worst_usd(batch), [q.digest for q in batch]
        try:
            try:
                answers = self._respondent.ask(batch)
            except OrchestrateError as error:
                self._log.append((Unanswered if _did_nothing(error) else LostRequest)(digests, str(error)))
                raise
            found: list[Answer] = []
            for question, answer in zip(batch, answers, strict=True):
                if answer.error is not None:
                    self._log.append(Unanswered([question.digest], answer.error))
                else:
                    answer = self._respondent.priced(question, answer)
                    if EXCESSIVE in answer.notes and not self._warned:
                        self._warned = True
                        _log.warning("%s: %s", self._respondent.name, EXCESSIVE)
                    self._log.append(Got(question.digest, answer))
                found.append(answer)
            return found
        finally:
            self._log.lose(digests)  # all that nothing was written down of
            self._settle(worst, digests)
            hold = self._holds.pop(digests[0], None)
            if self._account is not None and hold is not None:
                came_to = self._log.came_to(hold)
                self._account.settle(hold, worst if came_to is None else came_to)

    def _settle(self, held_usd: Decimal, questions: Iterable[str]) -> None:
        costs = self._log.costs(questions, priced=self._respondent.price is not None)
        self._budget.settle(held_usd, self._respondent.key, costs)


def _did_nothing(error: OrchestrateError) -> bool:
    if isinstance(error, ProviderError):
        return error.did_nothing
    return isinstance(error, UsageError | SetupError)


Progress = Callable[[str, int, int, Decimal], None]
"""Function to report progress: (respondent, answers, questions, US dollars so far)."""


@dataclass
class Asking:
    """The requests of one command. `folder` contains one log per respondent."""

    folder: Path
    budget: RequestBudget = field(default_factory=RequestBudget)
    progress: Progress | None = None
    fresh: bool = False
    """True to ignore stored answers. Each question is then sent again, but only once per command."""
    skip_failed: bool = False
    """True to continue after a question that the host fails to answer, as long as it answers others. The
    failed question then counts as refused."""
    stopped: threading.Event = field(default_factory=threading.Event)
    """Set to stop sending requests. Requests in progress are still received."""
    reporting: threading.Lock = field(default_factory=threading.Lock)
    _renewed: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])

    def kept(self, respondent: Respondent, questions: Sequence[Question]) -> dict[str, Answer]:
        """Return the stored answers, keyed by the question's digest."""
        path = self._path(respondent)
        if not path.exists():
            return {}
        known, wanted = AnswerLog(path).answers, {q.digest for q in questions}
        again = set(self._again(respondent, wanted))
        return {digest: known[digest] for digest in wanted if digest in known and digest not in again}

    def lost_before(self, respondent: Respondent, question: Question) -> Decimal:
        """Return the maximum cost, in US dollars, of earlier requests with this question that got no
        answer."""
        path = self._path(respondent)
        if not path.exists():
            return Decimal(0)
        [cost] = AnswerLog(path).costs([question.digest]).values()
        return cost.lost.usd or Decimal(0)

    def ask(self, respondent: Respondent, questions: Sequence[Question]) -> list[Answer]:
        """Return one answer for each question, in order.

        Questions with a stored answer are not sent again. A question that the host refuses gets an answer
        with `error`, and the next call sends it again. Raises `OverBudget` if the next request could exceed
        the limit, `UsageError` if another command is querying the same model, and the errors of
        `respondent.ask`. All answers received so far are stored.
        """
        require_price(respondent.name, self.budget.limit_usd, respondent.price)
        with self._opened(respondent) as log:
            wanted = {q.digest: q for q in questions}
            self._renew(respondent, log, wanted)
            requests = Requests(respondent, log, self.budget, self.stopped)
            requests.count(wanted)
            self._touch(respondent, wanted)
            missing = [q for digest, q in wanted.items() if digest not in log.answers]
            round_ = _Round(self, respondent, missing, len(wanted))
            try:
                requests.run(round_.supply, round_.receive)
                round_.require_answers()
            except OverBudget as error:
                same = f"run the same command again{_UNFRESH if self.fresh else ''}"
                own = error.what == COMMAND_LIMIT
                what = (
                    "the total cost of all answers if the next one"
                    if own
                    else "the cost of the next answer if it"
                )
                over = reworded(
                    error,
                    figure=f"{what} reaches its length limit",
                    then=round_.state(),
                    fix=f"to continue from here, {same}, with a higher --max-cost"
                    if own
                    else f"to continue from here, raise the budget (budget_usd) and {same}",
                )
                add_lost_cost(over, self.budget.lost())
                raise over from error
            except OrchestrateError as error:
                add_lost_cost(error, self.budget.lost())
                if isinstance(error, ProviderError) and not error.did_nothing and error.fix is None:
                    error.fix = (
                        "run the same command again to continue from here. To skip such "
                        "questions: --skip-failed"
                    )
                raise
            answers = log.answers | round_.refused
        return [answers[q.digest] for q in questions]

    def lost(self, respondent: Respondent, questions: Sequence[Question]) -> Unaccounted:
        """Return the number of requests for these questions that got no answer, and their maximum cost."""
        return self.budget.lost(respondent.key, [q.digest for q in questions])

    def ask_each(self, asked: Sequence[tuple[Respondent, Sequence[Question]]]) -> list[list[Answer]]:
        """Query several models as `ask` does, and return each model's answers.

        Models on different hosts are queried in parallel, and models on the same host one after another. If
        there is a cost limit, all models are queried one after another, so the cost of earlier ones counts
        toward it. If one fails, no more questions are sent."""
        places: dict[str, list[int]] = {}
        for number, (respondent, _) in enumerate(asked):
            places.setdefault(respondent.place, []).append(number)
        if len(places) < 2 or self.budget.limit_usd is not None:
            return [self.ask(*one) for one in asked]
        answers: list[list[Answer]] = [[] for _ in asked]

        def at(numbers: list[int]) -> None:
            for number in numbers:
                if self.stopped.is_set():
                    raise AskingStopped(f"{asked[number][0].name} was not queried")
                answers[number] = self.ask(*asked[number])

        with ThreadPoolExecutor(len(places), thread_name_prefix="place") as pool:
            try:
                running = [pool.submit(at, numbers) for numbers in places.values()]
                wait(running, return_when=FIRST_EXCEPTION)
            finally:
                self.stopped.set()
        self.stopped.clear()
        errors = [error for future in running if (error := future.exception()) is not None]
        for error in sorted(errors, key=lambda error: isinstance(error, AskingStopped)):
            raise error
        return answers

    def _path(self, respondent: Respondent) -> Path:
        return self.folder / f"{respondent.key}.jsonl"

    def _touch(self, respondent: Respondent, wanted: Iterable[str]) -> None:
        """Count the requests of earlier attempts of this command, and record those of this one."""
        budget, priced = self.budget, respondent.price is not None
        if budget.scope is None or self.fresh:
            return
        name = hashlib.sha256(budget.scope.encode()).hexdigest()[:32]
        journal: Journal[Touched] = Journal(self.folder / f"{name}.scope", Touched)
        for entry in journal.entries if not budget.earlier_counted else ():
            log = AnswerLog(self.folder / f"{entry.key}.jsonl")
            budget.settle(Decimal(0), entry.key, log.costs(entry.questions, priced=entry.priced))
        budget.earlier_counted = True
        known = {q for entry in journal.entries if entry.key == respondent.key for q in entry.questions}
        if new := [digest for digest in wanted if digest not in known]:
            journal.append(Touched(respondent.key, new, priced))

    def _again(self, respondent: Respondent, wanted: Iterable[str]) -> list[str]:
        """Return the questions whose stored answers don't count."""
        if not self.fresh:
            return []
        return [digest for digest in wanted if (respondent.key, digest) not in self._renewed]

    def _renew(self, respondent: Respondent, log: AnswerLog, wanted: Iterable[str]) -> None:
        """Request only the current questions again, because the answers to other questions were paid
        for too."""
        again = self._again(respondent, wanted)
        if known := [digest for digest in again if digest in log.answers]:
            log.append(Renewed(known))
        self._renewed |= {(respondent.key, digest) for digest in again}

    @contextmanager
    def _opened(self, respondent: Respondent) -> Generator[AnswerLog]:
        private_folder(self.folder)
        path = self._path(respondent)
        with locked(lock_of(path), keep=False) as held:
            if not held:
                raise UsageError(
                    f"another command is already querying {respondent.name}",
                    fix="wait for it to finish",
                )
            yield AnswerLog(path)


class _Round:
    """The remaining questions of one respondent, and the outcomes so far."""

    def __init__(self, asking: Asking, respondent: Respondent, missing: list[Question], total: int) -> None:
        self._asking, self._respondent = asking, respondent
        self._total, self._done = total, total - len(missing)
        self._known = self._done > 0
        if respondent.batch > 1:
            # A batch takes as long as its longest row, so put rows of similar length together.
            missing = sorted(missing, key=lambda q: q.most_tokens)
        size = respondent.batch
        self._batches = iter([missing[i : i + size] for i in range(0, len(missing), size)])
        self._in_a_row = 0
        self.refused: dict[str, Answer] = {}

    def supply(self) -> Batch | None:
        return next(self._batches, None)

    def receive(self, batch: Batch, outcome: Outcome) -> BaseException | None:
        if isinstance(outcome, BaseException):
            return self._without(batch, outcome)
        refused = {q.digest: a for q, a in zip(batch, outcome, strict=True) if a.error is not None}
        self.refused |= refused
        if len(refused) < len(batch):
            self._known, self._in_a_row = True, 0
        self._report(len(batch))
        return None

    def _without(self, batch: Batch, error: BaseException) -> BaseException | None:
        """Handle a batch without answers. A refusal is caused by the question, unless all questions are
        refused. Any other error is caused by the host."""
        if not isinstance(error, InvalidRequest) and not self._skipped(error):
            return error
        self.refused |= {q.digest: Answer(text="", error=str(error)) for q in batch}
        self._in_a_row += len(batch)
        self._report(len(batch))
        answered = self._known and isinstance(error, InvalidRequest)
        return error if self._in_a_row >= HOPELESS and not answered else None

    def _skipped(self, error: BaseException) -> bool:
        """Return whether the host was queried and failed each time, and the user counts that as a wrong
        answer."""
        return self._asking.skip_failed and isinstance(error, ProviderError) and not error.did_nothing

    def _report(self, count: int) -> None:
        self._done += count
        if self._asking.progress is not None:
            with self._asking.reporting:
                spent = self._asking.budget.spent_usd
                self._asking.progress(self._respondent.name, self._done, self._total, spent)

    def state(self) -> str:
        return f"{self._done} of {self._total} answers are saved"

    def require_answers(self) -> None:
        """Raise an error if every question was refused, because that means a wrong setting rather than wrong
        answers."""
        if self.refused and not self._known:
            first = next(iter(self.refused.values()))
            raise UsageError(f"{self._respondent.name} rejected every question: {first.error}")


_UNPRICED = "leave out --max-cost and limit the number of questions instead (--limit, --max-requests)"
_UNFRESH = " without --fresh"


def require_price(name: str, limit_usd: Decimal | None, price: Price | None) -> None:
    """Raise `UnknownPrice` if a limit is set but cannot be enforced, because the price is unknown."""
    unknown = "the price per token is unknown" if price is None else None
    require_within(name, Decimal(0), limit_usd, unknown=unknown, unknown_fix=_UNPRICED)


def add_lost_cost(error: OrchestrateError, lost: Unaccounted) -> None:
    """Add the possible cost of unanswered requests to the error that ends a command."""
    if lost:
        error.message = f"{error.message}; {lost}"
        error.lost_requests, error.lost_usd = lost.requests, lost.usd
