"""Hosts' answers as plain dicts without secrets: what may be stored, logged and shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import urlsplit, urlunsplit

from orchestrate.keys import MASK as MASK
from orchestrate.keys import hide

_SECRET_NAME = re.compile(
    r"(api|access|auth|secret|private|encryption|signing)_?(key|token)|password|passwd|credential|authorization"
    r"|bearer|^(secret|token|cookie)$|_secret$"
)
_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk|tgp|fw|hf|key|sandbox|ghp)[-_](?=[A-Za-z_\-]*\d)[A-Za-z0-9_\-]{12,}"
)
_SIGNED = re.compile(r"(?i)(signature|x-amz-|x-goog-|[?&]sig=|[?&]token=|awsaccesskeyid)")
_URL = re.compile(r"https?://[^\s\"'<>]+")


class Unreadable(ValueError):
    """An answer that is not what was asked for. Its message is for the user, and begins with `it`."""


def payload(answer: object) -> dict[str, Any]:
    """An SDK object or mapping as a plain JSON-ready dict, secrets removed; empty for anything else."""
    if hasattr(answer, "to_dict"):
        # The hosts send values outside their own schema (OpenAI: `error: {}`); that is theirs to warn about.
        answer = cast("Any", answer).to_dict(mode="json", warnings=False)
    return cast("dict[str, Any]", redact(answer)) if isinstance(answer, Mapping) else {}


def redact(value: Any) -> Any:
    """The same JSON value without values under secret names, key-like words and signed URLs' queries."""
    if isinstance(value, Mapping):
        items = cast("Mapping[str, Any]", value).items()
        return {k: MASK if v and _SECRET_NAME.search(_snake(k)) else redact(v) for k, v in items}
    if isinstance(value, list | tuple):
        return [redact(v) for v in cast("list[Any]", value)]
    return redact_text(value) if isinstance(value, str) else value


def redact_text(text: str) -> str:
    """The same for any text, as of an error or a log."""
    return _SECRET_TEXT.sub(MASK, _URL.sub(_unsigned, hide(text)))


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).replace("-", "_").lower()


def _unsigned(match: re.Match[str]) -> str:
    try:
        parts = urlsplit(match.group())
    except ValueError:  # brackets that hold no address
        return MASK
    if not _SIGNED.search("?" + parts.query):
        return match.group()
    return urlunsplit(parts._replace(query=MASK))
