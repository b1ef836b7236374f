"""Conversations as text, by a model's chat template.

The same text as transformers writes (5.x: `render_jinja_template`), with jinja2 alone: its functions, filters
and `{% generation %}` tag. Templates come from the hub and are run in jinja's sandbox.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any, cast

import msgspec
from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from orchestrate.data.rows.examples import ChatMessage
from orchestrate.errors import DataError

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
"""For tokenizers that bring no chat template of their own."""

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ROLES = {"developer": "system", "function": "tool"}

Spans = list[tuple[int, int]]


def is_marked(template: str) -> bool:
    """Whether it says itself, by `{% generation %}`, which part of the text the model is to learn."""
    return _MARKED.search(template) is not None


def chosen(templates: object, *, tools: bool = False) -> str | None:
    """The one for training, of a tokenizer's `chat_template`: a text, several with names, or none. That with
    the name `tool_use` is for conversations with tools (transformers takes it so too)."""
    if isinstance(templates, dict):
        named = cast("dict[str, str]", templates)
        default = named.get("default") or next(iter(named.values()), None)
        return named.get("tool_use", default) if tools else default
    return str(templates) if templates else None


def with_settings(templates: object, settings: Mapping[str, Any] | None) -> object:
    """The templates with `settings` as what holds where nobody says otherwise. So they go wherever the text
    goes: into the result of training, its exports and the servers of these."""
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
    """Raises `DataError` for what Jinja cannot read."""
    try:
        _compiled(text)
    except TemplateSyntaxError as error:
        raise DataError(f"line {error.lineno}: {error.message}") from error


def reads(templates: object, name: str) -> bool:
    """Whether one of the templates looks at a setting of this name."""
    texts = cast("dict[str, str]", templates).values() if isinstance(templates, dict) else [str(templates)]
    return any(re.search(rf"\b{re.escape(name)}\b", text) for text in texts)


def message(of: ChatMessage) -> dict[str, Any]:
    """A message as chat templates expect it: arguments of tool calls as an object, thinking as
    `reasoning_content`."""
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
    """The text and, in characters, the spans that the template marks as the assistant's. `names` are the
    special tokens that it may write, such as `bos_token`; `answer_next` ends with what precedes
    an answer. Raises `DataError` when the template refuses the conversation."""
    blocks: list[str] = []
    spans: Spans = []
    tracked = _tracked.set((blocks, spans))
    try:
        for block in _compiled(template).generate(
            messages=[_with_thinking(m) for m in messages],
            tools=tools,
            documents=None,
            add_generation_prompt=answer_next,
            **names,
        ):
            blocks.append(block)
    except (TemplateError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"the model's chat template refuses the conversation: {error}") from error
    finally:
        _tracked.reset(tracked)
    return "".join(blocks), spans


def carries(text: str, token: tuple[int, int], spans: list[tuple[int, int]], at: int, said: str) -> bool:
    """Whether a token carries loss: one with a letter of a span, and the end of the turn after a span that
    reaches it. `said` begins at `at` in `text`."""
    begin, end = token
    if begin >= at + len(said):
        return spans[-1][1] == len(said)
    begin += len(text[begin:end]) - len(text[begin:end].lstrip())  # the space before a word belongs to it
    begin = min(begin, max(token[0], end - 1))
    return any(begin < at + last and end > at + first for first, last in spans)


def _with_thinking(given: Mapping[str, Any]) -> dict[str, Any]:
    """Some templates read the reasoning as `thinking`."""
    shown = {key: value for key, value in given.items() if value is not None}
    if "reasoning_content" in shown:
        return {"thinking": shown["reasoning_content"], **shown}
    return shown


_tracked: ContextVar[tuple[list[str], Spans]] = ContextVar("tracked")


class _Generation(Extension):
    """`{% generation %}`: its text begins where the blocks before it end."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_track"), [], [], body).set_lineno(line)

    def _track(self, caller: Callable[[], str]) -> str:
        blocks, spans = _tracked.get()
        text = caller()
        start = sum(map(len, blocks))
        spans.append((start, start + len(text)))
        return text


class _Namespace(Namespace):
    """Without the names by which a template could reach Python's inside."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # a template may set `self`
        self, *given = args
        values = dict(*given, **kwargs)
        for name in values:
            _require_public(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a chat template cannot set {name!r} on a namespace")


class _Dict:
    """`dict(...)` in a template, without the attributes of the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise(text: str) -> None:
    raise TemplateError(text)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own escapes for HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


@lru_cache(maxsize=32)
def _compiled(template: str) -> Compiled:
    environment: Any = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals.update(raise_exception=_raise, strftime_now=_now, dict=_Dict(), namespace=_Namespace)
    return environment.from_string(template)
