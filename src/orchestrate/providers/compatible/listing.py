"""A list of the API, page by page and as it came. The SDK's own pages make an object of each field of each
entry: two fifths of the time that a look at ten thousand jobs takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, cast

from orchestrate.providers.calls.payloads import Unreadable, redact_text
from orchestrate.providers.calls.values import plain


class Listed:
    """A page; `data` has its entries."""

    def __init__(self, ask: Callable[..., Any], after: str | None = None) -> None:
        """`ask`: a list of `with_raw_response`, which takes `after`. Raises what the SDK does, and
        `Unreadable`."""
        self._ask = ask
        text: str = (ask() if after is None else ask(after=after)).text
        try:
            body: Any = json.loads(text)
        except ValueError:
            raise Unreadable(f"it is {redact_text(text)[:120]!r} instead of a page of a list") from None
        found = plain(body).get("data")
        if not isinstance(found, list):
            raise Unreadable(f"it holds no list, but {redact_text(str(body))[:120]}")
        self.data = cast("list[object]", found)
        self._more = body.get("has_more") is not False

    def has_next_page(self) -> bool:
        return self._more and self.next_page_info() is not None

    def next_page_info(self) -> str | None:
        found = plain(self.data[-1]).get("id") if self.data else None
        return found if isinstance(found, str) else None

    def get_next_page(self) -> Listed:
        return Listed(self._ask, self.next_page_info())
