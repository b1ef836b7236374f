"""Calls of tools as models write them into their answers.

A chat template shows only how calls were written earlier in a conversation, so the marks of the families
are a table here: what opens and closes a block of calls. What cannot be read stays text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from orchestrate.data.rows.examples import FunctionCall, ToolCall
from orchestrate.data.tokens.notations import Call, Tools, of_json, of_python, parameter_types, read

_BLOCKS = {
    "<tool_call>": "</tool_call>",  # Qwen, Hermes, GLM, Nemotron 3, Granite 4, SmolLM3
    "<tool_calls>": "</tool_calls>",  # Hunyuan, Jamba, MiniMax M1
    "<seed:tool_call>": "</seed:tool_call>",
    "<minimax:tool_call>": "</minimax:tool_call>",
    "<TOOLCALL>": "</TOOLCALL>",  # Nemotron 2
    "<function_calls>": "</function_calls>",  # OLMo 3
    "<atem:function_calls>": "</atem:function_calls>",  # Muse
    "<｜DSML｜function_calls>": "</｜DSML｜function_calls>",  # DeepSeek 3.2
    "<｜DSML｜tool_calls>": "</｜DSML｜tool_calls>",
    "<｜tool▁calls▁begin｜>": "<｜tool▁calls▁end｜>",  # DeepSeek to 3.1
    "<|tool_calls_section_begin|>": "<|tool_calls_section_end|>",  # Kimi
    "<|tool_call|>": "<|/tool_call|>",  # Phi-4-mini; Granite 3 without an end
    "<|tool_call_start|>": "<|tool_call_end|>",  # LFM2
    "<|tool_call>": "<tool_call|>",  # Gemma 4
    "<start_function_call>": "<end_function_call>",  # FunctionGemma
    "<|START_ACTION|>": "<|END_ACTION|>",  # Command A, Command R7B
    "Action: ```json": "```",  # Command R
    "<|tools_prefix|>": "<|tools_suffix|>",  # Apertus
    "<|action_start|><|plugin|>": "<|action_end|>",  # InternLM
    "<|python_start|>": "<|python_end|>",  # Llama 4
    "<|python_tag|>": "",  # Llama 3
    "[TOOL_CALLS]": "",  # Mistral
    "functools[": "",  # Phi-4-mini
    "<function=": "</function>",  # Qwen3-Coder without a block, Llama 3.1
}
"""What opens a block, and what closes it: nothing where it goes on to the next one, or to the end."""
_INCLUDED = {"functools[": "[", "<function=": "<function="}
"""What of an opening belongs to the call inside; its closing does too."""
CODE_MARK = "<|python_tag|>"
_INTERPRETERS = ("code_interpreter", "ipython", "python")
_SPACE = re.compile(r"\s*")
_OPENINGS = re.compile("|".join(re.escape(opening) for opening in sorted(_BLOCKS, key=len, reverse=True)))


def taken_out(text: str, tools: Tools = None, *, cut: bool = False) -> tuple[str, list[ToolCall]]:
    """The text without the calls that are written in it, and these. `tools` tell which values of a notation
    without quotes are texts, and that a call may stand without marks around it. With `cut` the text may
    stop in the middle of one."""
    found: list[Call] = []
    kept: list[str] = []
    at = 0
    for opening in _OPENINGS.finditer(text):
        if opening.start() < at:
            continue
        inside, after = _block(text, opening, cut)
        calls = _calls(opening[0], inside, tools) if inside is not None else []
        if calls:
            kept.append(text[at : opening.start()])
            found += calls
            at = after
    rest = "".join([*kept, text[at:]])
    if not found and tools and (calls := _bare(rest.strip(), tools)):
        found, rest = calls, ""
    return rest, [
        ToolCall(id=call.id or f"call_{n}", function=FunctionCall(name=call.name, arguments=_written(call)))
        for n, call in enumerate(found)
    ]


def _calls(mark: str, inside: str, tools: Tools) -> list[Call]:
    """Of a block. Code for an interpreter that is among the tools is what Llama 3 writes there, too."""
    calls, offered = read(inside, tools), parameter_types(tools)
    known = bool(calls) and all(call.name in offered for call in calls)
    interpreter = next((name for name in _INTERPRETERS if name in offered), None)
    if mark != CODE_MARK or known or interpreter is None or not inside.strip():
        return calls
    fields = list(offered[interpreter])
    return [Call(interpreter, {fields[0] if len(fields) == 1 else "code": inside.strip()})]


def settled(text: str, marks: Iterable[str], offered: bool) -> str:
    """As much of a text that is still being written as no later words can make part of a call, or of one of
    the `marks`. With tools `offered` it may be a call from its first sign on."""
    if offered and text.lstrip().startswith(("{", "[")):
        return ""
    if opening := _OPENINGS.search(text):
        return text[: opening.start()]
    marks = (*_BLOCKS, *marks)
    held = (n for n in range(min(len(text), max(map(len, marks))), 0, -1) if _begins(text[-n:], marks))
    return text[: len(text) - next(held, 0)]


def _begins(end: str, marks: Iterable[str]) -> bool:
    return any(mark.startswith(end) for mark in marks)


def _written(call: Call) -> str:
    given = call.arguments
    return given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)


def _block(text: str, opening: re.Match[str], cut: bool) -> tuple[str | None, int]:
    """What a block holds, and where the text goes on; nothing where it has no end."""
    mark, closing = opening[0], _BLOCKS[opening[0]]
    begin = opening.end() - len(_INCLUDED.get(mark, ""))
    if (end := _end_of_json(text, begin)) is not None:  # a value may hold what closes the block, too
        after = _after_space(text, end)
        if text.startswith(closing, after) or after == len(text):
            return text[begin:end], min(after + len(closing), len(text))
    end = text.find(closing, opening.end()) if closing else -1
    if end >= 0:
        whole = end + len(closing)
        return text[begin : whole if mark in _INCLUDED else end], whole
    end = text.find(mark, opening.end())
    if end < 0 and cut:
        return None, begin
    end = len(text) if end < 0 else end
    return text[begin:end], end


def _end_of_json(text: str, start: int) -> int | None:
    """Behind one or several JSON values that stand there."""
    end: int | None = None
    at = _after_space(text, start)
    try:
        while text.startswith(("{", "["), at):
            end = json.JSONDecoder().raw_decode(text, at)[1]
            at = _after_space(text, end)
            at = _after_space(text, at + 1) if text.startswith((";", ","), at) else at
    except (ValueError, RecursionError):
        return None
    return end


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _bare(text: str, tools: Sequence[Mapping[str, Any]]) -> list[Call]:
    """Calls without marks around them, if each is of a tool that was offered."""
    calls = (of_json(text) if text[:1] in ("{", "[") else []) or (of_python(text) if text[:1] == "[" else [])
    return calls if calls and all(call.name in parameter_types(tools) for call in calls) else []
