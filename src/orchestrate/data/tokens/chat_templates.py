"""Render conversations as text with a model's chat template.

The result is the same as in transformers 5 (`render_jinja_template`), but only jinja2 is needed. Templates
come from the hub, so they run in Jinja's sandbox (`data.tokens.jinja`), which is loaded on first use.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

import msgspec

from orchestrate.data.rows import ChatMessage

CHATML = (
    "{% set own = messages[0]['role'] == 'system' %}"
    "{% if tools %}{{ '<|im_start|>system\n' }}{% if own %}{{ messages[0]['content'] + '\n\n' }}{% endif %}"
    "{{ '# Tools\n\n<tools>' }}{% for t in tools %}{{ '\n' }}{{ t | tojson }}{% endfor %}"
    '{{ \'\n</tools>\n\nA call is written as\n<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call>\' }}'
    "{{ '<|im_end|>\n' }}{% endif %}"
    "{% for m in messages %}{% if not (tools and own and loop.first) %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' %}{% generation %}"
    "{% if m['reasoning_content'] %}{{ '<think>\n' + m['reasoning_content'] + '\n</think>\n\n' }}{% endif %}"
    "{{ m['content'] or '' }}"
    "{% for call in m['tool_calls'] or [] %}"
    "{% if m['content'] or not loop.first %}{{ '\n' }}{% endif %}{{ '<tool_call>\n' }}"
    "{{ {'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson }}"
    "{{ '\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ m['content'] + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Chat template for tokenizers that have none."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ROLES = {"developer": "system", "function": "tool"}

Spans = list[tuple[int, int]]


def is_marked(template: str) -> bool:
    """Return whether the template itself marks the trained text, with `{% generation %}`."""
    return _MARKED.search(template) is not None


def chosen(templates: object, *, tools: bool = False) -> str | None:
    """Choose the template for training from a tokenizer's `chat_template`, which is a string, several named
    templates, or `None`. As in transformers, the template named `tool_use` is for conversations with
    tools."""
    if isinstance(templates, dict):
        named = cast("dict[str, str]", templates)
        default = named.get("default") or next(iter(named.values()), None)
        return named.get("tool_use", default) if tools else default
    return str(templates) if templates else None


def with_settings(templates: object, settings: Mapping[str, Any] | None) -> object:
    """Add `settings` to the templates as default values, so that they apply to the trained model, its exports
    and every server that uses the template."""
    if not settings:
        return templates
    begun = "".join(
        f"{{% if {name} is not defined %}}{{% set {name} = {value!r} %}}{{% endif %}}"
        for name, value in settings.items()
    )
    if isinstance(templates, dict):
        return {name: f"{begun}\n{text}" for name, text in cast("dict[str, str]", templates).items()}
    return f"{begun}\n{templates}" if templates else templates


def require_template(text: str) -> None:
    """Check a chat template. Raises `DataError` if Jinja cannot parse it."""
    from orchestrate.data.tokens import jinja

    jinja.require_template(text)


def reads(templates: object, name: str) -> bool:
    """Return whether one of the templates uses a setting with this name."""
    texts = cast("dict[str, str]", templates).values() if isinstance(templates, dict) else [str(templates)]
    return any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts)


def message(of: ChatMessage) -> dict[str, Any]:
    """Convert a message to the format that chat templates expect, with tool call arguments as an object and
    reasoning as `reasoning_content`."""
    out: dict[str, Any] = {"role": _ROLES.get(of.role, of.role), "content": of.text}
    if of.name:
        out["name"] = of.name
    if of.tool_call_id:
        out["tool_call_id"] = of.tool_call_id
    if of.reasoning:
        out["reasoning_content"] = of.reasoning
    if of.tool_calls:
        out["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in of.tool_calls
        ]
    return out


def _arguments(text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError:
        return text


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None = None,
    *,
    names: Mapping[str, str],
    answer_next: bool = False,
) -> tuple[str, Spans]:
    """Render a conversation. Returns the text and the character spans that the template marks as assistant
    text. `names` are the special tokens that the template may write, such as `bos_token`. With `answer_next`,
    the text ends with the start of an answer. Raises `DataError` if the template rejects the conversation."""
    from orchestrate.data.tokens import jinja

    return jinja.render(
        template,
        {
            "messages": [_with_thinking(m) for m in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": answer_next,
            **names,
        },
    )


def carries(text: str, token: tuple[int, int], spans: list[tuple[int, int]], at: int, said: str) -> bool:
    """Return whether a token contributes to the loss. `spans` are positions in the message text `said`, which
    starts at position `at` of `text`. A token within the message contributes if it overlaps a span. A token
    after the message contributes if the last span extends to the end of the message."""
    begin, end = token
    if begin >= at + len(said):
        return spans[-1][1] == len(said)
    begin += len(text[begin:end]) - len(text[begin:end].lstrip())  # the space before a word belongs to it
    begin = min(begin, max(token[0], end - 1))
    return any(begin < at + last and end > at + first for first, last in spans)


def _with_thinking(given: Mapping[str, Any]) -> dict[str, Any]:
    """Add the reasoning as `thinking`, the name that some templates use."""
    shown = {key: value for key, value in given.items() if value is not None}
    if "reasoning_content" in shown:
        return {"thinking": shown["reasoning_content"], **shown}
    return shown
