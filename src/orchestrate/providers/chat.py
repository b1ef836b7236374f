"""Asking a model through the chat completions API, which all hosts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from orchestrate.providers.hosted import Wire
from orchestrate.providers.values import plain, rows, table, text, whole
from orchestrate.types import Message, Reply


def replies(
    wire: Wire,
    create: Callable[..., Any],
    model: str,
    prompts: Sequence[Sequence[Message]],
    *,
    max_tokens: int,
    temperature: float,
) -> list[Reply]:
    """One reply per conversation; `create` is an SDK client's `chat.completions.create`.

    A model that is still being brought up answers 503 or 429, so a question is asked again as a read is.
    """
    found: list[Reply] = []
    for prompt in prompts:
        messages = [{"role": m.role, "content": m.content} for m in prompt]
        answer = wire.read(
            lambda messages=messages: create(
                model=model, messages=messages, max_tokens=max_tokens, temperature=temperature
            )
        )
        found.append(reply(answer, model))
    return found


def reply(completion: object, model: str) -> Reply:
    """The reply in an SDK's completion; `model` is what was asked."""
    answer = plain(completion)
    choice = next(iter(rows(answer.get("choices"))), table(None))
    usage = table(answer.get("usage"))
    return Reply(
        content=text(table(choice.get("message")).get("content")) or "",
        model=text(answer.get("model")) or model,
        prompt_tokens=whole(usage.get("prompt_tokens")),
        completion_tokens=whole(usage.get("completion_tokens")),
        finish_reason=text(choice.get("finish_reason")),
    )
