"""Refusals in OpenAI's form."""

from __future__ import annotations

from typing import Any

from orchestrate.wire.bodies import HostError


def error_body(error: HostError) -> dict[str, Any]:
    told = {"message": error.message, "type": error.type, "param": error.param, "code": error.code}
    return {"error": told}
