"""A row that is only asked about: its prompt, be there an answer or not.

Requests as they were sent (OpenAI's chat, Responses and batch bodies, LiteLLM's log), inputs of recorders
without their output, columns of prompts, and plain texts.
"""

from __future__ import annotations

from typing import Any, cast

from orchestrate.data.rows.examples import RLExample
from orchestrate.data.shapes.chat import messages_from, tools_from
from orchestrate.data.shapes.exports import QUESTIONS, Recorded, as_row, logged_request, parsed
from orchestrate.data.shapes.preferences import instructed, questioned
from orchestrate.data.shapes.shape import Row
from orchestrate.data.shapes.sharegpt import with_system
from orchestrate.data.shapes.unread import problems_of
from orchestrate.types import Problem, Severity

_WRAPPED = ("body", "request")
_PLACES = ("messages", "input_messages", "prompt", "input", "inputs", *QUESTIONS)
"""Where a row has what was asked; the first that holds something is read."""
_SYSTEM = frozenset({"system", "instructions", "system_prompt"})


def prompt_of(row: Row) -> RLExample | list[Problem]:
    """What is in the way where nothing can be asked: without problems, the row asks nothing in a way that is
    known."""
    held = next((found for name in _WRAPPED if (found := as_row(parsed(row.get(name))))), None)
    asked = held or logged_request(row) or row
    for read in (_columns, _turns):
        found = read(asked)
        if found is not None:
            turns, inside, wrong = found
            messages, bad = messages_from(turns, "prompt")
            with_own = with_system(_system(inside) or _system(asked), messages, wrong)
            tools, more = tools_from({"tools": inside.get("tools") or asked.get("tools")})
            broken = [p for p in (*wrong, *bad, *more) if p.severity is Severity.ERROR]
            if broken or not with_own or with_own[-1].role not in ("user", "tool"):
                return broken
            return RLExample(messages=with_own, tools=tools)
    return []


_Found = tuple[list[Any], Row, list[Problem]]
"""Messages, what they lie in, and what is wrong."""


def _columns(asked: Row) -> _Found | None:
    """A text with the columns that belong to it."""
    for name, beside, read in (("instruction", "input", instructed), ("question", "context", questioned)):
        if isinstance(asked.get(name), str):
            text, wrong = read(asked)
            found = [wrong] if wrong is not None else _unread(asked, {name, beside})
            return [{"role": "user", "content": text}], asked, found
    return None


def _turns(asked: Row) -> _Found | None:
    for place in _PLACES:
        given = parsed(asked.get(place))
        reader = Recorded("user", QUESTIONS, ("tools", *_SYSTEM))
        turns = reader.turns(given, place) if given else None
        if turns is not None:
            found = [*reader.found, *(_unread(asked, {place}) if isinstance(given, str) else [])]
            return cast("list[Any]", turns), as_row(given), found
    return None


def _unread(asked: Row, used: set[str]) -> list[Problem]:
    left = {name: value for name, value in asked.items() if name not in used | _SYSTEM | {"tools"}}
    return problems_of(asked, left, frozenset(used))


def _system(asked: Row) -> Row:
    """A Response has its system text in `instructions`."""
    return {"system": text} if (text := next(filter(None, map(asked.get, sorted(_SYSTEM))), None)) else {}
