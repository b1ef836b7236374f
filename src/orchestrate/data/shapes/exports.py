"""Exports of OpenAI's stored completions and Responses, and LiteLLM's logs: one request with its answer per
row.

Sources: the types of OpenAI's client (`ChatCompletion`, `Response`, `ResponseInputItem`), the table
`LiteLLM_SpendLogs` in LiteLLM's schema.prisma, and LiteLLM's `spend_tracking_utils`, which leaves `messages`
empty except for realtime calls and stores the request in `proxy_server_request`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

import msgspec
from msgspec.structs import replace

from orchestrate.data import rows
from orchestrate.data.rows import CODES, ChatExample, problem
from orchestrate.data.shapes import Read, Row, RowFormat, call, first_of, named, strays, text_of
from orchestrate.data.shapes.chat import messages_from, tools_from, unread
from orchestrate.data.shapes.unread import holds_prose
from orchestrate.types import Problem


def as_row(value: Any) -> Row:
    return cast("Row", value) if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def parsed(value: Any) -> Any:
    """Parse JSON that was recorded as text, if it contains an object or a list. Returns other values
    unchanged."""
    if not isinstance(value, str) or value.lstrip()[:1] not in ("{", "["):
        return value
    try:
        return rows.decode(value)
    except (msgspec.DecodeError, RecursionError):
        return value


def _within(row: Row, name: str, used: Iterable[str]) -> tuple[Row, list[Problem]]:
    """Return the request or response stored under `name`, or the row itself, with problems for its unused
    fields."""
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
    """Return the message of the first choice, without fields that only occur in responses."""
    choices = as_list(as_row(output).get("choices"))
    first = as_row(choices[0]) if choices else {}
    message = as_row(first.get("message"))
    dropped = ("annotations", "refusal") if message.get("content") else ("annotations",)
    kept = {name: value for name, value in message.items() if value is not None and name not in dropped}
    kept |= strays(first, {"index", "message", "finish_reason", "logprobs"}, "choices.") if kept else {}
    if "content" not in kept and isinstance(kept.get("refusal"), str):
        kept["content"] = kept.pop("refusal")
    return [kept] if kept else []


_CUT = {
    **dict.fromkeys(
        ("length", "max_tokens", "max_output_tokens", "model_context_window_exceeded"), "cut-answer"
    ),
    **dict.fromkeys(("content_filter", "refusal"), "refused-answer"),
}
"""Finish reasons of truncated answers at OpenAI, Anthropic, Gemini and Bedrock."""


def ended(*reasons: Any) -> list[Problem]:
    """Return a problem if an answer was cut off."""
    said = [reason for reason in reasons if isinstance(reason, str) and reason.lower() in _CUT]
    return [_unlike(_CUT[reason.lower()], reason) for reason in said[:1]]


def _unlike(code: str, reason: str) -> Problem:
    title = CODES[code].title
    return problem(code, title if reason == "refusal" else f"{title} ({reason})", field="response")


def ended_choice(output: Any) -> list[Problem]:
    """Return a problem if the first choice of a completion was cut off."""
    choices = as_list(as_row(output).get("choices"))
    first = as_row(choices[0]) if choices else {}
    message = as_row(first.get("message"))
    refused = "refusal" if message.get("refusal") and not message.get("content") else None
    return ended(first.get("finish_reason"), refused)


def _ended_response(response: Row) -> list[Problem]:
    """Return a problem if a Response was cut off or refused. A refusal is a part of its message."""
    why = as_row(response.get("incomplete_details")).get("reason")
    if why is None and response.get("status") == "incomplete":
        why = "length"
    parts = [
        as_row(part).get("type")
        for item in as_list(response.get("output"))
        for part in as_list(as_row(item).get("content"))
    ]
    return ended(why, "refusal" if "refusal" in parts else None)


def read_stored(row: Row) -> Read:
    """Read a stored completion and its request's messages, which are either next to the completion or in
    `request`."""
    request, found = _within(row, "request", {"messages", "tools"})
    response, wrong = _within(row, "response", {"choices"})
    messages = as_list(row.get("messages") or row.get("input_messages") or request.get("messages"))
    if not messages:
        message = "the row has an answer but no prompt. Add each completion's messages to its row"
        return None, [problem("no-messages", message, field="messages")]
    messages = [{n: v for n, v in as_row(m).items() if v is not None and n != "id"} for m in messages]
    answer = first_choice(response)
    found += [*wrong, *several(response, "choices"), *ended_choice(response)]
    return example_of([*messages, *answer], row.get("tools") or request.get("tools"), "messages", found)


def logged_request(row: Row) -> Row:
    """Return the request that LiteLLM's proxy received: the unchanged body or, in older logs, the body
    together with its headers."""
    request = as_row(parsed(row.get("proxy_server_request")))
    return as_row(request.get("body")) or request


def _litellm(row: Row) -> Read:
    response = as_row(parsed(row.get("response")))
    return read_stored({"request": logged_request(row), "response": response})


def _is_litellm(row: Row) -> bool:
    answered = as_list(as_row(parsed(row.get("response"))).get("choices"))
    return bool(answered) and bool(as_list(logged_request(row).get("messages")))


def several(held: Row, name: str) -> list[Problem]:
    if len(as_list(held.get(name))) < 2:
        return []
    return [problem("extra-fields", f"only the first of several {name} is used", field=name)]


def read_responses(row: Row) -> Read:
    """Read the input and output items of a Response. A `previous_response_id` is reported as a problem,
    because the row lacks the turns that it refers to."""
    read = {"input", "output", "instructions", "tools", "previous_response_id"}
    request, found = _within(row, "request", read)
    response, wrong = _within(row, "response", read)
    if response.get("previous_response_id"):
        message = "the row does not contain the turns that previous_response_id refers to"
        return None, [problem("no-messages", message, field="previous_response_id")]
    given: Any = request.get("input")
    items: list[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else as_list(given)
    messages: list[Row] = []
    if system := request.get("instructions", response.get("instructions")):
        messages.append({"role": "system", "content": system})
    if request.get("conversation") or response.get("conversation"):
        message = "earlier turns of the conversation, if any, are not in the row"
        wrong.append(problem("extra-fields", message, field="conversation"))
    thought: list[str] = []
    left: Row = {}
    for item in (*items, *as_list(response.get("output"))):
        _response_item(as_row(item), messages, thought, left)
    found += [*wrong, *unread(left, (), "output"), *_ended_response(response)]
    if any(thought):
        found.append(
            problem("lost-meaning", "the last reasoning item is not followed by an answer", field="output")
        )
    return example_of(messages, request.get("tools") or response.get("tools"), "input", found)


def _response_item(item: Row, messages: list[Row], thought: list[str], beside: Row) -> None:
    """Convert an item to a message. `thought` collects reasoning until its message follows, and `beside`
    collects unused fields of reasoning."""
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
            messages[-1]["tool_calls"].append(made)  # parallel calls are consecutive items
            messages[-1] |= left
            return
        message: Row = {"role": "assistant", "content": None, "tool_calls": [made]}
    elif kind == "function_call_output":
        message = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
    elif kind == "message":
        message = {"role": item.get("role"), "content": item.get("content")}
    else:
        message = {"role": f"item {kind}", "content": None}  # reported as an unknown role
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
"""Fields of a Response's items that are either read, or irrelevant to a model."""


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
"""Parameters of a request and metadata of an answer, which training never uses."""
NOTES = frozenset({"metadata", "child_runs", "observations"})
"""Fields that contain labels or other recorded calls. They are reported as unused only if they contain
prose."""
_SPEND = frozenset(
    {
        "request_id", "call_type", "api_key", "spend", "total_tokens", "prompt_tokens", "completion_tokens",
        "startTime", "endTime", "completionStartTime", "model", "model_id", "model_group", "agent_id",
        "mcp_namespaced_tool_name", "custom_llm_provider", "api_base", "user", "cache_hit", "cache_key",
        "request_tags", "team_id", "organization_id", "end_user", "requester_ip_address", "messages",
        "session_id", "status", "request_duration_ms",
    }
)  # fmt: skip
"""Columns of a spend log that are irrelevant to a model."""
SHAPES = (
    RowFormat(
        "litellm-spend",
        "chat",
        _SPEND | {"proxy_server_request", "response"},
        _is_litellm,
        _litellm,
        NOTES,
    ),
    RowFormat(
        "openai-responses",
        "chat",
        REQUEST | {"request", "response", "input", "output", "instructions", "tools", "previous_response_id"},
        _is_responses,
        read_responses,
        NOTES,
    ),
    RowFormat(
        "openai-stored",
        "chat",
        REQUEST | {"request", "response", "messages", "input_messages", "choices", "tools"},
        _is_stored,
        read_stored,
        NOTES,
        first_of("messages", "input_messages"),
    ),
)


# Exports of the tracing tools LangSmith and Langfuse: each row has an input and its output.
#
# Sources: LangSmith's `Example` and `Run` (`inputs`, `outputs`), Langfuse's observations and items of data
# sets (`input`, `output`, `expectedOutput`).

QUESTIONS = ("question", "input", "query", "prompt", "text", "human_input")
_ANSWERS = ("answer", "output", "response", "completion", "text", "result", "content", "expected_output")
_LANGCHAIN = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}


def _message(value: Any) -> Row | None:
    """Convert a message in OpenAI's or LangChain's format: a constructor, `{type, data}` or `{type,
    content}`."""
    item = as_row(value)
    beside: Row = {}
    if isinstance(item.get("id"), list) and isinstance(item.get("kwargs"), dict):
        names: list[Any] = item["id"]
        kind = str(names[-1] if names else "").removesuffix("Chunk").removesuffix("Message").lower()
        beside = strays(item, {"lc", "type", "id", "kwargs", "name", "graph"}, "message.")
        item = cast("Row", item["kwargs"]) | {"type": kind}
    elif isinstance(item.get("data"), dict) and "type" in item:
        beside = strays(item, {"type", "data"}, "message.")
        item = cast("Row", item["data"]) | {"type": item["type"]}
    if "role" in item:
        return {name: held for name, held in item.items() if held is not None} | beside
    if "content" not in item or (role := _LANGCHAIN.get(str(item.get("type")))) is None:
        return None
    extra = as_row(item.get("additional_kwargs"))
    made: Row = {"role": role, "content": item["content"] or None, **beside}
    made |= strays(item, _KWARGS, "kwargs.")
    made |= strays(extra, {"tool_calls", "refusal", *_ADDITIONAL}, "additional_kwargs.")
    made |= {name: extra[name] for name in _ADDITIONAL if extra.get(name)}
    made |= {"name": item["name"]} if item.get("name") and role != "tool" else {}
    if calls := item.get("tool_calls") or extra.get("tool_calls"):
        made["tool_calls"] = read = [as_row(c) for c in as_list(calls)]
        raw = [as_row(c).get("id") for c in as_list(extra.get("tool_calls"))]
        if raw and raw != [c.get("id") for c in read]:  # usually the same calls
            made["additional_kwargs.tool_calls"] = raw
    if item.get("tool_call_id"):
        made["tool_call_id"] = item["tool_call_id"]
    return made


_ADDITIONAL = ("reasoning_content", "function_call")
_KWARGS = frozenset(
    {
        "type", "content", "id", "name", "additional_kwargs", "response_metadata", "usage_metadata",
        "tool_calls", "tool_call_id", "example", "artifact",
    }
)  # fmt: skip
"""Fields of LangChain's messages that are either read, or irrelevant to a model."""


def _generated(value: Any) -> Row | None:
    """Convert a message, or a generation that contains a message."""
    item = as_row(value)
    made = _message(item.get("message", item))
    if made is None or "message" not in item:
        return made
    left = strays(item, {"type", "message", "generation_info"}, "generation.")
    if item.get("text") == made.get("content"):
        left.pop("generation.text", None)
    return made | left


def _ended_message(value: Any) -> list[Problem]:
    """Return a problem if LangChain's metadata of a message or generation shows that the answer was cut
    off."""
    item = as_row(value)
    message = as_row(item.get("message", item))
    held = as_row(message.get("kwargs")) or as_row(message.get("data")) or message
    notes = (as_row(item.get("generation_info")), as_row(held.get("response_metadata")))
    refused = as_row(held.get("additional_kwargs")).get("refusal") and not held.get("content")
    return ended(
        *(note.get(name) for note in notes for name in ("finish_reason", "stop_reason", "stopReason")),
        "refusal" if refused else None,
    )


class ExportedMessages:
    """Reader for the messages in a recorded input or output. `found` collects the problems with content that
    isn't a message."""

    def __init__(self, role: str, names: tuple[str, ...], used: Iterable[str] = ()) -> None:
        self._role, self._names, self._used = role, names, used
        self.found: list[Problem] = []

    def turns(self, value: Any, place: str) -> list[Row] | None:
        """Return the messages, or `None` if the value contains anything else."""
        if isinstance(value, str):
            return [{"role": self._role, "content": value}]
        if isinstance(value, list):
            items = cast("list[Any]", value)
            if len(items) == 1 and isinstance(items[0], list):
                items = cast("list[Any]", items[0])
            made = [_generated(item) for item in items]
            self.found += [found for item in items for found in _ended_message(item)]
            return None if None in made or not made else cast("list[Row]", made)
        item = as_row(value)
        if not item:
            return None
        if (one := _message(item)) is not None:
            self.found += _ended_message(item)
            return [one]
        if "choices" in item:
            self._beside(item, {"choices", *REQUEST}, place)
            self.found += [*several(item, "choices"), *ended_choice(item)]
            return first_choice(item) or None
        for name in ("messages", "generations", "message", "output"):
            held = self._first(item) if name == "generations" else item.get(name)
            if not isinstance(held, str) and (said := self.turns(held, f"{place}.{name}")):
                self._beside(item, {name}, place)
                return said
        text = next((name for name in self._names if isinstance(item.get(name), str)), None)
        if text is None:
            return None
        self._beside(item, {text}, place, asks=self._role == "user")
        return [{"role": self._role, "content": item[text]}]

    def _first(self, item: Row) -> Any:
        """Return the first of several answers to a prompt. A batch of prompts is unchanged."""
        given = as_list(item.get("generations"))
        if len(given) == 1 and isinstance(given[0], list):
            given = cast("list[Any]", given[0])
        if given and isinstance(given[0], dict):
            self.found += several({"generations": given}, "generations")
            return given[:1]
        return given

    def _beside(self, item: Row, used: set[str], place: str, *, asks: bool = False) -> None:
        """Report unused fields. Prose next to a question counts as an unused part of the prompt."""
        left = strays(item, used if "." in place else used.union(self._used), "")
        prose = [n for n in sorted(left) if isinstance(left[n], str) and len(left[n].split()) >= 3]
        if asks and prose:
            field = f"{place}.{prose[0]}"
            self.found.append(problem("unused-prompt", f"{field} is not used", field=field))
        else:
            self.found += unread(left, (), place)


def _recorded(question_name: str, answered: tuple[str, ...], row: Row) -> Read:
    """Read an input with its output. An output that repeats the input contains the entire conversation."""
    name = next((n for n in answered if row.get(n) is not None), answered[0])
    given, given_answer = parsed(row.get(question_name)), parsed(row.get(name))
    inputs = ExportedMessages("user", QUESTIONS, {"tools", "system"})
    outputs = ExportedMessages("assistant", _ANSWERS)
    prompt = inputs.turns(given, question_name) or _text(row.get(question_name), "user")
    answer = outputs.turns(given_answer, name) or _text(row.get(name), "assistant")
    if prompt is None or answer is None:
        place, held = (question_name, given) if prompt is None else (name, given_answer)
        shown = ", ".join(sorted(as_row(held))[:6]) or type(held).__name__
        message = f"{place} contains neither messages nor text in a known field ({shown})"
        return None, [problem("bad-message", message, field=place)]
    if (system := as_row(given).get("system")) is not None:
        if (said := text_of(system)) is None:
            inputs.found.append(
                problem("bad-content", "`system` is not text", field=f"{question_name}.system")
            )
        prompt = [{"role": "system", "content": said}, *prompt] if said else prompt
    messages = answer if answer[: len(prompt)] == prompt else [*prompt, *answer]
    tools = as_row(given).get("tools") or as_row(as_row(row.get("extra")).get("invocation_params")).get(
        "tools"
    )
    return example_of(messages, tools, question_name, [*inputs.found, *outputs.found])


def _text(value: Any, role: str) -> list[Row] | None:
    """Return a text as a message, even if it looks like JSON."""
    return [{"role": role, "content": value}] if isinstance(value, str) else None


_LANGSMITH = ("outputs", "reference_outputs")
_LANGFUSE = ("output", "expectedOutput", "expected_output")
"""Columns that may contain the answer. The first one with a value is used."""


def _langsmith(row: Row) -> Read:
    return _recorded("inputs", _LANGSMITH, row)


def _langfuse(row: Row) -> Read:
    return _recorded("input", _LANGFUSE, row)


def _holds_messages(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip()[:1] in ("{", "[")
    return isinstance(value, dict | list) and bool(cast("list[Any]", value))


def _is_langfuse(row: Row) -> bool:
    answers = [row[n] for n in _LANGFUSE if row.get(n) is not None]
    if not answers or "input" not in row or "instruction" in row:
        return False
    marked = row.keys() & {"traceId", "trace_id", "observationId", "datasetId", "expectedOutput", "startTime"}
    return bool(marked) or (_holds_messages(row["input"]) and not isinstance(row["input"], str))


_TRACE = frozenset(
    {
        "id", "run_id", "trace_id", "session_id", "dataset_id", "dataset_name", "source_run_id",
        "parent_run_id", "name", "run_type", "start_time", "end_time", "created_at", "modified_at",
        "extra", "tags", "status", "error", "events", "feedback_stats",
        "serialized", "split", "traceId", "observationId", "datasetId", "datasetName",
        "sessionId", "parentObservationId", "type", "model", "modelParameters", "usage", "usageDetails",
        "costDetails", "startTime", "endTime", "level", "statusMessage", "latency", "scores", "version",
        "createdAt", "updatedAt", "environment", "projectId", "sourceTraceId", "sourceObservationId",
        "completionStartTime", "timeToFirstToken", "tokens", "release", "userId", "public",
        "bookmarked", "timestamp", "htmlPath", "totalCost", "promptName",
        "promptVersion", "promptId", "reference_example_id", "total_tokens", "total_cost",
        "first_token_time",
    }
)  # fmt: skip
"""Fields that recorders log about each call. They are not part of the conversation."""
RECORDERS = (
    RowFormat(
        "langsmith",
        "chat",
        _TRACE.union({"inputs"}, _LANGSMITH),
        lambda row: all(isinstance(parsed(row.get(name)), Mapping) for name in ("inputs", "outputs")),
        _langsmith,
        NOTES,
        first_of(*_LANGSMITH),
    ),
    RowFormat(
        "langfuse",
        "chat",
        _TRACE.union({"input"}, _LANGFUSE),
        _is_langfuse,
        _langfuse,
        NOTES,
        first_of(*_LANGFUSE),
    ),
)


# Requests with their responses: Helicone's export of a gateway's log, and batch results
# that have been joined with their requests.


def exchange(request: Row, response: Row, place: str) -> Read:
    """Read one chat request with its response. Supports chat completions, Responses, and Messages with
    content blocks."""
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
"""Parameters of a request other than its messages."""
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
            found.append(problem("bad-content", "`system` is not text", field="request.system"))
        else:
            messages = [{"role": "system", "content": said}, *messages]
    answer: Row = {"role": "assistant", "content": response["content"]}
    if not messages:
        found.append(problem("no-messages", "the request has no messages", field="request.messages"))
        return None, found
    return example_of([*messages, answer], request.get("tools"), "messages", found)


def _bodies(row: Row) -> tuple[Row, Row]:
    request, response = as_row(parsed(row.get("request_body"))), as_row(parsed(row.get("response_body")))
    if "request" in response and "response" in response:  # the original body
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
"""Field that `join_batch` adds to a batch result. It contains the request."""


def batch_answer(row: Row) -> Row | None:
    """Return the answer from a line of batch results, or `None` if the request failed."""
    if (result := as_row(row.get("result"))) and result.get("type") == "succeeded":
        return as_row(result.get("message")) or None
    response = as_row(row.get("response"))
    return as_row(response.get("body")) or None if response.get("status_code", 200) == 200 else None


def batch_request(row: Row) -> Row:
    """Return the request from a line of a batch input file."""
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
        why = inner.get("message") or as_row(row.get("result")).get("type") or "the row has no answer"
        return None, [problem("bad-message", f"the request failed: {str(why)[:80]}", field="custom_id")]
    request = as_row(row.get(BATCH_REQUESTS))
    if not request:
        message = "the row has only the answer. The prompt is in the batch's input file"
        fix = "to join them by custom_id: orchestrate data convert FILE --requests REQUESTS --to BACKEND"
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
"""Fields that Helicone logs about each call. They are not part of the conversation."""
EXCHANGE_SHAPES = (
    RowFormat(
        "helicone",
        "chat",
        _HELICONE | {"request_body", "response_body"},
        _is_logged,
        _logged,
    ),
    RowFormat(
        "batch-results",
        "chat",
        named("id custom_id response result error") | {BATCH_REQUESTS},
        _is_batch,
        _batch,
    ),
)
