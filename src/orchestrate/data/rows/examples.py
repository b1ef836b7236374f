"""The canonical example: what every reader makes and every writer takes.

The field names are those of OpenAI's chat format, so that the commonest input decodes straight into these
structs. They refuse unknown fields: a row that has some goes through `data.shapes.known`, which reports them
instead of losing them.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

Role = Literal["system", "developer", "user", "assistant", "tool", "function"]
ROLES: tuple[str, ...] = get_args(Role)


class _Canonical(msgspec.Struct, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """`gc=False` is safe as no example ever refers to itself; it halves the cost of decoding."""


class ImageUrl(_Canonical):
    url: str
    """https URL or base64 data URL."""
    detail: Literal["auto", "low", "high"] | None = None


class Part(_Canonical):
    """One piece of a message's content: text, or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class FunctionCall(_Canonical):
    name: str
    arguments: str
    """A JSON object, as a string."""


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(_Canonical):
    role: Role
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    weight: int | float | None = None
    """0 takes an assistant message out of the loss; `None` means 1."""
    reasoning: str | None = None
    """The thinking that precedes the answer, where the row has one."""
    loss_spans: list[tuple[int, int]] | None = None
    """Characters of `text` that carry loss, as (first, after the last), in order and apart; `None` means all
    of an answer that `weight` does not take out."""

    @property
    def text(self) -> str:
        """The text of the content, image parts left out."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class ChatExample(_Canonical):
    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    weight: int | float | None = None
    """Of the whole row, where the host takes one."""


class PreferenceExample(_Canonical):
    """`prompt`, then the answer to prefer and the one to avoid."""

    prompt: list[ChatMessage]
    preferred: list[ChatMessage]
    rejected: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class UnpairedExample(_Canonical):
    """`prompt`, then one answer, and whether it is one to give (`label`) or one to avoid."""

    prompt: list[ChatMessage]
    completion: list[ChatMessage]
    label: bool
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None


class CompletionExample(_Canonical):
    prompt: str
    completion: str


class TextExample(_Canonical):
    text: str
    loss_spans: list[tuple[int, int]] | None = None
    """As in `ChatMessage`; `None` means all of it."""


class RLExample(_Canonical):
    """A prompt to sample answers for, and the fields that a grader reads."""

    messages: list[ChatMessage]
    fields: dict[str, Any] = {}
    tools: list[dict[str, Any]] | None = None


Example = ChatExample | PreferenceExample | UnpairedExample | CompletionExample | TextExample | RLExample
Kind = Literal["chat", "preference", "unpaired", "completion", "text", "rl"]

KINDS: dict[type[Any], Kind] = {
    ChatExample: "chat",
    PreferenceExample: "preference",
    UnpairedExample: "unpaired",
    CompletionExample: "completion",
    TextExample: "text",
    RLExample: "rl",
}


def kind_of(example: Example) -> Kind:
    return KINDS[type(example)]


def messages_of(example: Example) -> list[ChatMessage]:
    """All messages of the row, none for plain text."""
    match example:
        case ChatExample() | RLExample():
            return example.messages
        case PreferenceExample():
            return [*example.prompt, *example.preferred, *example.rejected]
        case UnpairedExample():
            return [*example.prompt, *example.completion]
        case _:
            return []
