"""The shapes a row can have: how each is recognised and how it becomes a canonical example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from orchestrate.data import preferences, unpaired
from orchestrate.data.chat import message, messages_from, tools_from
from orchestrate.data.examples import (
    ChatExample,
    CompletionExample,
    Example,
    Kind,
    PreferenceExample,
    RLExample,
    TextExample,
)
from orchestrate.data.problems import problem
from orchestrate.data.sharegpt import sharegpt, with_system
from orchestrate.types import Problem

Row = dict[str, Any]
Read = tuple[Example | None, list[Problem]]
"""The example, `None` when the row is unusable, and the row's problems."""


@dataclass(frozen=True)
class Shape:
    """`fits` looks at the names and types of the fields only; `read` reports everything else."""

    name: str
    kind: Kind
    fields: frozenset[str]
    """Fields that `read` uses; others are reported as extra."""
    fits: Callable[[Row], bool]
    read: Callable[[Row], Read]


def _optional(row: Row, found: list[Problem]) -> dict[str, Any]:
    """Fields of a chat row beside its messages."""
    tools, wrong = tools_from(row)
    found += wrong
    parallel, weight = row.get("parallel_tool_calls"), row.get("weight")
    if weight is not None and (isinstance(weight, bool) or not isinstance(weight, int | float)):
        found.append(problem("bad-weight", "the row's weight is not a number", field="weight"))
        weight = None
    return {
        "tools": tools,
        "parallel_tool_calls": parallel if isinstance(parallel, bool) else None,
        "weight": weight,
    }


def _openai_chat(row: Row) -> Read:
    messages, found = messages_from(row["messages"], "messages")
    return ChatExample(messages=messages, **_optional(row, found)), found


def _openai_preference(row: Row) -> Read:
    given = cast("Row", row["input"])
    prompt, found = messages_from(given.get("messages"), "input.messages")
    preferred, wrong = messages_from(row["preferred_output"], "preferred_output")
    rejected, more = messages_from(row["non_preferred_output"], "non_preferred_output")
    found += [*wrong, *more]
    extra = _optional(given, found)
    del extra["weight"]
    return PreferenceExample(prompt=prompt, preferred=preferred, rejected=rejected, **extra), found


def _rl(row: Row) -> Read:
    """Free fields are what the grader reads."""
    name = "messages" if "messages" in row else "prompt"
    messages, found = messages_from(row[name], name)
    tools, wrong = tools_from(row)
    fields = {key: value for key, value in row.items() if key not in (name, "tools", "functions")}
    return RLExample(messages=messages, fields=fields, tools=tools), found + wrong


def _prompt_completion(row: Row) -> Read:
    return CompletionExample(prompt=row["prompt"], completion=row["completion"]), []


def _prompt_completion_chat(row: Row) -> Read:
    """TRL's conversational form: only the completion carries loss, so answers inside the prompt get weight
    0."""
    prompt, found = messages_from(row["prompt"], "prompt")
    completion, wrong = messages_from(row["completion"], "completion")
    for m in prompt:
        if m.role == "assistant":
            m.weight = 0
    found += wrong
    return ChatExample(messages=[*prompt, *completion], **_optional(row, found)), found


def _question_answer(row: Row) -> Read:
    return _dialogue(("user", row["question"]), ("assistant", row["answer"])), []


def _alpaca(row: Row) -> Read:
    turns: list[tuple[str, str]] = []
    history: Any = row.get("history") or []
    for pair in cast("list[Any]", history) if isinstance(history, list) else []:
        said = cast("list[Any]", pair) if isinstance(pair, list) else []
        if len(said) == 2:
            turns += [("user", str(said[0])), ("assistant", str(said[1]))]
        else:
            return None, [
                problem("bad-message", "history holds pairs of question and answer", field="history")
            ]
    given = row.get("input") or ""
    if not isinstance(given, str):
        return None, [problem("bad-content", "input is not text", field="input")]
    instruction = row["instruction"]
    turns += [("user", f"{instruction}\n\n{given}" if given else instruction), ("assistant", row["output"])]
    return ChatExample(messages=with_system(row, [message(role, text) for role, text in turns])), []


def _text(row: Row) -> Read:
    return TextExample(text=row["text"]), []


def _dialogue(*turns: tuple[str, str]) -> ChatExample:
    return ChatExample(messages=[message(role, text) for role, text in turns])


def _unpaired(read: Callable[[Row], Read]) -> Callable[[Row], Read]:
    """A conversation with a label: its end, the assistant's, is what the label judges."""
    return lambda row: unpaired.judged(row, *read(row))


def _are_text(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(name), str) for name in names)


def _are_lists(*names: str) -> Callable[[Row], bool]:
    return lambda row: all(isinstance(row.get(name), list) for name in names)


def _is_preference(row: Row) -> bool:
    return isinstance(row.get("input"), dict) and {"preferred_output", "non_preferred_output"} <= row.keys()


_CHAT_FIELDS = frozenset({"messages", "tools", "functions", "parallel_tool_calls", "weight"})


def _is_rl(row: Row) -> bool:
    """A prompt without its answer, and something for a grader to compare with."""
    prompt: Any = row.get("messages", row.get("prompt"))
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[-1], dict):
        return False
    extra = row.keys() - _CHAT_FIELDS - {"prompt"}
    last: Any = cast("Row", prompt[-1]).get("role")
    return bool(extra) and not extra & {"completion", "chosen", "rejected"} and last in ("user", "tool")


_PROMPTS = frozenset({"query", "question", "instruction", "input", "context", "system"})
"""Columns that hold the prompt of two answers, or a part of it: it is not what the answers share then."""


def _is_implicit(row: Row) -> bool:
    texts = isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str)
    return {"chosen", "rejected"} <= row.keys() and not (texts and row.keys() & _PROMPTS)


def _is_hh(row: Row) -> bool:
    texts = (row.get("chosen"), row.get("rejected"))
    return "prompt" not in row and all(isinstance(t, str) and preferences.HUMAN in t for t in texts)


SHAPES: tuple[Shape, ...] = (
    Shape(
        "openai-preference",
        "preference",
        frozenset({"input", "preferred_output", "non_preferred_output"}),
        _is_preference,
        _openai_preference,
    ),
    Shape("anthropic-hh", "preference", frozenset({"chosen", "rejected"}), _is_hh, preferences.hh),
    Shape(
        "trl-preference",
        "preference",
        frozenset({"prompt", "chosen", "rejected", "tools"}),
        lambda row: {"prompt", "chosen", "rejected"} <= row.keys(),
        preferences.explicit,
    ),
    Shape(
        "sharegpt-preference",
        "preference",
        frozenset({"conversations", "chosen", "rejected", "system", "tools"}),
        lambda row: {"chosen", "rejected"} <= row.keys() and isinstance(row.get("conversations"), list),
        preferences.sharegpt,
    ),
    Shape(
        "alpaca-preference",
        "preference",
        frozenset({"instruction", "question", "input", "system", "chosen", "rejected"}),
        lambda row: (
            {"chosen", "rejected"} <= row.keys()
            and (_are_text("instruction")(row) or _are_text("question")(row))
        ),
        preferences.alpaca,
    ),
    Shape(
        "trl-preference-implicit",
        "preference",
        frozenset({"chosen", "rejected", "tools"}),
        _is_implicit,
        preferences.implicit,
    ),
    Shape(
        "trl-unpaired",
        "unpaired",
        frozenset({"prompt", "completion", "label", "tools", "parallel_tool_calls"}),
        unpaired.is_trl,
        unpaired.trl,
    ),
    Shape(
        "chat-unpaired", "unpaired", _CHAT_FIELDS | unpaired.TAGS, unpaired.is_chat, _unpaired(_openai_chat)
    ),
    Shape(
        "sharegpt-unpaired",
        "unpaired",
        frozenset({"conversations", "system", "tools"}) | unpaired.TAGS,
        unpaired.is_sharegpt,
        _unpaired(sharegpt),
    ),
    Shape(
        "alpaca-unpaired",
        "unpaired",
        frozenset({"instruction", "input", "output", "system", "history"}) | unpaired.TAGS,
        unpaired.is_alpaca,
        _unpaired(_alpaca),
    ),
    Shape("rft", "rl", frozenset(), _is_rl, _rl),
    Shape("openai-chat", "chat", _CHAT_FIELDS, lambda row: "messages" in row, _openai_chat),
    Shape(
        "sharegpt",
        "chat",
        frozenset({"conversations", "system", "tools", "weight"}),
        lambda row: "conversations" in row,
        sharegpt,
    ),
    Shape(
        "alpaca",
        "chat",
        frozenset({"instruction", "input", "output", "system", "history"}),
        _are_text("instruction", "output"),
        _alpaca,
    ),
    Shape(
        "prompt-completion-chat",
        "chat",
        frozenset({"prompt", "completion", "tools", "parallel_tool_calls", "weight"}),
        _are_lists("prompt", "completion"),
        _prompt_completion_chat,
    ),
    Shape(
        "prompt-completion",
        "completion",
        frozenset({"prompt", "completion"}),
        _are_text("prompt", "completion"),
        _prompt_completion,
    ),
    Shape(
        "question-answer",
        "chat",
        frozenset({"question", "answer"}),
        _are_text("question", "answer"),
        _question_answer,
    ),
    Shape("text", "text", frozenset({"text"}), _are_text("text"), _text),
)
BY_NAME = {shape.name: shape for shape in SHAPES}


def recognise(row: Row) -> Shape | None:
    """The first shape that the row fits; they are ordered from the most to the least specific."""
    return next((shape for shape in SHAPES if shape.fits(row)), None)


def _is_meant(row: Row, shape: Shape) -> bool:
    """A row of the file's own shape all the same: what is wrong with it is told by reading it."""
    if shape.kind == "unpaired":
        return unpaired.has_fields(row, shape.fields)
    return shape.kind == "rl" and "messages" in row


def read(row: Row, shape: Shape) -> tuple[Example | None, list[Problem], str | None]:
    """The canonical example, the problems, unused fields included, and the name of the format that the row
    has instead, if it is another."""
    if not shape.fits(row) and not _is_meant(row, shape):
        other = recognise(row)
        if other is None:
            names = ", ".join(sorted(row)[:8]) or "(none)"
            return None, [problem("unknown-format", f"the fields {names} fit no known format")], None
        found = [problem("mixed-format", f"the row is {other.name}, the file is {shape.name}")]
        return None, found, other.name
    example, found = shape.read(row)
    extra = sorted(row.keys() - shape.fields) if shape.fields else []
    if extra:
        found.append(problem("extra-fields", f"unused: {', '.join(extra[:8])}"))
    return example, found, None
