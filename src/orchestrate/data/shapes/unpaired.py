"""Unpaired preferences (KTO): one answer to a prompt, with a label that says whether it is a good one. The
shapes of TRL, and those of LLaMA-Factory: a conversation of OpenAI, ShareGPT or Alpaca beside a tag."""

from __future__ import annotations

from typing import Any, cast

from orchestrate.data.rows.examples import ChatExample, Example, PreferenceExample, UnpairedExample
from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import parallel_from, tools_from
from orchestrate.data.shapes.preferences import side
from orchestrate.data.shapes.shape import Read, Row, are_text
from orchestrate.data.shapes.sharegpt import with_system
from orchestrate.types import Problem

TAGS = frozenset({"label", "kto_tag"})
"""Fields that hold the label. Training on all answers of such rows would teach the bad ones."""


def is_trl(row: Row) -> bool:
    """A column called label that holds a class, say a word, belongs to another task."""
    return {"prompt", "completion"} <= row.keys() and _may_label(row.get("label"))


def is_chat(row: Row) -> bool:
    """Without the answer these are prompts, and the label is what a grader compares with."""
    messages = cast("list[Any]", row["messages"]) if isinstance(row.get("messages"), list) else []
    last = cast("Row", messages[-1]) if messages and isinstance(messages[-1], dict) else {}
    return last.get("role") == "assistant" and _is_tagged(row)


def is_sharegpt(row: Row) -> bool:
    return isinstance(row.get("conversations"), list) and _is_tagged(row)


def is_alpaca(row: Row) -> bool:
    return are_text("instruction", "output")(row) and _is_tagged(row)


def has_fields(row: Row, fields: frozenset[str]) -> bool:
    """Whether a row has the label, whatever it holds, and the answer of a shape with these fields."""
    if not row.keys() & TAGS:
        return False
    if "output" in fields:
        return are_text("instruction", "output")(row)
    needed = {"prompt", "completion", "messages", "conversations"} & fields
    return needed <= row.keys()


def trl(row: Row) -> Read:
    prompt, found = side(row["prompt"], "user", "prompt")
    completion, wrong = side(row["completion"], "assistant", "completion")
    if len(completion) > len(prompt) and completion[: len(prompt)] == prompt:
        completion = completion[len(prompt) :]
    tools, more = tools_from(row)
    label, bad = _label(row)
    found = [*found, *wrong, *more, *bad]
    example = UnpairedExample(
        prompt=with_system(row, prompt, found),
        completion=completion,
        label=label,
        tools=tools,
        parallel_tool_calls=parallel_from(row, found),
    )
    return example, found


def judged(row: Row, example: Example | None, found: list[Problem]) -> Read:
    """The label belongs to the messages of the assistant at the end."""
    if not isinstance(example, ChatExample):
        return None, found
    messages, at = example.messages, len(example.messages)
    while at and messages[at - 1].role == "assistant":
        at -= 1
    label, bad = _label(row)
    made = UnpairedExample(
        prompt=messages[:at],
        completion=messages[at:],
        label=label,
        tools=example.tools,
        parallel_tool_calls=example.parallel_tool_calls,
    )
    if example.weight is not None:
        wrong = problem("bad-weight", "rows with a label carry no weight of their own", field="weight")
        bad = [*bad, wrong]
    return made, found + bad


def of_pair(example: PreferenceExample) -> tuple[UnpairedExample, UnpairedExample]:
    """The two rows that a pair holds."""

    def labelled(label: bool) -> UnpairedExample:
        return UnpairedExample(
            prompt=example.prompt,
            completion=example.preferred if label else example.rejected,
            label=label,
            tools=example.tools,
            parallel_tool_calls=example.parallel_tool_calls,
        )

    return labelled(True), labelled(False)


def _is_tagged(row: Row) -> bool:
    return isinstance(row.get("label"), bool) or _may_label(row.get("kto_tag"))


def _may_label(value: Any) -> bool:
    """Also what was meant as one: it is an error of the row, and not another format."""
    words = ("true", "false", "0", "1")
    return isinstance(value, bool) or (str(value).lower() in words and isinstance(value, str | int | float))


def _label(row: Row) -> tuple[bool, list[Problem]]:
    name = "kto_tag" if "kto_tag" in row else "label"
    value = row.get(name)
    if isinstance(value, bool):
        return value, []
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    return False, [problem("bad-label", f"the label is {shown}, not true or false", field=name)]
