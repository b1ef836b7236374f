"""Run chat templates in jinja2's sandbox, with the functions, filters and `{% generation %}` tag that
transformers provides (5.x: `render_jinja_template`)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import Template as Compiled
from jinja2 import TemplateError, nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from orchestrate.errors import DataError


def require_template(text: str) -> None:
    """Check a chat template. Raises `DataError` if Jinja cannot parse it."""
    try:
        _compiled(text)
    except TemplateSyntaxError as error:
        raise DataError(f"line {error.lineno}: {error.message}") from error


def render(template: str, values: Mapping[str, Any]) -> tuple[str, list[tuple[int, int]]]:
    """Render a conversation. Returns the text and the character spans that the template marks. Raises
    `DataError` if the template rejects the conversation."""
    blocks: list[str] = []
    spans: list[tuple[int, int]] = []
    tracked = _tracked.set((blocks, spans))
    try:
        for block in _compiled(template).generate(values):
            blocks.append(block)
    except (TemplateError, TypeError, KeyError, OverflowError) as error:
        raise DataError(f"the model's chat template rejected the conversation: {error}") from error
    finally:
        _tracked.reset(tracked)
    return "".join(blocks), spans


_tracked: ContextVar[tuple[list[str], list[tuple[int, int]]]] = ContextVar("tracked")


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
    """`dict(...)` for templates, without the type's attributes."""

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
    """Encode as JSON without the HTML escapes that Jinja adds."""
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
