"""Parse an answer while it is generated: the text that can no longer change, stop sequences, and the finish
reason."""

# The type annotations of transformers are incomplete.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from orchestrate.data.tokens.answers import ReadAnswer
from orchestrate.data.tokens.hub_tokens import bytes_of, text_of
from orchestrate.local.encoding import Template
from orchestrate.local.model.sampling import DrawnToken
from orchestrate.local.model.sampling.batching import DecodingRow
from orchestrate.local.model.sampling.sampler import Sampler

EVERY_TOKEN = 64
"""Maximum answer length, in tokens, at which the text is parsed after every token. Longer answers are parsed
less often, so that parsing doesn't become slower than generation."""


@dataclass(frozen=True)
class EngineModel:
    """A model that an engine serves."""

    name: str
    adapter: str
    """The name that PEFT uses for the adapter."""
    template: Template
    sampler: Sampler
    folder: Path | None = None
    """Folder of the tuned model. `None` for the base model."""
    replaced: bool = False
    """True for a full tuned model, and for an adapter that changes the base's weights. The unmodified base
    must then be loaded separately."""
    trained_length: int | None = None
    """The `max_seq_length` that the model was trained with, in tokens. `None` if it is unknown."""


@dataclass
class Speech:
    """The text of one answer. If `chat` is set, it is parsed in the template's answer format. Otherwise, it
    is plain text. If `stream` is set, each piece is sent as soon as it is final. Otherwise, the entire answer
    is sent at the end."""

    row: DecodingRow
    model: EngineModel
    choice: int
    chat: bool
    stream: bool
    stop: tuple[str, ...] = ()
    tools: Sequence[dict[str, Any]] | None = None
    calls: bool | None = None
    """True to parse tool calls. `None` parses them only if tools were offered."""
    with_tokens: bool = False
    _tokens: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    _sent: tuple[str, str] = ("", "")
    """The content and reasoning sent so far."""

    def take(self, drawn: DrawnToken | None = None) -> dict[str, Any] | None:
        """Return the message to send after a token, or `None` if there is nothing to send. Ends the row at a
        stop sequence."""
        if self.with_tokens and drawn is not None:
            self._tokens.append(token_of(self.model.template.tokenizer, drawn))
        ids, stopped = self.model.sampler.said(self.row.ids)
        if not self.row.ended and not self._looks(len(self.row.ids)):
            return None
        said = self._said(ids, growing=not self.row.ended, cut=not stopped)
        cut = min((at for stop in self.stop if (at := said.content.find(stop)) >= 0), default=None)
        if cut is not None:
            self.row.ended = True
            said = ReadAnswer(said.content[:cut], said.reasoning)
        if self.row.ended:
            return self._final(said, "stop" if cut is not None or stopped else "length")
        return self._piece(said) if self.stream else None

    def _looks(self, count: int) -> bool:
        return (self.stream or bool(self.stop)) and (
            bool(self.stop) or count % max(1, count // EVERY_TOKEN) == 0
        )

    def _said(self, ids: list[int], *, growing: bool, cut: bool) -> ReadAnswer:
        template = self.model.template
        if not self.chat:
            return ReadAnswer(template.tokenizer.decode(ids, skip_special_tokens=True))
        return template.said(
            ids,
            self.row.prompt,
            tools=self.tools or None,
            cut=cut and not growing,
            calls=bool(self.tools) if self.calls is None else self.calls,
            growing=growing,
        )

    def _piece(self, said: ReadAnswer) -> dict[str, Any] | None:
        """Return the text that no later token can change. Half a character and the possible start of a stop
        sequence are held back."""
        content = said.content.rstrip("\ufffd")
        for stop in self.stop:
            held = next((n for n in range(len(stop) - 1, 0, -1) if content.endswith(stop[:n])), 0)
            content = content[: len(content) - held]
        return self._more(content, (said.reasoning or "").rstrip("\ufffd"))

    def _more(self, content: str, reasoning: str) -> dict[str, Any] | None:
        sent, thought = self._sent
        new = content[len(sent) :] if content.startswith(sent) else ""
        new_thought = reasoning[len(thought) :] if reasoning.startswith(thought) else ""
        if not new and not new_thought:
            return None
        self._sent = sent + new, thought + new_thought
        tokens, self._tokens = self._tokens, []
        return {"choice": self.choice, "content": new, "reasoning": new_thought, "tokens": tokens}

    def _final(self, said: ReadAnswer, reason: str) -> dict[str, Any]:
        last: dict[str, Any] = {
            "content": said.content,
            "reasoning": said.reasoning or "",
            "tokens": self._tokens,
        }
        if self.stream:
            empty = {"content": "", "reasoning": "", "tokens": self._tokens}
            last = self._more(said.content, said.reasoning or "") or empty
        calls = [msgspec.to_builtins(call) for call in said.tool_calls]
        return {
            **last,
            "choice": self.choice,
            "tool_calls": calls,
            "reason": "tool_calls" if calls and reason == "stop" else reason,
            "ids": self.row.ids if self.with_tokens else [],
            "completion_tokens": len(self.row.ids),
        }


def token_of(tokenizer: Any, drawn: DrawnToken) -> dict[str, Any]:
    tops = [{"logprob": value, **_written(tokenizer, id)} for id, value in drawn.tops]
    return {"logprob": drawn.logprob, **_written(tokenizer, drawn.id), "tops": tops}


def _written(tokenizer: Any, id: int) -> dict[str, Any]:
    return {"token": text_of(tokenizer, id), "bytes": list(bytes_of(tokenizer, id))}
