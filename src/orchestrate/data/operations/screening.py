"""Whether a generated row is worth keeping: rightly formed, free of what data must not hold, and new.

The rules are those of `data check`; what a row is compared with are the seeds and the rows kept before.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from xxhash import xxh3_64_intdigest

from orchestrate.data.passes.near import Seen
from orchestrate.data.rows.content import candidates, confirmed
from orchestrate.data.rows.examples import (
    ChatExample,
    Example,
    Kind,
    PreferenceExample,
    RLExample,
    UnpairedExample,
    messages_of,
)
from orchestrate.data.rules import Target
from orchestrate.data.shapes import known
from orchestrate.data.shapes.reading import (
    answers,
    canonical,
    canonical_answered,
    canonical_prompt,
    reading,
    visible,
)
from orchestrate.data.targets.dialects import canonical_line
from orchestrate.types import Severity

UNWANTED = frozenset({"secret", "refusal", "placeholder", "mojibake", "replacement-character"})
"""Findings in the text that no synthetic row needs. Personal data is not among them: it is invented."""


@dataclass
class Screened:
    """`lines` are the rows to keep, as JSON; `refused` counts the others by code."""

    lines: list[bytes] = field(default_factory=list[bytes])
    refused: Counter[str] = field(default_factory=Counter[str])


class Screening:
    """Decides row by row, and remembers what it has kept."""

    def __init__(
        self, kind: Kind, seeds: Sequence[Example], *, hosts: Sequence[Target] = (), threshold: float = 0.8
    ) -> None:
        """`hosts` are the backends that must take each row."""
        self._kind: Kind = kind
        self._refused_traits = 0
        for host in hosts:
            self._refused_traits |= host.rules.refused(kind)
        self._write = canonical_line
        self._rows: set[int] = set()
        self._prompts: set[int] = set()
        self._near = Seen(threshold)
        self._remember(seeds)

    def _remember(self, examples: Sequence[Example]) -> None:
        for example in examples:
            self._rows.add(xxh3_64_intdigest(canonical(example)))
            if self._kind != "text":
                self._prompts.add(xxh3_64_intdigest(_asked(example)))
        self._near.add([_own_text(example) for example in examples])

    def resume(self, lines: Sequence[bytes]) -> None:
        """Remembers rows that were kept by an earlier run."""
        read = [self._read(line)[0] for line in lines]
        self._remember([example for example in read if example is not None])

    def screen(self, text: str) -> Screened:
        """The rows in a model's answer, which may have anything around them."""
        screened = Screened()
        for piece in objects(text):
            example, code = self._read(piece)
            if example is not None:
                code = self._repeats(example)
            if example is None or code is not None:
                screened.refused[code or "invalid-json"] += 1
                continue
            screened.lines.append(self._write(example))
        return screened

    def _read(self, line: bytes) -> tuple[Example | None, str | None]:
        """The row, or the code of what is wrong with it."""
        try:
            value: Any = json.loads(line)
        except (ValueError, RecursionError):
            return None, "invalid-json"
        shape = known.recognise(cast("dict[str, Any]", value)) if isinstance(value, dict) else None
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
        """Remembers the row unless it says again what was there."""
        row, prompt = (xxh3_64_intdigest(part) for part in (canonical(example), _asked(example)))
        if row in self._rows:
            return "duplicate"
        if self._kind != "text" and prompt in self._prompts:
            return "conflict"
        if self._near.add([_own_text(example)])[0]:
            return "near-duplicate"
        self._rows.add(row)
        self._prompts.add(prompt)
        return None


def _asked(example: Example) -> bytes:
    """What has one answer only; of unpaired rows a prompt has many, and each of them one label."""
    return canonical_answered(example) if isinstance(example, UnpairedExample) else canonical_prompt(example)


def _own_text(example: Example) -> str:
    """Without what all rows of a file may share: a long system message would make them all alike."""
    if not isinstance(example, ChatExample | PreferenceExample | UnpairedExample | RLExample):
        return visible(example)
    own = [m for m in messages_of(example) if m.role not in ("system", "developer")]
    return visible(ChatExample(messages=own))


def objects(text: str) -> Iterator[bytes]:
    """The JSON objects of a text, outermost first; a list of rows under one name gives its rows. What begins
    like an object and is none is given up to the end of its line."""
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


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"\n", b" ")


def _listed(value: Mapping[str, Any]) -> list[Any] | None:
    """The rows of `{"examples": [...]}`, `None` when the value is a row itself."""
    if known.recognise(dict(value)) is not None or len(value) != 1:
        return None
    only = next(iter(value.values()))
    return cast("list[Any]", only) if isinstance(only, list) else None
