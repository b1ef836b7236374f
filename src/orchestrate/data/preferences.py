"""Preference pairs in the shapes of TRL, of Anthropic's HH dataset, of Alpaca and of ShareGPT."""

from __future__ import annotations

import re
from typing import Any, cast

from orchestrate.data.chat import message, messages_from, tools_from
from orchestrate.data.examples import ChatMessage, PreferenceExample
from orchestrate.data.problems import problem
from orchestrate.data.sharegpt import conversation, with_system
from orchestrate.types import Problem

HUMAN = "\n\nHuman:"
_TURN = re.compile(r"\n\n(Human|Assistant):")

Pair = tuple[PreferenceExample | None, list[Problem]]


def explicit(row: dict[str, Any]) -> Pair:
    """`prompt` beside both answers."""
    return _answered(row, *side(row["prompt"], "user", "prompt"))


def implicit(row: dict[str, Any]) -> Pair:
    """Whole conversations, or whole texts: what both begin with is the prompt."""
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        shared = _shared_text(row["chosen"], row["rejected"])
        if not shared.strip():
            message_ = (
                "both answers begin differently, so there is no prompt; name its column: --map prompt=COLUMN"
            )
            return None, [problem("no-messages", message_, field="prompt")]
        prompt = [message("user", shared)]
        chosen, rejected = (message("assistant", row[side][len(shared) :]) for side in ("chosen", "rejected"))
        return _pair(row, prompt, [chosen], [rejected], [])
    chosen, found = messages_from(row["chosen"], "chosen")
    rejected, wrong = messages_from(row["rejected"], "rejected")
    return _split(row, chosen, rejected, found + wrong)


def alpaca(row: dict[str, Any]) -> Pair:
    """An instruction, or a question, with two answers."""
    question, given = row.get("instruction", row.get("question")), row.get("input") or ""
    if not isinstance(given, str):
        return None, [problem("bad-content", "input is not text", field="input")]
    prompt = [message("user", f"{question}\n\n{given}" if given else str(question))]
    return _answered(row, with_system(row, prompt), [])


def sharegpt(row: dict[str, Any]) -> Pair:
    """A conversation that both answers, as turns, go on from."""
    prompt, found = conversation(row["conversations"], "conversations")
    return _answered(row, with_system(row, prompt), found)


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
    """`\\n\\nHuman: ...\\n\\nAssistant: ...`: two transcripts with a common beginning."""
    return _split(row, _transcript(row["chosen"]), _transcript(row["rejected"]), [])


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
    tools, wrong = tools_from(row)
    return PreferenceExample(prompt=prompt, preferred=chosen, rejected=rejected, tools=tools), found + wrong


def side(value: Any, role: str, place: str) -> tuple[list[ChatMessage], list[Problem]]:
    if isinstance(value, str):
        return [message(role, value)], []
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
    pieces = _TURN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    return [message(roles[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
