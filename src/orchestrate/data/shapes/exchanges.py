"""Requests with their answers, as gateways log them and batches return them: Helicone's export, and the
results of batches once they are joined with their requests.

Sources: Helicone's export tool (`request_body` and `response_body`, or both in the body that it fetches);
the result lines of batches, `response.body` by `custom_id` and `result.message` by `custom_id`.
"""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import unread
from orchestrate.data.shapes.exports import (
    REQUEST,
    as_list,
    as_row,
    ended,
    example_of,
    parsed,
    read_responses,
    read_stored,
)
from orchestrate.data.shapes.parts import strays, text_of
from orchestrate.data.shapes.shape import Read, Row, Shape, named


def exchange(request: Row, response: Row, place: str) -> Read:
    """One call of a chat: completions, Responses, or Messages with their content in blocks."""
    if response.get("choices"):
        return read_stored({"request": request, "response": response})
    if response.get("output"):
        return read_responses({"request": request, "response": response})
    if response.get("role") == "assistant" and response.get("content"):
        return _blocks(request, response)
    why = as_row(response.get("error")).get("message") or ", ".join(sorted(response)[:6]) or "nothing"
    return None, [problem("bad-message", f"the answer is not a message: {str(why)[:80]}", field=place)]


_MESSAGES = frozenset(
    {
        "model", "max_tokens", "metadata", "stop_sequences", "stream", "temperature", "top_k", "top_p",
        "tool_choice", "thinking", "service_tier", "betas", "container", "context_management",
    }
)  # fmt: skip
"""What a request sets beside the words."""
_ANSWERED = frozenset(
    {"id", "type", "role", "model", "stop_reason", "stop_sequence", "stop_details", "usage", "container"}
)


def _blocks(request: Row, response: Row) -> Read:
    found = unread(strays(request, _MESSAGES | REQUEST | {"system", "messages", "tools"}, ""), (), "request")
    found += unread(strays(response, _ANSWERED | {"content"}, ""), (), "response")
    found += ended(response.get("stop_reason"))
    messages = [as_row(m) for m in as_list(request.get("messages"))]
    if system := request.get("system"):
        said = text_of(system)
        if said is None:
            found.append(problem("bad-content", "system is not text", field="request.system"))
        else:
            messages = [{"role": "system", "content": said}, *messages]
    answer: Row = {"role": "assistant", "content": response["content"]}
    if not messages:
        found.append(problem("no-messages", "the request has no messages", field="request.messages"))
        return None, found
    return example_of([*messages, answer], request.get("tools"), "messages", found)


def _bodies(row: Row) -> tuple[Row, Row]:
    request, response = as_row(parsed(row.get("request_body"))), as_row(parsed(row.get("response_body")))
    if "request" in response and "response" in response:  # the body as it was fetched
        return as_row(parsed(response["request"])), as_row(parsed(response["response"]))
    return request, response


def _is_logged(row: Row) -> bool:
    return all(map(bool, _bodies(row)))


def _logged(row: Row) -> Read:
    status: Any = row.get("response_status", 200)
    if isinstance(status, int) and status >= 400:
        return None, [problem("bad-message", f"the request failed with {status}", field="response_status")]
    return exchange(*_bodies(row), "response_body")


BATCH_REQUESTS = "batch_request"
"""The field in which a result has its request, once they are joined."""


def batch_answer(row: Row) -> Row | None:
    """The answer in a line of a batch's results; `None` for a request that failed."""
    if (result := as_row(row.get("result"))) and result.get("type") == "succeeded":
        return as_row(result.get("message")) or None
    response = as_row(row.get("response"))
    return as_row(response.get("body")) or None if response.get("status_code", 200) == 200 else None


def batch_request(row: Row) -> Row:
    """What a line of a batch's requests asks."""
    return as_row(row.get("body")) or as_row(row.get("params"))


def _is_batch(row: Row) -> bool:
    if not isinstance(row.get("custom_id"), str):
        return False
    return "type" in as_row(row.get("result")) or "body" in as_row(row.get("response")) or "error" in row


def _batch(row: Row) -> Read:
    answer = batch_answer(row)
    if answer is None:
        error = as_row(row.get("error")) or as_row(as_row(row.get("result")).get("error"))
        inner = as_row(error.get("error")) or error
        why = inner.get("message") or as_row(row.get("result")).get("type") or "it has no answer"
        return None, [problem("bad-message", f"the request failed: {str(why)[:80]}", field="custom_id")]
    request = as_row(row.get(BATCH_REQUESTS))
    if not request:
        message = "the answer is here, its prompt is in the file of the batch's requests"
        fix = "orchestrate data convert FILE --requests REQUESTS --to BACKEND  joins them by custom_id"
        return None, [replace(problem("no-messages", message, field="custom_id"), fix=fix)]
    return exchange(request, answer, "response")


_HELICONE = named(
    "response_id response_created_at response_status response_model request_id request_created_at "
    "request_path request_user_id request_properties request_model model model_override provider "
    "target_url delay_ms latency time_to_first_token total_tokens prompt_tokens completion_tokens "
    "prompt_cache_write_tokens prompt_cache_read_tokens prompt_audio_tokens completion_audio_tokens "
    "reasoning_tokens cost costUSD cost_usd prompt_id prompt_version feedback_created_at feedback_id "
    "signed_body_url llmSchema country_code asset_ids asset_urls scores properties helicone_user "
    "cache_enabled cache_reference_id cache_count ai_gateway_body_mapping storage_location size_bytes"
)
"""What the log notes of each call; none of it is said to the model."""
SHAPES = (
    Shape(
        "helicone",
        "chat",
        _HELICONE | {"request_body", "response_body"},
        _is_logged,
        _logged,
    ),
    Shape(
        "batch-results",
        "chat",
        named("id custom_id response result error") | {BATCH_REQUESTS},
        _is_batch,
        _batch,
    ),
)
