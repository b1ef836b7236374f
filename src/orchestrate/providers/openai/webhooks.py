"""Verification and parsing of the host's webhooks."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from openai import OpenAI

from orchestrate.profile import Delivery
from orchestrate.types import decoding


class _Subject(msgspec.Struct):
    id: str | None = None


class _Event(msgspec.Struct):
    id: str
    type: str
    data: _Subject = msgspec.field(default_factory=_Subject)


def read(body: str, headers: Mapping[str, str], secret: str) -> Delivery:
    """Verify and parse a webhook. The SDK verifies its signature, which follows the Standard Webhooks
    specification. Raises `ValueError` if the signature is invalid or the body can't be parsed."""
    # The client is only used to verify the signature. It sends nothing, so it needs no real key.
    OpenAI(api_key="unused").webhooks.verify_signature(body, headers, secret=secret)
    event = decoding.decode(body, type=_Event)
    return Delivery(event.id, event.data.id if event.type.startswith("fine_tuning.job.") else None)
