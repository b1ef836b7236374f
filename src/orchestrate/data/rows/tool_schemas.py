"""What is wrong with the tools that a row declares."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, cast

from orchestrate.data.rows.problems import problem
from orchestrate.types import Problem

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What OpenAI takes as the name of a function, and the other backends with it."""
_TYPES = frozenset({"string", "number", "integer", "boolean", "array", "object", "null"})
_MOST_SCHEMAS = 1000
"""Of one tool; more are not looked at."""


def tool_name(tool: dict[str, Any]) -> str | None:
    function: Any = tool.get("function")
    if not isinstance(function, dict):
        return None
    name: Any = cast("dict[str, Any]", function).get("name")
    return name if isinstance(name, str) else None


def tool_problems(tools: list[dict[str, Any]]) -> list[Problem]:
    """At most one error and one warning for each tool."""
    found: list[Problem] = []
    seen: set[str] = set()
    for i, tool in enumerate(tools):
        name, field = tool_name(tool), f"tools[{i}]"
        if tool.get("type", "function") != "function" or not name:
            found.append(problem("bad-tools", "not a function with a name", field=field))
            continue
        if name in seen:
            found.append(problem("bad-tools", f"the tool {name!r} is declared twice", field=field))
        seen.add(name)
        if not _NAME.fullmatch(name):
            found.append(problem("odd-tool", f"the name {name[:80]!r}", field=f"{field}.function.name"))
        parameters: Any = tool["function"].get("parameters")
        place = f"{field}.function.parameters"
        if parameters is None:
            continue
        if not isinstance(parameters, dict) or cast("dict[str, Any]", parameters).get("type") != "object":
            message = f"the parameters of {name!r} are not a JSON schema of type object"
            found.append(problem("bad-tools", message, field=place))
            continue
        first: dict[str, str] = {}
        for code, message in _schema(cast("dict[str, Any]", parameters)):
            first.setdefault(code, message)
        found += [problem(c, f"the parameters of {name!r}: {m}", field=place) for c, m in first.items()]
    return found


def _schema(parameters: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Code and message of what is wrong in a JSON schema and those inside it."""
    pending: list[Any] = [parameters]
    for _ in range(_MOST_SCHEMAS):
        if not pending:
            return
        schema = pending.pop()
        if not isinstance(schema, dict):  # true and false are schemas too
            continue
        held = cast("dict[str, Any]", schema)
        kinds: Any = held.get("type")
        for kind in cast("list[Any]", kinds) if isinstance(kinds, list) else [kinds]:
            if kind is not None and (not isinstance(kind, str) or kind not in _TYPES):
                yield "odd-tool", f"{str(kind)[:40]!r} is not a type of JSON schema"
        properties: Any = held.get("properties", {})
        required: Any = held.get("required", [])
        if not isinstance(properties, dict):
            yield "bad-tools", "properties is not an object"
            continue
        named = cast("dict[str, Any]", properties)
        if any(not isinstance(value, dict | bool) for value in named.values()):
            yield "bad-tools", "a property is not a schema"
        if not isinstance(required, list) or not all(isinstance(r, str) for r in cast("list[Any]", required)):
            yield "bad-tools", "required is not a list of names"
        elif absent := [r for r in cast("list[str]", required) if r not in named]:
            yield "odd-tool", f"required names {absent[0][:40]!r}, which properties do not have"
        pending += [*named.values(), held.get("items")]
