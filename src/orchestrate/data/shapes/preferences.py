"""Preference pairs in the formats of TRL, Anthropic's HH dataset, Alpaca and ShareGPT."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any, cast

import msgspec

from orchestrate.data.rows import (
    ChatExample,
    ChatMessage,
    Example,
    PreferenceExample,
    RLExample,
    ToolCall,
    UnpairedExample,
    problem,
)
from orchestrate.data.shapes import Read, Row, are_text, loss_of, text_of
from orchestrate.data.shapes.chat import (
    REASONING,
    alias,
    calls_in,
    calls_in_spans,
    message,
    messages_from,
    parallel_from,
    tagged,
    tools_from,
    unread,
    weight_from,
    written_calls,
)
from orchestrate.data.shapes.exports import QUESTIONS, ExportedMessages, as_row, logged_request, parsed
from orchestrate.data.shapes.unread import problems_of, verdict_of
from orchestrate.types import Problem, Severity

# ShareGPT conversations with tool calls: `function_call` and `observation` turns, and calls
# in the text as `<tool_call>`, as in the Hermes data sets.


SYSTEM = ("system", "system_prompt")
"""Names of columns that contain a row's system prompt. The second name is used in OpenOrca."""
_ANSWERS = ("observation", "tool", "function_response", "tool_response")


def sharegpt(row: dict[str, Any]) -> tuple[ChatExample | None, list[Problem]]:
    turns: Any = row["conversations"]
    if not isinstance(turns, list):
        message_ = "conversations is not a list"
        return None, [problem("bad-message", message_, field="conversations")]
    messages, found = conversation(cast("list[Any]", turns), "conversations")
    tools, wrong = tools_from(row)
    found += wrong
    weight = weight_from(row, found)
    return ChatExample(messages=with_system(row, messages, found), tools=tools, weight=weight), found


def with_system(row: dict[str, Any], messages: list[ChatMessage], found: list[Problem]) -> list[ChatMessage]:
    """Put the row's own system text before `messages`, unless they already start with it. A system value that
    is not text is reported in `found`."""
    names = [name for name in SYSTEM if row.get(name)]
    if not names:
        return messages
    name = names[0]
    if any(row[other] != row[name] for other in names):
        found.append(
            problem("lost-meaning", f"`{names[1]}` is ignored because `{name}` is present", field=names[1])
        )
    system = text_of(row[name])
    if system is None:
        found.append(problem("bad-content", f"{name} is not text", field=name))
        return messages
    first = message("system", system)
    return messages if messages[:1] == [first] else [first, *messages]


def conversation(items: list[Any], place: str) -> tuple[list[ChatMessage], list[Problem]]:
    """Read messages from a list of turns, which have either `from` and `value` or `role` and `content`."""
    if items and all(isinstance(item, dict) and "role" in item for item in items):
        named = [item | {"role": alias(item["role"]) or item["role"]} for item in items]
        return messages_from(named, place)
    turns = _Turns()
    for i, item in enumerate(items):
        turns.add(cast("dict[str, Any]", item) if isinstance(item, dict) else {}, f"{place}[{i}]")
    return turns.messages, turns.found


class _Turns:
    """Reader of turns. Calls have no ids in this format, so they are numbered and results match them in
    order."""

    def __init__(self) -> None:
        self.messages: list[ChatMessage] = []
        self.found: list[Problem] = []
        self._open: list[str] = []
        self._made = 0

    def add(self, turn: dict[str, Any], place: str) -> None:
        who, said = turn.get("from"), turn.get("value")
        before = len(self.messages)
        if not isinstance(said, str):
            self.found.append(problem("bad-content", "`value` is not text", field=f"{place}.value"))
        elif who == "function_call":
            self._call("", *written_calls(said, self._made, f"{place}.value"))
        elif who in _ANSWERS:
            self._answer(said)
        elif (role := alias(who)) is None:
            shown = msgspec.json.encode(who).decode()[:60]
            self.found.append(problem("bad-role", f"unknown speaker {shown}", field=f"{place}.from"))
        elif role == "assistant" and (written := calls_in(said)) is not None:
            self._call(tagged(said, "tool_call")[1], *written_calls(written, self._made, f"{place}.value"))
        else:
            self.messages.append(message(role, said))
        self._beside(turn, self.messages[before:], place)

    def _beside(self, turn: dict[str, Any], made: list[ChatMessage], place: str) -> None:
        """Apply a turn's other fields to the messages made from the turn."""
        if turn.keys() <= {"from", "value"}:
            return
        weight = weight_from(turn, self.found, f"{place}.weight")
        loss = loss_of(turn, made[0].role if made else None, turn["value"] if made else "", place)
        self.found += loss.found
        if loss.spans is not None and made[0].tool_calls:
            self.found.append(calls_in_spans(f"{place}.train_detail"))
        thought = next((turn[name] for name in REASONING if isinstance(turn.get(name), str)), None)
        kept = loss.used | {name for name in REASONING if turn.get(name) == thought}
        kept |= {"name"} if isinstance(turn.get("name"), str) else set()
        for m in made:
            m.weight = weight
            if m.role != "tool":
                m.weight, m.loss_spans = loss.weight if weight is None else weight, loss.spans
            m.reasoning, m.name = thought, turn.get("name") if "name" in kept else None
        self.found += unread(turn | loss.strays, kept | {"from", "value", "weight"}, place)

    def _call(self, said: str, calls: list[ToolCall], wrong: list[Problem]) -> None:
        self.found += wrong
        self._made += len(calls)
        self._open += [call.id for call in calls]
        if calls:
            self.messages.append(ChatMessage(role="assistant", content=said or None, tool_calls=calls))

    def _answer(self, said: str) -> None:
        """Add a tool result, or one result per open call if the results are tagged."""
        answers, rest = tagged(said, "tool_response")
        for answer in answers if answers and not rest and len(answers) == len(self._open) else [said]:
            call = self._open.pop(0) if self._open else None
            self.messages.append(ChatMessage(role="tool", content=answer, tool_call_id=call))


HUMAN, ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_TURN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")

Pair = tuple[PreferenceExample | None, list[Problem]]


def explicit(row: dict[str, Any]) -> Pair:
    """Read a pair that has its own `prompt` column next to the two answers."""
    prompt, found = side(row["prompt"], "user", "prompt")
    return _answered(row, prompt, found)


def implicit(row: dict[str, Any]) -> Pair:
    """Read a pair of complete conversations or texts. Their common prefix is the prompt."""
    if isinstance(row["chosen"], str) and isinstance(row["rejected"], str):
        shared = _shared_text(row["chosen"], row["rejected"])
        if not shared.strip():
            message_ = "the two conversations share no prompt. Map the prompt's column: --map prompt=COLUMN"
            return None, [problem("no-messages", message_, field="prompt")]
        prompt = [message("user", shared)]
        chosen, rejected = (message("assistant", row[side][len(shared) :]) for side in ("chosen", "rejected"))
        return _pair(row, prompt, [chosen], [rejected], [])
    chosen, found = side(row["chosen"], "assistant", "chosen")
    rejected, wrong = side(row["rejected"], "assistant", "rejected")
    return _split(row, chosen, rejected, found + wrong)


def alpaca(row: dict[str, Any]) -> Pair:
    """Read two answers and their prompt: an instruction with its input, or a question with its context."""
    question, wrong = instructed(row) if isinstance(row.get("instruction"), str) else questioned(row)
    return (None, [wrong]) if wrong is not None else _answered(row, [message("user", question)], [])


def unused_by_alpaca(row: Row) -> Collection[str]:
    return ("question", "context") if isinstance(row.get("instruction"), str) else ("input",)


def instructed(row: dict[str, Any]) -> tuple[str, Problem | None]:
    """Return Alpaca's `instruction`, followed by `input` if there is one."""
    given = row.get("input") or ""
    if not isinstance(given, str):
        return "", problem("bad-content", "`input` is not text", field="input")
    return f"{row['instruction']}\n\n{given}" if given else row["instruction"], None


def questioned(row: dict[str, Any]) -> tuple[str, Problem | None]:
    """Return the `question`, preceded by its `context` if there is one, as in SQuAD."""
    context = row.get("context") or ""
    if not isinstance(context, str):
        return "", problem("bad-content", "`context` is not text", field="context")
    return f"{context}\n\n{row['question']}" if context else row["question"], None


def sharegpt_pair(row: dict[str, Any]) -> Pair:
    """Read a conversation and the two answers that continue it, given as turns."""
    prompt, found = conversation(row["conversations"], "conversations")
    return _answered(row, prompt, found)


def _answered(row: dict[str, Any], prompt: list[ChatMessage], found: list[Problem]) -> Pair:
    """Read two answers. If an answer repeats the prompt, as in some data sets, the repetition is removed."""
    sides: list[list[ChatMessage]] = []
    for name in ("chosen", "rejected"):
        answer, wrong = side(row[name], "assistant", name)
        found += wrong
        if len(answer) > len(prompt) and answer[: len(prompt)] == prompt:
            answer = answer[len(prompt) :]
        sides.append(answer)
    return _pair(row, prompt, sides[0], sides[1], found)


def hh(row: dict[str, Any]) -> Pair:
    """Read two transcripts of the form `\\n\\nHuman: ...\\n\\nAssistant: ...` that share a prefix, which
    may be in `prompt`."""
    before = row.get("prompt") or ""
    texts = (
        row[name] if row[name].startswith(before) else before + row[name] for name in ("chosen", "rejected")
    )
    chosen, rejected = map(_transcript, texts)
    return _split(row, chosen, rejected, [])


def _split(
    row: dict[str, Any], chosen: list[ChatMessage], rejected: list[ChatMessage], found: list[Problem]
) -> Pair:
    """Split two conversations at the first message that differs, at the latest before the last message."""
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
    """Build a pair. The row's own system prompt comes first."""
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
    """Return the longest common prefix that ends with whitespace, so that no word is split."""
    end = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    while end > 0 and not a[end - 1].isspace():
        end -= 1
    return a[:end]


def _transcript(text: str) -> list[ChatMessage]:
    """Parse a transcript. Text before the first speaker is the system prompt."""
    before, *pieces = _TURN.split(text)
    roles = {"Human": "user", "Assistant": "assistant"}
    said = [message(roles[who], said.strip()) for who, said in zip(pieces[::2], pieces[1::2], strict=True)]
    return [message("system", before.strip()), *said] if before.strip() else said


# Unpaired preferences (KTO): one answer to a prompt, labeled good or bad. Reads the formats of TRL and
# LLaMA-Factory (a conversation in OpenAI, ShareGPT or Alpaca format with a tag).

TAGS = ("kto_tag", "label")
"""Fields that may contain the label of a row's answer. The first one with a value is used. Training on such
rows without the label would also teach the bad answers."""


def is_trl(row: Row) -> bool:
    """Return whether a row is a prompt with a completion and a label, as in TRL's unpaired format. Returns
    `False` if the label is a class (such as a word) rather than a verdict, because the row then belongs to a
    different task."""
    labels = (row.get("label"), row.get("kto_tag"))
    return {"prompt", "completion"} <= row.keys() and any(map(_may_label, labels))


def is_chat(row: Row) -> bool:
    """Return whether a row is a labeled conversation that ends with an answer. A labeled conversation without
    an answer is a prompt, and its label is the reference for a grader."""
    messages = cast("list[Any]", row["messages"]) if isinstance(row.get("messages"), list) else []
    last = cast("Row", messages[-1]) if messages and isinstance(messages[-1], dict) else {}
    return last.get("role") == "assistant" and _is_tagged(row)


def is_sharegpt(row: Row) -> bool:
    return isinstance(row.get("conversations"), list) and _is_tagged(row)


def is_alpaca(row: Row) -> bool:
    return are_text("instruction", "output")(row) and _is_tagged(row)


def has_fields(row: Row, fields: frozenset[str]) -> bool:
    """Return whether a row has a label and all prompt and answer columns that are listed in `fields`."""
    if row.keys().isdisjoint(TAGS):
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
    """Convert a labeled conversation to an unpaired example. The label rates the assistant messages at the
    end."""
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
        wrong = problem("bad-weight", "rows with a label cannot have a weight", field="weight")
        bad = [*bad, wrong]
    return made, found + bad


def of_pair(example: PreferenceExample) -> tuple[UnpairedExample, UnpairedExample]:
    """Split a pair into two unpaired rows."""

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
    """Return whether a value is a label or is meant as one. An invalid label is an error of the row, not a
    different format."""
    return verdict_of(value) is not None


def _label(row: Row) -> tuple[bool, list[Problem]]:
    name = "kto_tag" if "kto_tag" in row else "label"
    value = row.get(name)
    if isinstance(value, bool):
        return value, []
    shown = repr(value) if len(repr(value)) <= 40 else f"{repr(value)[:37]}..."
    return False, [problem("bad-label", f"the label must be true or false, got {shown}", field=name)]


# Read only the prompt of a row, which may lack an answer.


_WRAPPED = ("body", "request")
_PLACES = ("messages", "input_messages", "prompt", "input", "inputs", *QUESTIONS)
"""Fields that may contain the prompt. The first one with a value is used."""
_SYSTEM = frozenset({"system", "instructions", "system_prompt"})


def prompt_of(row: Row) -> RLExample | list[Problem]:
    """Read a row's prompt. If this fails, returns a list of the prompt's errors. The list is empty if the row
    has no prompt in a known format, or if the prompt's only defect is that it doesn't end with a user or tool
    message."""
    held = next((found for name in _WRAPPED if (found := as_row(parsed(row.get(name))))), None)
    source = held or logged_request(row) or row
    for read in (_columns, _turns):
        found = read(source)
        if found is not None:
            turns, inside, wrong = found
            messages, bad = messages_from(turns, "prompt")
            with_own = with_system(_system(inside) or _system(source), messages, wrong)
            tools, more = tools_from({"tools": inside.get("tools") or source.get("tools")})
            broken = [p for p in (*wrong, *bad, *more) if p.severity is Severity.ERROR]
            if broken or not with_own or with_own[-1].role not in ("user", "tool"):
                return broken
            return RLExample(messages=with_own, tools=tools)
    return []


_Found = tuple[list[Any], Row, list[Problem]]
"""The messages, the object that contains them, and the problems found."""


def _columns(source: Row) -> _Found | None:
    """Read a prompt from a text column and its related column."""
    for name, beside, read in (("instruction", "input", instructed), ("question", "context", questioned)):
        if isinstance(source.get(name), str):
            text, wrong = read(source)
            found = [wrong] if wrong is not None else _unread(source, {name, beside})
            return [{"role": "user", "content": text}], source, found
    return None


def _turns(source: Row) -> _Found | None:
    for place in _PLACES:
        given = parsed(source.get(place))
        reader = ExportedMessages("user", QUESTIONS, ("tools", *_SYSTEM))
        turns = reader.turns(given, place) if given else None
        if turns is not None:
            found = [*reader.found, *(_unread(source, {place}) if isinstance(given, str) else [])]
            return cast("list[Any]", turns), as_row(given), found
    return None


def _unread(source: Row, used: set[str]) -> list[Problem]:
    left = {name: value for name, value in source.items() if name not in used | _SYSTEM | {"tools"}}
    return problems_of(source, left, frozenset(used))


def _system(source: Row) -> Row:
    """Return the row's system prompt, which a Response stores in `instructions`."""
    return {"system": text} if (text := next(filter(None, map(source.get, sorted(_SYSTEM))), None)) else {}
