"""`orchestrate data generate`: ask a chat model for new rows, based on seed rows.

An append-only log next to the output (`OUT.generation`) records every paid request and the rows that came
from each answer. The output contains exactly the rows in the log, so a killed run resumes without losing or
repeating a request. A review journal (`OUT.review`) records that the rows need review. The rows themselves
can't record it because hosts reject unknown fields.
"""

from __future__ import annotations

import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
from xxhash import xxh3_64_intdigest

from orchestrate.core.files import inside
from orchestrate.core.retries import Retry
from orchestrate.data import rules
from orchestrate.data.dataset import Dataset
from orchestrate.data.dialects import canonical_line
from orchestrate.data.files import PACKED_SUFFIXES, require_writable
from orchestrate.data.operations import review as reviewing
from orchestrate.data.passes.compare import SeenTexts
from orchestrate.data.rows import (
    ChatExample,
    Example,
    Kind,
    PreferenceExample,
    RLExample,
    UnpairedExample,
    messages_of,
)
from orchestrate.data.rows.content import candidates, confirmed
from orchestrate.data.rows.traits import Trait
from orchestrate.data.rules import RowTarget
from orchestrate.data.shapes import known
from orchestrate.data.shapes.row_reader import (
    answers,
    canonical,
    canonical_answered,
    canonical_prompt,
    reading,
    visible,
)
from orchestrate.errors import DataError, OrchestrateError, OverBudget, UsageError
from orchestrate.paid.journal import (
    Answer,
    AnswerLog,
    Got,
    LostRequest,
    NoMoreRequests,
    RequestBudget,
    RequestLedger,
    Sent,
    Unanswered,
)
from orchestrate.paid.limits import COMMAND_LIMIT
from orchestrate.paid.paid_requests import (
    AskingStopped,
    Batch,
    Outcome,
    Price,
    Question,
    Requests,
    Respondent,
    add_lost_cost,
    one_at_a_time,
    require_price,
)
from orchestrate.types import Message, Record, Reply, Severity

# Screening of generated rows: valid, without unwanted content, and not repeated.
#
# Rows must pass the rules of `data check` and differ from the seeds and all accepted rows.

UNWANTED = frozenset({"secret", "refusal", "placeholder", "mojibake", "replacement-character"})
"""Problems that no synthetic row should have. Personal data is allowed, because it is invented."""


@dataclass
class Screened:
    """The rows of one answer after screening. `lines` are the accepted rows as JSON. `refused` counts the
    rejected rows by code."""

    lines: list[bytes] = field(default_factory=list[bytes])
    refused: Counter[str] = field(default_factory=Counter[str])


class Screening:
    """Filter for generated rows. It rejects invalid rows and rows that repeat a seed or an accepted row."""

    def __init__(
        self,
        kind: Kind,
        seeds: Sequence[Example],
        *,
        hosts: Sequence[RowTarget] = (),
        threshold: float = 0.8,
        reasoning: Reasoning = "no",
    ) -> None:
        """Set up the screening. `hosts` are the backends that must accept each row."""
        self._kind: Kind = kind
        self._reasoning: Reasoning = reasoning
        self._refused_traits = 0
        for host in hosts:
            self._refused_traits |= host.rules.refused(kind)
        self._write = canonical_line
        self._rows: set[int] = set()
        self._prompts: set[int] = set()
        self._near = SeenTexts(threshold)
        self._remember(seeds)

    def _remember(self, examples: Sequence[Example]) -> None:
        for example in examples:
            self._rows.add(xxh3_64_intdigest(canonical(example)))
            if self._kind != "text":
                self._prompts.add(xxh3_64_intdigest(_unique_part(example)))
        self._near.add([_own_text(example) for example in examples])

    def resume(self, lines: Sequence[bytes]) -> None:
        """Load the rows that an earlier run accepted."""
        read = [self._read(line)[0] for line in lines]
        self._remember([example for example in read if example is not None])

    def screen(self, text: str) -> Screened:
        """Extract the rows from a model's response, ignoring other text, and return the rows that pass the
        filter."""
        screened = Screened()
        for piece in objects(text):
            line = piece if self._reasoning == "no" else _thought_out(piece, keep=self._reasoning == "kept")
            example, code = (None, "no-reasoning") if line is None else self._read(line)
            if example is not None:
                code = self._repeats(example)
            if example is None or code is not None:
                screened.refused[code or "invalid-json"] += 1
                continue
            screened.lines.append(self._write(example))
        return screened

    def _read(self, line: bytes) -> tuple[Example | None, str | None]:
        """Return the row, or the code of its problem."""
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError):
            return None, "invalid-json"
        shape = known.recognize(cast("dict[str, Any]", value)) if isinstance(value, dict) else None
        if shape is None:
            return None, "unknown-format"
        if shape.kind != self._kind:
            return None, "mixed-format"
        row = reading(shape.name).read(line)
        if row.example is None:
            return None, next(p.code for p in row.problems if p.severity is Severity.ERROR)
        if row.traits & self._refused_traits:
            return None, "refused-by-host"
        text = visible(row.example).encode()
        suspects = sorted({pattern for _, pattern in candidates(text, [0])})
        unwanted = [
            p.code for p in confirmed(text, suspects, answers(row.example).encode()) if p.code in UNWANTED
        ]
        return (None, unwanted[0]) if unwanted else (row.example, None)

    def _repeats(self, example: Example) -> str | None:
        """Return the code of a repetition if the row repeats an earlier one. Otherwise, remember the row."""
        row, prompt = (xxh3_64_intdigest(part) for part in (canonical(example), _unique_part(example)))
        if row in self._rows:
            return "duplicate"
        if self._kind != "text" and prompt in self._prompts:
            return "conflict"
        if self._near.add([_own_text(example)])[0]:
            return "near-duplicate"
        self._rows.add(row)
        self._prompts.add(prompt)
        return None


def _unique_part(example: Example) -> bytes:
    """Return the content that must be unique. An unpaired prompt may have several answers, each with one
    label."""
    return canonical_answered(example) if isinstance(example, UnpairedExample) else canonical_prompt(example)


def _own_text(example: Example) -> str:
    """Return the text without system messages. A long system message would make all rows look similar."""
    if not isinstance(example, ChatExample | PreferenceExample | UnpairedExample | RLExample):
        return visible(example)
    own = [m for m in messages_of(example) if m.role not in ("system", "developer")]
    return visible(ChatExample(messages=own))


def objects(text: str) -> Iterator[bytes]:
    """Yield the outermost JSON objects in the text. If an object only wraps a list of rows, yield the rows
    instead. If text starts like an object but isn't valid JSON, yield it up to the end of the line."""
    decode = json.JSONDecoder().raw_decode
    at = text.find("{")
    while at >= 0:
        try:
            value, end = decode(text, at)
        except (ValueError, RecursionError):
            line_end = text.find("\n", at)
            end = len(text) if line_end < 0 else line_end
            yield _bytes(text[at:end])
        else:
            inner = _listed(value)
            if inner is None:
                yield _bytes(text[at:end])
            else:
                yield from (_bytes(json.dumps(row)) for row in inner)
        at = text.find("{", end)


def _thought_out(line: bytes, *, keep: bool) -> bytes | None:
    """Return the row with or without its reasoning, or `None` if an answer has no reasoning."""
    try:
        value: Any = json.loads(line)
        said = [m for m in value["messages"] if m["role"] == "assistant"]
        if not all(any(str(m.get(name) or "").strip() for name in _THOUGHTS) for m in said):
            return None
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return line  # the reader reports the problem
    for message in () if keep else said:
        for name in _THOUGHTS:
            message.pop(name, None)
    return _bytes(json.dumps(value))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"\n", b" ")


def _listed(value: Mapping[str, Any]) -> list[Any] | None:
    """Return the rows of `{"examples": [...]}`, or `None` if the value is a row."""
    if known.recognize(dict(value)) is not None or len(value) != 1:
        return None
    only = next(iter(value.values()))
    return cast("list[Any]", only) if isinstance(only, list) else None


Reasoning = Literal["no", "kept", "left out"]
"""Reasoning mode: `no` requests no reasoning, `kept` includes it in the rows, and `left out` requests it but
doesn't include it in the rows."""
MOST_SEEDS = 50_000
"""Maximum number of seed rows. All seeds stay in memory, to compare each new row with them."""
BARREN = 8
"""Number of consecutive answers without new rows after which generation stops."""

_TASK = """You write training data for a language model. You are given examples, one JSON object on a line.
Write new ones in exactly that form: the same fields, the same roles, the same kind of answer. Make each a \
situation of its own: vary the names, numbers, wording, length and difficulty, and do not copy an example. \
Every answer must be right for its input. Write JSON Lines only: no numbering, no comment, no code fence."""

_REASONING = """
Before its `content`, give each assistant message a field `reasoning`: the thinking that leads to the \
answer, step by step, as its author would think. The answer must follow from it."""
_THOUGHTS = ("reasoning", "reasoning_content")

Ask = Callable[[Sequence[Message], Sequence[Mapping[str, Any]]], Reply]
"""A function that sends one request without retrying. Raises `ProviderError`."""


class GenerateStart(msgspec.Struct, tag="started"):
    seeds: str
    """The digest of the seed rows."""


class KeptQuestion(msgspec.Struct, tag="kept"):
    """Log entry for one answer: the accepted rows and the rejection counts. An answer without this entry was
    not screened because the run stopped first, so the next run screens it."""

    question: str
    rows: list[msgspec.Raw]
    refused: dict[str, int]


class OldSentEntry(msgspec.Struct, tag="asked"):
    """Log entry for a sent request, in the format of earlier versions. The outcome of the request is an
    `OldAnswerEntry` or a `FailedEntry`."""

    number: int
    worst_usd: Decimal


class OldAnswerEntry(msgspec.Struct, tag="answered"):
    number: int
    usd: Decimal
    rows: list[msgspec.Raw]
    refused: dict[str, int]
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class FailedEntry(msgspec.Struct, tag="failed"):
    number: int
    usd: Decimal
    error: str


Entry = GenerateStart | KeptQuestion | OldSentEntry | OldAnswerEntry | FailedEntry


@dataclass(frozen=True)
class GenerateOrder:
    """Options and limits for generating rows. `max_cost_usd` requires `price`."""

    rows: int = 100
    max_requests: int = 100
    max_cost_usd: Decimal | None = None
    price: Price | None = None
    account: RequestLedger | None = None
    """The store's ledger, which records the requests."""
    backend: str = ""
    """Provider that bills the requests."""
    own: bool = False
    sandbox: bool = False
    max_tokens: int = 4096
    """Maximum number of tokens in one answer."""
    rows_per_request: int = 10
    examples: int = 5
    """Number of seed rows in each request."""
    parallel: int = 4
    instructions: str = ""
    hosts: tuple[RowTarget, ...] = ()
    """Backends to generate rows for. Every generated row must be valid for each of them. A backend is ignored
    if it rejects a seed row, or if rows include reasoning and the backend rejects reasoning."""
    threshold: float = 0.8
    """Similarity at which a row counts as a near duplicate."""
    seed: int = 0
    reasoning: Reasoning = "no"


class GenerateReport(Record, frozen=True, kw_only=True):
    """The result of `data generate`. The counts and the cost cover all runs on this output. `stopped` says
    why generation stopped: `rows`, `max-requests`, `max-cost`, `budget` or `repeating`."""

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
    """Total cost in US dollars. `None` when the model's price is unknown."""
    refused: dict[str, int]
    hosts: tuple[str, ...]
    """Backends that accept every row."""
    lost_requests: int = 0
    """Number of requests that got no response but may have been billed."""
    lost_usd: Decimal | None = Decimal(0)
    """Maximum cost of the `lost_requests`, which is included in `usd`. `None` when the price is unknown."""
    last_error: str | None = None
    """Error of the most recent failed request."""
    reasoning: Reasoning = "no"


@dataclass
class _State:
    """State rebuilt from the log."""

    lines: list[bytes] = field(default_factory=list[bytes])
    earlier: dict[int, Decimal] = field(default_factory=dict[int, Decimal])
    """Cost of each request that an earlier version logged, keyed by request number."""
    unscreened: dict[str, Answer] = field(default_factory=dict[str, Answer])
    requested: set[str] = field(default_factory=set[str])
    requests: int = 0
    answers: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: Counter[str] = field(default_factory=Counter[str])
    barren: int = 0
    last_error: str | None = None

    def add(self, entry: Any) -> None:
        match entry:
            case Sent(questions):
                self.requests += 1
                self.requested.update(questions)
            case OldSentEntry(number, worst):
                self.requests += 1
                self.earlier[number] = worst
            case Got(question, answer):
                self._answered(answer.prompt_tokens, answer.completion_tokens)
                self.unscreened[question] = answer
            case KeptQuestion(question, rows, refused):
                self._keep(rows, refused)
                self.unscreened.pop(question, None)
            case OldAnswerEntry():
                self._answered(entry.prompt_tokens, entry.completion_tokens)
                self._keep(entry.rows, entry.refused)
                self.earlier[entry.number] = entry.usd
            case FailedEntry():
                self.last_error = entry.error
                self.earlier[entry.number] = entry.usd
            case Unanswered() | LostRequest():
                self.last_error = entry.error
            case _:
                pass

    def _answered(self, prompt_tokens: int | None, completion_tokens: int | None) -> None:
        self.answers += 1
        self.prompt_tokens += prompt_tokens or 0
        self.completion_tokens += completion_tokens or 0

    def _keep(self, rows: Sequence[msgspec.Raw], refused: Mapping[str, int]) -> None:
        self.lines += [bytes(row) for row in rows]
        self.refused.update(refused)
        self.barren = 0 if rows else self.barren + 1


def log_of(output: Path) -> Path:
    """Return the path of an output file's generation log. Hold the log's lock while you write to the log."""
    return output.with_name(output.name + ".generation")


def generate(
    seeds: str,
    output: Path,
    ask: Ask,
    order: GenerateOrder,
    *,
    progress: Callable[[int, int, Decimal], None] | None = None,
    retry: Retry | None = None,
) -> GenerateReport:
    """Generate rows until there are `order.rows` rows or a limit is reached. Resumes an earlier run.

    `progress` is called with (rows, requests, US dollars). Raises `DataError` when the seeds cannot be read
    or contain no valid row, `UsageError` if `output` does not come from an earlier run, and `ProviderError`
    if the host rejects a request or if all attempts that `retry` allows fail."""
    require_price("this model", order.max_cost_usd, order.price)
    require_writable(output, seeds)
    if output.suffix.lower() in PACKED_SUFFIXES:
        why = "cannot write a compressed file, because rows are appended one by one"
        raise UsageError(f"{output}: {why}", fix="use a name that ends in .jsonl")
    data = Dataset.open(seeds)
    examples = list(data.examples()) if data.rows <= MOST_SEEDS else []
    if not examples:
        why = (
            f"the file has more than {MOST_SEEDS:,} seed rows"
            if data.rows
            else "the file has no valid seed rows"
        )
        raise DataError(f"{seeds}: {why}", problems=data.problems, fix="use ten to a few thousand valid rows")
    if order.reasoning != "no" and data.kind != "chat":
        raise UsageError(f"--reasoning needs chat rows, but {seeds} has {data.kind} rows")
    hosts = tuple(
        host
        for host in order.hosts
        if rules.accepted(data, host) == data.rows
        and not (order.reasoning == "kept" and host.rules.refused(data.kind) & Trait.REASONING)
    )
    screening = Screening(
        data.kind, examples, hosts=hosts, threshold=order.threshold, reasoning=order.reasoning
    )
    writer = Respondent(
        name="generate",
        identity={},
        ask=one_at_a_time(ask),
        parallel=order.parallel,
        max_tokens=order.max_tokens,
        price=order.price,
        retry=retry or Retry(),
        backend=order.backend,
        own=order.own,
        sandbox=order.sandbox,
    )
    run = _GenerationRun(output, data, examples, writer, order, screening, progress)
    before = len(run.state.lines)
    stopped = run.loop()
    return run.report(stopped, before, hosts)


class _GenerationRun:
    def __init__(
        self,
        output: Path,
        data: Dataset,
        examples: list[Example],
        writer: Respondent,
        order: GenerateOrder,
        screening: Screening,
        progress: Callable[[int, int, Decimal], None] | None,
    ) -> None:
        self._output, self._writer, self._order, self._screening = output, writer, order, screening
        self._progress = progress
        self._examples = [canonical_line(example).decode() for example in examples]
        self._log = AnswerLog(log_of(output), Entry)
        self.state = _State()
        for entry in self._log.entries:
            self.state.add(entry)
        self.state.barren = 0
        self._begin(data.digest)
        screening.resume(self.state.lines)
        self._budget = RequestBudget(order.max_cost_usd, order.max_requests, account=order.account)
        self._budget.spent_usd = sum(self.state.earlier.values(), Decimal(0))
        self._budget.requests = self.state.requests
        self._stopped = threading.Event()
        """Event that is set once all rows have been generated."""
        self._under_way, self._ended = 0, "rows"
        for question, answer in list(self.state.unscreened.items()):
            self._keep(question, answer)

    def _begin(self, digest: str) -> None:
        """Write the logged rows to the output. Raises `UsageError` if that would overwrite other content."""
        output, fresh = self._output, not self._log.entries
        there = output.read_bytes() if output.exists() else b""
        wanted = b"".join(line + b"\n" for line in self.state.lines)
        if there and fresh:
            raise UsageError(
                f"{output} already exists and was not written by this command",
                fix="choose another name with -o",
            )
        if not wanted.startswith(there):
            raise UsageError(
                f"{output} was changed after it was generated", fix="choose another name with -o"
            )
        if fresh:
            self._log.append(GenerateStart(digest))
        started = self._log.entries[0]
        if not isinstance(started, GenerateStart) or started.seeds != digest:
            raise UsageError(
                f"{output} was generated from different seeds", fix="choose another name with -o"
            )
        with inside(output).open("ab") as file:
            file.write(wanted[len(there) :])
        reviewing.require(output)

    def loop(self) -> str:
        """Run until a limit is reached, and return why it ended."""
        requests = Requests(self._writer, self._log, self._budget, self._stopped)
        requests.count(self.state.requested)
        try:
            requests.run(self._supply, self._receive)
        except OverBudget as error:
            return "max-cost" if error.what == COMMAND_LIMIT else "budget"
        except NoMoreRequests:
            return "max-requests"
        except AskingStopped:
            return "rows"
        except OrchestrateError as error:
            add_lost_cost(error, self._budget.lost())
            raise
        return self._ended

    def _supply(self) -> Batch | None:
        """Return the next request, or `None` if enough requests are under way."""
        order, state = self._order, self.state
        missing = order.rows - len(state.lines)
        if missing <= 0 or self._under_way >= -(-missing // order.rows_per_request):
            self._ended = "rows"
            return None
        if state.barren >= BARREN:
            self._ended = "repeating"
            return None
        number = self._budget.requests + 1
        messages = self._messages(number, min(order.rows_per_request, missing))
        self._under_way += 1
        return [Question(messages=tuple(messages), sample=number)]

    def _messages(self, number: int, rows: int) -> list[Message]:
        """Return the messages of a request. The same number gives the same messages after a restart."""
        order = self._order
        chosen = random.Random(f"{order.seed}:{number}").sample(  # noqa: S311  not for secrets
            self._examples, min(order.examples, len(self._examples))
        )
        instructions = f"{order.instructions.strip()}\n\n" if order.instructions.strip() else ""
        many = f"{rows} new ones" if rows > 1 else "1 new one"
        shown = "\n".join(chosen)
        return [
            Message(role="system", content=_TASK + (_REASONING if order.reasoning != "no" else "")),
            Message(role="user", content=f"Examples:\n{shown}\n\n{instructions}Write {many}."),
        ]

    def _receive(self, batch: Batch, outcome: Outcome) -> BaseException | None:
        self._under_way -= 1
        if isinstance(outcome, BaseException):
            return outcome
        self._keep(batch[0].digest, outcome[0])
        if self._progress is not None:
            rows = min(len(self.state.lines), self._order.rows)
            self._progress(rows, self._budget.requests, self._budget.spent_usd)
        return None

    def _keep(self, question: str, answer: Answer) -> None:
        screened = self._screening.screen(answer.text)
        room = max(0, self._order.rows - len(self.state.lines))
        if len(screened.lines) > room:
            screened.refused["surplus"] += len(screened.lines) - room
        if not screened.lines and not screened.refused:
            screened.refused["no-rows"] += 1
        rows = screened.lines[:room]
        kept = KeptQuestion(question, [msgspec.Raw(line) for line in rows], dict(screened.refused))
        self._log.append(kept)
        self.state.add(kept)
        with inside(self._output).open("ab") as file:
            file.write(b"".join(line + b"\n" for line in rows))
        if len(self.state.lines) >= self._order.rows:
            self._stopped.set()

    def report(self, stopped: str, before: int, hosts: Sequence[RowTarget]) -> GenerateReport:
        state = _State()
        for entry in self._log.entries:
            state.add(entry)
        lost, priced = self._budget.lost(), self._order.price is not None
        return GenerateReport(
            output=str(self._output),
            log=str(self._log.path),
            review=str(reviewing.beside(self._output)),
            rows=len(state.lines),
            new_rows=len(state.lines) - before,
            stopped=stopped,
            requests=state.requests,
            failed_requests=state.requests - state.answers,
            prompt_tokens=state.prompt_tokens,
            completion_tokens=state.completion_tokens,
            usd=self._budget.spent_usd if priced else None,
            refused=dict(state.refused),
            hosts=tuple(host.name for host in hosts),
            lost_requests=lost.requests,
            lost_usd=lost.usd,
            last_error=state.last_error,
            reasoning=self._order.reasoning,
        )
