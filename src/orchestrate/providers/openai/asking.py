"""One chat completion at a time from any host that speaks the chat completions API."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, cast

from orchestrate.config import HostConfig
from orchestrate.profile import kinds, profile
from orchestrate.providers.hosted import Retry, Wire
from orchestrate.providers.openai.connection import connect
from orchestrate.providers.openai.profile import PROFILE
from orchestrate.types import Message, Reply


def asker(
    config: HostConfig, model: str, *, max_tokens: int, temperature: float | None = None
) -> Callable[[Sequence[Message]], Reply]:
    """A function that sends one request and tries once; callable from several threads. Raises `MissingKey`
    at once, and the function raises `ProviderError`."""
    from orchestrate.providers.chat import reply

    path = profile(config.kind).chat_path if config.kind in kinds() else ""
    root = (config.base_url or "").rstrip("/")
    if path and not root.endswith("/v1"):
        config = replace(config, base_url=root + path)
    create = cast("Callable[..., object]", connect(config).chat.completions.create)
    wire = Wire(config.name, retry=Retry(attempts=1))
    # OpenAI's newer models refuse `max_tokens`, and many compatible hosts know nothing else.
    openai = (config.base_url or "").startswith(PROFILE.url or "")
    limits: dict[str, Any] = {"max_completion_tokens" if openai else "max_tokens": max_tokens}
    if temperature is not None:
        limits["temperature"] = temperature

    def ask(messages: Sequence[Message]) -> Reply:
        shaped = [{"role": m.role, "content": m.content} for m in messages]
        answer = wire.read(lambda: create(model=model, messages=shaped, **limits))
        return reply(answer, model)

    return ask
