"""Lists in OpenAI's form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request

from orchestrate.wire.bodies import HostError


def page(data: Sequence[Any], *, more: bool) -> dict[str, Any]:
    return {"object": "list", "data": list(data), "has_more": more}


def page_with_ends(data: Sequence[Mapping[str, Any]], *, more: bool) -> dict[str, Any]:
    """As the newer lists are, which name their first and last entry."""
    ends = {"first_id": data[0]["id"] if data else None, "last_id": data[-1]["id"] if data else None}
    return {**page(data, more=more), **ends}


def page_of(request: Request, entries: Sequence[dict[str, Any]], *, default: int) -> dict[str, Any]:
    """The page that a request asks for by `limit` and `after`. Raises `HostError` 400, 404."""
    limit = number(request, "limit", default, 1, 100)
    after = request.query_params.get("after")
    if after:
        places = [n for n, item in enumerate(entries) if item["id"] == after]
        if not places:
            raise no_place(after)
        entries = entries[places[0] + 1 :]
    return page_with_ends(entries[:limit], more=len(entries) > limit)


def no_place(after: str) -> HostError:
    """An empty page would say that there is nothing more."""
    return HostError(404, f"There is no {after!r} in this list", param="after", code="not_found")


def metadata_filter(request: Request) -> dict[str, str]:
    """Of a list of jobs: `metadata[name]=value`."""
    found = request.query_params.items()
    return {n[9:-1]: value for n, value in found if n.startswith("metadata[") and n.endswith("]")}


def number(request: Request, name: str, default: int, low: int, high: int) -> int:
    """A query parameter. Raises `HostError` 400 outside its range."""
    raw = request.query_params.get(name)
    if raw is None or raw == "":
        return default
    try:
        value = int(raw)
    except ValueError as error:
        raise HostError(400, f"Invalid value for '{name}': {raw!r} is not an integer", param=name) from error
    if not low <= value <= high:
        raise HostError(400, f"Invalid value for '{name}': must be from {low} to {high}", param=name)
    return value
