"""Journal of all requests to one model, and the cost limit for them.

Each request is recorded with its maximum cost before it is sent. When its answer arrives, the actual price
replaces the maximum. If the host did not process the request, its cost is 0. If no answer ever arrives, the
request may still have been billed, so it counts at its maximum cost in later commands too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from orchestrate.core.files import Journal, opener
from orchestrate.errors import OrchestrateError
from orchestrate.paid.limits import require_within
from orchestrate.text import count, money
from orchestrate.types import Record, decoding


class Answer(Record, frozen=True, kw_only=True, omit_defaults=True):
    """One answer to one item."""

    text: str
    tool_calls: tuple[dict[str, Any], ...] = ()
    reasoning: str = ""
    finish_reason: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    seconds: float | None = None
    """Seconds from the question to the last token. `None` if several questions were answered together."""
    first_token_seconds: float | None = None
    expected_nats: float | None = None
    """Log-probability (in nats) of the expected answer under this model, summed over `expected_tokens`
    tokens. `None` if not available."""
    expected_tokens: int | None = None
    logprobs: tuple[float, ...] | None = None
    """Log-probability of each token of the answer, if requested and returned."""
    usd: Decimal | None = None
    at: datetime | None = None
    error: str | None = None
    """The reason why the question was refused. `text` is then empty."""
    precision: str | None = None
    """Precision of the answering model's weights, if known: bf16, fp32 or NF4."""
    notes: tuple[str, ...] = ()
    """Notes about anything unexpected while the question was sent or answered."""


class Sent(msgspec.Struct, tag="sent"):
    """Journal entry that is written before each request, including retries."""

    questions: list[str]
    worst_usd: Decimal
    hold: str = ""
    """Id of the request's reservation in the ledger. Empty if its cost is not reserved there."""


class Got(msgspec.Struct, tag="got"):
    question: str
    answer: Answer


class Unanswered(msgspec.Struct, tag="unanswered"):
    """Journal entry for a request that the host did not process, and which therefore costs nothing."""

    questions: list[str]
    error: str = ""


class LostRequest(msgspec.Struct, tag="lost"):
    """Journal entry for a request that got no answer, although the host may have billed it."""

    questions: list[str]
    error: str = ""


class Renewed(msgspec.Struct, tag="renewed"):
    """Journal entry for questions that are about to be sent again. Their earlier answers and costs no longer
    count."""

    questions: list[str]


Entry = Sent | Got | Unanswered | LostRequest | Renewed


class Send(NamedTuple):
    """A request that is reserved in the ledger, and its cost so far."""

    usd: Decimal
    at: datetime | None
    """The time of the last answer to the request, if any."""


@dataclass(frozen=True)
class Unaccounted:
    """Requests that got no answer, and their maximum cost (`None` if no price is known)."""

    requests: int = 0
    usd: Decimal | None = Decimal(0)

    def __bool__(self) -> bool:
        """Return whether any of them may have been billed."""
        return self.requests > 0 and self.usd != 0

    def __add__(self, other: Unaccounted) -> Unaccounted:
        known = self.usd is not None and other.usd is not None
        usd = (self.usd or Decimal(0)) + (other.usd or Decimal(0)) if known else None
        return Unaccounted(self.requests + other.requests, usd)

    def __str__(self) -> str:
        most = "price unknown" if self.usd is None else f"up to {money(self.usd)}"
        return f"{count(self.requests, 'request')} got no answer and may have been billed ({most})"


@dataclass(frozen=True)
class Cost:
    """The cost of one question so far: the price of its answer, plus the maximum cost of each unanswered
    request."""

    answer_usd: Decimal = Decimal(0)
    lost: Unaccounted = Unaccounted()

    @property
    def usd(self) -> Decimal:
        return self.answer_usd + (self.lost.usd or Decimal(0))


def lock_of(log: Path) -> Path:
    """Return the lock file that a process must hold to append to a journal."""
    return log.with_suffix(".lock")


class AnswerLog:
    """Log of all questions ever sent to one model, and of its answers. A process must hold the log's lock to
    append to it."""

    def __init__(self, path: Path, more: Any = None) -> None:
        """Read the journal. `more` are types of additional entries, which are only listed in `entries`. `Any`
        accepts all types. Raises `DataError` for a file that is not such a journal."""
        self.found = path.exists()
        """True if the file already existed when the log was opened. If it did not, an earlier file may have
        been lost, and requests may have been sent that this log does not contain."""
        self._journal: Journal[Any] = Journal(path, Entry if more is None else Entry | more)
        self.answers: dict[str, Answer] = {}
        self._open: dict[str, Decimal] = {}
        self._holds: dict[str, dict[str, Decimal]] = {}
        self._hold_of: dict[str, str] = {}
        self._at: dict[str, datetime] = {}
        self._lost: dict[str, tuple[int, Decimal]] = {}
        self._lock = threading.Lock()
        for entry in self.entries:
            self._add(entry)
        self.lose(list(self._open))  # sent by a process that has ended since

    @property
    def path(self) -> Path:
        return self._journal.path

    @property
    def entries(self) -> list[Any]:
        return self._journal.entries

    def begin(self) -> None:
        """Create the file. Call this before the first reservation of a request."""
        if not self.found:
            with open(self.path, "ab", opener=opener):
                pass

    def append(self, entry: Any) -> None:
        with self._lock:
            self._journal.append(entry)
            self._add(entry)

    def lose(self, questions: Iterable[str]) -> None:
        """Count the requests in progress for these questions as unanswered."""
        for question in questions:
            if (worst := self._open.pop(question, None)) is not None:
                requests, usd = self._lost.get(question, (0, Decimal(0)))
                self._lost[question] = (requests + 1, usd + worst)

    @property
    def sends(self) -> dict[str, Send]:
        """Requests in this journal that are also reserved in the ledger, as `{reservation id: request}`."""
        return {
            hold: Send(sum(each.values(), Decimal(0)), self._at.get(hold))
            for hold, each in self._holds.items()
        }

    def came_to(self, hold: str) -> Decimal | None:
        """Return the cost so far, in US dollars, of the request with this reservation in the ledger.
        Questions without an answer count at their maximum cost. Returns `None` if the journal has no such
        request."""
        found = self._holds.get(hold)
        return None if found is None else sum(found.values(), Decimal(0))

    def costs(self, questions: Iterable[str], *, priced: bool = True) -> dict[str, Cost]:
        found: dict[str, Cost] = {}
        for question in questions:
            answer, (requests, usd) = self.answers.get(question), self._lost.get(question, (0, Decimal(0)))
            known = Decimal(0) if answer is None or answer.usd is None else answer.usd
            found[question] = Cost(known, Unaccounted(requests, usd if priced or not requests else None))
        return found

    def _add(self, entry: Any) -> None:
        match entry:
            case Sent(questions, worst, hold):
                self.lose(questions)
                each = dict.fromkeys(questions, worst / len(questions))
                self._open |= each
                if hold:
                    self._holds[hold] = each
                    self._hold_of |= dict.fromkeys(questions, hold)
            case Got(question, answer):
                self.answers[question] = answer
                self._open.pop(question, None)
                self._held(question, answer.usd or Decimal(0), answer.at)
            case Unanswered(questions):
                for question in questions:
                    self._open.pop(question, None)
                    self._held(question, Decimal(0))
            case LostRequest(questions):
                self.lose(questions)
            case Renewed(questions):
                for question in questions:
                    self.answers.pop(question, None)
                    self._lost.pop(question, None)
            case {"type": "sent" | "got" | "unanswered" | "lost" | "renewed"}:
                self._add(decoding.convert(entry, Entry))
            case _:
                pass

    def _held(self, question: str, usd: Decimal, at: datetime | None = None) -> None:
        if (hold := self._hold_of.pop(question, None)) is not None:
            self._holds[hold] = self._holds[hold] | {question: usd}
            if at is not None:
                self._at[hold] = at


class RequestLedger(Protocol):
    """The methods of the store's ledger that a command's requests need."""

    def require_price(self, backend: str) -> None: ...

    def hold(self, backend: str, usd: Decimal, log: Path) -> str: ...

    def settle(self, id: str, usd: Decimal) -> None: ...

    def release(self, id: str) -> None: ...

    def catch_up(
        self, backend: str, log: Path, sends: Mapping[str, Send], *, found: bool = False
    ) -> None: ...


class Touched(msgspec.Struct):
    """The questions that one command sends to one model."""

    key: str
    questions: list[str]
    priced: bool


class NoMoreRequests(OrchestrateError):
    """Raised when the maximum number of requests is reached. No further request was sent."""

    exit_code = 6


@dataclass
class RequestBudget:
    """The cost limit for all requests of a command, including those of earlier attempts. Thread-safe."""

    limit_usd: Decimal | None = None
    most_requests: int | None = None
    scope: str | None = None
    """Identifies the command, ignoring its limit. Requests of earlier runs of the same command count toward
    the limit too."""
    account: RequestLedger | None = None
    """Ledger of the account. Each request is also reserved in the account's budget."""
    earlier_counted: bool = False
    """True if the costs of earlier runs of this command have been counted."""
    spent_usd: Decimal = Decimal(0)
    """Cost of the answers, plus the maximum cost of unanswered requests that may have been billed."""
    held_usd: Decimal = Decimal(0)
    """Maximum cost of requests in progress."""
    requests: int = 0
    _costs: dict[tuple[str, str], Cost] = field(default_factory=dict[tuple[str, str], Cost])
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def reserve(self, name: str, usd: Decimal) -> None:
        """Reserve the maximum cost of one request. Raises `OverBudget` or `NoMoreRequests` if a limit could
        be exceeded."""
        with self._lock:
            would = self.spent_usd + self.held_usd + usd
            require_within(name, would, self.limit_usd)
            if self.most_requests is not None and self.requests >= self.most_requests:
                raise NoMoreRequests(f"{name}: {count(self.requests, 'request')} were sent")
            self.held_usd += usd
            self.requests += 1

    def withdraw(self, usd: Decimal) -> None:
        """Undo `reserve` for a request that was not sent."""
        with self._lock:
            self.held_usd -= usd
            self.requests -= 1

    def settle(self, held_usd: Decimal, key: str, costs: Mapping[str, Cost]) -> None:
        """Release a request's reservation, and update the costs of its questions."""
        with self._lock:
            self.held_usd -= held_usd
            for question, cost in costs.items():
                self.spent_usd += cost.usd - self._costs.get((key, question), Cost()).usd
                self._costs[key, question] = cost

    def lost(self, key: str | None = None, questions: Iterable[str] = ()) -> Unaccounted:
        """Return the number of unanswered requests and their possible cost. By default, for all models. With
        `key`, only for these questions to the model with that key."""
        with self._lock:
            wanted = self._costs if key is None else [(key, question) for question in set(questions)]
            found = [self._costs[one].lost for one in wanted if one in self._costs]
        return sum(found, Unaccounted())
