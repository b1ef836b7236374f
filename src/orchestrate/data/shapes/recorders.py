"""What recorders of calls write, LangSmith and Langfuse: an input with its output in each row.

Sources: LangSmith's `Example` and `Run` (`inputs`, `outputs`), Langfuse's observations and items of data sets
(`input`, `output`, `expectedOutput`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import unread
from orchestrate.data.shapes.exports import (
    NOTES,
    REQUEST,
    as_list,
    as_row,
    example_of,
    first_choice,
    parsed,
    several,
)
from orchestrate.data.shapes.parts import call, strays, text_of
from orchestrate.data.shapes.shape import Read, Row, Shape
from orchestrate.types import Problem

QUESTIONS = ("question", "input", "query", "prompt", "text", "human_input")
_ANSWERS = ("answer", "output", "response", "completion", "text", "result", "content", "expected_output")
_LANGCHAIN = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool", "function": "function"}


def _message(value: Any) -> Row | None:
    """A message in OpenAI's form, or in LangChain's: a constructor, `{type, data}`, `{type, content}`."""
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
        made["tool_calls"] = [
            c if "function" in c else call(c.get("id"), c.get("name"), c.get("args"))
            for c in map(as_row, as_list(calls))
        ]
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
"""Fields of LangChain's messages that are read or say nothing to a model."""


def _generated(value: Any) -> Row | None:
    """A message, or a generation that holds one."""
    item = as_row(value)
    made = _message(item.get("message", item))
    if made is None or "message" not in item:
        return made
    left = strays(item, {"type", "message", "generation_info"}, "generation.")
    if item.get("text") == made.get("content"):
        left.pop("generation.text", None)
    return made | left


class Recorded:
    """Reads the messages of an input or an output; `found` tells what they hold beside."""

    def __init__(self, role: str, names: tuple[str, ...], used: Iterable[str] = ()) -> None:
        self._role, self._names, self._used = role, names, used
        self.found: list[Problem] = []

    def turns(self, value: Any, place: str) -> list[Row] | None:
        """The messages; `None` when the value holds something else."""
        if isinstance(value, str):
            return [{"role": self._role, "content": value}]
        if isinstance(value, list):
            items = cast("list[Any]", value)
            if len(items) == 1 and isinstance(items[0], list):
                items = cast("list[Any]", items[0])
            made = [_generated(item) for item in items]
            return None if None in made or not made else cast("list[Row]", made)
        item = as_row(value)
        if not item:
            return None
        if (one := _message(item)) is not None:
            return [one]
        if "choices" in item:
            self._beside(item, {"choices", *REQUEST}, place)
            self.found += several(item, "choices")
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
        """Of several answers to one prompt the first; a batch of prompts stays as it is."""
        given = as_list(item.get("generations"))
        if len(given) == 1 and isinstance(given[0], list):
            given = cast("list[Any]", given[0])
        if given and isinstance(given[0], dict):
            self.found += several({"generations": given}, "generations")
            return given[:1]
        return given

    def _beside(self, item: Row, used: set[str], place: str, *, asks: bool = False) -> None:
        """What there is beside that; prose beside a question is taken for a part of the prompt."""
        left = strays(item, used if "." in place else used.union(self._used), "")
        prose = [n for n in sorted(left) if isinstance(left[n], str) and len(left[n].split()) >= 3]
        if asks and prose:
            field = f"{place}.{prose[0]}"
            self.found.append(problem("unused-prompt", f"{field} is not read", field=field))
        else:
            self.found += unread(left, (), place)


def _recorded(asked: str, answered: tuple[str, ...], row: Row) -> Read:
    """An input with its output. An output that repeats the conversation is all of it."""
    name = next((n for n in answered if row.get(n) is not None), answered[0])
    given, given_answer = parsed(row.get(asked)), parsed(row.get(name))
    inputs = Recorded("user", QUESTIONS, {"tools", "system"})
    outputs = Recorded("assistant", _ANSWERS)
    prompt = inputs.turns(given, asked) or _text(row.get(asked), "user")
    answer = outputs.turns(given_answer, name) or _text(row.get(name), "assistant")
    if prompt is None or answer is None:
        place, held = (asked, given) if prompt is None else (name, given_answer)
        shown = ", ".join(sorted(as_row(held))[:6]) or type(held).__name__
        message = f"{place} holds no messages and no text under a known name ({shown})"
        return None, [problem("bad-message", message, field=place)]
    if (system := as_row(given).get("system")) is not None:
        if (said := text_of(system)) is None:
            inputs.found.append(problem("bad-content", "system is not text", field=f"{asked}.system"))
        prompt = [{"role": "system", "content": said}, *prompt] if said else prompt
    whole = answer if answer[: len(prompt)] == prompt else [*prompt, *answer]
    tools = as_row(given).get("tools") or as_row(as_row(row.get("extra")).get("invocation_params")).get(
        "tools"
    )
    return example_of(whole, tools, asked, [*inputs.found, *outputs.found])


def _text(value: Any, role: str) -> list[Row] | None:
    """A text that only looks like JSON of messages."""
    return [{"role": role, "content": value}] if isinstance(value, str) else None


def _langsmith(row: Row) -> Read:
    return _recorded("inputs", ("outputs", "reference_outputs"), row)


def _langfuse(row: Row) -> Read:
    return _recorded("input", ("output", "expectedOutput", "expected_output"), row)


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
"""What the recorders note of each call; none of it is said to the model."""
SHAPES = (
    Shape(
        "langsmith",
        "chat",
        _TRACE | {"inputs", "outputs", "reference_outputs"},
        lambda row: all(isinstance(parsed(row.get(name)), Mapping) for name in ("inputs", "outputs")),
        _langsmith,
        NOTES,
    ),
    Shape(
        "langfuse",
        "chat",
        _TRACE | {"input", "output", "expectedOutput", "expected_output"},
        _is_langfuse,
        _langfuse,
        NOTES,
    ),
)
