"""Calls of tools, by OpenAI's names: in rows of data, and in answers."""

from __future__ import annotations

from typing import Literal

import msgspec


class FunctionCall(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    name: str
    arguments: str
    """A JSON object, as a string."""


class ToolCall(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """`gc=False` is safe as no call ever refers to itself; it halves the cost of decoding."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"
