"""OpenAI's second API of answers, `/v1/responses`, over the first: text in, one message of text out."""

from __future__ import annotations

from typing import Any

from pydantic import ConfigDict

from orchestrate.sandbox import answers
from orchestrate.sandbox.host import Body, HostError
from orchestrate.sandbox.state import token


class ResponseRequest(Body):
    """What is used of a request; further parameters are taken and ignored."""

    model_config = ConfigDict(extra="ignore")

    model: str
    input: str | list[dict[str, Any]]
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    metadata: dict[str, str] | None = None
    stream: bool | None = None


def chat_of(asked: ResponseRequest) -> answers.ChatRequest:
    """The same as a chat. Raises `HostError` 400 for a stream."""
    if asked.stream:
        raise HostError(400, "this sandbox does not stream responses", param="stream")
    first = [{"role": "developer", "content": asked.instructions}] if asked.instructions else []
    told = [{"role": "user", "content": asked.input}] if isinstance(asked.input, str) else asked.input
    messages = [m for m in told if m.get("type", "message") == "message"]
    return answers.parse_chat(
        {
            "model": asked.model,
            "messages": [*first, *messages],
            "max_tokens": asked.max_output_tokens,
            "temperature": asked.temperature,
        }
    )


def of_chat(asked: ResponseRequest, chat: dict[str, Any]) -> dict[str, Any]:
    choice, usage = chat["choices"][0], chat["usage"]
    cut = choice["finish_reason"] == "length"
    status = "incomplete" if cut else "completed"
    text: dict[str, Any] = {
        "type": "output_text",
        "text": choice["message"]["content"],
        "annotations": [],
        "logprobs": [],
    }
    return {
        "id": f"resp_{token()}",
        "object": "response",
        "created_at": chat["created"],
        "status": status,
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "instructions": asked.instructions,
        "metadata": asked.metadata or {},
        "model": asked.model,
        "output": [
            {
                "id": f"msg_{token()}",
                "type": "message",
                "role": "assistant",
                "status": status,
                "content": [text],
            }
        ],
        "parallel_tool_calls": True,
        "temperature": asked.temperature,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "max_output_tokens": asked.max_output_tokens,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        },
        "sandbox": True,
        "sandbox_model": chat["sandbox_model"],
    }
