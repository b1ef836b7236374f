"""Convert API requests to the engine's format, and reject what is not supported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, cast

from orchestrate.data.response_formats import schema_of
from orchestrate.errors import UsageError
from orchestrate.http.wire import HostError
from orchestrate.http.wire.openai.chat import ApiMessage, ChatRequest, CompletionRequest, SamplingRequest

REFUSED = {
    "reasoning_effort": "the chat template sets the amount of reasoning",
    "verbosity": "the length of responses is learned in training. Ask for a different length in the prompt",
    "modalities": "only text output is supported",
}
"""Unsupported fields that would change an answer."""


def chat_options(asked: ChatRequest) -> dict[str, Any]:
    """Convert a chat request to the engine's format. Raises `HostError` 400 if a field is invalid or not
    supported."""
    for name, why in REFUSED.items():
        value: Any = getattr(asked, name)
        if value not in (None, ["text"]) and value != {"type": "text"}:
            raise HostError(400, f"{name} is not supported: {why}", param=name, code="unsupported_parameter")
    tools = None if asked.tool_choice == "none" else asked.tools
    if asked.tool_choice not in (None, "auto") or asked.response_format:
        for tool in tools or ():
            _require_plain(tool)
    calls = _required(asked.tool_choice, tools)
    schema = None if calls else _schema(asked.response_format)
    form = None
    if calls or schema is not None:
        form = {"schema": schema, "calls": calls or tools or None}
    tops = (asked.top_logprobs or 0) if asked.logprobs else None
    if asked.top_logprobs is not None and not asked.logprobs:
        raise HostError(400, "top_logprobs requires logprobs: true", param="top_logprobs")
    return {
        **_sampling(asked),
        "messages": [message(m, n) for n, m in enumerate(asked.messages)],
        "tools": tools or None,
        "max_tokens": asked.max_completion_tokens or asked.max_tokens,
        "logprobs": tops,
        "form": form,
    }


def _schema(asked: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON schema of the answer. Raises `HostError` 400."""
    try:
        return schema_of(asked)
    except UsageError as error:
        raise HostError(400, error.message, param="response_format") from error


_TOOL_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,128}")


def _require_plain(tool: dict[str, Any]) -> None:
    """Raise `HostError` 400 for a tool that the engine cannot enforce. The tool's name becomes part of the
    grammar."""
    function: Any = tool.get("function")
    if tool.get("type") != "function" or not isinstance(function, dict):
        raise HostError(400, 'a tool must have "type": "function" and a function object', param="tools")
    given = cast("dict[str, Any]", function)
    name = given.get("name")
    if not isinstance(name, str) or not _TOOL_NAME.fullmatch(name):
        words = "a tool needs a name, which may only contain letters, digits, _, -, . and :"
        raise HostError(400, words, param="tools")
    parameters: Any = given.get("parameters", {})
    if not isinstance(parameters, dict):
        raise HostError(400, "parameters of a tool must be a JSON Schema object", param="tools")
    if parameters and cast("dict[str, Any]", parameters).get("type") != "object":
        raise HostError(400, 'parameters of a tool must have "type": "object"', param="tools")


def _required(
    choice: str | dict[str, Any] | None, tools: list[dict[str, Any]] | None
) -> list[dict[str, Any]]:
    """Return the tools, which are plain, of which one must be called. Raises `HostError` 400."""
    if choice in (None, "auto", "none"):
        return []
    known = tools or []
    if choice != "required":
        function: dict[str, Any] | None = choice.get("function") if isinstance(choice, dict) else None
        if not isinstance(function, dict) or set(choice) - {"type", "function"}:  # type: ignore[arg-type]
            words = (
                'tool_choice must be auto, none, required, or {"type": "function", "function": {"name": ...}}'
            )
            raise HostError(400, words, param="tool_choice", code="unsupported_parameter")
        known = [tool for tool in known if tool["function"]["name"] == function.get("name")]
    if not known:
        raise HostError(400, "tool_choice: the named tool is not in tools", param="tool_choice")
    return known


def completion_options(asked: CompletionRequest) -> list[dict[str, Any]]:
    """Convert a completion request to the engine's format, one entry per prompt. Raises `HostError` 400 if a
    field is invalid or not supported."""
    for name in ("echo", "suffix", "best_of"):
        if getattr(asked, name) not in (None, False, 1):
            raise HostError(400, f"{name} is not supported", param=name, code="unsupported_parameter")
    prompts: Sequence[str | list[int]]
    if isinstance(asked.prompt, str):
        prompts = [asked.prompt]
    elif asked.prompt and isinstance(asked.prompt[0], int):
        prompts = [asked.prompt]  # type: ignore[list-item]
    else:
        prompts = asked.prompt  # type: ignore[assignment]
    if not 1 <= len(prompts) <= 16:
        raise HostError(400, "prompt must contain 1 to 16 prompts", param="prompt")
    more = {**_sampling(asked), "max_tokens": asked.max_tokens or 16, "logprobs": asked.logprobs}
    return [{**more, "text" if isinstance(p, str) else "ids": p} for p in prompts]


def _sampling(asked: SamplingRequest) -> dict[str, Any]:
    return {
        "model": asked.model,
        "n": asked.n,
        "temperature": 1.0 if asked.temperature is None else asked.temperature,
        "top_p": asked.top_p or 1.0,
        "top_k": asked.top_k or 0,
        "seed": asked.seed,
        "stop": asked.stops,
        "presence_penalty": asked.presence_penalty or 0.0,
        "frequency_penalty": asked.frequency_penalty or 0.0,
        "logit_bias": asked.logit_bias or {},
        "stream": bool(asked.stream),
        "tells_ids": bool(asked.return_token_ids),
    }


def message(given: ApiMessage, place: int) -> dict[str, Any]:
    """Convert a message to the format of training rows. Raises `HostError` 400 for content that is not
    text."""
    if given.function_call is not None:
        raise HostError(
            400, "function_call was replaced by tool_calls", param=f"messages.{place}.function_call"
        )
    content = given.content
    if isinstance(content, list):
        for part in content:
            if part.type != "text":
                raise HostError(
                    400, f"this model only accepts text, not {part.type}", param=f"messages.{place}.content"
                )
        content = "".join(part.text or "" for part in content)
    found: dict[str, Any] = {"role": given.role, "content": content}
    if given.tool_calls:
        found["tool_calls"] = [
            {"id": c.id, "type": "function", "function": c.function.model_dump()} for c in given.tool_calls
        ]
    for name, value in (
        ("name", given.name),
        ("tool_call_id", given.tool_call_id),
        ("reasoning", given.reasoning_content),
    ):
        if value is not None:
            found[name] = value
    return found
