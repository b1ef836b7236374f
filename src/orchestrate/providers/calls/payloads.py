"""Hosts' answers as plain dicts without secrets: what may be stored, logged and shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

from orchestrate.settings.keys import MASK as MASK
from orchestrate.settings.keys import redact_text as redact_text

_SECRET_NAME = re.compile(
    r"(api|access|auth|secret|private|encryption|signing)_?(key|token)|password|passwd|credential|authorization"
    r"|bearer|^(secret|token|cookie)$|_secret$"
)


class Unreadable(ValueError):
    """An answer that is not what was asked for. Its message is for the user, and begins with `it`."""


class CutShort(Unreadable):
    """A stream that ended before the model had. A proxy that gives up closes one as if it were whole."""

    def __init__(self) -> None:
        super().__init__("it ended before the model had said that it is done")


def payload(answer: object) -> dict[str, Any]:
    """An SDK object or mapping as a plain JSON-ready dict, secrets removed; empty for anything else."""
    if hasattr(answer, "to_dict"):
        # The hosts send values outside their own schema (OpenAI: `error: {}`); that is theirs to warn about.
        answer = cast("Any", answer).to_dict(mode="json", warnings=False)
    return cast("dict[str, Any]", redact(answer)) if isinstance(answer, Mapping) else {}


def redact(value: Any) -> Any:
    """The same JSON value without values under secret names, key-like words and signed URLs' queries."""
    if isinstance(value, str):
        return redact_text(value)
    if value is None or isinstance(value, int | float):
        return value
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {k: MASK if v and _secret(k) else redact(v) for k, v in items}
    if isinstance(value, list | tuple):
        return [redact(v) for v in cast("list[Any]", value)]
    return value


@lru_cache(maxsize=4096)
def _secret(name: str) -> bool:
    """A host's answers have the same few names again and again."""
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()
    return _SECRET_NAME.search(snake) is not None
