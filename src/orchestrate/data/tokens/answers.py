"""Parse a model's output into its reasoning, its answer and its tool calls.

The answer format is learned from the model's chat template: an answer with known reasoning and text is
rendered, and the text around them is the model's markup. If the template is not available (on a host), or if
it hides the markup (some templates drop the reasoning of earlier turns), the known markers of the model
families are used. Everything that is neither reasoning nor a tool call is the answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from orchestrate.data.rows import ChatMessage, FunctionCall, ToolCall
from orchestrate.data.tokens.boundaries import AssistantTurn
from orchestrate.data.tokens.calls import CODE_MARK, Tools, settled, taken_out
from orchestrate.data.tokens.turns import Conversations
from orchestrate.errors import DataError

THINKING = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<thought>", "</thought>"),
    ("◁think▷", "◁/think▷"),
    ("<unused94>thought", "<unused95>"),
)
"""Markers that open and close reasoning."""
CUT_WITHIN_THINKING = "cut off during reasoning, before the answer"
"""Note for an answer that was cut off during reasoning."""
CODE = (
    "the model wrote code for an interpreter (Llama 3's code_interpreter), but the request did not "
    "offer such a tool"
)
"""Note for an answer that contains code for an interpreter."""
_TAG = re.compile(r"(<[^<>\s]+>|\[[A-Z_]+\])\s*$")
_START, _MESSAGE = "<|start|>", "<|message|>"
_ENDS = re.compile(r"<\|(?:end|return|call|eom|eot)\|>")
_HEADER_BEGUN = re.compile(
    r"(?:assistant|user|system|developer|tool|functions[.\w]*)?\s*(?:to=\S*\s*)?"
    r"(?:<[|\w]*|<\|channel\|>[^<]*(?:<.*)?)?",
    re.DOTALL,
)
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")
_RECIPIENT = re.compile(r"\bto=([^\s<]+)")
_ASKED, _SAID, _THOUGHT, _SEEN = "zq1question", "zq2answer", "zq3thought", "zq4result"
_BY_NAME = frozenset({"<|eom_id|>"})
"""End-of-turn tokens that templates write only for certain tools (Llama 3: built-in tools)."""
_USER, _ANSWER = ChatMessage(role="user", content=_ASKED), ChatMessage(role="assistant", content=_SAID)
_THINKS = ChatMessage(role="assistant", content=_SAID, reasoning=_THOUGHT)
_CALLS = ChatMessage(
    role="assistant",
    content="",
    tool_calls=[ToolCall(id="call_0", function=FunctionCall(name="look", arguments='{"at": "it"}'))],
)
_RESULT = ChatMessage(role="tool", content=_SEEN, tool_call_id="call_0", name="look")
_PARAMETERS = {"type": "object", "properties": {"at": {"type": "string", "description": "What."}}}
_TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "look", "description": "Look.", "parameters": _PARAMETERS}}
]
_PROBES: tuple[tuple[list[ChatMessage], list[dict[str, Any]] | None], ...] = (
    ([_USER, _THINKS], None),
    ([_USER, _ANSWER, _USER, _ANSWER], None),
    ([_USER, _CALLS], _TOOLS),
    ([_USER, _CALLS, _RESULT, _ANSWER], _TOOLS),
)


@dataclass(frozen=True)
class ReadAnswer:
    content: str
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    notes: tuple[str, ...] = ()
    """Notes on unexpected content."""


@dataclass(frozen=True)
class AnswerShape:
    """Format of a model's answers, learned from its chat template."""

    thinking: tuple[tuple[str, str], ...] = THINKING
    header: str = ""
    """Text that precedes an answer. A model may repeat it."""
    around: tuple[str, str] = ("", "")
    """Text that the template puts before and after the content of an answer without reasoning."""
    ends: frozenset[str] = frozenset()
    """Special tokens that end an answer."""
    others: frozenset[str] = frozenset()
    """Tokens that start another role's turn. These tokens also end an answer if the model's own end token can
    occur within an answer."""
    special: frozenset[str] = frozenset()
    """All special tokens of the tokenizer. Special tokens that are not part of the answer format are removed
    from the output."""


def shape_of(chats: Conversations) -> AnswerShape:
    """Learn the format of a model's answers from rendered conversations."""
    pairs, around = THINKING, ("", "")
    try:
        prompt, shown = chats.prompt([_USER]), chats.rendered([_USER, _THINKS])
        plain = chats.rendered([_USER, _ANSWER]).text
    except DataError:
        prompt, shown, plain = "", None, ""
    if shown is not None and _MESSAGE not in shown.text:
        end = shown.turns[-1].spans[-1][1] if shown.turns[-1].spans else 0
        lead = plain[len(prompt) : plain.find(_SAID)].strip() if plain.startswith(prompt) else ""
        pairs, around = _learnt(shown.text[:end], prompt, lead, chats.special)
    ends, others = _ends(chats)
    return AnswerShape(pairs, _header(prompt, chats.special), around, ends, others, chats.special)


def _header(prompt: str, special: frozenset[str]) -> str:
    """Return the end of the prompt, from its last special token."""
    after = prompt.rpartition(_ASKED)[2]
    header = after[max((after.rfind(mark) for mark in special), default=-1) :].strip() if after else ""
    return "" if header.startswith(tuple(opening for opening, _ in THINKING)) else header


def _learnt(
    text: str, prompt: str, lead: str, special: frozenset[str]
) -> tuple[tuple[tuple[str, str], ...], tuple[str, str]]:
    """Return the pairs of reasoning markers, those found in the text first, and the text around the
    answer. `lead` precedes an answer without reasoning."""
    thought, said = text.find(_THOUGHT), text.find(_SAID)
    tail = text[said + len(_SAID) :].strip() if said >= 0 else ""
    while mark := next((m for m in special if tail.endswith(m)), ""):
        tail = tail.removesuffix(mark).rstrip()
    if not 0 <= thought < said:
        return THINKING, (lead, tail)
    between = text[thought + len(_THOUGHT) : said].strip()
    known = next((closing for _, closing in THINKING if between.startswith(closing)), None)
    if known is not None:
        return THINKING, (between.removeprefix(known).strip(), tail)
    before = text[len(prompt) : thought].strip() if text.startswith(prompt) else ""
    opening = before or (found[1] if (found := _TAG.search(text[:thought])) else "")
    closing = between.removesuffix(lead).strip()
    return ((opening, closing), *THINKING) if opening and closing else THINKING, (lead, tail)


def _ends(chats: Conversations) -> tuple[frozenset[str], frozenset[str]]:
    """Return the special tokens that end a turn and never occur within one. Also return the tokens that
    start another speaker's turn after an end token that can also occur within a turn."""
    last: set[str] = set()
    within: set[str] = set()
    following: list[tuple[str, str]] = []
    for messages, tools in _PROBES:
        try:
            shown = chats.rendered(messages, tools)
        except DataError:
            continue
        for turn in filter(lambda turn: turn.spans, shown.turns):
            end, inner = _marks(shown.text, turn, chats.special)
            last |= {end}
            within |= inner
            after, asked, _ = shown.text[turn.spans[-1][1] :].partition(_ASKED)
            if asked and not any(word in after for word in (_SAID, _SEEN)):
                following.append((end, after.strip()))
    last |= {mark for mark in _BY_NAME & chats.special if mark in chats.source(_TOOLS)}
    return frozenset(last - within - {""}), frozenset(
        text for end, text in following if end in within and text
    )


def _marks(text: str, turn: AssistantTurn, special: frozenset[str]) -> tuple[str, set[str]]:
    """Return the special token at the end of a turn, or an empty text, and the special tokens before it."""
    said = "".join(text[start:end] for start, end in turn.spans).rstrip()
    end = max((mark for mark in special if mark and said.endswith(mark)), key=len, default="")
    said = said.removesuffix(end)
    return end, {mark for mark in special if mark and mark in said}


def read_answer(
    text: str,
    *,
    prompt: str = "",
    shape: AnswerShape | None = None,
    tools: Tools = None,
    cut: bool = False,
    calls: bool = True,
    growing: bool = False,
) -> ReadAnswer:
    """Split a model's output into its reasoning, text and tool calls.

    `text` is the output, including special tokens except the final one. `prompt` is the model's prompt, which
    may end with the start of the answer. Set `cut` if the answer was truncated. Set `growing` if the answer
    is still being generated, to get only the part that later tokens can't change. If `calls` is false, tool
    calls are left in the text."""
    shape, cut = shape or AnswerShape(), cut or growing
    if shape.header and text.lstrip().startswith(shape.header):
        text = text.lstrip().removeprefix(shape.header)
    begun = prompt.rpartition(_START)[2] if _START in prompt else ""
    begun = "" if _ENDS.search(begun) else begun
    headed = _MESSAGE in begun + text or text.lstrip().startswith("<|channel|>")
    if headed or (begun and growing):
        said = _of_channels(begun + text, tools, cut, growing)
    else:
        reasoning, rest = _thinking(text, prompt, shape.thinking, cut)
        said = ReadAnswer(rest, (reasoning or "").strip())
    if not said.reasoning:  # rows may contain reasoning in their text, after the template's markers
        reasoning, rest = _thinking(said.content, "", shape.thinking, cut)
        said = replace(said, content=rest, reasoning=reasoning)
    rest, found = _unwrapped(said.content, shape.around), list(said.tool_calls)
    if growing:
        rest = settled(rest, [mark for pair in shape.thinking for mark in pair], bool(tools))
    elif calls and not found:
        rest, found = taken_out(rest, tools, cut=cut)
    return ReadAnswer(
        _without(rest, shape.special).strip(),
        _without(said.reasoning or "", shape.special).strip() or None,
        tuple(found),
        (CODE,) if calls and rest.lstrip().startswith(CODE_MARK) else (),
    )


def _without(text: str, marks: Iterable[str]) -> str:
    for mark in marks:
        if mark and mark in text:
            text = text.replace(mark, "")
    return text


def _unwrapped(text: str, around: tuple[str, str]) -> str:
    before, behind = around
    bare = text.strip()
    if before and bare.startswith(before):
        text = bare.removeprefix(before)
    return text.rstrip().removesuffix(behind) if behind else text


def _thinking(text: str, prompt: str, pairs: Sequence[tuple[str, str]], cut: bool) -> tuple[str | None, str]:
    """Split an answer into reasoning and the rest. A complete answer without an end of its reasoning is
    all answer, because a model that was tuned to answer directly does so even if the prompt opens the
    reasoning."""
    begun, asked = text.lstrip(), prompt.rstrip()
    for opening, closing in pairs:
        within = asked.endswith(opening)
        if not within and not begun.startswith(opening):
            continue
        inside = begun.removeprefix(opening) if begun.startswith(opening) else text
        thought, closed, rest = inside.partition(closing)
        if closed:
            return thought, rest
        return (inside, "") if cut else (None, text)
    for opening, closing in pairs:
        thought, closed, rest = text.partition(closing)
        if closed and opening not in thought:
            return thought, rest
    return None, text


# -- messages with headers (gpt-oss, Muse) -----------------------------------------------------------------


def _of_channels(text: str, tools: Tools, cut: bool, growing: bool) -> ReadAnswer:
    """Parse an answer of several messages, each with a header that names its channel."""
    thoughts: list[str] = []
    said: list[str] = []
    calls: list[ToolCall] = []
    for n, piece in enumerate(text.split(_START)):
        header, headed, body = piece.partition(_MESSAGE)
        if n and headed and not header.startswith("assistant"):
            break  # the answer has ended, and the model continued with another speaker
        if not headed:
            within = growing or (cut and _HEADER_BEGUN.fullmatch(piece))
            said.append("" if within else piece.removeprefix("assistant"))
            continue
        whole = not cut or _ENDS.search(body)
        body = _ENDS.sub("", body)
        said.append(_RECIPIENT.sub("", header.partition("<|channel|>")[0].removeprefix("assistant")).strip())
        channel, recipient = _CHANNEL.search(header), _RECIPIENT.search(header)
        to = recipient[1] if recipient else "user"
        if to == "self" or (to == "user" and channel and channel[1] == "analysis"):
            thoughts.append(body)
        elif to in ("user", "all", "assistant"):
            said.append(body)
        else:
            called = _called(to, body, tools) if whole else []
            calls += called
            said += [] if called or growing else [piece if whole else body]
    for n, call in enumerate(calls):
        call.id = f"call_{n}"
    return ReadAnswer("\n".join(filter(None, said)), "\n".join(filter(None, thoughts)), tuple(calls))


def _called(to: str, body: str, tools: Tools) -> list[ToolCall]:
    rest, calls = taken_out(body, tools)
    if calls and not rest.strip():
        return calls
    name = to.removeprefix("functions.")
    return taken_out(f"[TOOL_CALLS]{name}{body.strip()}")[1]
