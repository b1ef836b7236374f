"""What recorders of calls write: OpenAI's stored completions and Responses, LangSmith, Langfuse.

Each row is an input and an output. Sources: the types of OpenAI's client (`ChatCompletion`, `Response`,
`ResponseInputItem`), LangSmith's `Example` and `Run` (`inputs`, `outputs`), Langfuse's observations and items
of data sets (`input`, `output`, `expectedOutput`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import msgspec

from orchestrate.data.rows.examples import ChatExample
from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import messages_from, tools_from
from orchestrate.data.shapes.parts import call, strays
from orchestrate.data.shapes.shape import Read, Row, Shape
from orchestrate.types import Problem

_QUESTIONS = ("question", "input", "query", "prompt", "text", "human_input")
_ANSWERS = ("answer", "output", "response", "completion", "text", "result", "content", "expected_output")
_LANGCHAIN = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}


def _dict(value: Any) -> Row:
    return cast("Row", value) if isinstance(value, dict) else {}


def _list(value: Any) -> list[Any]:
    return cast("list[Any]", value) if isinstance(value, list) else []


def _made(messages: list[Row], tools: Any, place: str, found: list[Problem] | None = None) -> Read:
    read, wrong = messages_from(messages, place)
    schemas, bad = tools_from({"tools": tools or None})
    return ChatExample(messages=read, tools=schemas), [*(found or []), *wrong, *bad]


# -- OpenAI


def _choices(output: Any) -> list[Row]:
    """The message of the first choice, without what only answers have."""
    first = _dict(_list(_dict(output).get("choices"))[0]) if _list(_dict(output).get("choices")) else {}
    message = _dict(first.get("message"))
    dropped = ("annotations", "refusal") if message.get("content") else ("annotations",)
    kept = {name: value for name, value in message.items() if value is not None and name not in dropped}
    kept |= strays(first, {"index", "message", "finish_reason", "logprobs"}, "choices.") if kept else {}
    if "content" not in kept and isinstance(kept.get("refusal"), str):
        kept["content"] = kept.pop("refusal")
    return [kept] if kept else []


def _stored(row: Row) -> Read:
    """A stored completion with the messages of its request, which lie beside it or in `request`."""
    request = _dict(row.get("request"))
    asked = _list(row.get("messages") or row.get("input_messages") or request.get("messages"))
    if not asked:
        message = "the answer is here, its prompt is not: join each completion with its messages"
        return None, [problem("no-messages", message, field="messages")]
    answer = _choices(row.get("response") or row)
    several = len(_list(_dict(row.get("response") or row).get("choices"))) > 1
    found = [problem("extra-fields", "only the first choice is read", field="choices")] if several else []
    asked = [{n: v for n, v in _dict(m).items() if v is not None and n != "id"} for m in asked]
    return _made([*asked, *answer], row.get("tools") or request.get("tools"), "messages", found)


def _responses(row: Row) -> Read:
    """The input and output items of a Response; `previous_response_id` points to turns that are not here."""
    request, response = _dict(row.get("request")) or row, _dict(row.get("response")) or row
    if response.get("previous_response_id"):
        message = "the turns of previous_response_id are not in the row"
        return None, [problem("no-messages", message, field="previous_response_id")]
    given: Any = request.get("input")
    items: list[Any] = [{"role": "user", "content": given}] if isinstance(given, str) else _list(given)
    messages: list[Row] = []
    if system := request.get("instructions", response.get("instructions")):
        messages.append({"role": "system", "content": system})
    thought: list[str] = []
    for item in (*items, *_list(response.get("output"))):
        _response_item(_dict(item), messages, thought)
    return _made(messages, request.get("tools") or response.get("tools"), "input")


def _response_item(item: Row, messages: list[Row], thought: list[str]) -> None:
    kind = item.get("type", "message")
    left = strays(item, _ITEM, "item.")
    if kind == "reasoning":
        parts = _list(item.get("content")) or _list(item.get("summary"))
        thought += [str(_dict(part).get("text", "")) for part in parts]
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


# -- LangSmith, Langfuse


def _message(value: Any) -> Row | None:
    """A message in OpenAI's form, or in LangChain's: a constructor, `{type, data}`, `{type, content}`."""
    item = _dict(value)
    if isinstance(item.get("id"), list) and isinstance(item.get("kwargs"), dict):
        names: list[Any] = item["id"]
        kind = str(names[-1] if names else "").removesuffix("Chunk").removesuffix("Message").lower()
        item = cast("Row", item["kwargs"]) | {"type": kind}
    elif isinstance(item.get("data"), dict) and "type" in item:
        item = cast("Row", item["data"]) | {"type": item["type"]}
    if "role" in item:
        return {name: held for name, held in item.items() if held is not None}
    if "content" not in item or (role := _LANGCHAIN.get(str(item.get("type")))) is None:
        return None
    extra = _dict(item.get("additional_kwargs"))
    made: Row = {"role": role, "content": item["content"] or None, **strays(item, _KWARGS, "kwargs.")}
    made |= strays(extra, {"tool_calls", "refusal", *_ADDITIONAL}, "additional_kwargs.")
    made |= {name: extra[name] for name in _ADDITIONAL if extra.get(name)}
    made |= {"name": item["name"]} if item.get("name") and role != "tool" else {}
    if calls := item.get("tool_calls") or extra.get("tool_calls"):
        made["tool_calls"] = [
            c if "function" in c else call(c.get("id"), c.get("name"), c.get("args"))
            for c in map(_dict, _list(calls))
        ]
    if item.get("tool_call_id"):
        made["tool_call_id"] = item["tool_call_id"]
    return made


_ADDITIONAL = ("reasoning_content", "function_call")
_KWARGS = frozenset(
    {
        "type", "content", "id", "name", "additional_kwargs", "response_metadata", "usage_metadata",
        "tool_calls", "invalid_tool_calls", "tool_call_id", "example", "artifact",
    }
)  # fmt: skip
"""Fields of LangChain's messages that are read or say nothing to a model."""


def _turns(value: Any, role: str, names: tuple[str, ...]) -> list[Row] | None:
    """The messages that an input or an output holds; `None` when it holds something else."""
    if isinstance(value, str):
        parsed: Any = None
        if value.lstrip()[:1] in ("{", "["):
            try:
                parsed = msgspec.json.decode(value)
            except (msgspec.DecodeError, RecursionError):
                parsed = None
        held = None if parsed is None else _turns(parsed, role, names)
        return held or [{"role": role, "content": value}]
    if isinstance(value, list):
        items = cast("list[Any]", value)
        if len(items) == 1 and isinstance(items[0], list):
            items = cast("list[Any]", items[0])
        made = [_message(_dict(item).get("message", item)) for item in items]
        return None if None in made or not made else cast("list[Row]", made)
    item = _dict(value)
    if not item:
        return None
    if (one := _message(item)) is not None:
        return [one]
    if "choices" in item:
        return _choices(item) or None
    for name in ("messages", "generations", "message", "output"):
        if not isinstance(item.get(name), str) and (held := _turns(item.get(name), role, names)):
            return held
    texts = [name for name in names if isinstance(item.get(name), str)]
    return [{"role": role, "content": item[texts[0]]}] if texts else None


def _beside(given: Any, names: tuple[str, ...], place: str) -> list[Problem]:
    """What an input holds beside the text or the messages that are read of it."""
    item = _dict(given)
    known = {"messages", "generations", "message", "choices", "role", "content"}
    known |= {"tools", "system"} if place in ("inputs", "input") else set()
    texts = [name for name in names if isinstance(item.get(name), str)]
    unread = sorted(n for n, v in item.items() if n not in known and n not in texts[:1] and v is not None)
    prose = [n for n in unread if isinstance(item[n], str) and len(item[n].split()) >= 3]
    if prose and place in ("inputs", "input") and "messages" not in item:
        return [problem("unused-prompt", f"{place}.{prose[0]} is not read", field=f"{place}.{prose[0]}")]
    return [problem("extra-fields", f"unused: {', '.join(unread[:8])}", field=place)] if unread else []


def _recorded(asked: str, answered: tuple[str, ...], row: Row) -> Read:
    """An input with its output. An output that repeats the conversation is all of it."""
    given = row.get(asked)
    name = next((n for n in answered if row.get(n) is not None), answered[0])
    prompt = _turns(given, "user", _QUESTIONS)
    answer = _turns(row.get(name), "assistant", _ANSWERS)
    if prompt is None or answer is None:
        place, held = (asked, given) if prompt is None else (name, row.get(name))
        shown = ", ".join(sorted(_dict(held))[:6]) or type(held).__name__
        message = f"{place} holds no messages and no text under a known name ({shown})"
        return None, [problem("bad-message", message, field=place)]
    system = _dict(given).get("system")
    if isinstance(system, str) and system:
        prompt = [{"role": "system", "content": system}, *prompt]
    whole = answer if answer[: len(prompt)] == prompt else [*prompt, *answer]
    found = [*_beside(given, _QUESTIONS, asked), *_beside(row.get(name), _ANSWERS, name)]
    tools = _dict(given).get("tools") or _dict(_dict(row.get("extra")).get("invocation_params")).get("tools")
    return _made(whole, tools, asked, found)


def _langsmith(row: Row) -> Read:
    return _recorded("inputs", ("outputs", "reference_outputs"), row)


def _langfuse(row: Row) -> Read:
    return _recorded("input", ("output", "expectedOutput", "expected_output"), row)


def _is_stored(row: Row) -> bool:
    response = _dict(row.get("response")) or row
    choices = _list(response.get("choices"))
    return bool(choices) and "message" in _dict(choices[0])


def _is_responses(row: Row) -> bool:
    request, response = _dict(row.get("request")) or row, _dict(row.get("response")) or row
    output = _list(response.get("output"))
    kinds = {str(_dict(item).get("type")) for item in output}
    return bool({"message", "function_call"} & kinds) and isinstance(request.get("input"), str | list)


def _holds_messages(value: Any) -> bool:
    if isinstance(value, str):
        return value.lstrip()[:1] in ("{", "[")
    return isinstance(value, dict | list) and bool(cast("list[Any]", value))


def _is_langfuse(row: Row) -> bool:
    answers = [row[n] for n in ("output", "expectedOutput", "expected_output") if row.get(n) is not None]
    if not answers or "input" not in row or "instruction" in row:
        return False
    marked = row.keys() & {"traceId", "trace_id", "observationId", "datasetId", "expectedOutput", "startTime"}
    return bool(marked) or (_holds_messages(row["input"]) and not isinstance(row["input"], str))


_REQUEST = frozenset(
    {
        "id", "object", "model", "created", "created_at", "request_id", "usage", "metadata",
        "service_tier", "system_fingerprint", "temperature", "top_p", "seed", "presence_penalty",
        "frequency_penalty", "tool_choice", "response_format", "input_user", "status", "error",
        "parallel_tool_calls", "store", "incomplete_details", "max_output_tokens", "max_tool_calls",
        "text", "truncation", "user", "reasoning", "background", "top_logprobs", "prompt",
        "prompt_cache_key", "safety_identifier", "completed_at", "billing", "conversation",
        "prompt_cache_retention", "max_completion_tokens", "n", "stop", "stream",
    }
)  # fmt: skip
"""What a request sets and an answer reports beside the words; none of it is trained."""
_TRACE = frozenset(
    {
        "id", "run_id", "trace_id", "session_id", "dataset_id", "dataset_name", "source_run_id",
        "parent_run_id", "name", "run_type", "start_time", "end_time", "created_at", "modified_at",
        "metadata", "extra", "tags", "status", "error", "child_runs", "events", "feedback_stats",
        "serialized", "split", "attachments", "traceId", "observationId", "datasetId", "datasetName",
        "sessionId", "parentObservationId", "type", "model", "modelParameters", "usage", "usageDetails",
        "costDetails", "startTime", "endTime", "level", "statusMessage", "latency", "scores", "version",
        "createdAt", "updatedAt", "environment", "projectId", "sourceTraceId", "sourceObservationId",
        "completionStartTime", "timeToFirstToken", "tokens", "release", "userId", "public",
        "bookmarked", "timestamp", "htmlPath", "totalCost", "observations", "promptName",
        "promptVersion", "promptId", "reference_example_id", "total_tokens", "total_cost",
        "first_token_time",
    }
)  # fmt: skip
"""What the recorders note of each call; none of it is said to the model."""
SHAPES = (
    Shape(
        "openai-responses",
        "chat",
        _REQUEST
        | {"request", "response", "input", "output", "instructions", "tools", "previous_response_id"},
        _is_responses,
        _responses,
    ),
    Shape(
        "openai-stored",
        "chat",
        _REQUEST | {"request", "response", "messages", "input_messages", "choices", "tools"},
        _is_stored,
        _stored,
    ),
    Shape(
        "langsmith",
        "chat",
        _TRACE | {"inputs", "outputs", "reference_outputs"},
        lambda row: isinstance(row.get("inputs"), Mapping) and isinstance(row.get("outputs"), Mapping),
        _langsmith,
    ),
    Shape(
        "langfuse",
        "chat",
        _TRACE | {"input", "output", "expectedOutput", "expected_output"},
        _is_langfuse,
        _langfuse,
    ),
)
