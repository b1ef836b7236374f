"""Serve the page of `orchestrate data review`, for one reviewer on this machine.

The URL contains a random token. Requests without it are rejected, and so are requests from other sites,
including those that use DNS rebinding. The page loads no external resources. Row text is sent as JSON and
inserted as text, never as markup.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.routing import Route

from orchestrate.data.operations.review import Decision, RowReview
from orchestrate.errors import UsageError
from orchestrate.http import web
from orchestrate.http.web import RequestGuard

LONGEST_BODY = 64 << 20


class RowDecision(msgspec.Struct):
    """The JSON body of an action on the page."""

    action: Literal["show", "accepted", "edited", "rejected", "undo"]
    index: int | None = None
    """Index of the row. `show` without an index returns the first row without a decision."""
    text: str | None = None


@dataclass(frozen=True)
class RowReviewPage:
    """A running review server. `url` is the URL of the review page."""

    url: str
    review: RowReview


@contextmanager
def serving(path: str, *, port: int = 0) -> Generator[RowReviewPage]:
    """Serve the review of a file on 127.0.0.1 within a `with` block. Port 0 picks any free port.

    Raises `DataError` when the file cannot be read and `SetupError` when the port is in use.
    """
    review, token = RowReview(path), secrets.token_urlsafe(24)
    app = Starlette(routes=review_routes("/", lambda _: review))
    with web.serving(RequestGuard(app, tokens={token: ""}, max_body=LONGEST_BODY), port=port) as root:
        yield RowReviewPage(f"{root}/{token}/", review)


def review_routes(
    path: str, review_of: Callable[[Request], RowReview], back: Callable[[Request], str] | None = None
) -> list[Route]:
    """Build the routes of the review page and its actions. `review_of` and `back` are callbacks that take a
    request. `review_of` returns the review to show, and `back` returns the URL of the page's back link."""
    lock = threading.Lock()

    def answer(body: RowDecision, request: Request) -> dict[str, Any]:
        review = review_of(request)
        with lock:
            return act(review, body)

    return [
        web.page(path, __package__ or "", "review_rows.html", back=back),
        web.action(path, RowDecision, answer),
    ]


def act(review: RowReview, body: RowDecision) -> dict[str, Any]:
    """Perform the action and return the data for the next view: `file`, `counts` and, if the file has rows,
    `row`."""
    index = body.index
    decision: Decision | None = None if body.action in ("show", "undo") else body.action
    if body.action == "undo":
        index = review.undo()
        if index is None:
            raise UsageError("there is nothing to undo")
    elif decision is not None:
        review.decide(-1 if index is None else index, decision, body.text)
    shown = review.first_pending() if index is None else index
    return {
        "file": Path(review.path).name,
        "counts": review.counts(),
        "row": review.row(shown) if len(review) else None,
    }
