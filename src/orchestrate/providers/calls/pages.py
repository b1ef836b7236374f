"""Lists of the hosts, page by page: an answer that is not a list is never taken for an empty one, and a list
that never ends is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar, cast, get_origin

from orchestrate.errors import UnexpectedAnswer
from orchestrate.providers.calls.payloads import Unreadable, redact_text
from orchestrate.providers.calls.values import plain
from orchestrate.types import Job

MOST_PAGES = 2_000
"""Of one list: 200,000 jobs of the shortest pages."""


class Page(Protocol):
    """A page of a list, as each of the SDKs has it."""

    def has_next_page(self) -> bool: ...
    def next_page_info(self) -> Any: ...
    def get_next_page(self) -> Any: ...


P = TypeVar("P", bound=Page)
Read = Callable[[Callable[[], Any]], Any]
"""As `hosted.Wire.read`."""


def pages_of(provider: str, read: Read, first: Callable[[], P], omits_empty: bool, most: int) -> Iterator[P]:
    """As `hosted.Wire.pages`."""
    page, seen = _page(read, first, omits_empty), set[str]()
    for _ in range(most):
        yield page
        if not page.has_next_page():
            return
        cursor = str(page.next_page_info())
        if cursor in seen:
            raise UnexpectedAnswer(provider, f"the list never ends: {redact_text(cursor)} came twice")
        seen.add(cursor)
        page = _page(read, page.get_next_page, omits_empty)
    raise UnexpectedAnswer(provider, f"the list has not ended after {most} pages")


def entries_of(answer: object, field: str) -> list[dict[str, Any]]:
    """The objects of a list that comes whole. Raises `Unreadable` when it is none."""
    found = plain(answer).get(field)
    if not isinstance(found, list):
        raise Unreadable(f"it has no list of {field}")
    entries = cast("list[Any]", found)
    if not all(isinstance(entry, dict) for entry in entries):
        raise Unreadable(f"an entry of {field} is not an object")
    return entries


def made_since(pages: Iterable[Sequence[Job]], since: datetime | None) -> Iterator[Job]:
    """The jobs that are not older than `since`. Reading ends with the first page that ends before it, but
    only where all so far ran from new to old: a list that comes oldest first is read to its end."""
    newest: datetime | None = None
    last: datetime | None = None
    falling = True
    for jobs in pages:
        yield from (j for j in jobs if since is None or j.created_at is None or j.created_at >= since)
        for at in (job.created_at for job in jobs if job.created_at is not None):
            falling = falling and (last is None or at <= last)
            newest, last = newest or at, at
        if since is not None and last is not None and last < since and falling and newest != last:
            return


def _page(read: Read, call: Callable[[], P], omits_empty: bool) -> P:
    def checked() -> P:
        page = call()
        if not hasattr(page, "has_next_page"):
            raise Unreadable(f"it is {redact_text(str(page))[:120]!r} instead of a page of a list")
        if not _has_list(page) and not (omits_empty and not plain(page)):
            raise Unreadable(f"it holds no list, but {redact_text(str(plain(page)))[:120]}")
        return page

    return read(checked)


def _has_list(page: Any) -> bool:
    """The SDKs check nothing, and read what is not a list as an empty one. Another page than theirs has its
    own check."""
    fields: Mapping[str, Any] | None = getattr(page.__class__, "model_fields", None)
    if fields is None:
        return True
    lists = [name for name, field in fields.items() if get_origin(field.annotation) is list]
    return any(isinstance(getattr(page, name, None), list) for name in lists)
