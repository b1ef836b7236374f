"""The ways in which messages are handed to chat templates."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import xxhash

from orchestrate.data.rows.examples import ChatMessage
from orchestrate.data.tokens.chat_templates import message
from orchestrate.data.tokens.words import KEPT, around


class Form(NamedTuple):
    """How messages are handed to a template; templates of the field disagree on it."""

    text_arguments: bool = False
    """Arguments of a call as JSON text, not as an object."""
    no_content: bool = False
    """`None`, not an empty text, beside tool calls."""
    short_ids: bool = False
    """Nine letters and digits."""
    parts: bool = False
    """Content as a list of parts."""


_FORMS = [Form(*flags) for flags in product((False, True), repeat=4)]
_FORMS.sort(key=lambda form: (sum(form), form))


def forms_for(messages: Sequence[ChatMessage]) -> Iterable[Form]:
    called = any(m.tool_calls for m in messages)
    return _FORMS if called else [form for form in _FORMS if not any(form[:3])]


def as_form(form: Form, messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for of in messages:
        shown = message(of)
        if form.parts:
            shown["content"] = [{"type": "text", "text": shown["content"]}]
        if calls := shown.get("tool_calls"):
            if form.no_content and not shown["content"]:
                shown["content"] = None
            for call, given in zip(calls, of.tool_calls or (), strict=True):
                if form.text_arguments:
                    call["function"]["arguments"] = given.function.arguments
                if form.short_ids:
                    call["id"] = _short(call["id"])
        if form.short_ids and "tool_call_id" in shown:
            shown["tool_call_id"] = _short(shown["tool_call_id"])
        out.append(shown)
    return out


def _short(id: str) -> str:
    """Nine letters and digits, the same for the same id."""
    return id if re.fullmatch(r"[A-Za-z0-9]{9}", id) else xxhash.xxh64_hexdigest(id.encode())[:9]


def signature(of: ChatMessage) -> tuple[object, ...]:
    """Messages of one signature are written by the same words of a template."""
    calls = tuple(
        (call.function.name, re.sub(r'(?<=")(?:[^"\\]|\\.)*(?=")', "", call.function.arguments))
        for call in of.tool_calls or ()
    )
    return (of.role, of.name, _outline(of.text), _outline(of.reasoning or ""), calls)


def _outline(text: str) -> tuple[str, ...]:
    pieces = KEPT.split(text)
    pieces[::2] = [around(piece, "x") for piece in pieces[::2]]
    return tuple(pieces)
