"""Derive Ollama's TEMPLATE from the model's own chat template, and use it only if both render the same text.

Ollama renders with Go's text/template, which does not support Jinja. This module renders known conversations
with the chat template and extracts the text between messages. From these pieces, it builds the Go template
and predicts its output. If the prediction differs from the chat template's output for one of the test
prompts in `LINEAR`, the export fails, because the model would get different tokens than in training.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from orchestrate.errors import UsageError

SYSTEM, USER, ANSWER, NEXT = "SystemWordsHere", "UserWordsHere", "AnswerWordsHere", "NextWordsHere"
SHAPES: dict[str, list[tuple[str, str]]] = {
    "one": [("user", USER)],
    "with system": [("system", SYSTEM), ("user", USER)],
    "more": [("user", USER), ("assistant", ANSWER), ("user", NEXT)],
    "longer": [("user", USER), ("assistant", ANSWER), ("user", NEXT), ("assistant", "X"), ("user", "Y")],
    "more with system": [("system", SYSTEM), ("user", USER), ("assistant", ANSWER), ("user", NEXT)],
}
LINEAR = ("plain", "system", "multi-turn", "special tokens", "Unicode")
"""Kinds of prompts that must render identically. Differences in white space around a message are accepted,
because many chat templates trim it but Go templates cannot. Tools would need a separate template."""


@dataclass(frozen=True)
class TemplatePieces:
    """The text that a template writes before, between and after messages, keyed by (previous role, role)."""

    between: Mapping[tuple[str, str], str]
    end: str
    """The text after the last user message, where the answer begins."""

    def rendered(self, messages: Sequence[Mapping[str, Any]]) -> str:
        text, before = "", ""
        for message in messages:
            text += self.between[before, message["role"]] + message["content"]
            before = message["role"]
        return text + self.end

    def template(self) -> str:
        """Return a template for Go's text/template that renders Ollama's `.Messages` with these pieces."""
        cases = "".join(
            f"{{{{- {'else ' if n else ''}if and (eq $before {_go(before)}) (eq .Role {_go(role)}) }}}}"
            f"{_text(piece)}\n"
            for n, ((before, role), piece) in enumerate(self.between.items())
        )
        return (
            '{{- $before := "" }}\n'
            "{{- range .Messages }}\n"
            f"{cases}"
            "{{- end }}{{ .Content }}\n"
            "{{- $before = .Role }}\n"
            f"{{{{- end }}}}{_text(self.end)}"
        )


def _go(text: str) -> str:
    """Return a Go string literal. JSON's escapes are also valid in Go. Characters that are not printable are
    escaped, because Ollama's parser of Modelfiles drops them."""
    return "".join(c if c.isprintable() else _escape(c) for c in json.dumps(text, ensure_ascii=False))


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _stop(text: str) -> str:
    """Quote a value for Ollama's parser, which supports two kinds of quotes and no escapes. Raises
    `UsageError`."""
    quotes = '"""' if '"' in text else '"'
    if text.endswith('"') or '"""' in text or not text.replace("\n", "").isprintable():
        raise UsageError(
            f"a Modelfile cannot contain the stop sequence {text!r}",
            fix="use  orchestrate export --to gguf  and serve the file with llama-server",
        )
    return f"{quotes}{text}{quotes}"


def _text(piece: str) -> str:
    return f"{{{{ {_go(piece)} }}}}" if piece else ""


def learn(shown: Mapping[str, str | None], bos: str | None) -> TemplatePieces:
    """Extract the text that a chat template writes around messages. `shown` maps each of `SHAPES` to its
    rendered text, or to `None` if the template rejects the shape. `bos` is removed from the extracted text,
    because the engine adds it to the start of every prompt. Raises `UsageError` if the template cannot be
    split into such pieces."""
    one, more = _cut(shown["one"], [USER]), _cut(shown["more"], [USER, ANSWER, NEXT])
    if one is None or more is None or one[0] != more[0] or one[-1] != more[-1]:
        raise _refused("the template does not render messages one after another")
    between = {
        ("", "user"): one[0],
        ("user", "assistant"): more[1],
        ("assistant", "user"): more[2],
    }
    system = _cut(shown["with system"], [SYSTEM, USER])
    if system is not None:
        between |= {("", "system"): system[0], ("system", "user"): system[1]}
    longer = [{"role": role, "content": text} for role, text in SHAPES["longer"]]
    if TemplatePieces(between, one[-1]).rendered(longer) != shown["longer"]:
        raise _refused("the template renders later messages differently from the first messages")
    if bos:
        between = {k: v.removeprefix(bos) if not k[0] else v for k, v in between.items()}
    return TemplatePieces(between, one[-1])


def prove(
    pieces: TemplatePieces,
    probes: Mapping[str, tuple[Sequence[Mapping[str, Any]], str | None]],
    bos: str | None,
) -> list[str]:
    """Verify that the pieces render each test prompt as the chat template does, and return a note for each
    difference. `probes` is {kind: (conversation, the chat template's output)}. A difference in one of the
    kinds in `LINEAR` raises `UsageError` instead."""
    notes: list[str] = []
    for kind, (messages, wanted) in probes.items():
        if wanted is None:
            continue
        try:
            made = pieces.rendered(messages)
        except KeyError:
            made = None
        if made == (wanted.removeprefix(bos) if bos else wanted):
            continue
        if kind in LINEAR:
            raise _refused(
                f"the Go template renders the test prompt '{kind}' differently than the model's chat template"
            )
        notes.append(f"TEMPLATE renders prompts with {kind} differently than in training")
    return notes


def modelfile(gguf: str, pieces: TemplatePieces, stops: Sequence[str], context: int | None) -> str:
    lines = [f"FROM ./{gguf}", f'TEMPLATE """{pieces.template()}"""']
    lines += [f"PARAMETER stop {_stop(stop)}" for stop in stops]
    lines.append("PARAMETER temperature 0")
    if context:
        lines.append(f"PARAMETER num_ctx {min(context, 8192)}")
    return "\n".join(lines) + "\n"


def _cut(text: str | None, words: Sequence[str]) -> list[str] | None:
    """Split a text at the given words. Returns `None` unless each word occurs exactly once, in this order."""
    if text is None or any(text.count(word) != 1 for word in words):
        return None
    parts: list[str] = []
    for word in words:
        before, found, text = text.partition(word)
        if not found:
            return None
        parts.append(before)
    return [*parts, text]


def _refused(why: str) -> UsageError:
    return UsageError(
        f"could not convert this model's chat template to an Ollama TEMPLATE: {why}",
        fix="use  orchestrate export --to gguf  and serve the file with llama-server, which uses the "
        "original chat template",
    )
