"""Answers of the chat completions API, and of the older completions API, whole and in pieces."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

COMPLETION, CHUNK = "chat.completion", "chat.completion.chunk"
DONE = "data: [DONE]\n\n"


def event(body: dict[str, Any]) -> str:
    """A piece as server-sent events have it."""
    return f"data: {json.dumps(body, ensure_ascii=False)}\n\n"


def completion(
    id: str, created: int, model: str, choices: Sequence[dict[str, Any]], usage: dict[str, Any]
) -> dict[str, Any]:
    return {
        "id": id,
        "object": COMPLETION,
        "created": created,
        "model": model,
        "choices": list(choices),
        "usage": usage,
    }


def chunk(
    id: str,
    created: int,
    model: str,
    choices: Sequence[dict[str, Any]],
    usage: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """`usage` is for the last piece, which has no choices, where it was asked for."""
    told = {} if usage is None else {"usage": usage}
    return {"id": id, "object": CHUNK, "created": created, "model": model, "choices": list(choices), **told}


def message(content: str | None, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **more}


def choice(
    index: int, message: dict[str, Any], reason: str, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "message": message, "finish_reason": reason, "logprobs": logprobs}


def piece(
    index: int, delta: dict[str, Any], reason: str | None, logprobs: dict[str, Any] | None = None
) -> dict[str, Any]:
    return {"index": index, "delta": delta, "finish_reason": reason, "logprobs": logprobs}


def usage(prompt: int, completion: int) -> dict[str, Any]:
    """In tokens."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def call(index: int | None, id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call of a tool; in pieces it has an index."""
    place = {} if index is None else {"index": index}
    return {**place, "id": id, "type": "function", "function": {"name": name, "arguments": arguments}}
