"""The `response_format` of the chat completions API, which makes a model answer in JSON."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import msgspec

from orchestrate.errors import UsageError


def schema_of(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Return the JSON schema for answers in a format, or `None` for text. Raises `UsageError` for an invalid
    format."""
    kind = "text" if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    named: Any = given.get("json_schema") if kind == "json_schema" else None
    schema: Any = cast("dict[str, Any]", named).get("schema") if isinstance(named, dict) else None
    if not isinstance(schema, dict):
        raise UsageError(
            "response_format must be text, json_object, or json_schema with a name and a schema object"
        )
    return cast("dict[str, Any]", schema)


def read_format(path: Path) -> dict[str, Any]:
    """Read a format, or a bare JSON schema, from a JSON file. Raises `UsageError` if the
    file cannot be read or contains neither."""
    try:
        found = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.MsgspecError, RecursionError) as error:
        why = error.strerror or "cannot be read" if isinstance(error, OSError) else error
        raise UsageError(
            f"{path} is not a valid response format: {why}",
            fix='pass a JSON file with {"type": "json_object"}, the API\'s json_schema, or a schema',
        ) from error
    if "json_schema" not in found and found.get("type") not in ("text", "json_object", "json_schema"):
        found = {"type": "json_schema", "json_schema": {"name": "answer", "schema": found, "strict": True}}
    schema_of(found)
    return found
