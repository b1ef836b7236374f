"""Texts without secrets: what may be logged, kept and shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit, urlunsplit

from orchestrate.settings.keys import MASK, hide

_SECRET_TEXT = re.compile(
    r"\b(?:sk|pk|rk|tgp|fw|hf|key|sandbox|ghp)[-_]"
    r"(?:(?P<secret>(?=[A-Za-z_\-]*\d)[A-Za-z0-9_\-]{12,})|[A-Za-z0-9_\-]*)"
)
"""What is none is taken as well, as far as a key would go: looked at once, not from each `sk-` in it."""
_SIGNED = re.compile(r"(?i)(signature|x-amz-|x-goog-|[?&]sig=|[?&]token=|awsaccesskeyid)")
_URL = re.compile(r"https?://[^\s\"'<>]+")


def redact_text(text: str) -> str:
    """A text, as of an error or a log, without known secrets, key-like words and signed URLs' queries."""
    return _SECRET_TEXT.sub(
        lambda found: MASK if found["secret"] else found.group(), _URL.sub(_unsigned, hide(text))
    )


def _unsigned(match: re.Match[str]) -> str:
    try:
        parts = urlsplit(match.group())
    except ValueError:  # brackets that hold no address
        return MASK
    if not _SIGNED.search("?" + parts.query):
        return match.group()
    return urlunsplit(parts._replace(query=MASK))
