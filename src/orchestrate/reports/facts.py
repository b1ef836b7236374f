"""What a dataset tells about the task behind it."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

from orchestrate.data import Dataset
from orchestrate.data.rows.examples import (
    ChatExample,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
)
from orchestrate.data.shapes.reading import canonical
from orchestrate.types import Record

_SAMPLE = 20_000
"""Rows that are looked at; shares of more would not move."""
_WORD = re.compile(r"\w+")


class Facts(Record, frozen=True, kw_only=True):
    """Shares are between 0 and 1 and are taken over the rows that have an answer."""

    rows: int
    kind: str
    prompt_tokens: float
    """Mean of a row, without what is trained."""
    answer_tokens: float
    """Mean of a row: what is trained."""
    shared_tokens: float
    """Of the system prompt, where nine rows in ten have the same one; else 0."""
    json_share: float
    """Answers that are JSON objects."""
    same_keys_share: float
    """Of those, with the commonest set of keys."""
    distinct_answers: int
    distinct_share: float
    copied_share: float
    """Words of an answer that occur in its prompt, mean."""
    duplicate_share: float
    """Rows of which an equal one came before."""


def measure(dataset: Dataset, tokenizer: str = "o200k") -> Facts:
    """One pass over the rows, besides the count of tokens."""
    count = dataset.tokens(tokenizer)
    seen = _Seen()
    for example in dataset.examples():
        if seen.rows >= _SAMPLE:
            break
        seen.add(example)
    rows = max(1, count.rows)
    answers = max(1, seen.answered)
    system, times = seen.systems.most_common(1)[0] if seen.systems else ("", 0)
    everywhere = times >= 0.9 * seen.rows
    keys = seen.keys.most_common(1)[0][1] if seen.keys else 0
    return Facts(
        rows=dataset.rows,
        kind=dataset.kind,
        prompt_tokens=(count.tokens - count.trained_tokens) / rows,
        answer_tokens=count.trained_tokens / rows,
        shared_tokens=len(system) / 4 if everywhere else 0.0,  # about four characters to a token
        json_share=seen.objects / answers,
        same_keys_share=keys / seen.objects if seen.objects else 0.0,
        distinct_answers=len(seen.answers),
        distinct_share=len(seen.answers) / answers,
        copied_share=seen.copied / answers,
        duplicate_share=1 - len(seen.digests) / max(1, seen.rows),
    )


class _Seen:
    def __init__(self) -> None:
        self.rows = self.answered = self.objects = 0
        self.copied = 0.0
        self.systems: Counter[str] = Counter()
        self.keys: Counter[tuple[str, ...]] = Counter()
        self.answers: set[bytes] = set()
        self.digests: set[bytes] = set()

    def add(self, example: Example) -> None:
        system, prompt, answer = _parts(example)
        self.rows += 1
        self.digests.add(hashlib.blake2b(canonical(example), digest_size=16).digest())
        if system:
            self.systems[system] += 1
        if not answer:
            return
        self.answered += 1
        self.answers.add(_digest(answer.strip()))
        asked = set(_WORD.findall(f"{system} {prompt}".lower()))
        words = _WORD.findall(answer.lower())
        self.copied += sum(word in asked for word in words) / len(words) if words else 0.0
        with suppress(ValueError):
            value = json.loads(answer)
            if isinstance(value, dict):
                self.objects += 1
                self.keys[tuple(sorted(cast("dict[str, Any]", value)))] += 1


def _digest(*parts: str) -> bytes:
    return hashlib.blake2b("\x00".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _parts(example: Example) -> tuple[str, str, str]:
    """(system prompt, the rest of the prompt, the last answer)."""
    if isinstance(example, ChatExample):
        said = [(m.role, m.text) for m in example.messages]
        answer = said[-1][1] if said and said[-1][0] == "assistant" else ""
        return (
            _joined(said, "system", "developer"),
            _joined(said[:-1] if answer else said, "user", "tool"),
            answer,
        )
    if isinstance(example, PreferenceExample):
        said = [(m.role, m.text) for m in example.prompt]
        return (
            _joined(said, "system"),
            _joined(said, "user"),
            example.preferred[-1].text if example.preferred else "",
        )
    if isinstance(example, UnpairedExample):
        said = [(m.role, m.text) for m in example.prompt]
        answer = example.completion[-1].text if example.label else ""
        return _joined(said, "system", "developer"), _joined(said, "user", "tool"), answer
    if isinstance(example, CompletionExample):
        return "", example.prompt, example.completion
    if isinstance(example, RLExample):
        said = [(m.role, m.text) for m in example.messages]
        return _joined(said, "system", "developer"), _joined(said, "user", "tool"), ""
    return "", "", ""


def _joined(said: Iterable[tuple[str, str]], *roles: str) -> str:
    return "\n".join(text for role, text in said if role in roles)
