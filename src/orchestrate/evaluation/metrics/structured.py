"""Score answers that are JSON."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Hashable, Sequence
from contextlib import suppress
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, cast

from orchestrate.core import needed
from orchestrate.errors import UsageError
from orchestrate.evaluation import Answer, Item
from orchestrate.evaluation.metrics.text import Compare, nfc

_NOT_JSON = (ValueError, RecursionError)
"""Errors that parsing JSON can raise. Python raises a plain `ValueError` for a number with 5,000 digits."""


def json_valid(expected: str, answer: str) -> float:
    """Return 1 if the answer is JSON, with or without a Markdown fence, and 0 otherwise."""
    del expected
    try:
        _read(answer)
    except _NOT_JSON:
        return 0.0
    return 1.0


def json_match(expected: str, answer: str) -> float:
    """Return 1 if both texts are the same JSON value, and 0 otherwise. Key order, white space and a Markdown
    fence don't matter."""
    try:
        return float(same(exact_json(unfenced(expected)), exact_json(unfenced(answer))))
    except _NOT_JSON:
        return 0.0


def json_fields(expected: str, answer: str) -> float:
    """Return the fraction of fields with the same value in both JSON objects, out of all fields in either
    object."""
    try:
        want, got = exact_json(unfenced(expected)), exact_json(unfenced(answer))
    except _NOT_JSON:
        return 0.0
    if not isinstance(want, dict) or not isinstance(got, dict):
        return float(same(want, got))
    want, got = (
        {nfc(name): value for name, value in cast("dict[str, Any]", one).items()}
        for one in cast("list[Any]", [want, got])
    )
    names = want.keys() | got.keys()
    return sum(n in want and n in got and same(want[n], got[n]) for n in names) / len(names) if names else 1.0


def schema_match(path: str) -> Compare:
    """Build a comparison that checks answers against the JSON Schema in a file. References to other files or
    URLs are not followed. Raises `UsageError` if the schema is invalid, and `MissingExtra` if jsonschema is
    not installed."""
    with needed("eval", "json_schema", "jsonschema"):
        import jsonschema
        from jsonschema.validators import validator_for
    from jsonschema_specifications import (  # pyright: ignore[reportMissingTypeStubs]
        REGISTRY,  # nothing else is followed, and nothing is fetched
    )

    try:
        schema = json.loads(Path(path).read_text(encoding="utf-8"))
        kind: Any = validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, jsonschema.SchemaError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(
            f"{path} is not a valid JSON Schema: {first}", fix="json_schema:FILE.json"
        ) from error
    _require_refs(path, schema, REGISTRY)
    validator: Any = kind(schema, registry=REGISTRY)

    def fits(expected: str, answer: str) -> float:
        del expected
        try:
            return float(validator.is_valid(_read(answer)))
        except _NOT_JSON:
            return 0.0

    return fits


def _require_refs(path: str, schema: Any, registry: Any) -> None:
    """Raise `UsageError` for a `$ref` that can't be resolved, including references in referenced schemas."""
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import DRAFT202012, specification_with

    dialect = cast("dict[str, Any]", schema).get("$schema") if isinstance(schema, dict) else None
    known = specification_with(dialect, default=DRAFT202012) if isinstance(dialect, str) else DRAFT202012
    seen: set[int] = set()

    def walk(contents: Any, resolver: Any) -> None:
        if not isinstance(contents, dict) or id(cast("Any", contents)) in seen:
            return
        seen.add(id(cast("Any", contents)))
        for word in ("$ref", "$dynamicRef", "$recursiveRef"):
            ref = cast("dict[str, Any]", contents).get(word)
            if not isinstance(ref, str):
                continue
            try:
                found = resolver.lookup(ref)
            except Unresolvable as error:
                raise UsageError(
                    f"{path}: {word} {ref!r} does not exist in this file",
                    fix="add the target to the file. References to other files and URLs are not supported",
                ) from error
            walk(found.contents, found.resolver)
        for part in Resource[Any].from_contents(contents, default_specification=known).subresources():
            walk(part.contents, resolver.in_subresource(part))

    resource = Resource[Any].from_contents(schema, default_specification=known)
    walk(schema, registry.resolver_with_root(resource))


def _read(text: str) -> Any:
    """Parse JSON. Raises one of `_NOT_JSON`, including for NaN and Infinity, which Python accepts."""
    return json.loads(unfenced(text), parse_constant=_refuse)


def exact_json(text: str) -> Any:
    """Parse JSON without rounding numbers to doubles. Raises one of `_NOT_JSON`."""
    try:
        return json.loads(text, parse_constant=_refuse, parse_float=Decimal)
    except InvalidOperation as error:
        raise ValueError("an exponent is out of range") from error


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def unfenced(text: str) -> str:
    """Return the text without a byte order mark, and without its Markdown code fence, if a fence contains the
    entire text."""
    text = text.strip().removeprefix("\ufeff").strip()
    match = re.fullmatch(r"(`{3,}|~{3,})[^\S\n]*(?i:json)?[^\S\n]*\n(.*)\1", text, re.DOTALL)
    return match.group(2).rstrip() if match else text


def is_container(text: str) -> bool:
    """Return whether a text is a JSON object or list."""
    try:
        return isinstance(_read(text), dict | list)
    except _NOT_JSON:
        return False


def same(a: Any, b: Any) -> bool:
    return canonical(a) == canonical(b)


def canonical(value: Any) -> Hashable:
    """Return a value's canonical form. Two forms are the same only if JSON Schema considers the values equal,
    or if they differ only in the Unicode form of texts: 5, 5.0 and 5e0 are equal, but 1 and true are not."""
    match value:
        case dict():
            return frozenset((nfc(k), canonical(v)) for k, v in cast("dict[str, Any]", value).items())
        case list() | tuple():
            return tuple(canonical(one) for one in cast("list[Any]", value))
        case bool() | None:
            return (bool, value)  # a pair that no list makes: in Python 1 == True.
        case float():
            return Decimal(repr(value))
        case str():
            return nfc(value)
        case _:
            return value


def tool_calls(item: Item, answer: Answer) -> float:
    """Return 1 if the answer makes the expected calls with the same arguments in the same order, and 0
    otherwise. If no call is expected, the answer must not make any."""
    return float(_written(item.expected_calls) == _written(answer.tool_calls))


def tool_names(item: Item, answer: Answer) -> float:
    """Return 1 if the answer calls the expected tools in the same order, with any arguments, and 0
    otherwise."""
    want, got = ([name for name, _ in _written(calls)] for calls in (item.expected_calls, answer.tool_calls))
    return float(want == got)


def tool_arguments(item: Item, answer: Answer) -> float:
    """Return the fraction of calls that were both expected and made with the same arguments, out of all calls
    expected or made. The order doesn't matter."""
    want, got = (Counter(_written(calls)) for calls in (item.expected_calls, answer.tool_calls))
    either = (want | got).total()
    return (want & got).total() / either if either else 1.0


def _written(calls: Sequence[dict[str, Any]]) -> list[tuple[str, Hashable]]:
    """Return the name and the arguments of each call. Arguments that are not JSON remain strings."""
    found: list[tuple[str, Hashable]] = []
    for call in calls:
        function: dict[str, Any] = call.get("function") or call
        arguments: Any = function.get("arguments") or "{}"
        compared: Hashable = str(arguments)
        with suppress(ValueError, RecursionError):
            compared = canonical(exact_json(arguments) if isinstance(arguments, str) else arguments)
        found.append((str(function.get("name")), compared))
    return found
