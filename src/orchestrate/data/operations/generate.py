"""`orchestrate data generate`: new rows from seed rows, asked of a chat model.

Everything that happened is in an append-only log beside the output (`OUT.generation`): what was asked, before
it is sent, and what came back. The output holds the rows of the log and nothing else, so a run that was
killed at any moment goes on from there, and no request is ever counted too few. Rows are marked for review in
`OUT.review`, never in the rows themselves, as hosts refuse fields that they do not know.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

import msgspec

from orchestrate.data import rules
from orchestrate.data.dataset import Dataset
from orchestrate.data.files.folders import PACKED_SUFFIXES
from orchestrate.data.files.journal import Journal
from orchestrate.data.files.outputs import require_writable
from orchestrate.data.operations import review as reviewing
from orchestrate.data.operations.screening import Screening
from orchestrate.data.rows.examples import Example, Kind
from orchestrate.data.rules import Target
from orchestrate.data.targets.dialects import canonical_line
from orchestrate.errors import DataError, ProviderError, UsageError
from orchestrate.types import Message, Record, Reply

MOST_SEEDS = 50_000
"""More are a dataset, not examples; each is held in memory to be compared with."""
BARREN = 8
"""Answers in a row that bring nothing new, after which the model has no more to say."""
FAILURES = 5
"""Requests in a row that fail, after which the host is given up."""
LONGEST_WAIT_S = 30.0

_TASK = """You write training data for a language model. You are given examples, one JSON object on a line.
Write new ones in exactly that form: the same fields, the same roles, the same kind of answer. Make each a \
situation of its own: vary the names, numbers, wording, length and difficulty, and do not copy an example. \
Every answer must be right for its input. Write JSON Lines only: no numbering, no comment, no code fence."""

Ask = Callable[[Sequence[Message]], Reply]
"""Sends one request, without trying again. Raises `ProviderError`."""
Price = Callable[[int, int], Decimal]
"""US dollars for (prompt tokens, completion tokens)."""


class Started(msgspec.Struct, tag="started"):
    seeds: str
    """Digest of the seed rows."""


class Asked(msgspec.Struct, tag="asked"):
    number: int
    worst_usd: Decimal
    """What it costs when the answer has the most tokens; what counts while no answer is known."""


class Answered(msgspec.Struct, tag="answered"):
    number: int
    usd: Decimal
    rows: list[msgspec.Raw]
    refused: dict[str, int]
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class Failed(msgspec.Struct, tag="failed"):
    number: int
    usd: Decimal
    error: str


Entry = Started | Asked | Answered | Failed


@dataclass(frozen=True)
class Order:
    """What is wanted, and the limits. `price` is needed for `max_cost_usd`."""

    rows: int = 100
    max_requests: int = 100
    max_cost_usd: Decimal | None = None
    price: Price | None = None
    max_tokens: int = 4096
    """Of one answer."""
    rows_per_request: int = 10
    examples: int = 5
    """Seed rows shown in each request."""
    parallel: int = 4
    instructions: str = ""
    hosts: tuple[Target, ...] = ()
    """Each row must be fit for those of them that take all seeds."""
    threshold: float = 0.8
    """Similarity from which a row is a near duplicate."""
    seed: int = 0


class GenerateReport(Record, frozen=True, kw_only=True):
    """The answer of `data generate`. The counts and the cost are of all runs on this output; `stopped` is
    `rows`, `max-requests`, `max-cost` or `repeating`."""

    output: str
    log: str
    review: str
    rows: int
    new_rows: int
    stopped: str
    requests: int
    failed_requests: int
    prompt_tokens: int
    completion_tokens: int
    usd: Decimal | None
    """`None` when the price of the model is not known."""
    refused: dict[str, int]
    hosts: tuple[str, ...]
    """Backends that every row is fit for."""
    last_error: str | None = None
    """Why the latest request that failed did."""


@dataclass
class _State:
    """The fold of the log."""

    lines: list[bytes] = field(default_factory=list[bytes])
    open: dict[int, Decimal] = field(default_factory=dict[int, Decimal])
    """Asked, and no answer known: number -> worst price."""
    asked: int = 0
    failed: int = 0
    usd: Decimal = Decimal(0)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    barren: int = 0
    failures: int = 0
    last_error: str | None = None

    def add(self, entry: Entry) -> None:
        match entry:
            case Started():
                return
            case Asked():
                self.asked += 1
                self.open[entry.number] = entry.worst_usd
                return
            case Answered():
                self.lines += [bytes(row) for row in entry.rows]
                self.prompt_tokens += entry.prompt_tokens or 0
                self.completion_tokens += entry.completion_tokens or 0
                self.refused.update(entry.refused)
                self.barren = 0 if entry.rows else self.barren + 1
                self.failures = 0
            case Failed():
                self.failed += 1
                self.failures += 1
                self.last_error = entry.error
        self.open.pop(entry.number, None)
        self.usd += entry.usd


def log_of(output: Path) -> Path:
    """The log of an output; whoever writes to it holds its lock."""
    return output.with_name(output.name + ".generation")


def generate(
    seeds: str,
    output: Path,
    ask: Ask,
    order: Order,
    *,
    progress: Callable[[int, int, Decimal], None] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> GenerateReport:
    """Asks until `order.rows` rows are there or a limit is reached; goes on with what an earlier run left.

    `progress` is called with (rows, requests, US dollars). Raises `DataError` when the seeds cannot be read
    or have no good row, `UsageError` when `output` is not what an earlier run left, `ProviderError` when the
    host refuses or fails again and again.
    """
    if order.max_cost_usd is not None and order.price is None:
        raise UsageError("the price of this model is not known", fix="limit the run with --max-requests")
    require_writable(output, seeds)
    if output.suffix.lower() in PACKED_SUFFIXES:
        why = "rows are added one by one, which no packed file takes"
        raise UsageError(f"{output}: {why}", fix="end its name in .jsonl")
    data = Dataset.open(seeds)
    examples = list(data.examples()) if data.rows <= MOST_SEEDS else []
    if not examples:
        why = f"more than {MOST_SEEDS:,} seed rows" if data.rows else "no good row to learn from"
        raise DataError(f"{seeds}: {why}", problems=data.problems, fix="give tens to thousands of good rows")
    hosts = tuple(host for host in order.hosts if rules.accepted(data, host) == data.rows)
    screening = Screening(data.kind, examples, hosts=hosts, threshold=order.threshold)
    run = _Run(output, data, examples, ask, order, screening, progress, sleep)
    before = len(run.state.lines)
    stopped = run.loop()
    return run.report(stopped, before, hosts)


class _Run:
    def __init__(
        self,
        output: Path,
        data: Dataset,
        examples: list[Example],
        ask: Ask,
        order: Order,
        screening: Screening,
        progress: Callable[[int, int, Decimal], None] | None,
        sleep: Callable[[float], None],
    ) -> None:
        self._output, self._ask, self._order, self._screening = output, ask, order, screening
        self._progress, self._sleep = progress, sleep
        self._kind: Kind = data.kind
        write = canonical_line
        self._examples = [write(example).decode() for example in examples]
        self._log: Journal[Entry] = Journal(log_of(output), Entry)
        self.state = _State()
        for entry in self._log.entries:
            self.state.add(entry)
        self.state.barren = self.state.failures = 0
        self._begin(data.digest)
        screening.resume(self.state.lines)

    def _begin(self, digest: str) -> None:
        """Makes the output what the log says it is, unless that would undo somebody's work."""
        output, fresh = self._output, not self._log.entries
        there = output.read_bytes() if output.exists() else b""
        wanted = b"".join(line + b"\n" for line in self.state.lines)
        if there and fresh:
            raise UsageError(f"{output} exists and was not generated", fix="give another name with -o")
        if not wanted.startswith(there):
            raise UsageError(f"{output} was changed after it was generated", fix="give another name with -o")
        if fresh:
            self._log.append(Started(digest))
        started = self._log.entries[0]
        if not isinstance(started, Started) or started.seeds != digest:
            raise UsageError(f"{output} was generated from other seeds", fix="give another name with -o")
        with output.open("ab") as file:
            file.write(wanted[len(there) :])
        reviewing.require(output)

    def loop(self) -> str:
        """Returns why it ended."""
        order, state = self._order, self.state
        executor = ThreadPoolExecutor(order.parallel, thread_name_prefix="generate")
        running: dict[Future[Reply], Asked] = {}
        try:
            while True:
                ended = self._send(executor, running)
                if not running:
                    return ended
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    self._receive(running.pop(future), future)
                if self._progress is not None:
                    self._progress(min(len(state.lines), order.rows), state.asked, state.usd)
        finally:
            executor.shutdown(wait=False, cancel_futures=True)

    def _send(self, executor: ThreadPoolExecutor, running: dict[Future[Reply], Asked]) -> str:
        """Sends as many requests as may be under way; returns why there are no more."""
        order, state = self._order, self.state
        while True:
            missing = order.rows - len(state.lines)
            if missing <= 0:
                return "rows"
            if state.asked >= order.max_requests:
                return "max-requests"
            if state.barren >= BARREN:
                return "repeating"
            if len(running) >= min(order.parallel, -(-missing // order.rows_per_request)):
                return "rows"
            messages = self._messages(state.asked + 1, min(order.rows_per_request, missing))
            asked = Asked(state.asked + 1, self._worst(messages))
            spent = state.usd + sum(state.open.values(), asked.worst_usd)
            if order.max_cost_usd is not None and spent > order.max_cost_usd:
                return "max-cost"
            self._record(asked)
            running[executor.submit(self._ask, messages)] = asked

    def _messages(self, number: int, rows: int) -> list[Message]:
        """The request of this number; the same again after a restart."""
        order = self._order
        chosen = random.Random(f"{order.seed}:{number}").sample(  # noqa: S311  not for secrets
            self._examples, min(order.examples, len(self._examples))
        )
        wish = f"{order.instructions.strip()}\n\n" if order.instructions.strip() else ""
        many = f"{rows} new ones" if rows > 1 else "1 new one"
        shown = "\n".join(chosen)
        return [
            Message(role="system", content=_TASK),
            Message(role="user", content=f"Examples:\n{shown}\n\n{wish}Write {many}."),
        ]

    def _worst(self, messages: Sequence[Message]) -> Decimal:
        """A text never has more tokens than bytes; a few more mark the messages."""
        if self._order.price is None:
            return Decimal(0)
        prompt = sum(len(m.content.encode()) + 16 for m in messages)
        return self._order.price(prompt, self._order.max_tokens)

    def _receive(self, asked: Asked, future: Future[Reply]) -> None:
        try:
            reply = future.result()
        except ProviderError as error:
            # An answer with a status says that nothing was written; without one nobody knows.
            self._record(
                Failed(asked.number, asked.worst_usd if error.status is None else Decimal(0), str(error))
            )
            if not error.retryable or self.state.failures >= FAILURES:
                raise
            pause = error.retry_after_s or 0.5 * 2**self.state.failures
            self._sleep(min(pause, LONGEST_WAIT_S))
            return
        screened = self._screening.screen(reply.content)
        room = max(0, self._order.rows - len(self.state.lines))
        if len(screened.lines) > room:
            screened.refused["surplus"] += len(screened.lines) - room
        if not screened.lines and not screened.refused:
            screened.refused["no-rows"] += 1
        usd = asked.worst_usd
        if self._order.price and reply.prompt_tokens is not None and reply.completion_tokens is not None:
            usd = self._order.price(reply.prompt_tokens, reply.completion_tokens)
        rows = screened.lines[:room]
        self._record(
            Answered(
                asked.number,
                usd,
                [msgspec.Raw(line) for line in rows],
                dict(screened.refused),
                reply.model,
                reply.prompt_tokens,
                reply.completion_tokens,
            )
        )
        with self._output.open("ab") as file:
            file.write(b"".join(line + b"\n" for line in rows))

    def _record(self, entry: Entry) -> None:
        self._log.append(entry)
        self.state.add(entry)

    def report(self, stopped: str, before: int, hosts: Sequence[Target]) -> GenerateReport:
        state = self.state
        return GenerateReport(
            output=str(self._output),
            log=str(self._log.path),
            review=str(reviewing.beside(self._output)),
            rows=len(state.lines),
            new_rows=len(state.lines) - before,
            stopped=stopped,
            requests=state.asked,
            failed_requests=state.failed,
            prompt_tokens=state.prompt_tokens,
            completion_tokens=state.completion_tokens,
            usd=state.usd + sum(state.open.values()) if self._order.price else None,
            refused=dict(state.refused),
            hosts=tuple(host.name for host in hosts),
            last_error=state.last_error,
        )
