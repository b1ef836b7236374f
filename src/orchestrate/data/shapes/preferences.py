"""Preference pairs in the shapes of TRL, of Anthropic's HH dataset, of Alpaca and of ShareGPT."""

from __future__ import annotations

import re
from typing import Any, cast

from orchestrate.data.rows.examples import (
    ChatExample,
    ChatMessage,
    Example,
    PreferenceExample,
    UnpairedExample,
)
from orchestrate.data.rows.problems import problem
from orchestrate.data.shapes.chat import message, messages_from, parallel_from, tools_from, unread
from orchestrate.data.shapes.shape import Read, Row, are_text
from orchestrate.data.shapes.sharegpt import conversation, with_system
from orchestrate.data.shapes.unread import verdict_of
from orchestrate.types import Problem

HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")

Pair = tuple[PreferenceExample | None, list[Problem]]


def explicit(row: dict[str, Any]) -> Pair:
    """`prompt` beside both answers."""
    prompt, found = side(row["prompt"], "user", "prompt")
    return _answered(row, prompt, found)


def implicit(row: dict[str, Any]) -> Pair:
    """Whole conversations, or whole texts: what both begin with is the prompt."""
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        shared = _shared_text(row["chosen"], row["rejected"])
        if not shared.strip():
            message_ = (
                "the two answers begin differently, so they share no prompt; "
                "name its column: --map prompt=COLUMN"
            )
            return None, [problem("no-messages", message_, field="prompt")]
        prompt = [message("user", shared)]
        chosen, rejected = (message("assistant", row[side][len(shared) :]) for side in ("chosen", "rejected"))
        return _pair(row, prompt, [chosen], [rejected], [])
    chosen, found = side(row["chosen"], "assistant", "chosen")
    rejected, wrong = side(row["rejected"], "assistant", "rejected")
    return _split(row, chosen, rejected, found + wrong)


def alpaca(row: dict[str, Any]) -> Pair:
    """An instruction with its input, or a question with its context, and two answers."""
    asked, wrong = instructed(row) if isinstance(row.get("instruction"), str) else questioned(row)
    return (None, [wrong]) if wrong is not None else _answered(row, [message("user", asked)], [])


def instructed(row: dict[str, Any]) -> tuple[str, Problem | None]:
    """Alpaca's `instruction`, and `input` where there is one."""
    given = row.get("input") or ""
    if not isinstance(given, str):
        return "", problem("bad-content", "input is not text", field="input")
    return f"{row['instruction']}\n\n{given}" if given else row["instruction"], None


def questioned(row: dict[str, Any]) -> tuple[str, Problem | None]:
    """`question`, after the `context` that it is asked about where there is one, as SQuAD has it."""
    context = row.get("context") or ""
    if not isinstance(context, str):
        return "", problem("bad-content", "context is not text", field="context")
    return f"{context}\n\n{row['question']}" if context else row["question"], None


def sharegpt(row: dict[str, Any]) -> Pair:
    """A conversation that both answers, as turns, go on from."""
    prompt, found = conversation(row["conversations"], "conversations")
    return _answered(row, prompt, found)


def _answered(row: dict[str, Any], prompt: list[ChatMessage], found: list[Problem]) -> Pair:
    """An answer that repeats the prompt, as some datasets have it, is cut."""
    sides: list[list[ChatMessage]] = []
    for name in ("chosen", "rejected"):
        answer, wrong = side(row[name], "assistant", name)
        found += wrong
        if len(answer) > len(prompt) and answer[: len(prompt)] == prompt:
            answer = answer[len(prompt) :]
        sides.append(answer)
    return _pair(row, prompt, sides[0], sides[1], found)


def hh(row: dict[str, Any]) -> Pair:
    """`\\n\\nHuman: ...\\n\\nAssistant: ...`: two transcripts with a common beginning, which may be the
    `prompt`."""
    before = row.get("prompt") or ""
    whole = (
        row[name] if row[name].startswith(before) else before + row[name] for name in ("chosen", "rejected")
    )
    chosen, rejected = map(_transcript, whole)
    return _split(row, chosen, rejected, [])


def _split(
    row: dict[str, Any], chosen: list[ChatMessage], rejected: list[ChatMessage], found: list[Problem]
) -> Pair:
    """The prompt ends before the first message that differs, and at the latest before the last one."""
    most = min(len(chosen), len(rejected)) - 1
    shared = 0
    while shared < most and chosen[shared] == rejected[shared]:
        shared += 1
    while shared > 0 and chosen[shared - 1].role == "assistant" and not chosen[shared - 1].tool_calls:
        shared -= 1
    return _pair(row, chosen[:shared], chosen[shared:], rejected[shared:], found)


def _pair(
    row: dict[str, Any],
    prompt: list[ChatMessage],
    chosen: list[ChatMessage],
    rejected: list[ChatMessage],
    found: list[Problem],
) -> Pair:
    """A system text of the row's own comes first."""
    tools, wrong = tools_from(row)
    found += wrong
    prompt = with_system(row, prompt, found)
    return PreferenceExample(prompt=prompt, preferred=chosen, rejected=rejected, tools=tools), found


def side(value: Any, role: str, place: str) -> tuple[list[ChatMessage], list[Problem]]:
    if isinstance(value, str):
        return [message(role, value)], []
    if isinstance(value, dict) and isinstance(held := cast("Row", value).get("messages"), list):
        messages, found = messages_from(held, f"{place}.messages")
        return messages, [*found, *unread(cast("Row", value), {"messages"}, place)]
    if isinstance(value, dict | list):
        items = cast("list[Any]", value if isinstance(value, list) else [value])
        turns = bool(items) and all(isinstance(item, dict) and "from" in item for item in items)
        return (conversation if turns else messages_from)(items, place)
    return [], [problem("bad-content", f"{place} is neither text nor messages", field=place)]


def _shared_text(a: str, b: str) -> str:
    """The longest common beginning that ends with white space, so that no word is split."""
    end = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while end > 0 and not a[end - 1].isspace():
        end -= 1
    return a[:end]


def _transcript(text: str) -> list[ChatMessage]:
    """What stands before the first speaker is for the model: a system text."""
    before, *pieces = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    said = [message(roles[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    return [message("system", before.strip()), *said] if before.strip() else said


# Unpaired preferences (KTO): one answer to a prompt, with a label that says whether it is a good one. The
# shapes of TRL, and those of LLaMA-Factory: a conversation of OpenAI, ShareGPT or Alpaca beside a tag.

TAGS = frozenset({"label", "kto_tag"})
"""Fields that hold the label. Training on all answers of such rows would teach the bad ones."""


def is_trl(row: Row) -> bool:
    """A column called label that holds a class, say a word, belongs to another task."""
    labels = (row.get("label"), row.get("kto_tag"))
    return {"prompt", "completion"} <= row.keys() and any(map(_may_label, labels))


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
    return verdict_of(value) is not None


def _label(row: Row) -> tuple[bool, list[Problem]]:
    name = "kto_tag" if "kto_tag" in row else "label"
    value = row.get(name)
    if isinstance(value, bool):
        return value, []
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    return False, [problem("bad-label", f"the label is {shown}, not true or false", field=name)]
