"""Recognize the known row formats and read their rows as canonical examples."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import msgspec

from orchestrate.data import shapes
from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    CompletionExample,
    Example,
    Kind,
    PreferenceExample,
    RLExample,
    TextExample,
    messages_of,
    problem,
)
from orchestrate.data.shapes import (
    Read,
    Row,
    RowFormat,
    are_lists,
    are_text,
    clouds,
    columns,
    exports,
    first_of,
    named,
    preferences,
)
from orchestrate.data.shapes.chat import message, messages_from, parallel_from, tools_from, weight_from
from orchestrate.data.shapes.preferences import SYSTEM, sharegpt, with_system
from orchestrate.data.shapes.unread import SPLITS, holds_prose, kept_for, problems_of
from orchestrate.types import Problem, decoding


def _chat(row: Row, messages: list[ChatMessage], found: list[Problem]) -> Read:
    """Build a chat example from the messages and the row's other fields."""
    tools, wrong = tools_from(row)
    found += wrong
    example = ChatExample(
        messages=with_system(row, messages, found),
        tools=tools,
        parallel_tool_calls=parallel_from(row, found),
        weight=weight_from(row, found),
    )
    return example, found


def _openai_chat(row: Row) -> Read:
    return _chat(row, *messages_from(row["messages"], "messages"))


def _openai_preference(row: Row) -> Read:
    given = cast("Row", row["input"])
    prompt, found = messages_from(given.get("messages"), "input.messages")
    preferred, wrong = messages_from(row["preferred_output"], "preferred_output")
    rejected, more = messages_from(row["non_preferred_output"], "non_preferred_output")
    tools, bad = tools_from(given)
    found += [*wrong, *more, *bad]
    if unused := sorted(given.keys() - {"messages", "tools", "functions", "parallel_tool_calls"}):
        found.append(problem("extra-fields", f"unused: {', '.join(unused[:8])}", field="input"))
    parallel = parallel_from(given, found, "input")
    example = PreferenceExample(
        prompt=prompt, preferred=preferred, rejected=rejected, tools=tools, parallel_tool_calls=parallel
    )
    return example, found


def _rl(row: Row) -> Read:
    """Read a prompt for RL. All other fields are for the grader."""
    name = "messages" if "messages" in row else "prompt"
    messages, found = messages_from(row[name], name)
    tools, wrong = tools_from(row)
    fields = {key: value for key, value in row.items() if key not in (name, "tools", "functions")}
    return RLExample(messages=messages, fields=fields, tools=tools), found + wrong


def _prompt_completion(row: Row) -> Read:
    return CompletionExample(prompt=row["prompt"], completion=row["completion"]), []


def _prompt_completion_chat(row: Row) -> Read:
    """Read TRL's conversational format. Only the completion contributes to the loss, so answers in the
    prompt get weight 0 unless the row sets their weights."""
    prompt, found = messages_from(row["prompt"], "prompt")
    completion, wrong = messages_from(row["completion"], "completion")
    for m in prompt:
        if m.role == "assistant" and m.weight is None and m.loss_spans is None:
            m.weight = 0
    return _chat(row, [*prompt, *completion], found + wrong)


def _prompt_completion_system(row: Row) -> Read:
    return _dialogue(row, [("user", row["prompt"]), ("assistant", row["completion"])])


def _question_answer(row: Row) -> Read:
    question, wrong = preferences.questioned(row)
    if wrong is not None:
        return None, [wrong]
    return _dialogue(row, [("user", question), ("assistant", row["answer"])])


def _alpaca(row: Row) -> Read:
    turns: list[tuple[str, str]] = []
    history: Any = row.get("history") or []
    if not isinstance(history, list):
        return None, [problem("bad-message", "`history` is not a list", field="history")]
    for pair in cast("list[Any]", history):
        said = cast("list[Any]", pair) if isinstance(pair, list) else []
        if len(said) == 2:
            turns += [("user", str(said[0])), ("assistant", str(said[1]))]
        else:
            return None, [
                problem("bad-message", "`history` must contain [question, answer] pairs", field="history")
            ]
    question, wrong = preferences.instructed(row)
    if wrong is not None:
        return None, [wrong]
    return _dialogue(row, [*turns, ("user", question), ("assistant", row["output"])])


def _text(row: Row) -> Read:
    try:
        spans = decoding.convert(row.get("loss_spans"), list[tuple[int, int]] | None)
    except msgspec.ValidationError:
        message_ = "loss_spans must contain pairs of numbers"
        return None, [problem("bad-weight", message_, field="loss_spans")]
    return TextExample(text=row["text"], loss_spans=spans), []


def _dialogue(row: Row, turns: list[tuple[str, str]]) -> Read:
    found: list[Problem] = []
    messages = with_system(row, [message(role, text) for role, text in turns], found)
    return ChatExample(messages=messages), found


def _unpaired(read: Callable[[Row], Read]) -> Callable[[Row], Read]:
    """Read a conversation with a label, which rates its last assistant messages."""
    return lambda row: preferences.judged(row, *read(row))


def _is_preference(row: Row) -> bool:
    return isinstance(row.get("input"), dict) and {"preferred_output", "non_preferred_output"} <= row.keys()


_CHAT_FIELDS = frozenset({"messages", "system", "tools", "functions", "parallel_tool_calls", "weight"})
SYSTEM_COLUMNS = frozenset(SYSTEM)
_NOTES = frozenset(
    {
        "id", "_id", "idx", "index", "uuid", "uid", "row_id", "sample_id", "conversation_id", "source",
        "dataset", "origin", "split", "metadata", "meta", "created", "created_at", "timestamp", "url",
    }
)  # fmt: skip
"""Columns with metadata of a row."""


def reference(fields: Row) -> Row:
    """Return the fields of an RL row without its metadata columns. Graders may compare answers with these
    fields."""
    return {name: value for name, value in fields.items() if name.lower() not in _NOTES}


def _is_rl(row: Row) -> bool:
    """Return whether a row is a prompt without an answer, and has a field that a grader can compare with.
    With an earlier answer, notes on the row don't count as such a field, because the row may be a
    conversation that ends too late."""
    prompt: Any = row.get("messages", row.get("prompt"))
    if not isinstance(prompt, list) or not prompt or not isinstance(prompt[-1], dict):
        return False
    extra = row.keys() - _CHAT_FIELDS - {"prompt"}
    roles = [cast("Row", m).get("role") for m in cast("list[Any]", prompt) if isinstance(m, dict)]
    if "assistant" in roles:
        extra = reference(dict.fromkeys(extra)).keys()
    last: Any = cast("Row", prompt[-1]).get("role")
    return bool(extra) and not extra & {"completion", "chosen", "rejected"} and last in ("user", "tool")


_PROMPTS = frozenset({"query", "question", "instruction", "input", "context", "system"})
"""Columns that contain a pair's prompt or part of it. If a row with text answers has one of them, the common
prefix of the answers is not used as the prompt."""


def _is_implicit(row: Row) -> bool:
    texts = isinstance(row.get("chosen"), str) and isinstance(row.get("rejected"), str)
    return {"chosen", "rejected"} <= row.keys() and not (texts and row.keys() & _PROMPTS)


def _is_hh(row: Row) -> bool:
    """Return whether a row has two transcripts, or a prompt that is a transcript and two endings."""
    before = row.get("prompt") or ""
    texts = (row.get("chosen"), row.get("rejected"))
    if not all(isinstance(text, str) for text in (before, *texts)):
        return False
    if before:
        return preferences.HUMAN in before and before.rstrip().endswith(preferences.ASSISTANT)
    return all(preferences.HUMAN in cast("str", text) for text in texts)


def _has_system(row: Row) -> bool:
    return isinstance(row.get("system"), str) and bool(row["system"])


SHAPES: tuple[RowFormat, ...] = (
    *clouds.SHAPES,
    *exports.EXCHANGE_SHAPES,
    *exports.SHAPES,
    *exports.RECORDERS,
    *columns.SHAPES,
    RowFormat(
        "openai-preference",
        "preference",
        named("input preferred_output non_preferred_output"),
        _is_preference,
        _openai_preference,
    ),
    RowFormat(
        "anthropic-hh",
        "preference",
        named("prompt chosen rejected system tools functions"),
        _is_hh,
        preferences.hh,
    ),
    RowFormat(
        "trl-preference",
        "preference",
        named("prompt chosen rejected system tools functions"),
        lambda row: {"prompt", "chosen", "rejected"} <= row.keys(),
        preferences.explicit,
    ),
    RowFormat(
        "sharegpt-preference",
        "preference",
        named("conversations chosen rejected system tools functions"),
        lambda row: {"chosen", "rejected"} <= row.keys() and isinstance(row.get("conversations"), list),
        preferences.sharegpt_pair,
    ),
    RowFormat(
        "alpaca-preference",
        "preference",
        named("instruction question input context system chosen rejected tools functions"),
        lambda row: (
            {"chosen", "rejected"} <= row.keys()
            and (are_text("instruction")(row) or are_text("question")(row))
        ),
        preferences.alpaca,
        unused=preferences.unused_by_alpaca,
    ),
    RowFormat(
        "trl-preference-implicit",
        "preference",
        named("chosen rejected system tools functions"),
        _is_implicit,
        preferences.implicit,
    ),
    RowFormat(
        "trl-unpaired",
        "unpaired",
        named("prompt completion system tools functions parallel_tool_calls").union(preferences.TAGS),
        preferences.is_trl,
        preferences.trl,
        unused=first_of(*preferences.TAGS),
    ),
    RowFormat(
        "chat-unpaired",
        "unpaired",
        _CHAT_FIELDS.union(preferences.TAGS),
        preferences.is_chat,
        _unpaired(_openai_chat),
        unused=first_of(*preferences.TAGS),
    ),
    RowFormat(
        "sharegpt-unpaired",
        "unpaired",
        named("conversations system tools functions").union(preferences.TAGS),
        preferences.is_sharegpt,
        _unpaired(sharegpt),
        unused=first_of(*preferences.TAGS),
    ),
    RowFormat(
        "alpaca-unpaired",
        "unpaired",
        named("instruction input output system history").union(preferences.TAGS),
        preferences.is_alpaca,
        _unpaired(_alpaca),
        unused=first_of(*preferences.TAGS),
    ),
    RowFormat("rft", "rl", frozenset(), _is_rl, _rl),
    RowFormat("openai-chat", "chat", _CHAT_FIELDS, lambda row: "messages" in row, _openai_chat),
    RowFormat(
        "sharegpt",
        "chat",
        named("conversations system tools functions weight"),
        lambda row: "conversations" in row,
        sharegpt,
    ),
    RowFormat(
        "alpaca",
        "chat",
        named("instruction input output system history"),
        are_text("instruction", "output"),
        _alpaca,
    ),
    RowFormat(
        "prompt-completion-chat",
        "chat",
        _CHAT_FIELDS - {"messages"} | {"prompt", "completion"},
        are_lists("prompt", "completion"),
        _prompt_completion_chat,
    ),
    RowFormat(
        "prompt-completion-system",
        "chat",
        named("system prompt completion"),
        lambda row: are_text("prompt", "completion")(row) and _has_system(row),
        _prompt_completion_system,
    ),
    RowFormat(
        "prompt-completion",
        "completion",
        named("prompt completion"),
        lambda row: are_text("prompt", "completion")(row) and not _has_system(row),
        _prompt_completion,
    ),
    RowFormat(
        "question-answer",
        "chat",
        named("question answer context system"),
        are_text("question", "answer"),
        _question_answer,
    ),
    RowFormat("text", "text", named("text loss_spans"), are_text("text"), _text),
)
WRITTEN: dict[Kind, str] = {
    "chat": "openai-chat",
    "preference": "openai-preference",
    "unpaired": "trl-unpaired",
    "completion": "prompt-completion",
    "text": "text",
    "rl": "rft",
}
"""Format of canonical rows, which `split`, `dedupe` and `check --fix` write."""
BY_NAME = {shape.name: shape for shape in SHAPES}


def recognize(row: Row) -> RowFormat | None:
    """Return the first format that the row matches. Formats are ordered from most to least specific."""
    return next((shape for shape in SHAPES if shape.fits(row)), None)


class RecognizedRow(NamedTuple):
    """The result of reading a row: its example, problems and unused columns."""

    example: Example | None
    problems: list[Problem]
    unread: Mapping[str, Any] = MappingProxyType({})
    """Unused columns and their values."""
    other: str | None = None
    """Name of the row's actual format, if it differs from the file's format."""


def _is_meant(row: Row, shape: RowFormat) -> bool:
    """Return whether a row is meant to have the file's format despite errors, which are reported when it
    is read."""
    if shape.kind == "unpaired":
        return preferences.has_fields(row, shape.fields)
    if shape.name == "prompt-completion-system":
        return are_text("prompt", "completion")(row)
    return shape.kind == "rl" and "messages" in row


def _unread(row: Row, shape: RowFormat) -> dict[str, Any]:
    """Return the columns with a value that `shape` does not use."""
    if not shape.fields:
        return {}
    used = shape.fields | SYSTEM_COLUMNS if "system" in shape.fields else shape.fields
    used = used.difference(shape.unused(row))
    held = {name: row[name] for name in row.keys() - used if row[name] not in (None, [], {})}
    held |= {name: row[name] for name in SPLITS & row.keys() if kept_for(name, row[name])}
    return {name: value for name, value in held.items() if name not in shape.notes or holds_prose(value)}


def read(row: Row, shape: RowFormat) -> RecognizedRow:
    """Read the canonical example and the row's problems."""
    if not shape.fits(row) and not _is_meant(row, shape):
        other = recognize(row)
        if other is None:
            names = ", ".join(sorted(row)[:8]) or "(none)"
            return RecognizedRow(
                None, [problem("unknown-format", f"the fields {names} match no known format")]
            )
        found = [
            problem(
                "mixed-format",
                f"the row has the format {other.name}, but the file has the format {shape.name}",
            )
        ]
        return RecognizedRow(None, found, other=other.name)
    example, found = shape.read(row)
    unread = _unread(row, shape)
    pictured = unread.keys() & set(shapes.COLUMNS)
    if pictured and example is not None and (messages := messages_of(example)):
        if held := shapes.images_of(row):
            found = [*found, *shapes.place(messages, held)]
        unread = {name: value for name, value in unread.items() if name not in shapes.COLUMNS}
    if unread:
        found = [*found, *problems_of(row, unread, shape.fields - unread.keys())]
    return RecognizedRow(example, found, unread)


# Suggestions for files whose rows match no known format.
#
# Nothing is mapped automatically: a column that looks like a prompt may be something else.

_NAMES: dict[str, tuple[str, ...]] = {
    "prompt": (
        "prompt", "instruction", "question", "query", "input", "user", "human", "source", "problem",
        "request", "message", "body", "text", "content", "description", "review", "email", "comment",
        "sentence", "utterance", "document", "article",
    ),
    "completion": (
        "completion", "response", "output", "answer", "assistant", "target", "reply", "solution",
        "resolution", "summary", "translation", "label", "category", "intent", "sentiment", "class", "topic",
        "priority",
    ),
    "chosen": ("chosen", "preferred", "accepted", "winner"),
    "rejected": ("rejected", "dispreferred", "loser"),
    "text": ("text", "content", "document", "body"),
}  # fmt: skip
"""Common column names, the most likely first."""
_LISTS = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns")


def advice(path: str, row: Mapping[str, Any]) -> str:
    """Suggest how to read a file whose format is unknown, based on one of its rows."""
    for name, value in row.items():
        rows = cast("list[Any]", value) if isinstance(value, list) else []
        if rows and isinstance(rows[0], dict) and recognize(cast("dict[str, Any]", rows[0])) is not None:
            return f"the rows are nested in the field {name}: jq -c '.{name}[]' {path} > rows.jsonl"
    mapped = guessed(row) or {"question": "COLUMN", "answer": "COLUMN"}
    named = shlex.quote(",".join(f"{name}={column}" for name, column in mapped.items()))
    return f"name the columns: --map {named}"


def guessed(row: Mapping[str, Any]) -> dict[str, str] | None:
    """Guess the column of each field from common column names. Returns `None` if no column has such a
    name."""
    texts = {name: value for name, value in row.items() if isinstance(value, str)}
    lists = {name: cast("list[Any]", value) for name, value in row.items() if isinstance(value, list)}
    if (talk := _named(_LISTS, lists)) is not None:
        first = lists[talk][:1]
        turns = bool(first) and isinstance(first[0], dict) and "from" in first[0]
        return {"conversations" if turns else "messages": talk}
    found = {wanted: _named(names, texts) for wanted, names in _NAMES.items()}
    if {"instruction", "context"} <= texts.keys() and found["completion"]:
        return {"input": "context", "output": found["completion"]}
    for wanted in (("prompt", "chosen", "rejected"), ("prompt", "completion"), ("text",)):
        columns = [found[name] for name in wanted]
        if all(columns) and len(set(columns)) == len(columns):
            # Questions and answers become conversations, which every backend accepts.
            chat = wanted[-1] == "completion" and not {"prompt", "completion"} & set(columns)
            names = ("question", "answer") if chat else wanted
            pairs = zip(names, columns, strict=True)
            return {name: column for name, column in pairs if column is not None and name != column}
    return None


def _named(names: Collection[str], columns: Collection[str]) -> str | None:
    """Return the column with the first matching name, ignoring case."""
    plain = {column.strip().lower(): column for column in columns}
    return next((plain[name] for name in names if name in plain), None)
