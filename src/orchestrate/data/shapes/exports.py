"""OpenAI's stored completions and Responses, and LiteLLM's log of them: a request with its answer in each
row.

Sources: the types of OpenAI's client (`ChatCompletion`, `Response`, `ResponseInputItem`); the table
`LiteLLM_SpendLogs` in LiteLLM's schema.prisma, and its `spend_tracking_utils`, by which `messages` is empty
but for realtime calls and the request lies in `proxy_server_request`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import msgspec

from orchestrate.data.rows.examples import ChatExample
from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import messages_from, tools_from, unread
from orchestrate.data.shapes.parts import call, strays
from orchestrate.data.shapes.shape import Read, Row, Shape
from orchestrate.data.shapes.unread import holds_prose
from orchestrate.types import Problem


def as_row(value: Any) -> Row:
    return cast("Row", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def parsed(value: Any) -> Any:
    """JSON that was recorded as text as what it stands for, if that is an object or a list."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return msgspec.json.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _within(row: Row, name: str, used: Iterable[str]) -> tuple[Row, list[Problem]]:
    """The request or the response that the row holds under a name, or is itself, and what it has unread."""
    held = as_row(row.get(name))
    left = {
        n: v for n, v in strays(held, REQUEST.union(used), "").items() if n not in NOTES or holds_prose(v)
    }
    return held or row, unread(left, (), name)


def example_of(messages: list[Row], tools: Any, place: str, found: list[Problem] | None = None) -> Read:
    read, wrong = messages_from(messages, place)
    schemas, bad = tools_from({"tools": tools or None})
    return ChatExample(messages=read, tools=schemas), [*(found or []), *wrong, *bad]


def first_choice(output: Any) -> list[Row]:
    """The message of the first choice, without what only answers have."""
    choices = as_list(as_row(output).get("choices"))
    first = as_row(choices[0]) if choices else {}
    message = as_row(first.get("message"))
    dropped = ("annotations", "refusal") if message.get("content") else ("annotations",)
    kept = {name: value for name, value in message.items() if value is not None and name not in dropped}
    kept |= strays(first, {"index", "message", "finish_reason", "logprobs"}, "choices.") if kept else {}
    if "content" not in kept and isinstance(kept.get("refusal"), str):
        kept["content"] = kept.pop("refusal")
    return [kept] if kept else []


def _stored(row: Row) -> Read:
    """A stored completion with the messages of its request, which lie beside it or in `request`."""
    request, found = _within(row, "request", {"messages", "tools"})
    response, wrong = _within(row, "response", {"choices"})
    asked = as_list(row.get("messages") or row.get("input_messages") or request.get("messages"))
    if not asked:
        message = "the answer is here, its prompt is not: join each completion with its messages"
        return None, [problem("no-messages", message, field="messages")]
    asked = [{n: v for n, v in as_row(m).items() if v is not None and n != "id"} for m in asked]
    answer = first_choice(response)
    found += [*wrong, *several(response, "choices")]
    return example_of([*asked, *answer], row.get("tools") or request.get("tools"), "messages", found)


def logged_request(row: Row) -> Row:
    """What LiteLLM's proxy was asked: the body as it came, in older logs wrapped with its headers."""
    request = as_row(parsed(row.get("proxy_server_request")))
    return as_row(request.get("body")) or request


def _litellm(row: Row) -> Read:
    response = as_row(parsed(row.get("response")))
    return _stored({"request": logged_request(row), "response": response})


def _is_litellm(row: Row) -> bool:
    answered = as_list(as_row(parsed(row.get("response"))).get("choices"))
    return bool(answered) and bool(as_list(logged_request(row).get("messages")))


def several(held: Row, name: str) -> list[Problem]:
    if len(as_list(held.get(name))) < 2:
        return []
    return [problem("extra-fields", f"only the first of several {name} is read", field=name)]


def _responses(row: Row) -> Read:
    """The input and output items of a Response; `previous_response_id` points to turns that are not here."""
    read = {"input", "output", "instructions", "tools", "previous_response_id"}
    request, found = _within(row, "request", read)
    response, wrong = _within(row, "response", read)
    if response.get("previous_response_id"):
        message = "the turns of previous_response_id are not in the row"
        return None, [problem("no-messages", message, field="previous_response_id")]
    given: Any = request.get("input")
    items: list[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else as_list(given)
    messages: list[Row] = []
    if system := request.get("instructions", response.get("instructions")):
        messages.append({"role": "system", "content": system})
    if request.get("conversation") or response.get("conversation"):
        message = "what was said earlier in the conversation is not in the row, if anything was"
        wrong.append(problem("extra-fields", message, field="conversation"))
    thought: list[str] = []
    left: Row = {}
    for item in (*items, *as_list(response.get("output"))):
        _response_item(as_row(item), messages, thought, left)
    found += [*wrong, *unread(left, (), "output")]
    if any(thought):
        found.append(problem("lost-meaning", "no answer follows the last thinking", field="output"))
    return example_of(messages, request.get("tools") or response.get("tools"), "input", found)


def _response_item(item: Row, messages: list[Row], thought: list[str], beside: Row) -> None:
    """`beside` takes what is not read of thinking, which waits for its message in `thought`."""
    kind = item.get("type", "message")
    left = strays(item, _ITEM, "item.")
    if kind == "reasoning":
        beside |= left
        for part in as_list(item.get("content")) or as_list(item.get("summary")):
            thought.append(str(as_row(part).get("text", "")))
            beside |= strays(as_row(part), {"type", "text"}, "item.reasoning.")
        return
    if kind == "function_call":
        made = call(item.get("call_id"), item.get("name"), item.get("arguments"))
        if messages and messages[-1]["role"] == "assistant" and "tool_calls" in messages[-1]:
            messages[-1]["tool_calls"].append(made)  # parallel calls are items one after another
            messages[-1] |= left
            return
        message: Row = {"role": "assistant", "content": None, "tool_calls": [made]}
    elif kind == "function_call_output":
        message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    elif kind == "message":
        message = {"role": item.get("role"), "content": item.get("content")}
    else:
        message = {"role": f"item {kind}", "content": None}  # told as a role that is not known
    if message["role"] == "assistant" and any(thought):
        message["reasoning"] = "\n\n".join(thought)
        thought.clear()
    messages.append(message | left)


_ITEM = frozenset(
    {
        "type", "role", "content", "summary", "id", "call_id", "name", "arguments", "output",
        "encrypted_content", "phase",
    }
)  # fmt: skip
"""Fields of a Response's items that are read or say nothing to a model."""


def _is_stored(row: Row) -> bool:
    response = as_row(row.get("response")) or row
    choices = as_list(response.get("choices"))
    return bool(choices) and "message" in as_row(choices[0])


def _is_responses(row: Row) -> bool:
    request, response = as_row(row.get("request")) or row, as_row(row.get("response")) or row
    output = as_list(response.get("output"))
    kinds = {str(as_row(item).get("type")) for item in output}
    return bool({"message", "function_call"} & kinds) and isinstance(request.get("input"), str | list)


REQUEST = frozenset(
    {
        "id", "object", "model", "created", "created_at", "request_id", "usage",
        "service_tier", "system_fingerprint", "temperature", "top_p", "seed", "presence_penalty",
        "frequency_penalty", "tool_choice", "response_format", "input_user", "status", "error",
        "parallel_tool_calls", "store", "incomplete_details", "max_output_tokens", "max_tool_calls",
        "text", "truncation", "user", "reasoning", "background", "top_logprobs", "prompt",
        "prompt_cache_key", "safety_identifier", "completed_at", "billing", "conversation",
        "prompt_cache_retention", "max_completion_tokens", "n", "stop", "stream",
    }
)  # fmt: skip
"""What a request sets and an answer reports beside the words; none of it is trained."""
NOTES = frozenset({"metadata", "child_runs", "observations"})
"""What holds labels, or other calls: told where there is text in it."""
_SPEND = frozenset(
    {
        "request_id", "call_type", "api_key", "spend", "total_tokens", "prompt_tokens", "completion_tokens",
        "startTime", "endTime", "completionStartTime", "model", "model_id", "model_group", "agent_id",
        "mcp_namespaced_tool_name", "custom_llm_provider", "api_base", "user", "cache_hit", "cache_key",
        "request_tags", "team_id", "organization_id", "end_user", "requester_ip_address", "messages",
        "session_id", "status", "request_duration_ms",
    }
)  # fmt: skip
"""Columns of a spend log that say nothing to a model."""
SHAPES = (
    Shape(
        "litellm-spend",
        "chat",
        _SPEND | {"proxy_server_request", "response"},
        _is_litellm,
        _litellm,
        NOTES,
    ),
    Shape(
        "openai-responses",
        "chat",
        REQUEST | {"request", "response", "input", "output", "instructions", "tools", "previous_response_id"},
        _is_responses,
        _responses,
        NOTES,
    ),
    Shape(
        "openai-stored",
        "chat",
        REQUEST | {"request", "response", "messages", "input_messages", "choices", "tools"},
        _is_stored,
        _stored,
        NOTES,
    ),
)
