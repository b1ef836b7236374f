"""The canonical example: what every reader makes and every writer takes.

The field names are those of OpenAI's chat format, so that the commonest input decodes straight into these
structs.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class ImageUrl(msgspec.Struct, omit_defaults=True):
    url: str
    """https URL or base64 data URL."""
    detail: Literal["auto", "low", "high"] | None = None


class Part(msgspec.Struct, omit_defaults=True):
    """One piece of a message's content: text, or an image."""

    type: Literal["text", "image_url"]
    text: str | None = None
    image_url: ImageUrl | None = None


class FunctionCall(msgspec.Struct):
    name: str
    arguments: str
    """A JSON object, as a string."""


class ToolCall(msgspec.Struct, omit_defaults=True):
    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    weight: float | None = None
    """0 takes an assistant message out of the loss; `None` means 1."""
    reasoning: str | None = None
    """The thinking that precedes the answer, where the row has one."""

    @property
    def text(self) -> str:
        """The text of the content, image parts left out."""
        if isinstance(self.content, list):
            return "".join(part.text or "" for part in self.content)
        return self.content or ""


class ChatExample(msgspec.Struct, omit_defaults=True):
    messages: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None
    parallel_tool_calls: bool | None = None
    weight: float | None = None
    """Of the whole row, where the host takes one."""


class PreferenceExample(msgspec.Struct, omit_defaults=True):
    """`prompt`, then the answer to prefer and the one to avoid."""

    prompt: list[ChatMessage]
    preferred: list[ChatMessage]
    rejected: list[ChatMessage]
    tools: list[dict[str, Any]] | None = None


class CompletionExample(msgspec.Struct, omit_defaults=True):
    prompt: str
    completion: str


class TextExample(msgspec.Struct, omit_defaults=True):
    text: str


class RLExample(msgspec.Struct, omit_defaults=True):
    """A prompt to sample answers for, and the fields that a grader reads."""

    messages: list[ChatMessage]
    fields: dict[str, Any] = {}
    tools: list[dict[str, Any]] | None = None


Example = ChatExample | PreferenceExample | CompletionExample | TextExample | RLExample
Kind = Literal["chat", "preference", "completion", "text", "rl"]
