"""Names, pages and filters as the Fireworks gateway has them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import dropwhile, islice
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from orchestrate.sandbox.host import HostError, json_answer, number, page_of

T = TypeVar("T")

GRPC = {400: 3, 401: 16, 403: 7, 404: 5, 409: 6, 412: 9, 429: 8, 500: 13, 501: 12, 503: 14, 504: 4}
"""HTTP status -> google.rpc code."""
PAGE, MOST = 50, 200

_CLAUSE = re.compile(r"""\s*([\w.]+)\s*(!?=)\s*(?:"([^"]*)"|'([^']*)'|([\w.\-/]+))\s*""")


def short(name: str) -> str:
    """The last part of a resource name."""
    return name.rsplit("/", 1)[-1]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])([A-Z])", lambda m: f"_{m[1].lower()}", name)


def paged(
    request: Request,
    collection: str,
    items: Iterator[T],
    render: Callable[[T], dict[str, Any]],
    *,
    key: Callable[[T], str],
) -> Response:
    """One page of all items; the token is the id of the last item before it."""
    if after := page_token(request):
        items = islice(dropwhile(lambda item: key(item) != after, items), 1, None)
    return page(request, collection, items, render, key=key)


def page_token(request: Request) -> str | None:
    return request.query_params.get("pageToken") or None


def page(
    request: Request,
    collection: str,
    items: Iterator[T],
    render: Callable[[T], dict[str, Any]],
    *,
    key: Callable[[T], str],
) -> Response:
    """The first of the items that follow the token."""
    size = number(request, "pageSize", PAGE, 0, MOST) or PAGE
    first, more = page_of(items, size)
    body: dict[str, Any] = {collection: [render(item) for item in first]}
    body["nextPageToken"] = key(first[-1]) if more and first else ""
    return json_answer(body)


def aip_filter(items: Iterator[T], request: Request, fields: Callable[[T], dict[str, str]]) -> Iterator[T]:
    """The part of AIP-160 that people use: `field=value` and `field!=value` joined by AND; `*` at either end.

    Raises `HostError` 400 for anything else.
    """
    text = request.query_params.get("filter")
    if not text:
        return items
    clauses: list[tuple[str, bool, str]] = []
    for part in re.split(r"\bAND\b", text):
        found = _CLAUSE.fullmatch(part)
        if found is None:
            raise HostError(400, f"this sandbox cannot read the filter {text!r}")
        name, operator, *values = found.groups()
        clauses.append((snake(name), operator == "=", next(v for v in values if v is not None)))

    def kept(item: T) -> bool:
        values = fields(item)
        for name, equal, wanted in clauses:
            if name not in values:
                raise HostError(400, f"this sandbox cannot filter by {name!r}")
            if _like(values[name], wanted) != equal:
                return False
        return True

    return filter(kept, items)


def _like(value: str, pattern: str) -> bool:
    return re.fullmatch(re.escape(pattern).replace(r"\*", ".*"), value) is not None
