"""Lists in OpenAI's form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def page(data: Sequence[Any], *, more: bool) -> dict[str, Any]:
    return {"object": "list", "data": list(data), "has_more": more}
