"""Prompts that identify a tuned model wherever it is served."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    PreferenceExample,
    RLExample,
    UnpairedExample,
)
from orchestrate.errors import DataError
from orchestrate.local.encoding import decode_prompt, decode_row

# Prompts for a served model: conversations of various kinds, and prompts from the data. Torch-free.


CANDIDATES = 16
"""Maximum number of prompts to try as canaries, which are prompts on which the tuned model differs from its
base."""
CANARIES = 6
CLEAR = 0.125
"""Minimum difference in nats between the log-probabilities that a model gives to its own token and to another
one. Equal to two steps of a bf16 logit. With a smaller difference, rounding in another engine or batch may
reverse the order, so the token does not identify the model."""
ANSWER_TOKENS = 32
ENDING_TOKENS = 256
"""Maximum answer length in tokens for a second attempt. If fewer than two answers are complete within
`ANSWER_TOKENS`, all of them are generated again with this limit."""
LONGEST_PROMPT = 2_048
"""Maximum length of a prompt in tokens. Longer prompts would make checks more expensive but not more
reliable."""
MOST_LINES = 2_000
"""Maximum number of lines to read from a data file when looking for prompts."""
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Current weather in a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}


@dataclass(frozen=True)
class ProbePrompt:
    """A prompt: a conversation to answer, or a string to continue."""

    messages: tuple[ChatMessage, ...] = ()
    tools: tuple[dict[str, Any], ...] | None = None
    text: str | None = None
    kind: str = "data"

    @property
    def plain(self) -> tuple[dict[str, Any], ...]:
        """The messages as JSON values."""
        return tuple(msgspec.to_builtins(list(self.messages)))


def _said(*turns: tuple[str, str]) -> tuple[ChatMessage, ...]:
    roles: Any = [ChatMessage(role=role, content=text) for role, text in turns]  # pyright: ignore[reportArgumentType]
    return tuple(roles)


def probes(marks: Sequence[str]) -> list[ProbePrompt]:
    """Build the built-in prompts: conversations with features that servers often render differently. `marks`
    are the model's special tokens as text. One of the prompts contains a special token, because servers
    differ most in how they handle special tokens."""
    mark = next((m for m in marks if len(m) > 2), "<|endoftext|>")
    hello = ("user", "Name three rivers.")
    return [
        ProbePrompt(_said(hello), kind="plain"),
        ProbePrompt(_said(("system", "Answer in one word."), hello), kind="system"),
        ProbePrompt(
            _said(hello, ("assistant", "Rhine, Nile, Volga."), ("user", "And three lakes?")),
            kind="multi-turn",
        ),
        ProbePrompt(_said(hello), (WEATHER,), kind="tools"),
        ProbePrompt(_said(("user", f"What does {mark} mean in a prompt?")), kind="special tokens"),
        ProbePrompt(
            _said(("user", "Zürich, 東京, हिन्दी, عربي, e\u0301, 👩‍🚀, \u00a0 and a tab\tplease.")),
            kind="Unicode",
        ),
        ProbePrompt(_said(("user", "  two lines\n\n\n  and   12345678 spaces  ")), kind="white space"),
    ]


def of_data(path: Path, most: int) -> list[ProbePrompt]:
    """Return up to `most` distinct prompts from a file of canonical rows, or an empty list if the file cannot
    be read."""
    found: dict[bytes, ProbePrompt] = {}
    try:
        with path.open("rb") as lines:
            for line in islice(lines, MOST_LINES):
                for asked in _prompts(line):
                    found.setdefault(msgspec.json.encode([asked.plain, asked.tools, asked.text]), asked)
                if len(found) >= most:
                    break
    except OSError:
        return []
    return list(found.values())[:most]


def of_example(example: Example) -> ProbePrompt | None:
    """Return the prompt of a row, which is the part before the last answer. Returns `None` if that part is
    empty."""
    match example:
        case ChatExample():
            last = max((n for n, m in enumerate(example.messages) if m.role == "assistant"), default=0)
            messages, tools = example.messages[:last], example.tools
        case PreferenceExample() | UnpairedExample():
            messages, tools = example.prompt, example.tools
        case RLExample():
            messages, tools = example.messages, example.tools
        case CompletionExample():
            return ProbePrompt(text=example.prompt) if example.prompt else None
        case _:
            return None
    return ProbePrompt(tuple(messages), tuple(tools) if tools else None) if messages else None


def _prompts(line: bytes) -> Iterator[ProbePrompt]:
    for read in (decode_row, decode_prompt):
        try:
            example = read(line)
        except DataError:
            continue
        if asked := of_example(example):
            yield asked
        return
