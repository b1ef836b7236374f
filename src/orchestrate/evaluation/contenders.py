"""Contenders: models on a host, on this machine, or at any URL, and the clients that query them."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import msgspec
from msgspec.structs import replace

from orchestrate.core.files import mark, sha256_once
from orchestrate.core.retries import Retry
from orchestrate.data.response_formats import schema_of
from orchestrate.errors import DataError, UsageError
from orchestrate.evaluation import Answer, Item
from orchestrate.local.model.files import commit_of
from orchestrate.paid.paid_requests import Price, Question, Respondent, answer_of, one_at_a_time
from orchestrate.types import Contender, Likelihood, Message, Reply, Sampling
from orchestrate.types.serving import AdapterCost

if TYPE_CHECKING:
    from orchestrate.local.answers.generation import Generator

LOCAL_BATCH = 64
Likelihoods = Callable[[Sequence[Mapping[str, Any]]], list[Likelihood]]
"""A function with the signature of `local.Generator.likelihoods`."""


class QuestionClient(Protocol):
    """A client that sends chat requests to a model, such as `providers.chat.completions.Chat`. Accepts up to
    `threads` concurrent calls and never retries a request."""

    @property
    def threads(self) -> int: ...

    @property
    def retry(self) -> Retry: ...

    def ask_once(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()) -> Reply: ...


@dataclass(frozen=True)
class Candidate:
    """A contender that has not been evaluated yet, and the client that queries it."""

    contender: Contender
    respondent: Respondent
    shots: tuple[Message, ...] = ()
    """Few-shot examples, inserted between an item's system message and its question."""
    likelihood: Likelihoods | None = None
    """Function that computes likelihoods. `None` if log-probabilities are unavailable."""
    adapter_cost: Callable[[str], AdapterCost | None] | None = None
    """Function that measures the costs of an adapter: its loading time, and by how much it slows down each
    token (see `local.Generator.adapter_cost`). `None` unless the contender is an adapter on this machine."""

    def questions(self, items: Sequence[Item], samples: int) -> list[Question]:
        """Return one question per item and sample: all samples of the first item, then all samples of the
        second, and so on."""
        return [
            Question(messages=self._prompt(item), tools=item.tools, sample=sample)
            for item in items
            for sample in range(samples)
        ]

    def _prompt(self, item: Item) -> tuple[Message, ...]:
        head = 0
        while head < len(item.prompt) and item.prompt[head].role in ("system", "developer"):
            head += 1
        return (*item.prompt[:head], *self.shots, *item.prompt[head:])


def examples_of(items: Sequence[Item], evaluated: Sequence[Item]) -> list[Item]:
    """Return the items that can serve as few-shot examples, excluding the evaluated questions and
    duplicates."""
    questions = {_question(item) for item in evaluated}
    fit = {_question(item): item for item in reversed(items) if item.expected}
    return [item for question, item in fit.items() if question not in questions]


def shots_of(
    items: Sequence[Item], wanted: int, evaluated: Sequence[Item], seed: int = 0
) -> tuple[Message, ...]:
    """Pick `wanted` few-shot examples from `items`, excluding the evaluated questions, and return them as
    messages. The same seed gives the same examples. This simulates a team that writes examples into its
    prompt."""
    free = examples_of(items, evaluated)
    order = sorted(free, key=lambda item: hashlib.sha256(f"{seed}:{item.id}".encode()).digest())
    found: list[Message] = []
    for item in order[:wanted]:
        found += [m for m in item.prompt if m.role not in ("system", "developer")]
        found.append(Message(role="assistant", content=item.expected))
    return tuple(found)


def _question(item: Item) -> bytes:
    return _json([m for m in item.prompt if m.role not in ("system", "developer")])


def with_shots(candidate: Candidate, shots: tuple[Message, ...], count: int) -> Candidate:
    """Return a candidate that queries the same model, but with the few-shot examples in each prompt."""
    name = f"{candidate.contender.name}, {count} {'shot' if count == 1 else 'shots'}"
    contender = replace(candidate.contender, name=name, shots=count)
    respondent = dataclasses.replace(candidate.respondent, name=name)
    return Candidate(contender, respondent, shots)  # its likelihoods would be without them


def by_chat(
    contender: Contender,
    chat: QuestionClient,
    sampling: Sampling,
    price: Price | None,
    first_seconds: Callable[[], float | None] | None = None,
    *,
    own: bool = False,
) -> Candidate:
    """Build a candidate that is queried through the Chat Completions API, with as many concurrent requests as
    the host allows. If answers are streamed, pass `first_seconds`: a function that returns the time to first
    token, in seconds, for the last answer received by the calling thread. Raises `UsageError` if `sampling`
    requests batches."""
    if sampling.batch is not None:
        raise UsageError(
            f"{contender.name} does not support batches. Only models on this machine do",
            fix="omit --batch, or use --on here",
        )

    ask = one_at_a_time(chat.ask_once)

    def timed(questions: Sequence[Question]) -> list[Answer]:
        return [replace(a, first_token_seconds=first_seconds and first_seconds()) for a in ask(questions)]

    identity = {"host": contender.served_by, "model": contender.model, "run": contender.run_id}
    identity |= {"checkpoint": contender.checkpoint} if contender.checkpoint else {}
    # Stored answers without a time to first token can't be reused when that time is requested.
    streamed = {"stream": True} if first_seconds else dict[str, Any]()
    respondent = Respondent(
        name=contender.name,
        identity={**identity, "kind": contender.kind, **_way(sampling), **streamed},
        ask=timed if first_seconds else ask,
        parallel=chat.threads,
        retry=chat.retry,
        max_tokens=sampling.max_tokens,
        price=price,
        own=own,
        place=contender.served_by,
        backend=contender.provider,
    )
    return Candidate(contender, respondent)


def by_generator(
    contender: Contender, generator: Generator, sampling: Sampling, weights: str, *, base: bool
) -> Candidate:
    """Build a candidate that answers in batches on this machine. `weights` identifies the model's files."""
    contender = replace(contender, precision=generator.expected_precision)

    def ask(questions: Sequence[Question]) -> list[Answer]:
        answers: dict[str, Answer] = {}
        for tools, sample in dict.fromkeys((_json(q.tools), q.sample) for q in questions):
            same = [q for q in questions if (_json(q.tools), q.sample) == (tools, sample)]
            replies = generator.attempt(
                [q.messages for q in same],
                base=base,
                max_tokens=sampling.max_tokens,
                temperature=sampling.temperature,
                seed=sampling.seed + sample,
                tools=list(same[0].tools) or None,
                rounding="told" if sampling.temperature == 0 else "left",
                schema=schema_of(sampling.response_format),
            )
            answers |= {q.digest: _answer_of(r) for q, r in zip(same, replies, strict=True)}
        return [answers[q.digest] for q in questions]

    identity = {"here": weights, "base": base, "seed": sampling.seed, **_way(sampling)}
    identity["four_bit"] = generator.four_bit
    if sampling.batch is not None:
        identity["batch"] = sampling.batch
    respondent = Respondent(
        name=contender.name,
        identity=identity,
        ask=ask,
        batch=sampling.batch or LOCAL_BATCH,
        max_tokens=sampling.max_tokens,
        price=_nothing,
    )

    return Candidate(
        contender,
        respondent,
        likelihood=partial(generator.likelihoods, base=base),
        adapter_cost=None if base or generator.adapter is None else generator.adapter_cost,
    )


def expected_likelihoods(candidate: Candidate, items: Sequence[Item]) -> list[tuple[float, int]]:
    """Return a pair for each item's expected answer: its negative log-likelihood, in nats, and its token
    count. For an item without a question, uses its entire text."""
    assert candidate.likelihood is not None  # noqa: S101  asked before
    rows: list[dict[str, Any]] = []
    for item in items:
        messages = [m.to_dict() for m in item.prompt]
        sent = {"messages": messages, "answer": item.expected, "tools": list(item.tools)}
        rows.append(sent if messages else {"text": item.expected})
    return [(found.nats, found.tokens) for found in candidate.likelihood(rows)]


def _answer_of(reply: Reply | DataError) -> Answer:
    return answer_of(reply) if isinstance(reply, Reply) else Answer(text="", error=str(reply))


def _nothing(prompt: int, completion: int) -> Decimal:
    """Return zero, because the machine is the user's own."""
    del prompt, completion
    return Decimal(0)


def fingerprint(model: str) -> str:
    """Return a fingerprint that changes when any file in a model folder changes. For a Hub id, returns the id
    with its current commit, if that is known."""
    folder = Path(model)
    if not folder.is_dir():
        commit = commit_of(model)
        return model if commit is None else f"{model}@{commit}"
    # Without device and inode, which change if a disk is mounted again.
    files = sorted((p.name, (mark(p) or ())[2:]) for p in folder.iterdir() if p.is_file())
    return hashlib.sha256(repr((str(folder.resolve()), files)).encode()).hexdigest()[:32]


_TOKENIZING = ("tokenizer", "chat_template", "special_tokens", "added_tokens", "vocab", "merges")


def tokenizing(folder: str) -> str:
    """Return a digest of an adapter's tokenizer and chat template, which its base answers with. It is the
    same for all adapters that did not change them."""
    files = sorted(p for p in Path(folder).iterdir() if p.name.startswith(_TOKENIZING) and p.is_file())
    return hashlib.sha256(repr([(p.name, sha256_once(p)) for p in files]).encode()).hexdigest()[:32]


def _way(sampling: Sampling) -> dict[str, Any]:
    format = {} if sampling.response_format is None else {"response_format": sampling.response_format}
    return {"max_tokens": sampling.max_tokens, "temperature": sampling.temperature, **format}


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


def at_traffic(candidate: Candidate, answers_per_hour: Decimal | None) -> Candidate:
    """Return a copy of a candidate that is billed hourly, with the expected number of answers per hour.
    Returns any other candidate unchanged."""
    if candidate.contender.usd_per_hour is None or answers_per_hour is None:
        return candidate
    contender = replace(candidate.contender, answers_per_hour=answers_per_hour)
    return dataclasses.replace(candidate, contender=contender)


def in_precision(contender: Contender, answers: Sequence[Answer]) -> Contender:
    """Return a copy of the contender with the precision that its answers report. If no answer reports a
    precision, returns the contender unchanged."""
    found = sorted({answer.precision for answer in answers if answer.precision is not None})
    return replace(contender, precision=" and ".join(found)) if found else contender


def renamed(candidate: Candidate, name: str) -> Candidate:
    if name == candidate.contender.name:
        return candidate
    return dataclasses.replace(
        candidate,
        contender=replace(candidate.contender, name=name),
        respondent=dataclasses.replace(candidate.respondent, name=name),
    )


def aliased(written: str) -> tuple[str, str | None]:
    """Split `MODEL as NAME`."""
    model, _, name = written.rpartition(" as ")
    return (model.strip(), name.strip()) if model.strip() and name.strip() else (written, None)


def called(written: str, names: Sequence[str]) -> list[str]:
    """Return the names of the contenders that `written` refers to. Returns the first of these groups that is
    not empty: names equal to `written`, names that start with `written`, and names that end with `=` and
    `written` (URL=MODEL)."""
    return (
        [name for name in names if name == written]
        or [name for name in names if name.startswith(written)]
        or [name for name in names if name.endswith(f"={written}")]
    )
